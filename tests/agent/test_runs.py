"""What a client did in a run, and which heads of the run's ledger it signs."""

import json

import pytest
from deployed import CLOCK

from securefed.agent.runs import RunAccounts
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from securefed.evidence.chain import line_of
from securefed.evidence.heads import HeadStatement, signed_by_server, signed_head
from securefed.evidence.ledger import Ledger
from securefed.evidence.roster import Roster
from securefed.evidence.signing import canonical
from securefed.federation.invitations import HeadRequest

SERVER, OWN, OTHER = (IdentityKey.generate() for _ in range(3))
ROSTER = Roster(SERVER.public, {"a": OWN.public, "b": OTHER.public})
PINNED = Roster(SERVER.public, {**ROSTER.clients, "not in it": IdentityKey.generate().public})
CONFIG, PRIVACY = "11" * 32, {"noise_multiplier": 0.5}
EVENT = {"round": 1, "session": "5e", "noise_multiplier": 0.5}


class Run:
    """A server's ledger of one round, and a client's accounts."""

    def __init__(self, folder, charged=("a",), size=7):
        genesis = {
            "client_sizes": {"a": size, "b": 9},
            "config_sha256": CONFIG,
            "privacy": PRIVACY,
            "roster": ROSTER.to_record(),
        }
        self.ledger = Ledger.create(folder / "ledger.jsonl", genesis, clock=lambda: CLOCK)
        self.name = self.ledger.head.hash
        self.folder = folder
        self.accounts = RunAccounts(folder / "a", "a", lambda: CLOCK)
        self.accounts.join(self.name, PRIVACY, cohort=["b", "a"], size=7)
        self.ledger.append("round_opened", EVENT)
        self.ledger.append("round_summed", {"round": 1, "session": "5e", "charged": list(charged)})
        self.ledger.append("round_applied", {"round": 1, "session": "5e"})

    def asked(self, first=0, server=SERVER, record=None):
        record = self.ledger.head if record is None else record
        envelope = signed_by_server(HeadStatement.of(self.name, record), server)
        lines = [line_of(each) for each in self.ledger.records[first : record.seq + 1]]
        return HeadRequest(bytes.fromhex(self.name), canonical(envelope), first, tuple(lines))

    def signs(self, asked):
        return json.loads(self.accounts.sign(asked, OWN, PINNED, CONFIG))


def test_a_head_that_fits_its_own_account_is_signed(tmp_path):
    run = Run(tmp_path)
    run.accounts.charge(run.name, EVENT)
    signature = run.signs(asked := run.asked())
    envelope = json.loads(asked.envelope)
    envelope["signatures"].append(signature)
    assert signed_head(envelope, ROSTER)[1] == ("a",)


def test_a_server_may_count_more_and_never_less(tmp_path):
    (tmp_path / "more").mkdir()
    counted = Run(tmp_path / "more")
    assert counted.signs(counted.asked())  # it was asked, and the question was lost
    (tmp_path / "less").mkdir()
    less = Run(tmp_path / "less", charged=())
    less.accounts.charge(less.name, EVENT)
    with pytest.raises(RemoteProtocolError, match="an attempt was taken out"):
        less.signs(less.asked())


def test_another_price_than_the_charged_one_is_not_signed(tmp_path):
    run = Run(tmp_path)
    run.accounts.charge(run.name, EVENT | {"noise_multiplier": 2.0})
    with pytest.raises(RemoteProtocolError, match="noise_multiplier"):
        run.signs(run.asked())


def test_lines_that_it_knows_already_are_passed_over(tmp_path):
    run = Run(tmp_path)
    run.accounts.charge(run.name, EVENT)
    first = run.ledger.head
    assert run.signs(run.asked()) == run.signs(run.asked())  # the answer was lost
    run.ledger.append("closed", {"rounds": 1})
    assert run.signs(run.asked(first=0))
    assert run.ledger.head.seq == first.seq + 1


def test_lines_that_begin_too_late_are_refused(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(RemoteProtocolError, match="does not follow"):
        run.signs(run.asked(first=2))


def test_a_restarted_agent_goes_on_where_it_stood_and_signs_no_fork(tmp_path):
    run = Run(tmp_path)
    run.accounts.charge(run.name, EVENT)
    assert run.signs(run.asked())
    run.accounts.close()
    run.accounts = RunAccounts(tmp_path / "a", "a", lambda: CLOCK)
    assert run.signs(run.asked())
    earlier = run.ledger.records[-1]
    forged = type(earlier)(**(vars(earlier) | {"hash": "00" * 32}))
    with pytest.raises(RemoteProtocolError, match="forked or rewritten"):
        run.signs(run.asked(record=forged))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (b"{", "is not JSON"),
        (b"[]", "is no object"),
        (b"{}", "does not sign"),
    ],
)
def test_garbage_for_an_envelope_is_refused(tmp_path, wrong, named):
    run = Run(tmp_path)
    asked = run.asked()
    with pytest.raises(RemoteProtocolError, match=named):
        run.signs(HeadRequest(asked.ledger, wrong, 0, asked.lines))


def test_another_servers_head_is_refused(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(RemoteProtocolError, match="does not sign"):
        run.signs(run.asked(server=IdentityKey.generate()))


def test_a_ledger_with_another_size_for_it_is_refused(tmp_path):
    run = Run(tmp_path, size=8)
    with pytest.raises(RemoteProtocolError, match=r"client_sizes\.a = 8"):
        run.signs(run.asked())


def test_a_run_that_it_is_not_in_is_not_signed_or_charged(tmp_path):
    accounts = RunAccounts(tmp_path, "a", lambda: CLOCK)
    asked = HeadRequest(bytes(32), b"{}", 0, ())
    with pytest.raises(LocalProtocolError, match="is not in it"):
        accounts.sign(asked, OWN, PINNED, CONFIG)
    with pytest.raises(LocalProtocolError, match="is not in it"):
        accounts.charge("00" * 32, EVENT)


def test_a_run_is_joined_as_it_was_begun_or_not_at_all(tmp_path):
    run = Run(tmp_path)
    run.accounts.join(run.name, PRIVACY, cohort=["a", "b"], size=7)
    with pytest.raises(ConfigError, match="cohort"):
        run.accounts.join(run.name, PRIVACY, cohort=["a"], size=7)
    with pytest.raises(ConfigError, match="privacy"):
        run.accounts.join(run.name, {"noise_multiplier": 0.1}, cohort=["a", "b"], size=7)
