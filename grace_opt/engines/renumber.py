"""Write a checkpoint with the experts renumbered after a plan, so that any engine's linear placement realises it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from grace_opt.engines.checkpoint import (
    NOTE,
    changes,
    other_expert_layers,
    read_checkpoint,
    write_checkpoint,
)
from grace_opt.engines.engine import Export, replica_choice
from grace_opt.engines.permutation import orders
from grace_opt.plan import Plan
from grace_opt.plan_file import digest


def renumber(plan: Plan, source: Path, output: Path, overwrite: bool = False) -> Export:
    """Write the checkpoint `source` to `output`, renumbered.

    Args:
        overwrite: an earlier result at `output` is replaced; any other folder never is.

    Raises:
        ValueError: the plan is no renumbering, or the checkpoint is damaged or another model's.
        OSError: `output` is in the way, or there is no room.
    """
    checkpoint = read_checkpoint(source)
    if output.exists() and not (overwrite and (output / NOTE).is_file()):
        way_out = f"only a folder with {NOTE} is replaced" if overwrite else "give another output, or overwrite=true"
        raise FileExistsError(f"{output} exists: {way_out}")
    order_of_layer = orders(plan, checkpoint.num_groups)
    changed = changes(checkpoint, order_of_layer)
    note = {
        "format": "grace-permutation",
        "version": 1,
        "plan": digest(plan),
        "ranks": plan.num_ranks,
        "expert_of_place": {str(layer): order.tolist() for layer, order in order_of_layer.items()},
    }
    with _progress(checkpoint.num_bytes) as watch:
        left_out = write_checkpoint(checkpoint, changed, output, note, watch)
    return _export(plan, output, left_out, other_expert_layers(checkpoint, order_of_layer))


def _export(plan: Plan, output: Path, left_out: list[str], untouched: list[int]) -> Export:
    """What was written and what to know."""
    ranks = plan.num_ranks
    known = [
        *replica_choice(plan, "the engine", (), ""),
        f"experts have new numbers: recordings made with this checkpoint hold them, and {NOTE} says which they were",
        "where every rank gathers all tokens the placement changes no traffic, only load",
        "a balancer of the engine's own (EPLB) would move experts again: leave it off",
    ]
    if left_out:
        known.append(f"not copied, because they may hold the experts as they were: {', '.join(left_out)}")
    if untouched:
        known.append(f"layers {', '.join(map(str, untouched))} have experts but are not in the plan: left as they are")
    start = (
        f"vllm serve {output} --data-parallel-size {ranks} --enable-expert-parallel "
        "--all2all-backend deepep_low_latency",
        f"python -m sglang.launch_server --model-path {output} --tp-size {ranks} --ep-size {ranks} "
        "--moe-a2a-backend deepep",
        f"trtllm-serve {output} --tp_size {ranks} --ep_size {ranks}",
    )
    return Export("any engine with linear placement and no redundant experts", (str(output),), start, tuple(known))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal; elsewhere nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("renumbering"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("renumbering", total=total)
        yield lambda done: bar.advance(task, done)
