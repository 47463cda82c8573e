"""Noise correlated over rounds, through the halves of a protocol that run apart."""

import hashlib
import secrets
from dataclasses import replace

import numpy as np
import pytest

from securefed import PairwiseAggregation, PlaintextAggregation, secure_round
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.engines.in_process import carry
from securefed.errors import BudgetExceeded, ConfigError, LocalProtocolError
from securefed.evidence.budget import ClientBudget
from securefed.federation.account import open_account
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.accounting import ADVERSARIES, guarantee
from securefed.privacy.calibration import calibrated_policy
from securefed.privacy.correlated_release import CorrelatedRelease, correlated_epsilon
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy

NAMES = ("ann", "bob", "cyd", "dan")
KEYS = {name: IdentityKey.generate() for name in NAMES}
DIMENSION = 500
POLICY = PrivacyPolicy(
    clip_norm=2.0,
    noise_multiplier=1.5,
    mechanism="central",
    unit="example",
    separation=6,
    bands=6,
    max_examples=3,
    rounds=12,
)
PLAN = plan_round(POLICY, cohort_size=4, dimension=DIMENSION)


def account_of(path, session, **options) -> ClientBudget:
    return open_account(path, session, "ann", against="release", **options)


def session_of(number, policy=POLICY, aggregation=None):
    return RoundSession(
        session=secrets.token_bytes(16),
        round=number,
        cohort=NAMES,
        roster={name: key.public for name, key in KEYS.items()},
        dimension=DIMENSION,
        policy=policy,
        aggregation=aggregation or PlaintextAggregation(),
        model=hashlib.sha256(b"model %d" % number).digest(),
    )


def state_of(seed=1):
    return CorrelatedRelease(POLICY.strategy, PLAN, generator=SeededNoiseGeneratorForTests(seed))


def opened(number, state, rows, aggregation=None):
    """One whole round in which every client has the same rows; the decoded sum."""
    session = session_of(number, aggregation=aggregation)
    server = ServerRound(session, correlated=state)
    clients = {
        name: ClientRound(
            session, name, KEYS[name], lambda codec, g: codec.encode_examples(rows, g)
        )
        for name in NAMES
    }
    carry(server, clients)
    assert np.array_equal(server.sum, server.sum)
    return server.sum


def test_over_rounds_the_noise_cancels_as_the_strategy_says():
    """Which it does only where all rounds share one rotation."""
    state, rounds = state_of(), 12
    sums = np.array([opened(t + 1, state, np.zeros((2, DIMENSION))) for t in range(rounds)])
    prefix = np.cumsum(sums, axis=0)
    found = np.sqrt((prefix**2).mean())
    unit = POLICY.noise_multiplier * POLICY.clip_norm
    assert found == pytest.approx(unit * POLICY.strategy.prefix_error(rounds), rel=0.05)
    independent = replace(POLICY, bands=1).strategy.prefix_error(rounds)
    assert found < 0.75 * unit * independent


@pytest.mark.parametrize("aggregation", [PlaintextAggregation(), PairwiseAggregation()])
def test_sums_come_back_with_the_noise_of_their_round(aggregation):
    row = np.zeros(DIMENSION)
    row[7] = 1.25
    state = state_of()
    for number in (1, 2):
        total = opened(number, state, np.array([row, row]), aggregation)
        assert total[7] == pytest.approx(8 * 1.25, abs=15.0)
        assert np.std(np.delete(total, 7)) == pytest.approx(3.0, rel=0.25)


def test_rotations_differ_from_round_to_round_only_without_correlation():
    vector = np.arange(DIMENSION, dtype=np.float64)
    plain = replace(POLICY, separation=None, bands=1)

    def image(session):
        return session.codec._rotation.forward(vector).tolist()

    assert image(session_of(1)) == image(session_of(2))
    assert image(session_of(1, plain)) != image(session_of(2, plain))


def test_a_quarter_of_the_ring_holds_every_honest_sum():
    plain = replace(POLICY, separation=None, bands=1)
    for examples in (3, 30, 10**3, 10**6):
        plans = [
            plan_round(replace(policy, max_examples=examples), cohort_size=4, dimension=DIMENSION)
            for policy in (POLICY, plain)
        ]
        assert plans[0].sum_bound <= 2 ** (plans[0].bits - 2)
        if examples == 30:
            assert plans[0].bits == plans[1].bits + 1
        if examples == 10**6:  # no wider ring: a coarser grid
            assert plans[0].bits == plans[1].bits == 32
            assert plans[0].clip_units < 0.51 * plans[1].clip_units


@pytest.mark.parametrize("change", [{"separation": 7}, {"bands": 5}])
def test_schedule_and_bands_are_agreed_on_and_priced(change, tmp_path):
    other = replace(POLICY, **change)
    # Side by side in one round: only the policy differs.
    ours = session_of(1)
    theirs = replace(ours, policy=other)
    assert ours.context.digest != theirs.context.digest
    assert ours.context.digest == replace(ours, policy=replace(POLICY)).context.digest
    (name,) = change
    account = account_of(tmp_path / "ann.jsonl", ours)
    with pytest.raises(LocalProtocolError, match=f"^{name} = "):
        account.charge(theirs.event())
    account.charge(ours.event())
    account.close()


def test_an_account_counts_the_rounds_that_its_client_missed(tmp_path):
    """Two charges six rounds apart are two participations of one example, not two rounds."""
    session = session_of(1)
    one, two = (session.guarantee("release", rounds=t).epsilon for t in (6, 12))
    for limit, allowed in ((0.999 * two, False), (two, True)):
        account = account_of(tmp_path / f"{allowed}.jsonl", session, limit=limit)
        account.charge(session.event())
        assert account.affords()
        again = session_of(7)
        if allowed:
            account.charge(again.event())
            assert account.charges == 2
            assert not account.affords(6)
        else:
            assert one < limit
            with pytest.raises(BudgetExceeded, match="epsilon to"):
                account.charge(again.event())
            account.charge(session_of(6).event())
        account.close()


def test_an_account_counts_a_second_run_and_a_second_try_as_new_cycles(tmp_path):
    session = session_of(1)
    two = session.guarantee("release", rounds=12).epsilon
    for numbers in ([1, 2, 1], [1, 2, 2]):
        account = account_of(tmp_path / f"{numbers[2]}.jsonl", session, limit=0.999 * two)
        for number in numbers[:2]:
            account.charge(session_of(number).event())
        with pytest.raises(BudgetExceeded):
            account.charge(session_of(numbers[2]).event())
        account.close()


def test_an_account_asks_which_round_a_charge_is_for(tmp_path):
    session = session_of(1)
    account = account_of(tmp_path / "ann.jsonl", session)
    for number in (None, 0, "2"):
        with pytest.raises(LocalProtocolError, match="round = "):
            account.charge(session.event() | {"round": number})
    assert account.charges == 0
    account.close()


def test_one_charge_costs_all_that_is_ever_released_of_it(tmp_path):
    """A client that is gone after its first round is in the releases of the next five."""
    session = session_of(1)
    now, later = (session.guarantee("release", rounds=t).epsilon for t in (1, 6))
    assert now < 0.9 * later
    short = account_of(tmp_path / "short.jsonl", session, limit=0.999 * later)
    with pytest.raises(BudgetExceeded):
        short.charge(session.event())
    short.close()
    account = account_of(tmp_path / "ann.jsonl", session, limit=later)
    for number in range(1, 7):  # the rest of the cycle costs nothing on top
        account.charge(session_of(number).event())
    with pytest.raises(BudgetExceeded):
        account.charge(session_of(7).event())
    account.close()


# Statements


def test_the_statement_is_of_the_whole_run_and_names_what_it_rests_on():
    for who in ADVERSARIES:
        found = guarantee(POLICY, PLAN, cohort_size=4, against=who)
        assert found.protected is (who != "server")
        text = str(found)
        for words in (
            "6 bands of correlation over rounds",
            "no distributed form",
            "takes part in every 6th round",
            "keep to the batches that they made once",
            "keeps sums before noise in memory, 5 at most",
            "trusted with each sum before noise",
        ):
            assert words in text
        assert "Poisson" not in text
    expected = correlated_epsilon(PLAN, POLICY.strategy, rounds=12, delta=POLICY.delta)
    assert guarantee(POLICY, PLAN, cohort_size=4, against="release").epsilon == expected


def test_one_band_costs_what_a_units_rounds_cost_by_themselves():
    policy = replace(POLICY, bands=1)
    plan = plan_round(policy, cohort_size=4, dimension=DIMENSION)
    found = guarantee(policy, plan, cohort_size=4, against="release", rounds=13).epsilon
    ideal = gaussian_epsilon(1.5, 1.0, 3, policy.delta)
    assert ideal <= found <= 1.02 * ideal


def test_noise_is_found_for_an_epsilon():
    found = calibrated_policy(POLICY, 3.0, cohort_size=4, dimension=DIMENSION, against="release")
    plan = plan_round(found, cohort_size=4, dimension=DIMENSION)
    epsilon = guarantee(found, plan, cohort_size=4, against="release").epsilon
    assert 0.98 * 3.0 < epsilon <= 3.0


# Refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mechanism": "distributed"}, "separation = 6: must be None with mechanism"),
        ({"unit": "client", "max_examples": None}, "separation = 6: must be None with mechanism"),
        ({"sampling_probability": 0.5}, "sampling_probability = 0.5: must be 1"),
        ({"bands": 7}, "bands = 7: must be in 1..6"),
        ({"bands": 0}, "bands = 0"),
        ({"separation": 0, "bands": 1}, "separation = 0"),
        ({"separation": None}, "bands = 6: must be 1 without a separation"),
    ],
)
def test_policies_that_it_is_not_there_for_are_refused(change, named):
    with pytest.raises(ConfigError, match=named):
        replace(POLICY, **change)


def test_a_server_without_the_runs_state_is_refused_and_so_is_one_with_a_needless_one():
    with pytest.raises(ConfigError, match="must be given the state of a run"):
        ServerRound(session_of(1))
    plain = replace(POLICY, separation=None, bands=1)
    with pytest.raises(ConfigError, match="must not be given the state of a run"):
        ServerRound(session_of(1, plain), correlated=state_of())


@pytest.mark.parametrize("change", [{"clip_norm": 1.0}, {"bands": 5}, {"max_examples": 300}])
def test_a_round_on_another_grid_or_for_another_matrix_is_refused(change):
    """Sums of clip 1 and clip 2 do not add up, and no sensitivity is stated for such a mixture."""
    with pytest.raises(ConfigError, match="needs one matrix, scale and ring"):
        ServerRound(session_of(2, replace(POLICY, **change)), correlated=state_of())


def test_one_round_by_itself_is_refused():
    with pytest.raises(ConfigError, match="separation = 6: noise is correlated"):
        secure_round({i: np.zeros((2, 5)) for i in range(4)}, privacy=POLICY)
