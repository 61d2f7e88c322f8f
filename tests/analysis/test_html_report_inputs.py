"""A report draws a plan on the very inputs of its result only, follows no foreign instruction, refuses in one line."""

import json
from html import escape

import pytest

from analysis.html_report.command import report
from analysis.html_report.inputs import rebuild
from analysis.html_report.result_file import MOST_BYTES, read_result
from analysis.html_report.subject import subject
from analysis.results import write_result
from grace_opt.__main__ import main
from grace_opt.configuration import CONF_DIR

SAMPLE = CONF_DIR / "samples" / "sample.safetensors"


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan from a copy of the sample trace, by command line."""
    folder = tmp_path_factory.mktemp("planned")
    trace = folder / "trace.safetensors"
    trace.write_bytes(SAMPLE.read_bytes())
    assert main(["plan", "planner=eplb", f"trace.path={trace}", "slots_per_rank=20", f"output={folder}"]) == 0
    return folder


@pytest.fixture
def changed(planned, tmp_path):
    """(change of result.json's content) -> a folder with the plan and the changed result."""

    def make(change):
        content = json.loads((planned / "result.json").read_text())
        change(content)
        (tmp_path / "result.json").write_text(json.dumps(content))
        (tmp_path / "plan.json").write_text((planned / "plan.json").read_text())
        return str(tmp_path)

    return make


def argue(*arguments):
    return lambda content: content["made"].update(arguments=list(arguments))


def test_a_result_says_how_it_was_made(planned):
    made = json.loads((planned / "result.json").read_text())["made"]
    assert made["arguments"][:2] == ["planner=eplb", f"trace.path={planned}/trace.safetensors"]
    assert set(made) == {"arguments", "commit", "machine", "date"}


def test_outside_a_command_there_are_no_arguments(tmp_path):
    write_result(tmp_path, "plan", {}, [{"a": 1}])
    assert json.loads((tmp_path / "result.json").read_text())["made"]["arguments"] == []


def test_the_command_line_makes_the_inputs_again_and_traffic_is_that_of_the_row(planned):
    result = read_result(str(planned))
    about = subject(result)
    drawn = rebuild(result, about.found, [])
    per_token = drawn.counts.num_tokens * drawn.problem.model.num_layers
    assert (drawn.name, drawn.problem.trace.num_tokens) == ("eplb", result.problem["tokens"]["held_out"])
    assert drawn.counts.cross_node_rows("hierarchical").sum() / per_token == about.found["cross_node_rows_per_token"]
    assert drawn.cost.price(drawn.problem, drawn.counts).mean_s == about.found["layer_time_s"]


def test_a_report_needs_nothing_but_the_result(planned, capsys):
    assert main(["report", f"result={planned}"]) == 0
    assert "8 figures" in capsys.readouterr().out
    page = planned / "other.html"
    assert main(["report", f"result={planned}", "layer=3", f"output={page}"]) == 0
    assert "Layer 3, eplb" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace.path=nowhere.safetensors"], "nowhere.safetensors"),
        (["split=random"], "is about split 'Alternate()', the inputs here have 'Random(seed=0, fit_share=0.5)'"),
        (["model=olmoe_1b_7b"], "model"),
        (["topology=h100_ib_2x8"], "plan is for nodes of [2, 2] ranks"),
        (["scheme=flat"], "is about scheme 'hierarchical', the inputs here have 'flat'"),
        (["homes=random"], "is about homes 'Balanced()'"),
        (["nonsense.path=x"], None),
    ],
)
def test_other_inputs_are_not_drawn_and_the_page_says_why(changed, arguments, said):
    folder = changed(argue(*arguments))
    if said is None:  # no argument of inputs: left aside, and the default is what the plan was made from
        assert "affinity-map" in report(folder).read_text()
        return
    with pytest.warns(UserWarning, match="affinity, load, traffic and timeline are left out") as warned:
        page = report(folder).read_text()
    assert said in str(warned[0].message) and "\n" not in str(warned[0].message)
    assert "affinity-map" not in page and escape(said, quote=False) in page


@pytest.mark.parametrize(
    "argument",
    [
        "+trace._target_=os.system",
        "topology={_target_:os.system}",
        "trace.path=${oc.env:HOME}",
        "+model.x={_target_:builtins.exec}",
    ],
)
def test_a_result_cannot_make_a_report_run_code_or_tell_of_the_environment(changed, argument):
    with pytest.warns(UserWarning, match=r"made.arguments holds .*, which a report does not follow"):
        report(changed(argue(argument)))


def test_numbers_that_are_not_those_of_the_plan_are_not_drawn(changed):
    def change(content):
        content["rows"][1]["cross_node_rows_per_token"] += 1e-6

    with pytest.warns(UserWarning, match="trace, homes or plan are not those of the result"):
        report(changed(change))


def test_a_plan_outside_of_the_result_is_not_read(changed):
    def change(content):
        content["rows"][1]["plan"] = "../../plan.json"

    with pytest.warns(UserWarning, match="is not in the folder of the result"):
        report(changed(change))


def test_what_a_person_gives_takes_the_place_of_what_is_recorded_and_is_an_error_where_wrong(changed):
    folder = changed(argue("trace.path=moved.safetensors"))
    assert "affinity-map" in report(folder, given=[f"trace.path={SAMPLE}"]).read_text()
    changed(argue("trace.path=${oc.env:HOME}"))  # not followed, but no longer in the way
    assert "affinity-map" in report(folder, given=[f"trace.path={SAMPLE}"]).read_text()
    with pytest.raises(ValueError, match="is about split"):
        report(folder, given=[f"trace.path={SAMPLE}", "split=random"])
    with pytest.raises(ValueError, match="layer=8 is no MoE layer of sample-moe: it has 0 to 7"):
        report(changed(lambda content: None), layer=8)
    with pytest.raises(ValueError, match=r"planner=joint has no held-out row .*: eplb, linear"):
        report(folder, planner="joint")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "truncated or no JSON"),
        ("[" * 100_000, "truncated or no JSON"),
        ("[]", "it has no field `command`"),
        ('{"command": 3}', "it has no field `command`"),
        ('{"command": "plan", "version": "9.9.0", "rows": [{}]}', "written by grace-opt 9.9.0"),
        ('{"command": "plan", "version": [1]}', "written by grace-opt"),
        ('{"command": "plan"}', "rows must be a list with at least one object"),
        ('{"command": "plan", "rows": [1, "x"]}', "rows must be a list with at least one object"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path, text, said):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json") as error:
        report(str(tmp_path))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (SAMPLE.read_bytes()[:2000], "a binary file"),
        (b"\x89PNG\r\n\x1a\n", "a binary file"),
        (b"{\0\0\0\0\0\0\0{}", "a binary file"),  # 123 bytes of head, as safetensors counts them
        ("planner\u00e4,split\nlinear,fit\n".encode(), "text of another kind"),
    ],
    ids=["safetensors", "png", "brace", "csv"],
)
def test_a_file_of_another_kind_is_named_as_such(tmp_path, content, said):
    file = tmp_path / "trace.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"trace\.safetensors: expected the result\.json of a command") as error:
        report(str(file))
    assert str(error.value).endswith(f"this is {said}")


def test_a_huge_file_and_one_that_is_not_there_are_refused(tmp_path):
    with (tmp_path / "result.json").open("wb") as file:
        file.write(b"{" * 2000)
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(ValueError, match="a report reads up to 64"):
        report(str(tmp_path))
    for path in ("", str(tmp_path / "nothing")):
        with pytest.raises(ValueError, match="is no result.json and no folder that holds one"):
            report(path)


def test_only_a_report_is_replaced_by_a_report(planned, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my notes</p>")
    with pytest.raises(ValueError, match="exists and is no report of ours"):
        report(str(planned), output=str(mine))
    assert mine.read_text() == "<p>my notes</p>"
    with pytest.raises(ValueError, match=r"must name an \.html file"):
        report(str(planned), output=str(tmp_path / "page.json"))
    for _ in range(2):
        report(str(planned), output=str(tmp_path / "new.html"))


@pytest.mark.filterwarnings("ignore:affinity, load, traffic and timeline are left out")
@pytest.mark.parametrize("command", ["compare", "study", "front", "advise", "validate"])
def test_no_damage_to_a_result_ends_in_a_traceback(tmp_path, damaged, command):
    """Every value of a small result in turn replaced by odd ones, or left out."""
    (tmp_path / "result.json").write_text("{}")
    for what, content in damaged(SMALL[command]):
        content = {"command": command, "made": {"arguments": ["trace.path=${x}"]}, **content}
        (tmp_path / "result.json").write_text(json.dumps(content))
        try:
            report(str(tmp_path))
        except ValueError as error:
            told = str(error)
        else:
            told = ""
        assert "\n" not in told, what


PLANS = [
    {"planner": name, "method": name, "split": "held_out", "layer_time_s": time, "dispatch_s": time, "homes": "given"}
    for name, time in (("joint", 1e-3), ("linear", 2e-3))
]
SMALL = {
    "compare": {"problem": {"model": "m"}, "rows": [*PLANS, {**PLANS[0], "split": "fit", "objective": 1, "bound": 1}]},
    "study": {"rows": [{"kind": "cell", "cell": "0" * 32, "cell.slots_per_rank": n, "slots_per_rank": n,
                        "layer_time_s": 1 / n, "planner": "p", "memory_bytes_per_rank": n} for n in (4, 5)]},
    "front": {"rows": [{**PLANS[0], "slots_per_rank": n, "weight": 0.5, "rows_per_token": 1, "load_max_over_mean": 1,
                        "on_front": True} for n in (4, 5)]},
    "advise": {"rows": [{"a": 1}, {**PLANS[0], "pass": "prefill", "plan": "plans/p.json"}],
               "advice": {"verdict": "use", "gain": {"mean": 1, "low": 0, "high": 2, "level": 0.9},
               "plans": {"prefill": {"plan": "o/plans/p.json"}},
               "redundancy": {"chosen": 0, "bytes_per_rank": 1, "weights_bytes_per_rank": 1,
                              "curve": [{"per_rank": 0, "gain": 1, "low": 1, "high": 1}]},
               "terms": {"decode": {"default": {"step_s": 1}, "advised": {"step_gain": {"mean": 0.1, "low": 0}}}},
               "domain_shift": [{"seen": 1, "unseen": 1}], "notes": ["n"]}},
    "validate": {"rows": [{"planner": "p", "scheme": "s", "cluster": "c", "predicted_s": 1, "measured_s": 2}]},
}  # fmt: skip
