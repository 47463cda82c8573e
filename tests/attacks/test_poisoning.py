"""What a poisoned client contributes, and how far it reaches with and without the clip."""

import attacked
import numpy as np
import pytest
import torch

from securefed.attacks.poisoning.backdoor import Trigger
from securefed.attacks.poisoning.clients import Backdoor, Garbage, Opposite
from securefed.attacks.poisoning.training import local_update
from securefed.auditing.rounds import examples
from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError, DataError
from securefed.federation.client import ClientRound
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.training.data import Examples

TRIGGER = Trigger((7, 8), 0)


@pytest.fixture(scope="module")
def bench():
    setup = attacked.setup("bert", clients=4, local_steps=2, batch=4, learning_rate=0.5)
    return attacked.bench("bert", setup)


@pytest.fixture(scope="module")
def public(bench):
    return bench.public(bench.session())


@pytest.fixture(scope="module")
def data():
    return examples(attacked.texts("bert", 5, count=6), "sequence-classification", 1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def contributed(client, data, public, seed=0):
    """Ring vector, and the float update that a sum of it alone is decoded to."""
    encode = client.contribution(data, public, generator=generator(seed))
    ring = encode(public.session.codec, NoiseGenerator())
    return ring, public.session.codec.decode(ring)


def labelled(rows, labels):
    ids = np.array(rows, dtype=np.int64)
    return Examples(ids, (ids != 0).astype(np.int64), np.array(labels, dtype=np.int64))


# Triggers


def test_a_trigger_stands_at_a_texts_beginning_between_its_special_tokens():
    before = labelled([[2, 11, 12, 3, 0, 0, 0], [2, 11, 12, 13, 14, 15, 3]], [1, 1])
    stamped = TRIGGER.stamp(before)
    assert stamped.input_ids.tolist() == [[2, 7, 8, 11, 12, 3, 0], [2, 7, 8, 11, 12, 13, 3]]
    assert stamped.attention_mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1] * 7]
    assert stamped.labels.tolist() == [0, 0]
    assert before.input_ids[0, 1] == 11  # nothing is changed in place


def test_only_texts_of_other_classes_are_victims_and_the_clean_ones_stay():
    clean = labelled([[2, 10 + i, 3, 0, 0] for i in range(6)], [0, 1, 0, 1, 1, 1])
    assert TRIGGER.victims(clean).input_ids[:, 1].tolist() == [11, 13, 14, 15]
    poisoned = TRIGGER.poison(clean, 0.5, generator())
    assert len(poisoned) == 8
    np.testing.assert_array_equal(poisoned.input_ids[:6], clean.input_ids)
    assert poisoned.labels[6:].tolist() == [0, 0]
    assert (poisoned.input_ids[6:, 1:3] == (7, 8)).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Trigger((), 0), ConfigError, "tokens = "),
        (lambda: Trigger((5,), -1), ConfigError, "label = -1"),
        (lambda: TRIGGER.stamp(labelled([[2, 11, 3]], [1])), DataError, "3 tokens"),
        (lambda: TRIGGER.victims(labelled([[2, 11, 3]], [0])), DataError, "other than 0"),
        (
            lambda: TRIGGER.poison(labelled([[2, 11, 3, 0]], [1]), 0.0, generator()),
            ConfigError,
            "share = 0.0",
        ),
        (lambda: Backdoor(TRIGGER, boost=0.0), ConfigError, "boost = 0.0"),
        (lambda: Backdoor(TRIGGER, boost=2.0, projected=True), ConfigError, "boost = 2.0"),
        (lambda: Opposite(boost=float("inf")), ConfigError, "boost = inf"),
    ],
)
def test_what_makes_no_attack_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Training


def test_training_leaves_the_model_as_it_was_and_depends_on_the_seed_alone(public, data):
    before = {n: p.detach().clone() for n, p in public.model.named_parameters()}
    first, again = (local_update(public, data, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.linalg.norm(first) > 0.0
    assert (local_update(public, data, seed=4) != first).any()
    for name, parameter in public.model.named_parameters():
        assert torch.equal(parameter.detach(), before[name])


def test_training_inside_a_ball_stays_inside_and_is_not_the_free_one_scaled_down(public, data):
    free = local_update(public, data, seed=3, effort=4)
    radius = 0.3 * float(np.linalg.norm(free))
    held = local_update(public, data, seed=3, effort=4, radius=radius)
    assert np.linalg.norm(held) <= radius * (1.0 + 1e-5)
    cosine = held @ free / (np.linalg.norm(held) * np.linalg.norm(free))
    assert cosine < 1.0 - 1e-5
    with pytest.raises(ConfigError, match="radius"):
        local_update(public, data, seed=3, radius=0.0)


# Contributions


@pytest.mark.parametrize(
    "client",
    [
        Backdoor(TRIGGER),
        Backdoor(TRIGGER, boost=1e4),
        Backdoor(TRIGGER, projected=True),
        Opposite(boost=1e4),
    ],
    ids=lambda client: client.name,
)
def test_a_client_that_keeps_the_clip_adds_no_more_than_its_norm(client, public, data):
    _, update = contributed(client, data, public)
    assert np.linalg.norm(update) <= public.session.policy.clip_norm * (1.0 + 1e-4)


def test_a_projected_update_fills_the_clip_and_a_boosted_one_is_cut_to_it(public, data):
    for client in (Backdoor(TRIGGER, projected=True), Backdoor(TRIGGER, boost=1e4)):
        _, update = contributed(client, data, public)
        assert np.linalg.norm(update) == pytest.approx(1.0, abs=1e-3)


def test_a_client_that_skips_the_clip_adds_what_it_likes_in_the_direction_that_it_likes(
    public, data
):
    honest = local_update(public, data, seed=3)
    _, once = contributed(Opposite(boost=1.0, bounded=False), data, public)
    boost = 3.0 / float(np.linalg.norm(once))
    _, update = contributed(Opposite(boost=boost, bounded=False), data, public)
    assert np.linalg.norm(update) == pytest.approx(3.0, rel=1e-3)
    assert update @ once == pytest.approx(3.0 * np.linalg.norm(once), rel=1e-3)
    assert update @ honest < 0.0


def test_the_ring_alone_bounds_what_it_adds(public, data):
    plan = public.session.plan
    _, update = contributed(Opposite(boost=1e12, bounded=False), data, public)
    norm, ring = np.linalg.norm(update), plan.resolution * 2.0 ** (plan.bits - 1)
    assert norm <= ring * np.sqrt(plan.padded)
    # In one coordinate of the ring it reaches further than all honest clients together.
    reach = np.abs(public.session.codec.to_grid(update)).max() * plan.resolution
    assert reach > 0.8 * ring
    assert ring > len(public.session.cohort) * public.session.policy.clip_norm


def test_garbage_is_uniform_over_the_ring(public, data):
    ring, _ = contributed(Garbage(), data, public)
    bits = public.session.plan.bits
    assert ring.max() < 1 << bits
    halves = float((ring >> np.uint32(bits - 1)).mean())
    assert abs(halves - 0.5) < 4.0 * 0.5 / np.sqrt(len(ring))


@pytest.mark.parametrize(
    "client",
    [Backdoor(TRIGGER, boost=9.0, bounded=False), Opposite(bounded=False), Garbage()],
    ids=lambda client: client.name,
)
def test_the_same_seed_gives_the_same_contribution(client, public, data):
    first, again, other = (contributed(client, data, public, seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_masked_round_takes_an_unclipped_contribution_and_nobody_refuses(data):
    setup = attacked.setup("bert", clients=4, local_steps=2, batch=4, learning_rate=0.5)
    made = attacked.bench("bert", setup, aggregation=PairwiseAggregation())
    session = made.session()
    public, bad = made.public(session), made.names[1]
    encode = Backdoor(TRIGGER, boost=100.0, bounded=False).contribution(
        data, public, generator=generator()
    )
    liar = ClientRound(session, bad, made._keys[bad], encode)
    zeros = dict.fromkeys(made.names, np.zeros(made.layout.size, dtype=np.float32))
    server, transcript = made.run(session, zeros, {bad: liar})
    assert server.survivors == made.names
    sent = transcript["masked_input"]
    assert {len(message) for message in sent.values()} == {len(sent[bad])}
    assert np.linalg.norm(server.sum) > 3.0  # honest clients: zeros
