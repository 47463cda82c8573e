"""What a client keeps from round to round: which attempt counts, and what a server can do."""

import os
import shutil

import pytest
from owners import DIMENSION, NAMES, ROSTER, SERVER, Owner, carried, invitation
from recorded_site import CONFIG, session_of

from securefed import PrivacyPolicy
from securefed.agent.kept import Kept, KeptStates
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, LedgerTampered, LocalProtocolError, RemoteProtocolError
from securefed.federation.invitations import Ending, HeadRequest, Step
from securefed.federation.server import ServerRound

LEDGER = "ab" * 32
NOISED = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, corrupt_fraction=0.1)
ONE, TWO, THREE = (letter * 32 for letter in "123")


def states(tmp_path, client="site-0"):
    return KeptStates(tmp_path / "kept", client)


def noted(tmp_path, base, made):
    kept = states(tmp_path)
    kept.note(LEDGER, base, made)
    return kept


def test_before_the_first_sum_a_run_begins_with_nothing(tmp_path):
    assert states(tmp_path).base(LEDGER, 1, None) == Kept()
    with pytest.raises(LocalProtocolError, match="lost or is an older copy"):
        states(tmp_path).base(LEDGER, 2, ONE)


def test_the_ledger_decides_which_of_two_states_counts(tmp_path):
    settled, attempt = Kept(3, ONE, b"settled"), Kept(4, TWO, b"attempt")
    kept = noted(tmp_path, settled, attempt)
    assert kept.base(LEDGER, 5, TWO) == attempt
    assert kept.base(LEDGER, 4, ONE) == settled
    assert kept.base(LEDGER, 5, TWO) == attempt  # asking writes nothing
    for other in (THREE, None):
        with pytest.raises(LocalProtocolError, match="kept state"):
            kept.base(LEDGER, 5, other)


def test_what_did_not_count_does_not_come_back(tmp_path):
    kept = noted(tmp_path, Kept(3, ONE, b"settled"), Kept(4, TWO, b"attempt"))
    kept.note(LEDGER, kept.base(LEDGER, 4, ONE), Kept(4, THREE, b"again"))
    with pytest.raises(LocalProtocolError, match="kept state"):
        kept.base(LEDGER, 5, TWO)
    assert kept.base(LEDGER, 5, THREE).state == b"again"


def test_rounds_only_rise(tmp_path):
    kept = noted(tmp_path, Kept(3, ONE), Kept(4, TWO))
    with pytest.raises(LocalProtocolError, match=r"round = 4: .* an older invitation"):
        kept.base(LEDGER, 4, TWO)
    with pytest.raises(LocalProtocolError, match=r"round = 3: .* an older invitation"):
        kept.base(LEDGER, 3, ONE)


def test_it_is_for_its_owner_alone_and_others_have_no_part_in_it(tmp_path):
    before = os.umask(0)
    try:
        kept = noted(tmp_path, Kept(), Kept(1, ONE, b"state"))
    finally:
        os.umask(before)
    (path,) = (tmp_path / "kept").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        kept.base(LEDGER, 2, ONE)


def test_a_file_of_another_run_or_client_or_one_that_was_cut_is_refused(tmp_path):
    kept = noted(tmp_path, Kept(), Kept(1, ONE, b"state"))
    (path,) = (tmp_path / "kept").iterdir()
    with pytest.raises(LedgerTampered, match="another run or client"):
        states(tmp_path, "site-1").base(LEDGER, 2, ONE)
    other = LEDGER[:32] + "cd" * 16
    with pytest.raises(LedgerTampered, match="another run or client"):
        kept.base(other, 2, ONE)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(LedgerTampered, match="is not a kept state"):
            kept.base(LEDGER, 2, ONE)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    kept = noted(tmp_path, Kept(), Kept(1, ONE, b"state"))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("securefed.operations.whole_files.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            kept.note(LEDGER, Kept(1, ONE, b"state"), Kept(2, TWO, b"next"))
    assert kept.base(LEDGER, 2, ONE).state == b"state"
    kept.note(LEDGER, Kept(1, ONE, b"state"), Kept(2, TWO, b"next"))
    assert kept.base(LEDGER, 3, TWO).state == b"next"


# -- an agent and a server that says what it likes ------------------------------------------

FIRST, SECOND, THIRD = b"1" * 16, b"2" * 16, b"3" * 16


def keeping(folder, name="site-0", **sections):
    owner = Owner(folder, name, **sections)
    owner.site.keeps = True
    return owner


def one_round(owners, session, number=1, summed=None, ledger=bytes(32)):
    """A round of all owners; in which sum they were last is the server's word."""
    server = ServerRound(session_of(session, NAMES, ROSTER.clients, DIMENSION, number=number))
    said = {} if summed is None else dict.fromkeys(NAMES, summed.hex())
    inbox = dict.fromkeys(NAMES)
    while server.stage is not None:
        for name, message in inbox.items():
            asked = invitation(session, round=number, summed=said, ledger=ledger)
            request = asked if message is None else Step(session, message).encode()
            server.receive(name, owners[name].asked(request))
        inbox = server.advance()


def refused(owner, request):
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(request)
    return owner.said[-1]["why"]


def invited(session, number, summed):
    return invitation(session, round=number, summed={"site-0": summed.hex()})


def test_an_attempt_that_was_not_charged_leaves_nothing_behind(tmp_path):
    """Trained at the invitation and never asked for: what came of it must not be gone on from."""
    owner = keeping(tmp_path, answers={"hold_seconds": 10.0})
    owner.asked(invitation(FIRST))
    assert owner.site.encoded == 1
    assert list((tmp_path / "site-0" / "runs" / "kept").iterdir()) == []
    assert "hold no charge" in refused(owner, invited(SECOND, 2, FIRST))


def test_a_charged_attempt_counts_if_the_ledger_has_it_and_once(tmp_path):
    owners = {name: keeping(tmp_path, name) for name in NAMES}
    owner = owners["site-0"]
    one_round(owners, FIRST)
    owner.asked(invited(SECOND, 2, FIRST))
    assert owner.site.taken == b"state 1"
    assert "an older invitation" in refused(owner, invited(b"0" * 16, 1, FIRST))
    one_round(owners, THIRD, number=2)  # by this server's word the first sum never was
    assert owner.site.taken == b""
    assert "kept state" in refused(owner, invited(b"4" * 16, 3, FIRST))
    owner.asked(invited(b"5" * 16, 3, THIRD))


def test_a_state_that_cannot_be_written_lets_nothing_leave(tmp_path, monkeypatch):
    owners = {name: keeping(tmp_path, name) for name in NAMES}

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owners["site-2"].runs.kept, "note", full)
    server = carried(owners)
    assert server.survivors == ("site-0", "site-1", "site-3")
    assert owners["site-2"].said[-1]["event"] in ("failed", "refused")


@pytest.mark.parametrize("account", ["spending", "runs"])
def test_a_charge_that_fails_leaves_no_state(tmp_path, monkeypatch, account):
    owners = {name: keeping(tmp_path, name) for name in NAMES}

    def full(*arguments):
        raise LocalProtocolError("the disk is full")

    monkeypatch.setattr(getattr(owners["site-2"], account), "charge", full)
    assert carried(owners).survivors == ("site-0", "site-1", "site-3")
    states = {name: list((tmp_path / name / "runs" / "kept").iterdir()) for name in NAMES}
    assert [len(states[name]) for name in NAMES] == [1, 1, 0, 1]


def test_a_state_that_is_not_of_the_run_is_a_refusal_and_the_agent_goes_on(tmp_path):
    owners = {name: keeping(tmp_path, name) for name in NAMES}
    one_round(owners, FIRST)
    owner = owners["site-0"]
    (path,) = (tmp_path / "site-0" / "runs" / "kept").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert "is not a kept state" in refused(owner, invited(SECOND, 2, FIRST))
    path.write_bytes(whole)
    owner.asked(invited(THIRD, 2, FIRST))


@pytest.mark.parametrize("part", ["all", "runs", "spending"])
def test_accounts_from_an_older_copy_are_noticed_by_what_the_ledger_has(tmp_path, part):
    """Whether or not a run keeps anything: here it does not."""
    owners = {name: Owner(tmp_path, name, policy=NOISED) for name in NAMES}
    folder, copy = tmp_path / "site-0", tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert carried(owners, policy=NOISED).survivors == NAMES
    owners["site-0"].asked(invited(SECOND, 2, b"s" * 16))
    owners["site-0"].stop()
    if part == "runs":
        shutil.rmtree(folder / "runs")
    elif part == "spending":
        for path in folder.glob("*.json*"):
            path.unlink()
        for path in copy.glob("*.json*"):
            shutil.copy2(path, folder)
    else:
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
    restored = Owner(tmp_path, "site-0", policy=NOISED)
    assert "hold no charge" in refused(restored, invited(THIRD, 2, b"s" * 16))
    assert restored.site.encoded == 0


# -- how a run ends --------------------------------------------------------------------------


def ending(last, adapter=b"shared", key=SERVER, **changed):
    values = {
        "ledger": bytes(32),
        "round": 1,
        "summed": dict.fromkeys(NAMES, last.hex()),
        "adapter": adapter,
    }
    return Ending(**(values | changed)).encode(key)


def after_one_round(folder):
    owners = {name: keeping(folder, name) for name in NAMES}
    for owner in owners.values():
        owner.site.leaves = True
    one_round(owners, FIRST)
    return owners["site-0"]


def test_a_run_that_ended_leaves_an_adapter_made_while_nobody_is_answered(tmp_path):
    owner = after_one_round(tmp_path)
    folder = tmp_path / "site-0" / "runs" / "ended"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert owner.asked(ending(FIRST)) == b""
    assert [path.suffix for path in folder.iterdir()] == [".ended"]
    owner.agent.finish()
    (made,) = (path for path in folder.iterdir() if path.is_dir())
    assert (made / "adapter").read_bytes() == b"sharedstate 1"
    assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"key": IdentityKey.generate()}, "does not verify"),
        ({"ledger": b"l" * 32}, "hold no charge"),  # a run that this client was never in
        ({"summed": {}}, "in no sum"),
        ({"summed": {"site-0": "9" * 32}}, "hold no charge"),
    ],
)
def test_an_ending_that_is_not_of_a_run_of_this_clients_is_refused(tmp_path, changed, why):
    owner = after_one_round(tmp_path)
    assert why in refused(owner, ending(FIRST, **changed))
    assert list((tmp_path / "site-0" / "runs" / "ended").iterdir()) == []


def test_a_server_has_a_client_make_one_adapter_of_a_run(tmp_path):
    owner = after_one_round(tmp_path)
    owner.asked(ending(FIRST))
    assert owner.asked(ending(FIRST)) == b""  # the answer was lost
    assert "another one before" in refused(owner, ending(FIRST, adapter=b"chosen"))
    owner.agent.finish()
    assert "another one before" in refused(owner, ending(FIRST, adapter=b"chosen"))


def test_an_ending_does_not_end_the_round_that_a_client_is_in(tmp_path):
    owner = after_one_round(tmp_path)
    owner.asked(invited(SECOND, 2, FIRST))
    half = owner.agent._round
    owner.asked(ending(FIRST))
    assert owner.agent._round is half


def test_a_run_that_leaves_nothing_takes_no_ending(tmp_path):
    owner = after_one_round(tmp_path)
    owner.site.leaves = False
    assert "leaves clients no adapter" in refused(owner, ending(FIRST))


def test_an_adapter_that_could_not_be_made_is_in_the_log_and_is_tried_again(tmp_path, monkeypatch):
    owner = after_one_round(tmp_path)
    owner.asked(ending(FIRST))

    def fails(adapter, kept, folder):
        (folder / "half").write_bytes(b"")
        raise RuntimeError("of a record of somebody")

    with monkeypatch.context() as broken:
        broken.setattr(owner.site, "finish", fails)
        owner.agent.finish()
    assert owner.said[-1]["event"] == "unfinished"
    assert "somebody" not in owner.log.getvalue()
    owner.agent.finish()
    (made,) = (p for p in (tmp_path / "site-0" / "runs" / "ended").iterdir() if p.is_dir())
    assert [path.name for path in made.iterdir()] == ["adapter"]


def test_an_adapter_that_cannot_be_made_keeps_no_other_from_being_made(tmp_path, monkeypatch):
    """A server hands out what fits no model; its word of another run is worth what it was."""
    owners = {name: keeping(tmp_path, name) for name in NAMES}
    owner = owners["site-0"]
    owner.site.leaves = True
    one_round(owners, FIRST)
    one_round(owners, SECOND, ledger=b"l" * 32)
    owner.asked(ending(FIRST, adapter=b"fits nothing"))
    owner.asked(ending(SECOND, ledger=b"l" * 32))
    real = owner.site.finish

    def finish(adapter, kept, folder):
        if adapter == b"fits nothing":
            raise RemoteProtocolError("adapter: does not fit the model")
        real(adapter, kept, folder)

    monkeypatch.setattr(owner.site, "finish", finish)
    owner.agent.finish()
    places = {p.name for p in (tmp_path / "site-0" / "runs" / "ended").iterdir() if p.is_dir()}
    assert (b"l" * 16).hex() in places
    assert "00" * 16 not in places
    assert [line["event"] for line in owner.said[-4:]] == [
        "finishing", "unfinished", "finishing", "finished",
    ]  # fmt: skip


@pytest.mark.parametrize("keeps", [True, False])
def test_a_ledger_that_begins_like_one_of_this_clients_is_another(tmp_path, keeps):
    """Files are named by half of a hash, which a server can give to a ledger of its making."""
    owner = after_one_round(tmp_path)
    owner.site.keeps = keeps
    alike = bytes(16) + b"x" * 16
    refused(owner, ending(FIRST, ledger=alike))
    refused(owner, invitation(SECOND, round=2, ledger=alike, summed={"site-0": FIRST.hex()}))
    refused(owner, HeadRequest(alike, b"{}", 0, ()).encode())
    folder = tmp_path / "site-0" / "runs"
    assert list((folder / "ended").iterdir()) == []
    assert owner.asked(ending(FIRST)) == b""
    assert len(list(folder.glob("*.jsonl"))) == 1


def test_a_run_of_another_run_file_is_left_to_the_agent_of_that_one(tmp_path):
    owner = after_one_round(tmp_path)
    owner.asked(ending(FIRST))
    owner.site.config = "33" * 32
    owner.agent.finish()
    assert owner.said[-1]["event"] == "ended"
    owner.site.config = CONFIG
    owner.agent.finish()
    assert owner.said[-1]["event"] == "finished"


def test_a_broken_file_of_an_ended_run_is_in_the_log_and_ends_nothing(tmp_path):
    owner = after_one_round(tmp_path)
    owner.asked(ending(FIRST))
    (path,) = (tmp_path / "site-0" / "runs" / "ended").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    owner.agent.finish()
    assert "is no ended run" in owner.said[-1]["why"]
    path.write_bytes(b"")
    path.chmod(0o644)
    owner.agent.finish()
    assert "chmod 600" in owner.said[-1]["why"]
