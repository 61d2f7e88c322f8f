"""On real processes, rows sent, tokens served and outputs equal what `traffic` counts and the reference computes."""

import functools
import itertools
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from grace_opt.gpu import GPU
from grace_opt.homes import Random
from grace_opt.model import MoEModel
from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.planners.eplb import Eplb
from grace_opt.planners.grace import Grace
from grace_opt.planners.linear import Linear
from grace_opt.planners.occult import Occult
from grace_opt.problem import Problem
from grace_opt.routing import POLICIES, Routing
from grace_opt.topology import Topology
from grace_opt.trace import Trace
from grace_opt.traffic import SCHEMES, traffic
from runtime.layer import MoELayer
from runtime.reference import Experts, moe_layer
from runtime.replica_choice import ReplicaChoice

pytestmark = pytest.mark.xdist_group("four_processes")  # the processes are started once

RANKS, NUM_EXPERTS, TOP_K, HIDDEN, FFN = 4, 8, 4, 24, 16
PLANNERS = {
    "linear": Linear(),
    "occult": Occult(),
    "eplb": Eplb(),
    "eplb_distinct": Eplb(forbid_duplicates=True),
    "grace_tar": Grace(),
    "grace_wrr": Grace(routing="wrr", grouping="non_uniform"),
}
TRACES = ("usual", "one_token", "a_rank_without_tokens", "all_to_one_expert", "one_node_only")
DTYPES = ("float32", "bfloat16")
COVERED = {  # plans under `cover`: ranks of each node, and the experts on each rank
    "cover": ((2, 2), [[0, 1, 2], [2, 3, 6], [4, 5, 0], [6, 7, 2]]),
    "cover_small_node": ((1, 3), [[0, 1], [2, 3, 7], [4, 5, 7, 1, 3], [6, 7, 1, 3]]),  # inside a node ranks take turns
    "cover_three_nodes": ((1, 1, 2), [[0, 1], [2, 3, 5, 6], [4, 5, 2], [6, 7, 3, 4]]),  # nodes do
}
PLANS = (*PLANNERS, *COVERED)
CASES = list(itertools.product(PLANS, TRACES, SCHEMES))


@functools.cache
def trace_of(kind):
    """Random choices of 60 tokens in sequences of 5; homes by seed."""
    rng = np.random.default_rng(len(kind))
    favour = rng.normal(size=NUM_EXPERTS) * (4 if kind == "all_to_one_expert" else 1)
    if kind == "one_node_only":  # index order puts experts 0..3 on node 0
        favour = np.where(np.arange(NUM_EXPERTS) < TOP_K, 100.0, 0.0)
    num_tokens = 1 if kind == "one_token" else 60
    ids = np.argsort(-(favour + rng.gumbel(size=(1, num_tokens, NUM_EXPERTS))), axis=2)[:, :, :TOP_K].astype(np.uint8)
    if kind == "all_to_one_expert":
        ids[..., 0] = 0
        ids[..., 1:] = 1 + np.argsort(rng.random((1, num_tokens, NUM_EXPERTS - 1)), axis=2)[:, :, : TOP_K - 1]
    starts = np.arange(0, num_tokens, 5)
    stops = np.minimum(starts + 5, num_tokens)
    trace = Trace(ids, starts, stops, np.zeros(len(starts)), ("made up",), NUM_EXPERTS, synthetic=True)
    return Random(0)(trace, RANKS - 1 if kind == "a_rank_without_tokens" else RANKS)


@functools.cache
def plan_of(name, kind):
    if name in COVERED:
        ranks_per_node, held = COVERED[name]
        return Plan("toy", (0,), ranks_per_node, Placement.from_lists([held], NUM_EXPERTS), Routing("cover"))
    trace = trace_of(kind)
    model = MoEModel("toy", 1, NUM_EXPERTS, TOP_K, HIDDEN, FFN)
    gpu = GPU("toy", 1e12, 1e12, 1e12)
    topology = Topology.two_level("toy", gpu, 2, 2, 1e11, 1e-6, 1e10, 1e-5)
    planner = PLANNERS[name]
    problem = Problem(model, topology, trace, 3)
    if name.startswith("grace"):
        problem = Problem(model, topology, trace, max(3, planner.slots_wanted(problem)))
    return planner(problem).plan


@functools.cache
def magnitudes(kind, dtype):
    """Largest sum, over a token's experts and the shared one, of the magnitudes of their weighted outputs."""
    x, weights, experts, shared = inputs(getattr(torch, dtype))
    ids = torch.from_numpy(trace_of(kind).expert_ids[0].astype(np.int64))
    total = shared(0, x[: len(ids)]).float().abs()
    for k in range(TOP_K):
        outputs = torch.stack([experts(e, x[t]) for t, e in enumerate(ids[:, k].tolist())]).float()
        total += (outputs * weights[: len(ids), k, None]).abs()
    return total.max().item()


@functools.cache
def one_device(kind, dtype):
    """[T, D] what the reference computes."""
    x, weights, experts, shared = inputs(getattr(torch, dtype))
    ids = torch.from_numpy(trace_of(kind).expert_ids[0].astype(np.int64))
    return moe_layer(x[: len(ids)], ids, weights[: len(ids)], experts, shared).float().numpy()


@functools.cache
def inputs(dtype):
    """Hidden states and gate weights of all tokens, and all experts, the same on every rank."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, HIDDEN, generator=random).to(dtype)
    weights = torch.rand(60, TOP_K, generator=random)
    shapes = ((NUM_EXPERTS, HIDDEN, FFN), (NUM_EXPERTS, HIDDEN, FFN), (NUM_EXPERTS, FFN, HIDDEN))
    experts = Experts(*((torch.randn(*shape, generator=random) / shape[1] ** 0.5).to(dtype) for shape in shapes))
    shared = Experts(*(tensor[:1] for tensor in (experts.up, experts.gate, experts.down)))
    return x, weights, experts, shared


def tokens_at_home(trace, rank):
    runs = zip(trace.starts[trace.homes == rank], trace.stops[trace.homes == rank], strict=True)
    return np.concatenate([np.arange(a, b) for a, b in runs] or [np.zeros(0, int)])


def rows_to_ranks(stage):
    """[R] rows a stage sent to each rank, padding included."""
    sent = np.zeros(RANKS, int)
    sent[list(stage.peers.ranks)] = stage.sent_filled or stage.sent
    return sent


def work(rank, folder):
    """One rank: run every case, keep what was sent, served and computed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    kept = {}
    for (planner, kind, scheme), dtype in itertools.product(CASES, DTYPES):
        name, trace, plan = f"{planner}/{kind}/{scheme}", trace_of(kind), plan_of(planner, kind)
        x, weights, experts, shared = inputs(getattr(torch, dtype))
        mine = torch.from_numpy(tokens_at_home(trace, rank))
        held = plan.placement.slots[0, rank]
        own = experts.select(torch.from_numpy(held[held >= 0]).long())
        layer = MoELayer.of_plan(plan, 0, scheme, own, shared)
        ids = torch.from_numpy(trace.expert_ids[0].astype(np.int64))[mine]
        kept[f"{name}/{dtype}"] = layer(x[mine], ids, weights[mine]).float().numpy()
        if dtype == DTYPES[0]:
            dispatched = layer.dispatcher.dispatch(x[mine], layer.choice(ids), weights[mine])
            kept[f"{name}/sent"] = np.array([rows_to_ranks(stage) for stage in dispatched.stages])
            served = layer.experts.tokens_of_slots(layer.slots_of(dispatched)).numpy()
            kept[f"{name}/served"] = np.pad(served, (0, plan.placement.slots.shape[2] - len(served)))
    np.savez(os.path.join(folder, f"{rank}.npz"), **kept)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ran(tmp_path_factory, forked):
    """What each of four processes kept; `forked` has their server import torch once."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, kind in itertools.product(PLANS, TRACES):  # compiles here what each process would compile for itself
        ids = torch.from_numpy(trace_of(kind).expert_ids[0].astype(np.int64))
        ReplicaChoice.of_plan(plan_of(name, kind), 0, home=0)(ids)
    multiprocessing.start_processes(work, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return [np.load(folder / f"{rank}.npz") for rank in range(RANKS)]


@pytest.mark.parametrize(("planner", "kind", "scheme"), CASES)
def test_rows_sent_and_tokens_served_are_those_predicted(ran, planner, kind, scheme):
    name, counts = f"{planner}/{kind}/{scheme}", traffic(trace_of(kind), plan_of(planner, kind))
    predicted = np.stack([rows[0, 0] for rows in counts.dispatch(scheme)])  # [stages, R, R]
    sent = np.zeros_like(predicted)
    for rank, part in enumerate(ran):
        stages = part[f"{name}/sent"]  # a rank alone on its node passes nothing on: it has no second stage
        sent[: len(stages), rank] = stages
    sent[:, np.arange(RANKS), np.arange(RANKS)] = 0
    np.testing.assert_array_equal(sent, predicted)
    served = np.stack([part[f"{name}/served"] for part in ran])
    np.testing.assert_array_equal(served, counts.tokens_by_rank[0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("planner", "kind", "scheme"), CASES)
def test_outputs_are_those_of_one_device(ran, planner, kind, scheme, dtype):
    trace, expected = trace_of(kind), one_device(kind, dtype)
    # The sums of a result are rounded to the rows' type on the serving rank, on the node's proxy, at home and with the
    # shared expert, by at most `unit` of their size each; no partial sum is larger than M, the sum of magnitudes. The
    # experts' own outputs differ by the order of sums in float32 alone, which adds less than sqrt(D) of its units.
    unit = {"float32": 2.0**-24, "bfloat16": 2.0**-9}[dtype]
    magnitude = magnitudes(kind, dtype)
    tolerance = (4 * unit + HIDDEN**0.5 * 2.0**-24) * magnitude
    for rank, part in enumerate(ran):
        actual = part[f"{planner}/{kind}/{scheme}/{dtype}"]
        np.testing.assert_allclose(actual, expected[tokens_at_home(trace, rank)], rtol=0, atol=tolerance)


def test_the_reference_is_the_sum_of_weighted_experts_by_hand():
    one = torch.ones(2, 1, 1)
    experts = Experts(one, one * torch.tensor([1.0, 2.0]).view(2, 1, 1), one)
    silu = 1 / (1 + np.exp(-1.0))
    result = moe_layer(torch.ones(1, 1), torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.5]]), experts)
    assert result.item() == pytest.approx(0.25 * silu + 0.5 * 2 * silu, rel=1e-6)


def test_routing_policies_are_those_of_the_plans():
    policies = {plan_of(name, "usual").routing.policy for name in PLANS}
    assert policies == set(POLICIES)
