"""The PDF: its fonts are inside, its tables go on over pages, and it is the same every time."""

import re
import sys
import zlib

import pytest
import report_sample as sample

from securefed.errors import ConfigError
from securefed.reports.blocks import (
    Bullets,
    Code,
    Definitions,
    Heading,
    Page,
    Paragraph,
    Picture,
    Run,
    Section,
    Table,
)
from securefed.reports.pdf.picture import Drawing
from securefed.reports.pdf.render import draw
from securefed.reports.pdf.text import Stretch, Style, Typesetter

fpdf = pytest.importorskip("fpdf")

WORDS = {
    "en": "A server that is curious learns the sum over the survivors, and nothing else.",
    "ja": "詮索するサーバーが知り得るのは、残ったクライアントの合計だけ（ほかは何もない）。",
}
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 50">'
    '<rect x="0" y="0" width="100" height="50" rx="2" fill="#eee"/>'
    '<g stroke="#0072B2" fill="none"><polyline points="0,50 50,10 100,0"/>'
    '<path d="M 0 50 C 20 0 80 0 100 0"/></g>'
    '<circle cx="50" cy="10" r="2" fill="#0072B2"/>'
    '<text x="50" y="45" font-size="6" text-anchor="middle">ROC 曲線</text>'
    '<text x="5" y="25" font-size="6" transform="rotate(-90 5 25)">TPR</text></svg>'
)


def line(text, **looks):
    return (Run(text, **looks),)


def table(rows, text="x"):
    cells = tuple(((line(f"row {i}"),), (line(text),)) for i in range(rows))
    return Table("Caption of the table", ("Head-one", "Head-two"), cells)


def page(*blocks, language="en"):
    first = Section("run", "First", (Paragraph(line(WORDS[language])),))
    parts = (first,), (Section("rest", "Rest", blocks),)
    return Page(language, "Title", *parts, numbers={sample.ledger(9): 1})


def document(*blocks, language="en"):
    return draw(page(*blocks, language=language), sample.report())


def streams(pdf):
    """The content of every page and object that is compressed."""
    found = []
    for match in re.finditer(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            found.append(zlib.decompress(match[1]))
        except zlib.error:
            found.append(match[1])
    return found


def pages(pdf):
    return len(re.findall(rb"/Type /Page\b", pdf))


class Recorder(Typesetter):
    """Writes down what is drawn, and on which page."""

    drawn: list[tuple[int, str]]

    def draw(self, line, x, baseline):
        Recorder.drawn.append(
            (self._pdf.page_no(), "".join(fragment.text for fragment in line.fragments))
        )
        assert 0.0 < x < 210.0
        assert x + line.width <= 210.0 - 17.0
        assert 0.0 < baseline < 297.0
        super().draw(line, x, baseline)


@pytest.fixture
def drawn(monkeypatch):
    Recorder.drawn = []
    monkeypatch.setattr("securefed.reports.pdf.sheet.Typesetter", Recorder)
    return Recorder.drawn


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_font_is_embedded_as_a_subset(language):
    pdf = document(Paragraph(line(WORDS["en"] + WORDS["ja"])), language=language)
    fonts = set(re.findall(rb"/FontName /([^\s/]+)", pdf))
    assert any(b"IPAexGothic" in name for name in fonts)
    assert all(re.match(rb"[A-Z]{6}\+", name) for name in fonts)
    assert len(re.findall(rb"/FontFile2 \d+ 0 R", pdf)) == len(fonts)
    assert b"/BaseFont /Helvetica" not in pdf
    assert len(pdf) < 200_000  # the Japanese font alone has 6 million bytes


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_same_report_gives_the_same_bytes_on_another_day(monkeypatch, language):
    blocks = (Paragraph(line(WORDS[language])), Picture(SVG, "alt", "caption", table(2)))
    once = document(*blocks, language=language)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    assert document(*blocks, language=language) == once


def test_it_says_what_it_is():
    pdf = document(language="ja")
    assert b"/Lang (ja)" in pdf
    assert b"D:20261129100500" in pdf
    assert b"/DisplayDocTitle true" in pdf
    assert pdf.count(b"/Type /Outlines") == 1


def test_a_time_that_is_none_is_refused():
    bad = sample.report().identity.model_copy(update={"closed": "yesterday"})
    with pytest.raises(ConfigError, match="closed = 'yesterday'"):
        draw(page(), sample.report(identity=bad))


def test_a_table_goes_on_over_pages_and_repeats_its_header(drawn):
    document(table(120, WORDS["en"]))
    heads = [number for number, text in drawn if text == "Head-one"]
    assert len(heads) == len(set(heads)) >= 3
    rows = [(number, text) for number, text in drawn if text.startswith("row ")]
    assert [text for _, text in rows] == [f"row {i}" for i in range(120)]
    assert {number for number, _ in rows} == set(heads)


def test_a_row_longer_than_a_page_is_divided_and_nothing_of_it_is_lost(drawn):
    words = [f"word-{i}-" for i in range(3000)]
    document(table(1, " ".join(words)))
    said = " ".join(text for _, text in drawn)
    assert all(word in said for word in words)
    assert len({number for number, text in drawn if "word-" in text}) > 2


def test_the_contents_name_the_page_of_every_section(drawn):
    document(*(Paragraph(line(WORDS["en"] * 20)) for _ in range(20)))
    contents = [text for number, text in drawn if number == 2]
    assert "Rest" in contents
    where = min(number for number, text in drawn if text == "Rest" and number != 2)
    assert contents[contents.index("Rest") - 1] == str(where) == "3"


def test_a_heading_does_not_stand_alone_at_the_foot_of_a_page(drawn):
    filling = [Paragraph(line(f"filling {i}")) for i in range(38)]
    for extra in (0, 3, 5):
        drawn.clear()
        more = [Paragraph(line("more")) for _ in range(extra)]
        document(*filling, *more, Heading("Alone?"), Picture(SVG, "alt", "Its caption", table(1)))
        at = {text: number for number, text in drawn}
        assert at["Alone?"] == at["Its caption"]


def test_every_kind_of_block_is_drawn(drawn):
    document(
        Paragraph(line("a paragraph"), note=True),
        Bullets((line("an item"),)),
        Definitions(((line("a name"), (line("a meaning"),)),)),
        Code("securefed verify demo"),
        Heading("a heading"),
        Picture(SVG, "alt", "a caption", table(1)),
        Paragraph((Run("refuted", badge="refuted"), Run("0.5", references=(sample.ledger(9),)))),
    )
    said = " ".join(text for _, text in drawn)
    for text in (
        "a paragraph",
        "an item",
        "a name",
        "a meaning",
        "securefed verify demo",
        "a heading",
        "a caption",
        "ROC 曲線",
        "TPR",
        "refuted",
    ):
        assert text in said


# Text


@pytest.fixture
def typesetter():
    pdf = fpdf.FPDF(unit="mm", format="A4")
    pdf.add_page()
    return Typesetter(pdf, "ja")


def broken(typesetter, text, width):
    lines = typesetter.lines([Stretch(text, Style(9.0))], width)
    assert all(line.width <= width + 1e-6 for line in lines)
    return ["".join(fragment.text for fragment in line.fragments) for line in lines]


def test_japanese_breaks_anywhere_but_before_a_closing_and_after_an_opening_mark(typesetter):
    for width in range(12, 60):
        lines = broken(typesetter, WORDS["ja"] * 3, float(width))
        assert "".join(lines) == WORDS["ja"] * 3
        assert not any(text[0] in "、。）」ー" for text in lines)
        assert not any(text[-1] in "（「" for text in lines)


def test_western_words_break_at_spaces_and_long_names_where_there_is_no_other_way(typesetter):
    assert broken(typesetter, "one two three", 9.0) == ["one", "two", "three"]
    name = "tests/secagg/test_pairwise.py::test_a_masked_input_is_uniform"
    lines = broken(typesetter, name, 40.0)
    assert "".join(lines) == name
    assert len(lines) > 1
    digest = "0123456789abcdef" * 4
    assert "".join(broken(typesetter, digest, 25.0)) == digest


def test_control_characters_and_unknown_letters_are_seen(typesetter):
    assert broken(typesetter, "a\x1b\u202eb\U000f0000", 60.0) == ["a\ufffd\ufffdb\ufffd"]


def test_nothing_gives_no_line(typesetter):
    assert broken(typesetter, "", 50.0) == broken(typesetter, " \n ", 50.0) == []


# What is refused


@pytest.mark.parametrize(
    ("svg", "says"),
    [
        ("<svg", "is not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><svg viewBox="0 0 1 1"/>', "document type"),
        ('<svg viewBox="0 0 1"/>', "viewBox"),
        ("<p/>", "viewBox"),
        ('<svg viewBox="0 0 9 9"><script/></svg>', "<script>"),
        ('<svg viewBox="0 0 9 9"><rect style="fill:red"/></svg>', "'style'"),
        ('<svg viewBox="0 0 9 9"><rect fill="url(#a)"/></svg>', "colour"),
        ('<svg viewBox="0 0 9 9"><path d="M 0 0 A 1 1"/></svg>', "path"),
        ('<svg viewBox="0 0 9 9"><path d="M 0"/></svg>', "lacks a number"),
        ('<svg viewBox="0 0 9 9"><g transform="scale(2)"/></svg>', "transform"),
        ('<svg viewBox="0 0 9 9"><line x1="a"/></svg>', "x1 = 'a'"),
        ('<svg viewBox="0 0 9 9"><text><a/></text></svg>', "<a> in <text>"),
    ],
)
def test_a_plot_with_what_would_not_be_drawn_is_refused(svg, says):
    pdf = fpdf.FPDF(unit="mm", format="A4")
    pdf.add_page()

    def draw_it():
        Drawing(svg).draw(pdf, Typesetter(pdf, "en"), 0.0, 0.0, 100.0)

    with pytest.raises(ConfigError, match=re.escape(says)):
        draw_it()


@pytest.mark.parametrize(("module", "says"), [("fpdf", "fpdf2"), ("matplotlib_fontja", "ipaexg")])
def test_without_the_extra_an_error_names_it(monkeypatch, module, says):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{says}.*\[reports\]"):
        document(language="ja")
