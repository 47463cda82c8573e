"""Releases: an event on record prices what the statement prices, and a wrong statement is seen."""

import json
import math
from dataclasses import replace

import pytest
import rfc8785
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import UnsupportedEvent
from securefed.privacy.accounting import ADVERSARIES, guarantee
from securefed.privacy.additions import with_additions
from securefed.privacy.dp_events import decode_event, encode_event
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.releases import Release, release_of, sliced_release, unlike_release
from securefed.privacy.second_opinion import second_opinion
from securefed.privacy.slices import SliceTerms, sliced_guarantee
from securefed.privacy.unlike_rounds import RoundKind, policy_of_members, unlike_guarantee

CLIENTS = PrivacyPolicy(clip_norm=1.0, noise_multiplier=3.0, delta=1e-6)
SAMPLED = replace(CLIENTS, unit="example", sampling_probability=0.05, max_examples=40)
POLICIES = {
    "clients": CLIENTS,
    "examples": SAMPLED,
    "shown sample": replace(SAMPLED, sample_is_secret=False),
    "conditional": replace(CLIENTS, rounding="conditional"),
    "central": replace(CLIENTS, mechanism="central"),
    "cyclic": replace(
        CLIENTS, mechanism="central", unit="example", separation=4, bands=3, max_examples=40
    ),
    "local": replace(SAMPLED, mechanism="local", local_steps=3),
    "none": replace(CLIENTS, mechanism="none", noise_multiplier=0.0),
}


def stated(policy, against, rounds, **options):
    plan = plan_round(policy, cohort_size=12, dimension=500)
    arguments = {"cohort_size": 12, "against": against, "rounds": rounds} | options
    return guarantee(policy, plan, **arguments), release_of(policy, plan, **arguments)


def recorded(release: Release) -> Release:
    """As it comes back from a ledger."""
    return Release.of_record(json.loads(rfc8785.dumps(release.to_record())))


# -- the codec -------------------------------------------------------------------------------

FLOATS = st.floats(min_value=1e-300, max_value=1e300)
COUNTS = st.integers(min_value=0, max_value=2**53 - 1)
LEAVES = st.one_of(
    st.builds(dp_event.GaussianDpEvent, FLOATS),
    st.builds(dp_event.LaplaceDpEvent, FLOATS),
    st.builds(dp_event.DiscreteLaplaceDpEvent, FLOATS, COUNTS),
    st.builds(dp_event.RandomizedResponseDpEvent, FLOATS, COUNTS),
    st.builds(
        dp_event.MixtureOfGaussiansDpEvent,
        FLOATS,
        st.lists(FLOATS, max_size=3),
        st.lists(FLOATS, max_size=3),
    ),
    st.builds(dp_event.ZCDpEvent, FLOATS, FLOATS),
    st.sampled_from(
        [dp_event.NoOpDpEvent(), dp_event.NonPrivateDpEvent(), dp_event.UnsupportedDpEvent()]
    ),
)
EVENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(dp_event.PoissonSampledDpEvent, st.floats(0.0, 1.0), inner),
        st.builds(dp_event.SelfComposedDpEvent, inner, COUNTS),
        st.builds(dp_event.ComposedDpEvent, st.lists(inner, max_size=3)),
        st.builds(dp_event.SampledWithReplacementDpEvent, COUNTS, COUNTS, inner),
        st.builds(dp_event.SampledWithoutReplacementDpEvent, COUNTS, COUNTS, inner),
    ),
    max_leaves=6,
)


@given(EVENTS)
def test_an_event_comes_back_from_canonical_json_without_loss(event):
    assert decode_event(json.loads(rfc8785.dumps(encode_event(event)))) == event


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"type": "OtherDpEvent"},
        {"type": "GaussianDpEvent"},
        {"type": "GaussianDpEvent", "noise_multiplier": "1"},
        {"type": "GaussianDpEvent", "noise_multiplier": True},
        {"type": "GaussianDpEvent", "noise_multiplier": math.inf},
        {"type": "GaussianDpEvent", "noise_multiplier": 1.0, "more": 1},
        {"type": "SelfComposedDpEvent", "count": 1.5, "event": {"type": "NoOpDpEvent"}},
        {"type": "SelfComposedDpEvent", "count": -1, "event": {"type": "NoOpDpEvent"}},
        {"type": "ComposedDpEvent", "events": {"type": "NoOpDpEvent"}},
        {"type": ["GaussianDpEvent"], "noise_multiplier": 1.0},
    ],
)
def test_what_is_no_event_is_an_error_and_never_skipped(record):
    with pytest.raises(UnsupportedEvent, match="event: "):
        decode_event(record)


def test_an_event_of_an_unknown_class_is_not_written_as_another():
    class GaussianDpEvent(dp_event.GaussianDpEvent):
        pass

    for event in (GaussianDpEvent(1.0), dp_event.SingleEpochTreeAggregationDpEvent(1.0, 2)):
        with pytest.raises(UnsupportedEvent, match="is not among"):
            encode_event(event)
    deep = dp_event.NoOpDpEvent()
    for _ in range(20):
        deep = dp_event.SelfComposedDpEvent(deep, 1)
    with pytest.raises(UnsupportedEvent, match="nested more than"):
        decode_event(encode_event(deep))


# -- releases ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_the_event_on_record_has_the_epsilon_that_is_stated(name):
    """By the library's own accountant, from what a ledger holds."""
    against = "release" if "central" in POLICIES[name].mechanism else "server"
    statement, release = stated(POLICIES[name], against, 9)
    found = recorded(release)
    assert found == release
    if not statement.protected:
        assert found.event == dp_event.NonPrivateDpEvent()
        return

    def epsilon(delta):
        accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
        return accountant.compose(found.event).get_epsilon(delta)

    other = with_additions(epsilon, per_round=found.distance / 9, rounds=9, delta=found.delta)
    assert other == pytest.approx(statement.epsilon, rel=5e-3)


@pytest.mark.parametrize("against", ADVERSARIES)
@pytest.mark.parametrize("name", [n for n in POLICIES if n != "none"])
def test_a_statement_lies_between_two_other_accountants_and_a_smaller_one_is_refuted(name, against):
    statement, release = stated(POLICIES[name], against, 9)
    opinion = second_opinion(recorded(release))
    if not statement.protected:
        assert opinion.refutes(1e9)
        return
    assert not opinion.refutes(statement.epsilon)
    assert opinion.lower <= statement.epsilon <= opinion.upper
    assert opinion.refutes(0.97 * statement.epsilon)  # 3 % less than the truth is seen


def test_long_runs_of_rare_samples_are_bounded_as_closely():
    policy = replace(SAMPLED, sampling_probability=0.01, noise_multiplier=1.0)
    statement, release = stated(policy, "server", 300)
    opinion = second_opinion(release)
    assert 0.97 * statement.epsilon <= opinion.lower <= statement.epsilon <= opinion.upper


def test_skellam_noise_is_of_no_class_and_not_taken_for_another():
    _, release = stated(replace(CLIENTS, noise="skellam"), "server", 9)
    assert recorded(release).event == dp_event.UnsupportedDpEvent()
    assert second_opinion(release) is None


def test_no_round_costs_nothing_and_a_plaintext_one_everything_against_the_server():
    statement, release = stated(CLIENTS, "server", 0)
    assert statement.epsilon == second_opinion(release).lower == 0.0
    _, release = stated(CLIENTS, "server", 1, plaintext=True)
    assert second_opinion(release).lower == math.inf
    _, release = stated(CLIENTS, "release", 1, plaintext=True)
    assert second_opinion(release).upper < math.inf


@pytest.mark.parametrize("against", ADVERSARIES)
def test_slices_and_unlike_rounds_have_the_event_of_their_statement(against):
    plan = plan_round(CLIENTS, cohort_size=12, dimension=500)
    slices = [SliceTerms(CLIENTS, plan, 12, None), SliceTerms(CLIENTS, plan, 9, None)]
    said = sliced_guarantee(slices, against=against, rounds=5, plaintext=False)
    opinion = second_opinion(sliced_release(slices, against=against, rounds=5, plaintext=False))
    assert 0.97 * said.epsilon <= opinion.lower <= said.epsilon <= opinion.upper
    kinds = []
    for members in (12, 8):
        own = policy_of_members(CLIENTS, members, 12)
        kinds.append(
            RoundKind(own, plan_round(own, cohort_size=members, dimension=500, bits=20), members)
        )
    said = unlike_guarantee(kinds, against=against, rounds=5)
    opinion = second_opinion(unlike_release(kinds, against=against, rounds=5, plaintext=False))
    assert 0.97 * said.epsilon <= opinion.lower <= said.epsilon <= opinion.upper


def test_a_release_of_another_kind_is_refused():
    record = stated(CLIENTS, "server", 3)[1].to_record()
    for change in ({"neighbours": "REPLACE_ONE"}, {"distance": None}, {"dp_event": 3}):
        with pytest.raises(UnsupportedEvent):
            Release.of_record(record | change)
