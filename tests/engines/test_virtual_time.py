"""Real rounds of the masking protocol on a virtual clock."""

import hashlib
import secrets
from dataclasses import replace

import numpy as np
import pytest

from securefed.crypto.identity import IdentityKey
from securefed.engines.in_process import carry
from securefed.engines.sliced import secure_sliced_round
from securefed.engines.virtual_time import VirtualRound, modelled_seconds
from securefed.errors import ThresholdNotMet
from securefed.federation.capability import Assignment, CapabilityProfile, Workload
from securefed.federation.client import ClientRound
from securefed.federation.deadlines import DeadlineRule
from securefed.federation.scheduling import Rules, schedule
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation

DIMENSION = 2_000
FASTEST, SLOWEST = 1e-3, 2e-2
"""Seconds a token."""


def profiles(count=12, slow=3):
    """No two alike; the last ones some twenty times slower."""
    return {
        f"site-{n:02}": CapabilityProfile(
            memory=1 << 30,
            seconds_per_token=(SLOWEST if n >= count - slow else FASTEST) * (1 + n / 20),
            upload=1e5,
            download=1e5,
        )
        for n in range(count)
    }


def workload(clients):
    return Workload(
        clients=clients,
        corrupt=0.0,
        base_parameters=10**6,
        base_bytes=10**6,
        adapter_width=1000,
        travelling={4: DIMENSION},
        rank=4,
        tokens=32,
        token_bytes=1e3,
        filled=False,
        seconds_per_token=FASTEST,
    )


UNIFORM = Assignment(rank=4, local_steps=4, batch=8, micro_batch=8, bits=24)


def ran(members, *, rule=None, prepared=False, drop=None, charge=None):
    """One round of the protocol; whose sum it is, the sum, and the clock at its end."""
    names = tuple(sorted(members))
    identities = {name: IdentityKey.generate() for name in names}
    session = RoundSession(
        session=secrets.token_bytes(16),
        round=1,
        cohort=names,
        roster={name: key.public for name, key in identities.items()},
        dimension=DIMENSION,
        policy=PrivacyPolicy(
            clip_norm=1.0, mechanism="none", corrupt_fraction=0.0, dropout_fraction=0.25
        ),
        aggregation=PairwiseAggregation(bits=24),
        model=hashlib.sha256(b"none").digest(),
    )
    update = np.zeros(DIMENSION)
    update[0] = 0.5
    server = ServerRound(session)
    timing = VirtualRound(
        modelled_seconds(workload(len(names)), members, prepared=prepared),
        session.context.parameters,
        rule,
    )
    clients = {
        name: ClientRound(
            session,
            name,
            identities[name],
            lambda codec, generator: codec.encode_update(update, generator),
            charge=None if charge is None else lambda name=name: charge.append(name),
        )
        for name in names
    }
    carried = carry(server, clients, drop=drop, timing=timing)
    total = server.sum
    assert total[0] == pytest.approx(0.5 * len(server.survivors), abs=1e-3)
    return server.survivors, timing, carried


def members(given=UNIFORM, **options):
    return {name: (profile, given) for name, profile in profiles(**options).items()}


def test_the_clock_shows_what_the_cost_model_foretells():
    everyone = members()
    survivors, timing, _ = ran(everyone)
    assert len(survivors) == 12
    assert timing.late == {}
    foretold = workload(12).round_seconds(everyone.values())
    assert timing.now == pytest.approx(foretold, rel=0.01)
    assert list(timing.ends.values()) == sorted(timing.ends.values())


def test_a_deadline_leaves_the_slow_out_and_saves_what_they_would_take():
    """Nine are wanted and twelve invited; three of them are twenty times slower."""
    whole, patient, _ = ran(members())
    assert len(whole) == 12
    charged = []
    survivors, timing, _ = ran(
        members(), rule=DeadlineRule(seconds=3.0, patience=120.0), charge=charged
    )
    assert len(survivors) == 9
    assert timing.late == {f"site-{n}": "masked_input" for n in ("09", "10", "11")}
    assert timing.now < 0.4 * patient.now
    # They were late with a vector that they had charged.
    assert len(charged) == 12


def test_enough_answers_close_a_stage_at_once():
    rule = DeadlineRule(seconds=100.0, patience=120.0, enough=0.75)
    survivors, timing, _ = ran(members(), rule=rule)
    assert len(survivors) == 9
    slowest_kept = max(workload(12).seconds(*members()[name]) for name in survivors)
    assert timing.now == pytest.approx(slowest_kept, rel=0.1)


def test_who_is_late_after_preparing_has_charged_nothing():
    charged = []
    survivors, timing, _ = ran(
        members(),
        rule=DeadlineRule(seconds=3.0, patience=120.0),
        prepared=True,
        charge=charged,
    )
    assert set(timing.late.values()) == {"advertise"}
    assert sorted(charged) == sorted(survivors)
    assert len(survivors) == 9
    # All training was before the round: no later stage waits for it.
    training = max(workload(12).training_seconds(*members()[name]) for name in survivors)
    assert timing.now - timing.ends["advertise"] < 0.5 * training


def test_a_deadline_never_opens_a_sum_below_the_floor():
    # Four of twelve are slow: one more than the floor of nine allows.
    rule = DeadlineRule(seconds=3.0, patience=10.0)
    with pytest.raises(ThresholdNotMet, match="masked_input: 8 clients answered, at least 9"):
        ran(members(slow=4), rule=rule)
    # With patience the round waits for one of them, and no longer.
    survivors, timing, _ = ran(members(slow=4), rule=replace(rule, patience=120.0))
    assert len(survivors) == 9
    assert len(timing.late) == 3


def test_silent_and_late_clients_count_together():
    rule = DeadlineRule(seconds=3.0, patience=120.0)
    survivors, timing, _ = ran(members(), rule=rule, drop={"site-00": "masked_input"})
    assert len(survivors) == 9
    assert "site-00" not in survivors
    assert len(timing.late) == 2


def test_slices_cost_the_bytes_of_their_rounds():
    """Everybody holds every slice; who holds fewer sends less, and so do its partners."""
    names = [f"site-{n}" for n in range(10)]
    policy = PrivacyPolicy(clip_norm=1.0, mechanism="none", corrupt_fraction=0.0)
    real = secure_sliced_round(
        {name: np.full(3_000, 0.01) for name in names},
        widths=(1_000, 2_000),
        privacy=policy,
        aggregation=PairwiseAggregation(bits=24),
    )
    asked = replace(workload(10), travelling={2: 1_000, 4: 3_000})
    sliced = replace(UNIFORM, tiers=(2, 4))
    machine = replace(profiles()["site-00"], upload=1.0, download=1.0)
    parts = asked.parts(machine, sliced)  # a byte takes a second
    assert np.mean(list(real.bytes_up.values())) == pytest.approx(parts["upload"], rel=0.01)
    assert np.mean(list(real.bytes_down.values())) == pytest.approx(parts["download"], rel=0.01)
    assert parts["upload"] > asked.parts(machine, UNIFORM)["upload"]


def test_a_plan_ends_its_real_rounds_in_at_most_three_fifths_of_the_uniform_time():
    """Rank is not varied here: the vectors of one round have one length."""
    given = profiles()
    rules = Rules(
        uniform=UNIFORM,
        ranks=(4,),
        steps=(1, 2, 4),
        bits=(24,),
        periods=(1, 3),
        least_work=0.25,
        least_cohort=3,
    )
    plan = schedule(given, workload(12), rules)
    uniform = ran(members())[1].now
    clock = []
    for number in (1, 2, 3):
        names = plan.participants(number)
        chosen = {name: (given[name], plan.clients[name].assignment) for name in names}
        survivors, timing, _ = ran(chosen)
        assert survivors == names
        clock.append(timing.now)
    assert np.mean(clock) <= 0.6 * uniform
    assert np.mean(clock) == pytest.approx(plan.mean_seconds, rel=0.05)
