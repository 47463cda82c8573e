import pytest
from deployed import CLOCK, policy_values
from owners import KEYS, ROSTER, SERVER

from securefed.agent.accounts import opened_accounts
from securefed.agent.policy import AgentPolicy
from securefed.agent.rosters import take_roster
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError
from securefed.evidence.roster import Roster
from securefed.evidence.signed_roster import SignedRoster

FEWER = Roster(SERVER.public, {"site-0": KEYS["site-0"].public, "site-1": KEYS["site-1"].public})


def taken(folder, roster, serial):
    take_roster(folder, SignedRoster(roster, serial), clock=lambda: CLOCK)


def test_a_roster_with_a_key_that_was_revoked_since_is_refused(tmp_path):
    for serial, roster in ((1, ROSTER), (1, ROSTER), (3, FEWER)):
        taken(tmp_path, roster, serial)
    with pytest.raises(ConfigError, match=r"serial = 1: .* serial 3"):
        taken(tmp_path, ROSTER, 1)
    taken(tmp_path, FEWER, 3)


def test_two_rosters_of_one_serial_are_refused(tmp_path):
    taken(tmp_path, ROSTER, 2)
    with pytest.raises(ConfigError, match="another roster of that serial"):
        taken(tmp_path, FEWER, 2)


def test_a_server_that_the_owner_pins_anew_begins_anew(tmp_path):
    taken(tmp_path, ROSTER, 2)
    taken(tmp_path, Roster(IdentityKey.generate().public, dict(ROSTER.clients)), 1)


def test_accounts_are_not_opened_with_an_older_roster_than_before(tmp_path):
    policy = AgentPolicy.model_validate(policy_values("site-0", SERVER.public.raw.hex()))

    def opened(serial):
        return opened_accounts(tmp_path / "a", policy, SignedRoster(ROSTER, serial), lambda: CLOCK)

    with opened(3):
        pass
    with pytest.raises(ConfigError, match=r"serial = 1: .* serial 3"), opened(1):
        pass
    with opened(3) as (spending, runs):  # nothing was left open
        assert spending.spent() == (0.0, 0.0)
        assert runs.charged("0" * 64, "0" * 32) is None
