"""The weighted sum of each row's results: what `permute` spread comes together again."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from runtime.kernels import on_gpu


def unpermute(rows: Tensor, position: Tensor, weights: Tensor | None = None) -> Tensor:
    """Row n is the sum over k of weights[n, k] * rows[position[n, k]], in float32, in the order of k.

    Args:
        rows: [M, D].
        position: int64 [N, K]; negative ones add nothing, whatever their weight.
        weights: float32 [N, K]; None means 1.

    Returns:
        [N, D] in the type of `rows`; 0 where no position is given.

    Example: rows 1, 10, 100 with positions (1, 0), (-1, 2) and weights (2, 3), (9, 0.5) give 23, 50.
    """
    if on_gpu(rows):
        from runtime.kernels.unpermute_triton import unpermute_triton

        return unpermute_triton(rows, position, weights)
    if weights is None:
        weights = torch.ones(position.shape)
    # A bfloat16 is the upper half of a float32: the sum reads bits, since numpy has no such type.
    if rows.dtype == torch.bfloat16:
        bits, shift = rows.view(torch.uint16), 16
    else:
        bits, shift = rows.float().view(torch.uint32), 0
    total = _sum_in_order(
        bits.contiguous().numpy(), shift, position.contiguous().numpy(), weights.float().contiguous().numpy()
    )
    return torch.from_numpy(total).to(rows.dtype)


def unpermute_reference(rows: Tensor, position: Tensor, weights: Tensor | None = None) -> Tensor:
    """As `unpermute`, one term after the other."""
    total = torch.zeros(len(position), rows.shape[1])
    for n, places in enumerate(position.tolist()):
        for k, place in enumerate(places):
            if place >= 0:
                total[n] += rows[place].float() * (1 if weights is None else weights[n, k])
    return total.to(rows.dtype)


@njit(nogil=True, cache=True)
def _sum_in_order(bits, shift, position, weights):  # type: ignore[no-untyped-def]
    total = np.zeros((len(position), bits.shape[1]), np.float32)
    for n in range(position.shape[0]):
        for k in range(position.shape[1]):
            place = position[n, k]
            if place < 0:
                continue
            assert place < len(bits), "a position is not below the number of rows"
            weight = weights[n, k]
            for d in range(bits.shape[1]):
                total[n, d] += weight * np.uint32(np.uint32(bits[place, d]) << np.uint32(shift)).view(np.float32)
    return total
