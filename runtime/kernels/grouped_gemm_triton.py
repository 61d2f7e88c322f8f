"""`grouped_gemm` on a GPU: one program a tile of the result; a tile never crosses groups.

How many tiles a group has is known on the device only, so M / BLOCK_M + G rows of tiles are launched and those too many
return at once. Neighbouring programs work on neighbouring tiles, so that rows and matrices are read from the cache.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

BAND = 8
"""Rows of tiles that are worked on together."""


def grouped_gemm_triton(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """As `grouped_gemm`, for any type and any strides."""
    (num_rows, hidden), (num_groups, _, width) = rows.shape, weight.shape
    result = torch.empty(num_rows, width, dtype=rows.dtype, device=rows.device)
    if result.numel() == 0:
        return result
    tile = tile_of(rows.dtype, num_rows / num_groups, hidden, width)
    num_tiles = triton.cdiv(num_rows, tile["BLOCK_M"]) + num_groups
    _grouped_gemm[(num_tiles * triton.cdiv(width, tile["BLOCK_F"]),)](
        rows, weight, ends.contiguous(), result, *rows.stride(), *weight.stride(), num_groups, num_tiles, hidden, width,
        GROUPS=triton.next_power_of_2(num_groups), WHOLE=hidden % tile["BLOCK_D"] == 0, BAND=BAND,
        WIDEN=not rows.is_cuda, **tile,
    )  # fmt: skip
    return result


def tile_of(dtype: torch.dtype, rows_per_group: float, hidden: int, width: int) -> dict[str, int]:
    """Sizes of a tile. They follow from shapes alone, so results never depend on what ran before."""
    if dtype == torch.float32:  # no tensor cores: registers limit the tile
        block_m, block_f, block_d, warps, stages = 64, 64, 32, 4, 3
    elif rows_per_group > 64:
        block_m, block_f, block_d, warps, stages = 128, 256, 64, 8, 3
    else:  # few rows: the time is that of reading the weights
        block_m, block_f, block_d, warps, stages = 64, 128, 64, 4, 4
    return {
        "BLOCK_M": block_m if rows_per_group > 16 else 16,
        "BLOCK_F": min(block_f, max(16, triton.next_power_of_2(width))),
        "BLOCK_D": min(block_d, max(16, triton.next_power_of_2(hidden))),
        "num_warps": warps,
        "num_stages": stages,
    }


@triton.jit(do_not_specialize=["num_tiles"])  # the number of rows changes with every batch: no new kernel for it
def _grouped_gemm(
    rows, weight, ends, result, stride_m, stride_d, stride_wg, stride_wd, stride_wf,
    num_groups, num_tiles, hidden, width,
    GROUPS: tl.constexpr, WHOLE: tl.constexpr, BAND: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, BLOCK_F)
    first_tile = tl.program_id(0) // (BAND * across) * BAND
    in_band = tl.program_id(0) % (BAND * across)
    height = tl.minimum(num_tiles - first_tile, BAND)
    tile, column = first_tile + in_band % height, in_band // height

    g = tl.arange(0, GROUPS)
    end_G = tl.load(ends + g, mask=g < num_groups, other=0)
    begin_G = tl.load(ends + g - 1, mask=(g > 0) & (g < num_groups), other=0)
    tiles_G = ((end_G - begin_G + BLOCK_M - 1) // BLOCK_M).to(tl.int32)
    group = tl.sum((tl.cumsum(tiles_G, 0) <= tile).to(tl.int32), 0)
    if group < num_groups:
        tile -= tl.sum(tl.where(g < group, tiles_G, 0), 0)
        begin = tl.sum(tl.where(g == group, begin_G, 0), 0)
        end = tl.sum(tl.where(g == group, end_G, 0), 0)
        m = begin + tile * BLOCK_M + tl.arange(0, BLOCK_M)
        f = column * BLOCK_F + tl.arange(0, BLOCK_F)
        d = tl.arange(0, BLOCK_D)
        a = rows + m.to(tl.int64)[:, None] * stride_m + d[None, :] * stride_d
        b = weight + group.to(tl.int64) * stride_wg + d.to(tl.int64)[:, None] * stride_wd + f[None, :] * stride_wf
        total = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
        for first in range(0, hidden, BLOCK_D):
            left = BLOCK_D if WHOLE else hidden - first
            a_tile = tl.load(a, mask=(m < end)[:, None] & (d < left)[None, :], other=0.0)
            b_tile = tl.load(b, mask=(d < left)[:, None] & (f < width)[None, :], other=0.0)
            if WIDEN:  # Triton's interpreter would multiply the bits of a bfloat16
                a_tile, b_tile = a_tile.to(tl.float32), b_tile.to(tl.float32)
            total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
            a += BLOCK_D * stride_d
            b += BLOCK_D * stride_wd
        place = result + m.to(tl.int64)[:, None] * width + f[None, :]
        tl.store(place, total.to(result.dtype.element_ty), mask=(m < end)[:, None] & (f < width)[None, :])
