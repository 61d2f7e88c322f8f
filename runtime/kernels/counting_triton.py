"""`counting` on a GPU: histograms of blocks of keys, their exclusive sums over blocks, ranks inside a block.

    keys      3 1 | 3 -1 | 3      blocks of 2 here, of BLOCK in truth
    counts      block 0: 0 1 0 1     block 1: 0 0 0 1     block 2: 0 0 0 1
    before      block 0: 0 0 0 0     block 1: 0 1 0 1     block 2: 0 1 0 2
    occurrence = before[block, key] + equal keys earlier in the block

No sum depends on the order in which programs run.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels import NOT_HERE
from runtime.kernels.counting import Counted

BLOCK = 256
SCAN_BLOCK, SCAN_KEYS = 512, 8


def count_triton(keys: Tensor, num_keys: int) -> Counted:
    """As `count`."""
    keys = keys.contiguous()
    before, counts = counts_before(keys, num_keys)
    return Counted(_place(keys, before, None), counts)


def positions_triton(slot: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """As `positions`."""
    slot = slot.contiguous()
    before, counts = counts_before(slot, num_slots)
    offsets = exclusive_sum(counts)
    return _place(slot, before, offsets).view(slot.shape), offsets[1:]


def counts_before(keys: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Counts of each key in all earlier blocks, int32 [blocks, num_keys], and in all, int64 [num_keys]."""
    num_blocks = triton.cdiv(keys.numel(), BLOCK)
    before_BE = torch.empty(num_blocks, num_keys, dtype=torch.int32, device=keys.device)
    counts_E = torch.empty(num_keys, dtype=torch.int64, device=keys.device)
    bins = max(32, triton.next_power_of_2(num_keys + 1))  # one more takes what is nothing
    grid = (triton.cdiv(num_keys, SCAN_KEYS),)
    _histogram[(num_blocks,)](keys, before_BE, keys.numel(), num_keys, BLOCK=BLOCK, BINS=bins)
    _sum_over_blocks[grid](before_BE, counts_E, num_blocks, num_keys, BLOCK=SCAN_BLOCK, KEYS=SCAN_KEYS, num_warps=8)
    return before_BE, counts_E


def exclusive_sum(counts: Tensor) -> Tensor:
    """Int64 [n] to [n + 1]: the sum of all before each, and at the end the sum of all."""
    offsets = torch.empty(len(counts) + 1, dtype=torch.int64, device=counts.device)
    _exclusive_sum[(1,)](counts, offsets, len(counts), BLOCK=1024)
    return offsets


def _place(keys: Tensor, before_BE: Tensor, offsets: Tensor | None) -> Tensor:
    """Occurrences of all keys, int64 [N], each moved by the offset of its key if there are any."""
    result = torch.empty(keys.numel(), dtype=torch.int64, device=keys.device)
    _write_places[(len(before_BE),)](
        keys, before_BE, offsets, result, keys.numel(), before_BE.shape[1], NOTHING=NOT_HERE, BLOCK=BLOCK, num_warps=8
    )
    return result


@triton.jit(do_not_specialize=["num_entries"])  # it changes with every batch: no new kernel for it
def _histogram(keys, counts_BE, num_entries, num_keys, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """Counts of one block of keys."""
    block = tl.program_id(0)
    entry = block * BLOCK + tl.arange(0, BLOCK)
    key = load_keys(keys, entry, num_entries)
    counts = tl.histogram(tl.where((key >= 0) & (key < num_keys), key, num_keys), BINS)
    bins = tl.arange(0, BINS)
    tl.store(counts_BE + block.to(tl.int64) * num_keys + bins, counts, mask=bins < num_keys)


@triton.jit(do_not_specialize=["num_blocks"])
def _sum_over_blocks(counts_BE, total_E, num_blocks, num_keys, BLOCK: tl.constexpr, KEYS: tl.constexpr):
    """Counts of blocks become, in place, counts of all earlier blocks, for a few keys."""
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    carry = tl.zeros((KEYS,), tl.int32)
    for first in range(0, num_blocks, BLOCK):
        block = first + tl.arange(0, BLOCK)
        here = (block < num_blocks)[:, None] & (key < num_keys)[None, :]
        place = counts_BE + block.to(tl.int64)[:, None] * num_keys + key[None, :]
        counts = tl.load(place, mask=here, other=0)
        tl.store(place, carry[None, :] + tl.cumsum(counts, 0) - counts, mask=here)
        carry += tl.sum(counts, 0)
    tl.store(total_E + key, carry.to(tl.int64), mask=key < num_keys)


@triton.jit
def load_keys(keys, entry, num_entries):
    """Keys in any type of integers, -1 past the last."""
    key = tl.load(keys + entry, mask=entry < num_entries, other=0).to(tl.int32)
    return tl.where(entry < num_entries, key, -1)


@triton.jit
def rank_in_order(keys, entry, key, num_entries, before_BE, num_keys, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Occurrence of each key of this program's block, given the counts before the block."""
    block = tl.program_id(0)
    rank = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, BLOCK, TILE):
        other = block * BLOCK + first + tl.arange(0, TILE)
        other_key = load_keys(keys, other, num_entries)
        earlier = (other_key[None, :] == key[:, None]) & (other[None, :] < entry[:, None])
        rank += tl.sum(earlier.to(tl.int32), 1)
    here = (key >= 0) & (key < num_keys)
    return rank + tl.load(before_BE + block.to(tl.int64) * num_keys + key, mask=here, other=0)


@triton.jit(do_not_specialize=["num_entries"])
def _write_places(keys, before_BE, offsets, result, num_entries, num_keys, NOTHING: tl.constexpr, BLOCK: tl.constexpr):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = load_keys(keys, entry, num_entries)
    place = rank_in_order(keys, entry, key, num_entries, before_BE, num_keys, BLOCK, 32).to(tl.int64)
    here = (key >= 0) & (key < num_keys)
    if offsets is not None:
        place += tl.load(offsets + key, mask=here, other=0)
    tl.store(result + entry, tl.where(here, place, NOTHING), mask=entry < num_entries)


@triton.jit
def _exclusive_sum(counts, offsets, length, BLOCK: tl.constexpr):
    carry = tl.zeros((), tl.int64)
    for first in range(0, length, BLOCK):
        index = first + tl.arange(0, BLOCK)
        count = tl.load(counts + index, mask=index < length, other=0)
        tl.store(offsets + index, carry + tl.cumsum(count, 0) - count, mask=index < length)
        carry += tl.sum(count, 0)
    tl.store(offsets + length, carry)
