import itertools
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import norm

from securefed.errors import ConfigError, UnsupportedEvent
from securefed.privacy.accounting import ADVERSARIES, guarantee
from securefed.privacy.distance import total_variation_per_round
from securefed.privacy.mechanisms import ROUNDING_FAILURE, plan_round
from securefed.privacy.pld import distributed_epsilon, gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy

DELTA = 1e-5
Z = 4.0


def policy(**changes) -> PrivacyPolicy:
    base = {"clip_norm": 1.0, "noise_multiplier": Z, "delta": DELTA, "max_examples": 8}
    return PrivacyPolicy(**(base | changes))


def statement(
    against="server", *, size=10, dimension=1000, plaintext=False, key_holder=None, **changes
):
    settings = policy(**changes)
    plan = plan_round(settings, cohort_size=size, dimension=dimension)
    return guarantee(
        settings,
        plan,
        cohort_size=size,
        against=against,
        plaintext=plaintext,
        key_holder=key_holder,
    )


def analytic_epsilon(z: float, rounds: int, delta: float = DELTA) -> float:
    """The Gaussian mechanism without sampling: Balle and Wang 2018 (1805.06530), Theorem 8."""
    mu = math.sqrt(rounds) / z

    def excess(epsilon: float) -> float:
        tail = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return norm.cdf(mu / 2 - epsilon / mu) - tail - delta

    return brentq(excess, 0.0, 5000.0, xtol=1e-12)


def rdp_epsilon(z: float, q: float, rounds: int) -> float:
    event = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says which orders it drops
        return RdpAccountant().compose(event, rounds).get_epsilon(DELTA)


# The Gaussian's epsilon


@pytest.mark.parametrize(
    ("z", "q", "rounds", "expected"),
    [
        (0.6, 0.0161, 10, 3.26),
        (0.7, 0.00248, 25, 0.54),
        (1.0, 0.01, 100, 0.718),
        (1.0, 0.1, 100, 7.05),
        (1.0, 1.0, 1, 4.377),
        (1.0, 1.0, 100, 91.8),
        (5.0, 1.0, 100, 10.00),
    ],
)
def test_the_reference_table_is_met_and_renyi_accounting_is_never_smaller(z, q, rounds, expected):
    found = gaussian_epsilon(z, q, rounds, DELTA)
    assert found == pytest.approx(expected, rel=0.01)
    assert rdp_epsilon(z, q, rounds) >= found


@pytest.mark.parametrize(
    ("z", "rounds", "delta"),
    [(0.7, 1, 1e-5), (1.0, 1, 1e-5), (4.0, 30, 1e-6), (5.0, 100, 1e-5), (100.0, 1000, 1e-8)],
)
def test_without_sampling_epsilon_is_the_analytic_gaussians_from_above(z, rounds, delta):
    exact = analytic_epsilon(z, rounds, delta)
    assert exact <= gaussian_epsilon(z, 1.0, rounds, delta) <= exact * 1.001


@pytest.mark.parametrize(("z", "q"), [(1.0, 0.05), (2.0, 0.9)])
def test_one_sampled_round_is_the_exact_hockey_stick_divergence(z, q):
    """Both directions of adding or removing one unit, by the closed form of the mixture."""

    def delta_at(epsilon: float) -> float:
        # (1-q) N(0) + q N(1) against N(0), with std z: the loss exceeds epsilon beyond a point.
        growth = math.exp(epsilon)
        removed = 0.5 + z**2 * math.log((growth - 1 + q) / q)
        first = q * norm.sf((removed - 1) / z) + (1 - q - growth) * norm.sf(removed / z)
        if 1 / growth <= 1 - q:
            return first
        added = 0.5 + z**2 * math.log((1 / growth - 1 + q) / q)
        second = (1 - growth * (1 - q)) * norm.cdf(added / z) - growth * q * norm.cdf(
            (added - 1) / z
        )
        return max(first, second)

    found = gaussian_epsilon(z, q, 1, DELTA)
    assert delta_at(found) <= DELTA
    assert delta_at(found * 0.998) > DELTA


def test_epsilon_grows_with_rounds_and_sampling_and_falls_with_noise_and_delta():
    by_rounds = [gaussian_epsilon(4.0, 0.2, t, DELTA) for t in (0, 1, 2, 20, 21, 400)]
    by_sampling = [gaussian_epsilon(4.0, q, 10, DELTA) for q in (0.05, 0.2, 0.5, 1.0)]
    by_noise = [gaussian_epsilon(z, 0.2, 10, DELTA) for z in (6.0, 4.0, 3.0)]
    by_delta = [gaussian_epsilon(4.0, 0.2, 10, d) for d in (1e-3, 1e-4, 1e-5, 1e-9)]
    for series in (by_rounds, by_sampling, by_noise, by_delta):
        assert all(a < b for a, b in itertools.pairwise(series)), series
    assert by_rounds[0] == 0.0


def test_a_negative_number_of_rounds_is_refused():
    plan = plan_round(policy(), cohort_size=10, dimension=10)
    with pytest.raises(ConfigError, match="rounds = -1"):
        gaussian_epsilon(1.0, 1.0, -1, DELTA)
    with pytest.raises(ConfigError, match="rounds = -1"):
        guarantee(policy(), plan, cohort_size=10, rounds=-1)


# The distributed discrete Gaussian's epsilon


@pytest.mark.parametrize(
    ("z", "q", "rounds", "dimension"),
    [
        (1.0, 1.0, 1, 1),
        (0.6, 0.0161, 10, 23_040),
        (1.0, 0.01, 100, 10**6),
        (20.0, 1.0, 1000, 10**6),
        (10.0, 1.0, 1000, 300),
        (2.0, 0.02, 1000, 10**5),
    ],
)
def test_the_distributed_epsilon_is_within_two_percent_of_the_pure_gaussians(
    z, q, rounds, dimension
):
    settings = policy(noise_multiplier=z, unit="example")
    plan = plan_round(settings, cohort_size=10, dimension=dimension)
    found = distributed_epsilon(plan, honest=7, sampling_probability=q, rounds=rounds, delta=DELTA)
    pure = gaussian_epsilon(z, q, rounds, DELTA)
    assert pure < found <= 1.02 * pure


def coarse(local_std: float, sensitivity: float):
    """A one-coordinate round on a grid so coarse that its exact divergence can be summed up."""
    plan = plan_round(policy(), cohort_size=4, dimension=1)
    # K is shorter: what counts is the length after rounding.
    lengths = {"clip_units": 0.8 * sensitivity, "sensitivity": sensitivity}
    return replace(plan, padded=1, local_std=local_std, **lengths)


def exact_delta(std: float, shift: int, q: float, rounds: int, epsilon: float) -> float:
    """Hockey-stick divergence of ``rounds`` sampled discrete Gaussians, summed over the integers.

    The worse of the two directions.  The honest clients' sum is within 10^-30 of this.
    """
    k = np.arange(-int(9 * std) - shift, int(9 * std) + shift + 1)
    base = np.exp(-(k**2) / (2 * std**2))
    moved = np.exp(-((k - shift) ** 2) / (2 * std**2))
    absent = base / base.sum()
    present = (1 - q) * absent + q * moved / moved.sum()
    left, right = np.ones(1), np.ones(1)
    for _ in range(rounds):
        left = np.outer(left, present).ravel()
        right = np.outer(right, absent).ravel()
    growth = math.exp(epsilon)
    return max(
        float(np.maximum(left - growth * right, 0).sum()),
        float(np.maximum(right - growth * left, 0).sum()),
    )


@pytest.mark.parametrize(
    ("local_std", "honest", "shift", "q", "rounds"),
    [
        (16.0, 4, 32, 1.0, 1),
        (32.0, 4, 64, 0.05, 1),
        (16.0, 4, 16, 1.0, 2),
        (16.0, 9, 48, 0.2, 2),
        (4.0, 4, 4, 0.4, 3),
    ],
)
def test_the_stated_epsilon_is_that_of_the_integers_that_are_sent(
    local_std, honest, shift, q, rounds
):
    """An oracle that knows no continuous Gaussian: the discrete mechanism, value by value."""
    delta = 1e-3
    stated = distributed_epsilon(
        coarse(local_std, float(shift)),
        honest=honest,
        sampling_probability=q,
        rounds=rounds,
        delta=delta,
    )
    std = local_std * math.sqrt(honest)
    assert 0.1 < stated < 20
    assert exact_delta(std, shift, q, rounds, stated) <= delta
    assert exact_delta(std, shift, q, rounds, 0.97 * stated) > delta


def test_fewer_honest_clients_mean_less_noise():
    plan = plan_round(policy(), cohort_size=10, dimension=100)
    found = [
        distributed_epsilon(plan, honest=h, sampling_probability=1.0, rounds=1, delta=DELTA)
        for h in (10, 8, 7, 3)
    ]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(analytic_epsilon(Z * math.sqrt(3 / 7), 1), rel=0.01)


def test_epsilon_is_infinite_where_the_noises_shape_uses_delta_up():
    fine = plan_round(policy(), cohort_size=10, dimension=10**6)
    coarse_noise = replace(fine, local_std=4.0, clip_units=4.0, sensitivity=4.0)

    def epsilon(plan, rounds):
        return distributed_epsilon(
            plan, honest=9, sampling_probability=1e-3, rounds=rounds, delta=DELTA
        )

    assert math.isfinite(epsilon(fine, 100))
    assert epsilon(coarse_noise, 100) == math.inf
    # Of one coordinate's distance there is room for a while, not for ever.
    narrow = replace(coarse_noise, padded=1)
    assert math.isfinite(epsilon(narrow, 1))
    assert epsilon(narrow, 10**5) == math.inf


def test_epsilon_is_infinite_where_it_says_nothing():
    plan = plan_round(policy(noise_multiplier=2.0), cohort_size=10, dimension=10)
    run = {"sampling_probability": 1.0, "rounds": 5000, "delta": DELTA}
    assert analytic_epsilon(2.0, 5000) > 500
    assert distributed_epsilon(plan, honest=7, **run) == math.inf


def test_in_a_narrow_ring_more_of_delta_is_set_aside_for_the_noises_shape():
    """The additions grow as e^epsilon and with coarser noise; a fixed share would not hold them."""
    settings = policy(unit="example", max_examples=100, noise_multiplier=1.2)
    plan = plan_round(settings, cohort_size=10, dimension=4096, bits=20)
    assert plan.local_std < 300
    found = distributed_epsilon(plan, honest=7, sampling_probability=0.1, rounds=200, delta=DELTA)
    eta = total_variation_per_round(plan, 7)
    charged = (1 + math.exp(found)) * 200 * eta
    assert 0.001 * DELTA < charged < 0.5 * DELTA
    # What is left of delta after that is enough for the Gaussian at this epsilon.
    effective = math.sqrt(7 * plan.local_std**2 - 1 / 12) / plan.sensitivity
    assert gaussian_epsilon(effective, 0.1, 200, DELTA - charged) <= found


def without_sampling(epsilon: float, std: float):
    """A one-coordinate plan whose Gaussian, with 7 honest clients, has this epsilon at DELTA."""
    z = brentq(lambda z: analytic_epsilon(z, 1) - epsilon, 0.05, 10.0)
    sensitivity = std * math.sqrt(7) / z
    lengths = {"clip_units": 0.9 * sensitivity, "sensitivity": sensitivity, "padded": 1}
    return replace(plan_round(policy(), cohort_size=10, dimension=1), local_std=std, **lengths)


@pytest.mark.parametrize(
    ("std", "addition"),
    [
        # Noise so fine that its shape is nothing beside 2^-80: only rounding's failure counts.
        (2.0**23, ROUNDING_FAILURE),
        # Noise so coarse that 2^-80 is nothing beside its shape.
        (8.0, None),
    ],
    ids=["rounding", "shape"],
)
def test_each_addition_to_delta_ends_a_guarantee_where_it_uses_half_of_delta_up(std, addition):
    """(1 + e^epsilon) T (eta + beta) <= delta / 2, with either one deciding."""
    eta = total_variation_per_round(without_sampling(1.0, std), 7)
    if addition is None:
        addition = eta
        assert ROUNDING_FAILURE < 1e-9 * eta
    else:
        assert eta < 1e-2 * ROUNDING_FAILURE
    # Where the addition takes half of delta; from there on nothing is left for it.
    edge = math.log(0.5 * DELTA / addition - 1.0)
    run = {"honest": 7, "sampling_probability": 1.0, "rounds": 1, "delta": DELTA}
    below = distributed_epsilon(without_sampling(edge - 2.0, std), **run)
    assert edge - 2.0 < below < edge
    assert distributed_epsilon(without_sampling(edge + 0.1, std), **run) == math.inf


def test_no_noise_and_noise_coarser_than_the_accounting_are_refused():
    plan = plan_round(policy(), cohort_size=4, dimension=10)
    for local_std in (0.0, 1.9):
        with pytest.raises(UnsupportedEvent, match="grid units"):
            distributed_epsilon(
                replace(plan, local_std=local_std),
                honest=4,
                sampling_probability=1.0,
                rounds=1,
                delta=DELTA,
            )


# The statement


def test_each_adversary_is_credited_with_the_noise_that_it_does_not_know():
    """10 clients: 8 survive at least, 1 of them corrupt; noise is sized for 7."""
    z = {"server": Z, "fellow_client": Z, "release": Z * math.sqrt(8 / 7)}
    for who in ADVERSARIES:
        found = statement(who)
        assert found.epsilon == pytest.approx(analytic_epsilon(z[who], 1), rel=0.005), who
    # Without corrupt clients the server's view has more of the noise than a fellow client's.
    honest = {who: statement(who, corrupt_fraction=0.0).epsilon for who in ADVERSARIES}
    assert honest["server"] == honest["release"] < honest["fellow_client"]
    assert honest["fellow_client"] == pytest.approx(
        analytic_epsilon(Z * math.sqrt(7 / 8), 1), rel=0.005
    )


def test_corrupt_clients_cost_the_others_noise():
    plans = {
        gamma: plan_round(policy(corrupt_fraction=gamma), cohort_size=10, dimension=100)
        for gamma in (0.0, 0.3)
    }
    # The honest ones carry it all: each adds more when fewer are honest.
    relative = {gamma: plan.local_std / plan.clip_units for gamma, plan in plans.items()}
    assert relative[0.3] == pytest.approx(relative[0.0] * math.sqrt(8 / 5))


def test_sampling_of_clients_is_credited_against_the_release_only():
    q = 0.05
    found = {who: statement(who, sampling_probability=q) for who in ADVERSARIES}
    for who in ("server", "fellow_client"):
        assert found[who].epsilon == pytest.approx(analytic_epsilon(Z, 1), rel=0.005)
        assert "none credited" in found[who].sampling
        assert "who takes part is public" in found[who].adjacency
    assert found["release"].epsilon == pytest.approx(
        gaussian_epsilon(Z * math.sqrt(8 / 7), q, 1, DELTA), rel=0.01
    )
    assert "trusted sampler" in found["release"].sampling
    assert "who was drawn is not" in found["release"].adjacency
    assert any("drawn" in line for line in found["release"].assumptions)


@pytest.mark.parametrize("unit", ["example", "user"])
def test_a_clients_own_secret_sample_is_credited_against_everyone(unit):
    pure = gaussian_epsilon(Z, 0.05, 1, DELTA)
    for who in ADVERSARIES:
        found = statement(who, unit=unit, sampling_probability=0.05)
        assert f"of its {unit}s" in found.sampling
        assert 0.8 * pure < found.epsilon <= 1.01 * pure
        assert "q = 0.05" in found.sampling
        assert any("batch sizes" in line for line in found.assumptions)


@pytest.mark.parametrize("unit", ["example", "user", "client"])
def test_no_sampling_is_not_spoken_of_as_sampling(unit):
    for who in ADVERSARIES:
        assert "none credited" in statement(who, unit=unit).sampling
        assert "Poisson" not in statement(who, unit=unit).sampling


@pytest.mark.parametrize("unit", ["example", "user", "client"])
def test_a_sample_that_is_shown_is_credited_against_nobody(unit):
    """Not against the release either: who drew much may be too late for the sum."""
    for who in ADVERSARIES:
        shown = statement(who, unit=unit, sampling_probability=0.05, sample_is_secret=False)
        assert shown.epsilon == statement(who, unit=unit, sampling_probability=1.0).epsilon
        assert "none credited" in shown.sampling
        assert "Poisson" not in shown.sampling
        assert not any("not seen" in line for line in shown.assumptions)
        (by_index,) = [line for line in shown.assumptions if "not from what they hold" in line]
        assert ("how many examples a user has" in by_index) == (unit == "user")
        if unit != "client" or who == "release":
            assert "sample_is_secret = false" in shown.sampling
            secret = statement(who, unit=unit, sampling_probability=0.05)
            assert shown.epsilon > 1.5 * secret.epsilon


def test_steps_of_local_noise_count_with_q_1_where_the_sample_is_shown():
    changes = {"mechanism": "local", "unit": "example", "local_steps": 5, "rounds": 4}
    for who in ADVERSARIES:
        found = statement(who, sampling_probability=0.05, sample_is_secret=False, **changes)
        assert found.epsilon == gaussian_epsilon(Z, 1.0, 20, DELTA)
        assert "sample_is_secret = false" in found.sampling
        assert not any("not seen" in line for line in found.assumptions)


def test_statements_about_examples_say_that_one_must_not_move_anothers_vector():
    for changes in ({}, {"mechanism": "local"}):
        found = statement(unit="example", **changes)
        assert any("depends on no other example" in line for line in found.assumptions)
    assert not any("other example" in line for line in statement(unit="client").assumptions)


@pytest.mark.parametrize("mechanism", ["distributed", "central", "local", "none"])
def test_statements_about_users_say_what_one_is_and_what_is_left_out(mechanism):
    noise = {"noise_multiplier": 0.0} if mechanism == "none" else {}
    for who in ADVERSARIES:
        found = statement(who, unit="user", mechanism=mechanism, **noise)
        assert "all of one client's data under one user key" in found.unit
        assert "same person at two clients, or under two keys, is one user at each" in found.unit
        assert "how many users a client holds is public" in found.adjacency
        if mechanism != "none":
            assert any("depends on no other user" in line for line in found.assumptions)
            assert any("stand under one key" in line for line in found.assumptions)
        assert "example" not in f"{found.unit}{found.adjacency}{found.assumptions}"


def test_unmasked_sums_protect_nothing_against_the_server_and_still_the_release():
    for unit in ("client", "example"):
        found = {who: statement(who, unit=unit, plaintext=True) for who in ADVERSARIES}
        assert found["server"].epsilon == math.inf
        assert not found["server"].protected
        assert "NO differential privacy against the server" in str(found["server"])
        for who in ("release", "fellow_client"):
            assert found[who].epsilon == statement(who, unit=unit).epsilon
        for who in ADVERSARIES:
            assert "the server is trusted with every single contribution" in found[who].trust
            assert any("UNPROTECTED" in line for line in found[who].assumptions)
            assert not any("unmask fewer" in line for line in found[who].assumptions)
            assert not any("hides single" in line for line in found[who].assumptions)


def test_without_noise_every_statement_says_unprotected():
    for who in ADVERSARIES:
        found = statement(who, mechanism="none", noise_multiplier=0.0)
        assert found.epsilon == math.inf
        assert "NO differential privacy" in str(found)
        assert "UNPROTECTED" in str(found)
        assert "differential privacy for" not in str(found)


def test_noise_that_all_survivors_must_add_is_said_to_rest_on_all_of_them():
    assert "1 of 10 clients are corrupt" in statement("server").trust
    assert "every client follow" in statement("release").trust
    assert "every other client follow" in statement("fellow_client").trust


def test_local_noise_needs_no_other_party():
    changes = {"mechanism": "local", "unit": "example", "local_steps": 5, "rounds": 4}
    expected = gaussian_epsilon(Z, 0.05, 20, DELTA)
    for who in ADVERSARIES:
        for plaintext in (False, True):
            found = statement(who, plaintext=plaintext, sampling_probability=0.05, **changes)
            assert found.epsilon == expected
            assert "no other party is trusted" in found.trust


def test_rounds_are_those_of_the_policy_unless_others_are_given():
    settings = policy(rounds=7)
    plan = plan_round(settings, cohort_size=10, dimension=10)
    whole = guarantee(settings, plan, cohort_size=10)
    assert (whole.rounds, guarantee(settings, plan, cohort_size=10, rounds=3).rounds) == (7, 3)
    assert whole.epsilon == pytest.approx(analytic_epsilon(Z, 7), rel=0.005)
    assert guarantee(settings, plan, cohort_size=10, rounds=0).epsilon == 0.0


def test_an_unknown_adversary_is_refused():
    plan = plan_round(policy(), cohort_size=10, dimension=10)
    with pytest.raises(ConfigError, match="against = 'aliens'"):
        guarantee(policy(), plan, cohort_size=10, against="aliens")


def test_a_printed_epsilon_is_never_below_the_real_one():
    found = statement()
    texts = {
        0.5422: "0.543",
        4.371: "4.38",
        4.38: "4.38",
        2.9: "2.90",
        9.999: "10.0",
        1234.1: "1240",
    }
    for epsilon, printed in (texts | {0.0: "0"}).items():
        assert str(replace(found, epsilon=epsilon)).startswith(f"({printed}, 1e-05)-differential")
    for epsilon in np.random.default_rng(0).uniform(0.01, 400, 200):
        text = str(replace(found, epsilon=float(epsilon)))
        assert float(text[1 : text.index(",")]) >= epsilon


def test_a_statement_becomes_json_and_back():
    for found in (statement(), statement(plaintext=True)):
        record = json.loads(json.dumps(found.to_record(), allow_nan=False))
        assert set(record) == set(found.__dataclass_fields__)
        assert record["epsilon"] == (found.epsilon if found.protected else "unprotected")
        assert tuple(record["assumptions"]) == found.assumptions
        assert (record["delta"], record["against"]) == (DELTA, "server")


# Who can decrypt


def test_a_statement_says_who_can_decrypt_and_what_is_asked_of_them():
    found = {
        (holder, who): statement(who, key_holder=holder)
        for holder in (None, "decryptor", "cohort")
        for who in ADVERSARIES
    }
    for (holder, who), line in found.items():
        # Encryption changes nothing of the sum, so nothing of epsilon either.
        assert line.epsilon == found[None, who].epsilon
        assumed = "; ".join(line.assumptions)
        assert ("ring learning with errors at 128 bits" in assumed) == (
            holder is not None and who == "server"
        )
        assert ("clients refuse to unmask fewer" in assumed) == (holder is None)
    assert "decrypt" not in str(found[None, "server"]) + str(found[None, "fellow_client"])
    server = found["decryptor", "server"]
    assert "where it departs from it, no client helps it; the decryptor never does" in server.trust
    assert any("decryptor does not help the server" in line for line in server.assumptions)
    assert any("no client helps the server to depart" in line for line in server.assumptions)
    assert any("the decryptor refuses to open fewer" in line for line in server.assumptions)
    assert "it, the decryptor and every client follow" in found["decryptor", "release"].trust
    server = found["cohort", "server"]
    assert server.trust.endswith("no client helps it, for every client holds the key")
    assert "corrupt" not in server.trust
    assert any("which otherwise opens every contribution" in line for line in server.assumptions)
    fellow = found["cohort", "fellow_client"]
    assert any("gets no other client's ciphertexts" in line for line in fellow.assumptions)
    assert not any(
        "ciphertexts" in line for line in found["decryptor", "fellow_client"].assumptions
    )
