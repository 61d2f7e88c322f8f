"""Measure what a plan takes by running it: every batch of a trace through real MoE layers on all ranks.

The trace says which experts each token chooses; hidden states, gate weights and expert weights are made up from a seed
(the same expert has the same weights on every rank, so replicas agree). Each phase starts behind a barrier and lasts
until its slowest rank is done, as the simulator counts it. A few tokens of every batch are compared with the reference
on one device: a measurement of a layer that computes something else would be worth nothing.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from grace_opt.cost import LayerTime
from grace_opt.model import MoEModel
from grace_opt.placement import EMPTY
from grace_opt.plan import Plan
from grace_opt.plan_file import plan_from_text, plan_to_text
from grace_opt.problem import Problem
from grace_opt.trace import Trace
from grace_opt.traffic import batch_segments, require_scheme
from runtime.group import Group, current_group
from runtime.layer import MoELayer
from runtime.measurement import PHASES, Measurement, layer_time, of_all_ranks, require_ranks, timeline
from runtime.orders import give
from runtime.reference import Experts, moe_layer
from runtime.stopwatch import Stopwatch

CHECKED_TOKENS = 4
Tokens = tuple[Tensor, Tensor, Tensor]
"""Hidden states [T, D], gate weights [T, K] and expert ids [T, K] of a batch on this rank."""
DTYPES = {2.0: torch.bfloat16, 4.0: torch.float32}


@dataclass(frozen=True)
class Work:
    """What all ranks are to run, small enough to travel as JSON; the expert ids follow as tensors.

    Attributes:
        model: sizes, as the fields of a MoEModel.
        plan: content of a plan file.
        tokens_of_batch: tokens of each batch and rank [B][R].
    """

    scheme: str
    repetitions: int
    warmup: int
    seed: int
    model: dict[str, Any]
    plan: str
    tokens_of_batch: list[list[int]]


@dataclass(frozen=True)
class MeasuredCluster:
    """(problem, plan) -> LayerTime on the ranks of this run; called on rank 0 while the others serve its orders.

    Attributes:
        scheme: pairs, flat, hierarchical or hierarchical_padded (see `grace_opt.traffic`).
        tokens_per_rank: tokens of a rank in one batch; None runs the whole trace as one batch.
        repetitions: times each batch is run; the median counts.
        warmup: runs before those.
        seed: of hidden states and weights.
    """

    scheme: str = "hierarchical"
    tokens_per_rank: int | None = None
    repetitions: int = 5
    warmup: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require_scheme(self.scheme)
        if self.repetitions < 1 or self.warmup < 0:
            raise ValueError(
                f"repetitions must be at least 1 and warmup at least 0, got {self.repetitions} and {self.warmup}"
            )

    def __call__(self, problem: Problem, plan: Plan) -> LayerTime:
        """The measured time; see `measure`."""
        return self.measure(problem, plan).time

    def measure(self, problem: Problem, plan: Plan) -> Measurement:
        """Run the plan on the trace of the problem.

        Raises:
            ValueError: the plan is not for this problem, or the processes are not the ranks of its topology.
        """
        group = current_group()
        problem.check(plan)
        require_ranks(group, f"topology {problem.topology.name}", problem.topology.ranks_per_node)
        if problem.model.bytes_per_value not in DTYPES:
            raise ValueError(
                f"model.bytes_per_value must be 2 (bf16) or 4 (float32) to run, got {problem.model.bytes_per_value}"
            )
        segments, tokens_BR = batch_segments(problem.trace, group.size, self.tokens_per_rank)
        work = Work(
            self.scheme,
            self.repetitions,
            self.warmup,
            self.seed,
            asdict(replace(problem.model, backbone=None)),  # nothing of it is run
            plan_to_text(plan),
            tokens_BR.tolist(),
        )
        give(group, "replay", asdict(work))
        for rank in range(1, group.size):
            dist.send(_ids_of_rank(problem.trace, segments, rank), rank, group=group.control)
        seconds_RLBP = run(group, work, _ids_of_rank(problem.trace, segments, 0))
        return Measurement(layer_time(seconds_RLBP, tokens_BR), problem, timeline(seconds_RLBP, plan.layer_ids))


def replay(group: Group, **work: Any) -> None:
    """Serve an order of `MeasuredCluster` on another rank than 0."""
    order = Work(**work)
    model, tokens = MoEModel(**order.model), sum(batch[group.rank] for batch in order.tokens_of_batch)
    ids = torch.empty(model.num_layers, tokens, model.top_k, dtype=torch.int32)
    dist.recv(ids, 0, group=group.control)
    run(group, order, ids)


def run(group: Group, work: Work, ids_LTK: Tensor) -> NDArray[np.float64]:
    """Run all layers and batches on this rank together with the others.

    Returns:
        float64 [R, L, B, repetitions, 2 * phases], see `layer_time`.
    """
    model, plan = MoEModel(**work.model), plan_from_text(work.plan)
    sizes = [batch[group.rank] for batch in work.tokens_of_batch]
    taken = torch.zeros(len(ids_LTK), len(sizes), work.repetitions, 2 * len(PHASES), dtype=torch.float64)
    barrier_s = group.barrier_seconds()
    for index, ids_TK in enumerate(ids_LTK):
        slots = plan.placement.slots[index, group.rank]
        weights = make_experts(model, work.seed, index, slots[slots != EMPTY].tolist(), group.device)
        layer = MoELayer.of_plan(plan, index, work.scheme, weights)
        for batch, ids in enumerate(torch.split(ids_TK.to(group.device), sizes)):
            tokens = (*_inputs(group, work, model, len(ids)), ids)
            taken[index, batch] = _measure(group, work, layer, tokens, barrier_s)
            _check(group, work, layer, index, tokens)
    return of_all_ranks(group, taken).numpy()


def make_experts(model: MoEModel, seed: int, layer: int, experts: list[int], device: str) -> Experts:
    """Made-up weights of some experts of a layer, the same wherever an expert is asked for: [experts, D, F]."""
    D, F, dtype = model.hidden_size, model.ffn_size, DTYPES[model.bytes_per_value]
    parts = [torch.empty(len(experts), *shape, dtype=dtype, device=device) for shape in ((D, F), (D, F), (F, D))]
    for slot, expert in enumerate(experts):
        random = _generator(device, seed, layer, expert)
        for part in parts:
            part[slot].normal_(generator=random).mul_(part.shape[1] ** -0.5)
    return Experts(*parts)


def _measure(group: Group, work: Work, layer: MoELayer, tokens: Tokens, barrier_s: float) -> Tensor:
    """[repetitions, 2 * phases] seconds of one batch: every phase until all ranks were done, and until this one was."""
    x, weights, ids = tokens
    for _ in range(work.warmup):
        layer(x, ids, weights)
    watch = Stopwatch(group.barrier, group.device, barrier_s)
    for _ in range(work.repetitions):
        layer(x, ids, weights, watch)
        watch.stop()
    columns = [kind[phase] for kind in (watch.visits, watch.busy) for phase in PHASES]
    return torch.tensor(columns, dtype=torch.float64).T


def _check(group: Group, work: Work, layer: MoELayer, index: int, tokens: Tokens) -> None:
    """Compare the first tokens with the reference on one device.

    Rounding to the rows' type happens on the serving rank, the node's proxy and at home, and to the experts' inner
    products: a few units of the largest magnitude. 32 leave room; a wrong expert or weight is off by 100 times that.
    """
    x, weights, ids = tokens
    actual = layer(x, ids, weights)[:CHECKED_TOKENS].float()
    if not len(ids):
        return
    few = ids[:CHECKED_TOKENS]
    chosen = torch.unique(few)
    experts = make_experts(MoEModel(**work.model), work.seed, index, chosen.tolist(), group.device)
    expected = moe_layer(x[: len(few)], torch.searchsorted(chosen, few), weights[: len(few)], experts).float()
    allowed = 32 * torch.finfo(x.dtype).eps * expected.abs().max()
    error = (actual - expected).abs().max()
    if not error <= allowed:
        raise RuntimeError(
            f"layer {layer.layer_id}: the output of rank {group.rank} differs from the reference by {error:.2g} "
            f"(allowed {allowed:.2g}); this is a defect, please report it"
        )


def _inputs(group: Group, work: Work, model: MoEModel, tokens: int) -> tuple[Tensor, Tensor]:
    """Hidden states [T, D] and gate weights [T, K] of this rank."""
    random = _generator(group.device, work.seed, group.rank)
    x = torch.randn(tokens, model.hidden_size, generator=random, device=group.device)
    weights = torch.rand(tokens, model.top_k, generator=random, device=group.device)
    return x.to(DTYPES[model.bytes_per_value]), weights / weights.sum(1, keepdim=True)


def _generator(device: str, *names: int) -> torch.Generator:
    """A generator of its own for each combination of numbers."""
    seed = int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:7], "little")
    return torch.Generator(device).manual_seed(seed)


def _ids_of_rank(trace: Trace, segments: NDArray[np.int64], rank: int) -> Tensor:
    """Int32 [L, T, K] choices of a rank's tokens, batch by batch."""
    return torch.from_numpy(np.concatenate(list(_runs(trace, segments, rank)), axis=1).astype(np.int32))


def _runs(trace: Trace, segments: NDArray[np.int64], rank: int) -> Iterator[NDArray[np.unsignedinteger]]:
    yield trace.expert_ids[:, :0]
    for start, stop, home, _ in segments.tolist():
        if home == rank:
            yield trace.expert_ids[:, start:stop]
