"""A server that signs what it likes: the agent goes on, and nothing is begun for it."""

import json

import pytest
from deployed import CLOCK
from owners import KEYS, NAMES, ROSTER, SAMPLED, SERVER, Owner, carried, invitation
from recorded_site import CONFIG

from securefed import PrivacyPolicy
from securefed.agent.runs import RunAccounts
from securefed.errors import LocalProtocolError, RemoteProtocolError
from securefed.evidence.chain import line_of
from securefed.evidence.heads import HeadStatement, signed_by_server
from securefed.evidence.ledger import Ledger
from securefed.evidence.roster import Roster
from securefed.evidence.signing import canonical
from securefed.federation.invitations import HeadRequest, Hello
from securefed.privacy.pld import gaussian_epsilon

RUN = bytes(16)


def head_of(folder, *, session):
    """A ledger of one round, whose session is any JSON value, and the request to sign it."""
    genesis = {
        "client_sizes": dict.fromkeys(NAMES, 1),
        "config_sha256": CONFIG,
        "privacy": {"recorded": True},
        "roster": ROSTER.to_record(),
    }
    ledger = Ledger.create(folder / "ledger.jsonl", genesis, clock=lambda: CLOCK)
    name = ledger.head.hash
    ledger.append("round_opened", {"round": 1, "session": session})
    ledger.append("round_applied", {"round": 1, "session": "5e"})
    envelope = signed_by_server(HeadStatement.of(name, ledger.head), SERVER)
    lines = tuple(line_of(record) for record in ledger.records)
    return name, HeadRequest(bytes.fromhex(name), canonical(envelope), 0, lines)


def test_what_fails_unexpectedly_is_refused_and_the_agent_goes_on(tmp_path):
    owner = Owner(tmp_path)
    name, asked = head_of(tmp_path, session=["of", "another", "type"])
    owner.asked(invitation(ledger=bytes.fromhex(name)))
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(asked.encode())
    hello = Hello(run=RUN, node=7, config=bytes.fromhex(CONFIG))
    assert owner.asked(hello.encode(SERVER))


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_the_text_of_an_unexpected_error_is_told_to_nobody(tmp_path, kind):
    owner = Owner(tmp_path)

    def fails(invitation, roster):
        raise kind("the record of Jane Doe")

    owner.site.round = fails
    reply = owner.agent.handle(invitation())
    assert kind.__name__.encode() not in reply
    assert "Jane" not in owner.log.getvalue()
    assert owner.said[-1]["event"] == "failed"
    assert owner.said[-1]["kind"] == kind.__name__
    assert owner.said[-1]["where"].startswith("test_hostile_server.py:")


def test_a_head_of_a_run_with_a_client_that_was_revoked_is_refused(tmp_path):
    accounts = RunAccounts(tmp_path / "a", "site-0", lambda: CLOCK)
    name, asked = head_of(tmp_path, session="5e")
    accounts.join(name, {"recorded": True}, cohort=NAMES, size=1)
    fewer = Roster(SERVER.public, {n: k for n, k in ROSTER.clients.items() if n != "site-3"})
    with pytest.raises(LocalProtocolError, match=r"cohort: 'site-3' .* no longer in the roster"):
        accounts.sign(asked, KEYS["site-0"], fewer, CONFIG)


def test_no_account_is_begun_for_a_round_below_a_floor(tmp_path):
    owner = Owner(tmp_path, floors={"min_clients": 5})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(invitation())
    assert sorted(tmp_path.rglob("*")) == before


def test_accounts_of_many_runs_are_not_all_open(tmp_path):
    accounts = RunAccounts(tmp_path / "a", "site-0", lambda: CLOCK)
    for number in range(40):
        accounts.join(f"{number:02x}" * 32, {}, cohort=NAMES, size=1)
    assert len(accounts._open) == 1
    accounts.charge("00" * 32, {"round": 1})
    with pytest.raises(LocalProtocolError, match="not in it"):
        accounts.charge("f" * 64, {"round": 1})


def test_a_secret_sample_is_held_back_also_where_the_work_fails(tmp_path):
    owner = Owner(tmp_path, policy=SAMPLED, answers={"hold_seconds": 10.0})

    def fails():
        owner.time.now += 3.0
        raise RuntimeError

    owner.site.before = fails
    with pytest.raises(RemoteProtocolError, match="refused: Failed"):
        owner.asked(invitation())
    assert owner.time.now == pytest.approx(10.0)
    assert json.loads(owner.log.getvalue().splitlines()[-1])["event"] == "failed"


LOCAL = PrivacyPolicy(
    clip_norm=1.0,
    noise_multiplier=1.0,
    unit="example",
    mechanism="local",
    sampling_probability=0.1,
    local_steps=3,
)


def with_local_noise(folder, stated=LOCAL, **sections):
    """An owner of examples, whose run has noise at each client and none in the sum."""
    floors = {"mechanisms": ["local"], "units": ["example"]} | sections.pop("floors", {})
    held = {"hold_seconds": 10.0}
    budget = {"unit": "example"} | sections.pop("budget", {})
    owner = Owner(folder, floors=floors, budget=budget, answers=held, **sections)
    owner.site.stated = stated
    return owner


@pytest.mark.parametrize(
    ("stated", "floors", "why"),
    [
        (LOCAL, {"mechanisms": ["distributed"]}, "mechanism = 'local'"),
        (LOCAL, {"mechanisms": ["distributed", "none"]}, "mechanism = 'local'"),
        (LOCAL, {"min_noise_multiplier": 1.1}, "noise_multiplier = 1.0"),
        (LOCAL, {"max_clip_norm": 0.9}, "clip_norm = 1.0"),
        (LOCAL, {"max_delta": 1e-6}, "delta = 1e-05"),
        (None, {}, "mechanism = 'none'"),  # the same sum, and nobody's noise
    ],
)
def test_floors_hold_for_noise_at_the_client(tmp_path, stated, floors, why):
    owner = with_local_noise(tmp_path, stated, floors=floors)
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(invitation())
    assert why in owner.said[-1]["why"]
    assert owner.site.encoded == 0
    assert owner.spending.spent() == (0.0, 0.0)


def test_all_steps_of_noise_at_the_client_are_charged_and_bounded(tmp_path):
    """One round of three steps fits the budget by the accountant of local DP-SGD; two do not."""
    one, two = (gaussian_epsilon(1.0, 0.1, rounds * 3, 1e-5) for rounds in (1, 2))
    owners = {
        name: with_local_noise(tmp_path, name=name, budget={"epsilon": (one + two) / 2})
        for name in NAMES
    }
    server = carried(owners, stated=LOCAL)
    assert server.survivors == NAMES
    owner = owners["site-0"]
    assert owner.spending.spent() == (pytest.approx(one), 1e-5)
    with pytest.raises(RemoteProtocolError, match="BudgetExceeded"):
        owner.asked(invitation(b"t" * 16))
    assert owner.spending.spent() == (pytest.approx(one), 1e-5)


def test_the_sample_of_local_steps_is_as_secret_as_any(tmp_path):
    owner = with_local_noise(tmp_path)
    assert owner.asked(invitation())
    assert owner.time.now == pytest.approx(10.0)
    other = Owner(
        tmp_path / "other",
        floors={"mechanisms": ["local"], "units": ["example"]},
        budget={"unit": "example"},
    )
    other.site.stated = LOCAL
    with pytest.raises(RemoteProtocolError, match="refused"):
        other.asked(invitation())
    assert "hold_seconds" in other.said[-1]["why"]
