"""What a study tells, on numbers a person can check."""

import pytest

from analysis import study_findings as f
from analysis.study_figures import draw_study
from analysis.study_series import DOMAINS

FIXED = {
    "kind": "cell", "status": "ok", "model": "toy", "topology": "pair", "synthetic": False, "assumed": "",
    "num_ranks": 4, "num_layers": 2, "tokens_per_rank": 100.0, "slots_per_rank": 2, "redundant_experts": 0,
    "memory_bytes_per_rank": 1e9, "planner": "toy", "method": "Toy",
}  # fmt: skip
X = "cell.topology.inter_bytes_per_s"


def row(time, **values):
    return {**FIXED, **{name.replace("__", "."): value for name, value in values.items()}, "layer_time_s": time}


def curves():
    """Planner a takes 16 / x, planner b 8 / x ** 0.5: they meet at x = 4, where both take 4."""
    times = {"a": lambda x: 16 / x, "b": lambda x: 8 / x**0.5}
    return [row(times[p](x), cell__planner=p, **{X: x}) for p in "ab" for x in (1e0, 2e0, 8e0, 16e0)]


def test_two_power_laws_break_even_where_they_meet():
    (found,) = f.break_evens(curves(), X)
    assert found["value"] == pytest.approx(4)
    assert found["layer_time_s"] == pytest.approx(4)
    assert (found["below"], found["above"], found["axis"]) == ("b", "a", X)
    (fastest,) = f.fastest_changes(curves(), X)
    assert (fastest["value"], fastest["below"], fastest["above"]) == (pytest.approx(4), "b", "a")


def test_curves_that_only_touch_or_never_meet_do_not_break_even():
    rows = [row(t, cell__planner=p, **{X: x}) for p, times in {"a": (3, 2, 1), "b": (4, 2, 2)}.items()
            for x, t in zip((1.0, 2.0, 4.0), times, strict=True)]  # fmt: skip
    assert f.break_evens(rows, X) == []
    assert f.fastest_changes(rows, X) == []


def test_series_that_differ_in_two_choices_are_not_compared():
    times = {("a", "flat"): (1, 3), ("b", "pairs"): (3, 1)}
    rows = [row(t, cell__planner=p, cell__scheme=s, **{X: x})
            for (p, s), ts in times.items() for x, t in zip((1.0, 2.0), ts, strict=True)]  # fmt: skip
    assert f.break_evens(rows, X) == []
    (fastest,) = f.fastest_changes(rows, X)
    assert (fastest["below"], fastest["above"]) == ("a, flat", "b, pairs")


def test_without_curves_the_fastest_is_named_for_what_is_given():
    times = {("x", "a"): 2, ("x", "b"): 1, ("y", "a"): 4, ("y", "b"): 5}
    rows = [row(t, cell__homes=h, cell__planner=p) for (h, p), t in times.items()]
    assert [(w["cell.homes"], w["winner"], w["lead_pct"]) for w in f.findings(rows)] == [
        ("x", "b", pytest.approx(100)), ("y", "a", pytest.approx(25)),
    ]  # fmt: skip


def test_the_knee_is_where_more_copies_stop_to_pay():
    """Gains 0, 0.6, 0.9, 1 at 0, 2, 4, 8 redundant experts: 0.6 - 0.25 < 0.9 - 0.5; a worse point does not count."""
    gains = {0: 0, 2: 0.6, 4: 0.9, 6: 0.2, 8: 1}
    rows = [row(2 / (1 + gain), cell__slots_per_rank=2 + extra, slots_per_rank=2 + extra, redundant_experts=extra)
            for extra, gain in gains.items()]  # fmt: skip
    (knee,) = f.knees(rows)
    assert (knee["redundant_experts"], knee["slots_per_rank"]) == (4, 6)
    assert knee["gain_pct"] == pytest.approx(90)
    assert knee["most_gain_pct"] == pytest.approx(100)


def test_copies_that_bring_nothing_have_no_knee():
    rows = [row(1 - extra / 2000, cell__slots_per_rank=2 + extra, redundant_experts=extra) for extra in (0, 2, 4, 8)]
    assert f.knees(rows) == []


def test_the_best_ep_size_serves_most_tokens_per_gpu():
    """100 tokens through 2 layers of 1, 0.5 and 0.8 s: 50, 100 and 62.5 tokens a second."""
    rows = [row(t, cell__topology=f"n{r}", num_ranks=r) for r, t in {8: 1.0, 16: 0.5, 32: 0.8}.items()]
    (best,) = f.best_ep_sizes(rows)
    assert (best["ep_size"], best["tokens_per_s_per_gpu"]) == (16, 100)
    assert "differ" not in best["text"]
    rows[2]["tokens_per_rank"] = 50.0
    assert "batches differ: 50 to 100" in f.best_ep_sizes(rows)[0]["text"]


@pytest.mark.parametrize(
    ("fit", "held_out", "lost"), [(1.5, 1.25, 50), (1.5, 1.5, 0), (1.2, 0.9, 150), (1.001, 0.9, None)]
)
def test_a_shift_of_domain_loses_a_share_of_the_gain(fit, held_out, lost):
    rows = [
        row(1, **{DOMAINS: d, "fit_speedup_over_linear": fit, "speedup_over_linear": held_out}) for d in ("[a]", "[b]")
    ]
    assert [shift["gain_lost_pct"] for shift in f.domain_shifts(rows)] == [
        pytest.approx(lost) if lost is not None else None
    ] * 2


def test_a_constant_that_makes_another_planner_win_is_named():
    """As configured a < b < c; halved b < a < c: one pair of three changes places, and a costs 25 % more than b."""
    times = {None: (1, 2, 3), "x*0.5": (2.5, 2, 3), "x*2": (1, 2.0001, 2)}
    rows = [row(t, cell__scaled=s, cell__planner=p) for s, ts in times.items() for p, t in zip("abc", ts, strict=True)]
    halved, doubled = f.sensitivities(rows)
    assert (halved["winner"], halved["winner_before"], halved["pairs_flipped"]) == ("b", "a", 1)
    assert halved["regret_pct"] == pytest.approx(25)
    assert halved["order"] == "b < a < c"
    assert (doubled["winner_changes"], doubled["pairs_flipped"]) == (False, 0)


STUDIES = {
    "time_against_inter_bytes_per_s": curves(),
    "redundancy": [
        row(2 / (1 + e), cell__slots_per_rank=2 + e, cell__planner=p, redundant_experts=e)
        for p in "ab" for e in (0, 2, 4)
    ],
    "ep_size": [row(1 / r, cell__topology=f"n{r}", num_ranks=r, cell__scheme=s) for r in (8, 16) for s in "fh"],
    "domain_shift": [
        row(1, **{DOMAINS: d, "cell.planner": p, "fit_speedup_over_linear": 1.5, "speedup_over_linear": 1.2})
        for d in ("[a]", "[b]") for p in "ab"
    ],
    "sensitivity": [row(1 + len(p), cell__scaled=s, cell__planner=p) for s in (None, "x*2") for p in ("a", "bb")],
    "times": [row(1 + len(p), cell__homes=h, cell__planner=p) for h in ("balanced", "random") for p in ("a", "bb")],
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_the_axes_choose_the_figure_and_it_says_what_nobody_measured(name, tmp_path):
    rows = [{**r, "synthetic": True, "assumed": "speed of light"} for r in STUDIES[name]]
    assert draw_study(tmp_path, rows, f.findings(rows)) == [name]
    assert (tmp_path / f"{name}.png").stat().st_size > 5000
    text = (tmp_path / f"{name}.svg").read_text()
    assert "SYNTHETIC trace" in text
    assert "assumed, no measurement: pair: speed of light" in text


def test_more_panels_than_fit_are_counted(tmp_path):
    rows = [row(t, **{X: x, "cell.seed2": n, "cell.planner": p, "cell.scheme": s})
            for n in range(12) for p in "ab" for s in "fh" for x, t in ((1.0, 2.0), (2.0, 1.0))]  # fmt: skip
    rows = [{**r, "cell.seed2": f"s{r['cell.seed2']}"} for r in rows]
    draw_study(tmp_path, rows, [])
    assert "the first 9 of 12 panels" in (tmp_path / "time_against_inter_bytes_per_s.svg").read_text()
