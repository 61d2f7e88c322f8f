"""`permute` on a GPU: one program reads a piece of a row once and writes all its copies, (N + M) * D values in all."""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_PIECE = 2048
STEP = 8  # copies that are unrolled; more (one for each of many ranks) are a loop


def permute_triton(x: Tensor, position: Tensor, num_rows: int) -> Tensor:
    """As `permute`."""
    (num_tokens, hidden), top_k = x.shape, position.shape[1]
    rows = torch.empty(num_rows, hidden, dtype=x.dtype, device=x.device)
    if rows.numel():
        piece = min(triton.next_power_of_2(hidden), LARGEST_PIECE)
        grid = (num_tokens * triton.cdiv(hidden, piece),)
        _permute[grid](
            x, position.contiguous(), rows, x.stride(0), x.stride(1), hidden, K=top_k, PIECE=piece, STEP=STEP
        )
    return rows


@triton.jit
def _permute(x, position, rows, stride_n, stride_d, hidden, K: tl.constexpr, PIECE: tl.constexpr, STEP: tl.constexpr):
    pieces = tl.cdiv(hidden, PIECE)  # those of a row side by side, as memory likes it
    n = (tl.program_id(0) // pieces).to(tl.int64)
    d = tl.program_id(0) % pieces * PIECE + tl.arange(0, PIECE)
    here = d < hidden
    row = tl.load(x + n * stride_n + d * stride_d, mask=here)
    for first in range(0, K, STEP):
        for k in tl.static_range(STEP):
            place = tl.load(position + n * K + first + k, mask=first + k < K, other=-1)
            tl.store(rows + place * hidden + d, row, mask=here & (place >= 0))
