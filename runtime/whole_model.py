"""The sample model as a cost model: its MoE layers measured in a whole run, on text of its own."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grace_opt.cost import LayerTime
from grace_opt.plan import Plan
from grace_opt.plan_file import plan_to_text
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from grace_opt.traffic import require_scheme
from runtime.engine import MODEL
from runtime.generation import Passes, Task, run, totals
from runtime.group import Group, current_group
from runtime.measurement import Measurement, layer_time, of_all_ranks, require_ranks, timeline
from runtime.orders import give


@dataclass(frozen=True)
class SampleModel:
    """(problem, plan) -> LayerTime on the ranks of this run; called on rank 0 while the others serve its orders.

    Of the problem only model and topology count: the tokens are prompts from text, and what follows them.

    Attributes:
        checkpoint: written by `python -m runtime.sample`; on every host.
        phase: "prefill" (one pass of tokens_per_rank tokens) or "decode" (tokens_per_rank sequences, a token a step).
        length: tokens of a prompt.
        steps: decode steps.
        scheme, tokens_per_rank, repetitions: as in `replay.MeasuredCluster`.
    """

    checkpoint: str
    phase: str = "prefill"
    length: int = 64
    steps: int = 4
    scheme: str = "hierarchical"
    tokens_per_rank: int | None = None
    repetitions: int = 5

    def __post_init__(self) -> None:
        require_scheme(self.scheme)
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
        """Generate under the plan.

        Raises:
            ValueError: the plan is not for this model, or the processes are not the ranks of the topology.
            FileNotFoundError: there is no checkpoint.
        """
        group = current_group()
        problem.check(plan)
        require_ranks(group, f"topology {problem.topology.name}", problem.topology.ranks_per_node)
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
        give(group, "whole_model", asdict(task))
        seconds_RLBP, chosen, also = _measured(group, task)
        trace = executed_trace(problem.trace, chosen, self.steps if decoding else 1)
        source = f"sample model, {self.phase} of {task.sequences} x {task.length} tokens a rank"
        tokens_BR = np.full((max(task.steps, 1), group.size), chosen.shape[2] // max(task.steps, 1))
        return Measurement(
            layer_time(seconds_RLBP, tokens_BR),
            replace(problem, trace=replace(trace, source=source)),
            timeline(seconds_RLBP, plan.layer_ids),
            also,
        )


def whole_model(group: Group, **task: Any) -> None:
    """Serve an order of `SampleModel` on another rank than 0."""
    _measured(group, Task(**task))


def executed_trace(like: Trace, chosen_RLTK: NDArray[np.int32], passes: int) -> Trace:
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
    )


def _measured(group: Group, task: Task) -> tuple[NDArray[np.float64], NDArray[np.int32], dict[str, float]]:
    """Seconds [R, L, passes, repetitions, 2 * phases], choices of all ranks, and totals by name; of decode, if there is
    any. Every rank gets the same.
    """
    passes: Passes = run(group, task)[task.steps > 0]
    chosen_RLTK = of_all_ranks(group, passes.chosen).numpy()
    seconds_RLBP = of_all_ranks(group, passes.by_layer().contiguous()).numpy()
    return seconds_RLBP, chosen_RLTK, {name: float(np.median(values)) for name, values in totals(group, passes).items()}
