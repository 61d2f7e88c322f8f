"""Per-request routing of SGLang and vLLM: base64 in JSON lines or JSON, and refusals of everything else."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.model import MoEModel
from grace_opt.recordings import requests
from grace_opt.recordings.requests import SglangRequests, VllmRequests


def of_sglang(ids: Any) -> str:
    return base64.b64encode(np.asarray(ids, np.int32).tobytes()).decode()


def of_vllm(ids: Any, dtype: Any = np.uint8) -> str:
    file = io.BytesIO()
    np.save(file, np.asarray(ids, dtype))
    return base64.b64encode(file.getvalue()).decode()


def lines(path: Path, *responses: Any) -> Path:
    path.write_text("".join(json.dumps(response) + "\n" for response in responses))
    return path


def native(ids: Any, generated: Any = None) -> Any:
    meta = {"routed_experts": of_sglang(ids), "prompt_tokens": 2}
    return {"text": "x", "meta_info": meta if generated is None else {**meta, "completion_tokens": generated}}


def choice(ids: Any, generated: int | None = None) -> Any:
    usage = {} if generated is None else {"usage": {"completion_tokens": generated}}
    return {"choices": [{"index": 0, "routed_experts": of_vllm(ids)}], **usage}


def test_each_request_of_sglang_is_a_sequence_without_its_dense_layer(
    tmp_path: Path, import_to: Any, ids_TLK: Any
) -> None:
    path = lines(tmp_path / "r.jsonl", native(ids_TLK, 2), [native(ids_TLK[:1], 1), native(ids_TLK[1:], 1)])
    trace = import_to(SglangRequests(), path)
    expected = np.concatenate([ids_TLK, ids_TLK[:1], ids_TLK[1:]])[:, 1:].transpose(1, 0, 2)
    assert trace.expert_ids.tolist() == expected.tolist()
    assert (trace.lengths.tolist(), trace.phase, trace.model) == ([3, 1, 2], "mixed", "toy")


def test_sglang_answers_on_its_openai_interface_too(tmp_path: Path, import_to: Any, ids_TLK: Any) -> None:
    answer = {"sglext": {"routed_experts": of_sglang(ids_TLK)}, "choices": [{"index": 0}]}
    streamed = {"choices": [{"index": 0, "sglext": {"routed_experts": of_sglang(ids_TLK[:2])}}]}
    trace = import_to(SglangRequests(), lines(tmp_path / "r.jsonl", answer, streamed))
    assert trace.lengths.tolist() == [3, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_choice_of_vllm_is_a_sequence(tmp_path: Path, import_to: Any, ids_TLK: Any, dtype: Any) -> None:
    answer = {"choices": [{"routed_experts": of_vllm(ids, dtype)} for ids in (ids_TLK, ids_TLK[:2])]}
    (tmp_path / "r.json").write_text(json.dumps([answer, answer]))
    trace = import_to(VllmRequests(), tmp_path / "r.json")
    assert trace.lengths.tolist() == [3, 2, 3, 2]
    assert trace.expert_ids[:, :3].tolist() == ids_TLK[:, 1:].transpose(1, 0, 2).tolist()


def test_an_array_in_the_other_order_of_axes_is_the_same(tmp_path: Path, import_to: Any, ids_TLK: Any) -> None:
    answers = [{"routed_experts": of_vllm(ids)} for ids in (ids_TLK, np.asfortranarray(ids_TLK))]
    trace = import_to(VllmRequests(), lines(tmp_path / "r.jsonl", *answers))
    assert trace.expert_ids[:, :3].tolist() == trace.expert_ids[:, 3:].tolist()


@pytest.mark.parametrize(("phase", "lengths"), [("prefill", [2, 1]), ("decode", [1])])
def test_generated_tokens_are_told_from_the_prompt(
    tmp_path: Path, import_to: Any, ids_TLK: Any, phase: str, lengths: Any
) -> None:
    """Of two generated tokens one was forwarded; of one, none."""
    path = lines(tmp_path / "r.jsonl", choice(ids_TLK, 2), choice(ids_TLK[:1], 1))
    if len(lengths) == 1:
        with pytest.warns(match="one sequence only"):
            trace = import_to(VllmRequests(), path, phase=phase)
    else:
        trace = import_to(VllmRequests(), path, phase=phase)
    assert (trace.lengths.tolist(), trace.phase) == (lengths, phase)


def test_a_phase_that_is_not_told_cannot_be_kept(tmp_path: Path, import_to: Any, ids_TLK: Any) -> None:
    with pytest.raises(ValueError, match="phase=decode: part of the recording does not say"):
        import_to(VllmRequests(), lines(tmp_path / "r.jsonl", choice(ids_TLK)), phase="decode")


def test_responses_without_routing_are_left_out_and_told(tmp_path: Path, import_to: Any, ids_TLK: Any) -> None:
    path = lines(tmp_path / "r.jsonl", native(ids_TLK), {"meta_info": {}}, native(ids_TLK[1:]))
    with pytest.warns(match="1 responses carry no routed_experts"):
        assert import_to(SglangRequests(), path).num_sequences == 2


def test_several_files_become_one_trace(tmp_path: Path, import_to: Any, ids_TLK: Any) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        lines(tmp_path / name, native(ids_TLK))
    assert import_to(SglangRequests(), tmp_path).num_sequences == 2


@pytest.mark.parametrize(
    ("source", "response", "message"),
    [
        (SglangRequests(), {"meta_info": {"routed_experts": of_vllm([[[0, 1]]])}}, "give source=vllm_requests"),
        (VllmRequests(), {"routed_experts": of_sglang([[[0, 1]]])}, "need source=sglang_requests"),
        (SglangRequests(), native(np.zeros((1, 3, 3))), "has 36 bytes, no multiple of the 24 that"),
        (SglangRequests(), native([[[0, 0], [0, 1], [3, 4]]]), r"names expert 4, but model toy has experts 0\.\.3"),
        (SglangRequests(), native([[[0, 0], [0, 1], [3, -1]]]), "names expert -1"),
        (SglangRequests(), native([[[0, 1], [0, 1], [3, 2]]]), "a layer that is dense in model toy names experts"),
        (SglangRequests(), native([[[0, 0], [0, 0], [3, 2]]]), r"layer 1 .* chose \[0, 0\].*dense in the rec"),
        (SglangRequests(), native([[[0, 0], [0, 1], [2, 2]]]), "layer 2 of a token chose"),
        (SglangRequests(), {"meta_info": {"routed_experts": "a"}}, "routed_experts is no base64"),
        (SglangRequests(), {"meta_info": {"routed_experts": 5}}, "must be base64 text, got int"),
        (SglangRequests(), native([[[0, 0], [0, 1], [3, 2]]], 9), "has 1 tokens, fewer than the 9 that were generated"),
        (SglangRequests(), 5, "a response must be a JSON object, got int"),
        (VllmRequests(), choice(np.zeros((1, 3, 3))), r"has shape \[1, 3, 3\], but model toy chooses top-2"),
        (VllmRequests(), choice(np.zeros((1, 5, 2))), "has 5 layers, but model toy has 2 MoE layers after 1 dense"),
        (VllmRequests(), {"routed_experts": of_vllm(np.zeros((1, 3, 2)), np.float32)}, "float32 .*no integers"),
    ],
)  # fmt: skip
def test_a_response_that_does_not_fit_is_refused_by_line(
    tmp_path: Path, import_to: Any, source: Any, response: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"r.jsonl( line 1)?: .*{message}"):
        import_to(source, lines(tmp_path / "r.jsonl", response))
    assert not list(tmp_path.glob("out/*"))


def test_a_header_that_claims_more_than_its_bytes_is_refused_before_anything_is_made(
    tmp_path: Path, import_to: Any
) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 3, 2)})
    text = base64.b64encode(file.getvalue() + bytes(6)).decode()
    with pytest.raises(ValueError, match=r"\[1000000000000, 3, 2\] with 6 bytes: truncated"):
        import_to(VllmRequests(), lines(tmp_path / "r.jsonl", {"routed_experts": text}))


def test_objects_in_an_array_are_refused(tmp_path: Path, import_to: Any) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    text = base64.b64encode(file.getvalue()).decode()
    with pytest.raises(ValueError, match="object .*no integers"):
        import_to(VllmRequests(), lines(tmp_path / "r.jsonl", {"routed_experts": text}))


def test_a_truncated_line_is_named(tmp_path: Path, import_to: Any, ids_TLK: Any) -> None:
    path = lines(tmp_path / "r.jsonl", native(ids_TLK), native(ids_TLK))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="r.jsonl: line 2 is no JSON, or truncated"):
        import_to(SglangRequests(), path)


def test_text_too_long_for_memory_is_refused(tmp_path: Path, import_to: Any, monkeypatch: Any, ids_TLK: Any) -> None:
    monkeypatch.setattr(requests, "WHOLE_BYTES", 50)
    for name, message in (("r.jsonl", "line 1 is longer than"), ("r.json", "GB of JSON in one piece")):
        with pytest.raises(ValueError, match=message):
            import_to(SglangRequests(), lines(tmp_path / name, native(ids_TLK)))


def test_nesting_without_end_is_refused(tmp_path: Path, import_to: Any) -> None:
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="deep.jsonl: damaged"):
        import_to(SglangRequests(), tmp_path / "deep.jsonl")


def test_ids_of_sixteen_bits_stay_whole(tmp_path: Path, import_to: Any, toy: MoEModel) -> None:
    model = replace(toy, num_experts=300)
    trace = import_to(SglangRequests(), lines(tmp_path / "r.jsonl", native([[[0, 0], [0, 299], [256, 1]]] * 2)), model)
    assert trace.expert_ids.dtype == np.uint16 and trace.expert_ids.max() == 299


@pytest.mark.parametrize("source", [SglangRequests(), VllmRequests()])
@given(data=st.data())
def test_flipped_bytes_raise_nothing_but_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, refuses_or_reads: Callable[..., None], source: Any, data: st.DataObject,
    ids_TLK: Any,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "flipped.jsonl"
    lines(path, *[{**native(ids_TLK, 2), **choice(ids_TLK, 2)}] * 2)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refuses_or_reads(source, path)


@pytest.mark.parametrize("source", [SglangRequests(), VllmRequests()])
@given(content=st.binary(max_size=200))
def test_any_bytes_in_base64_raise_nothing_but_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, refuses_or_reads: Callable[..., None], source: Any, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    texts = [base64.b64encode(start + content).decode() for start in (b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00")]
    for text in texts:
        lines(path, {"meta_info": {"routed_experts": text}, "choices": [{"routed_experts": text}]})
        refuses_or_reads(source, path)


@pytest.mark.parametrize("source", [SglangRequests(), VllmRequests()])
def test_a_response_with_any_field_replaced_raises_nothing_but_a_named_refusal(
    tmp_path: Path, damaged: Callable[[Any], Any], refuses_or_reads: Callable[..., None], source: Any, ids_TLK: Any
) -> None:
    response = {**native(ids_TLK, 2), **choice(ids_TLK, 2), "sglext": {"routed_experts": of_sglang(ids_TLK)}}
    for _, value in damaged([response]):
        refuses_or_reads(source, lines(tmp_path / "r.jsonl", value))
