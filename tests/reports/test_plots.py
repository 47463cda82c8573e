"""Plots show the figures, say what is void by more than a colour, and hold no markup of a text."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import report_sample as sample

from securefed.reports.attack_plots import dp_bound
from securefed.reports.document import Curve
from securefed.reports.plots import bars, by_round, heat_map, lifts, roc
from securefed.reports.svg import Drawing, text_width, wrapped
from securefed.reports.values import Figure
from securefed.reports.wording import Wording

WORD = Wording("en")
NS = "{http://www.w3.org/2000/svg}"


def lift(value, low, high):
    return Figure(value=value, kind="figure", interval=(low, high))


def root(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in root(svg).iter(f"{NS}text")]


def test_texts_are_escaped_and_numbers_are_short():
    drawing = Drawing(10, 10, 'a "label" <b>')
    drawing.text((1 / 3, 2), "<script>&", size=10)
    drawing.line((0, 0), (-0.001, 1))
    svg = drawing.svg()
    assert "<script>" not in svg
    assert 'x="0.33"' in svg
    assert 'x2="0"' in svg
    assert root(svg).attrib["aria-label"] == 'a "label" <b>'
    assert "class=" not in svg
    assert "style=" not in svg


def test_lines_are_broken_at_spaces_and_japanese_where_it_may():
    assert wrapped("one two three", text_width("one two", 10), 10) == ["one two", "three"]
    lines = wrapped("台帳・実行フォルダー", 60, 10)
    assert "".join(lines) == "台帳・実行フォルダー"
    assert not any(line[0] in "ー・、。" for line in lines)
    assert wrapped("one two three four", 10, 10, most=2)[-1].endswith("…")


def test_the_heat_map_writes_lifts_and_hatches_what_is_void():
    rows = [
        sample.attack(attack="a", lift=lift(0.82, 0.7, 0.9), defence="off", exposure="plain"),
        sample.attack(attack="a", lift=lift(0.02, -0.1, 0.1), exposure="sum"),
        sample.attack(attack="b", verdict="void", exposure="sum"),
    ]
    svg = heat_map(rows, WORD)
    shown = texts(svg)
    assert {"+0.82", "+0.02", "[−0.10, +0.10]", "void"} <= set(shown)
    lines = len(re.findall("<line ", svg))
    assert lines > 5  # the hatching of the void cell alone
    assert len(re.findall("<line ", heat_map(rows[:2], WORD))) == 0


def test_the_curve_lies_under_the_bound_that_is_drawn_with_it():
    curve = Curve(
        file="f",
        attack="a",
        exposure="released",
        defence="noise",
        points=[(0.0, 0.0), (0.01, 0.02), (0.1, 0.15), (1.0, 1.0)],
        bound=(2.0, 1e-5),
    )
    svg = roc([curve], WORD)
    drawn = [
        [tuple(map(float, point.split(","))) for point in element.attrib["points"].split()]
        for element in root(svg).iter(f"{NS}polyline")
    ]
    guessing, bound, stairs = drawn
    for x, y in bound:  # pixels: up is less
        share = 0.01 ** (1.0 - (x - 58) / 330)
        expected = 16 + 300 * (1 - _log_share(dp_bound(share, 2.0, 1e-5)))
        assert y == pytest.approx(expected, abs=0.6)
    assert min(y for _, y in stairs) >= 16
    assert all(y >= _at(bound, x) - 0.7 for x, y in stairs)
    assert _at(guessing, 200) > _at(bound, 200)
    assert any("bound at epsilon 2.00, delta 10⁻⁵" in " ".join(texts(svg)) for _ in [0])


def _log_share(value: float) -> float:
    import math

    return 1 + math.log(max(value, 0.01)) / math.log(100)


def _at(line, x):
    for (x0, y0), (x1, y1) in pairwise(line):
        if x0 <= x <= x1 and x1 > x0:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return line[-1][1]


def test_lifts_stand_where_their_values_are_with_unlike_marks():
    on = sample.attack(lift=lift(0.25, 0.0, 0.5))
    off = sample.attack(lift=lift(0.75, 0.5, 1.0), defence="off")
    svg = lifts([(on, off), (on, None)], WORD)
    circles = [float(e.attrib["cx"]) for e in root(svg).iter(f"{NS}circle")]
    left, width = 250.0, 680.0 - 270.0
    assert circles[1:] == [pytest.approx(left + width * 0.4, abs=0.01)] * 2  # 0.25 of -0.25..1
    assert "no result" in texts(svg)


def test_quality_by_round_needs_no_round_that_was_not_measured():
    rows = sample.report().utility.rounds
    assert rows[0].perplexity.value is not None
    other = rows[0].model_copy(
        update={
            "round": Figure(value=6, kind="count"),
            "perplexity": Figure(value=12.0, kind="figure"),
        }
    )
    gap = rows[0].model_copy(update={"perplexity": Figure(value=None, kind="figure")})
    svg = by_round([rows[0], gap, other], "perplexity", WORD)
    assert len(list(root(svg).iter(f"{NS}circle"))) == 2
    assert {"21.5", "12"} <= set(texts(svg))


def test_bars_are_as_long_as_their_values():
    svg = bars([("up", 50.0, "50 B"), ("down", 200.0, "200 B")], WORD)
    widths = [float(e.attrib["width"]) for e in root(svg).iter(f"{NS}rect")]
    assert widths[1] == pytest.approx(4 * widths[0], rel=1e-3)
