"""Measure the sample model end to end: every rank reads prompts of its own and continues them under a plan.

With barriers, each phase starts on all ranks at once, and the waiting before it is `idle`; without them phases run into
each other and only the whole is meaningful. Both are measured. What the router chose on the way comes back as a trace,
so that a prediction can be made for the very tokens that were run.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grace_opt.cost import LayerTime
from grace_opt.plan import Plan
from grace_opt.plan_file import plan_from_text, plan_to_text
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from grace_opt.traffic import SCHEMES
from runtime.engine import MODEL, Engine, decode, prefill
from runtime.group import Group, current_group
from runtime.measurement import PHASES, Measurement, layer_time, of_all_ranks, require_ranks
from runtime.orders import give
from runtime.sample.checkpoint import open_model
from runtime.sample.text import prompts
from runtime.stopwatch import IDLE, Stopwatch
from runtime.weights import weights_digest

ATTENTION = "attention"


@dataclass(frozen=True)
class Task:
    """What all ranks generate.

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
class Timed:
    """One of prefill (one pass) and decode (a pass a step), over all repetitions.

    Attributes:
        visits: seconds on this rank with barriers, by phase: float64 [repetitions, passes, visits of a pass].
        whole_s: [repetitions] seconds on this rank without barriers.
        chosen: int32 [L, tokens, K] of this rank, pass after pass.
    """

    visits: dict[str, Tensor]
    whole_s: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class SampleModel:
    """(problem, plan) -> LayerTime of the sample model's MoE layers, measured in a whole run; called on rank 0.

    The prompts are text of its own, so of the problem only model and topology count.

    Attributes:
        checkpoint: written by `python -m runtime.sample`; on every host.
        phase: "prefill" (one pass of tokens_per_rank tokens) or "decode" (tokens_per_rank sequences, a token a step).
        length: tokens of a prompt.
        steps: decode steps.
    """

    checkpoint: str
    phase: str = "prefill"
    length: int = 64
    steps: int = 4
    scheme: str = "hierarchical"
    tokens_per_rank: int | None = None
    repetitions: int = 5

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.phase not in ("prefill", "decode"):
            raise ValueError(f"measured.phase must be prefill or decode, got {self.phase!r}")
        if min(self.length, self.steps, self.repetitions) < 1:
            raise ValueError("measured.length, steps and repetitions must be at least 1")
        if self.phase == "prefill" and (self.tokens_per_rank or self.length) % self.length:
            raise ValueError(
                f"tokens_per_rank={self.tokens_per_rank} must be a multiple of the {self.length} tokens of a prompt"
            )

    def __call__(self, problem: Problem, plan: Plan) -> LayerTime:
        """The measured time; see `measure`."""
        return self.measure(problem, plan).time

    def measure(self, problem: Problem, plan: Plan) -> Measurement:
        """Run the plan.

        Raises:
            ValueError: the plan is not for this model, or the processes are not the ranks of the topology.
            FileNotFoundError: there is no checkpoint.
        """
        group = current_group()
        problem.check(plan)
        require_ranks(group, problem.topology.name, problem.topology.ranks_per_node)
        if problem.model.name != MODEL or self.tokens_per_rank is None:
            raise ValueError(f"the sample model runs model={MODEL} in batches, got {problem.model.name}")
        decoding = self.phase == "decode"
        task = Task(
            plan_to_text(plan),
            self.scheme,
            self.checkpoint,
            sequences=self.tokens_per_rank if decoding else self.tokens_per_rank // self.length,
            length=self.length,
            steps=self.steps if decoding else 0,
            repetitions=self.repetitions,
        )
        give(group, "generate", asdict(task))
        timed = run(group, task)[decoding]
        passes = timed.visits[PHASES[0]].shape[1]
        seconds = torch.stack([_by_layer(timed.visits[phase]) for phase in PHASES], dim=-1)
        trace = executed_trace(problem.trace, of_all_ranks(group, timed.chosen).numpy(), passes)
        tokens_BR = np.full((passes, group.size), self.tokens_per_rank)
        also = {name: float(np.median(value)) for name, value in totals(group, timed).items()}
        return Measurement(
            layer_time(of_all_ranks(group, seconds).numpy(), tokens_BR), replace(problem, trace=trace), also
        )


def generate(group: Group, **task: Any) -> None:
    """Serve an order of `SampleModel` on another rank than 0."""
    order = Task(**task)
    timed = run(group, order)[order.steps > 0]
    seconds = torch.stack([_by_layer(timed.visits[phase]) for phase in PHASES], dim=-1)
    of_all_ranks(group, timed.chosen)
    totals(group, timed)
    of_all_ranks(group, seconds)


def run(group: Group, task: Task) -> tuple[Timed, Timed]:
    """Prefill and decode on this rank together with the others.

    Raises:
        ValueError: on all ranks alike, if they have different weights, or the plan is not for the model.
    """
    group.agree({"weights": weights_digest(task.checkpoint)})
    _, tokenizer, _ = open_model(Path(task.checkpoint))
    text = prompts(tokenizer, task.sequences * group.size, task.length)
    own = torch.from_numpy(text[group.rank :: group.size]).to(group.device)
    engine = Engine.of_plan(plan_from_text(task.plan), task.checkpoint, task.scheme, group.device)
    runs = [_once(group, task, engine, own, with_barriers) for with_barriers in _order(task)]
    return _collect(runs, 0), _collect(runs, 1)


@dataclass(frozen=True)
class _Run:
    """Visits and whole seconds of prefill and decode in one repetition, and what was chosen."""

    visits: tuple[dict[str, list[float]], ...] | None
    whole_s: tuple[float, float]
    chosen: tuple[Tensor, Tensor]
    passes: tuple[int, int]


def _order(task: Task) -> list[bool | None]:
    """Warm-up runs (None), then every repetition with and without barriers in turn."""
    return [None] * task.warmup + [True, False] * task.repetitions


def _once(group: Group, task: Task, engine: Engine, tokens: Tensor, barriers: bool | None) -> _Run | None:
    watches = [Stopwatch(group.barrier if barriers else None, group.device) for _ in range(2)]
    timed = [replace(engine, watch=watch) if barriers else engine for watch in watches]
    group.barrier()
    started = _now(group)
    sequences = prefill(timed[0], tokens, task.length + task.steps, record=True)
    read = _now(group)
    group.barrier()
    resumed = _now(group)
    decode(timed[1], sequences, task.steps)
    ended = _now(group)
    assert sequences.chosen is not None
    if barriers is None:
        return None
    after = torch.cat(sequences.chosen[1:], dim=1) if task.steps else sequences.chosen[0][:, :0]
    return _Run(
        tuple(watch.visits for watch in watches) if barriers else None,
        (read - started, ended - resumed),
        (sequences.chosen[0].cpu().to(torch.int32), after.cpu().to(torch.int32)),
        (1, task.steps),
    )


def _collect(runs: Sequence[_Run | None], which: int) -> Timed:
    counted = [run for run in runs if run is not None]
    passes = counted[0].passes[which]
    visits = [run.visits[which] for run in counted if run.visits is not None]
    by_phase = {
        phase: torch.tensor([v[phase] for v in visits], dtype=torch.float64).view(len(visits), passes, -1)
        for phase in (visits[0] if passes else ())
    }
    whole = torch.tensor([run.whole_s[which] for run in counted if run.visits is None], dtype=torch.float64)
    return Timed(by_phase, whole, counted[0].chosen[which])


def totals(group: Group, timed: Timed) -> dict[str, np.ndarray]:
    """[repetitions] seconds of a run by phase, mean over ranks; without barriers, until the slowest rank is done."""
    by_phase = {
        f"{phase}_total_s": of_all_ranks(group, timed.visits[phase].sum(dim=(1, 2))).mean(0).numpy()
        for phase in (ATTENTION, *PHASES, IDLE)
    }
    return {**by_phase, "end_to_end_s": of_all_ranks(group, timed.whole_s).amax(0).numpy()}


def executed_trace(like: Trace, chosen_RLTK: np.ndarray, passes: int) -> Trace:
    """What all ranks routed, as a trace whose batches are the passes: a sequence for every rank and pass."""
    ranks, layers, tokens, top_k = chosen_RLTK.shape
    ids = chosen_RLTK.swapaxes(0, 1).reshape(layers, ranks * tokens, top_k).astype(like.expert_ids.dtype)
    starts = np.arange(0, ranks * tokens, tokens // passes)
    return replace(
        like,
        expert_ids=ids,
        starts=starts,
        stops=starts + tokens // passes,
        domains=np.zeros(len(starts), np.int64),
        homes=np.repeat(np.arange(ranks), passes),
        source="text read and continued in this run",
    )


def _by_layer(visits: Tensor) -> Tensor:
    """[repetitions, passes, L] to [L, passes, repetitions]."""
    return visits.permute(2, 1, 0).contiguous()


def _now(group: Group) -> float:
    if group.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
