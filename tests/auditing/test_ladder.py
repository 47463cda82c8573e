"""The strongest attacker of a ladder, and defences by name."""

import attacked
import numpy as np
import pytest

from securefed.attacks import views
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.results import Trial
from securefed.attacks.scoring import Score
from securefed.auditing.defences import DEFENCES, noise, random_coordinates, top
from securefed.auditing.ladder import Ladder, judged
from securefed.auditing.rounds import adapted
from securefed.errors import ConfigError

NOTHING = Score(*(0.0 for _ in range(8)))


def scored(values):
    return [
        Trial(Score(value, *(0.0 for _ in range(7))), NOTHING, "guessed", seed, 1.0)
        for seed, value in enumerate(values)
    ]


def test_the_strongest_is_chosen_on_one_half_and_reported_on_the_other():
    left = judged("d", {"lucky": scored([1.0, 0.0] * 4), "steady": scored([0.5] * 8)})
    assert left.strongest == "lucky"
    assert left.result.value == 0.0
    assert left.result.n == 4
    assert left.result.seeds == (1, 3, 5, 7)


def test_choosing_among_attackers_that_know_nothing_shows_no_lift():
    rng = np.random.default_rng(0)
    chosen, largest = [], []
    for _ in range(60):
        tried = {str(i): scored(rng.random(8)) for i in range(4)}
        left = judged("d", tried)
        chosen.append(left.result.value)
        largest.append(max(result.value for result in left.every))
    assert np.mean(chosen) == pytest.approx(0.5, abs=0.06)
    assert np.mean(largest) > 0.57  # what a report of the largest would have said


def test_intervals_of_all_attackers_are_widened_by_their_number():
    left = judged("d", {str(i): scored([0.0, 1.0] * 4) for i in range(5)})
    assert [result.confidence for result in left.every] == [pytest.approx(0.99)] * 5
    assert left.result.confidence == 0.95


def test_attackers_need_different_names_and_the_same_seeds():
    with pytest.raises(ConfigError, match="names must differ"):
        Ladder(DEFENCES["none"], [SpanInversion(), SpanInversion()])
    with pytest.raises(ConfigError, match="same seeds"):
        judged("d", {"a": scored([0.0] * 4), "b": scored([0.0] * 3)})


# -- defences ------------------------------------------------------------------------------


def bench(defence):
    plain = attacked.setup("bert", clients=4)
    model, tokenizer = attacked.bert()
    return defence.bench(adapted(model, plain, 0), tokenizer, plain)


@pytest.mark.parametrize("z", [1e-5, 1e-3, 0.1, 1.0])
def test_noise_on_one_contribution_has_the_std_that_its_name_says(z):
    made = bench(noise(z))
    session = made.session()
    update = made.update(attacked.texts("bert", 0))
    update *= 0.5 / np.linalg.norm(update)  # within the clip
    _, transcript = made.run(session, dict.fromkeys(made.names, update))
    view = views.plain_update(session, transcript, attacked.VICTIM)
    added = view.reading(made.public(session)) - update
    assert added.std() == pytest.approx(z, rel=0.05)


def test_dropout_changes_the_update_and_leaves_the_model_as_it_was():
    own = attacked.texts("bert", 0)
    with_dropout, without = bench(DEFENCES["dropout-0.1"]), bench(DEFENCES["none"])
    assert not np.allclose(with_dropout.update(own), without.update(own))
    assert np.array_equal(with_dropout.update(own), with_dropout.update(own))
    assert not with_dropout.model.training


def test_transforms_keep_what_they_say():
    update = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    largest = top(0.1).transform(update)
    assert (largest != 0).sum() == 500
    assert np.abs(update[largest == 0]).max() <= np.abs(largest[largest != 0]).min()
    random = random_coordinates(0.5).transform(update)
    assert ((random == 0) | (random == update)).all()
    assert (random != 0).sum() == 2500
    few = DEFENCES["int8"].transform(update)
    assert len(np.unique(few[:2048])) <= 255
    assert np.abs(few - update).max() <= np.abs(update).max() / 127
