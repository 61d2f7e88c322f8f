"""A candidate's figures on held-out sequences, priced as the engine will run it, on the same homes for all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from analysis.advice.candidates import Candidate
from analysis.advice.demand import Phase
from analysis.advice.engine_terms import balance, travel
from analysis.advice.serving import Serving
from analysis.results import Row, price
from analysis.whole_model import Passes, end_to_end
from grace_opt.homes import Homes
from grace_opt.planners.home_choice import arrivals
from grace_opt.planners.home_scenarios import mirrored
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from simulator.cluster import SimulatedCluster

FIRST_SEED = 3000
"""Of the orders of arrival: not those on which plans are searched or chosen."""


@dataclass(frozen=True, eq=False)
class Judge:
    """Prices candidates.

    Attributes:
        held_out: the part to judge on.
        homes: deal sequences onto ranks in the order in which they come.
        maps: orders of arrival, each with its homes and their mirror (nodes in reverse order).
    """

    held_out: Problem
    homes: Homes
    phases: tuple[Phase, ...]
    cost: SimulatedCluster
    serving: Serving
    maps: int
    seed: int

    def of(self, sequences: NDArray[np.integer]) -> "Judge":
        """On some of the held-out sequences only."""
        trace = self.dealt(self.held_out.trace.select(sequences))
        return replace(self, held_out=replace(self.held_out, trace=trace))

    def dealt(self, trace: Trace) -> Trace:
        """With homes."""
        return self.homes(trace, self.held_out.topology.num_ranks)

    def problems(self) -> Iterator[Problem]:
        """The held-out part under all its homes."""
        topology = self.held_out.topology
        for order in arrivals(self.held_out.trace, self.maps, FIRST_SEED + self.seed):
            trace = self.dealt(order)
            yield replace(self.held_out, trace=trace)
            if topology.num_nodes > 1:
                yield replace(self.held_out, trace=mirrored(trace, topology))

    def rows(self, candidate: Candidate) -> list[Row]:
        """One row for each phase, mean over homes."""
        several = [[self.row(candidate, phase, problem) for phase in self.phases] for problem in self.problems()]
        return [_mean(rows) for rows in zip(*several, strict=True)]

    def row(self, candidate: Candidate, phase: Phase, problem: Problem) -> Row:
        """The figures of one phase on one part with homes."""
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
            **balance(counts.load),
            **travel(counts, cost.scheme, bytes_there, bytes_back),
        }

    def whole_model(self, candidate: Candidate, passes: Passes) -> dict[str, float]:
        """Seconds of a pass with all that surrounds the experts: `prefill` is the time to the first token, `decode`
        the time per token; empty if the model has no backbone."""
        steps: dict[str, list[float]] = {}
        for problem in self.problems():
            count = cache(partial(self.serving.count, problem, candidate.solution.plan))
            for row in end_to_end(self.cost, problem, count, passes, "none"):
                steps.setdefault(row["pass"], []).append(row["step_s"])
        return {name: float(np.mean(seconds)) for name, seconds in steps.items()}


def request_seconds(rows: Sequence[Row], phases: Sequence[Phase]) -> float:
    """Seconds of a mean layer that a request takes, by the rows of its phases."""
    return float(sum(row["layer_s_per_token"] * phase.request_tokens for row, phase in zip(rows, phases, strict=True)))


def _mean(rows: Sequence[Row]) -> Row:
    means = {key: float(np.mean([row[key] for row in rows])) for key, value in rows[0].items() if type(value) is float}
    return {**rows[0], **means}
