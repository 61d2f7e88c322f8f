"""`torchrun ... -m runtime generate`: run the sample model under a saved plan and say where its time goes."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from grace_opt.atomic import write_text_atomically
from grace_opt.plan_file import digest, plan_to_text, read_plan
from grace_opt.provenance import provenance
from runtime.generation import Passes, Task, run, totals
from runtime.group import Group, current_group
from runtime.measurement import require_ranks


def generate(
    plan: str,
    checkpoint: str,
    scheme: str,
    batch: int,
    prefill: int,
    decode: int,
    repetitions: int,
    output: str,
    timeout_s: float = 60,
) -> None:
    """Read prompts and continue them on all ranks; rank 0 prints latencies by phase and writes result.json.

    Args:
        plan: plan file for the sample model on these ranks.
        checkpoint: sample model, on every host.
        batch, prefill, decode: sequences of each rank, tokens of a prompt, tokens generated after it.
        timeout_s: silence of a rank after which the others end; read before the ranks join.

    Raises:
        ValueError: plan, weights or ranks do not fit each other.
    """
    group = current_group()
    if min(batch, prefill, decode, repetitions) < 1:
        given = f"{batch}, {prefill}, {decode}, {repetitions}"
        raise ValueError(f"batch, prefill, decode and repetitions must be at least 1, got {given}")
    chosen = read_plan(plan)
    require_ranks(group, f"plan {plan}", chosen.ranks_per_node)
    if chosen.homes is not None and not group.rank:
        warnings.warn(f"plan {plan} has a rule for homes; prompts are dealt evenly here", stacklevel=2)
    group.agree({"plan": digest(chosen)[:23]})
    task = Task(plan_to_text(chosen), scheme, checkpoint, batch, prefill, decode, repetitions)
    parts = dict(zip(("prefill", "decode"), run(group, task), strict=True))
    rows = [_row(group, name, passes, batch, prefill, decode) for name, passes in parts.items()]
    if group.rank:
        return
    about = {"plan": plan, "planner": chosen.provenance.get("planner"), "checkpoint": checkpoint, "ranks": group.size}
    rows = [{**about, "scheme": scheme, **row} for row in rows]
    content = {"command": "generate", "status": "complete", "problem": about, "rows": rows, **provenance()}
    write_text_atomically(Path(output) / "result.json", json.dumps(content, indent=1) + "\n")
    print(_table(rows))
    print(f"\nwrote {output}/result.json")


def _row(group: Group, phase: str, passes: Passes, batch: int, prefill: int, decode: int) -> dict[str, Any]:
    """Medians over repetitions, in seconds; every rank must call it."""
    num_passes, tokens = (1, batch * prefill) if phase == "prefill" else (decode, batch)
    median = {name: float(np.median(values)) for name, values in totals(group, passes).items()}
    return {
        "phase": phase,
        "passes": num_passes,
        "tokens_per_rank": tokens,
        **median,
        "tokens_per_s": group.size * tokens * num_passes / median["end_to_end_s"],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    columns = ("attention", "dispatch", "experts", "combine", "idle")
    lines = [
        f"{rows[0]['scheme']}, {rows[0]['ranks']} ranks, milliseconds: phases with barriers between them, idle "
        "(waiting for slower ranks, mean) contained in them; end to end without barriers",
        f"{'':8}{'tokens':>8}{'passes':>8}"
        + "".join(f"{name:>11}" for name in columns)
        + f"{'end to end':>12}{'tok/s':>10}",
    ]
    for row in rows:
        cells = "".join(f"{row[f'{name}_total_s'] * 1e3:11.1f}" for name in columns)
        lines.append(
            f"{row['phase']:8}{row['tokens_per_rank']:8}{row['passes']:8}{cells}{row['end_to_end_s'] * 1e3:12.1f}"
            f"{row['tokens_per_s']:10.0f}"
        )
    return "\n".join(lines)
