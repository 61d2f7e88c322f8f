"""A candidate's figures on held-out sequences, priced as the engine will run it, on the same homes for all."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from analysis.advice.candidates import Candidate
from analysis.advice.demand import Phase
from analysis.advice.engine_terms import balance, travel
from analysis.advice.serving import Serving
from analysis.results import Row, price
from analysis.whole_model import Passes, end_to_end
from grace_opt.homes import Homes
from grace_opt.model import MoEModel
from grace_opt.planners.home_choice import arrivals
from grace_opt.planners.home_scenarios import mirrored
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import Traffic
from simulator.cluster import SimulatedCluster

FIRST_SEED = 3000
"""Of the orders of arrival: not those on which plans are searched or chosen."""


@dataclass(frozen=True, eq=False)
class Judge:
    """Prices candidates.

    Attributes:
        homes: deal sequences onto ranks in the order in which they come.
        phases: each with the held-out part it is judged on.
        passes: what surrounds the MoE layers, for the time of the whole model.
        maps: orders of arrival, each with its homes and their mirror (nodes in reverse order).
    """

    homes: Homes
    phases: tuple[Phase, ...]
    cost: SimulatedCluster
    serving: Serving
    passes: Passes
    maps: int
    seed: int

    @property
    def model(self) -> MoEModel:
        return self.phases[0].held_out.model

    @property
    def topology(self) -> Topology:
        return self.phases[0].held_out.topology

    @property
    def fewest_sequences(self) -> int:
        """That are held out, of any phase."""
        return min(phase.held_out.trace.num_sequences for phase in self.phases)

    def of_each(self, trace_of: Callable[[Trace], Trace]) -> list[Problem]:
        """For each phase what becomes of its held-out sequences, with homes; made once for phases that share them."""
        parts = {id(phase.held_out): phase.held_out for phase in self.phases}
        made = {key: replace(part, trace=self.dealt(trace_of(part.trace))) for key, part in parts.items()}
        return [made[id(phase.held_out)] for phase in self.phases]

    def dealt(self, trace: Trace) -> Trace:
        """With homes."""
        return self.homes(trace, self.topology.num_ranks)

    def problems(self) -> Iterator[list[Problem]]:
        """The held-out part of each phase, under all homes."""
        for seed in range(FIRST_SEED + self.seed, FIRST_SEED + self.seed + self.maps):
            dealt = self.of_each(partial(_in_order, seed))
            yield dealt
            if self.topology.num_nodes > 1:
                yield [replace(part, trace=mirrored(part.trace, self.topology)) for part in dealt]

    def rows(self, candidate: Candidate) -> list[Row]:
        """One row for each phase, mean over homes."""
        several = [self.rows_on(candidate, problems) for problems in self.problems()]
        return [_mean(rows) for rows in zip(*several, strict=True)]

    def rows_on(self, candidate: Candidate, problems: Sequence[Problem]) -> list[Row]:
        """One row for each phase, each on its part with homes."""
        return [self.row(candidate, *of) for of in zip(self.phases, problems, strict=True)]

    def row(self, candidate: Candidate, phase: Phase, problem: Problem) -> Row:
        """The figures of one phase on one part with homes.

        `step_s` is the pass with all that surrounds the experts: of prefill the time to the first token, of decode the
        time per token; None if the model has no backbone.
        """
        cost = replace(self.cost, tokens_per_rank=phase.tokens_per_rank)
        plan, model = candidate.solution.plan, problem.model
        counts = self.serving.count(problem, plan, phase.tokens_per_rank)
        row = price(candidate.planner, "", "held_out", problem, candidate.solution, cost, counts)
        bytes_there, bytes_back = cost.dispatch_row_bytes(model), cost.combine_row_bytes(model)
        redundant = candidate.num_slots - model.num_experts
        del row["method"], row["objective"], row["bound"], row["gap"]
        return {
            **row,
            "pass": phase.name,
            "goal": candidate.goal,
            "redundancy": candidate.redundancy,
            "slots": candidate.num_slots,
            "redundant_experts": redundant,
            "memory_bytes_per_rank": model.rank_bytes(plan.placement.slots.shape[2]),
            "redundant_bytes": redundant * model.num_layers * model.expert_bytes,
            "layer_s_per_token": row["layer_time_s"] / row["tokens_per_rank"],
            "step_s": self._step_s(phase, problem, counts),
            **balance(counts.load),
            **travel(counts, cost.scheme, bytes_there, bytes_back),
        }

    def _step_s(self, phase: Phase, problem: Problem, counts: Traffic) -> float | None:
        if problem.model.backbone is None:
            return None
        (step,) = end_to_end(self.cost, problem, lambda _: counts, self.passes, "none", [phase.name])
        return float(step["step_s"])


def request_seconds(rows: Sequence[Row], phases: Sequence[Phase]) -> float:
    """Seconds of a mean layer that a request takes, by the rows of its phases."""
    return float(sum(row["layer_s_per_token"] * phase.request_tokens for row, phase in zip(rows, phases, strict=True)))


def _in_order(seed: int, trace: Trace) -> Trace:
    return arrivals(trace, 1, seed)[0]


def _mean(rows: Sequence[Row]) -> Row:
    means = {
        key: float(np.mean([row[key] for row in rows])) for key, value in rows[0].items() if isinstance(value, float)
    }
    return {**rows[0], **means}
