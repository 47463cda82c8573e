"""Held-out figures: bounded whatever a model says, so that no client's trouble ends a run."""

import math

import numpy as np
import pytest

from securefed.engines.figures import Figures, figures_policy
from securefed.privacy.policy import PrivacyPolicy

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("nll", [*NOT_FINITE, 0.0, 3.2, 20.0, 1e9, -1.0])
@pytest.mark.parametrize("accuracy", [None, *NOT_FINITE, 0.0, 0.7, 1.0])
def test_any_figures_lie_inside_the_bound_that_the_sum_is_planned_for(nll, accuracy):
    vector = Figures.vector(nll=nll, accuracy=accuracy)
    assert np.isfinite(vector).all()
    policy = figures_policy(PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0))
    assert np.linalg.norm(vector) < policy.clip_norm


@pytest.mark.parametrize("value", NOT_FINITE)
def test_figures_that_are_not_finite_count_as_the_worst_and_never_flatter(value):
    language = Figures.from_sum(Figures.vector(nll=value, accuracy=None), 1, None)
    assert language.perplexity == 9000.0
    assert language.nll == 20.0
    classes = Figures.from_sum(Figures.vector(nll=value, accuracy=value), 1, None)
    assert classes.accuracy == 0.0
    assert classes.nll == 20.0


def test_ordinary_figures_come_back_as_they_are():
    language = Figures.from_sum(Figures.vector(nll=3.0, accuracy=None), 1, None)
    assert language.perplexity == pytest.approx(math.exp(3.0))
    assert language.accuracy is None
    classes = Figures.from_sum(Figures.vector(nll=0.4, accuracy=0.8), 1, None)
    assert classes.accuracy == pytest.approx(0.8)
    assert classes.perplexity is None
