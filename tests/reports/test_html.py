"""One file, no script, every text escaped, and readable without a mouse, a screen or colours."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import report_sample as sample
from html_reading import Page

import securefed.reports.html as html_module
from securefed.reports import markdown, pdf
from securefed.reports.catalogue import LANGUAGES
from securefed.reports.html import render
from securefed.reports.values import Text, Verbatim

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}</svg>"


@pytest.fixture(scope="module", params=LANGUAGES)
def pages(request, drawn):
    text = drawn[request.param]
    return request.param, text, Page(text)


def test_it_is_one_file_without_script_that_loads_nothing(pages):
    _, text, page = pages
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("href", "src"):
            assert attributes.get(name, "#").startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for t, a in page.tags if "http-equiv" in a)
    assert "default-src 'none'" in policy


def test_every_text_of_a_run_is_escaped():
    hostile = Verbatim(verbatim=HOSTILE)
    base = sample.report()
    claim = sample.claim(HOSTILE).model_copy(update={"statement": Text(en=HOSTILE, ja=HOSTILE)})
    attack = sample.attack(
        file=HOSTILE,
        attack=HOSTILE,
        exposure=HOSTILE,
        defence=HOSTILE,
        metric=HOSTILE,
        reason=hostile,
        baseline=None,
    )
    curve = base.leakage.curves[0].model_copy(update={"attack": HOSTILE, "defence": HOSTILE})
    report = sample.report(
        identity=base.identity.model_copy(update={"name": HOSTILE, "model": HOSTILE}),
        threat_models=[sample.threat_model(f"TM-{HOSTILE}", [claim])],
        leakage=base.leakage.model_copy(update={"attacks": [attack], "curves": [curve]}),
        privacy=base.privacy.model_copy(update={"statements": [sample.statement(unit=hostile)]}),
        limitations=[hostile],
    )
    for language in LANGUAGES:
        text = render(report, language)
        assert "<script" not in text
        assert "<img" not in text
        assert "{{ 7*7 }}" in text
        assert text.count("&lt;script&gt;") > 10
        assert not {tag for tag, _ in Page(text).tags} & {"script", "img"}


def test_it_has_landmarks_a_skip_link_and_headings_in_order(pages):
    language, _, page = pages
    names = [tag for tag, _ in page.tags]
    assert names.count("main") == names.count("header") == names.count("h1") == 1
    assert {"nav", "footer"} <= set(names)
    assert ("html", {"lang": language}) in page.tags
    first_link = next(attributes for tag, attributes in page.tags if tag == "a")
    assert first_link == {"class": "skip", "href": "#main"}
    for before, after in pairwise(page.headings):
        assert after <= before + 1
    labelled = [attributes["aria-labelledby"] for tag, attributes in page.tags if tag == "section"]
    assert set(labelled) <= set(page.ids)
    assert len(labelled) == 14


def test_every_link_leads_somewhere_and_no_id_stands_twice(pages):
    _, _, page = pages
    assert len(page.ids) == len(set(page.ids))
    targets = {a["href"][1:] for t, a in page.tags if t == "a"}
    assert targets <= set(page.ids)


def test_tables_have_captions_and_scopes(pages):
    _, _, page = pages
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == names.count("caption") == names.count("thead")
    assert all(a.get("scope") in ("row", "col") for t, a in page.tags if t == "th")


def test_plots_are_sound_and_say_what_they_show(pages):
    _, text, _ = pages
    drawn = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(drawn) == 6  # flows, heat map, lifts, curves, quality, cost
    for each in drawn:
        root = ElementTree.fromstring(each)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert all(figure.count("<table") == 1 for figure in figures)
    assert len(figures) == len(drawn)


def test_the_same_report_gives_the_same_bytes(report, drawn):
    assert render(report, "en") == drawn["en"]
    assert drawn["en"] != drawn["ja"]


def test_verdicts_are_told_by_words_and_marks_not_by_colour_alone():
    style = (html_module._TEMPLATES / "report.css").read_text()
    marks = re.findall(r"\.badge\.(\w+)::before[^{]*\{ content: \"([^\"]+)\"", style)
    assert len({mark for _, mark in marks}) >= 7
    words = {word for word in re.findall(r"\.badge\.(\w+)", style)}
    assert {"verified", "refuted", "void", "stale", "unmet", "unanswered"} <= words


def test_colours_of_text_have_contrast_enough_for_everybody():
    style = (html_module._TEMPLATES / "report.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", style))
    for name in ("ink", "grey", "blue", "green", "red", "amber"):
        assert contrast(colours[name], "#ffffff") >= 4.5, name
        assert contrast(colours[name], colours["pale"]) >= 4.5, name


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, definitions of relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_what_cannot_be_seen_is_shown_by_a_mark_in_text_and_in_plots():
    hidden = "run\x00\x1b[31m\u202egnp\u2066.\ufeff\uffff"
    base = sample.report()
    attack = sample.attack(attack=hidden, defence=hidden, metric=hidden, baseline=None)
    curve = base.leakage.curves[0].model_copy(update={"attack": hidden, "defence": hidden})
    report = sample.report(
        identity=base.identity.model_copy(update={"name": hidden, "model": hidden}),
        leakage=base.leakage.model_copy(update={"attacks": [attack], "curves": [curve]}),
        limitations=[Verbatim(verbatim=hidden)],
    )
    for text in (render(report, "ja"), markdown.render(report, "ja")):
        assert not re.search("[\x00-\x08\x0e-\x1f\u202a-\u202e\u2066-\u2069\ufeff\uffff]", text)
        assert "\N{REPLACEMENT CHARACTER}" in text
    for each in re.findall(r"<svg .*?</svg>", render(report, "en"), re.DOTALL):
        ElementTree.fromstring(each)  # a control character is no XML
    assert pdf.render(report, "en").startswith(b"%PDF")
