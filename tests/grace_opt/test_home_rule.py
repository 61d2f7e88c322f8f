"""Requests are dealt onto ranks by what their first tokens cost there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace_opt.home_rule import HomeRule, deal, home_costs
from grace_opt.placement import Placement
from grace_opt.trace import Trace
from grace_opt.traffic import traffic

HALVES = Placement.from_lists([[[0, 1], [2, 3]]], 4)
ROW = HomeRule(None, between_s=1, inside_s=0.1, crowding_s=0)


def test_the_worked_example_of_the_module(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace([[[0, 1], [1, 0], [2, 3]]], lengths=[2, 1])
    assert home_costs(trace, HALVES, (1, 1), ROW).tolist() == [[0, 1], [1, 0]]
    assert deal(trace, home_costs(trace, HALVES, (1, 1), ROW), 0).homes.tolist() == [0, 1]  # type: ignore[union-attr]


def test_costs_by_hand_with_two_ranks_a_node(make_trace: Callable[..., Trace]) -> None:
    """Expert e on rank e of 2 x 2; experts 0, 1 and 3: on rank 0 a row to 1, one across to 2, from there one to 3."""
    placement = Placement.from_lists([[[0], [1], [2], [3]]], 4)
    costs_QR = home_costs(make_trace([[[0, 1, 3]]]), placement, (2, 2), ROW)
    assert costs_QR == pytest.approx(np.array([[1 + 0.2, 1 + 0.1, 1 + 0.2, 1 + 0.1]]))


def test_costs_are_means_over_tokens_and_layers(make_trace: Callable[..., Trace]) -> None:
    placement = Placement.from_lists([[[0, 1], [2, 3]], [[2, 3], [0, 1]]], 4)
    trace = make_trace([[[0, 1], [2, 3], [2, 3]], [[0, 1], [0, 2], [2, 3]]], lengths=[3])
    # rank 0 sends 0 + 1 + 1 rows in layer 0, 1 + 1 + 0 in layer 1; rank 1 sends 1 + 0 + 0 and 0 + 1 + 1
    assert home_costs(trace, placement, (1, 1), ROW) == pytest.approx(np.array([[4 / 6, 3 / 6]]))


def test_only_the_first_tokens_are_looked_at(make_trace: Callable[..., Trace]) -> None:
    ids = [[0, 1], [0, 1], [2, 3], [2, 3], [2, 3], [0, 1]]
    trace = make_trace([ids], lengths=[5, 1])  # the second has fewer than two
    first = home_costs(trace, HALVES, (1, 1), HomeRule(2, 1, 0, 0))
    assert first.tolist() == [[0, 1], [0, 1]]
    assert home_costs(trace, HALVES, (1, 1), HomeRule(3, 1, 0, 0)) == pytest.approx(np.array([[1 / 3, 2 / 3], [0, 1]]))
    changed = make_trace([[*ids[:2], [0, 2], [1, 2], [1, 3], ids[5]]], lengths=[5, 1])
    assert np.array_equal(home_costs(changed, HALVES, (1, 1), HomeRule(2, 1, 0, 0)), first)


@settings(max_examples=20)
@given(data=st.data(), first_tokens=st.none() | st.integers(1, 4))
def test_costs_are_those_of_the_exact_traffic(random_cases: Any, data: Any, first_tokens: int | None) -> None:
    """Every sequence alone, its first tokens at home on each rank."""
    case = data.draw(random_cases)
    trace, plan = (
        case.problem.trace,
        replace(case.plan, routing=replace(case.plan.routing, policy="cover", weights=None)),
    )
    costs_QR = home_costs(trace, plan.placement, plan.ranks_per_node, HomeRule(first_tokens, 3, 0.5, 0))
    for sequence in range(trace.num_sequences):
        one = trace.select(np.array([sequence]))
        one = replace(one, stops=np.minimum(one.stops, one.starts + (first_tokens or one.num_tokens)))
        for rank in range(plan.num_ranks):
            counts = traffic(replace(one, homes=np.array([rank])), plan)
            rows = 3 * counts.cross_node_rows("hierarchical") + 0.5 * counts.intra_node_rows("hierarchical")
            assert costs_QR[sequence, rank] == pytest.approx(rows.sum() / (one.lengths[0] * one.num_layers))


def test_without_crowding_only_affinity_counts(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace(np.zeros((1, 6, 2)))
    costs_QR = np.array([[1, 0, 1], [1, 0, 0], [2, 1, 3], [0, 0, 0], [1, 0, 1], [5, 4, 3]])
    assert deal(trace, costs_QR, 0).homes.tolist() == [1, 1, 1, 0, 1, 2]  # type: ignore[union-attr]


def test_much_crowding_balances_tokens_in_the_order_of_arrival(make_trace: Callable[..., Trace]) -> None:
    trace = make_trace(np.zeros((1, 15, 2)), lengths=[5, 2, 1, 3, 1, 3])
    costs_QR = np.tile([0, 0, 1.0], (6, 1))
    # tokens of ranks 0, 1, 2: 5 0 0, 5 2 0, 5 2 1, 5 2 4, 5 3 4, 5 6 4; ties to the cheaper, then to the lower rank
    assert deal(trace, costs_QR, 1e6).homes.tolist() == [0, 1, 2, 2, 1, 1]  # type: ignore[union-attr]


def test_crowding_weighs_affinity_against_balance(make_trace: Callable[..., Trace]) -> None:
    """The second request of 2 tokens finds 2 on rank 0: 4 against 2 tokens there, mean 2: 2 x crowding against 1 x."""
    trace, costs_QR = make_trace(np.zeros((1, 4, 2)), lengths=[2, 2]), np.array([[0, 1.0], [0, 1.0]])
    assert deal(trace, costs_QR, 0.9).homes.tolist() == [0, 0]  # type: ignore[union-attr]
    assert deal(trace, costs_QR, 1.1).homes.tolist() == [0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_tokens": 0}, "first_tokens must be at least 1, or null for all, got 0"),
        ({"between_s": -1.0}, "between_s must be a time in seconds, got -1.0"),
        ({"inside_s": float("nan")}, "inside_s must be a time in seconds, got nan"),
        ({"crowding_s": float("inf")}, "crowding_s must be a time in seconds, got inf"),
    ],
)
def test_a_rule_of_no_sense_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^home rule: {message}$"):
        HomeRule(**{"first_tokens": 32, "between_s": 1.0, "inside_s": 1.0, "crowding_s": 1.0, **change})
