"""One secure sum a group: what each asks for, what it tells, and how far one client reaches."""

from dataclasses import replace

import numpy as np
import pytest

from securefed.attacks.poisoning.clients import unclipped
from securefed.crypto.identity import IdentityKey
from securefed.engines.in_process import carry
from securefed.errors import ConfigError, LocalProtocolError
from securefed.evidence.budget import read_charges
from securefed.federation.account import open_account
from securefed.federation.client import ClientRound
from securefed.federation.floors import ClientFloors
from securefed.federation.group_sums import GroupedSession
from securefed.federation.robust_mean import robust_mean
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.adaptive_clip import AdaptiveClip
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import (
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
)

KEYS = {f"c{i:02}": IdentityKey.generate() for i in range(20)}
QUIET = PrivacyPolicy(clip_norm=1.0, mechanism="none", corrupt_fraction=0.1, dropout_fraction=0.0)
NOISED = replace(QUIET, mechanism="distributed", noise_multiplier=1.0)


def session_of(**changes):
    base = {
        "session": b"0123456789abcdef",
        "round": 3,
        "cohort": tuple(KEYS),
        "roster": {name: key.public for name, key in KEYS.items()},
        "groups": 5,
        "dimension": 40,
        "policy": QUIET,
        "aggregation": PairwiseAggregation(),
        "model": b"m" * 32,
    }
    return GroupedSession(**(base | changes))


def opened(session, encode):
    """Every group's mean, by real rounds; ``encode`` of a name and a codec."""
    means = []
    for one in session.sessions:
        server = ServerRound(one)
        clients = {
            name: ClientRound(
                one, name, KEYS[name], lambda codec, noise, n=name: encode(n, codec, noise)
            )
            for name in one.cohort
        }
        carry(server, clients)
        means.append(server.sum / len(server.survivors))
    return means


def updates(seed=0, dimension=40):
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=dimension) / np.sqrt(dimension)
    return {n: 0.5 * direction + 0.05 * rng.normal(size=dimension) for n in KEYS}


# The division


def test_every_client_is_in_one_group_and_groups_are_of_one_size():
    session = session_of()
    assert sorted(name for members in session.members for name in members) == sorted(KEYS)
    assert {len(members) for members in session.members} == {4}
    for number, one in enumerate(session.sessions):
        assert one.cohort == session.members[number]
        assert {session.group_of(name) for name in one.cohort} == {number}
    with pytest.raises(ConfigError, match="not in this cohort"):
        session.group_of("stranger")


def test_the_division_follows_from_the_sessions_name_and_changes_with_it():
    assert session_of().members == session_of().members
    assert session_of().members != session_of(session=b"fedcba9876543210").members
    assert session_of().members != session_of(round=4).members


def test_two_clients_meet_as_often_as_in_a_uniform_division():
    names, met, plain = list(KEYS), 0, PlaintextAggregation()
    for round in range(1, 41):
        session = session_of(round=round, aggregation=plain)
        pairs = zip(names[::2], names[1::2], strict=True)
        met += sum(session.group_of(one) == session.group_of(other) for one, other in pairs)
    assert 3 / 19 - 0.075 < met / 400 < 3 / 19 + 0.075  # four standard errors


def test_who_was_told_of_another_division_is_in_no_sum_with_the_rest():
    session = session_of()
    # The same members in one group, another division of the rest.
    first = session.members[0]
    other = object.__new__(GroupedSession)
    other.__dict__.update(vars(session) | {"members": (first, *reversed(session.members[1:]))})
    other.__dict__.pop("sessions")
    mine, theirs = session.sessions[0], other.sessions[0]
    assert mine.cohort == theirs.cohort
    assert mine.context.digest != theirs.context.digest


@pytest.mark.parametrize(
    "change",
    [
        {"model": b"n" * 32},
        {"dimension": 41},
        {"policy": replace(QUIET, clip_norm=2.0)},
        # The same for a group of four: two corrupt clients, no dropouts.
        {"policy": replace(QUIET, corrupt_fraction=0.11)},
        {"aggregation": PlaintextAggregation()},
    ],
    ids=["model", "dimension", "clip", "corrupt", "aggregation"],
)
def test_who_was_told_of_other_terms_is_in_no_sum_with_the_rest(change):
    ours, theirs = session_of(), session_of(**change)
    assert ours.members == theirs.members
    for one, other in zip(ours.sessions, theirs.sessions, strict=True):
        assert one.context.digest != other.context.digest


def test_no_two_groups_and_no_two_attempts_share_a_digest():
    digests = [one.context.digest for one in session_of().sessions]
    digests += [one.context.digest for one in session_of(session=b"f" * 16).sessions]
    assert len(set(digests)) == len(digests)


# What a group asks for


def test_a_group_has_the_floors_and_thresholds_of_its_size_with_all_corrupt_clients_in_it():
    for one in session_of().sessions:
        parameters = one.context.parameters
        assert (parameters.size, parameters.corrupt) == (4, 2)  # 2 of 20 corrupt, both in here
        assert parameters.survivor_floor == 4
        assert parameters.threshold == (4 + 2) // 2 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 1}, "groups = 1"),
        ({"groups": 6}, "groups = 6: must be >= 2 and divide"),
        ({"groups": 10}, r"group 0 of 2 clients: .*use fewer groups|2 may be corrupt"),
        ({"session": b"short"}, "session of 5 bytes"),
        # Each group would hold "c00" once only, and "c00" be in more than one of them.
        ({"cohort": ("c00", "c00", *list(KEYS)[:18])}, "without repeats"),
        ({"cohort": tuple(reversed(KEYS))}, "must be sorted"),
        ({"round": 0}, "round = 0"),
        ({"round": 1 << 32}, "round = 4294967296"),
        ({"aggregation": HomomorphicAggregation()}, "'pairwise' rounds only"),
        (
            {
                "policy": replace(
                    QUIET,
                    mechanism="central",
                    noise_multiplier=1.0,
                    unit="example",
                    max_examples=8,
                    separation=2,
                )
            },
            "separation = 2",
        ),
        (
            {
                "policy": replace(
                    QUIET,
                    adaptive_clip=AdaptiveClip(min_clip_norm=0.1, max_clip_norm=10.0),
                )
            },
            "adaptive_clip",
        ),
    ],
)
def test_what_leaves_no_safe_groups_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        session_of(**changes)


def test_a_clients_floors_are_held_against_its_group_and_not_the_cohort():
    session = session_of(policy=NOISED)
    one = session.sessions[session.group_of("c00")]
    ClientFloors(min_clients=4, min_noise_multiplier=1.0).check(one)
    with pytest.raises(LocalProtocolError, match="cohort of 4 clients"):
        ClientFloors(min_clients=5).check(one)


# Privacy


def alone(names, corrupt_fraction):
    """A round of these clients by themselves."""
    return RoundSession(
        session=b"0123456789abcdef",
        round=3,
        cohort=names,
        roster={name: key.public for name, key in KEYS.items()},
        dimension=40,
        policy=replace(NOISED, corrupt_fraction=corrupt_fraction),
        aggregation=PairwiseAggregation(),
        model=b"m" * 32,
    )


def test_a_grouped_round_states_the_epsilon_of_a_cohort_of_its_groups_size():
    grouped = session_of(policy=NOISED)
    # Two of four clients may be corrupt, as two of twenty are.
    small, whole = alone(tuple(KEYS)[:4], 0.5), alone(tuple(KEYS), 0.1)
    assert {(one.policy, one.plan) for one in grouped.sessions} == {(small.policy, small.plan)}
    stated = grouped.guarantee()
    assert stated == small.guarantee()
    # With the same noise in each sum: as against one sum of all, but for the grid.
    assert stated.epsilon == pytest.approx(whole.guarantee().epsilon, rel=5e-3)


def test_without_masks_groups_hold_nothing_against_the_server():
    plain = session_of(policy=NOISED, aggregation=PlaintextAggregation())
    assert plain.guarantee().epsilon == np.inf


def test_the_noise_of_all_groups_together_has_g_times_the_variance_of_one_sums():
    grouped = session_of(policy=NOISED, dimension=2000)
    zeros = {name: np.zeros(2000) for name in KEYS}
    means = opened(grouped, lambda name, codec, noise: codec.encode_update(zeros[name], noise))
    total = sum(4.0 * mean for mean in means)
    honest = 2.0  # of 4 in a group: the noise is sized for them, and all 4 add it
    expected = 5.0 * 1.0**2 * (4.0 / honest)
    assert float(np.var(total)) == pytest.approx(expected, rel=0.15)
    assert float(np.var(means[0])) == pytest.approx(expected / 5.0 / 4.0**2, rel=0.15)


def test_a_client_charges_its_account_once_a_round_and_not_for_other_groups(tmp_path):
    path = tmp_path / "account.jsonl"
    account = open_account(path, session_of(policy=NOISED), "c00")
    for round in (3, 4):
        one = session_of(policy=NOISED, round=round, session=bytes([round]) * 16)
        account.charge(one.event())
    account.close()
    assert [record.body["groups"] for record in read_charges(path)] == [5, 5]
    with pytest.raises(ConfigError):
        open_account(path, session_of(policy=NOISED, groups=4), "c00")


# Robustness


def test_masked_group_sums_are_the_means_of_their_members():
    session, own = session_of(), updates()
    means = opened(session, lambda name, codec, noise: codec.encode_update(own[name], noise))
    for mean, members in zip(means, session.members, strict=True):
        np.testing.assert_allclose(mean, np.mean([own[n] for n in members], axis=0), atol=1e-5)
    combined = robust_mean(means, rule="mean")
    np.testing.assert_allclose(combined, np.mean(list(own.values()), axis=0), atol=1e-5)


@pytest.mark.parametrize("rule", ["median", "trimmed", "geometric"])
def test_two_clients_that_skip_the_clip_move_a_mean_and_not_a_robust_one(rule):
    session, own = session_of(), updates()
    far = np.full(40, 1e3)

    def encode(name, codec, noise):
        if name in ("c03", "c11"):
            return unclipped(far, codec)
        return codec.encode_update(own[name], noise)

    means = opened(session, encode)
    honest = np.mean([update for name, update in own.items() if name not in ("c03", "c11")], axis=0)
    carried = np.linalg.norm(robust_mean(means, rule="mean") - honest)
    held = np.linalg.norm(robust_mean(means, rule=rule, tolerated=2) - honest)
    assert carried > 5.0 * np.linalg.norm(honest)
    assert held < 0.5 * np.linalg.norm(honest)


def test_one_client_reaches_far_beyond_the_clip_in_the_sum_that_it_is_in_and_in_no_other():
    session, own = session_of(), updates()
    number = session.group_of("c03")

    def encode(name, codec, noise):
        if name == "c03":
            return unclipped(np.full(40, 1e9), codec)
        return codec.encode_update(own[name], noise)

    means = opened(session, encode)
    plan = session.sessions[number].plan
    ring = plan.resolution * 2.0 ** (plan.bits - 1)
    norms = [float(np.linalg.norm(4.0 * mean)) for mean in means]
    assert norms[number] > 0.5 * ring  # honest clients: four of norm <= 1 each
    assert all(norm <= 4.0 for place, norm in enumerate(norms) if place != number)
