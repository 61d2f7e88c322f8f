"""A model with one dense layer and two MoE layers, and ways to import into a file and read it back."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_opt.load_history import LoadHistory
from grace_opt.load_history_file import read_trace_or_loads
from grace_opt.model import MoEModel
from grace_opt.recordings.command import import_recording
from grace_opt.recordings.recording import Source
from grace_opt.trace import Trace

TOY = MoEModel("toy", num_layers=2, num_experts=4, top_k=2, hidden_size=10, ffn_size=5, first_moe_layer=1)
# Choices of three tokens in layers 0 (dense), 1 and 2, as engines write them down.
IDS_TLK = np.array([[[0, 0], [0, 1], [3, 2]], [[0, 0], [1, 2], [2, 0]], [[0, 0], [3, 0], [0, 1]]])


@pytest.fixture(scope="session")
def toy() -> MoEModel:
    return TOY


@pytest.fixture(scope="session")
def ids_TLK() -> Any:  # noqa: N802
    """int64 [3 tokens, 3 layers, 2]; layer 0 is dense."""
    return IDS_TLK


@pytest.fixture
def import_to(tmp_path: Path) -> Callable[..., Any]:
    """(source, path, **options) -> the trace or load history that the import wrote."""

    def run(source: Source, path: Any, model: MoEModel = TOY, **options: Any) -> Trace | LoadHistory:
        target = tmp_path / "out" / "imported.safetensors"
        import_recording(model, source, path if isinstance(path, list) else str(path), str(target), **options)
        assert [entry.name for entry in target.parent.iterdir()] == [target.name], "nothing else is left"
        return read_trace_or_loads(target)

    return run


@pytest.fixture(scope="session")
def refuses_or_reads() -> Callable[..., None]:
    """(source, path, model) -> nothing; fails on all but a ValueError of one line that names the file, and on waste."""

    def run(source: Source, path: Path, model: MoEModel = TOY) -> None:
        tracemalloc.start()
        try:
            for _ in source([path], model, lambda share: None):
                pass
        except ValueError as error:
            text = str(error)
            if "\n" in text or str(path) not in text:
                raise AssertionError(f"no line that names the file: {text}") from error
        finally:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak_bytes < 100e6, f"{peak_bytes / 1e6:.0f} MB for a file of a few kB"

    return run
