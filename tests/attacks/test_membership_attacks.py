"""Membership attacks on figures with a known truth, without training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from securefed.attacks.membership.alignment import GradientAlignment, _lengths, _solved
from securefed.attacks.membership.base import MembershipGuess, confidence
from securefed.attacks.membership.lira import LikelihoodRatio
from securefed.attacks.membership.loss import LossThreshold, ReferenceLoss
from securefed.attacks.membership.rmia import RobustMembership
from securefed.attacks.membership.shadows import Shadows
from securefed.attacks.roc import Roc
from securefed.auditing.membership import membership_trial, noise_of_all
from securefed.auditing.releases import Releases, Setting
from securefed.errors import ConfigError
from securefed.privacy.policy import PrivacyPolicy

GENERATOR = torch.Generator()


class Question(SimpleNamespace):
    """Figures of a question, as if losses had been read from a model."""


def world(seed=0, *, runs=16, records=400, population=200, effect=0.5, noise=0.15):
    """Records of unlike difficulty; a run lowers a member's loss by ``effect``."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0.5, 4.0, records)
    others = rng.uniform(0.5, 4.0, population)

    def losses(inside):
        return np.maximum(1e-3, hard - effect * inside + noise * rng.standard_normal(inside.shape))

    half = np.stack([rng.permutation(records) < records // 2 for _ in range(runs // 2)])
    inside = np.stack([half, ~half], axis=1).reshape(runs, records)
    drawn = others + noise * rng.standard_normal((runs, population))
    shadows = Shadows(inside, losses(inside), np.maximum(1e-3, drawn))
    member = rng.permutation(records) < records // 2
    question = Question(
        moved=True,
        records=SimpleNamespace(
            candidates=range(records), population=range(population), base_losses=hard
        ),
        losses=losses(member),
        population_losses=others + noise * rng.standard_normal(population),
        shadows=shadows,
        public=SimpleNamespace(task="causal-lm"),
    )
    return question, member


def auc(attack, question, member):
    return Roc.of(attack.run(question, generator=GENERATOR).scores, member).auc


SHADOWED = (LikelihoodRatio(), LikelihoodRatio(online=False), RobustMembership(),
            RobustMembership(online=False))  # fmt: skip
ALL = (LossThreshold(), ReferenceLoss(), *SHADOWED)


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_each_attack_tells_members_where_there_is_something_to_tell_and_not_otherwise(attack):
    assert auc(attack, *world(effect=3.0)) > 0.8
    assert abs(auc(attack, *world(effect=0.0)) - 0.5) < 0.1


@pytest.mark.parametrize("attack", [ReferenceLoss(), *SHADOWED], ids=lambda attack: attack.name)
def test_what_takes_out_difficulty_beats_the_plain_loss(attack):
    question, member = world()
    assert auc(LossThreshold(), question, member) < 0.75
    assert auc(attack, question, member) > 0.95


@pytest.mark.parametrize("runs", [16, 80])
def test_lira_is_the_likelihood_ratio_of_fitted_gaussians(runs):
    question, _ = world(runs=runs)
    shadows, place = question.shadows, 7
    scores = LikelihoodRatio().run(question, generator=GENERATOR).scores

    def side(chosen):
        groups = [-shadows.losses[chosen[:, i], i] for i in range(chosen.shape[1])]
        own = groups[place]
        if runs == 80:
            return own.mean(), own.std(ddof=1)
        left = np.concatenate([group - group.mean() for group in groups])
        degrees = sum(len(group) - 1 for group in groups)
        return own.mean(), np.sqrt((left**2).sum() / degrees)

    seen = -question.losses[place]
    (mean_in, std_in), (mean, std) = side(shadows.inside), side(~shadows.inside)
    expected = norm.logpdf(seen, mean_in, std_in) - norm.logpdf(seen, mean, std)
    assert scores[place] == pytest.approx(expected)
    offline = LikelihoodRatio(online=False).run(question, generator=GENERATOR).scores
    assert offline[place] == pytest.approx((seen - mean) / std)


def test_rmia_is_the_share_of_the_population_that_is_beaten_up_to_less_than_one_of_it():
    question, _ = world(runs=8, records=30, population=20)
    shadows = question.shadows
    scores = (
        RobustMembership(gamma=1.1, offline_scale=0.3).run(question, generator=GENERATOR).scores
    )
    likelihood, others = np.exp(-shadows.losses), np.exp(-shadows.population).mean(axis=0)
    ratio_z = np.exp(-question.population_losses) / (0.5 * (1.3 * others + 0.7))
    for place in range(30):
        inside = shadows.inside[:, place]
        reference = 0.5 * (likelihood[inside, place].mean() + likelihood[~inside, place].mean())
        ratio = np.exp(-question.losses[place]) / reference
        share = float((ratio / ratio_z >= 1.1).mean())
        assert share <= scores[place] < share + 1 / 20


def test_an_attack_that_lacks_what_it_needs_is_void_and_says_why():
    question, _ = world()
    few = Question(**vars(question) | {"shadows": None})
    away = question.shadows.inside & False
    apart = Shadows(away, question.shadows.losses, question.shadows.population)
    offline = Question(**vars(question) | {"shadows": apart})
    none = SimpleNamespace(**vars(question.records) | {"population": range(0)})
    alone = Question(**vars(question) | {"records": none})
    untouched = Question(**vars(question) | {"moved": False})
    for attack in SHADOWED:
        assert attack.run(few, generator=GENERATOR).verdict == "void"
        online = attack.name.endswith("online")
        found = attack.run(offline, generator=GENERATOR)
        assert found.verdict == ("void" if online else "guessed")
        assert bool(found.reason) == online
    assert RobustMembership().run(alone, generator=GENERATOR).verdict == "void"
    for attack in (*ALL, GradientAlignment()):
        found = attack.run(untouched, generator=GENERATOR)
        assert found.verdict == "void"
        assert "nothing was trained" in found.reason
        assert not found.scores.any()


def test_confidence_is_the_logit_for_classes_and_stays_finite_where_losses_vanish():
    p = np.array([0.1, 0.5, 0.999])
    found = confidence(-np.log(p), "sequence-classification")
    assert np.allclose(found, np.log(p / (1 - p)))
    assert np.isfinite(confidence(np.zeros(1), "sequence-classification")).all()
    assert np.array_equal(confidence(np.array([2.0]), "causal-lm"), [-2.0])


def test_whitening_is_the_inverse_that_it_says():
    rng = np.random.default_rng(0)
    others, rows, vector = (
        rng.standard_normal((6, 20)),
        rng.standard_normal((3, 20)),
        rng.random(20),
    )
    scale = 0.1 * np.square(others).sum() / 36
    matrix = scale * np.eye(20) + others.T @ others / 6
    assert np.allclose(_solved(others, vector, 0.1), np.linalg.solve(matrix, vector))
    expected = np.sqrt(np.einsum("nd,dn->n", rows, np.linalg.solve(matrix, rows.T)))
    assert np.allclose(_lengths(others, rows, 0.1), expected)


def test_how_often_a_record_is_in_shadow_runs_does_not_tell_whether_it_is_in_the_target():
    question, _ = world(runs=8)
    for inside in question.shadows.inside:
        kept = question.shadows.apart_from(inside)
        assert len(kept) == 6
        assert (kept.inside.sum(axis=0) == 3).all()
    other = np.arange(400) < 200
    assert len(question.shadows.apart_from(other)) == 8


def test_shadows_and_guesses_that_make_no_sense_are_refused():
    inside, losses = np.zeros((3, 4), dtype=bool), np.ones((3, 4))
    for given in (
        (inside[:2], losses, np.ones((3, 5))),
        (inside, losses, np.ones((2, 5))),
        (inside, losses * np.nan, np.ones((3, 5))),
    ):
        with pytest.raises(ConfigError, match="shadows"):
            Shadows(*given)
    kept = Shadows(inside, losses, np.ones((3, 5)))
    assert len(kept) == 3
    assert kept.outside_enough
    assert not kept.inside_enough
    with pytest.raises(ConfigError, match="finite"):
        MembershipGuess(np.array([np.nan]))
    with pytest.raises(ConfigError, match="void"):
        MembershipGuess(np.array([0.0, 1.0]), "void")
    with pytest.raises(ConfigError, match="gamma"):
        RobustMembership(gamma=0.0)
    with pytest.raises(ConfigError, match="ridge"):
        GradientAlignment(ridge=0.0)


class Replay:
    """Draws from its own generator what a run drew from one of the same seed: its members."""

    name = "replay"

    def run(self, question, *, generator):
        """Scores the half that ``sum_trials`` would have dealt."""
        count = len(question.records.candidates)
        scores = np.zeros(count)
        scores[torch.randperm(count, generator=generator).numpy()[: count // 2]] = 1.0
        return MembershipGuess(scores)


def test_an_attack_cannot_draw_the_members_again_from_its_own_seed():
    question, _ = world(records=40)
    right = []
    for seed in range(20):
        inside = Replay().run(question, generator=torch.Generator().manual_seed(seed)).scores > 0.0
        right.append(membership_trial(Replay(), question, inside, seed).scores[inside].mean())
    assert 0.4 < np.mean(right) < 0.6  # 1.0 where the two are in step
    twice = [membership_trial(Replay(), question, inside, 3).scores for _ in range(2)]
    assert np.array_equal(*twice)


@pytest.mark.parametrize("removed", [False, True])
def test_an_attackers_own_runs_have_the_noise_of_real_sums_with_the_excess_removed(removed):
    policy = PrivacyPolicy(
        clip_norm=1.0,
        noise_multiplier=1.0,
        corrupt_fraction=0.0,
        dropout_fraction=0.375,
        remove_excess_noise=removed,
    )
    setting = Setting(policy=policy, clients=8, adversary="release", dimension=512, dropouts=0)
    releases = Releases(setting)
    released, _ = releases.release({name: np.zeros((1, 512)) for name in releases.names})
    plan = releases.stated.plan
    expected = noise_of_all(plan, 8) * plan.resolution
    assert float(np.std(released)) == pytest.approx(expected, rel=0.15)
    assert expected == pytest.approx(1.0 if removed else np.sqrt(8 / 5), rel=0.05)
