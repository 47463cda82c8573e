from dataclasses import replace

import numpy as np
import pytest
from audited import seeded

from securefed.auditing.releases import HonestClients, Releases, Setting
from securefed.errors import ConfigError
from securefed.privacy.policy import PrivacyPolicy

POLICY = PrivacyPolicy(
    clip_norm=0.5, noise_multiplier=1.0, corrupt_fraction=0.2, dropout_fraction=0.2
)
EXAMPLES = replace(POLICY, unit="example", max_examples=10)


class Recorded(HonestClients):
    """Honest, and keeps what each client contributed."""

    def __init__(self):
        self.made, self.codec = {}, None

    def contribute(self, codec, generator, rows, place):
        self.codec = codec
        self.made[place] = super().contribute(codec, generator, rows, place)
        return self.made[place].copy()


def setting(policy=POLICY, **options):
    values = {
        "policy": policy,
        "clients": 10,
        "adversary": "server",
        "dimension": 64,
        "sources": seeded(0),
    }
    return Setting(**(values | options))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("policy", [POLICY, EXAMPLES], ids=["client", "example"])
def test_a_release_is_bit_for_bit_the_sum_of_what_survivors_contributed(policy, masked):
    kept = Recorded()
    releases = Releases(setting(policy, masked=masked, behaviour=kept, clients=5))
    rows = {name: np.ones((1, 64)) for name in releases.names}
    released, known = releases.release(rows)
    assert sorted(kept.made) == [0, 1, 2, 4]  # the fourth fell silent, the fifth colludes
    bits = kept.codec.plan.bits
    total = sum(made.astype(np.uint64) for made in kept.made.values()) % (1 << bits)
    np.testing.assert_array_equal(released, kept.codec.decode(total.astype(np.uint32)))
    (own,) = known
    np.testing.assert_array_equal(own, kept.codec.decode(kept.made[4]))


def test_plaintext_rounds_have_the_plan_of_those_that_they_stand_for():
    plain, masked = Recorded(), Recorded()
    for kept, how in ((plain, False), (masked, True)):
        releases = Releases(setting(masked=how, behaviour=kept, clients=5))
        releases.release({name: np.zeros((1, 64)) for name in releases.names})
        assert kept.codec.plan == releases.stated.plan
    assert plain.codec.plan == masked.codec.plan


@pytest.mark.parametrize(
    ("adversary", "colluders", "carriers"),
    [("server", 2, 6), ("release", 0, 8), ("fellow_client", 1, 7)],
)
def test_noise_that_an_adversary_does_not_know_is_what_its_statement_counts(
    adversary, colluders, carriers
):
    chosen = setting(adversary=adversary, dimension=2048, canaries=1)
    assert (chosen.colluders, chosen.missing, chosen.carriers) == (colluders, 2, carriers)
    releases = Releases(chosen)
    released, known = releases.release({name: np.zeros((1, 2048)) for name in releases.names})
    assert len(known) == colluders
    unknown = released - sum(known, np.zeros(2048))
    # The honest floor is 6 clients: z speaks of their noise together.
    expected = POLICY.noise_multiplier * POLICY.clip_norm * (carriers / 6) ** 0.5
    assert unknown.std() == pytest.approx(expected, rel=0.06)


def test_canaries_that_are_in_are_in_the_sum_at_the_clip():
    quiet = PrivacyPolicy(clip_norm=0.5, mechanism="none", dropout_fraction=0.2)
    releases = Releases(setting(quiet, adversary="release", scale=50.0))
    inside, found = releases.observe(np.random.default_rng(0))
    assert len(inside) == 8
    assert 0 < inside.sum() < 8
    np.testing.assert_allclose(found, inside.astype(float), atol=1e-4)


def test_scores_add_up_over_composed_rounds():
    quiet = PrivacyPolicy(clip_norm=0.5, mechanism="none", dropout_fraction=0.2)
    releases = Releases(setting(quiet, adversary="release", composed=3))
    inside, found = releases.observe(np.random.default_rng(0))
    np.testing.assert_allclose(found, 3.0 * inside, atol=1e-4)
    assert releases.statement.rounds == 3


def test_examples_are_dealt_to_clients_and_the_sampler_decides_which_are_used():
    half = replace(EXAMPLES, sampling_probability=0.5, noise_multiplier=1e-3)
    releases = Releases(setting(half, adversary="release", canaries=60, dimension=128))
    inside, found = releases.observe(np.random.default_rng(0))
    used = found > 0.5
    assert not used[~inside].any()
    assert 0.2 < used[inside].mean() < 0.8


@pytest.mark.parametrize(
    ("policy", "options", "named"),
    [
        (replace(EXAMPLES, mechanism="local"), {}, "mechanism"),
        (replace(EXAMPLES, mechanism="central", separation=3), {"adversary": "release"}, "separat"),
        (replace(POLICY, sampling_probability=0.5), {}, "sampling_probability"),
        (POLICY, {"dropouts": 3}, "dropouts"),
        (POLICY, {"scale": 0.5}, "scale"),
        (POLICY, {"composed": 0}, "composed"),
        (POLICY, {"canaries": 7}, "canaries"),
        (EXAMPLES, {"canaries": 61}, "canaries"),
        (replace(POLICY, remove_excess_noise=True), {"dropouts": 1}, "remove_excess_noise"),
    ],
)
def test_what_cannot_be_audited_is_refused(policy, options, named):
    with pytest.raises(ConfigError, match=named):
        setting(policy, **options)
