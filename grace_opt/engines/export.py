"""`grace-opt export`: write a plan as a serving engine reads it, and say how to use it there."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from grace_opt import __version__
from grace_opt.atomic import write_atomically, write_text_atomically
from grace_opt.engines import omni, sglang, tensorrt_llm, vllm, vllm_ascend
from grace_opt.engines.engine import SERVED, Engine, Export, Options
from grace_opt.engines.equal_slots import equal_slots
from grace_opt.engines.renumber import renumber
from grace_opt.load_history import LoadHistory
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.plan_file import digest, plan_to_text, read_plan
from grace_opt.problem import slots_that_fit
from grace_opt.profile import expert_loads
from grace_opt.routing import Routing
from grace_opt.topology import Topology
from grace_opt.trace import Trace

ENGINES: Mapping[str, Engine] = {
    "sglang": sglang,
    "tensorrt_llm": tensorrt_llm,
    "vllm": vllm,
    "vllm_ascend": vllm_ascend,
    "omni": omni,
}
PERMUTATION, RESULT = "permutation", "result.json"


def export(
    plan: str,
    engine: str,
    output: str,
    unequal: str = "refuse",
    checkpoint: str | None = None,
    num_hidden_layers: int | None = None,
    overwrite: bool = False,
    model: MoEModel | None = None,
    topology: Topology | None = None,
    trace: Trace | LoadHistory | None = None,
) -> Export:
    """Write an engine's files and result.json; print the lines to type and the warnings.

    Args:
        engine: one of ENGINES, or `permutation`: a checkpoint whose experts are renumbered.
        output: folder of the files; with `permutation` the new checkpoint itself, and no result.json.
        unequal: ranks that hold fewer experts than others are refused (`refuse`) or filled with replicas (`pad`).
        checkpoint: folder of a Hugging Face model, for `permutation`.
        num_hidden_layers: all layers of the model, for SGLang; None: the plan's last layer is the model's last.
        overwrite: replace files that are there.
        model, topology: both or none; the plan is checked against them, and the memory of a filled plan.
        trace: recorded tokens, or loads alone; loads choose the replicas that fill.

    Raises:
        ValueError: bad input, or the plan cannot be had in this engine.
        FileExistsError: a file is already there.
    """
    if engine not in (*ENGINES, PERMUTATION):
        raise ValueError(f"engine must be one of {', '.join((*ENGINES, PERMUTATION))}, got {engine!r}")
    if unequal not in ("refuse", "pad"):
        raise ValueError(f"unequal must be refuse or pad, got {unequal!r}")
    saved = read_plan(plan)
    if list(saved.layer_ids) != sorted(saved.layer_ids):
        raise ValueError(f"{plan}: layers must ascend, since engines count them, got {list(saved.layer_ids)}")
    if model is not None and topology is not None:
        saved.check(model, topology)
    elif model is not None or topology is not None:
        raise ValueError("model and topology are checked together: give both or none")
    _warn_of_unused(engine, unequal, checkpoint, num_hidden_layers, trace)
    if engine == PERMUTATION:
        if checkpoint is None:
            raise ValueError("engine=permutation rewrites a model: give checkpoint=FOLDER of a Hugging Face model")
        done = renumber(saved, Path(checkpoint), Path(output), overwrite)
    else:
        fitted, changes = _fitted(saved, ENGINES[engine], unequal == "pad", model, topology, trace)
        done = _write(ENGINES[engine], fitted, changes, Options(num_hidden_layers), Path(output), overwrite)
        _write_result(Path(output), engine, plan, saved, done)
    _print(done)
    return done


def _warn_of_unused(
    engine: str, unequal: str, checkpoint: str | None, num_hidden_layers: int | None, trace: Trace | LoadHistory | None
) -> None:
    unused = {
        "checkpoint": checkpoint is not None and engine != PERMUTATION,
        "num_hidden_layers": num_hidden_layers is not None and engine != "sglang",
        "unequal=pad": unequal == "pad" and engine == PERMUTATION,
        "trace": trace is not None and (unequal != "pad" or engine == PERMUTATION),
    }
    for name in (name for name, is_unused in unused.items() if is_unused):
        warnings.warn(f"{name} is not used with engine={engine} unequal={unequal}", stacklevel=3)


def _fitted(
    plan: Plan,
    engine: Engine,
    pad: bool,
    model: MoEModel | None,
    topology: Topology | None,
    trace: Trace | LoadHistory | None,
) -> tuple[Plan, list[str]]:
    """The plan with ranks filled alike, and what was changed."""
    load_LE = None
    if trace is not None:
        sizes = (trace.num_layers, trace.num_experts)
        if sizes != (plan.placement.num_layers, plan.num_experts) or trace.model not in ("", plan.model):
            raise ValueError(
                f"trace is of {trace.model or 'a model'} with {sizes[0]} MoE layers and {sizes[1]} experts, the plan "
                f"of {plan.model} with {plan.placement.num_layers} and {plan.num_experts}"
            )
        load_LE = expert_loads(trace)
    fitted, changes = equal_slots(plan, pad, load_LE, engine.SAME_IN_ALL_LAYERS, engine.EXPERT_ONCE_PER_RANK)
    if not changes:
        return fitted, changes
    if model is None or topology is None:
        return fitted, [*changes, "memory was not checked: give model=... topology=... to have it checked"]
    used_R, room_R = fitted.placement.slots_used.max(axis=0), slots_that_fit(model, topology)
    if (used_R > room_R).any():
        rank = int(np.argmax(used_R - room_R))
        raise ValueError(
            f"filled alike, rank {rank} would hold {used_R[rank]} experts a layer, but its memory holds "
            f"{room_R[rank]}: plan with fewer slots"
        )
    return fitted, changes


def _write(engine: Engine, plan: Plan, changes: list[str], options: Options, folder: Path, overwrite: bool) -> Export:
    """Write the files; none if one of them is in the way."""
    served = replace(plan, routing=Routing(engine.POLICY), homes=None)
    files = {**engine.files(plan, options, folder), SERVED: plan_to_text(served).encode()}
    for name in (*files, RESULT):
        if (folder / name).exists() and not overwrite:
            raise FileExistsError(f"{folder / name} exists: give another output, or overwrite=true")
    for name, content in files.items():
        write_atomically(folder / name, _writer(content))
    slots = plan.placement.num_physical
    return Export(
        engine.NAME,
        tuple(str(folder / name) for name in files),
        tuple(engine.start(plan, folder)),
        (
            *changes,
            *engine.ignores(plan),
            f"{folder / SERVED} is the plan as {engine.NAME} will run it: price that one",
        ),
        {"slots": slots, "redundant_experts": slots - plan.num_experts, "ranks": plan.num_ranks},
    )


def _writer(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _write_result(folder: Path, engine: str, path: str, plan: Plan, done: Export) -> None:
    content: dict[str, Any] = {
        "command": "export",
        "version": __version__,
        "status": "complete",
        "problem": {"plan": path, "digest": digest(plan), "model": plan.model, "engine": engine},
        "rows": [{"files": done.files, "start": done.start, "warnings": done.warnings, **done.about}],
    }
    write_text_atomically(folder / RESULT, json.dumps(content, indent=1) + "\n")


def _print(done: Export) -> None:
    print(f"wrote {', '.join(done.files)}")
    print(f"\nwith {done.engine}:")
    for line in done.start:
        print(f"  {line}")
    if done.warnings:
        print("\nknow:")
    for line in done.warnings:
        print(f"  - {line}")
