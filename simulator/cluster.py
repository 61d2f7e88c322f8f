"""The simulated cluster: prices a plan from its exact traffic."""

from dataclasses import dataclass

from grace_opt.cost import LayerTime
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.traffic import SCHEMES, Traffic, traffic
from simulator.compute import expert_seconds
from simulator.network import phase_seconds


@dataclass(frozen=True)
class SimulatedCluster:
    """Alpha-beta links and roofline experts on exact counts, batch by batch.

    Attributes:
        scheme: pairs, flat or hierarchical (see `grace_opt.traffic`).
        tokens_per_rank: tokens of a rank in one batch; None prices the whole trace as one batch.
    """

    scheme: str = "hierarchical"
    tokens_per_rank: int | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.tokens_per_rank is not None and self.tokens_per_rank < 1:
            raise ValueError(f"tokens_per_rank must be at least 1, got {self.tokens_per_rank}")

    def __call__(self, problem: Problem, plan: Plan) -> LayerTime:
        plan.check(problem.model, problem.topology)
        return self.price(problem, traffic(problem.trace, plan, self.tokens_per_rank))

    def price(self, problem: Problem, counts: Traffic) -> LayerTime:
        """The time of traffic that was counted already."""
        model, topology = problem.model, problem.topology
        experts_LBR = expert_seconds(model, topology, counts.tokens_by_rank)
        slowest_LB = experts_LBR.max(axis=2)
        return LayerTime(
            dispatch_s=phase_seconds(topology, counts.dispatch(self.scheme), model.token_bytes).mean(axis=1),
            experts_s=slowest_LB.mean(axis=1),
            combine_s=phase_seconds(topology, counts.combine(self.scheme), model.token_bytes).mean(axis=1),
            idle_s=(slowest_LB[:, :, None] - experts_LBR).mean(axis=(1, 2)),
            tokens_per_rank=float(counts.tokens_of_rank.mean()),
        )
