"""Pictures put things where their numbers say, and texts of any kind stay texts."""

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from analysis.html_report.bars import Bar, bars
from analysis.html_report.chart import Axis, pct, spanning
from analysis.html_report.curves import Series, curves
from analysis.html_report.elements import UNFIT, el, number, write
from analysis.html_report.heatmap import SHADES, heatmap
from analysis.html_report.lanes import lanes
from analysis.html_report.units import Unit, unit_of, words
from grace_opt.timeline import Timeline

PLAIN = Unit("", 1, 3)


def of_class(elements, name):
    return [found for element in elements for found in element.iter() if found.get("class") == name]


@given(st.text())
def test_any_text_and_attribute_is_read_back_as_a_text(text):
    seen = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            seen.append((tag, dict(attributes)))

        def handle_data(self, data):
            seen.append(data)

    markup = write(el("p", text, title=text))
    markup.encode()
    Reader().feed(markup)
    assert [entry[0] for entry in seen if isinstance(entry, tuple)] == ["p"]
    said = "".join(entry for entry in seen if isinstance(entry, str))
    assert said == UNFIT.sub("\ufffd", text) == seen[0][1]["title"]


def test_texts_between_elements_keep_their_places():
    assert write(el("p", "a", el("b", "c"), "d", None, ["e", el("i", "f")], "g")) == "<p>a<b>c</b>de<i>f</i>g</p>"


def test_what_rounds_to_nothing_has_no_sign():
    assert [Unit("%", 100.0, 1).with_name(value) for value in (-0.0004, -0.0, -0.0006)] == ["0.0 %", "0.0 %", "-0.1 %"]


@pytest.mark.parametrize(
    ("field", "values", "shown"),
    [
        ("layer_time_s", [0.0012319, 0.0005], ("1.232", "ms")),
        ("layer_time_s", [8.7e-5], ("87.00", "µs")),
        ("plan_s", [29.8], ("29.80", "s")),
        ("memory_bytes_per_rank", [9564320.0], ("9.564", "MB")),
        ("memory_bytes_per_rank", [21.5e9], ("21.50", "GB")),
        ("mean_pct", [3.62], ("3.6", "%")),
        ("slots", [100, 64], ("100", "")),
        ("load_max_over_mean", [1.0608622], ("1.061", "")),
        ("decode_tokens_per_s", [211835.2], ("211,835", "")),
        ("layer_time_s", [None, "x", float("nan")], ("–", "")),
    ],
)
def test_numbers_have_the_unit_of_their_field_and_four_digits(field, values, shown):
    unit = unit_of(field, values)
    element = number(values[0], unit)
    assert element.text == shown[0]
    if shown[0] != "–":
        assert (unit.name, element.get("data-value")) == (shown[1], repr(values[0]))


def test_fields_without_words_of_their_own_are_their_names():
    assert words("cell.split.fit_domains") == "split.fit domains"
    assert words("dispatch_s") == "dispatch"
    assert words("tokens_per_s") == "tokens per s"


@example(879609.9999999999, 1e-6)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_marks_are_round_few_and_inside(low, length):
    axis = Axis("x", low, low + length, PLAIN)
    if axis.high > axis.low:
        assert 2 <= len(axis.marks) <= 8
        rounding = 1e-6 + 4 * math.ulp(max(abs(axis.low), abs(axis.high))) / (axis.high - axis.low)
        assert all(-rounding <= axis.at(mark) <= 1 + rounding for mark in axis.marks)


def test_an_axis_puts_its_ends_at_the_ends_and_factors_at_equal_lengths():
    assert [Axis("x", 2, 4, PLAIN).at(value) for value in (2, 3, 4)] == [0, 0.5, 1]
    assert [Axis("x", 1, 100, PLAIN, True).at(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert spanning("x", [5.0, 5.0], PLAIN).low < 5 < spanning("x", [5.0, 5.0], PLAIN).high


def test_a_bar_is_as_long_as_its_parts_and_its_line_stands_at_its_value():
    drawn = bars([Bar("a", [("dispatch", 1.0), ("experts", 2.0)], "3", line=2.0)], Axis("s", 0, 4, PLAIN))
    assert [(r.get("class"), r.get("x"), r.get("width")) for r in drawn[0].iter("rect")] == [
        ("dispatch", "0%", "25%"), ("experts", "25%", "50%"),
    ]  # fmt: skip
    assert [line.get("x1") for line in of_class(drawn, "mark")] == ["50%"]


def test_a_matrix_has_every_cell_once_in_its_own_shade():
    random = np.random.default_rng(0)
    shades = random.integers(-1, SHADES, (13, 13))
    painted = np.full((13, 13), -1)
    for path in heatmap(shades, [0, 6], ["0", "1"]).iter("path"):
        if path.get("class").startswith("shade-"):
            for begin, line, wide, back in re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path.get("d")):
                cells = painted[int(line), int(begin) : int(begin) + int(wide)]
                assert (cells == -1).all() and wide == back
                cells[:] = int(path.get("class")[6:])
    assert (painted == shades).all()


def test_points_stand_where_their_values_are_and_rings_at_theirs():
    x, y = Axis("x", 0, 10, PLAIN), Axis("y", 0, 1, PLAIN)
    drawn = curves([Series("a", [(0, 0.0), (5, 1.0)], ringed=[1])], x, y)
    points = [(svg.get("x"), svg.get("y"), svg.find("circle") is not None)
              for element in drawn[1:] for svg in element.iter("svg") if svg.get("width") == "1"]  # fmt: skip
    assert points == [("0%", "300.0", False), ("50%", "0.0", True)]


def test_names_at_points_that_touch_are_left_out():
    x, y = Axis("x", 0, 10, PLAIN), Axis("y", 0, 1, PLAIN)
    near = Series("a", [(4.0, 0.5), (4.1, 0.5), (8.0, 0.5)], [0, 1, 2], ["one", "two", "three"], joined=False)
    assert [text.text for text in of_class(curves([near], x, y), "label middle")] == ["three"]


def test_a_lane_works_then_waits_until_the_slowest_is_done():
    steps = ("dispatch across", "dispatch inside", "experts")
    busy = np.array([[[[1.0, 2.0], [1.0, 0.0], [2.0, 1.0]]]])
    timeline = Timeline(steps, busy, np.array([[[2.0, 1.0, 2.0]]]), (7,))
    drawn = lanes(timeline, [0, 1], Axis("s", 0, 5, Unit("s", 1, 1)))
    spans = [(r.get("class"), r.get("x"), r.get("width"), r.get("y")) for r in drawn[1].iter("rect")]
    assert spans == [
        ("dispatch", "0%", "20%", "1"), ("waiting", "20%", "20%", "1"), ("dispatch", "0%", "40%", "27"),
        ("dispatch inside", "40%", "20%", "1"), ("waiting", "40%", "20%", "27"),
        ("experts", "60%", "40%", "1"), ("experts", "60%", "20%", "27"), ("waiting", "80%", "20%", "27"),
    ]  # fmt: skip
    assert len(of_class(drawn, "node")) == 1


def test_places_are_written_short():
    assert [pct(share) for share in (0, 1, 1 / 3, 0.5)] == ["0%", "100%", "33.333%", "50%"]
