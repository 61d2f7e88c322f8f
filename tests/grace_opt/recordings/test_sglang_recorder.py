"""SGLang's recorder: three modes, rings, ranks and redundant experts, and refusals of what does not fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.model import MoEModel
from grace_opt.recordings.sglang_recorder import PerPass, PerToken, Stat

torch = pytest.importorskip("torch")

# Five physical experts: expert 0 has a second copy, at another place in each layer.
MAP_LP = torch.tensor([[0, 1, 2, 3, 0], [0, 1, 2, 3, 0], [0, 0, 1, 2, 3]])


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def stat(path: Path, counts: Any) -> Path:
    counts = torch.tensor(counts, dtype=torch.int32)
    return save(path, {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None})


def per_pass(path: Path, rank: int, passes: dict[int, Any], **changes: Any) -> Path:
    records = [
        {"forward_pass_id": number, "rank": rank, "global_physical_count": torch.tensor(counts)}
        for number, counts in passes.items()
    ]  # fmt: skip
    return save(path, {"records": records, "last_physical_to_logical_map": MAP_LP, **changes})


def token_record(number: int, rank: int, ids_LTK: Any, mode: int = 1, lengths: Any = None, **changes: Any) -> Any:
    """Choices [layers, tokens, K] of physical experts, in the recorder's eight columns."""
    wide = torch.full((*np.shape(ids_LTK)[:2], 8), -1, dtype=torch.int32)
    wide[..., : np.shape(ids_LTK)[2]] = torch.tensor(ids_LTK, dtype=torch.int32)
    tokens = wide.shape[1]
    return {
        "forward_pass_id": number, "rank": rank, "gatherer_key": "primary", "input_ids": list(range(tokens)),
        "positions": list(range(tokens)), "extend_seq_lens": lengths, "forward_mode": mode, "topk_ids_of_layer": wide,
        "misc_objects": [], "global_physical_count": torch.zeros(3, 5, dtype=torch.int32), **changes,
    }  # fmt: skip


def per_token(path: Path, records: list[Any]) -> Path:
    return save(path, {"records": records, "last_physical_to_logical_map": MAP_LP})


# Two tokens; the dense layer 0 is -1 throughout. Physical 4 of layer 1 is expert 0, physical 4 of layer 2 is expert 3.
PAIR = [[[-1, -1], [-1, -1]], [[4, 1], [2, 3]], [[4, 0], [1, 2]]]
PAIR_LOGICAL = [[[0, 1], [2, 3]], [[3, 0], [0, 1]]]
OTHER = [[[-1, -1]], [[1, 2]], [[2, 3]]]


def test_stat_drops_unused_steps_of_the_ring_and_the_dense_layer(tmp_path: Path, import_to: Any) -> None:
    counts = np.zeros((4, 3, 4), int)
    counts[1, 1:], counts[3, 1:] = [[1, 2, 3, 0], [2, 2, 1, 1]], [[0, 0, 1, 1], [1, 1, 0, 0]]
    history = import_to(Stat(), stat(tmp_path / "s.pt", counts))
    assert history.counts.tolist() == [[[1, 2, 3, 0], [2, 2, 1, 1]], [[0, 0, 1, 1], [1, 1, 0, 0]]]
    assert (history.model, history.top_k, history.first_moe_layer, history.num_tokens) == ("toy", 2, 1, 4)
    assert history.source == "SGLang recorder, stat: s.pt"


def test_per_pass_sums_ranks_and_folds_copies_onto_their_expert(tmp_path: Path, import_to: Any) -> None:
    zero = [0] * 5
    per_pass(
        tmp_path / "1.pt", 1, {9: [zero, [1, 1, 0, 0, 2], [1, 2, 0, 1, 0]], 8: [zero, [1, 0, 1, 0, 0], [0, 0, 1, 1, 0]]}
    )
    per_pass(tmp_path / "0.pt", 0, {8: [zero, [0, 1, 0, 1, 0], [1, 1, 0, 0, 0]], 9: [zero, zero, zero]})
    history = import_to(PerPass(), tmp_path)
    assert history.counts.tolist() == [[[1, 1, 1, 1], [2, 1, 1, 0]], [[3, 1, 0, 0], [3, 0, 1, 0]]]


def test_per_token_folds_copies_and_keeps_prompts_apart(tmp_path: Path, import_to: Any) -> None:
    records = [token_record(5, 0, PAIR, lengths=[1, 1]), token_record(6, 0, OTHER, mode=2)]
    trace = import_to(PerToken(), per_token(tmp_path / "t.pt", records))
    assert trace.expert_ids[:, :2].tolist() == PAIR_LOGICAL
    assert trace.expert_ids[:, 2].tolist() == [[1, 2], [1, 2]]
    assert (trace.starts.tolist(), trace.stops.tolist()) == ([0, 1, 2], [1, 2, 3])
    assert (trace.model, trace.num_experts, trace.phase, trace.domain_names) == ("toy", 4, "mixed", ("all",))


@pytest.mark.parametrize(("phase", "tokens"), [("prefill", 2), ("decode", 1)])
def test_one_phase_of_a_recording_can_be_kept(tmp_path: Path, import_to: Any, phase: str, tokens: int) -> None:
    records = [token_record(5, 0, PAIR, lengths=[2]), token_record(6, 0, OTHER, mode=2)]
    with pytest.warns(match="one sequence only"):
        trace = import_to(PerToken(), per_token(tmp_path / "t.pt", records), phase=phase)
    assert (trace.num_tokens, trace.phase) == (tokens, phase)


def test_padding_tokens_are_dropped_and_their_sequence_is_shorter(tmp_path: Path, import_to: Any) -> None:
    none = [-1, -1]
    padded = [[none] * 4, [*PAIR[1], none, none], [*PAIR[2], none, none]]
    records = [token_record(0, 0, padded, lengths=[1, 2, 1]), token_record(1, 0, OTHER, lengths=[1])]
    trace = import_to(PerToken(), per_token(tmp_path / "t.pt", records))
    assert trace.lengths.tolist() == [1, 1, 1]


def test_ranks_that_saw_the_same_tokens_are_counted_once_and_others_all(tmp_path: Path, import_to: Any) -> None:
    per_token(tmp_path / "0.pt", [token_record(5, 0, PAIR, lengths=[2]), token_record(6, 0, OTHER, lengths=[1])])
    per_token(tmp_path / "1.pt", [token_record(5, 1, PAIR, lengths=[2]), token_record(6, 1, PAIR, lengths=[2])])
    assert import_to(PerToken(), tmp_path).lengths.tolist() == [2, 1, 2]


def test_generated_tokens_are_of_unknown_requests_and_that_is_told(tmp_path: Path, import_to: Any) -> None:
    records = [token_record(number, 0, OTHER, mode=2) for number in range(2)]
    with pytest.warns(match="the recording names no requests"):
        assert import_to(PerToken(), per_token(tmp_path / "t.pt", records)).num_sequences == 2


def test_a_pass_without_tokens_is_passed_over(tmp_path: Path, import_to: Any) -> None:
    idle = token_record(4, 0, np.zeros((3, 0, 2)), mode=4, lengths=[])
    records = [idle, token_record(5, 0, PAIR, lengths=[1, 1])]
    assert import_to(PerToken(), per_token(tmp_path / "t.pt", records)).num_tokens == 2


def test_a_model_without_dense_layers_needs_no_layer_left_out(tmp_path: Path, import_to: Any, toy: MoEModel) -> None:
    model = replace(toy, num_layers=3, first_moe_layer=0)
    history = import_to(Stat(), stat(tmp_path / "s.pt", [[[1, 1, 0, 0]] * 3]), model)
    assert history.counts.tolist() == [[[1, 1, 0, 0]] * 3]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.ones((2, 3, 5)), r"s.pt: logical_count has shape \[3, 5\], but model toy has 4 experts: another model\?"),
        (np.ones((2, 5, 4)), "s.pt: logical_count has 5 layers, but model toy has 2 MoE layers after 1 dense"),
        (np.ones((2, 3, 4)), "s.pt: logical_count: a layer that is dense in model toy has counts"),
        ([[[0] * 4, [1] * 4, [0] * 4]], "layer 2 has no counts: the recording lacks it"),
        (np.zeros((2, 3, 4)), "s.pt: nothing was recorded"),
        (np.ones((3, 4)), r"s.pt: logical_count must be a tensor of integers with 3 axes, got int32 \[3, 4\]"),
        ([[[0] * 4, [-1, 1, 1, 1], [1] * 4]], "counts must be 0"),
    ],
)
def test_counts_that_do_not_fit_are_refused(tmp_path: Path, import_to: Any, counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_to(Stat(), stat(tmp_path / "s.pt", np.array(counts, np.int32).tolist()))
    assert not list(tmp_path.glob("out/*"))


def test_another_mode_is_named_as_such(tmp_path: Path, import_to: Any) -> None:
    with pytest.raises(
        ValueError, match=r"s.pt: field last_physical_to_logical_map is missing; found rank, logical_count"
    ):
        import_to(PerToken(), stat(tmp_path / "s.pt", np.ones((1, 3, 4)).tolist()))


def test_a_rank_given_twice_is_refused(tmp_path: Path, import_to: Any) -> None:
    for name in ("a.pt", "b.pt"):
        per_pass(tmp_path / name, 0, {7: np.ones((3, 5), int).tolist()})
    with pytest.raises(ValueError, match="rank 0 recorded pass 7 twice"):
        import_to(PerPass(), tmp_path)


def test_a_rank_that_is_missing_is_told(tmp_path: Path, import_to: Any) -> None:
    counts = [[0] * 5, [1] * 5, [1] * 5]
    per_pass(tmp_path / "a.pt", 0, {7: counts, 8: counts})
    per_pass(tmp_path / "b.pt", 1, {7: counts})
    with pytest.warns(match="1 of 2 passes lack a rank of 2"):
        import_to(PerPass(), tmp_path)


def test_ranks_with_another_number_of_experts_are_refused(tmp_path: Path, import_to: Any) -> None:
    per_pass(tmp_path / "a.pt", 0, {7: np.ones((3, 5), int).tolist()})
    per_pass(tmp_path / "b.pt", 1, {7: np.ones((3, 5), int).tolist()}, last_physical_to_logical_map=MAP_LP + 1)
    with pytest.raises(
        ValueError, match=r"b.pt: last_physical_to_logical_map names experts 1 to 4, but model toy has 4"
    ):
        import_to(PerPass(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids_LTK": np.ones((3, 2, 3), int)}, "a token chose 3 experts in a layer, but 2 in model toy"),
        ({"ids_LTK": [PAIR[0], PAIR[1], PAIR[0]]}, "no token chose an expert in layer 2"),
        ({"ids_LTK": [PAIR[0], [[9, 1], [2, 3]], PAIR[2]]}, "must name physical experts 0..4"),
        ({"ids_LTK": [PAIR[0], [[0, 4], [2, 3]], PAIR[2]]}, r"chose \[0, 0\], the same expert twice"),
        ({"ids_LTK": PAIR[1:]}, r"topk_ids_of_layer has shape \[2\], but last_physical_to_logical_map \[3\]"),
        ({"lengths": [1, 2]}, "extend_seq_lens must be lengths of sequences that add up to 2"),
        ({"lengths": "2"}, "extend_seq_lens must be lengths"),
        ({"forward_pass_id": 2.5}, "forward_pass_id 2.5 and rank 0 must be whole numbers"),
        ({"topk_ids_of_layer": [1]}, "topk_ids_of_layer must be a tensor of integers with 3 axes, got list"),
    ],
)
def test_choices_that_do_not_fit_are_refused(tmp_path: Path, import_to: Any, change: Any, message: str) -> None:
    record = token_record(**{"number": 5, "rank": 0, "ids_LTK": PAIR, "lengths": [2], **change})
    with pytest.raises(ValueError, match=message):
        import_to(PerToken(), per_token(tmp_path / "t.pt", [record]))
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("source", [Stat(), PerPass(), PerToken()])
@given(data=st.data())
def test_flipped_bytes_raise_nothing_but_a_named_refusal(
    tmp_path_factory: pytest.TempPathFactory, refuses_or_reads: Callable[..., None], source: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    folder.mkdir(exist_ok=True)
    path = folder / "r.pt"
    if isinstance(source, Stat):
        stat(path, [[[0] * 4, [1] * 4, [1] * 4]])
    else:
        per_token(path, [token_record(5, 0, PAIR, lengths=[1, 1])])
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    refuses_or_reads(source, path)


@pytest.mark.parametrize("source", [PerPass(), PerToken()])
def test_a_record_with_any_field_replaced_raises_nothing_but_a_named_refusal(
    tmp_path: Path, damaged: Callable[[Any], Any], refuses_or_reads: Callable[..., None], source: Any
) -> None:
    record = token_record(5, 0, PAIR, lengths=[1, 1])
    kept = {name: record.pop(name) for name in ("topk_ids_of_layer", "global_physical_count")}
    for _, value in damaged({"records": [record]}):
        records = value.get("records") if isinstance(value, dict) else None
        if isinstance(records, list):
            records[:] = [{**kept, **each} if isinstance(each, dict) else each for each in records]
        if isinstance(value, dict):
            value["last_physical_to_logical_map"] = MAP_LP
        refuses_or_reads(source, save(tmp_path / "r.pt", value))
