"""Run a plan: really dispatch tokens, compute experts and combine, on one device or many."""

import os

# Lost peers are reported in one line (runtime/watch.py); torch's C++ parts would add stack traces of their sockets.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
