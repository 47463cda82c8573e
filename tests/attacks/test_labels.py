"""Labels from updates, by the head's gradient and by the best match."""

import attacked
import numpy as np
import pytest
import torch

from securefed.attacks import views
from securefed.attacks.base import Limits
from securefed.attacks.matching.descent import Schedule
from securefed.attacks.matching.labels import LabelGuess, LabelInference
from securefed.attacks.scoring import label_accuracy, majority_labels
from securefed.errors import ConfigError
from securefed.secagg.aggregations import PairwiseAggregation

LIMITS = Limits(seconds=30.0, max_tokens=9)


def inferred(seed, label, *, count=1, aggregation=None, client=attacked.VICTIM, **options):
    own = attacked.texts("bert", seed, count=count, tokens=5)
    setup = attacked.setup("bert", batch=count, **options)
    made = attacked.bench("bert", setup, aggregation=aggregation)
    session = made.session()
    sent = attacked.updates(made, own, "bert") | {attacked.VICTIM: made.update(own, label)}
    _, transcript = made.run(session, sent)
    capture = views.masked_share if aggregation else views.plain_update
    view, public = capture(session, transcript, client), made.public(session)
    attack = LabelInference(schedule=Schedule(steps=8, restarts=2))
    return attack.run(view, public, generator=torch.Generator().manual_seed(seed), limits=LIMITS)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("label", [0, 1])
def test_the_heads_gradient_gives_labels_away(label, count):
    guess = inferred(0, label, count=count)
    assert guess.reason == "gradient of the head"
    assert label_accuracy(guess.labels, [label] * count) == 1.0


@pytest.mark.parametrize("label", [0, 1])
def test_without_the_head_the_best_match_gives_the_label_away(label):
    guess = inferred(0, label, sharing="full", turn=1)
    assert guess.reason == "best match"
    assert guess.labels == (label,)


def test_a_masked_share_gives_no_label_away():
    hits = [
        inferred(seed, seed % 2, aggregation=PairwiseAggregation()).labels == (seed % 2,)
        for seed in range(8)
    ]
    assert 1 <= sum(hits) <= 7  # 8 fair coins fall outside of this once in 128 times


def test_another_clients_update_gives_its_own_label():
    assert inferred(0, 0, client="site-01").labels == (1,)


def test_a_zero_update_and_a_language_model_are_void():
    own = attacked.texts("llama", 0)
    made = attacked.bench("llama", attacked.setup("llama"))
    session = made.session()
    _, transcript = made.run(session, attacked.updates(made, own, "llama"))
    view = views.plain_update(session, transcript, attacked.VICTIM)
    generator = torch.Generator().manual_seed(0)
    guess = LabelInference().run(view, made.public(session), generator=generator, limits=LIMITS)
    assert guess.verdict == "void"
    assert "causal-lm" in guess.reason
    with pytest.raises(ConfigError, match="void"):
        LabelGuess((1,), "void")


def test_accuracy_of_labels_counts_each_once_and_is_compared_with_the_commonest():
    assert label_accuracy((0, 1, 1), (1, 1, 1)) == pytest.approx(2 / 3)
    assert label_accuracy((), (1, 0)) == 0.0
    assert majority_labels([0, 2, 2, 1], 3) == (2, 2, 2)
    with pytest.raises(ConfigError, match="truth"):
        label_accuracy((1,), ())
    with pytest.raises(ConfigError, match="background"):
        majority_labels([], 1)
    assert np.isfinite(label_accuracy((1, 1, 1), (1,)))
