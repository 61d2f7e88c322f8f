"""The simulated cluster: prices a plan from its exact traffic."""

import math
from dataclasses import dataclass

from grace_opt.cost import LayerTime
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.traffic import PREDICTED_SCHEMES, Traffic, require_scheme, traffic
from simulator.compute import expert_seconds, phase_end
from simulator.network import phase_seconds


@dataclass(frozen=True)
class SimulatedCluster:
    """Alpha-beta links and roofline experts on exact counts, batch by batch.

    Attributes:
        scheme: pairs, flat, hierarchical, hierarchical_padded or low_latency (see `grace_opt.traffic`).
        tokens_per_rank: tokens of a rank in one batch; None prices the whole trace as one batch.
        choice_bytes: bytes of an expert id and its gate weight, which travel with a dispatched row: one choice with a
            row of `pairs`, all of the token's with a row of the other schemes.
    """

    scheme: str = "hierarchical"
    tokens_per_rank: int | None = None
    choice_bytes: float = 0.0

    def __post_init__(self) -> None:
        require_scheme(self.scheme, PREDICTED_SCHEMES)
        if self.tokens_per_rank is not None and self.tokens_per_rank < 1:
            raise ValueError(f"tokens_per_rank must be at least 1, got {self.tokens_per_rank}")
        if not 0 <= self.choice_bytes < math.inf:
            raise ValueError(f"choice_bytes must be a number of bytes, got {self.choice_bytes}")

    def __call__(self, problem: Problem, plan: Plan) -> LayerTime:
        plan.check(problem.model, problem.topology)
        return self.price(problem, traffic(problem.trace, plan, self.tokens_per_rank))

    def price(self, problem: Problem, counts: Traffic) -> LayerTime:
        """The time of traffic that was counted already."""
        model, topology = problem.model, problem.topology
        experts_LBR = expert_seconds(model, topology, counts.tokens_by_rank)
        slowest_LB = phase_end(topology, experts_LBR)
        row_bytes = model.token_bytes + self.choice_bytes * (
            1 if self.scheme in ("pairs", "low_latency") else model.top_k
        )
        there, back = counts.stages(self.scheme), counts.returning(self.scheme)
        return LayerTime(
            dispatch_s=phase_seconds(topology, there, row_bytes).mean(axis=1),
            experts_s=slowest_LB.mean(axis=1),
            combine_s=phase_seconds(topology, back, model.token_bytes, returning=True).mean(axis=1),
            idle_s=(slowest_LB[:, :, None] - experts_LBR).mean(axis=(1, 2)),
            tokens_per_rank=float(counts.tokens_of_rank.mean()),
        )
