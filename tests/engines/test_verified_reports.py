"""A report that says anything else than the run gives: verify names the place."""

import json
from pathlib import Path

import pytest
from forging import forge, keys_of
from ledgers import copy_run
from tiny import write_run

from securefed import Federation
from securefed.cli.rebuilt import check_rebuilt
from securefed.engines.reported import REPORT, check_report
from securefed.engines.verify import VerifiedRun, verified_run, verify_run
from securefed.errors import LedgerTampered
from securefed.reports.build import build


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> Path:
    """A finished run with the report that follows from it."""
    from securefed.cli.reporting import material

    base = tmp_path_factory.mktemp("reported")
    run = Federation.from_config(write_run(base, training={"rounds": 1})).run(base / "out").folder
    write(run, json.loads(build(material(run, verified_run(run))).to_text()))
    return run


@pytest.fixture(scope="module")
def run(reported) -> VerifiedRun:
    return verified_run(reported)


@pytest.fixture
def copy(reported, tmp_path) -> Path:
    return copy_run(reported, tmp_path / "copy")


def write(run: Path, report: object) -> None:
    (run / REPORT).parent.mkdir(exist_ok=True)
    (run / REPORT).write_text(json.dumps(report), encoding="utf-8")


def edited(run: Path, pointer: str, value: object) -> None:
    """Change what stands at a JSON pointer of the report."""
    report = json.loads((run / REPORT).read_text(encoding="utf-8"))
    *above, last = pointer.split("/")[1:]
    place = report
    for part in above:
        place = place[int(part)] if isinstance(place, list) else place[part]
    last = int(last) if isinstance(place, list) else last
    assert place[last] != value
    place[last] = value
    write(run, report)


def test_a_report_that_follows_from_its_run_is_accepted_and_said_to_be_compared(reported, run, cli):
    assert check_report(reported, run) is False
    assert check_rebuilt(reported, run) == []
    code, out, err = cli("verify", reported)
    assert (code, err) == (0, "")
    assert "report/report.json: its run and its statements are those recomputed" in out
    assert "report/report.json" not in out.split("paths that no check covers")[1]


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("/privacy/statements/0/epsilon/value", 0.1),
        ("/privacy/statements/0/delta/value", 1e-12),
        ("/privacy/statements/0/rounds/value", 0),
        ("/privacy/statements/0/protected", False),
        ("/privacy/statements/0/against", "release"),
        ("/identity/head", "ab" * 32),
        ("/identity/genesis", "ab" * 32),
        ("/identity/records", 3),
        ("/identity/finished", False),
        ("/identity/weights", "ab" * 32),
        ("/identity/source_sha256", "ab" * 32),
    ],
)
def test_what_it_says_of_the_run_and_of_epsilon_is_compared_without_what_makes_reports(
    copy, run, pointer, value
):
    edited(copy, pointer, value)
    place = "/privacy/statements" if "against" in pointer else pointer.removesuffix("/value")
    with pytest.raises(LedgerTampered, match=rf"report\.json: {place}"):
        check_report(copy, run)


def test_verifying_a_run_compares_its_report_unless_it_is_told_not_to(copy):
    edited(copy, "/privacy/statements/0/epsilon/value", 0.1)
    with pytest.raises(LedgerTampered, match=r"statements/0/epsilon: says 0\.1, and \d"):
        verify_run(copy)
    assert verify_run(copy, report=False).finished


def claim_of(run: Path, verdict: str) -> tuple[str, str]:
    """Pointer of the first claim with this verdict, and of its threat model's name."""
    report = json.loads((run / REPORT).read_text(encoding="utf-8"))
    for number, model in enumerate(report["threat_models"]):
        for place, claim in enumerate(model["claims"]):
            if claim["verdict"] == verdict:
                return f"/threat_models/{number}/claims/{place}/verdict", claim["verdict"]
    pytest.fail(f"no claim is {verdict}")


def test_an_edited_verdict_is_named(copy, cli):
    pointer, _ = claim_of(copy, "not_run")
    edited(copy, pointer, "verified")
    code, _, err = cli("verify", copy)
    assert code == 1
    assert f'report.json: {pointer} is "verified", and what was recomputed is "not_run"' in err


@pytest.mark.parametrize("part", ["utility", "aggregation", "open_items", "limitations"])
def test_a_part_that_was_edited_anywhere_is_named(copy, run, part):
    report = json.loads((copy / REPORT).read_text(encoding="utf-8"))
    if part == "utility":
        report["utility"]["rounds"][1]["perplexity"]["value"] = 1.5
    elif part == "aggregation":
        report["aggregation"]["rounds"][0]["survivors"]["value"] = 60
    else:
        report[part] = report[part][1:]
    write(copy, report)
    with pytest.raises(LedgerTampered, match=r"perplexity|figure 1\.5|figure 60|/(open|limit)"):
        check_rebuilt(copy, run)


def test_a_report_of_another_shape_is_refused(copy, run):
    for text, words in [("{", "as JSON"), ("[]", "is no report"), ("{}", "/identity: is missing")]:
        (copy / REPORT).write_text(text)
        with pytest.raises(LedgerTampered, match=words):
            check_report(copy, run)
    write(copy, {"format": "securefed/report/1"})
    with pytest.raises(LedgerTampered, match=r"report\.json: /identity: is not as a report has it"):
        check_rebuilt(copy, run)


def test_anchoring_that_a_report_claims_is_checked_with_the_roster_alone(copy, cli):
    from securefed.cli.reporting import material

    roster = copy.with_name("copy.keys") / "roster.json"
    write(copy, json.loads(build(material(copy, verified_run(copy, roster))).to_text()))
    code, out, _ = cli("verify", copy, "--roster", roster)
    assert code == 0
    assert "verdict: verified; anchored" in out
    code, out, _ = cli("verify", copy)
    assert code == 3
    assert "the report says that its keys are anchored, and no roster was named" in out


def test_the_report_of_another_run_is_refused(copy):
    """The ledger is another one, written anew: its first record has another hash."""
    forge(copy, server=keys_of(copy), clients=keys_of(copy))
    with pytest.raises(LedgerTampered, match=r"report\.json: /identity/genesis: says"):
        verify_run(copy)
