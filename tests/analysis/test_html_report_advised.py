"""A report of an advice draws the plan that is advised, counted as the engine runs it, or says why it does not."""

import json
import shutil

import numpy as np
import pytest

from analysis.html_report.advised import advised, rebuild_advised
from analysis.html_report.command import report
from analysis.html_report.result_file import read_result
from analysis.html_report.subject import subject
from grace_opt.__main__ import main
from grace_opt.configuration import CONF_DIR
from grace_opt.trace_file import read_trace, write_trace

SAMPLE = CONF_DIR / "samples" / "sample.safetensors"
QUICK = ["~planners.joint", "redundancy=[1]", "resamples=0", "domains=0"]
FIGURES = ["affinity", "load-per-rank", "traffic-dispatch-across", "traffic-dispatch-inside", "timeline-of-layer"]
CHECKED = ("destination_ranks_per_token", "cross_node_bytes_per_token", "load_max_over_mean")
LEFT_OUT = "affinity, load, traffic and timeline are left out"


def advice(folder, *arguments):
    assert main(["advise", *QUICK, *arguments, f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """An advice on a copy of the sample, of GRACE, EPLB and the default."""
    folder = tmp_path_factory.mktemp("asked")
    trace = folder / "trace.safetensors"
    trace.write_bytes(SAMPLE.read_bytes())
    return advice(folder, f"trace.path={trace}")


@pytest.fixture
def recorded_decode(tmp_path):
    """The sample's first sequences as if they had been generated, each expert taken by the last but so many."""
    sample = read_trace(SAMPLE)
    tokens = np.concatenate([np.arange(a, b) for a, b in zip(sample.starts[:16], sample.stops[:16], strict=True)])
    path = tmp_path / "decode.safetensors"
    write_trace(
        path, expert_ids=63 - np.asarray(sample.expert_ids)[:, tokens], domain=np.zeros(len(tokens), int),
        sequence=np.repeat(np.arange(16), sample.lengths[:16]), domain_names=("all",), model=sample.model,
        num_experts=64, phase="decode", source="test",
    )  # fmt: skip
    return path


@pytest.fixture
def changed(asked, tmp_path):
    """(change of result.json's content) -> a folder with the plans and the changed result."""

    def make(change):
        content = json.loads((asked / "result.json").read_text())
        change(content)
        shutil.copytree(asked / "plans", tmp_path / "plans")
        (tmp_path / "result.json").write_text(json.dumps(content))
        return str(tmp_path)

    return make


def row(result, planner, phase="prefill"):
    return next(found for found in result.rows if (found["planner"], found["pass"]) == (planner, phase))


def test_the_advised_plan_is_drawn_and_the_page_says_so(asked, tmp_path, capsys):
    page = report(str(asked), output=str(tmp_path / "page.html")).read_text()
    assert all(f'id="{name}"' in page for name in FIGURES)
    assert "This is the plan that is advised: grace_trimmed, redundant experts per rank: 1" in page
    assert "drawn for prefill, in batches of at most 4,096 tokens of a rank, with copies picked as SGLang" in page
    assert "means over 4 ways in which requests may live on ranks" in page


def test_what_is_drawn_is_counted_as_the_advice_counted_it(asked):
    result = read_result(str(asked))
    for phase, tokens in (("prefill", 4096), ("decode", 128)):
        drawn = rebuild_advised(result, row(result, "grace_trimmed", phase), [])
        assert (drawn.name, drawn.cost.tokens_per_rank, drawn.plan.routing.policy) == ("grace_trimmed", tokens, "tar")
        in_order = drawn.in_order.placement.slots[0]
        assert np.array_equal(in_order.ravel(), np.arange(64))
        per_token = drawn.counts.num_tokens * drawn.problem.model.num_layers
        said = row(result, "grace_trimmed", phase)["destination_ranks_per_token"]
        assert drawn.counts.rank_visits.sum() / per_token == pytest.approx(said, rel=0.02)  # one of the homes


def test_the_planner_that_is_asked_for_is_drawn_and_one_without_a_plan_is_refused(asked, tmp_path):
    page = report(str(asked), output=str(tmp_path / "page.html"), planner="eplb", layer=3).read_text()
    assert "This is a plan that was tried: eplb, redundant experts per rank: 1" in page and "Layer 3, eplb" in page
    with pytest.raises(ValueError, match=r"planner=joint has no plan in this advice; those with one: grace_trimmed, "):
        report(str(asked), planner="joint")
    with pytest.raises(ValueError, match="layer=8 is no MoE layer of sample-moe"):
        report(str(asked), layer=8)


def test_where_nothing_is_advised_the_best_that_was_tried_is_drawn_under_the_engines_rule(tmp_path):
    folder = advice(tmp_path, "all_to_all=false", "plan_for=[decode]", "maps=1", "min_gain=0.9")
    result = read_result(str(folder))
    assert result.content["advice"]["verdict"] == "leave"
    found = advised(result)
    assert found["pass"] == "decode" and found["planner"] in ("eplb", "grace_trimmed")
    drawn = rebuild_advised(result, found, [])
    tokens_R = drawn.counts.tokens_of_rank.sum(axis=0)
    visits_RR = drawn.counts.rank_visits[0].sum(axis=0)
    assert np.array_equal(visits_RR, np.repeat(tokens_R[:, None], 4, axis=1))  # all tokens go to every rank
    page = report(str(folder)).read_text()
    assert "the best plan that was tried; none is advised" in page and "Every rank gets all tokens" in page


def test_plans_for_decode_are_drawn_on_the_recording_of_decode(tmp_path, recorded_decode):
    folder = advice(tmp_path / "out", f"decode_trace={recorded_decode}", "maps=1")
    result = read_result(str(folder))
    of_decode = next(f for f in result.rows if (f["planner"], f["pass"]) == ("linear", "decode"))
    drawn = rebuild_advised(result, of_decode, [])
    assert drawn.problem.trace.phase == "decode"
    assert rebuild_advised(result, advised(result), []).problem.trace.phase == "prefill"


def test_an_advice_that_was_cut_short_is_drawn_by_its_rows(changed):
    folder = changed(lambda content: content.update(advice=None, status="partial"))
    page = report(folder).read_text()
    found = subject(read_result(folder)).found
    assert f"This is a plan that was tried: {found['planner']}, " in page and 'id="planners-held_out"' in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: _all(c, destination_ranks_per_token=3.0), "its plan on this trace"),
        (lambda c: _all(c, load_max_over_mean=1.0), "its plan on this trace"),
        (lambda c: _all(c, **dict.fromkeys(CHECKED)), "has none of destination_ranks_per_token, cross_node_bytes"),
        (lambda c: _all(c, plan="../../plan.json"), "has no row"),
        (lambda c: c["problem"].update(engine="vllm"), "of engine 'vllm', the inputs here have"),
        (lambda c: c["made"]["arguments"].append("maps=1"), "its plan on this trace"),
        (lambda c: c["made"]["arguments"].append("+passes._target_=os.system"), "which a report does not follow"),
        (lambda c: c["made"]["arguments"].append("trace.path=moved.npz"), "moved.npz"),
        (lambda c: c.update(rows=[]), None),
    ],
)
def test_what_does_not_come_out_again_is_not_drawn_and_the_page_says_why(changed, change, said):
    folder = changed(change)
    if said is None:
        with pytest.raises(ValueError, match="there is nothing to report"):
            report(folder)
        return
    with pytest.warns(UserWarning, match=LEFT_OUT) as warned:
        page = report(folder).read_text()
    assert said in str(warned[0].message) and "\n" not in str(warned[0].message)
    assert "affinity-map" not in page and "LEFT OUT" in page


def test_a_trace_that_moved_is_given_by_a_person(changed):
    folder = changed(lambda content: content["made"]["arguments"].append("trace.path=moved.npz"))
    assert "affinity-map" in report(folder, given=[f"trace.path={SAMPLE}"]).read_text()


def _all(content, **fields):
    for row in content["rows"]:
        row.update(fields)
