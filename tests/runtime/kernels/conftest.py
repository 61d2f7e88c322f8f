"""Triton's kernels run on the GPU where there is one, else in Triton's interpreter on the CPU."""

import dataclasses
import importlib

import pytest


@pytest.fixture(scope="session")
def device():
    """Where tests of Triton kernels keep their tensors; without a GPU the root conftest asked for the interpreter."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session", params=["cpu", "triton"])
def kernel(request):
    """Finds a kernel by name, in its form for the CPU and in Triton; takes and gives tensors on the CPU."""
    if request.param == "cpu":
        return lambda module, name: getattr(importlib.import_module(f"runtime.kernels.{module}"), name)
    device = request.getfixturevalue("device")

    def find(module, name):
        launch = getattr(importlib.import_module(f"runtime.kernels.{module}_triton"), f"{name}_triton")
        return lambda *arguments: moved(launch(*moved(arguments, device)), "cpu")

    return find


def moved(value, device):
    """Tensors, also inside tuples and dataclasses, to a device."""
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields})
    return value.to(device) if hasattr(value, "to") else value
