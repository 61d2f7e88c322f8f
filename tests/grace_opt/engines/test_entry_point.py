"""The entry point that the package declares for vLLM exists."""

import importlib
import tomllib
from pathlib import Path


def test_the_entry_point_for_vllm_is_a_function():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["vllm.general_plugins"]
    assert set(points) == {"grace_opt"}
    module, _, name = points["grace_opt"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
