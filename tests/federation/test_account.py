"""A client's own account: bound to one kind of round, charged before anything leaves."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from securefed import (
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
    PrivacyPolicy,
    open_account,
)
from securefed.crypto.identity import IdentityKey
from securefed.engines.in_process import carry
from securefed.errors import BudgetExceeded, ConfigError, LedgerError, LocalProtocolError
from securefed.evidence.budget import ClientBudget, read_charges
from securefed.evidence.ledger import Ledger
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.adaptive_clip import AdaptiveClip

NAMES = ("ann", "bob", "cyd", "dee", "eve")
KEYS = {name: IdentityKey.generate() for name in (*NAMES, "fay")}
POLICY = PrivacyPolicy(
    clip_norm=1.0, noise_multiplier=1.0, unit="example", max_examples=5, sampling_probability=0.5
)


def session_of(number: int = 1, **changes) -> RoundSession:
    cohort = changes.pop("cohort", NAMES)
    base = {
        "session": number.to_bytes(16, "big"),
        "round": number,
        "cohort": cohort,
        "roster": {name: KEYS[name].public for name in cohort},
        "dimension": 20,
        "policy": POLICY,
        "aggregation": PairwiseAggregation(),
        "model": b"m" * 32,
    }
    return RoundSession(**(base | changes))


OTHER = {
    "clip_norm": {"clip_norm": 1.5},
    "noise_multiplier": {"noise_multiplier": 0.3},
    "delta": {"delta": 1e-3},
    "unit": {"unit": "client"},
    "mechanism": {"mechanism": "central"},
    "noise": {"noise": "skellam"},
    "sampling_probability": {"sampling_probability": 1.0},
    "sample_is_secret": {"sample_is_secret": False},
    "remove_excess_noise": {"remove_excess_noise": True},
    "corrupt_fraction": {"corrupt_fraction": 0.2},
    "dropout_fraction": {"dropout_fraction": 0.1},
    "max_examples": {"max_examples": 6},
    "local_steps": {"local_steps": 2},
    "adaptive_clip": {"adaptive_clip": AdaptiveClip(min_clip_norm=0.1, max_clip_norm=10.0)},
}
OTHERS = [
    *((name, {"policy": replace(POLICY, **change)}) for name, change in OTHER.items()),
    ("cohort_size", {"cohort": (*NAMES, "fay")}),
    ("dimension", {"dimension": 21}),
    ("bits", {"aggregation": PairwiseAggregation(bits=32)}),
    ("aggregation", {"aggregation": PlaintextAggregation()}),
]
CORRELATED = {"separation", "bands"}  # in test_correlated_rounds.py: for another mechanism
# ring_sigma in test_session.py: it takes 200 clients; rounding below: it takes unit = "client".
WITH_A_TEST_OF_ITS_OWN = {"ring_sigma", "rounding"} | CORRELATED


def test_every_figure_of_the_policy_but_the_number_of_rounds_is_tried():
    named = {"rounds", "rounding", *OTHER} | CORRELATED
    assert named == {field.name for field in fields(PrivacyPolicy)}
    assert session_of(policy=replace(POLICY, rounds=9)).priced() == session_of().priced()
    tried = {name for name, _ in OTHERS} | WITH_A_TEST_OF_ITS_OWN
    assert tried == set(session_of().priced())


@pytest.mark.parametrize(("field", "changes"), OTHERS, ids=[name for name, _ in OTHERS])
def test_a_round_at_another_price_is_not_charged_and_does_not_open_the_account(
    tmp_path, field, changes
):
    path = tmp_path / "ann.jsonl"
    other = session_of(2, **changes)
    account = open_account(path, session_of(), "ann")
    with pytest.raises(LocalProtocolError, match=f"^{field} = "):
        account.charge(other.event())
    account.charge(session_of().event())
    account.close()
    assert len(read_charges(path)) == 1
    with pytest.raises(ConfigError, match=f"^{field} = .*prices rounds with"):
        open_account(path, other, "ann")
    open_account(path, session_of(), "ann").close()  # the refusal let go of the file


ARRANGEMENTS = {
    "scheme": HomomorphicAggregation(scheme="ckks"),
    "key_holder": HomomorphicAggregation(key_holder="cohort"),
    "masked": HomomorphicAggregation(masked=True),
    "aggregation": PairwiseAggregation(),
}


@pytest.mark.parametrize("field", ARRANGEMENTS)
def test_an_account_of_encrypted_rounds_does_not_mix_whom_they_trust(tmp_path, field):
    told = session_of(aggregation=HomomorphicAggregation())
    other = session_of(2, aggregation=ARRANGEMENTS[field])
    account = open_account(tmp_path / "ann.jsonl", told, "ann")
    with pytest.raises(LocalProtocolError, match=f"^{field} = "):
        account.charge(other.event())
    account.charge(told.event())
    account.close()
    for first, second in ((told, other), (other, told)):
        path = tmp_path / f"{first.round}.jsonl"
        open_account(path, first, "ann").close()
        with pytest.raises(ConfigError, match=f"^{field} = .*prices rounds with"):
            open_account(path, second, "ann")


def test_a_round_that_rounds_otherwise_is_not_charged(tmp_path):
    usual = replace(POLICY, unit="client", max_examples=None)
    other = replace(usual, rounding="conditional")
    account = open_account(tmp_path / "ann.jsonl", session_of(policy=usual), "ann")
    with pytest.raises(LocalProtocolError, match=r"^rounding = 'conditional'"):
        account.charge(session_of(2, policy=other).event())
    assert account.charges == 0
    account.close()


def test_a_charge_without_one_of_the_figures_or_its_session_is_refused(tmp_path):
    account = open_account(tmp_path / "ann.jsonl", session_of(), "ann")
    whole = session_of().event()
    for field in (*session_of().priced(), "session"):
        with pytest.raises(LocalProtocolError, match=f"^{field}"):
            account.charge({name: value for name, value in whole.items() if name != field})
    assert account.charges == 0
    account.close()


def test_an_account_counts_over_openings_and_refuses_before_its_limit_is_passed(tmp_path):
    path = tmp_path / "ann.jsonl"
    epsilon = [session_of().guarantee("server", rounds=n).epsilon for n in range(4)]
    limit = (epsilon[2] + epsilon[3]) / 2
    for number in (1, 2):
        account = open_account(path, session_of(number), "ann", limit=limit)
        assert account.charges == number - 1
        account.charge(session_of(number).event())
        account.close()
    account = open_account(path, session_of(3), "ann", limit=limit)
    with pytest.raises(LocalProtocolError, match="charged before"):
        account.charge(session_of(2).event())
    with pytest.raises(BudgetExceeded, match="nothing was sent") as refusal:
        account.charge(session_of(3).event())
    account.close()
    # What it says is rounded up: never below what the round would cost.
    shown = float(str(refusal.value).split("epsilon to ")[1].split(";")[0])
    assert epsilon[3] <= shown <= 1.01 * epsilon[3]
    assert len(read_charges(path)) == 2


def test_another_clients_account_and_a_ledger_without_a_price_are_refused(tmp_path):
    path = tmp_path / "ann.jsonl"
    open_account(path, session_of(), "ann").close()
    with pytest.raises(ConfigError, match="account of 'ann', not of 'bob'"):
        open_account(path, session_of(), "bob")
    with Ledger.create(tmp_path / "bare.jsonl", {}, clock=lambda: "2026-01-01T00:00:00Z") as bare:
        with pytest.raises(ConfigError, match="prices no event"):
            ClientBudget(bare, event=session_of().priced(), epsilon_after=float)


def test_an_account_is_written_by_one_process_at_a_time(tmp_path):
    path = tmp_path / "ann.jsonl"
    account = open_account(path, session_of(), "ann")
    with pytest.raises(LedgerError, match="another process"):
        open_account(path, session_of(), "ann")
    account.close()


def test_the_account_of_a_client_holds_its_round_before_its_input_leaves(tmp_path):
    told = session_of(policy=replace(POLICY, unit="client", max_examples=None))
    accounts = {name: open_account(tmp_path / f"{name}.jsonl", told, name) for name in NAMES}
    server = ServerRound(told)
    held: dict[Path, int] = {}

    class Watched:
        def __init__(self, name, client):
            self.path, self.client = tmp_path / f"{name}.jsonl", client

        def start(self):
            return self.client.start()

        def handle(self, message):
            answer = self.client.handle(message)
            if server.stage == "masked_input":
                held[self.path] = len(read_charges(self.path))
            return answer

    clients = {
        name: ClientRound(
            told,
            name,
            KEYS[name],
            lambda c, g: c.encode_update(np.zeros(20), g),
            charge=lambda name=name: accounts[name].charge(told.event()),
        )
        for name in NAMES
    }
    carry(server, {name: Watched(name, client) for name, client in clients.items()})
    for account in accounts.values():
        account.close()
    assert list(held.values()) == [1] * 5
    assert read_charges(tmp_path / "ann.jsonl")[0].body == told.event()


def test_one_account_prices_every_clip_of_an_adaptive_policy_and_no_other_rule(tmp_path):
    rule = AdaptiveClip(min_clip_norm=0.1, max_clip_norm=10.0)
    policy = replace(POLICY, adaptive_clip=rule)
    path = tmp_path / "account.jsonl"
    for number, fraction in ((1, 0.9), (2, 0.2)):
        session = session_of(number, policy=policy)
        account = open_account(path, session, "ann")
        account.charge(session.event())
        account.close()
        policy = policy.after(fraction)
    clips = [record.body["clip_norm"] for record in read_charges(path)]
    assert clips == [1.0, 0.923116]
    for other in (None, replace(rule, count_weight=1.0), replace(rule, max_clip_norm=11.0)):
        with pytest.raises(ConfigError, match=r"^adaptive_clip|^clip_norm"):
            open_account(path, session_of(3, policy=replace(POLICY, adaptive_clip=other)), "ann")


CLIENTS = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, sampling_probability=0.01)


def test_an_account_credits_no_sampling_of_clients(tmp_path):
    """The server may invite one client to every round, whatever probability it names."""
    sampled = session_of(policy=replace(CLIENTS, mechanism="central"))
    whole = session_of(policy=replace(CLIENTS, mechanism="central", sampling_probability=1.0))
    one = whole.guarantee("release", rounds=1).epsilon
    assert sampled.guarantee("release", rounds=1).epsilon < one / 3
    account = open_account(
        tmp_path / "ann.jsonl", sampled, "ann", limit=0.999 * one, against="release"
    )
    with pytest.raises(BudgetExceeded):
        account.charge(sampled.event())
    assert account.charges == 0
    account.close()


def test_a_server_cannot_make_a_limit_speak_of_somebody_else(tmp_path):
    path = tmp_path / "ann.jsonl"
    central = session_of(policy=replace(CLIENTS, mechanism="central"))
    account = open_account(path, central, "ann", limit=100.0)
    with pytest.raises(BudgetExceeded, match="nothing was sent"):
        account.charge(central.event())  # against the server nothing holds
    account.close()
    with pytest.raises(ConfigError, match=r"against = 'release': .* speaks of 'server'"):
        open_account(path, central, "ann", limit=100.0, against="release")
    trusting = tmp_path / "trusting.jsonl"
    account = open_account(trusting, central, "ann", limit=100.0, against="release")
    account.charge(central.event())
    account.close()


@pytest.mark.parametrize("field", ["against", "noise"])
def test_an_account_of_another_version_is_called_that(tmp_path, field):
    path = tmp_path / "ann.jsonl"
    priced = session_of().priced() | {"against": "server"}
    del priced[field]
    Ledger.create(
        path, {"client": "ann", "privacy": priced}, clock=lambda: "2026-01-01T00:00:00Z"
    ).close()
    with pytest.raises(ConfigError, match=f"^{field} = .* does not name it; .* another version"):
        open_account(path, session_of(), "ann")
