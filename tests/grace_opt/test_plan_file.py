"""Plan files: what is written is read bit by bit, and everything else is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace_opt.home_rule import HomeRule
from grace_opt.plan import Plan
from grace_opt.plan_file import digest, read_plan, write_plan

RULE = {"first_tokens": 32, "between_s": 1e-3, "inside_s": 1e-4, "crowding_s": 1}


@pytest.fixture(scope="module")
def plan(make_plan: Callable[..., Plan]) -> Plan:
    """Two layers, replicas, unequal nodes, an empty slot, a rule for homes, numbers that no short decimal equals."""
    weights = np.array([[[0.1, 1 / 3], [1, 0], [2, 7]], [[1, 1], [1, 1], [np.pi, 0]]])
    plan = make_plan([[[0, 1], [2], [1, 3]], [[0, 1], [2, 3], [0]]], "wrr", weights, nodes=(1, 2))
    return replace(plan, provenance={"planner": "hand", "seed": 3}, homes=HomeRule(32, 1 / 3, 1e-7, 0))


@pytest.fixture
def path(plan: Plan, tmp_path: Path) -> Path:
    write_plan(tmp_path / "plan.json", plan)
    return tmp_path / "plan.json"


def equal(one: Plan, other: Plan) -> bool:
    weights = (one.routing.weights, other.routing.weights)
    return (
        (one.model, one.layer_ids, one.ranks_per_node) == (other.model, other.layer_ids, other.ranks_per_node)
        and np.array_equal(one.placement.slots, other.placement.slots)
        and one.placement.num_experts == other.placement.num_experts
        and one.routing.policy == other.routing.policy
        and one.homes == other.homes
        and ((weights[0] is weights[1] is None) or np.array_equal(*weights))  # type: ignore[arg-type]
    )


def test_what_is_written_is_read_bit_by_bit(plan: Plan, path: Path) -> None:
    assert equal(read_plan(path), plan)
    assert read_plan(path).provenance == {"planner": "hand", "seed": 3}


def test_a_plan_is_json_with_a_line_for_every_rank(path: Path) -> None:
    content = json.loads(path.read_text())
    assert {key: content[key] for key in ("format", "version", "model", "num_experts")} == {
        "format": "grace-plan", "version": 1, "model": "toy", "num_experts": 4
    }  # fmt: skip
    assert content["topology"] == {"num_nodes": 2, "ranks_per_node": [1, 2]}
    assert content["layers"][1] == {
        "layer": 1, "ranks": [[0, 1], [2, 3], [0]], "weights": [[1.0, 1.0], [1.0, 1.0], [np.pi]]
    }  # fmt: skip
    assert {"    [0, 1],", "    [2],", "    [1, 3]"} < set(path.read_text().splitlines())


@given(data=st.data())
def test_any_plan_is_read_as_written(tmp_path_factory, random_cases, data) -> None:  # type: ignore[no-untyped-def]
    plan = data.draw(random_cases).plan
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_plan(path, plan)
    assert equal(read_plan(path), plan)
    assert digest(read_plan(path)) == digest(plan) == json.loads(path.read_text())["digest"]


def test_the_digest_tells_decisions_apart_but_not_provenance(plan: Plan) -> None:
    assert digest(replace(plan, provenance={})) == digest(plan)
    routing = replace(plan.routing, weights=np.nextafter(plan.routing.weights, 0))  # type: ignore[arg-type]
    assert digest(replace(plan, routing=routing)) != digest(plan)
    assert digest(replace(plan, layer_ids=(1, 0))) != digest(plan)
    others = [None, *(replace(plan.homes, **change) for change in ({"first_tokens": None}, {"inside_s": 0.0}))]  # type: ignore[type-var]
    assert len({digest(replace(plan, homes=homes)) for homes in (plan.homes, *others)}) == 4


def test_a_plan_for_any_homes_says_nothing_of_them(plan: Plan, path: Path) -> None:
    assert json.loads(path.read_text())["homes"] == {
        "first_tokens": 32, "between_s": 1 / 3, "inside_s": 1e-7, "crowding_s": 0
    }  # fmt: skip
    for homes in (None, HomeRule(None, 0.0, 0.0, 2.5)):
        write_plan(path, replace(plan, homes=homes))
        assert ("homes" in json.loads(path.read_text())) == (homes is not None)
        assert read_plan(path).homes == homes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "grace-trace"}, "format must be 'grace-plan' version 1, got 'grace-trace' version 1"),
        ({"version": 2}, "got 'grace-plan' version 2"),
        ({"model": "other"}, "digest does not match the content; the file was edited or damaged"),
        ({"num_experts": 5}, "placement drops expert 4 in layer 0"),
        ({"num_experts": 10**12}, "6 slots for 1000000000000 experts"),
        ({"topology": {"num_nodes": 3, "ranks_per_node": [1, 2]}}, "whole number or 3 of them"),
        ({"topology": {"num_nodes": 2, "ranks_per_node": [1, 2.0]}}, "whole number or 2 of them"),
        ({"version": True}, "got 'grace-plan' version True"),
        ({"topology": {"num_nodes": 10**12, "ranks_per_node": 1}}, "from 1 to the 3 ranks, got 1000000000000"),
        ({"layers": []}, "layers must be a list with at least one layer"),
        ({"routing": {"policy": "best"}}, "routing policy must be one of"),
        ({"routing": {"policy": "uniform"}}, "uniform reads no weights"),
        ({"provenance": [1]}, "provenance must be an object"),
        ({"homes": None}, "homes must hold between_s, crowding_s, first_tokens, inside_s, got None"),
        ({"homes": {"first_tokens": 32}}, "homes must hold between_s, crowding_s, first_tokens, inside_s, got"),
        ({"homes": {**RULE, "first_tokens": 2.0}}, "homes must hold numbers, got"),
        ({"homes": {**RULE, "first_tokens": 0}}, "home rule: first_tokens must be at least 1"),
        ({"homes": {**RULE, "crowding_s": True}}, "homes must hold numbers, got"),
        ({"homes": {**RULE, "between_s": -1}}, "home rule: between_s must be a time in seconds, got -1"),
        ({"homes": RULE}, "digest"),
        ({"note": "unknown field"}, "digest"),
        ({"digest": "sha256:0"}, "digest"),
    ],
)
def test_an_edited_plan_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"plan.json: .*{message}"):
        read_plan(path)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"ranks": [[0, 1], [2], [1, 1]]}, "placement drops expert 3 in layer 1"),
        ({"ranks": [[0, 1], [2, 3]]}, "same number of ranks in every layer"),
        ({"ranks": [[0, 1], [2], [-1, 3]]}, r"layers\[1\].ranks must hold expert ids"),
        ({"ranks": [[0, 1], [2], [True, 3]]}, r"layers\[1\].ranks must hold expert ids"),
        ({"ranks": [[0, 1], 2, [3]]}, r"layers\[1\].ranks must be a list of lists"),
        ({"layer": 0}, "a layer occurs twice"),
        ({"layer": 1.5}, "must be an absolute layer id, got 1.5"),
        ({"weights": [[1, 1], [1], [1]]}, r"layers\[1\].weights\[1\] must hold one weight per expert"),
        ({"weights": [[1, 1], [1, 1], [0]]}, "positive on every filled slot"),
        ({"weights": [[1, 1], [1, 1], [3.14]]}, "digest"),
    ],
)
def test_an_edited_layer_is_refused(path: Path, layer: dict[str, Any], message: str) -> None:
    content = json.loads(path.read_text())
    content["layers"][1].update(layer)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"plan.json: .*{message}"):
        read_plan(path)


def test_every_change_of_any_value_is_refused(path: Path, damaged: Callable[[Any], Any]) -> None:
    def decisions(content: dict[str, Any]) -> str:
        return json.dumps({**content, "provenance": None}, sort_keys=True)  # 1, 1.0 and true differ

    content = json.loads(path.read_text())
    for what, changed in damaged(content):
        path.write_text(json.dumps(changed))
        if decisions(changed) == decisions(content) and isinstance(changed.get("provenance", {}), dict):
            read_plan(path)
            continue
        with pytest.raises(ValueError) as refusal:  # noqa: PT011 (any message, if it names the file)
            read_plan(path)
        assert str(path) in str(refusal.value), what


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "\xff", "[" * 100_000])
def test_what_is_no_plan_at_all_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="bad.json: "):
        read_plan(tmp_path / "bad.json")


def test_a_plan_cut_anywhere_is_refused(path: Path) -> None:
    text = path.read_text().rstrip()
    for length in range(0, len(text), 7):
        path.write_text(text[:length])
        with pytest.raises(ValueError, match=r"plan.json: truncated or no JSON"):
            read_plan(path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none.json does not exist: give plan=FILE"):
        read_plan(tmp_path / "none.json")


def test_an_interrupted_write_leaves_the_old_plan(plan: Plan, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(target: Path, text: str, **_: Any) -> None:
        target.write_bytes(text[:20].encode())
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", break_down)
    with pytest.raises(OSError, match="no space"):
        write_plan(path, replace(plan, model="new"))
    assert read_plan(path).model == "toy"
    assert list(path.parent.iterdir()) == [path]
