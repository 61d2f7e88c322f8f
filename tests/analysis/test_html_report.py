"""The page of a result: its numbers, its sections, its losses and warnings, and how it stands in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as Tree

import pytest

from analysis.html_report import page as page_module
from analysis.html_report.command import report
from analysis.results import write_result
from grace_opt.__main__ import main

STYLE = (Path(page_module.__file__).parent / "style.css").read_text()
VOID = ("meta", "link", "br", "img")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "<script>alert(1)</script>\" onload='x' \ud800\u202e"


class Reader(HTMLParser):
    """An element tree of a page."""

    def __init__(self, text):
        super().__init__()
        self.root = Tree.Element("document")
        self.open = [self.root]
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        element = Tree.SubElement(self.open[-1], tag, {name: value or "" for name, value in attributes})
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        place = self.open[-1]
        if len(place):
            place[-1].tail = (place[-1].tail or "") + data
        else:
            place.text = (place.text or "") + data


def read(path):
    return Reader(Path(path).read_text()).root


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def section_ids(root):
    return [section.get("id") for section in root.iter("section")]


def row(planner, split, seconds, **more):
    method = planner.capitalize()
    return {"planner": planner, "method": method, "split": split, "scheme": "flat", "layer_time_s": seconds, **more}


# results that are written by hand have no plans, and say so
pytestmark = pytest.mark.filterwarnings("ignore:affinity, load, traffic and timeline are left out")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A real comparison of the sample, one of its planners without a plan."""
    folder = tmp_path_factory.mktemp("compared")
    arguments = ["only=[linear,eplb,grace,grace_trimmed]", "slots_per_rank=20", "figures=false", f"output={folder}"]
    assert main(["compare", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def compared_page(compared):
    return report(str(compared))


@pytest.fixture
def made(tmp_path):
    """(rows, problem, command) -> the page of a result that was written by hand."""

    def make(rows, problem=None, command="compare", **more):
        write_result(tmp_path, command, {"model": "toy", "topology": "two", **(problem or {})}, rows, **more)
        return read(report(str(tmp_path)))

    return make


@pytest.fixture(scope="module")
def pages(compared, compared_page, tmp_path_factory):
    """name -> (page, result.json) of every kind of result."""
    made = {"compare": (compared_page, compared / "result.json")}
    for name, (rows, problem, extra) in RESULTS.items():
        folder = tmp_path_factory.mktemp(name)
        write_result(folder, name, problem, rows, extra=extra)
        made[name] = report(str(folder)), folder / "result.json"
    return made


KINDS = ["compare", "study", "front", "advise", "validate", "accuracy", "unknown"]


@pytest.fixture(params=KINDS)
def any_page(request, pages):
    return pages[request.param]


def cell(slots, planner, seconds, workload="prefill"):
    return {"kind": "cell", "cell.planner": planner, "cell.slots_per_rank": slots, "cell.workload": workload,
            "planner": planner, "slots_per_rank": slots, "status": "ok", "error": None, "layer_time_s": seconds,
            "memory_bytes_per_rank": slots * 1e9, "scheme": "flat"}  # fmt: skip


def run(planner, predicted, measured):
    return {"planner": planner, "scheme": "flat", "cluster": "here", "workload": "toy replayed",
            "tokens_per_rank_asked": 128, "predicted_s": predicted, "measured_s": measured}  # fmt: skip


RESULTS = {
    "study": (
        [*(cell(s, p, t / s, w) for s in (4, 6, 8) for p, t in (("linear", 2e-3), ("eplb", 1.5e-3))
           for w in ("prefill", "decode")),
         {"kind": "knee", "text": "knee at 6"}, {**cell(9, "grace", 1.0), "status": "error", "error": "no room"}],
        {"labels": ["toy on two, held out"], "synthetic": True}, None,
    ),
    "front": (
        [{**row(p, "held_out", 1e-3), "weight": w, "slots_per_rank": s, "rows_per_token": r,
          "load_max_over_mean": 2 - r, "memory_bytes_per_rank": 1e6 * s, "on_front": r < 0.9}
         for s in (4, 5) for p, w, r in (("linear", None, 1.0), ("joint", None, 0.8), ("joint", 0.5, 0.7))],
        {"model": "toy", "topology": "two", "num_nodes": 2}, None,
    ),
    "advise": (
        [row("linear", "held_out", 1e-3)], {"model": "toy", "topology": "two"},
        {"advice": {"verdict": "use", "engine_name": "SGLang",
                    "gain": {"mean": 0.1, "low": 0.05, "high": 0.2, "level": 0.9},
                    "gain_over_eplb": {"mean": -0.01, "low": None, "high": None},
                    "redundancy": {"chosen": 1, "bytes_per_rank": 2e6, "weights_bytes_per_rank": 3e9, "curve": [
                        {"per_rank": n, "planner": "joint", "gain": n / 10, "low": 0.0, "high": 0.3} for n in (0, 1)]},
                    "terms": {"prefill": {"default": {"layer_time_s": 0.1}, "advised": {
                        "layer_time_s": 0.09, "step_gain": {"mean": 0.04, "low": 0.03, "high": 0.05}}}},
                    "domain_shift": [{"domain": "law", "seen": 0.1, "unseen": -0.02}], "not_considered": ["weather"]}},
    ),
    "validate": ([run("linear", 2e-3, 2.2e-3), run("grace", 1e-3, 9e-4)], {"model": "toy", "topology": "here"}, None),
    "accuracy": ([{"data": "a", "protocol": "in_sample", "median_pct": 3.25, "mean_pct": 4.0, "p90_pct": 8.0,
                   "worst_pct": 9.0, "bias_pct": -1.0, "reached": False, "aim": "median 3", "note": ""}], {}, None),
    "unknown": ([{"what": "this", "step_s": 0.25, "list": [1, 2]}], {"nested": {"a": 1}}, {"more": [{"b": 2.5}]}),
}  # fmt: skip


def test_every_number_that_names_its_place_is_that_of_the_result_as_it_is_shown(any_page):
    page, result = any_page
    content, root = json.loads(result.read_text()), read(page)
    shown = [element for element in root.iter() if element.get("data-at")]
    assert shown
    for element in shown:
        value = content
        for part in element.get("data-at").split("/")[1:]:
            value = value[int(part)] if isinstance(value, list) else value[part]
        assert float(element.get("data-value")) == value
        text = re.match(r"-?[\d,]+(\.\d+)?", text_of(element))[0].replace(",", "")
        rounding = 0.5001 * 10.0 ** -len(text.partition(".")[2])
        assert float(text) == pytest.approx(value * float(element.get("data-factor")), abs=rounding)


def test_the_held_out_figure_of_every_planner_is_on_the_page(compared, compared_page):
    places = {element.get("data-at") for element in read(compared_page).iter()}
    rows = json.loads((compared / "result.json").read_text())["rows"]
    priced = [index for index, row in enumerate(rows) if "error" not in row]
    assert len(priced) == 6
    assert {f"/rows/{index}/layer_time_s" for index in priced} <= places


def test_a_comparison_has_all_sections_and_each_figure_a_name_a_caption_and_its_numbers(compared_page):
    root = read(compared_page)
    assert section_ids(root) == [
        "planners", "affinity-map", "load", "traffic", "timeline", "failed", "inputs", "rows",
    ]  # fmt: skip
    figures = [figure.get("id") for figure in root.iter("figure")]
    assert figures == ["planners-held_out", "planners-fit", "affinity", "load-per-rank", "traffic-dispatch-across",
                       "traffic-dispatch-inside", "timeline-of-layer"]  # fmt: skip


def test_pages_are_built_for_those_who_do_not_see_them(any_page):
    root = read(any_page[0])
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    page = root.find("html")
    assert page.get("lang") == "en" and len(list(root.iter("h1"))) == 1
    assert root.find("html/body/a").get("href") == "#main" and root.find(".//main").get("id") == "main"
    levels = [int(element.tag[1]) for element in root.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    for figure in root.iter("figure"):
        picture = figure.find("div[@role='img']")
        for kind in ("aria-labelledby", "aria-describedby"):
            assert text_of(root.find(f".//*[@id='{picture.get(kind)}']"))
        assert len(figure.findall("details//table//tr")) > 1
    for box in root.iter("div"):
        if box.get("class") == "scroll":
            assert box.get("tabindex") == "0" and box.get("role") == "region" and box.get("aria-label")
    for link in root.findall(".//nav//a"):
        assert link.get("href")[1:] in ids


def test_pages_load_nothing_and_run_nothing(any_page):
    text, root = any_page[0].read_text(), read(any_page[0])
    policy = root.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    for element in root.iter():
        assert element.tag not in ("script", "img", "iframe", "link", "object", "form")
        assert not {name for name in element.attrib if name.startswith("on") or name in ("src", "style", "action")}


def test_a_loss_is_said_plainly(made):
    root = made([row("linear", "held_out", 1e-3), row("grace", "held_out", 2e-3)], command="plan")
    assert "1.00 ms" not in text_of(root.find(".//p[@class='lead']"))
    root = made([row("grace", "held_out", 1.1e-3), row("linear", "held_out", 1e-3)], command="plan")
    said = text_of(root.find(".//p[@class='lead loss']"))
    assert (
        "grace is predicted to take 1.100 ms for a MoE layer on sequences it was not fitted to: 10.0 % slower than"
        in said
    )
    assert said.endswith("It loses: leave the experts in index order.")


def test_a_gain_is_told_against_linear_eplb_and_the_best_other_method(made):
    rows = [row("linear", "held_out", 4e-3), row("eplb", "held_out", 3e-3), row("exflow", "held_out", 2e-3),
            row("joint", "held_out", 1e-3), row("joint", "fit", 5e-4)]  # fmt: skip
    said = text_of(made(rows).find(".//p[@class='lead']"))
    assert said == (
        "joint is predicted to take 1.000 ms for a MoE layer on sequences it was not fitted to: 4.00 times as fast as "
        "linear, experts in index order (4.000 ms); 3.00 times as fast as eplb, the engines' own balancer (3.000 ms); "
        "2.00 times as fast as exflow, the best of other methods (2.000 ms)."
    )


def test_no_difference_is_no_gain(made):
    rows = [row("linear", "held_out", 1.001e-3), row("joint", "held_out", 1e-3)]
    assert "as fast as linear, experts in index order (1.001 ms), within 0.5 %" in text_of(made(rows).find(".//header"))


def test_an_advice_tells_what_is_saved_of_whole_passes_once(made):
    problem, advice = RESULTS["advise"][1], dict(RESULTS["advise"][2]["advice"])
    rows = RESULTS["advise"][0]
    told = "With all that surrounds the MoE layers it saves 4.0 % (3.0 to 5.0 %) of the time to first token."
    root = made(rows, problem, "advise", extra={"advice": advice})
    assert told in text_of(root.find(".//p[@class='lead']")) and text_of(root).count("With all that surrounds") == 1
    root = made(rows, problem, "advise", extra={"advice": advice | {"verdict": "leave", "why": "No."}})
    assert told.replace(" it ", " the best plan ") in text_of(root.find(".//section[@id='terms']"))
    assert "With all" not in text_of(root.find(".//p[@class='lead']"))
    alone = {"prefill": {"advised": {"layer_time_s": 0.09, "step_s": None}}}
    root = made(rows, problem, "advise", extra={"advice": advice | {"terms": alone}})
    assert "With all that surrounds" not in text_of(root)


def test_warnings_are_loud_and_absent_where_there_is_nothing_to_warn_of(made):
    rows = [row("linear", "held_out", 1e-3)]
    notes = made(rows, {"synthetic": True, "assumed": "a latency"}, complete=False).findall(".//p[@role='note']")
    assert [text_of(note).split(" ")[0] for note in notes[:3]] == ["SYNTHETIC", "PARTIAL", "ASSUMED"]
    assert notes[0].get("class") == "note loud"
    loud = [
        note for note in made(rows, {"synthetic": False}).findall(".//p[@role='note']") if "LEFT" not in text_of(note)
    ]
    assert loud == []


def test_a_certificate_is_shown_where_there_is_a_bound_and_not_where_there_is_none(made):
    rows = [row("joint", "fit", 2e-3, objective=2e-3, bound=1.6e-3, gap=0.25), row("joint", "held_out", 2.1e-3)]
    root = made(rows, command="plan")
    assert "The gap is 25.0 % of the bound" in text_of(root.find(".//figure[@id='gap']"))
    assert "certificate" not in section_ids(made([row("joint", "held_out", 2.1e-3)]))


def test_names_from_a_file_never_become_markup(made):
    rows = [row("linear", "held_out", 2.0), row(NASTY, "held_out", 1.0, **{NASTY: NASTY}),
            {"planner": NASTY, "error": NASTY}]  # fmt: skip
    problem = {"trace": NASTY, "model": NASTY, NASTY: {NASTY: NASTY}, "assumed": NASTY, "labels": [NASTY]}
    root = made(rows, problem)
    assert not list(root.iter("script"))
    assert not any("onload" in element.attrib for element in root.iter())
    assert text_of(root).count("<script>alert(1)</script>") > 5
    assert "\u202e" not in text_of(root)


def test_failed_planners_and_values_that_are_no_numbers_are_shown_as_such(made, tmp_path):
    rows = [row("linear", "held_out", 1e-3, load_max_over_mean=None), {"planner": "grace", "error": "wants more"}]
    line = made(rows).findall(".//section[@id='failed']//tbody/tr/*")
    assert [text_of(cell) for cell in line] == ["grace", "wants more"]
    content = json.loads((tmp_path / "result.json").read_text())
    for odd in (float("nan"), float("inf"), "fast", [1], {}, True, 10**400, None):
        content["rows"].append({**content["rows"][0], "planner": "odd", "layer_time_s": odd, "dispatch_s": odd})
    (tmp_path / "result.json").write_text(json.dumps(content))
    root = read(report(str(tmp_path)))
    assert "linear" in text_of(root.find(".//p[@class='lead']"))
    assert "nan" not in text_of(root.find(".//section[@id='planners']"))


def test_all_text_and_all_marks_stand_out_from_what_is_behind_them():
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", block))
                   for block in re.findall(r":root \{(.*?)\n\s*\}", STYLE, re.S)[:2])  # fmt: skip
    assert set(light) == set(dark)
    marks = ["one", "bound", "dispatch", "experts", "combine", "waiting", "part", *(f"series-{n}" for n in range(6))]
    for colours, above in ((light, "on-dark"), (dark, "on-light")):
        text = [(name, "page") for name in ("ink", "muted", "link", "on-one")]
        text += [("ink", "note-panel"), ("loud", "loud-panel")]
        colours = {**colours, "on-one": colours["one"]}
        below = "on-light" if above == "on-dark" else "on-dark"
        text += [(below if shade < 5 else above, f"shade-{shade}") for shade in range(8)]
        for ink, ground in text:
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for mark in marks:
            assert contrast(colours[mark], colours["page"]) >= 3, mark
        steps = [contrast(colours[f"shade-{shade}"], colours["page"]) for shade in range(8)]
        assert steps == sorted(steps)


def contrast(one, other):
    """Ratio of luminances as WCAG 2 defines it."""

    def luminance(colour):
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


PROBE = """<!DOCTYPE html>{}<pre id="told"></pre><script>
const size = e => {{ const box = e.getBoundingClientRect(); return Math.min(box.width, box.height); }};
const tell = frame => {{
  const it = frame.contentDocument, root = it.documentElement;
  const least = (figure, what) => Math.min(...[...figure.querySelectorAll(what)].map(size));
  const figures = [...it.querySelectorAll("figure")].map(f => [f.id, least(f, ".chart"), least(f, "[role=img]")]);
  const wide = [...it.querySelectorAll("body *")].filter(e => !e.closest(".scroll, .patterns, .skip, title, defs")
    && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
  return {{width: root.clientWidth, scroll: root.scrollWidth, figures, wide}};
}};
onload = () => {{
  document.getElementById("told").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(tell));
}};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_a_browser_shows_all_figures_without_errors_or_sideways_scrolling(pages, tmp_path):
    """Every page as on a phone, one as on a desk; all in one start of the browser."""
    shown = [(360, name) for name in KINDS] + [(1100, "compare")]
    frames = [
        f'<iframe src="{pages[name][0].as_uri()}" width="{width}" height="800"></iframe>' for width, name in shown
    ]
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format("".join(frames)))
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking",
         "--allow-file-access-from-files", "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1300,900", "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.S)[1]))
    for (width, name), page in zip(shown, told, strict=True):
        assert page["width"] <= width and page["scroll"] <= page["width"], name
        assert page["wide"] == [], name
        assert [figure for figure, *_ in page["figures"]] == [f.get("id") for f in read(pages[name][0]).iter("figure")]
        assert all(chart > 10 and picture > 20 for _, chart, picture in page["figures"]), page["figures"]
