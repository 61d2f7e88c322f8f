"""A report of a study draws the plan of the cell it speaks of, from what the study kept, and plans nothing."""

import json
import shutil

import pytest

from analysis.html_report.command import report
from analysis.html_report.result_file import read_result
from analysis.html_report.studied import rebuild_cell
from analysis.html_report.subject import subject
from analysis.study import study
from analysis.study_cache import StudyCache
from grace_opt.configuration import CONF_DIR
from grace_opt.planners.eplb import Eplb

SAMPLE = CONF_DIR / "samples" / "sample.safetensors"
AXES = ["planner=linear,eplb", "slots_per_rank=18,20", "scheme=flat", "figures=false", "hydra/launcher=basic"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A study of a copy of the sample."""
    folder = tmp_path_factory.mktemp("kept")
    trace = folder / "trace.safetensors"
    trace.write_bytes(SAMPLE.read_bytes())
    study([*AXES, f"trace.path={trace}", f"output={folder}"])
    return folder


@pytest.fixture
def changed(kept, tmp_path):
    """(change of the configuration of every cell) -> a copy of the study with it."""

    def make(change):
        folder = tmp_path / "study"
        shutil.copytree(kept, folder)
        for path in (folder / "cells").iterdir():
            content = json.loads(path.read_text())
            change(content["config"])
            path.write_text(json.dumps(content))
        return folder

    return make


def test_the_cell_that_a_page_speaks_of_is_drawn_without_planning(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(Eplb, "__call__", lambda *_: pytest.fail("planned again"))
    result = read_result(str(kept))
    found = subject(result, "eplb").found
    drawn = rebuild_cell(result, found, [])
    assert (drawn.name, drawn.cost.scheme) == ("eplb", "flat")
    assert drawn.plan.placement.num_physical == 4 * found["cell.slots_per_rank"]
    assert drawn.cost.price(drawn.problem, drawn.counts).mean_s == found["layer_time_s"]
    page = report(str(kept), output=str(tmp_path / "page.html"), planner="eplb").read_text()
    slots = found["cell.slots_per_rank"]
    assert f"This is the cell of planner eplb, slots per rank {slots}." in page and 'id="affinity-map"' in page


def test_a_plan_of_dealt_slots_is_drawn_from_what_the_study_kept(tmp_path):
    short = ["planner.trials=40", "planner.num_tokens=400", "planner.num_maps=1", "planner.num_batches=2"]
    study(["planner=joint", *short, "deal_slots=true", *AXES[1:], f"output={tmp_path}"])
    found = subject(result := read_result(str(tmp_path)), None).found
    drawn = rebuild_cell(result, found, [])
    assert drawn.problem.dealt and drawn.plan.provenance["deal_slots"] is True
    assert drawn.cost.price(drawn.problem, drawn.counts).mean_s == found["layer_time_s"]


def test_a_trace_that_moved_is_given_by_a_person_and_must_be_the_same(changed):
    folder = changed(lambda config: config["trace"].update(path="moved.safetensors"))
    with pytest.warns(UserWarning, match=r"not those of cell .*: give what moved"):
        assert "affinity-map" not in report(str(folder)).read_text()
    assert "affinity-map" in report(str(folder), given=[f"trace.path={SAMPLE}"]).read_text()
    with pytest.raises(ValueError, match="not those of cell"):
        report(str(folder), given=[f"trace.path={SAMPLE}", "cost.scheme=pairs"])
    with pytest.raises(ValueError, match="given workload=decode: expected KEY=VALUE of what a cell has: model, topolo"):
        report(str(folder), given=["workload=decode"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda c: c["split"].update(_target_="os.system"),
            "holds _target_: os.system, which a report does not follow",
        ),
        (lambda c: c["split"].update(_target_="grace_opt.atomic.write_text_atomically"), "a report does not follow"),
        (lambda c: c["split"].update(_args_=["x"]), "holds _args_"),
        (lambda c: c["trace"].update(path="${oc.env:HOME}"), r"holds '\$\{oc.env:HOME\}'"),
        (lambda c: c["cost"].update(scheme="pairs"), "not those of cell"),
        (lambda c: c.update(trace=3), "trace must be"),
        (lambda c: c.pop("overlap"), "is no cell of a study"),
    ],
)
def test_a_cell_that_was_changed_is_not_followed(changed, change, said):
    with pytest.warns(UserWarning, match=said) as warned:
        assert "LEFT OUT" in report(str(changed(change))).read_text()
    assert "\n" not in str(warned[0].message)


def test_a_plan_or_a_cell_that_is_gone_is_missed_in_one_line(changed, monkeypatch):
    folder = changed(lambda config: None)
    monkeypatch.setattr(StudyCache, "solve", lambda *_: pytest.fail("planned again"))
    shutil.rmtree(folder / "cache")
    with pytest.warns(UserWarning, match=r"no longer has the plan of cell \w+: run the study again"):
        report(str(folder))
    shutil.rmtree(folder / "cells")
    with pytest.warns(UserWarning, match="left out: .*No such file"):
        report(str(folder))
    content = json.loads((folder / "result.json").read_text())
    for row in content["rows"]:
        row["cell"] = "../../plan"
    (folder / "result.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="has no cell: run the study again"):
        report(str(folder))
