"""What removing excess noise wins back, in whole rounds through the real protocol."""

import gc
import hashlib
import math
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
from scipy.stats import chi2

from securefed import IdentityKey, PairwiseAggregation, PrivacyPolicy, RoundSession, secure_round
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.in_process import carry
from securefed.errors import ConfigError, LocalProtocolError, ThresholdNotMet
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.privacy.policy import CohortBounds
from securefed.secagg.aggregations import PlaintextAggregation
from securefed.secagg.noise_layers import NoiseLayers

CLIENTS, CORRUPT, MOST = 20, 2, 6
VALUES = 16384  # a variance is then known to 1.1 %: other ones are told apart by nine such steps
POLICY = PrivacyPolicy(
    clip_norm=1.0,
    noise_multiplier=1.0,
    corrupt_fraction=0.1,
    dropout_fraction=0.3,
    remove_excess_noise=True,
)


def noise_of(policy: PrivacyPolicy, missing: int) -> np.ndarray:
    """The sum of a round of zeros, in units of the std that the guarantee counts on."""
    names = [f"c{i:02}" for i in range(CLIENTS)]
    result = secure_round(
        dict.fromkeys(names, np.zeros(VALUES)),
        privacy=policy,
        drop=dict.fromkeys(names[:missing], "masked_input"),
    )
    plan = result.session.plan
    return result.sum / (plan.honest_std * plan.resolution)


def fits(noise: np.ndarray, variance: float) -> bool:
    """Chi-square: whether it could be Gaussian noise of that variance; wrong once in 10^6."""
    low, high = chi2.ppf([5e-7, 1 - 5e-7], noise.size)
    return bool(low <= float((noise**2).sum()) / variance <= high)


@pytest.mark.parametrize("missing", range(MOST + 1))
def test_the_sum_carries_what_the_survivors_retain_whatever_the_dropout(missing):
    """18 - D honest survivors have the target variance, so 20 - D have (20 - D) / (18 - D)."""
    present = CLIENTS - missing
    noise = noise_of(POLICY, missing)
    expected = present / (present - CORRUPT)
    assert fits(noise, expected)
    # The test can fail: a layer too much or too few is seen.
    for other in (0.85 * expected, 1.2 * expected):
        assert not fits(noise, other)


@pytest.mark.parametrize("missing", [0, 3, MOST])
def test_the_variance_won_back_is_the_ratio_of_honest_survivors(missing):
    """Without removal each client keeps 1 / 12 of the target; with it 1 / (18 - D)."""
    with_ = noise_of(POLICY, missing)
    without = noise_of(replace(POLICY, remove_excess_noise=False), missing)
    honest, floor = CLIENTS - CORRUPT - missing, CLIENTS - CORRUPT - MOST
    assert fits(without, (CLIENTS - missing) / floor)
    ratio = np.var(with_) / np.var(without)
    # Each variance is within 1 +- 0.011 at one standard deviation.
    assert ratio == pytest.approx(floor / honest, rel=0.15)
    if missing == 0:  # 12 / 18: a third of the variance
        assert ratio < 0.8


def session_of(size=8, aggregation=None, **changes) -> tuple[RoundSession, dict[str, IdentityKey]]:
    names = tuple(f"c{i:03}" for i in range(size))
    identities = {name: IdentityKey.generate() for name in names}
    session = RoundSession(
        session=b"s" * 16,
        round=1,
        cohort=names,
        roster={name: key.public for name, key in identities.items()},
        dimension=64,
        policy=replace(POLICY, **changes),
        aggregation=aggregation or PairwiseAggregation(),
        model=hashlib.sha256(b"no model").digest(),
    )
    return session, identities


def test_a_contribution_that_was_prepared_before_the_start_carries_its_layers():
    session, identities = session_of(dropout_fraction=0.25, corrupt_fraction=0.0)
    clients = {
        name: ClientRound(
            session, name, key, lambda codec, g: codec.encode_update(np.full(64, 1e-9), g)
        )
        for name, key in identities.items()
    }
    for client in clients.values():
        client.prepare()
    server = ServerRound(session)
    carry(server, clients, drop={"c003": "masked_input"})
    # Excess noise that was not in the sum, or not in all of it, would have shown here.
    assert server.sum.std() / session.plan.resolution == pytest.approx(
        session.plan.honest_std, rel=0.45
    )
    assert len(session.plan.removable_stds) == 2


def test_no_layers_outlive_a_round_that_ended_or_was_abandoned():
    for drop in ({}, {f"c{i:03}": "masked_input" for i in range(4)}):
        session, identities = session_of()
        clients = {
            name: ClientRound(
                session, name, key, lambda codec, g: codec.encode_update(np.zeros(64), g)
            )
            for name, key in identities.items()
        }
        server = ServerRound(session)
        if drop:
            with pytest.raises(ThresholdNotMet):
                carry(server, clients, drop=drop)
            clients.clear()  # who hears nothing more drops its half
        else:
            carry(server, clients)
        gc.collect()
        assert not [item for item in gc.get_objects() if type(item) is NoiseLayers]


def test_the_public_codec_does_not_encode_without_a_clients_layers():
    session, _ = session_of()
    with pytest.raises(ConfigError, match="layers of noise"):
        session.codec.encode_update(np.zeros(64), NoiseGenerator())
    other, _ = session_of(noise_multiplier=2.0, clip_norm=3.0, dropout_fraction=0.2)
    layers = NoiseLayers(other.context, "c001", lambda count: bytes(count))
    with pytest.raises(ConfigError, match="not those of the plan"):
        session.codec.with_layers(layers)


def test_one_clients_codec_encodes_once():
    session, _ = session_of()
    codec = session.codec.with_layers(NoiseLayers(session.context, "c001", bytes))
    codec.encode_update(np.zeros(64), NoiseGenerator())
    with pytest.raises(LocalProtocolError, match="already"):
        codec.encode_update(np.zeros(64), NoiseGenerator())


@pytest.mark.parametrize(
    "read",
    [attrgetter("plan"), attrgetter("context"), RoundSession.guarantee],
    ids=["plan", "context", "guarantee"],
)
def test_sums_from_which_noise_cannot_be_removed_are_refused_at_every_turn(read):
    """Not only where a context is made: a plan or a statement would already promise it."""
    for aggregation, size, why in (
        (PlaintextAggregation(), 8, "plaintext"),
        (PairwiseAggregation(), 240, "sparse"),
    ):
        session, _ = session_of(size, aggregation, corrupt_fraction=0.05, dropout_fraction=0.05)
        with pytest.raises(ConfigError, match=why):
            read(session)
    whole, _ = session_of(240, PairwiseAggregation(degree=239), corrupt_fraction=0.05)
    assert len(whole.context.noise_layers) == 72


def test_a_cohort_of_which_nobody_may_be_missing_has_no_layers_and_the_same_noise():
    session, _ = session_of(5, dropout_fraction=0.1)
    assert session.context.noise_layers == ()
    assert CohortBounds.of(session.policy, 5).most_missing == 0
    codec = session.codec
    ring = codec.decode(codec.encode_update(np.zeros(64), NoiseGenerator()))
    assert math.isclose(ring.std(), codec.plan.local_std * codec.plan.resolution, rel_tol=0.5)
