"""A real run, attacked, judged and answered for: ``securefed threats``, ``securefed statement``."""

import datetime
import json
from pathlib import Path

import pytest
from ledgers import copy_run
from run_audits import run_file
from threat_files import ATTACK_EVIDENCE, LEDGER_EVIDENCE, TODAY, model, stored_tests

from securefed import Federation
from securefed.crypto.identity import IdentityKey
from securefed.engines import run_facts
from securefed.engines.run_facts import judge_run, threat_models_of
from securefed.engines.verify import verified_run
from securefed.evidence.anchoring import read_public_key
from securefed.evidence.signing import verify
from securefed.evidence.software import source_sha256
from securefed.threats.judging import judge_claim
from securefed.threats.statements import STATEMENT_TYPE as KIND
from securefed.threats.statements import Statement
from securefed.threats.verdicts import Judgement


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("threats")
    path = run_file(base, lora={"rank": 8}, training={"rounds": 1})
    return Federation.from_config(path).run(base / "out").folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return copy_run(finished, tmp_path / "run")


def facts_of(run: Path, trusted=()):
    return run_facts.run_facts(run, verified_run(run), trusted)


def attacked(cli, run: Path) -> None:
    options = ("--trials", "4", "--key", run.parent / "key.pem", "--out", run / "attacks")
    code, _, err = cli(
        "attack", "span-inversion-forced", "--view", "masked", "--config", run, *options
    )
    assert code == 0, err


FORCED = ATTACK_EVIDENCE | {"attack": "span-inversion-forced"}


def claim(*evidence):
    found = model(evidence=list(evidence))
    return found, found.claims[0]


def test_facts_are_those_of_the_ledger(run):
    facts = facts_of(run)
    assert facts.source_sha256 == source_sha256()
    assert facts.value("run.clients") == 6
    assert facts.value("run.rounds") == 1
    assert facts.value("privacy.mechanism") == "distributed"
    found = facts.ledger_value("closing.epsilon.server")
    line = (run / "ledger.jsonl").read_text().splitlines()[found.references[0].line - 1]
    closed = json.loads(line)
    assert closed["hash"] == found.references[0].sha256
    assert closed["body"]["guarantees"][0]["epsilon"] == pytest.approx(found.value)
    assert facts.ledger_value("witnesses.unsigned_rounds").value == 0.0
    assert facts.ledger_value("rounds.survivors.min").value == 6.0
    assert facts.ledger_value("rounds.survivor_floor").value == 5.0
    assert facts.ledger_value("openings.beyond_sums").value is None


def test_an_attack_on_this_very_run_counts_and_on_other_code_is_stale(run, cli, monkeypatch):
    attacked(cli, run)
    weak = ATTACK_EVIDENCE["baseline"] | {"expect": {"op": ">", "value": 0.0, "of": "lift_lower"}}
    accept = {"op": "<=", "value": 0.5, "of": "ci_upper"}
    found = claim(FORCED | {"baseline": weak, "accept": accept}, LEDGER_EVIDENCE)
    ledger_only = claim(LEDGER_EVIDENCE)
    facts = facts_of(run)
    judged = judge_claim(*found, facts, stored_tests(), today=TODAY)
    attack, epsilon = judged.evidence
    assert attack.verdict == "not_refuted", attack.reason
    assert attack.reason.endswith("the reader does not know the signer's key")
    assert attack.value is not None
    first = attack.references[0]
    assert (run / first.path).is_file()
    assert epsilon.verdict == judge_claim(*ledger_only, facts, stored_tests(), today=TODAY).verdict

    known = facts_of(run, [read_public_key(run / "attacks" / "signer.json")])
    judged = judge_claim(*found, known, stored_tests(), today=TODAY)
    assert "does not know" not in judged.evidence[0].reason

    strict = claim(
        FORCED
        | {
            "baseline": weak | {"expect": {"op": ">", "value": 1.0, "of": "ci_lower"}},
            "accept": accept,
        }
    )
    assert judge_claim(*strict, facts, stored_tests(), today=TODAY).verdict == "void"
    broken = claim(
        FORCED | {"baseline": weak, "accept": {"op": "<", "value": 0.0, "of": "ci_upper"}}
    )
    assert judge_claim(*broken, facts, stored_tests(), today=TODAY).verdict == "refuted"

    monkeypatch.setattr(run_facts, "source_sha256", lambda: "0" * 64)
    other = facts.__class__(**(vars(facts) | {"source_sha256": "0" * 64}))
    assert judge_claim(*found, other, stored_tests(), today=TODAY).evidence[0].verdict == "stale"


def test_a_result_that_was_edited_is_tampering(run, cli):
    attacked(cli, run)
    path = next(p for p in (run / "attacks").glob("*masked*.json"))
    envelope = json.loads(path.read_text())
    path.write_text(json.dumps(envelope | {"payload": envelope["payload"][:-4] + "AAAA"}))
    code, _, err = cli("threats", run)
    assert code == 1
    assert "TAMPERED" in err
    assert path.name in err


def test_threats_shows_what_is_open_first_and_writes_every_verdict(run, cli):
    code, out, err = cli("threats", run)
    assert (code, err) == (1, "")  # optional controls of this run are not set: void
    written = Judgement.model_validate_json((run / "threats" / "verdicts.json").read_text())
    claims = [c.id for each in threat_models_of(run) for c in each.claims]
    assert [found.claim for found in written.findings] == claims
    assert written.source_sha256 == source_sha256()
    rows = [line.split()[:2] for line in out.splitlines() if " C-" in line]
    assert sorted(row[1] for row in rows) == sorted(claims)
    assert rows[0][0] in ("refuted", "void")
    assert "verified" not in {row[0] for row in rows[:5]}
    by_claim = {found.claim: found for found in written.findings}
    assert by_claim["C-pinned-model"].verdict == "void"
    assert by_claim["C-lawful-basis"].verdict == "not_run"


def test_a_statement_is_signed_counts_and_is_of_this_run_alone(run, cli, tmp_path):
    asked = {
        item.manual: item
        for each in threat_models_of(run)
        for c in each.claims
        for item in c.evidence
        if c.id == "C-key-custody"
    }
    (item,) = asked.values()
    until = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=30)
    words = ("--text", "In a safe.", "--role", item.who.en, "--key", tmp_path / "dpo.pem")
    code, out, err = cli("statement", run, "C-key-custody", *words, "--expires", until)
    assert (code, err) == (0, "")
    assert item.asks.en in out
    assert (tmp_path / "dpo.pem").stat().st_mode & 0o777 == 0o600

    key = IdentityKey.load(tmp_path / "dpo.pem").public
    found = {f.claim: f for f in judge_run(run, verified_run(run), [key])[1].findings}
    assert found["C-key-custody"].verdict == "manual"
    late = datetime.datetime.combine(until, datetime.time(), datetime.UTC)
    after = judge_run(run, verified_run(run), now=late + datetime.timedelta(days=1))[1]
    assert {f.claim: f.verdict for f in after.findings}["C-key-custody"] == "stale"

    (path,) = (p for p in (run / "statements").iterdir() if p.name.startswith("C-"))
    said = Statement.model_validate(verify(json.loads(path.read_text()), [key], payload_type=KIND))
    elsewhere = said.model_copy(update={"run": "0" * 64})
    signed = elsewhere.signed(IdentityKey.load(tmp_path / "dpo.pem"))
    path.write_text(json.dumps(signed))
    verdicts = {f.claim: f.verdict for f in judge_run(run, verified_run(run))[1].findings}
    assert verdicts["C-key-custody"] == "not_run"


@pytest.mark.parametrize(
    ("claim_id", "options", "words"),
    [
        ("C-nothing", {}, ["C-nothing: there is no such claim", "C-key-custody"]),
        ("C-sum-only", {}, ["C-sum-only: asks nobody"]),
        ("C-key-custody", {"--role": "intern"}, ["--role 'intern'", "must name one of"]),
        ("C-key-custody", {"--expires": "tomorrow"}, ["'tomorrow'", "must be a date"]),
        ("C-key-custody", {"--expires": "2020-01-01"}, ["is over"]),
        ("C-key-custody", {"--text": " "}, ["--text is empty"]),
    ],
)
def test_a_statement_that_nobody_asked_for_is_refused(run, cli, claim_id, options, words, tmp_path):
    (who,) = [
        item.who.en
        for each in threat_models_of(run)
        for c in each.claims
        for item in c.evidence
        if c.id == "C-key-custody"
    ]
    given = {"--text": "Yes.", "--role": who, "--key": tmp_path / "dpo.pem"} | options
    code, _, err = cli("statement", run, claim_id, *(x for pair in given.items() for x in pair))
    assert code == 2
    assert all(word in err for word in words), err
    assert not (run / "statements").exists()
    assert not (tmp_path / "dpo.pem").exists()


def test_a_folder_that_holds_no_run_is_refused(cli, tmp_path):
    for command in (("threats", tmp_path), ("statement", tmp_path, "C-x", "--text", "a")):
        more = ("--role", "a", "--key", "k") if command[0] == "statement" else ()
        code, _, err = cli(*command, *more)
        assert code == 2
        assert "not a run folder" in err
