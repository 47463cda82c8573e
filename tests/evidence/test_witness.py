"""A client signs no head that does not extend what it signed, or does not fit its own account."""

import json
from pathlib import Path

import pytest
from witnessed import CONFIG, NAMES, PRIVACY, Runs, clock

from securefed.crypto.identity import IdentityKey
from securefed.engines.identities import Identities
from securefed.errors import ConfigError, LedgerError, LedgerTampered, RemoteProtocolError
from securefed.evidence.budget import CHARGE
from securefed.evidence.heads import (
    HEAD_TYPE,
    HeadStatement,
    quorum,
    signed_by_client,
    signed_by_server,
    signed_head,
)
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.evidence.roster import Roster
from securefed.evidence.signing import key_id, sign
from securefed.evidence.witness import Witness, account_genesis, check_seen


@pytest.fixture
def run(tmp_path) -> Runs:
    return Runs(tmp_path / "run")


def refuses(run: Runs, name: str, record, words: str, **changes) -> None:
    """The client refuses by name, and its account is as before."""
    before = run.accounts[name].head
    with pytest.raises(RemoteProtocolError, match=f"client '{name}' does not sign.*{words}"):
        run.sign(name, record, **changes)
    assert run.accounts[name].head == before


def test_a_head_that_extends_the_last_one_is_signed_and_kept(run):
    for number in (1, 2):
        record = run.round(number)
        found = run.sign("ann", record)
        assert found["keyid"] == key_id(run.keys.clients["ann"].public)
        envelope = run.head(record)
        envelope["signatures"].append(found)
        assert signed_head(envelope, run.keys.roster)[1] == ("ann",)
        kept = run.accounts["ann"].head
        assert (kept.kind, kept.body["seq"], kept.body["hash"]) == (
            "witnessed",
            record.seq,
            record.hash,
        )
        assert kept.body["charges"] == number


def test_what_is_signed_stands_on_disk_before_the_signature_leaves(run, monkeypatch):
    record, on_disk = run.round(1), []

    def watched(head, key):
        on_disk.append(read_ledger(run.folder / "ann.jsonl")[-1].body["hash"])
        return signed_by_client(head, key)

    monkeypatch.setattr("securefed.evidence.witness.signed_by_client", watched)
    run.sign("ann", record)
    assert on_disk == [record.hash]


def test_without_the_record_in_its_account_nothing_is_signed(run, monkeypatch):
    record = run.round(1)
    monkeypatch.setattr(
        "securefed.evidence.witness.signed_by_client", lambda *_: pytest.fail("signed")
    )
    run.accounts["ann"].close()
    with pytest.raises(LedgerError, match="is closed"):
        run.sign("ann", record)


def test_the_same_head_is_signed_again_and_written_once(run):
    record = run.round(1)
    first, kept = run.sign("ann", record), run.accounts["ann"].head
    assert run.witness("ann").sign(run.head(record), []) == first
    assert run.accounts["ann"].head == kept


def test_who_missed_a_head_signs_the_next_one_over_all_lines_since(run):
    run.sign("ann", run.round(1))
    run.sign("bob", run.ledger.records[3])
    second = run.round(2)
    run.sign("bob", second)
    third = run.round(3)
    assert len(run.lines(run.witness("ann"), third)) == 6
    run.sign("ann", third)
    assert run.witness("ann").seen.charges == 3


def test_a_ledger_that_begins_otherwise_is_refused_whatever_the_head_says_of_it(run, tmp_path):
    """All that a client checks one by one is the same; what it does not know is another model."""
    other = Runs(tmp_path / "other", run.keys, model_fingerprint="00")
    run.round(1)
    record = other.round(1)
    statement = HeadStatement.of(run.ledger.records[0].hash, record)
    witness, kept = run.witness("ann"), run.accounts["ann"].head
    with pytest.raises(RemoteProtocolError, match="line 1 is not the first record that its"):
        witness.sign(signed_by_server(statement, run.keys.server), other.lines(witness, record))
    assert run.accounts["ann"].head == kept


# -- forks ---------------------------------------------------------------------------------


@pytest.fixture
def forked(run, tmp_path) -> tuple[Runs, Runs]:
    """Two ledgers of one server that are the same up to line 1."""
    record = run.round(1)
    for name in NAMES:
        run.sign(name, record)
    other = Runs(tmp_path / "fork", run.keys)
    assert other.ledger.records[0] == run.ledger.records[0]
    fork = other.ledger.append("round_opened", PRIVACY | {"round": 1, "session": "ff"})
    assert fork.prev == run.ledger.records[0].hash
    return run, other


def test_a_fork_in_place_of_a_signed_line_is_refused_also_after_a_restart(forked):
    run, other = forked
    other.ledger.append("round_summed", {"round": 1, "session": "ff", "charged": list(NAMES)})
    fork = other.ledger.append("round_applied", {"round": 1, "session": "ff"})
    witness = run.witness("ann")  # made anew from the account, as after a restart
    assert witness.seen.seq == fork.seq
    with pytest.raises(RemoteProtocolError, match=r"'ann'.*line 4 is another one.*forked"):
        witness.sign(other.head(fork), other.lines(other.witness("ann"), fork))


def test_a_fork_that_goes_on_further_is_refused(forked):
    run, other = forked
    other.ledger.append("round_summed", {"round": 1, "session": "ff", "charged": []})
    other.ledger.append("round_applied", {"round": 1, "session": "ff"})
    fork = other.round(2)
    witness = run.witness("ann")
    lines = other.lines(other.witness("ann"), fork)[witness.seen.seq + 1 :]
    with pytest.raises(RemoteProtocolError, match=r"line 5 does not follow line 4, which it"):
        witness.sign(other.head(fork), lines)


def test_without_its_memory_a_client_would_sign_both_forks(forked):
    """What keeps it from that is the record in its account."""
    run, other = forked
    other.ledger.append("round_summed", {"round": 1, "session": "ff", "charged": list(NAMES)})
    fork = other.ledger.append("round_applied", {"round": 1, "session": "ff"})
    other.accounts["ann"].append(CHARGE, PRIVACY | {"round": 1, "session": "ff"})
    forgetful = other.witness("ann")  # the same key, an account that knows nothing of the other
    other_signature = forgetful.sign(other.head(fork), other.lines(forgetful, fork))
    assert other_signature["keyid"] == key_id(run.keys.clients["ann"].public)


def test_an_older_head_is_refused(run):
    first = run.round(1)
    run.sign("ann", run.round(2))
    witness = run.witness("ann")
    with pytest.raises(RemoteProtocolError, match="has signed line 7 already: the tail was cut"):
        witness.sign(run.head(first), [])


@pytest.mark.parametrize("lines", ["none", "too few", "too many", "out of order", "edited"])
def test_lines_that_do_not_lead_from_head_to_head_are_refused(run, lines):
    run.sign("ann", run.round(1))
    record, witness = run.round(2), run.witness("ann")
    whole = run.lines(witness, record)
    given = {
        "none": [],
        "too few": whole[:-1],
        "too many": [*whole, whole[-1]],
        "out of order": [whole[1], whole[0], whole[2]],
        "edited": [whole[0].replace(b"1.5", b"2.5"), *whole[1:]],
    }[lines]
    with pytest.raises(RemoteProtocolError, match="client 'ann' does not sign the head"):
        witness.sign(run.head(record), given)
    assert run.witness("ann").seen.seq == 3


def test_a_head_that_the_server_has_not_signed_is_refused(run):
    record, witness = run.round(1), run.witness("ann")
    for key in (IdentityKey.generate(), run.keys.clients["bob"]):
        with pytest.raises(RemoteProtocolError, match="'ann' does not sign"):
            witness.sign(run.head(record, key), run.lines(witness, record))
    document = HeadStatement.of(run.ledger.records[0].hash, record).to_document()
    other_type = sign(document, run.keys.server, payload_type="application/x")
    with pytest.raises(RemoteProtocolError, match="payloadType"):
        witness.sign(other_type, run.lines(witness, record))
    lying = HeadStatement.of_document(document | {"round": 7}).to_document()
    with pytest.raises(RemoteProtocolError, match="is not what the head says of it"):
        witness.sign(
            sign(lying, run.keys.server, payload_type=HEAD_TYPE), run.lines(witness, record)
        )


# -- what the client knows by itself ---------------------------------------------------------


@pytest.mark.parametrize(
    ("genesis", "words"),
    [
        ({"client_sizes": {"ann": 11, "bob": 10, "eve": 10}}, "client_sizes.ann = 11, by.*10"),
        ({"client_sizes": {"bob": 10, "eve": 10}}, "client_sizes.ann = None"),
        ({"config_sha256": "00"}, "config_sha256 = '00'"),
        ({"privacy": {"noise_multiplier": 9.0}}, "privacy is not what it knows"),
        ({"roster": {}}, "roster is not what it knows"),
    ],
)
def test_a_first_record_that_says_otherwise_than_the_client_knows_is_refused(
    tmp_path, genesis, words
):
    run = Runs(tmp_path, **genesis)
    refuses(run, "ann", run.round(1), f"line 1: {words}")


def test_another_ledger_than_the_account_was_begun_for_is_refused(tmp_path):
    run = Runs(tmp_path / "one")
    other = Runs(tmp_path / "other", run.keys, model="another")
    record, witness = other.round(1), run.witness("ann")
    with pytest.raises(RemoteProtocolError, match="of another ledger"):
        witness.sign(other.head(record), other.lines(other.witness("ann"), record))


def test_a_charge_that_the_ledger_does_not_hold_is_missed(run):
    """An attempt that was taken out of the ledger: the client paid for it."""
    run.accounts["ann"].append(CHARGE, PRIVACY | {"round": 1, "session": "aa"})
    refuses(run, "ann", run.round(1), "charge for an attempt at round 1.*taken out")
    run.sign("bob", run.ledger.records[3])


def test_an_attempt_that_names_others_alone_as_charged_is_refused(run):
    """It is on record, with its price; only that this client paid for it is not."""
    of = {"round": 1, "session": "ab" * 16}
    run.ledger.append("round_opened", PRIVACY | of)
    for account in run.accounts.values():
        account.append(CHARGE, PRIVACY | of)
    run.ledger.append("round_summed", of | {"charged": ["bob", "eve"]})
    record = run.ledger.append("round_applied", of | {"adapter_sha256": "00"})
    refuses(run, "ann", record, "charge for an attempt at round 1 that the ledger does not hold")
    assert run.sign("bob", record)


def test_a_charge_that_the_client_did_not_make_is_refused(run):
    refuses(run, "ann", run.round(1, charge=False), "says that it was charged for round 1")


def test_a_charge_at_another_price_is_refused(run):
    record = run.round(1, noise_multiplier=2.5)
    refuses(run, "ann", record, r"line 2: noise_multiplier = 2.5; it was charged .* with 1.5")


def test_histograms_have_an_account_of_their_own(run, tmp_path):
    account = Ledger.create(tmp_path / "h.jsonl", {"client": "ann"}, clock=clock)
    event = {"of": "shared", "round": 0, "session": "bb"}
    run.ledger.append("histogram_opened", event)
    run.ledger.append("histogram_summed", event | {"charged": ["ann"]})
    record = run.round(1)
    refuses(run, "ann", record, "says that it was charged for round 0", histograms=account)
    account.append(CHARGE, event)
    run.sign("ann", record, histograms=account)
    assert run.witness("ann").seen.histograms == 1


def test_an_account_of_another_version_or_client_keeps_no_witness(run, tmp_path):
    old = Ledger.create(tmp_path / "old.jsonl", {"client": "ann", "privacy": {}}, clock=clock)
    key = run.keys.clients["ann"]
    with pytest.raises(ConfigError, match="another version"):
        Witness("ann", key, old, roster=run.keys.roster, config_sha256=CONFIG)
    with pytest.raises(ConfigError, match="another client"):
        Witness(
            "bob",
            run.keys.clients["bob"],
            run.accounts["ann"],
            roster=run.keys.roster,
            config_sha256=CONFIG,
        )
    with pytest.raises(ConfigError, match="client 'ann' has another key"):
        Witness(
            "ann",
            run.keys.clients["bob"],
            run.accounts["ann"],
            roster=run.keys.roster,
            config_sha256=CONFIG,
        )


# -- the account, looked at afterwards ---------------------------------------------------------


def test_an_account_says_which_lines_of_a_ledger_it_signed(run):
    first, second = run.round(1), None
    run.sign("ann", first)
    second = run.round(2)
    run.sign("ann", second)
    account, records = run.accounts["ann"].records, run.ledger.records
    assert check_seen("ann", account, records) == [first.seq, second.seq]
    with pytest.raises(LedgerTampered, match="signed line 7 of the ledger, which has 5: its tail"):
        check_seen("ann", account, records[:5])
    other = [*records[:5], *Runs(run.folder.parent / "x", run.keys).ledger.records * 2]
    with pytest.raises(LedgerTampered, match="its lines 5 to 7 were rewritten, or it is a fork"):
        check_seen("ann", account, other)
    begun = account_genesis("ann", PRIVACY, size=10, ledger="00")
    with pytest.raises(LedgerTampered, match="another first record"):
        check_seen("ann", [Ledger.create(run.folder / "n.jsonl", begun, clock=clock).head], records)


# -- quorum and envelopes ------------------------------------------------------------------------


def test_two_quorums_share_more_than_the_corrupt():
    for members in range(1, 60):
        for corrupt in range(members):
            least = quorum(members, corrupt)
            assert 2 * least - members > corrupt
            assert 2 * (least - 1) - members <= corrupt  # one less would not do


def test_heads_are_only_signed_where_a_round_is_applied_or_the_run_closed(run):
    run.round(1)
    with pytest.raises(RemoteProtocolError, match="kind"):
        HeadStatement.of(run.ledger.records[0].hash, run.ledger.records[1])
    closed = run.ledger.append("closed", {"rounds": 1})
    head = HeadStatement.of(run.ledger.records[0].hash, closed)
    assert (head.round, head.session) == (1, "")
    assert HeadStatement.of_document(json.loads(json.dumps(head.to_document()))) == head
    for change in ({"seq": True}, {"seq": 0}, {"kind": "genesis"}, {"more": 1}, {"format": "x"}):
        with pytest.raises(RemoteProtocolError, match="head: "):
            HeadStatement.of_document(head.to_document() | change)


def test_a_signature_that_does_not_hold_or_is_a_strangers_is_refused_by_name(run):
    record = run.round(1)
    head = HeadStatement.of(run.ledger.records[0].hash, record)
    own = signed_by_client(head, run.keys.clients["ann"])
    envelope = run.head(record)

    def with_signatures(*more):
        return envelope | {"signatures": [*envelope["signatures"], *more]}

    bob = signed_by_client(head, run.keys.clients["bob"])
    stranger = signed_by_client(head, IdentityKey.generate())
    for signatures, words in [
        ([own, own], "ann has signed it twice"),
        ([own | {"sig": bob["sig"]}], "signature of ann does not verify"),
        ([stranger], "none of the keys that may sign"),
        ([{"sig": own["sig"]}], "needs a keyid"),
    ]:
        with pytest.raises(RemoteProtocolError, match=words):
            signed_head(with_signatures(*signatures), run.keys.roster)
    with pytest.raises(RemoteProtocolError, match="first signature must be that of the server"):
        signed_head(envelope | {"signatures": [own]}, run.keys.roster)
    assert signed_head(with_signatures(own, bob), run.keys.roster)[1] == ("ann", "bob")


def test_a_client_may_be_called_server(tmp_path):
    keys = Identities.make(("server", "ann"), decryptor=False)
    run = Runs(tmp_path)
    head = HeadStatement.of(run.ledger.records[0].hash, run.round(1))
    envelope = sign(head.to_document(), keys.server, payload_type=HEAD_TYPE)
    envelope["signatures"].append(signed_by_client(head, keys.clients["server"]))
    assert signed_head(envelope, keys.roster)[1] == ("server",)
    own = sign(head.to_document(), keys.clients["server"], payload_type=HEAD_TYPE)
    with pytest.raises(RemoteProtocolError, match="must be that of the server"):
        signed_head(own, keys.roster)


def test_a_roster_comes_back_from_its_record_and_refuses_what_is_none():
    roster = Identities.make(NAMES, decryptor=True).roster
    record = json.loads(json.dumps(roster.to_record()))
    assert Roster.of_record(record) == roster
    key = record["server"]
    for change, words in [
        ({"clients": {}}, "clients is empty"),
        ({"clients": {"ann": key}}, "has the key of server"),
        ({"server": "00"}, "server is no identity key"),
        ({"clients": {"ann": "zz"}}, "clients.ann is no identity key"),
        ({"clients": 3}, "a key by id"),
        ({"other": key}, "must hold server and clients"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Roster.of_record(record | change)


def test_a_roster_file_of_another_kind_is_refused(tmp_path):
    from securefed.evidence.roster import read_roster

    path = tmp_path / "roster.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_roster(path)
    for text, words in [("{", "is not JSON"), ("[]", "format must be"), ("{}", "format must be")]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_roster(Path(path))
    roster = Identities.make(NAMES, decryptor=False).roster
    path.write_text(roster.to_text())
    assert read_roster(path) == roster
    # One reader would take the first key of a name that stands twice, and another the last.
    key = roster.clients["bob"].raw.hex()
    path.write_text(roster.to_text().replace('"bob":', f'"bob": "{key}",\n"bob":'))
    with pytest.raises(ConfigError, match=r"'bob' stands twice in one object"):
        read_roster(path)
    nameless = {"": IdentityKey.generate().public}
    with pytest.raises(ConfigError, match="a client's id is empty"):
        Roster(roster.server, nameless)
