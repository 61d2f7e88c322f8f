"""What a layer does on its own device, a kernel a file: count, choose copies, permute, multiply by groups, unpermute.

`X.py` holds the function anyone calls, with a worked example, its form for the CPU and a slow reference; `X_triton.py`
the same for a GPU, in Triton, imported only once a tensor lives on one.
"""

from importlib.util import find_spec

from torch import Tensor

NOT_HERE = -1
"""In a table of slots, positions or experts: nothing to do."""


def on_gpu(tensor: Tensor) -> bool:
    """Whether the Triton kernels take this tensor; ValueError if they should and Triton is missing."""
    if tensor.is_cuda and find_spec("triton") is None:
        raise ValueError("tensors on a GPU need Triton, which is not installed: pip install triton, or run on the CPU")
    return tensor.is_cuda
