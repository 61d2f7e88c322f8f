"""A synthetic trace looks like the real one it was fitted to, at its size, and is well formed at any other."""

import os
from pathlib import Path

import numpy as np
import pytest

from grace_opt.model import MoEModel
from grace_opt.synthetic import Scales, _resized, calibrate, synthesize, synthetic_trace
from grace_opt.trace import Trace, check_expert_ids
from grace_opt.trace_file import read_trace, write_trace
from grace_opt.trace_statistics import TraceStatistics, _exchange, fit_statistics, independent_draws, measure

TRACES = Path(__file__).parents[2] / "../shared/traces"
TOLERANCES = {"coupling": 0.25, "domain_shift": 0.25}
"""The others: 0.15. Layers are not calibrated to each other; few domains are drawn, so that seeds differ."""
SCALES = Scales()


def real_trace(name: str) -> Trace:
    if not (TRACES / name).is_file():
        pytest.skip(f"no recording {name} in ../shared/traces")
    return read_trace(TRACES / name)


@pytest.fixture(scope="module")
def structured() -> Trace:
    """Made-up choices: a token has one of 12 topics, sequences and domains prefer some, topics prefer some experts."""
    rng = np.random.default_rng(0)
    L, Q, length, E, K, topics = 4, 150, 24, 32, 4, 12
    domains = np.arange(Q) % 3
    liking_QC = rng.standard_normal((3, topics))[domains] + rng.standard_normal((Q, topics))
    topic_T = (np.repeat(liking_QC, length, 0) + rng.gumbel(size=(Q * length, topics))).argmax(1)
    logit_LTE = rng.standard_normal((L, 1, E)) + 1.5 * rng.standard_normal((L, topics, E))[:, topic_T]
    ids_LTK = np.argsort(-(logit_LTE + rng.gumbel(size=logit_LTE.shape)), axis=2)[:, :, :K].astype(np.uint8)
    starts = np.arange(Q) * length
    return Trace(ids_LTK, starts, starts + length, domains, ("a", "b", "c"), E, "made-up", source="made up")


@pytest.fixture(scope="module")
def statistics(structured: Trace) -> TraceStatistics:
    return fit_statistics(structured)


def twin(statistics: TraceStatistics, scales: Scales | None = None) -> Trace:
    """A synthetic trace of the same size."""
    L, E = statistics.load_curve.shape
    return synthesize(statistics, L, E, statistics.top_k, int(statistics.lengths.sum()), seed=1, scales=scales)


def assert_alike(real: TraceStatistics, synthetic: TraceStatistics) -> None:
    pairs = {name: (figure, synthetic.figures[name]) for name, figure in real.figures.items()}
    far = {name: (a, b) for name, (a, b) in pairs.items() if abs(b / a - 1) > TOLERANCES.get(name, 0.15)}
    assert not far, f"figures (real, synthetic) that differ too much: {far}"


def two_sequences(choices: list[list[int]], domain_names: tuple[str, ...]) -> Trace:
    """Two sequences of two tokens, in the first and the last domain."""
    bounds = np.array([0, 2, 4])
    domains = np.array([0, len(domain_names) - 1])
    return Trace(np.array([choices], np.uint8), bounds[:-1], bounds[1:], domains, domain_names, num_experts=4)


def test_figures_of_the_worked_example() -> None:
    figures = measure(two_sequences([[0, 1], [0, 2], [2, 3], [2, 3]], ("all",)))
    assert figures["repeats_previous"] == figures["repeats_sequence"] == 0.75
    assert figures["repeats_domain"] == 0.25
    assert figures["load_max_over_mean"] == 1.5
    assert figures["groups_index"] == 2
    assert figures["domain_shift"] == figures["coupling"] == 0


def test_domain_shift_is_one_where_domains_share_no_expert() -> None:
    figures = measure(two_sequences([[0, 1], [0, 1], [2, 3], [2, 3]], ("a", "b")))
    assert figures["domain_shift"] == 1
    assert figures["repeats_sequence"] == 1
    assert figures["repeats_domain"] == 0


def test_exchanges_find_the_groups_that_keep_all_pairs_together() -> None:
    count_EE = np.zeros((6, 6), np.int64)
    for i, j in ((0, 3), (1, 4), (2, 5)):
        count_EE[i, j] = count_EE[j, i] = 7
    group_E = _exchange(count_EE, np.array([0, 0, 1, 1, 2, 2]))
    assert (group_E[:3] == group_E[3:]).all()
    assert sorted(group_E.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", ["deepseek-v2-lite.npz", "gpt-oss-20b.npz"])
def test_synthetic_has_the_figures_of_a_real_trace(name: str) -> None:
    real = fit_statistics(real_trace(name), max_tokens=9_000)
    assert_alike(real, fit_statistics(twin(real)))


def test_synthetic_has_the_figures_of_a_made_up_trace(statistics: TraceStatistics) -> None:
    assert_alike(statistics, fit_statistics(twin(statistics)))


def test_busy_experts_stay_as_busy_as_in_the_real_trace(statistics: TraceStatistics) -> None:
    synthetic = fit_statistics(twin(statistics, SCALES))
    np.testing.assert_allclose(synthetic.load_curve, statistics.load_curve, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 8), (16, 2), (256, 8), (300, 1)])
def test_other_sizes_are_valid_traces_labelled_synthetic(
    statistics: TraceStatistics, num_experts: int, top_k: int
) -> None:
    trace = synthesize(statistics, 3, num_experts, top_k, 1_000, seed=7, model="big", scales=SCALES)
    assert trace.expert_ids.shape == (3, 1_000, top_k)
    assert trace.expert_ids.dtype == (np.uint8 if num_experts <= 256 else np.uint16)
    check_expert_ids(trace.expert_ids, num_experts)
    assert trace.num_tokens == 1_000
    assert (trace.synthetic, trace.model) == (True, "big")
    assert trace.source == "synthetic, seed 7, fitted to made up"


def test_more_tokens_than_the_real_trace_repeat_its_sequences(statistics: TraceStatistics) -> None:
    trace = synthesize(statistics, 1, 32, 4, 8_001, seed=0, scales=SCALES)
    assert trace.lengths[:-1].tolist() == [24] * 333
    assert trace.lengths[-1] == 9
    assert np.bincount(trace.domains[:300]).tolist() == [100, 100, 100]


def test_a_larger_model_has_the_same_load_curve(statistics: TraceStatistics) -> None:
    curve_LE = _resized(statistics.load_curve, 8, 128)
    assert curve_LE.shape == (8, 128)
    np.testing.assert_allclose(curve_LE[::2].reshape(4, 32, 4).mean(2), statistics.load_curve, rtol=0.1, atol=0.05)
    np.testing.assert_allclose(_resized(statistics.load_curve, 4, 32), statistics.load_curve)


def test_the_seed_decides_the_trace_and_the_number_of_threads_does_not(
    statistics: TraceStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = twin(statistics, SCALES)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert (twin(statistics, SCALES).expert_ids == first.expert_ids).all()
    other = synthesize(statistics, 4, 32, 4, 3_600, seed=2, scales=SCALES)
    assert (other.expert_ids != first.expert_ids).any()


def test_a_layer_does_not_depend_on_how_many_follow(statistics: TraceStatistics) -> None:
    curve_LE = np.repeat(statistics.load_curve[:1], 2, 0)
    same = TraceStatistics(**{**statistics.__dict__, "load_curve": curve_LE})
    few, many = (synthesize(same, layers, 32, 4, 500, seed=3, scales=SCALES) for layers in (2, 5))
    assert (few.expert_ids == many.expert_ids[:2]).all()


def test_stronger_token_weights_make_stronger_affinity(statistics: TraceStatistics) -> None:
    weak, strong = (measure(twin(statistics, Scales(token=token))) for token in (0.5, 4.0))
    assert weak["affinity"] < 0.7 * strong["affinity"]


def test_calibration_gives_the_same_scales_again(statistics: TraceStatistics) -> None:
    assert calibrate(statistics) == calibrate(statistics)


def test_synthetic_trace_reads_the_file_it_is_like(structured: Trace, tmp_path: Path) -> None:
    path = tmp_path / "real.safetensors"
    sequence, domain = (np.repeat(ids, structured.lengths) for ids in (np.arange(150), structured.domains))
    write_trace(
        path, expert_ids=structured.expert_ids, sequence=sequence, domain=domain, domain_names=("a", "b", "c"),
        model="made-up", num_experts=32, phase="prefill", source="made up",
    )  # fmt: skip
    trace = synthetic_trace(str(path), MoEModel("twice the experts", 2, 64, 8, 16, 16), 700, 5)
    assert trace.expert_ids.shape == (2, 700, 8)
    assert trace.num_experts == 64
    assert trace.synthetic


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((2, 16, 17, 100), "top_k=17 different experts among num_experts=16"),
        ((2, 16, 4, 0), "num_tokens=0"),
        ((0, 16, 4, 100), "num_layers=0"),
        ((2, 65_537, 4, 100), "at most 65536, got 65537"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(
    statistics: TraceStatistics, size: tuple[int, int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        synthesize(statistics, *size, seed=0)
    assert "\n" not in str(raised.value)


def test_a_trace_of_one_sequence_has_no_statistics(structured: Trace) -> None:
    with pytest.raises(ValueError, match="at least 2 of each, got 1 sequences"):
        fit_statistics(structured.select(np.array([0])))


def test_independent_draws_keep_the_loads_and_repeat_no_expert() -> None:
    drawn = independent_draws(np.array([[0, 1], [0, 2]] * 500), num_experts=4)
    assert (drawn[:, 0] != drawn[:, 1]).all()
    assert 3 not in drawn
    assert np.bincount(drawn.ravel())[0] > np.bincount(drawn.ravel())[1:].max()
