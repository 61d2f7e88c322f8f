"""The simulated cluster: prices a plan from its exact traffic."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from grace_opt.bounds.certificate import Bounds
from grace_opt.bounds.senders import Sending
from grace_opt.cost import LayerTime
from grace_opt.model import MoEModel
from grace_opt.plan import Plan
from grace_opt.problem import Problem
from grace_opt.topology import Topology
from grace_opt.traffic import PREDICTED_SCHEMES, Traffic, require_scheme, traffic
from simulator.compute import expert_seconds, phase_end
from simulator.least_time import least_time, sender_of_rank
from simulator.network import SHARING, StageDetail, phase_seconds, stage_detail
from simulator.row_bytes import require_wire_type, row_bytes
from simulator.transport import Transport

T = TypeVar("T")


@dataclass(frozen=True)
class SimulatedCluster:
    """Alpha-beta links and roofline experts on exact counts, batch by batch.

    Attributes:
        scheme: pairs, flat, hierarchical, hierarchical_padded or low_latency (see `grace_opt.traffic`).
        tokens_per_rank: tokens of a rank in one batch; None prices the whole trace as one batch.
        choice_bytes: bytes of an expert id and its gate weight, which travel with a dispatched row: one choice with a
            row of `pairs`, all of the token's with a row of the other schemes.
        transport: the communication library whose kernels move the rows; None if links alone limit them.
        dispatch_type, combine_type: type of rows on the wire (see `simulator.row_bytes`); None: the transport's, or
            the model's bytes per value.
        sharing: how flows share links: `busiest_link` (the busiest one decides) or `max_min` (max-min fairly).
    """

    scheme: str = "hierarchical"
    tokens_per_rank: int | None = None
    choice_bytes: float = 0.0
    transport: Transport | None = None
    dispatch_type: str | None = None
    combine_type: str | None = None
    sharing: str = "busiest_link"

    def __post_init__(self) -> None:
        require_scheme(self.scheme, PREDICTED_SCHEMES)
        if self.tokens_per_rank is not None and self.tokens_per_rank < 1:
            raise ValueError(f"tokens_per_rank must be at least 1, got {self.tokens_per_rank}")
        if not 0 <= self.choice_bytes < math.inf:
            raise ValueError(f"choice_bytes must be a number of bytes, got {self.choice_bytes}")
        require_wire_type("dispatch_type", self.dispatch_type)
        require_wire_type("combine_type", self.combine_type)
        if self.sharing not in SHARING:
            raise ValueError(f"sharing must be one of {', '.join(SHARING)}, got {self.sharing!r}")
        if self.transport is not None:
            self.transport.require_scheme(self.scheme)

    def __call__(self, problem: Problem, plan: Plan) -> LayerTime:
        plan.check(problem.model, problem.topology)
        return self.price(problem, traffic(problem.trace, plan, self.tokens_per_rank))

    def price(self, problem: Problem, counts: Traffic) -> LayerTime:
        """The time of traffic that was counted already."""
        model, topology = problem.model, problem.topology
        experts_LBR = expert_seconds(model, topology, counts.tokens_by_rank)
        slowest_LB = phase_end(topology, experts_LBR)
        dispatch_LB, combine_LB = (
            self._phase(phase_seconds, problem, counts, returning) for returning in (False, True)
        )
        return LayerTime(
            dispatch_s=dispatch_LB.mean(axis=1),
            experts_s=slowest_LB.mean(axis=1),
            combine_s=combine_LB.mean(axis=1),
            idle_s=(slowest_LB[:, :, None] - experts_LBR).mean(axis=(1, 2)),
            tokens_per_rank=float(counts.tokens_of_rank.mean()),
        )

    def sending(self, topology: Topology) -> Sending:
        """Whose rows between nodes bound a stage by the busiest (see `simulator.least_time`)."""
        return Sending(sender_of_rank(topology, self.scheme.startswith("hierarchical")), self.tokens_per_rank)

    def least_time(self, problem: Problem, bounds: Bounds) -> LayerTime:
        """A time that no plan beats whose rows, those of `sending`, and load are at least these."""
        return least_time(self, problem, bounds)

    def stage_details(
        self, problem: Problem, counts: Traffic
    ) -> tuple[tuple[StageDetail, ...], tuple[StageDetail, ...]]:
        """What the stages of dispatch and those of combine are made of, rank by rank; columns are layers x batches."""
        there, back = (self._phase(stage_detail, problem, counts, returning) for returning in (False, True))
        return there, back

    def dispatch_row_bytes(self, model: MoEModel) -> float:
        """Bytes of a dispatched row, with header and choices."""
        transport, choices = self.transport, 1 if self.scheme in ("pairs", "low_latency") else model.top_k
        header = 0.0 if transport is None else transport.header_bytes
        return self._values_bytes(model, "dispatch_type") + header + self.choice_bytes * choices

    def combine_row_bytes(self, model: MoEModel) -> float:
        """Bytes of a row on its way back."""
        return self._values_bytes(model, "combine_type")

    def _values_bytes(self, model: MoEModel, field: str) -> float:
        wire_type = getattr(self, field) or getattr(self.transport, field, None)
        return model.token_bytes if wire_type is None else row_bytes(model.hidden_size, wire_type)

    def _phase(self, price: Callable[..., T], problem: Problem, counts: Traffic, returning: bool) -> T:
        """What `phase_seconds`, or a function like it, says of dispatch or combine."""
        transport, model = self.transport, problem.model
        if returning:
            stages, row = counts.returning(self.scheme), self.combine_row_bytes(model)
            kernel = None if transport is None else transport.combine
        else:
            stages, row = counts.stages(self.scheme), self.dispatch_row_bytes(model)
            kernel = None if transport is None else transport.dispatch
        num_experts = counts.tokens.shape[2]
        choices = counts.pair_rows.sum(axis=3)
        return price(problem.topology, stages, row, returning, kernel, self.sharing, num_experts, choices)
