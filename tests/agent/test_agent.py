"""The agent's core: what it answers, what it refuses, and what its log says of it."""

import pickle

import numpy as np
import pytest
from owners import KEYS, NAMES, ROSTER, SAMPLED, SERVER, Owner, carried, invitation
from recorded_site import CONFIG

from securefed.agent import agent
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.evidence.roster import Roster
from securefed.federation.invitations import RUN_BYTES, Hello, Introduction, Step, answered


def test_it_says_who_it_is_to_its_server_alone(tmp_path):
    owner = Owner(tmp_path)
    hello = Hello(run=bytes(RUN_BYTES), node=7, config=bytes.fromhex(CONFIG))
    reply = owner.asked(hello.encode(SERVER))
    found = Introduction.decode(reply, hello, ROSTER.clients)
    assert (found.client, found.size) == ("site-0", 1)
    for refused in (
        hello.encode(IdentityKey.generate()),
        Hello(run=bytes(RUN_BYTES), node=7, config=bytes(32)).encode(SERVER),
    ):
        with pytest.raises(RemoteProtocolError, match="refused"):
            owner.asked(refused)


def test_an_introduction_is_worth_nothing_from_another_node(tmp_path):
    hello = Hello(run=bytes(RUN_BYTES), node=7, config=bytes.fromhex(CONFIG))
    reply = Owner(tmp_path).asked(hello.encode(SERVER))
    other = Hello(run=bytes(RUN_BYTES), node=8, config=bytes.fromhex(CONFIG))
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        Introduction.decode(reply, other, ROSTER.clients)


def test_a_round_of_four_agents_gives_the_sum(tmp_path):
    owners = {name: Owner(tmp_path, name) for name in NAMES}
    server = carried(owners)
    assert server.survivors == NAMES
    assert np.array_equal(server._half.result.total, 4 * owners["site-0"].site.vector)
    assert all(any(line["event"] == "charged" for line in own.said) for own in owners.values())


def test_a_masked_input_leaves_only_after_it_was_charged(tmp_path, monkeypatch):
    owners = {name: Owner(tmp_path, name) for name in NAMES}

    def full(session):
        raise LocalProtocolError("the disk is full")

    monkeypatch.setattr(owners["site-2"].spending, "charge", full)
    server = carried(owners)
    assert server.survivors == ("site-0", "site-1", "site-3")
    assert "the disk is full" in owners["site-2"].log.getvalue()


@pytest.mark.parametrize(
    ("changed", "owners", "why"),
    [
        ({"key": IdentityKey.generate()}, {}, "does not verify"),
        ({"sizes": {"site-0": 2, "site-1": 1, "site-2": 1}}, {}, "sizes.site-0 = 2"),
        ({"sizes": dict.fromkeys([*NAMES, "ghost"], 1)}, {}, "'ghost' is not in the roster"),
        ({"sizes": dict.fromkeys(NAMES[1:], 1)}, {}, "sizes.site-0 = None"),
        ({"figures": True}, {"floors": {"exact_figures": False}}, "exact_figures"),
        ({}, {"floors": {"min_clients": 5}}, "min_clients"),
        ({}, {"floors": {"min_threshold": 4}}, "min_threshold"),
        ({}, {"floors": {"max_clip_norm": 0.5}}, "max_clip_norm"),
        ({}, {"floors": {"max_dropout_fraction": 0.1}}, "max_dropout_fraction"),
        ({}, {"floors": {"min_corrupt_fraction": 0.3}}, "min_corrupt_fraction"),
        ({}, {"floors": {"max_delta": 1e-6}}, "max_delta"),
        ({}, {"floors": {"mechanisms": ["distributed"]}}, "mechanisms"),
    ],
)
def test_a_round_that_the_owner_does_not_allow_is_refused_and_explained(
    tmp_path, changed, owners, why
):
    owner = Owner(tmp_path, **owners)
    reply = owner.agent.handle(invitation(**changed))
    with pytest.raises(RemoteProtocolError, match=r"^refused: [A-Za-z]+$"):
        answered(reply)
    assert why in owner.said[-1]["why"]
    assert owner.said[-1]["event"] == "refused"
    assert why.encode() not in reply  # the reason stays with its owner
    assert owner.site.encoded == 0
    assert owner.spending.spent() == (0.0, 0.0)


def test_a_budget_that_is_spent_is_refused_before_any_work(tmp_path):
    owner = Owner(
        tmp_path,
        policy=SAMPLED,
        budget={"epsilon": 0.001},
        answers={"hold_seconds": 10.0},
    )
    with pytest.raises(RemoteProtocolError, match="BudgetExceeded"):
        owner.asked(invitation())
    assert owner.site.encoded == 0
    assert "budget.epsilon = 0.001" in owner.said[-1]["why"]


def test_a_secret_sample_is_refused_unless_answers_are_held_back(tmp_path):
    owner = Owner(tmp_path, policy=SAMPLED)
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(invitation())
    assert "hold_seconds" in owner.said[-1]["why"]


@pytest.mark.parametrize("work", [0.0, 1.0, 9.5])
def test_held_answers_leave_at_one_time_whatever_was_drawn(tmp_path, work):
    owner = Owner(tmp_path, policy=SAMPLED, work=work, answers={"hold_seconds": 10.0})
    owner.asked(invitation())
    assert owner.time.now == pytest.approx(10.0)
    assert owner.site.encoded == 1


def test_work_that_takes_longer_than_answers_are_held_is_a_refusal_at_a_multiple(tmp_path):
    owner = Owner(tmp_path, policy=SAMPLED, work=13.0, answers={"hold_seconds": 10.0})
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(invitation())
    assert owner.time.now == pytest.approx(20.0)
    assert owner.spending.spent() == (0.0, 0.0)


def test_a_session_is_taken_once(tmp_path):
    owner = Owner(tmp_path)
    owner.asked(invitation())
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(invitation())
    assert "needs a new one" in owner.said[-1]["why"]


def test_sessions_are_remembered_up_to_a_bound_and_none_is_charged_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "_MOST_SEEN", 3)
    owners = {name: Owner(tmp_path, name) for name in NAMES}
    carried(owners)
    for owner in owners.values():
        for number in range(5):
            owner.asked(invitation(bytes([number]) * 16))
        assert len(owner.agent._seen) == 3
        with pytest.raises(RemoteProtocolError, match="refused"):
            owner.asked(invitation(bytes([4]) * 16))
    with pytest.raises(ThresholdNotMet):
        carried(owners)  # forgotten as an invitation, not as a charge
    assert "charged before" in owners["site-0"].said[-1]["why"]


def test_a_new_invitation_ends_the_round_before_and_its_steps_are_refused(tmp_path):
    owner = Owner(tmp_path)
    owner.asked(invitation(b"a" * 16))
    owner.asked(invitation(b"b" * 16))
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(Step(b"a" * 16, b"anything").encode())
    assert "no round that this agent is in" in owner.said[-1]["why"]


def test_an_agent_that_was_restarted_is_in_no_round(tmp_path):
    owner = Owner(tmp_path)
    owner.asked(invitation())
    owner.stop()
    again = Owner(tmp_path)
    with pytest.raises(RemoteProtocolError, match="refused"):
        again.asked(Step(b"s" * 16, b"anything").encode())


@pytest.mark.parametrize("garbage", [b"", b"x", b"SFED\x01\x60", b"SFED\x01\x0c" + bytes(80)])
def test_garbage_is_refused_and_the_round_goes_on(tmp_path, garbage):
    owner = Owner(tmp_path)
    owner.asked(invitation())
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(garbage)
    assert owner.agent._round is not None


def test_a_message_of_the_wrong_stage_is_refused_and_changes_nothing(tmp_path):
    owner = Owner(tmp_path)
    owner.asked(invitation())
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(Step(b"s" * 16, b"SFED\x01\x0e" + bytes(8)).encode())
    assert owner.agent._round[1]._half.state.value == "advertised"


def test_roster_identity_and_policy_must_be_of_one_client_and_one_server(tmp_path):
    others = Roster(IdentityKey.generate().public, dict(ROSTER.clients))
    with pytest.raises(ConfigError, match="server"):
        Owner(tmp_path / "a", roster=others)
    swapped = Roster(
        SERVER.public,
        dict(ROSTER.clients)
        | {"site-0": ROSTER.clients["site-1"], "site-1": ROSTER.clients["site-0"]},
    )
    with pytest.raises(ConfigError, match="site-0"):
        Owner(tmp_path / "b", roster=swapped)


def test_another_run_file_or_model_is_refused_at_the_start(tmp_path):
    with pytest.raises(LocalProtocolError, match=r"runs\.models"):
        Owner(tmp_path, runs={"configurations": [CONFIG], "models": ["33" * 32]})


def test_it_is_never_serialised(tmp_path):
    owner = Owner(tmp_path)
    with pytest.raises(TypeError):
        pickle.dumps(owner.agent)


def test_its_log_holds_no_key_material(tmp_path):
    owners = {name: Owner(tmp_path, name) for name in NAMES}
    carried(owners)
    for name, owner in owners.items():
        secret = KEYS[name]._key.private_bytes_raw()
        text = owner.log.getvalue()
        assert secret.hex() not in text
        assert set().union(*(line.keys() for line in owner.said)) <= {
            "time", "event", "round", "session", "of", "cohort", "epsilon_in_all", "delta_in_all",
            "unit", "adjacency", "against", "epsilon_budget", "delta_budget",
            "request", "kind", "why",
        }  # fmt: skip


def test_a_later_roster_ends_the_round_that_was_begun_under_the_one_before(tmp_path):
    owner = Owner(tmp_path)
    owner.asked(invitation())
    later = Roster(SERVER.public, {n: k for n, k in ROSTER.clients.items() if n != "site-3"})
    owner.agent.renew(later)
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(Step(b"s" * 16, b"anything").encode())
    assert "no round that this agent is in" in owner.said[-1]["why"]
    with pytest.raises(RemoteProtocolError, match="refused"):
        owner.asked(invitation(b"t" * 16))
    assert "'site-3' is not in the roster" in owner.said[-1]["why"]


@pytest.mark.parametrize("clients", [{"site-0": KEYS["site-1"]}, {"site-1": KEYS["site-1"]}])
def test_a_roster_that_revokes_this_client_is_no_roster_to_go_by(tmp_path, clients):
    owner = Owner(tmp_path)
    later = Roster(SERVER.public, {name: key.public for name, key in clients.items()})
    with pytest.raises(ConfigError, match="site-0"):
        owner.agent.renew(later)
