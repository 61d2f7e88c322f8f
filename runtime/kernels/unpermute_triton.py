"""`unpermute` on a GPU: one program reads a piece of every row of a token and writes their sum, (M + N) * D values."""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST_PIECE = 1024
STEP = 8  # terms that are unrolled, so that their reads overlap; more (one for each of many ranks) are a loop


def unpermute_triton(rows: Tensor, position: Tensor, weights: Tensor | None = None) -> Tensor:
    """As `unpermute`."""
    (num_tokens, top_k), hidden = position.shape, rows.shape[1]
    result = torch.empty(num_tokens, hidden, dtype=rows.dtype, device=rows.device)
    if result.numel():
        piece = min(triton.next_power_of_2(hidden), LARGEST_PIECE)
        grid = (num_tokens * triton.cdiv(hidden, piece),)
        weights = None if weights is None else weights.contiguous()
        _unpermute[grid](
            rows.contiguous(), position.contiguous(), weights, result, hidden, K=top_k, PIECE=piece, STEP=STEP
        )
    return result


@triton.jit
def _unpermute(rows, position, weights, result, hidden, K: tl.constexpr, PIECE: tl.constexpr, STEP: tl.constexpr):
    pieces = tl.cdiv(hidden, PIECE)  # those of a row side by side, as memory likes it
    n = (tl.program_id(0) // pieces).to(tl.int64)
    d = tl.program_id(0) % pieces * PIECE + tl.arange(0, PIECE)
    total = tl.zeros((PIECE,), tl.float32)
    for first in range(0, K, STEP):
        for k in tl.static_range(STEP):
            place = tl.load(position + n * K + first + k, mask=first + k < K, other=-1)
            row = tl.load(rows + place * hidden + d, mask=(d < hidden) & (place >= 0), other=0.0).to(tl.float32)
            if weights is None:
                total += row
            else:
                total += row * tl.load(weights + n * K + first + k, mask=place >= 0, other=0.0)
    tl.store(result + n * hidden + d, total.to(result.dtype.element_ty), mask=d < hidden)
