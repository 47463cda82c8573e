import csv
import hashlib
import io
import math
import os
import re
import string
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from pilot_records import RUN, cost, full_pilot, guarantee, record, skipped, trial

from securefed.errors import ConfigError
from securefed.federation.costs import UnitCosts
from securefed.pilot import words as words_module
from securefed.pilot.page import page, write_page
from securefed.pilot.records import Quality
from securefed.pilot.tables import COLUMNS, trials_csv
from securefed.pilot.words import Gain, Words
from securefed.reports.catalogue import LANGUAGES

NOT_LOCAL = {"beats_local": False}
VOID = {"meta", "br", "path", "use", "rect", "line"}


class Parsed(HTMLParser):
    """Text, elements and attributes of a page; refuses elements that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.values, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.values += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def accuracy(**given):
    return trial(metric="accuracy", before=0.5, after=0.6, worst=(0.4, 0.35), **given)


def various(language):
    """Records that between them say all that can be said."""
    target = {"privacy.target_epsilon": 2.5}
    alone = trial("clients alone", "baseline", after=45.0, epsilon=None)
    seeds = [trial(), trial(seed=2, after=39.0, costs=cost(up=650_000.0)), skipped("base", "base")]
    unlike = full_pilot(
        run=RUN | {"data": {"source": "other"}, "lora": {"rank": 8}}, public=False, seeds=2
    )
    unlike = replace(
        unlike,
        machine={"cores": 64},
        software="older",
        trials=(*unlike.trials[:8], trial("gone", "sweep"), *unlike.trials[9:-3],
                trial("rank = 16", "sweep", after=48.0, epsilon=9.0), trial("rank = 16", "sweep")),
    )  # fmt: skip
    everything = {
        "least_improvement": 0.1,
        "share_of_full": 0.5,
        "epsilon": 3.0,
        "megabytes_per_round": 9.0,
        "client_seconds_per_round": 90.0,
        "memory_gib": 9.0,
        "cost": 900.0,
    }
    lacking = cost(seconds={}, memory=None, estimated=("values", "storage_bytes", "memory_bytes",
                   "server_seconds", "client_seconds", "bytes_up", "bytes_down"))  # fmt: skip
    timed = dict.fromkeys(UnitCosts.__dataclass_fields__, 1e-6)
    gain = NOT_LOCAL | {"least_improvement": 0.2}
    low = trial(after=46.0)

    def held(against, unit):
        said = guarantee(2.5, against) | {"unit": unit}
        return replace(trial(varied=target), guarantees=(said,))

    made = [
        (full_pilot(decision=everything), unlike),
        (full_pilot(decision=everything), full_pilot(prices={}, projection={"clients": 20})),
        (record(low, decision=gain), record(low, decision=gain)),
        (record(*seeds, units=timed, decision=NOT_LOCAL), None),
        (record(trial(costs=lacking, worst=None), decision=everything), None),
        (
            record(low, trial("a", "sweep", after=45.0, costs=lacking, worst=None), decision=gain),
            None,
        ),
        (record(trial(after=math.nan), low, decision=everything, public=False), None),
        (record(accuracy(epsilon=None), decision=gain), None),
        (record(accuracy(varied=target), accuracy(seed=2), decision=NOT_LOCAL), None),
        (
            record(replace(accuracy(), quality=Quality(metric="accuracy", before=0.5, after=0.4))),
            None,
        ),
        (
            record(
                trial(after=46.0, costs=cost(up=1.0, down=0.0), varied={"aggregation.kind": "bfv"}),
                trial("rank = 16", "sweep", after=30.0),
                decision=gain | {"megabytes_per_round": 0.5},
            ),
            None,
        ),
        (record(low, skipped("rank = 2"), decision=gain, sweep=SWEPT), None),
        (record(low, trial("a", "sweep", after=47.0), decision=gain, sweep=SWEPT), None),
        (record(trial(after=51.0), alone, decision={"epsilon": 1.0}), None),
        (record(low, alone, decision={"epsilon": 1.0}), None),
        (record(low, run=RUN | {"evaluation": {"figures": "histogram"}}), None),
        (
            record(
                low,
                trial("a", "sweep", after=51.0, epsilon=1.0, costs=cost(memory=1)),
                decision=NOT_LOCAL | {"epsilon": 2.0, "memory_gib": 0.5},
            ),
            None,
        ),
        (record(trial(), skipped("c", varied=target), decision=NOT_LOCAL | {"epsilon": 2.5}), None),
        (
            record(
                trial(epsilon=3.0),
                skipped("c", varied=target),
                decision=NOT_LOCAL | {"epsilon": 2.5},
            ),
            None,
        ),
        (record(replace(trial(), guarantees=()), decision=NOT_LOCAL), None),
        (record(held("fellow_client", "one user: all"), decision=NOT_LOCAL), None),
        (record(held("release", "one client's whole"), decision=NOT_LOCAL), None),
        (record(trial(clients=1), decision=NOT_LOCAL | {"megabytes_per_round": 2.0}), None),
        (record(skipped("base", "base")), None),
    ]
    return [
        (replace(now, config=dict(now.config) | {"language": language}), then) for now, then in made
    ]


SWEPT = {
    "rank": [2],
    "sharing": ["fedit"],
    "bits": [20],
    "epsilon": [1.0],
    "aggregation": ["bfv"],
}


class Recorded(dict):
    """A table of words that remembers what was asked of it."""

    def __init__(self, table):
        super().__init__(table)
        self.used = set()

    def __getitem__(self, key):
        self.used.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        return self[key] if key in self else default


@pytest.fixture(
    scope="module",
    params=["en", *(pytest.param(each, marks=pytest.mark.slow) for each in LANGUAGES[1:])],
)
def pages(request):
    """Language, pages and the keys of its words that they used."""
    table = Recorded(words_module._table(request.param))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words_module, "_table", lambda language: table)
        made = [page(now, previous=then) for now, then in various(request.param)]
    return request.param, made, table.used


def test_each_page_is_whole_and_needs_nothing_beside_itself(pages):
    language, texts, _ = pages
    for text in texts:
        parsed = Parsed(text)
        assert ("html", "lang", language) in parsed.values
        assert not {"script", "link", "img", "iframe", "object", "base"} & set(parsed.elements)
        for _, name, value in parsed.values:
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value.startswith("#")
        assert "url(http" not in text
        policy = next(v for tag, name, v in parsed.values if name == "content" and "default" in v)
        assert policy.startswith("default-src 'none'")
        identifiers = [value for _, name, value in parsed.values if name == "id"]
        assert len(identifiers) == len(set(identifiers))
        for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            ET.fromstring(svg)


def test_no_page_shows_a_gap_of_the_program_or_a_key(pages):
    language, texts, _ = pages
    keys = [key for key in Words(language).table if "." in key]
    for text in texts:
        shown = Parsed(text).text
        for bad in ("None", "nan", "NaN", "inf", "{", "}", "Undefined", "Said("):
            assert not re.search(rf"(?<![A-Za-z]){re.escape(bad)}(?![A-Za-z])", shown), bad
        assert not [key for key in keys if re.search(rf"(?<!\w){re.escape(key)}(?!\w)", shown)]


def test_no_epsilon_is_bare(pages):
    language, texts, _ = pages
    terms = {
        "en": r"(for|\(unit, δ and adversary are not recorded|in all: the sum over trials, each)",
        "ja": r"(（.*?(δ|記録なし)|全試行)",
    }[language]
    count = 0
    for text in texts:
        shown = Parsed(text).text
        for found in re.finditer("ε = [0-9.]+", shown.replace("\u00a0", " ")):
            after = shown.replace("\u00a0", " ")[found.end() : found.end() + 60]
            assert re.match(rf"\s?{terms}", after), after
            count += 1
    assert count > 50


def test_all_words_of_a_language_are_used(pages):
    language, _, used = pages
    assert words_module._table(language).keys() - used == set()


def test_both_languages_say_the_same_things_with_the_same_values():
    english, japanese = (words_module._table(language) for language in LANGUAGES)
    assert english.keys() == japanese.keys()

    def places(text):
        return sorted((name, kind) for _, name, kind, _ in string.Formatter().parse(text) if name)

    for key in english:
        assert places(english[key]) == places(japanese[key]), key
    # What has no word in it is the same in both; all else is in Japanese letters.
    for key in english:
        words = re.sub(r"\{[^}]*\}|ε|δ", "", english[key])
        if re.search("[A-Za-z]{2}", words):
            assert re.search(r"[\u3040-\u9fff]", japanese[key]), key
            assert japanese[key] != english[key]


def test_hostile_names_and_reasons_are_text():
    bad = "<script>alert(1)</script>\"'><img src=x onerror=y> {x} {{ 7*7 }} %s --> ]]>"
    made = record(
        trial(bad, "base", folder=f"runs/{bad}", why=bad),
        skipped(bad + "2", why=bad),
        decision=NOT_LOCAL | {"decides": bad, "epsilon": 1.0},
        run=RUN | {"data": {"source": bad}, "model": {"source": bad}},
        prices={"currency": "<b>&", "per_gb": 1.0},
    )
    made = replace(made, software=bad, machine={bad: bad})
    then = replace(made, run=RUN)
    text = page(made, previous=then)
    parsed = Parsed(text)
    assert "script" not in parsed.elements
    assert "img" not in parsed.elements
    assert "<b>" not in text
    assert "{{ 7*7 }}" in parsed.text
    assert "alert(1)" in parsed.text


def test_what_was_left_out_is_named_with_its_reason():
    text = Parsed(page(full_pilot())).text
    assert "16. sharing = fedit variation left out: it would not end within minutes = 30" in text
    assert "“sharing = fedit” with seed 1 was left out" in text


def test_pooled_training_has_no_clients_whose_time_could_be_missing():
    text = Parsed(page(full_pilot())).text
    assert "none: one party trains" in text
    assert "CPU time of clients" not in text


@pytest.mark.parametrize(("prices", "there"), [({"per_gb": 1.0}, True), ({}, False)])
def test_money_has_a_column_only_where_prices_were_given(prices, there):
    text = Parsed(page(full_pilot(prices=prices))).text
    for words in ("Money for a client and round", "More money", "Money for everything"):
        assert (words in text) == there
    assert ("no price was given" in text) != there


def test_a_pilot_like_the_one_before_says_what_is_unchanged():
    made = record(trial(), trial("rank = 2", "sweep"), decision=NOT_LOCAL)
    moved = replace(made, trials=(made.trials[0], trial("rank = 2", "sweep", after=41.0)))
    text = Parsed(page(made, previous=moved)).text
    assert "Data, run settings and machine are the same in both." in text
    assert "18.00 % lower perplexity → 20.00 % lower perplexity better" in text
    assert "Unchanged: “base”." in text


def test_the_verdict_stands_on_top_in_three_sentences_and_names_a_single_seed():
    text = page(full_pilot())
    box = re.search(r'<section class="verdict go">(.*?)</section>', text, re.DOTALL)
    assert box is not None
    assert box[1].count("<p>") == 4
    assert box[1].count("One seed: this verdict may turn on chance.") == 1
    assert "Go with “base”" in box[1]
    assert text.index("verdict go") < text.index("<table")


def test_the_same_record_gives_the_same_page_and_names_its_own_hash(tmp_path):
    made = full_pilot()
    paths = write_page(tmp_path, made, previous=None)
    assert [path.name for path in paths] == ["pilot.html", "pilot.csv"]
    text = paths[0].read_text(encoding="utf-8")
    assert text == page(made)
    assert hashlib.sha256(made.to_text().encode()).hexdigest() in text
    assert "securefed verify runs/01-base\n" in text
    assert "made up" in text  # the statements in full


def test_text_stands_out_from_the_page():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = re.search("<style>(.*?)</style>", page(record(skipped("base", "base"))), re.DOTALL)
    assert style is not None
    colours = re.findall(r"(?<![-\w])color: #([0-9a-f]{3,6})\b", style[1])
    assert len(colours) >= 4
    for colour in colours:
        full = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
        assert 1.05 / (luminance(full) + 0.05) >= 4.5, colour


def test_a_page_that_cannot_be_written_says_so(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        write_page(tmp_path / "nowhere", record(skipped("base", "base")), previous=None)


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_what_is_not_installed_is_named_with_how_to_install_it(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{module}.*\[reports\]"):
        page(record(trial()))


def test_a_guarantee_that_is_none_is_refused():
    made = replace(trial(), guarantees=({"against": "server", "epsilon": 2.5},))
    with pytest.raises(ConfigError, match="valid guarantee"):
        page(record(made))


def test_a_page_is_made_without_torch_and_is_the_same_in_another_process(tmp_path):
    program = """
import sys
from pathlib import Path
from securefed.pilot.page import write_page
from securefed.pilot.records import PilotRecord
folder = Path(sys.argv[1])
write_page(folder, PilotRecord.read(folder / "pilot.json"), previous=None)
print(*{name.partition(".")[0] for name in sys.modules})
"""
    made = full_pilot()
    (tmp_path / "pilot.json").write_text(made.to_text(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert "matplotlib" in loaded
    assert not loaded & {"torch", "transformers", "peft", "opacus", "flwr", "tenseal"}
    assert (tmp_path / "pilot.html").read_text(encoding="utf-8") == page(made)


# -- figures -------------------------------------------------------------------------------


def test_figures_are_written_for_people():
    words = Words("en")
    for value, kind, text in (
        (999.4, "bytes", "999\u00a0B"),
        (999_600, "bytes", "1\u00a0MB"),
        (1_234_567, "bytes", "1.23\u00a0MB"),
        (-5e9, "bytes", "−5\u00a0GB"),
        (0.00001234, "money", "0.0000123"),
        (1234.5, "money", "1,234"),
        (0.0, "money", "0"),
        (599.0, "seconds", "599\u00a0s"),
        (601.0, "seconds", "10\u00a0min"),
        (7200.0, "seconds", "2\u00a0h"),
        (1e-5, "probability", "10⁻⁵"),
        (2.5e-7, "probability", "2.5×10⁻⁷"),
        (2.1701, "epsilon", "2.18"),
        (0.25, "percent", "25\u00a0%"),
        (None, "bytes", "not measured"),
        (math.nan, "figure", "diverged"),
        (-math.inf, "figure", "diverged"),
    ):
        assert words.say(value, kind) == text
    assert words.say(Gain("perplexity", -0.021)) == "2.10\u00a0% higher perplexity"
    assert words.say(Gain("accuracy", 0.05)) == "5.00 points more accuracy"


def test_a_language_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="language = 'fr'"):
        Words("fr")


# -- the table -----------------------------------------------------------------------------


def rows(made):
    return list(csv.DictReader(io.StringIO(trials_csv(made))))


def test_the_table_has_a_line_a_trial_and_an_epsilon_never_stands_alone():
    found = rows(full_pilot())
    assert len(found) == 16
    assert tuple(found[0]) == COLUMNS
    base = found[0]
    assert base["improvement"].startswith("0.19999") or base["improvement"] == "0.2"
    assert (base["bytes_up"], base["bytes_down"]) == ("600000.0", "400000.0")
    assert (base["epsilon"], base["delta"], base["epsilon_against"]) == ("2.5", "1e-05", "server")
    assert base["epsilon_unit"].startswith("one example")
    assert base["on_front"] == "yes"
    assert found[-1]["status"] == "skipped"
    assert found[-1]["bytes_up"] == ""
    unknown = rows(record(replace(trial(), guarantees=())))[0]
    assert (unknown["delta"], unknown["epsilon_unit"]) == ("not recorded", "not recorded")


def test_no_cell_is_a_formula_or_no_number():
    made = trial("=1+1", "sweep", after=math.nan, why="@x", costs=cost(seconds={}, memory=None))
    row = rows(record(made))[0]
    assert (row["name"], row["why"]) == ("'=1+1", "'@x")
    assert row["after"] == row["improvement"] == row["client_cpu_seconds"] == ""
    assert "nan" not in trials_csv(record(made))
