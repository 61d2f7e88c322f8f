"""Copy rows to the places of their experts, so that each expert finds its rows side by side."""

import torch
from torch import Tensor

from runtime.kernels import on_gpu


def permute(x: Tensor, position: Tensor, num_rows: int) -> Tensor:
    """Row n of x to rows[position[n, k]] for every k whose position is not negative.

    Args:
        x: [N, D].
        position: int64 [N, K], distinct where not negative, together 0..num_rows-1 (`counting.positions`).

    Returns:
        [num_rows, D].

    Example: rows a, b with positions (1, 0), (-1, 2) give a, a, b.
    """
    if on_gpu(x):
        from runtime.kernels.permute_triton import permute_triton

        return permute_triton(x, position, num_rows)
    flat = position.flatten()
    entry = torch.empty(num_rows + 1, dtype=torch.int64)  # the last takes the entries that have no place
    entry[torch.where(flat < 0, num_rows, flat)] = torch.arange(len(flat))
    return x.index_select(0, entry[:-1].div_(position.shape[1], rounding_mode="floor"))


def permute_reference(x: Tensor, position: Tensor, num_rows: int) -> Tensor:
    """As `permute`, one copy after the other."""
    rows = x.new_empty(num_rows, x.shape[1])
    for n, places in enumerate(position.tolist()):
        for place in places:
            if place >= 0:
                rows[place] = x[n]
    return rows
