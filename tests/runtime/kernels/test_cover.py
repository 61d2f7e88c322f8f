import numpy as np
import pytest

torch = pytest.importorskip("torch")

from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import Routing
from grace_opt.traffic_reference import covering_copies
from runtime.kernels import NOT_HERE
from runtime.kernels.cover import Copies

# ranks of each node, E, replicas, K, T: nodes decide, ranks decide, both do, more than a block of tokens, none at all
SIZES = [
    ((1, 1, 1, 1, 1), 12, 30, 4, 60),
    ((6,), 10, 25, 6, 50),
    ((3, 1, 4, 2), 16, 40, 5, 90),
    ((4, 4, 4, 4), 64, 128, 8, 150),
    ((2, 2), 8, 0, 3, 20),
    ((1, 2), 6, 9, 1, 300),
    ((2, 3), 6, 9, 2, 0),
]


def plan_of(random, ranks_per_node, num_experts, replicas):
    """Experts and replicas thrown onto ranks, so that an expert may be on a rank twice."""
    held = [[] for _ in range(sum(ranks_per_node))]
    for expert in (*range(num_experts), *random.integers(num_experts, size=replicas).tolist()):
        held[random.integers(len(held))].append(expert)
    return Plan("toy", (0,), ranks_per_node, Placement.from_lists([held], num_experts), Routing("cover"))


def copies_of(plan, home):
    return Copies.of_placement(plan.placement, plan.ranks_per_node, 0, home)


def random_tokens(random, num_tokens, num_experts, top_k):
    ranked = np.argsort(random.random((num_tokens, num_experts)), axis=1)
    return ranked[:, :top_k]


def served(plan, home, ids):
    """[T, K] by the slow reference: negative experts are nothing, tokens of such alone take no turn."""
    physical, turn = np.full(ids.shape, NOT_HERE), home
    for t, experts in enumerate(ids):
        if (experts >= 0).any():
            physical[t, experts >= 0] = covering_copies(plan, 0, home, turn, experts[experts >= 0].tolist())
            turn += 1
    return physical


def check(choice, physical, num_physical):
    assert np.array_equal(choice.physical.numpy(), physical)
    counts = np.bincount(physical[physical >= 0], minlength=num_physical)
    assert choice.counts.tolist() == counts.tolist()
    assert choice.offsets.tolist() == [0, *np.cumsum(counts)]


def test_a_copy_on_a_rank_that_is_visited_anyway_is_taken(kernel):
    placement = Placement.from_lists([[[0, 1], [2, 3], [2, 4]]], 5)
    ids = torch.tensor([[2, 0], [-1, -1], [2, -1], [2, 4]])
    choice = kernel("cover", "cover")(ids, Copies.of_placement(placement, (3,), 0, 0))
    assert choice.physical.tolist() == [[2, 0], [-1, -1], [4, -1], [4, 5]]
    assert choice.counts.tolist() == [1, 0, 1, 0, 2, 1]
    assert choice.offsets.tolist() == [0, 1, 1, 2, 2, 4, 5]


def test_experts_left_share_the_node_that_holds_most_of_them(kernel):
    placement = Placement.from_lists([[[0, 3], [1], [2, 1], [2]]], 4)  # one rank a node
    ids = torch.tensor([[1, 2, 0]] * 3)
    choice = kernel("cover", "cover")(ids, Copies.of_placement(placement, (1, 1, 1, 1), 0, 0))
    assert choice.physical.tolist() == [[5, 4, 0]] * 3


def test_a_node_that_is_visited_anyway_needs_no_other(kernel):
    placement = Placement.from_lists([[[0], [1, 2], [1, 3]]], 4)
    choice = kernel("cover", "cover")(torch.tensor([[1, 3]]), Copies.of_placement(placement, (1, 1, 1), 0, 0))
    assert choice.physical.tolist() == [[4, 5]]


def test_nodes_that_hold_equally_many_take_turns(kernel):
    placement = Placement.from_lists([[[0], [1], [1], [1]]], 2)
    ids = torch.tensor([[1]] * 5)
    choice = kernel("cover", "cover")(ids, Copies.of_placement(placement, (1, 1, 1, 1), 0, 0))
    assert choice.physical.flatten().tolist() == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("ranks_per_node", "num_experts", "replicas", "top_k", "num_tokens"), SIZES)
def test_choices_are_those_of_the_reference(
    kernel, ranks_per_node, num_experts, replicas, top_k, num_tokens, padded
):  # fmt: skip
    random = np.random.default_rng([*ranks_per_node, num_experts, top_k])
    plan = plan_of(random, ranks_per_node, num_experts, replicas)
    for home in {0, plan.num_ranks // 2, plan.num_ranks - 1}:
        ids = random_tokens(random, num_tokens, num_experts, top_k)
        if padded:
            ids[random.random(num_tokens) < 0.3] = -1
            ids[random.random(ids.shape) < 0.1] = -1
        choice = kernel("cover", "cover")(torch.from_numpy(ids), copies_of(plan, home))
        check(choice, served(plan, home, ids), plan.placement.num_physical)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_ids_come_in_any_type_and_need_not_lie_together(kernel, dtype):
    random = np.random.default_rng(0)
    plan = plan_of(random, (2, 3), 256, 90)
    ids = random_tokens(random, 40, 256, 6)
    ids[0, 0] = 255 if 255 not in ids[0] else ids[0, 0]
    choice = kernel("cover", "cover")(torch.from_numpy(ids).to(dtype).T.contiguous().T, copies_of(plan, 1))
    check(choice, served(plan, 1, ids), plan.placement.num_physical)


def test_an_expert_out_of_range_is_refused():
    from runtime.kernels.cover import cover

    with pytest.raises(AssertionError, match="not below the number of experts"):
        cover(torch.tensor([[3]]), Copies.of_placement(Placement.from_lists([[[0, 1, 2]]], 3), (1,), 0, 0))
