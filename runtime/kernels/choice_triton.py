"""`choice` on a GPU: keys are counted before each block (`counting_triton`), then each block chooses its copies."""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels import NOT_HERE
from runtime.kernels.choice import Choice
from runtime.kernels.counting_triton import BLOCK, counts_before, exclusive_sum, load_keys, rank_in_order


def choose_triton(
    expert_ids: Tensor, home: int, start: Tensor, length: Tensor, schedule: Tensor, num_physical: int
) -> Choice:
    """As `choose`."""
    expert_ids = expert_ids.contiguous()
    before_BE, _ = counts_before(expert_ids, len(start))
    physical = torch.empty(expert_ids.shape, dtype=torch.int64, device=expert_ids.device)
    counts_P = torch.zeros(num_physical, dtype=torch.int64, device=expert_ids.device)
    _choose[(len(before_BE),)](
        expert_ids, before_BE, start, length, schedule, physical, counts_P,
        expert_ids.numel(), len(start), home, num_physical,
        NOTHING=NOT_HERE, BLOCK=BLOCK, BINS=max(32, triton.next_power_of_2(num_physical + 1)), num_warps=8,
    )  # fmt: skip
    return Choice(physical, counts_P, exclusive_sum(counts_P))


@triton.jit(do_not_specialize=["num_entries", "home"])
def _choose(
    experts, before_BE, start_E, length_E, schedule, physical, counts_P,
    num_entries, num_experts, home, num_physical,
    NOTHING: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = load_keys(experts, entry, num_entries)
    turn = home + rank_in_order(experts, entry, expert, num_entries, before_BE, num_experts, BLOCK, 32)
    here = (expert >= 0) & (expert < num_experts)
    start = tl.load(start_E + expert, mask=here, other=0)
    length = tl.load(length_E + expert, mask=here, other=1).to(tl.int32)
    chosen = tl.load(schedule + start + turn % length, mask=here, other=NOTHING)
    tl.store(physical + entry, chosen, mask=entry < num_entries)
    # Whole numbers added: the order in which blocks arrive does not show.
    counts = tl.histogram(tl.where(here, chosen.to(tl.int32), num_physical), BINS)
    bins = tl.arange(0, BINS)
    tl.atomic_add(counts_P + bins, counts.to(tl.int64), mask=(bins < num_physical) & (counts > 0), sem="relaxed")
