"""Decide where the experts of a mixture-of-experts model live, which get replicas, and which replica serves each token.

Shape letters of arrays, used as suffixes of names in numeric code (`load_LE` is a load per layer and expert):

    T tokens      L MoE layers   E logical experts   P physical experts (slots over all ranks, P = R * S)
    K top-k       R ranks        N nodes             S slots of a rank (the widest rank's)
    B batches     Q sequences    D hidden size       F FFN size of an expert
"""

import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("grace-opt")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"

if not any(os.access(place, os.W_OK) for place in (Path(__file__).parent, os.path.expanduser("~"))):
    # numba keeps compiled kernels beside the package or at home and fails without either; a folder of our own, since
    # what lies in a shared one could be anybody's code.
    os.environ.setdefault("NUMBA_CACHE_DIR", tempfile.mkdtemp(prefix="grace-opt-numba-"))
