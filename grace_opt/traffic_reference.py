"""The slow readable reference of `traffic`: token by token, copy by copy, straight from the definitions.

It shares nothing with the fast path but the types: the copies that may serve a token follow the table in `routing.py`,
the rows it causes the table in `traffic.py`. Use it to check the kernel, never to plan.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grace_opt.placement import Placement
from grace_opt.plan import Plan
from grace_opt.routing import CYCLE
from grace_opt.trace import Trace


@dataclass(frozen=True, eq=False)
class ReferenceTraffic:
    """What the reference counts, per layer and batch.

    Attributes:
        tokens: int64 [L, B, P], (token, expert) pairs served by each physical expert.
        dispatch: by scheme, int64 [L, B, R, R] rows rank to rank of each stage, diagonal 0.
    """

    tokens: NDArray[np.int64]
    dispatch: dict[str, tuple[NDArray[np.int64], ...]]


def traffic_reference(trace: Trace, plan: Plan, tokens_per_rank: int | None = None) -> ReferenceTraffic:
    """Count the traffic of a plan as `traffic.traffic` does, one token after the other."""
    ranks, placement = plan.num_ranks, plan.placement
    batches_of_rank = deal_batches(trace, ranks, tokens_per_rank)
    shape = (trace.num_layers, len(batches_of_rank[0]))
    tokens = np.zeros((*shape, placement.num_physical), np.int64)
    pairs, flat, across, inside = (np.zeros((*shape, ranks, ranks), np.int64) for _ in range(4))
    for layer, batch in np.ndindex(shape):
        for home in range(ranks):
            times_chosen: dict[int, int] = defaultdict(int)  # by tokens of this rank, in this batch
            for tokens_before, token in enumerate(batches_of_rank[home][batch]):
                visited_ranks, visited_nodes = set(), set()
                experts = trace.expert_ids[layer, token].tolist()
                if plan.routing.policy == "cover":
                    copies = covering_copies(plan, layer, home, home + tokens_before, experts)
                else:
                    copies = []
                    for expert in experts:
                        order = copies_in_turn(plan, layer, home, expert)
                        copies.append(order[(home + times_chosen[expert]) % len(order)])
                        times_chosen[expert] += 1
                for copy in copies:
                    rank = rank_of_copy(placement, copy)
                    tokens[layer, batch, copy] += 1
                    pairs[layer, batch, home, rank] += rank != home
                    visited_ranks.add(rank)
                    visited_nodes.add(plan.node_of_rank[rank])
                for node in visited_nodes - {plan.node_of_rank[home]}:
                    across[layer, batch, home, proxy(plan.ranks_per_node, home, node)] += 1
                for rank in visited_ranks:
                    already_at = proxy(plan.ranks_per_node, home, plan.node_of_rank[rank])
                    flat[layer, batch, home, rank] += rank != home
                    inside[layer, batch, already_at, rank] += rank != already_at
    dispatch = {"pairs": (pairs,), "flat": (flat,), "hierarchical": (across, inside)}
    return ReferenceTraffic(tokens, {**dispatch, "hierarchical_padded": (padded(across, plan), inside)})


def padded(across: NDArray[np.int64], plan: Plan) -> NDArray[np.int64]:
    """Rows [L, B, R, R] between nodes, each transfer that the scheme allows filled up to the largest of its batch."""
    result = np.zeros_like(across)
    for home, own_node in enumerate(plan.node_of_rank):
        for node in set(plan.node_of_rank) - {own_node}:
            result[:, :, home, proxy(plan.ranks_per_node, home, node)] = across.max(axis=(2, 3))
    return result


def deal_batches(trace: Trace, num_ranks: int, tokens_per_rank: int | None) -> list[list[list[int]]]:
    """Tokens of each rank and batch [R][B]: a rank's tokens in order, cut into near-equal parts."""
    assert trace.homes is not None
    tokens_of_rank: list[list[int]] = [[] for _ in range(num_ranks)]
    for start, stop, home in zip(trace.starts, trace.stops, trace.homes, strict=True):
        tokens_of_rank[home].extend(range(start, stop))
    longest = max(len(tokens) for tokens in tokens_of_rank)
    num = 1 if tokens_per_rank is None else max(1, round(longest / tokens_per_rank))
    return [[own[len(own) * b // num : len(own) * (b + 1) // num] for b in range(num)] for own in tokens_of_rank]


def copies_in_turn(plan: Plan, layer: int, home: int, expert: int) -> list[int]:
    """Physical experts in the order in which tokens of rank `home` that chose `expert` poll them."""
    slots = plan.placement.slots[layer].ravel().tolist()
    copies = [physical for physical, held in enumerate(slots) if held == expert]
    nodes, policy = plan.node_of_rank, plan.routing.policy
    if policy == "primary":
        return copies[:1]
    if policy == "tar":
        own = [c for c in copies if rank_of_copy(plan.placement, c) == home]
        near = [c for c in copies if nodes[rank_of_copy(plan.placement, c)] == nodes[home]]
        copies = own or near or copies
    if plan.routing.weights is None:
        return copies
    weights = plan.routing.weights[layer].ravel().tolist()
    return [copies[i] for i in polling_order([weights[c] for c in copies])]


def covering_copies(plan: Plan, layer: int, home: int, turn: int, experts: Sequence[int]) -> list[int]:
    """Physical experts that serve one token under `cover`, by the words of `grace_opt.cover`."""
    nodes, num_nodes, placement = plan.node_of_rank.tolist(), len(plan.ranks_per_node), plan.placement
    own, held = nodes[home], plan.placement.slots[layer].ravel().tolist()
    first_copy: dict[tuple[int, int], int] = {}  # (expert, rank) to its first slot there
    for physical, expert in enumerate(held):
        first_copy.setdefault((expert, rank_of_copy(placement, physical)), physical)
    ranks_of = {expert: [r for r in range(plan.num_ranks) if (expert, r) in first_copy] for expert in experts}
    node_of = {}
    for expert in experts:
        places = {nodes[rank] for rank in ranks_of[expert]}
        if own in places or len(places) == 1:
            node_of[expert] = own if own in places else min(places)
    visited = set(node_of.values()) - {own}
    after_own = [(own + step) % num_nodes for step in range(1, num_nodes)]
    while left := [expert for expert in experts if expert not in node_of]:
        for expert in left:
            known = [n for n in after_own if n in visited and any(nodes[r] == n for r in ranks_of[expert])]
            if known:
                node_of[expert] = known[0]
        left = [expert for expert in left if expert not in node_of]
        moved_on = [after_own[(turn + step) % len(after_own)] for step in range(len(after_own))]
        if left:
            visited.add(max(moved_on, key=lambda n: sum(any(nodes[r] == n for r in ranks_of[e]) for e in left)))
    near = {expert: [r for r in ranks_of[expert] if nodes[r] == node_of[expert]] for expert in experts}
    rank_of_expert = {}
    for expert in experts:
        entry = home if node_of[expert] == own else proxy(plan.ranks_per_node, home, node_of[expert])
        if entry in near[expert] or len(near[expert]) == 1:
            rank_of_expert[expert] = entry if entry in near[expert] else near[expert][0]
    cycle_of = {e: [near[e][(turn + step) % len(near[e])] for step in range(len(near[e]))] for e in experts}
    in_turn = []
    for expert in experts:
        if expert not in rank_of_expert:
            known = [rank for rank in cycle_of[expert] if rank in rank_of_expert.values()]
            in_turn += [] if known else [expert]
            rank_of_expert[expert] = (known or cycle_of[expert])[0]
    for expert in in_turn:
        others = {rank_of_expert[other] for other in experts if other != expert}
        if rank_of_expert[expert] not in others:
            rank_of_expert[expert] = next((r for r in cycle_of[expert] if r in others), rank_of_expert[expert])
    return [first_copy[expert, rank_of_expert[expert]] for expert in experts]


def polling_order(weights: Sequence[float]) -> list[int]:
    """Copies (by position) in the order they are polled: the one furthest behind its share, ties to the first."""
    if len(set(weights)) == 1:
        return list(range(len(weights)))
    total = 0.0
    for weight in weights:
        total += weight
    taken = [0] * len(weights)
    order = []
    for turn in range(1, max(CYCLE, len(weights)) + 1):
        behind = [weight / total * turn - count for weight, count in zip(weights, taken, strict=True)]
        order.append(behind.index(max(behind)))
        taken[order[-1]] += 1
    return order


def rank_of_copy(placement: Placement, physical: int) -> int:
    """The rank whose slot a physical expert is."""
    return physical // int(placement.slots.shape[2])


def proxy(ranks_per_node: Sequence[int], home: int, node: int) -> int:
    """The rank of `node` where tokens of rank `home` enter it: equal local number, wrapped around on a smaller node."""
    ranks_of_node = []
    first = 0
    for size in ranks_per_node:
        ranks_of_node.append(range(first, first + size))
        first += size
    local = next(ranks.index(home) for ranks in ranks_of_node if home in ranks)
    return ranks_of_node[node][local % len(ranks_of_node[node])]
