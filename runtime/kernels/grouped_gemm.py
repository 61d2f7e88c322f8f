"""Rows sorted by group, each times the matrix of its group: the experts' products in one call."""

import torch
from torch import Tensor
from torch.nn import functional

from runtime.kernels import on_gpu

ALIGNMENT_BYTES = 16
"""`grouped_mm` wants rows and matrices to begin at multiples of this."""


def grouped_gemm(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows ends[g - 1]:ends[g] times weight[g], summed in float32.

    Args:
        rows: [M, D].
        weight: [G, D, F] in the type of `rows`.
        ends: int64 [G], never decreasing, at most M; a group may be empty.

    Returns:
        [M, F] in the type of `rows`; what follows ends[-1] is undefined.

    Example: rows 1, 2, 3 with matrices 10, 20, 30 and ends 2, 2, 3 give 10, 20, 90.
    """
    assert (rows.dtype, rows.shape[1], len(ends)) == (weight.dtype, weight.shape[1], len(weight))
    if len(rows) == 0:
        return rows.new_empty(0, weight.shape[2])
    if _grouped_mm_takes(rows, weight):
        return functional.grouped_mm(rows, weight, offs=ends.to(torch.int32))
    if on_gpu(rows):
        from runtime.kernels.grouped_gemm_triton import grouped_gemm_triton

        return grouped_gemm_triton(rows, weight, ends)
    return grouped_gemm_reference(rows, weight, ends)


def grouped_gemm_reference(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """As `grouped_gemm`, one group after the other."""
    result, begin = rows.new_empty(len(rows), weight.shape[2]), 0
    for group, end in enumerate(ends.tolist()):
        if end > begin:
            torch.mm(rows[begin:end], weight[group], out=result[begin:end])
        begin = end
    return result


def _grouped_mm_takes(rows: Tensor, weight: Tensor) -> bool:
    """Whether torch's own kernel exists for these tensors and is no loop that waits for the GPU."""
    if rows.is_cuda:
        major = torch.cuda.get_device_capability(rows.device)[0]
        if rows.dtype != torch.bfloat16 or major not in (9, 10):
            return False
    elif rows.dtype not in (torch.float32, torch.bfloat16):
        return False
    strides = (*rows.stride()[:-1], *weight.stride()[:-1])
    in_bytes = (rows.data_ptr(), weight.data_ptr(), *(stride * rows.element_size() for stride in strides))
    last = rows.stride(-1) == weight.stride(-1) == 1
    return last and hasattr(functional, "grouped_mm") and all(number % ALIGNMENT_BYTES == 0 for number in in_bytes)
