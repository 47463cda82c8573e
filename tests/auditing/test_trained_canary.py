"""A canary that is an example of real training: its gradient, clipped and summed with others."""

import numpy as np
import pytest
import torch
from attacked import bench, setup, texts
from audited import seeded

from securefed.auditing.canaries import scores
from securefed.auditing.lower_bounds import lower_bound
from securefed.auditing.releases import HonestClients, Releases, Setting
from securefed.auditing.rounds import CPU, examples
from securefed.privacy.policy import PrivacyPolicy
from securefed.training.dp_sgd import PerExampleGradients

CLIP = 0.05
POLICY = PrivacyPolicy(
    clip_norm=CLIP,
    noise_multiplier=0.5,
    unit="example",
    max_examples=4,
    corrupt_fraction=0.0,
    dropout_fraction=0.0,
)


class Training(HonestClients):
    """Each client sums the clipped gradients of two examples of its own; the first has a canary."""

    def __init__(self, gradients):
        self.gradients = gradients
        self.own = [examples(texts("bert", 10 + i, count=2), "sequence-classification", 1)
                    for i in range(4)]  # fmt: skip
        self.canary = examples(texts("bert", 99), "sequence-classification", 0)
        self.others = [gradients.clipped_sum(each, CLIP) for each in self.own]

    def direction(self):
        (row,) = self.gradients.flat_rows(self.canary)
        return np.asarray(row[0], dtype=np.float64) / np.linalg.norm(row[0])

    def summed(self, data):
        return self.gradients.clipped_sum(data, CLIP)

    def contribute(self, codec, generator, rows, place):
        total = self.others[place].copy()
        if rows.any():
            total += self.summed(self.canary)
        return codec.encode_clipped_sum(total, generator)


class Unclipped(Training):
    def summed(self, data):
        (rows,) = self.gradients.flat_rows(data)
        return rows.sum(axis=0).astype(np.float64)


@pytest.fixture(scope="module")
def gradients():
    torch.set_num_threads(1)
    made = bench("bert", setup("bert", rank=2, sharing="ffa", turn=1))
    found = PerExampleGradients(
        made.model, made.layout, task="sequence-classification", micro_batch=1, device=CPU
    )
    yield found
    found.close()


def bound_of(training, rounds):
    setting = Setting(
        policy=POLICY,
        clients=4,
        adversary="release",
        dimension=training.gradients.dimension,
        behaviour=training,
        sources=seeded(0),
    )
    releases, rng = Releases(setting), np.random.default_rng(0)
    direction, background = training.direction()[None], sum(training.others)
    found = {True: [], False: []}
    for number in range(rounds):
        rows = {name: np.zeros((1, setting.dimension)) for name in releases.names}
        inside = bool(rng.random() < 0.5)
        rows[releases.names[0]][:] = inside
        released, _ = releases.release(rows, number + 1)
        found[inside] += scores(released - background, direction, CLIP).tolist()
    inside, outside = np.array(found[True]), np.array(found[False])
    bound = lower_bound("gaussian", inside, outside, delta=POLICY.delta, confidence=0.999, seed=0)
    return bound.epsilon, releases.statement.epsilon, inside.mean() - outside.mean()


def test_the_canary_is_one_that_clipping_has_something_to_cut_off_from(gradients):
    (row,) = gradients.flat_rows(Training(gradients).canary)
    assert np.linalg.norm(row) > 3.0 * CLIP


def test_an_example_of_real_training_shows_no_more_than_is_promised_and_not_much_less(gradients):
    found, promised, gap = bound_of(Training(gradients), 120)
    assert 0.4 * promised < found <= promised
    assert gap == pytest.approx(1.0, abs=0.25)


def test_an_example_that_is_not_clipped_is_found(gradients):
    found, promised, gap = bound_of(Unclipped(gradients), 40)
    assert found > 1.5 * promised
    assert gap > 2.5
