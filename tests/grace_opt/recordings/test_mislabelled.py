"""Every kind of file under every source: a recording of another kind, or none at all, is one line."""

import base64
import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from grace_opt.configuration import build, groups, read_configuration

torch = pytest.importorskip("torch")


def of_torch(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def of_npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


COUNTS = torch.ones(2, 3, 4, dtype=torch.int32)
TEXT = base64.b64encode(np.zeros((2, 3, 2), np.int32).tobytes()).decode()
CONTENTS = {
    "stat": of_torch({"rank": 0, "logical_count": COUNTS}),
    "records": of_torch({"records": [], "last_physical_to_logical_map": COUNTS[0].long()}),
    "old torch": of_torch({"logical_count": COUNTS}, _use_new_zipfile_serialization=False),
    "a model": of_torch(torch.nn.Linear(2, 2).state_dict()),
    "pickle": pickle.dumps({"logical_count": [1]}),
    "request": json.dumps({"meta_info": {"routed_experts": TEXT}}).encode(),
    "choices": json.dumps({"choices": [{"routed_experts": TEXT}]}).encode(),
    "history": json.dumps({"load_history": [{"logical_expert_load": [[1] * 9]}]}).encode(),
    "configuration": json.dumps({"num_experts": 4, "num_experts_per_token": 2}).encode(),
    "safetensors": save({"5_1": np.ones(4, np.int64)}),
    "floats": save({"5_1": np.ones(4, np.float32)}),
    "npz": of_npz(a=np.ones((2, 9, 9)), b=np.ones(3)),
    "text": "Übung\n".encode() * 9,
    "gzip": gzip.compress(b"{}"),
    "empty": b"",
    "zeros": bytes(1000),
}


@pytest.mark.parametrize("choice", sorted(groups()["source"]))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_file_of_any_other_kind_is_refused_or_empty(
    tmp_path: Path, choice: str, refuses_or_reads: Callable[..., None]
) -> None:
    source = build(read_configuration("import", [f"source={choice}"]).source)
    for content in CONTENTS.values():
        for suffix in source.suffixes or ("",):
            path = tmp_path / f"file{suffix}"
            if suffix:
                path.write_bytes(content)
            else:
                path.mkdir(exist_ok=True)
                (path / "meta_info.json").write_text(json.dumps({"num_experts": 4, "num_experts_per_token": 2}))
                for name in ("rank0.safetensors", "rank0_raw.safetensors"):
                    (path / name).write_bytes(content)
            refuses_or_reads(source, path)
