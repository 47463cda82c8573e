"""Whole runs whose contributions are encrypted, and the decryptor's own ledger of them."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from ledgers import copy_run, rewrite
from tiny import write_run

from securefed import Federation
from securefed.engines import compare
from securefed.engines.cohort import SimulatedClient
from securefed.engines.events import Silent
from securefed.engines.openings import OPENINGS
from securefed.engines.settings import Settings
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, LedgerError, LedgerTampered
from securefed.evidence.ledger import read_ledger
from securefed.evidence.roster import read_roster
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encrypting import SumKey

DROPS = {
    "simulated_dropouts": [
        {"round": 2, "client": "site-1", "stage": "masked_input"},
        {"round": 2, "client": "site-4", "stage": "unmask"},
    ]
}
BFV = {"kind": "bfv"}
COHORT = {"kind": "bfv", "key_holder": "cohort"}
CKKS = {"kind": "ckks"}
MASKED = {"kind": "bfv", "masked": True}
FORMS = {"bfv": BFV, "cohort": COHORT, "ckks": CKKS, "masked": MASKED}


class Watcher(Silent):
    """Keeps messages, and how far each bar came."""

    def __init__(self):
        self.messages, self.events = [], []
        self.bars: dict[str, list[tuple[int, int]]] = {}

    def message(self, text):
        self.messages.append(text)

    def working(self, what, done, total):
        self.bars.setdefault(what, []).append((done, total))

    def round_end(self, event):
        self.events.append(event)


def run_of(base: Path, aggregation, watcher=None, **sections):
    sections = {"training": {"rounds": 2, "server_learning_rate": 0.1, "threads": 1}} | sections
    path = write_run(base, aggregation=aggregation, **sections)
    return Federation.from_config(path, observer=watcher)


@pytest.fixture(scope="module", params=FORMS)
def finished(request, tmp_path_factory):
    base, watcher = tmp_path_factory.mktemp(request.param), Watcher()
    result = run_of(base, FORMS[request.param], watcher, cohort=DROPS).run(base / "out")
    return result, watcher, FORMS[request.param]


@pytest.fixture(scope="module")
def decrypted(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("decrypted")
    return run_of(base, BFV).run(base / "out").folder


@pytest.fixture
def copy(decrypted, tmp_path) -> Path:
    return copy_run(decrypted, tmp_path / "copy")


# -- runs ----------------------------------------------------------------------------------


def test_an_encrypted_run_trains_verifies_and_says_what_it_rests_on(finished):
    result, watcher, section = finished
    assert [event.survivors for event in result.events] == [6, 6, 5]
    assert verify_run(result.folder).finished
    (told,) = [line for line in watcher.messages if line.startswith("aggregation: ")]
    assert section["kind"].upper() in told
    trust = result.guarantees["server"].trust
    assert ("every client holds the key" in trust) == (section is COHORT)
    assert ("the decryptor never does" in trust) == (section in (BFV, CKKS))
    genesis = read_ledger(result.folder / "ledger.jsonl")[0].body["privacy"]
    assert genesis["aggregation"] == section["kind"]
    assert genesis["key_holder"] == section.get("key_holder", "decryptor")
    assert genesis["masked"] is (section is MASKED)


def test_its_costs_are_those_of_the_ciphertexts_and_measured(finished):
    result, watcher, _ = finished
    costs = json.loads((result.folder / "costs.json").read_text())
    encryption, clients = costs["encryption"], 6
    size = encryption["bytes_per_contribution"]
    assert encryption["bytes_per_value"] == size / costs["trainable_parameters"]
    # Most of what a client sends; but one client of six sent nothing in one round of two.
    assert size * 11 / 12 < costs["bytes_up_per_client_and_round"] < 1.5 * size
    longest = max(event.seconds for event in result.events)
    for name in ("client_seconds_encrypting", "server_seconds_adding"):
        assert 1e-4 < encryption[name] < longest
    assert 1e-4 < encryption["key_holder_seconds_opening"] < longest
    assert ("decryptor" in costs) == (encryption["key_holder"] == "decryptor")
    if "decryptor" in costs:
        assert costs["decryptor"]["cpu_seconds"].keys() == {"encrypt"}
    total = encryption["ciphertexts_per_contribution"] * clients
    assert watcher.bars["encrypting"][:clients] == [(i + 1, total) for i in range(clients)]
    # Times stay out of what a run hands on.
    for line in (result.folder / "metrics.jsonl").read_text().splitlines():
        assert not any("seconds" in key for key in json.loads(line))


def test_a_run_without_encryption_has_no_such_costs_and_no_decryptor(tmp_path):
    result = run_of(tmp_path, {"kind": "pairwise"}, training={"rounds": 1}).run(tmp_path / "out")
    assert "encryption" not in json.loads((result.folder / "costs.json").read_text())
    assert not (result.folder / "decryptor").exists()


def test_only_survivors_that_were_asked_and_did_not_answer_fell_silent(finished):
    """All are asked to take masks off; some, to open with the cohort's key; else the decryptor."""
    result, _, section = finished
    assert result.events[2].note.startswith("1 dropped out")
    assert result.events[1].silent == 0
    expected = (1,) if section is MASKED else (0, 1) if section is COHORT else (0,)
    assert result.events[2].silent in expected


@pytest.mark.slow
def test_training_time_is_not_counted_as_encryption(tmp_path, monkeypatch):
    made = SimulatedClient.timed

    def slow(self, encode):
        def run(codec, generator):
            time.sleep(0.4)
            return encoded(codec, generator)

        encoded = made(self, encode)
        return run

    monkeypatch.setattr(SimulatedClient, "timed", slow)
    result = run_of(tmp_path, BFV, training={"rounds": 1}).run(tmp_path / "out")
    assert 0.0 < result.events[1].encrypting_seconds < 0.4
    assert result.events[1].seconds > 2.4


def test_figures_of_a_ckks_run_are_opened_from_bfv_by_the_same_decryptor(tmp_path, monkeypatch):
    seen = []
    made = Decryptor.__init__

    def noted(self, context, identity, **options):
        seen.append((context.encryption.scheme, context.roster["decryptor"].raw))
        made(self, context, identity, **options)

    monkeypatch.setattr(Decryptor, "__init__", noted)
    run_of(tmp_path, CKKS, training={"rounds": 1}).run(tmp_path / "out")
    assert [scheme for scheme, _ in seen] == ["bfv", "ckks", "bfv"]
    assert len({key for _, key in seen}) == 1


def test_a_ckks_run_is_compared_without_noise(tmp_path):
    federation = run_of(tmp_path, CKKS, training={"rounds": 1})
    federation.run(tmp_path / "out")
    assert compare.unprotected(federation, Silent()).clients == 6
    assert compare.clients_alone(federation, Silent()).clients == 6


def test_without_the_library_nothing_is_begun_and_a_run_still_verifies(
    decrypted, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(ConfigError, match="needs TenSEAL"):
        run_of(tmp_path, BFV).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert verify_run(decrypted).finished


# -- the decryptor's ledger ----------------------------------------------------------------


def test_the_decryptor_notes_each_sum_and_nothing_individual(decrypted):
    ledger = read_ledger(decrypted / "ledger.jsonl")
    sums = {r.body["session"]: r.body for r in ledger if r.kind in ("round_summed", "evaluated")}
    first, *noted = read_ledger(decrypted / OPENINGS)
    assert first.body == {"party": "decryptor", "privacy": ledger[0].body["privacy"]}
    assert [record.kind for record in noted] == ["opening"] * 4
    assert {record.body["session"] for record in noted} == sums.keys()
    for record in noted:
        assert record.body.keys() == {"round", "session", "survivors", "ciphertexts", "digest"}
        assert record.body["survivors"] == sums[record.body["session"]]["survivors"]
        assert len(bytes.fromhex(record.body["ciphertexts"])) == 32
    assert "decryptor" in ledger[0].body["roster"]
    (line,) = [line for line in verify_run(decrypted).lines if line.startswith("decryptor's")]
    assert "4 openings on record, one for each sum of the ledger (4)" in line


def test_an_opening_is_on_disk_before_the_sum_is_opened(tmp_path, monkeypatch):
    opened, counts = SumKey.open_ring, []

    def watched(self, ciphertexts, summands):
        counts.append(len(read_ledger(tmp_path / "out" / OPENINGS)) - 1)
        return opened(self, ciphertexts, summands)

    monkeypatch.setattr(SumKey, "open_ring", watched)
    run_of(tmp_path, BFV, training={"rounds": 1}).run(tmp_path / "out")
    assert counts == [1, 2, 3]


def test_a_sum_whose_opening_cannot_be_noted_is_not_opened(tmp_path, monkeypatch):
    def full(opened):
        raise LedgerError("openings.jsonl: could not be written")

    federation = run_of(tmp_path, BFV)
    with monkeypatch.context() as patch:
        patch.setattr("securefed.engines.parties.noting", lambda ledger: full)
        patch.setattr(SumKey, "open_ring", lambda *_: pytest.fail("opened"))
        with pytest.raises(LedgerError, match="could not be written"):
            federation.run(tmp_path / "out")
    assert len(read_ledger(tmp_path / "out" / OPENINGS)) == 1
    assert federation.run(tmp_path / "out", resume=True).rounds == 2
    assert verify_run(tmp_path / "out").finished


def test_a_run_killed_between_opening_and_sum_goes_on_and_verifies(tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    federation = run_of(tmp_path, BFV)
    with monkeypatch.context() as patch:
        patch.setattr(Settings, "unclipped_fraction", killed)
        with pytest.raises(KeyboardInterrupt):
            federation.run(tmp_path / "out")
    assert not verify_run(tmp_path / "out").finished
    result = federation.run(tmp_path / "out", resume=True)
    assert (result.rounds, result.charges) == (2, 3)
    verdict = verify_run(tmp_path / "out")
    (line,) = [line for line in verdict.lines if line.startswith("decryptor's")]
    assert "5 openings on record, one for each sum of the ledger (4)" in line
    # The decryptor goes on under the identity that the run was begun with.
    roster = read_roster(tmp_path / "out.keys" / "roster.json")
    assert read_ledger(tmp_path / "out/ledger.jsonl")[0].body["roster"] == roster.to_record()


def changed(at, **fields):
    def change(records):
        records[at] = (records[at][0], records[at][1] | fields)
        return records

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r[:-1], "lacks the opening of a sum of round 2"),
        (lambda r: [r[0], *r[2:]], "lacks the opening of a sum of round 0"),
        (lambda r: [*r, r[2]], "line 6: opens a second sum of one attempt at round 1"),
        (lambda r: changed(2, session="0" * 32)([*r]), "that was never begun"),
        (lambda r: [*r, ("opening", r[2][1] | {"session": "1" * 32})], "that was never begun"),
        (changed(2, survivors=["site-0"]), "other clients are in the sum than in the run's"),
        (changed(2, digest="00"), "digest = '00': must be a SHA-256"),
        (changed(2, ciphertexts="no"), "lacks what it must hold"),
        (changed(2, round=2), "is of round 2; its session is of another one"),
        (changed(0, party="someone"), "first record: party"),
        (lambda r: [*r, ("other", {})], "is none that a decryptor writes"),
        (lambda r: [r[0], ("opening", {}), *r[2:]], "lacks what it must hold"),
    ],
    ids=[
        "last missing",
        "first missing",
        "twice",
        "another session",
        "one more",
        "survivors",
        "digest",
        "ciphertexts",
        "round",
        "another party",
        "kind",
        "empty",
    ],
)
def test_openings_that_do_not_fit_the_runs_ledger_are_noticed_and_not_gone_on_with(
    copy, change, words
):
    rewrite(copy / OPENINGS, change)
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)
    rewrite(copy / "ledger.jsonl", lambda records: records[:-1])
    with pytest.raises(LedgerTampered, match=words):
        Federation.from_config(copy / "config.toml").run(copy, resume=True)


def test_a_missing_or_torn_ledger_of_openings_is_noticed_and_it_is_no_loose_path(copy):
    (loose,) = [x for x in verify_run(copy).lines if x.startswith("paths that no check covers")]
    own = ", ".join(f"clients/site-{n}/costs.json" for n in range(6))
    assert loose == f"paths that no check covers: checkpoints/, {own}, costs.json"
    whole = (copy / OPENINGS).read_bytes()
    (copy / OPENINGS).write_bytes(whole + b"rubbish\n")
    with pytest.raises(LedgerTampered, match=r"openings\.jsonl: line 6: 8 bytes, no record"):
        verify_run(copy)
    (copy / OPENINGS).unlink()
    with pytest.raises(LedgerTampered, match="nothing shows what the decryptor opened"):
        verify_run(copy)


def test_a_ledger_of_another_runs_openings_is_noticed(copy, tmp_path):
    (tmp_path / "other").mkdir()
    other = run_of(tmp_path / "other", BFV, training={"rounds": 1}).run(tmp_path / "other/out")
    shutil.rmtree(copy / OPENINGS.parent)
    shutil.copytree(other.folder / OPENINGS.parent, copy / OPENINGS.parent)
    with pytest.raises(LedgerTampered, match="never begun"):
        verify_run(copy)
