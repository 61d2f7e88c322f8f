"""Generate with the sample model on all ranks, and see where the time goes.

Every rank reads prompts of its own and continues them under a plan. Each repetition runs twice: with barriers between
phases, which tells them apart, and without, which tells how long the whole takes. What the router chose on the way is
kept, so that a prediction can be made for the very tokens that were run.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grace_opt.plan_file import plan_from_text
from runtime.engine import Engine, decode, prefill
from runtime.group import Group
from runtime.measurement import PHASES, of_all_ranks
from runtime.sample.checkpoint import open_model
from runtime.sample.text import prompts
from runtime.stopwatch import Stopwatch
from runtime.weights import weights_digest


@dataclass(frozen=True)
class Task:
    """What all ranks generate; small enough to travel as JSON.

    Attributes:
        plan: content of a plan file.
        checkpoint: sample model, readable on every host.
        sequences: of each rank.
        length: tokens of a prompt.
        steps: tokens generated after it.
        repetitions, warmup: runs that count, and runs before those.
    """

    plan: str
    scheme: str
    checkpoint: str
    sequences: int
    length: int
    steps: int
    repetitions: int
    warmup: int = 1


@dataclass(frozen=True)
class Passes:
    """Passes through the model on this rank: the one of prefill, or those of decode.

    Attributes:
        phases: seconds of each visit until all ranks were done, by phase: float64 [repetitions, passes, visits].
        busy: the same until this rank was done.
        whole_s: float64 [repetitions], all passes without barriers.
        chosen: int32 [L, tokens, K], pass after pass.
    """

    phases: dict[str, Tensor]
    busy: dict[str, Tensor]
    whole_s: Tensor
    chosen: Tensor

    def by_layer(self) -> Tensor:
        """[L, passes, repetitions, 2 * phases] seconds, as `measurement.layer_time` takes them."""
        columns = [kind[phase] for kind in (self.phases, self.busy) for phase in PHASES]
        return torch.stack([column.permute(2, 1, 0) for column in columns], dim=-1)


def run(group: Group, task: Task) -> tuple[Passes, Passes]:
    """Prefill and decode on this rank together with the others.

    Raises:
        ValueError: on all ranks alike, if they have different weights, or the plan is not for the model.
    """
    group.agree({"weights": weights_digest(task.checkpoint)})
    _, tokenizer, _ = open_model(Path(task.checkpoint))
    text = prompts(tokenizer, task.sequences * group.size, task.length)
    tokens = torch.from_numpy(text[group.rank :: group.size]).to(group.device)
    engine = Engine.of_plan(plan_from_text(task.plan), task.checkpoint, task.scheme, group.device)
    for _ in range(task.warmup):
        _generate(group, engine, tokens, task, None)
    barrier_s, kept = group.barrier_seconds(), []
    for _ in range(task.repetitions):
        watches = [Stopwatch(group.barrier, group.device, barrier_s) for _ in range(2)]
        chosen, _ = _generate(group, engine, tokens, task, watches)
        kept.append((watches, _generate(group, engine, tokens, task, None)[1]))
    after = torch.cat(chosen[1:], dim=1) if task.steps else chosen[0][:, :0]
    return _collect(kept, 0, 1, chosen[0]), _collect(kept, 1, task.steps, after)


def totals(group: Group, passes: Passes) -> dict[str, NDArray[np.float64]]:
    """[repetitions] seconds of all passes: by phase, waiting for slower ranks included; idle, that waiting, mean over
    ranks; and end to end without barriers, until the slowest rank is done. Every rank must call it.
    """
    whole = {phase: of_all_ranks(group, visits.sum(dim=(1, 2))).mean(0) for phase, visits in passes.phases.items()}
    busy = sum(of_all_ranks(group, visits.sum(dim=(1, 2))).mean(0) for visits in passes.busy.values())
    found = {f"{phase}_total_s": seconds.numpy() for phase, seconds in whole.items()}
    idle = (torch.stack(list(whole.values())).sum(0) - busy).clamp(min=0).numpy()
    return {**found, "idle_total_s": idle, "end_to_end_s": of_all_ranks(group, passes.whole_s).amax(0).numpy()}


def _generate(
    group: Group, engine: Engine, tokens: Tensor, task: Task, watches: list[Stopwatch] | None
) -> tuple[list[Tensor], tuple[float, float]]:
    """One run: ids chosen in each pass, and the seconds of prefill and decode."""
    first, second = watches or (Stopwatch(device=group.device), Stopwatch(device=group.device))
    group.barrier()
    started = first.now()
    sequences = prefill(_watched(engine, first), tokens, task.length + task.steps, record=True)
    first.stop()
    read = first.now()
    group.barrier()
    resumed = second.now()
    decode(_watched(engine, second), sequences, task.steps)
    second.stop()
    ended = second.now()
    assert sequences.chosen is not None
    return [ids.cpu().to(torch.int32) for ids in sequences.chosen], (read - started, ended - resumed)


def _watched(engine: Engine, watch: Stopwatch) -> Engine:
    return engine if watch.barrier is None else replace(engine, watch=watch)


def _collect(
    kept: list[tuple[list[Stopwatch], tuple[float, float]]], which: int, passes: int, chosen: Tensor
) -> Passes:
    """Prefill (0) or decode (1) of all repetitions."""
    watches = [watches[which] for watches, _ in kept]

    def table(name: str, phase: str) -> Tensor:
        visits = [getattr(watch, name)[phase] for watch in watches]
        return torch.tensor(visits, dtype=torch.float64).view(len(watches), passes, -1)

    names = list(watches[0].visits)
    whole = torch.tensor([seconds[which] for _, seconds in kept], dtype=torch.float64)
    return Passes({n: table("visits", n) for n in names}, {n: table("busy", n) for n in names}, whole, chosen)
