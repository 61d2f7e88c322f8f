"""TensorRT-LLM's expert statistics: counts summed over ranks, raw choices, and refusals of what does not fit."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from grace_opt.recordings.tensorrt_llm import Choices, Counts

META = {"num_experts": 4, "num_experts_per_token": 2}


def folder(path: Path, meta: Any = META, **files: Any) -> Path:
    """files: rank0={"5_1": counts, ...} or rank0_raw."""
    path.mkdir(exist_ok=True)
    (path / "meta_info.json").write_text(json.dumps(meta))
    for name, tensors in files.items():
        dtype = np.int32 if name.endswith("raw") else np.int64
        save_file({key: np.asarray(value, dtype) for key, value in tensors.items()}, path / f"{name}.safetensors")
    return path


RAW = {"5_1": [[0, 1], [1, 2]], "5_2": [[3, 2], [2, 0]]}
COUNTS = {"5_1": [1, 2, 1, 0], "5_2": [1, 0, 2, 1], "6_1": [1, 1, 0, 0], "6_2": [0, 0, 1, 1]}


def test_counts_are_summed_over_ranks_in_the_order_of_iterations(tmp_path: Path, import_to: Any) -> None:
    other = {"10_1": [0, 1, 1, 0], "10_2": [1, 1, 0, 0], "5_1": [1, 1, 0, 0], "5_2": [0, 0, 1, 1]}
    with pytest.warns(match="2 of 3 passes lack a rank of 2"):
        history = import_to(Counts(), folder(tmp_path / "s", rank0=COUNTS, rank1=other, rank0_raw=RAW))
    assert history.counts.tolist() == [
        [[2, 3, 1, 0], [1, 0, 3, 2]],
        [[1, 1, 0, 0], [0, 0, 1, 1]],
        [[0, 1, 1, 0], [1, 1, 0, 0]],
    ]


def test_raw_choices_of_a_rank_in_an_iteration_are_a_sequence(tmp_path: Path, import_to: Any) -> None:
    other = {"5_1": [[1, 0]], "5_2": [[0, 3]]}
    trace = import_to(Choices(), folder(tmp_path / "s", rank0_raw=RAW, rank1_raw=other))
    assert trace.expert_ids.tolist() == [[[0, 1], [1, 2], [1, 0]], [[3, 2], [2, 0], [0, 3]]]
    assert (trace.lengths.tolist(), trace.phase) == ([2, 1], "mixed")


def test_ranks_that_saw_the_same_tokens_are_counted_once(tmp_path: Path, import_to: Any) -> None:
    again = {key.replace("5", "6"): value for key, value in RAW.items()}
    trace = import_to(Choices(), folder(tmp_path / "s", rank0_raw={**RAW, **again}, rank1_raw={**RAW, **again}))
    assert trace.lengths.tolist() == [2, 2]


def test_layers_of_a_draft_model_can_be_left_out(tmp_path: Path, import_to: Any) -> None:
    more = {"5_3": [1, 1, 0, 0], "6_3": [1, 1, 0, 0]}
    history = import_to(Counts(leave_out=[3]), folder(tmp_path / "s", rank0={**COUNTS, **more}))
    assert history.counts.tolist() == [[[1, 2, 1, 0], [1, 0, 2, 1]], [[1, 1, 0, 0], [0, 0, 1, 1]]]


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        (Counts(), {"meta": {"num_experts": 8, "num_experts_per_token": 2}}, "meta_info.json: num_experts is 8"),
        (Counts(), {"meta": {"num_experts": 4, "num_experts_per_token": 8}}, "num_experts_per_token is 8, but 2"),
        (Counts(), {"meta": [4, 2]}, "meta_info.json: field num_experts is missing"),
        (Counts(), {"rank0_raw": RAW}, "there is no file .*source=tensorrt_llm_raw"),
        (Choices(), {"rank0": COUNTS}, "there is no file"),
        (Counts(), {"rank0": {"5_1": [1, 1, 0, 0]}}, "layer 2 is missing: MoE layers of model toy are 1 to 2"),
        (Counts(), {"rank0": {**COUNTS, "5_3": [1, 1, 0, 0]}}, r"layer 3 is recorded.*leave_out=\[3\] drops it"),
        (Counts(), {"rank0": {"5_1": [1, 1, 0, 0, 0], "5_2": [1] * 5}}, r"layer 1 has shape \[5\]; expected \[4\]"),
        (Counts(), {"rank0": {"five": [1, 1, 0, 0]}}, "rank0.safetensors: tensor 'five' should be named"),
        (Counts(), {"rank0": {**COUNTS, "05_1": [1, 1, 0, 0]}}, "is there twice"),
        (Choices(), {"rank0_raw": {"5_1": [[0, 1]], "5_2": RAW["5_2"]}}, r"layer 2 has shape \[2, 2\]; expected \[1"),
        (Choices(), {"rank0_raw": {"5_1": [[0, 4]], "5_2": [[0, 1]]}}, "names expert 4"),
        (Choices(), {"rank0_raw": {"5_1": [[0, 1, 2]], "5_2": [[0, 1, 2]]}}, r"layer 1 has shape \[1, 3\]; expected"),
    ],
)  # fmt: skip
def test_statistics_that_do_not_fit_are_refused(
    tmp_path: Path, import_to: Any, source: Any, files: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_to(source, folder(tmp_path / "s", **files))


def test_a_folder_without_meta_info_is_named(tmp_path: Path, import_to: Any) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(FileNotFoundError, match=r"meta_info\.json"):
        import_to(Counts(), tmp_path / "s")


def test_several_runs_must_have_the_same_experts(tmp_path: Path, import_to: Any) -> None:
    paths = [
        str(folder(tmp_path / "a", rank0=COUNTS)),
        str(folder(tmp_path / "b", {**META, "num_experts": 8}, rank0=COUNTS)),
    ]
    with pytest.raises(ValueError, match=r"b/meta_info.json: num_experts is 8"):
        import_to(Counts(), paths)


@pytest.mark.parametrize("source", [Counts(), Choices()])
@given(data=st.data())
def test_flipped_bytes_and_cuts_raise_nothing_but_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, refuses_or_reads: Callable[..., None], source: Any, data: st.DataObject
) -> None:
    place = tmp_path_factory.getbasetemp() / "fuzzed"
    shutil.rmtree(place, ignore_errors=True)
    folder(place, rank0=COUNTS, rank0_raw=RAW)
    path = place / data.draw(st.sampled_from(["rank0.safetensors", "rank0_raw.safetensors", "meta_info.json"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refuses_or_reads(source, place)


@pytest.mark.parametrize("source", [Counts(), Choices()])
def test_a_header_with_any_field_replaced_raises_nothing_but_a_named_refusal(
    tmp_path: Path, damaged: Callable[[Any], Any], refuses_or_reads: Callable[..., None], source: Any
) -> None:
    place = folder(tmp_path / "s", rank0={k: COUNTS[k] for k in ("5_1", "5_2")}, rank0_raw=RAW)
    path = place / ("rank0.safetensors" if isinstance(source, Counts) else "rank0_raw.safetensors")
    whole = path.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    for _, header in damaged(json.loads(whole[8 : 8 + length])):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
        refuses_or_reads(source, place)
