"""`cover` on a GPU: a block of tokens a program, first the nodes of all their experts, then the ranks.

    turns     tokens are counted block by block, those of earlier blocks summed (`counting_triton.exclusive_sum`)
    nodes     node [tokens, K]: settled by the expert alone; else by nodes visited by now, in cyclic order; else by
              the node that holds most of the experts left, until no token of the block has any left
    ranks     copy and rank [tokens, K]: settled by (expert, node) alone; else, for each token its first expert that is
              not, until no token has any; then column by column those that took their turn and are alone on a rank

Counts are sums of whole numbers: the order in which programs run does not show.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels import NOT_HERE
from runtime.kernels.choice import Choice
from runtime.kernels.counting_triton import BLOCK, exclusive_sum
from runtime.kernels.cover import Copies


def cover_triton(expert_ids: Tensor, copies: Copies) -> Choice:
    """As `cover`."""
    expert_ids = expert_ids.contiguous()
    (num_tokens, top_k), device = expert_ids.shape, expert_ids.device
    columns = triton.next_power_of_2(top_k)
    sizes = {"K": top_k, "COLUMNS": columns, "ROWS": max(1, BLOCK // columns)}
    blocks = triton.cdiv(num_tokens, sizes["ROWS"])
    tokens_B = torch.empty(blocks, dtype=torch.int64, device=device)
    physical = torch.empty(expert_ids.shape, dtype=torch.int64, device=device)
    counts_P = torch.zeros(copies.num_physical, dtype=torch.int64, device=device)
    num_experts, num_nodes = copies.copy.shape
    _count_tokens[(blocks,)](expert_ids, tokens_B, num_tokens, num_experts, **sizes)
    _cover[(blocks,)](
        expert_ids, exclusive_sum(tokens_B), copies.node_of_rank, copies.rank, copies.physical, copies.node,
        copies.copy, copies.first, physical, counts_P, num_tokens, num_experts, copies.home, num_nodes,
        copies.rank.shape[1], copies.num_physical,
        NOTHING=NOT_HERE, BINS=max(32, triton.next_power_of_2(copies.num_physical + 1)), **sizes, num_warps=8,
    )  # fmt: skip
    return Choice(physical, counts_P, exclusive_sum(counts_P))


@triton.jit(do_not_specialize=["num_tokens"])  # it changes with every batch: no new kernel for it
def _count_tokens(
    experts, tokens_B, num_tokens, num_experts, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    """Tokens of each block that have an expert."""
    expert, _, _ = _load_tokens(experts, num_tokens, num_experts, K, COLUMNS, ROWS)
    tl.store(tokens_B + tl.program_id(0), tl.sum(tl.max((expert >= 0).to(tl.int64), 1), 0))


@triton.jit(do_not_specialize=["num_tokens", "home"])
def _cover(
    experts, before_B, node_R, rank_EC, physical_EC, node_E, copy_EN, first_EN, physical, counts_P,
    num_tokens, num_experts, home, num_nodes, num_copies, num_physical,
    NOTHING: tl.constexpr, BINS: tl.constexpr, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    expert, entry, inside = _load_tokens(experts, num_tokens, num_experts, K, COLUMNS, ROWS)
    chosen = expert >= 0
    token = tl.max(chosen.to(tl.int32), 1)
    turn = home + tl.load(before_B + tl.program_id(0)).to(tl.int32) + tl.cumsum(token, 0) - token
    own = tl.load(node_R + home).to(tl.int32)
    node = _nodes(expert, turn, own, node_E, first_EN, num_nodes)
    copy = _copies(expert, node, turn, copy_EN, first_EN, rank_EC, num_nodes, num_copies, COLUMNS)
    result = tl.load(physical_EC + expert * num_copies + copy, mask=chosen, other=NOTHING)
    tl.store(physical + entry, result, mask=inside)
    counts = tl.histogram(tl.reshape(tl.where(chosen, result.to(tl.int32), num_physical), (ROWS * COLUMNS,)), BINS)
    bins = tl.arange(0, BINS)
    tl.atomic_add(counts_P + bins, counts.to(tl.int64), mask=(bins < num_physical) & (counts > 0), sem="relaxed")


@triton.jit
def _load_tokens(experts, num_tokens, num_experts, K: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Experts [ROWS, COLUMNS] of this program's tokens, -1 for none; their places, and which of these exist."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    entry, inside = row * K + column, (row < num_tokens) & (column < K)
    expert = tl.load(experts + entry, mask=inside, other=0).to(tl.int32)
    return tl.where(inside & (expert >= 0) & (expert < num_experts), expert, -1), entry, inside


@triton.jit
def _nodes(expert, turn, own, node_E, first_EN, num_nodes):
    """The node that serves each expert of a token."""
    node = tl.load(node_E + expert, mask=expert >= 0, other=own).to(tl.int32)  # no expert: needs no other node
    if _any(node < 0):
        for step in range(1, num_nodes):
            other = (own + step) % num_nodes
            visited = tl.max((node == other).to(tl.int32), 1)[:, None] > 0
            holds = _holds(expert, other, node < 0, first_EN, num_nodes)
            node = tl.where(visited & holds, other, node)
    while _any(node < 0):
        best, most = tl.zeros_like(turn), tl.zeros_like(turn)
        for step in range(num_nodes - 1):
            other = (own + 1 + (turn + step) % (num_nodes - 1)) % num_nodes
            held = tl.sum(_holds(expert, other[:, None], node < 0, first_EN, num_nodes).to(tl.int32), 1)
            best, most = tl.where(held > most, other, best), tl.maximum(held, most)
        taken = _holds(expert, best[:, None], node < 0, first_EN, num_nodes)
        node = tl.where(taken, best[:, None], node)
    return node


@triton.jit
def _holds(expert, node, asked, first_EN, num_nodes):
    """Whether a node holds a copy of an expert; False where nobody asks."""
    first = first_EN + expert * (num_nodes + 1) + node
    return tl.load(first, mask=asked, other=0) < tl.load(first + 1, mask=asked, other=0)


@triton.jit
def _copies(expert, node, turn, copy_EN, first_EN, rank_EC, num_nodes, num_copies, COLUMNS: tl.constexpr):
    """The copy, a column of rank_EC, that serves each expert of a token on its node."""
    chosen = expert >= 0
    copy = tl.load(copy_EN + expert * num_nodes + node, mask=chosen, other=0).to(tl.int32)
    rank = tl.load(rank_EC + expert * num_copies + copy, mask=chosen & (copy >= 0), other=-1).to(tl.int32)
    first = tl.load(first_EN + expert * (num_nodes + 1) + node, mask=copy < 0, other=0).to(tl.int32)
    held = tl.load(first_EN + expert * (num_nodes + 1) + node + 1, mask=copy < 0, other=1).to(tl.int32) - first
    column = tl.arange(0, COLUMNS)[None, :]
    in_turn = tl.zeros_like(expert) > 0
    while _any(copy < 0):
        here = column == tl.min(tl.where(copy < 0, column, COLUMNS), 1)[:, None]  # nowhere: this token is done
        found = _visited(here, expert, first, held, rank, turn, rank_EC, num_copies)
        in_turn = in_turn | (here & (found < 0)[:, None])
        begin, length = tl.sum(tl.where(here, first, 0), 1), tl.maximum(tl.sum(tl.where(here, held, 0), 1), 1)
        copy = tl.where(here, tl.where(found < 0, begin + turn % length, found)[:, None], copy)
        rank = tl.where(here, tl.load(rank_EC + expert * num_copies + copy, mask=here, other=-1).to(tl.int32), rank)
    while _any(in_turn):
        next_column = tl.min(tl.where(in_turn, column, COLUMNS), 1)[:, None]
        here = column == next_column
        own = tl.sum(tl.where(here, rank, 0), 1)[:, None]
        alone = tl.sum((chosen & (rank == own)).to(tl.int32), 1) == 1
        found = _visited(
            here & alone[:, None], expert, first, held, tl.where(here, -1, rank), turn, rank_EC, num_copies
        )
        moves = here & (found >= 0)[:, None]
        copy = tl.where(moves, found[:, None], copy)
        rank = tl.where(moves, tl.load(rank_EC + expert * num_copies + copy, mask=moves, other=-1).to(tl.int32), rank)
        in_turn = in_turn & (column != next_column)
    return copy


@triton.jit
def _visited(here, expert, first, held, rank, turn, rank_EC, num_copies):
    """Of the expert marked in each token its copy on a visited rank, the first in cyclic order; -1 for none."""
    begin, length = tl.sum(tl.where(here, first, 0), 1), tl.maximum(tl.sum(tl.where(here, held, 0), 1), 1)
    ranks, marked = rank_EC + tl.sum(tl.where(here, expert, 0), 1) * num_copies, tl.max(here.to(tl.int32), 1) > 0
    found = tl.full(turn.shape, -1, tl.int32)
    for step in range(tl.max(length, 0)):
        candidate = begin + (turn + step) % length
        its_rank = tl.load(ranks + candidate, mask=marked, other=-2).to(tl.int32)
        visited = tl.max((rank == its_rank[:, None]).to(tl.int32), 1) > 0
        found = tl.where((found < 0) & visited, candidate, found)
    return found


@triton.jit
def _any(condition):
    """Whether it holds anywhere in the block."""
    return tl.max(condition.to(tl.int32)) > 0
