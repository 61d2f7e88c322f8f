"""Published effects of EPLB beside predicted ones."""

import pytest

from analysis import placement_effects
from simulator.calibration.tables import MissingDataError, published_folder


def row(group: str, measured: float, predicted: float) -> dict:
    return {"group": group, "kind": "throughput", "measured": measured, "predicted": predicted}


def test_only_pairs_of_a_group_that_can_be_told_apart_are_in_an_order():
    rows = [row("a", 1.0, 1.0), row("a", 1.1, 1.2), row("a", 1.105, 1.15), row("b", 2.0, 0.5)]
    assert placement_effects.orders(rows) == (2, 2)


def test_signs_and_order_of_published_effects_are_predicted():
    try:
        published_folder()
    except MissingDataError as error:
        pytest.skip(str(error))
    rows = placement_effects.effects([])
    assert all(row["sign_right"] for row in rows if row["sign_right"] is not None)
    told, right = placement_effects.orders(rows)
    assert told > 5 and right == told


def test_without_the_published_tables_a_line_says_so(monkeypatch: pytest.MonkeyPatch):
    def absent() -> None:
        raise MissingDataError("no published tables")

    monkeypatch.setattr(placement_effects, "published_folder", absent)
    skipped: list[str] = []
    assert placement_effects.effects(skipped) == []
    assert skipped == ["effects of EPLB on whole engines: no published tables"]
