"""`securefed plan` says what a run would spend, and it is what the run then spends."""

import itertools
import json
from pathlib import Path

import pytest
from tiny import write_run

from securefed import Federation
from securefed.config import parse_config
from securefed.engines.hazards import hazards_of, signal_of
from securefed.engines.settings import Settings
from securefed.evidence.ledger import read_ledger

SIZES = dict.fromkeys((f"site-{n}" for n in range(6)), 80)


def row_of(out: str, what: str) -> str:
    """The second column of a table's row, its lines joined."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = [row for row in cells if len(row) == 2]
    start = next(n for n, (name, _) in enumerate(rows) if name == what)
    rest = itertools.takewhile(lambda row: not row[0], rows[start + 1 :])
    return " ".join(value for _, value in [rows[start], *rest])


def test_what_is_planned_is_what_is_spent(cli, tmp_path):
    privacy = {"noise_multiplier": None, "target_epsilon": 6.0}
    training = {"rounds": 1, "memory_gib": 4.0}
    path = write_run(tmp_path, training=training, privacy=privacy)
    code, out, err = cli("plan", path, "--out", "plan.json")
    assert code == 0, err
    assert not list(Path.cwd().glob("runs*"))
    assert "the least for target_epsilon = 6" in out
    assert "differential privacy for one window of 8 tokens, against the server" in out
    assert "Adjacency:" in out
    assert "Assumptions:" in out
    assert "client 0." in out or "a client " in out
    written = json.loads(Path("plan.json").read_text())["forecast"]
    code, _, err = cli("run", path, "--out", "out")
    assert code == 0, err
    (line,) = [line for line in Path("out/metrics.jsonl").read_text().splitlines()[1:]]
    spent = json.loads(line)
    assert written["bytes_up"] == spent["bytes_up"]
    assert written["bytes_down"] == spent["bytes_down"]
    closed = next(r for r in read_ledger(Path("out/ledger.jsonl")) if r.kind == "closed")
    assert written["guarantees"] == closed.body["guarantees"]
    assert written["memory"] > 2**26
    at, needed, least = written["micro_batch"], written["client_memory"], written["least_memory"]
    assert row_of(out, "examples at a time") == (
        f"{at}: {needed / 2**30:.2f} GiB at one client, foreseen from shapes "
        f"({least / 2**30:.2f} GiB for one at a time); training.memory_gib = 4"
    )
    assert at >= 1
    assert 700 * 2**20 < least <= needed < 4 * 2**30
    assert (least == needed) == (at == 1)
    assert set(written["seconds"]) == {"train", "encode", "mask"}


RANKS = [
    {"rank": 1, "clients": [f"site-{n}" for n in range(3)]},
    {"rank": 2, "clients": "others"},
]


def case(name: str, exact: bool, timed: bool, slow: bool = True, **sections):
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(sections, exact, timed, id=name, marks=marks)


@pytest.mark.parametrize(
    ("sections", "exact", "timed"),
    [
        case("bfv", False, True, aggregation={"kind": "bfv"}),
        case(
            "local",
            True,
            False,
            slow=False,
            privacy={"mechanism": "local", "update_clip_norm": 1.0, "expected_batch": 20},
        ),
        case("ranks", False, True, cohort={"ranks": RANKS}),
        case(
            "cyclic",
            True,
            True,
            privacy={"mechanism": "central", "sampling": "cyclic", "noise_bands": 2},
        ),
        case(
            "client",
            True,
            True,
            privacy={"unit": "client"},
            training={"local_steps": 1, "batch_size": 4},
        ),
    ],
)
def test_every_kind_of_run_is_foreseen(tmp_path, sections, exact, timed):
    found = Federation.from_config(write_run(tmp_path, **sections)).forecast()
    assert found.exact == exact
    assert (found.simulated_seconds is not None) == timed
    assert found.bytes_up > 0
    json.dumps(found.to_record(), allow_nan=False)


def test_wrong_data_and_a_wrong_model_are_said_before_anything_is_spent(cli, tmp_path):
    path = write_run(tmp_path, lora={"target_modules": ["k_prj"]})
    code, _, err = cli("plan", path)
    assert code == 2
    assert "lora.target_modules" in err
    assert "k_proj" in err


def test_documents_that_are_too_short_are_counted(cli, tmp_path):
    path = write_run(tmp_path, training={"rounds": 1})
    for file in (tmp_path / "data").glob("*.txt"):
        text = file.read_text()
        rows = [json.dumps({"text": words}) for words in (text, text, "w1 w2", "w3")]
        file.with_suffix(".jsonl").write_text("\n".join(rows))
        file.unlink()
    code, out, err = cli("plan", path)
    assert code == 0, err
    assert "note: data.window_tokens = 8: 12 of 18 training documents are shorter" in out


def settings(sizes=SIZES, dimension=1000, **sections) -> Settings:
    values = {
        "data": {"source": "data", "window_tokens": 8},
        "training": {"rounds": 3},
        "privacy": {"expected_batch": 60, "noise_multiplier": 0.8},
    }
    for name, section in sections.items():
        merged = values.get(name, {}) | section
        values[name] = {key: value for key, value in merged.items() if value is not None}
    return Settings(parse_config(values), sizes=sizes, dimension=dimension)


@pytest.mark.parametrize(
    ("sections", "stops", "said"),
    [
        ({"aggregation": {"kind": "plaintext"}}, True, ["sees every contribution", "'pairwise'"]),
        (
            {"privacy": {"mechanism": "none", "noise_multiplier": None}},
            True,
            ["UNPROTECTED", "'distributed'"],
        ),
        ({"privacy": {"noise_multiplier": 0.35}}, False, ["is above 10", "target_epsilon"]),
        ({"privacy": {"delta": 0.01}}, False, ["privacy.delta = 0.01", "480 examples"]),
        (
            {"budget": {"epsilon": 3.5}},
            False,
            ["budget.epsilon = 3.5", "2 of 3 rounds fit", "would end there"],
        ),
        ({"budget": {"epsilon": 0.5}}, True, ["0 of 3 rounds fit", "would not begin"]),
        (
            {"privacy": {"noise_multiplier": 40.0}},
            True,
            ["noise drowns the signal", "1,000 now", "privacy.expected_batch"],
        ),
        (
            {"privacy": {"noise_multiplier": 2.0}},
            False,
            ["noise will cost accuracy", "lora.rank"],
        ),
        ({"privacy": {"expected_batch": 3}}, False, ["a client draws 0.5 examples a round"]),
        ({"privacy": {"expected_batch": 300}}, False, ["more than half of them"]),
        ({"privacy": {"dropout_fraction": 0.0}}, False, ["of 6 clients none may fall silent"]),
        ({}, False, ["privacy.corrupt_fraction = 0.1: of 6 clients none may help the server"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_each_hazard_is_named_with_where_why_and_what_to_do(sections, stops, said):
    found = hazards_of(settings(**sections))
    assert any(
        hazard.stops == stops and all(words in hazard.text for words in said) for hazard in found
    ), found


def test_a_client_with_next_to_no_examples_is_named():
    found = hazards_of(settings(sizes=SIZES | {"site-2": 3}))
    assert any("site-2 train on fewer than 5 examples" in hazard.text for hazard in found)


def test_a_run_without_hazards_has_none():
    privacy = {"noise_multiplier": 1.0, "corrupt_fraction": 0.2}
    assert hazards_of(settings(dict.fromkeys(SIZES, 5000), 100, privacy=privacy)) == []


def test_the_signals_figure_is_noise_over_clip_and_batch():
    """sigma sqrt(d) / B, times what noise is more with nobody missing: sqrt(6 / 5) here."""
    found = signal_of(settings(privacy={"noise_multiplier": 1.0}))
    expected = (6 / 5) ** 0.5 * 1000**0.5 / 60
    assert found.ratio == pytest.approx(expected, rel=0.02)
    assert found.over_rounds == pytest.approx(found.ratio / 3**0.5)
