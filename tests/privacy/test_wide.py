import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.errors import ConfigError
from securefed.privacy import wide
from securefed.privacy.samplers import DiscreteGaussian
from securefed.privacy.wide import MAX_STD, WideDiscreteGaussian


def test_up_to_2_to_the_15_it_is_the_plain_sampler():
    plain = DiscreteGaussian(300.0).sample(50, SeededNoiseGeneratorForTests(1))
    found = WideDiscreteGaussian(300.0).sample(50, SeededNoiseGeneratorForTests(1))
    assert found.tolist() == plain.tolist()


@pytest.mark.parametrize("std", [2.0**15 * 1.01, 1e6, 3.3e9, MAX_STD])
def test_draws_follow_the_gaussian(std):
    draws = WideDiscreteGaussian(std).sample(40_000, SeededNoiseGeneratorForTests(7))
    assert stats.kstest(draws / std, "norm").pvalue > 1e-3
    # Fails where the step of 2^10 shows, which the fine part is to hide.
    counts = np.bincount(draws % 1024, minlength=1024)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_fine_part_that_is_too_narrow_would_show():
    """The test above can fail: with a fine std of 200 instead of 2^14 the step of 2^10 shows."""
    g = SeededNoiseGeneratorForTests(3)
    fine, coarse = DiscreteGaussian(200.0), DiscreteGaussian(1000.0)
    draws = fine.sample(40_000, g) + 1024 * coarse.sample(40_000, g)
    counts = np.bincount(draws % 1024, minlength=1024)
    assert stats.chisquare(counts).pvalue < 1e-10


def test_the_convolution_is_a_discrete_gaussian_to_the_bound_of_the_proof():
    """At 80 digits, for a small step, std and t: m = 4, s_1 = 9, s_2 = 8, so t > 1.95."""
    with mpmath.workdps(80):
        m, s1, s2 = 4, mpmath.mpf(9), mpmath.mpf(8)
        s = mpmath.sqrt(m**2 * s1**2 + s2**2)
        t = s1 * s2 / s
        bound = mpmath.mpf("2.1") * mpmath.exp(-2 * mpmath.pi**2 * t**2)

        def weight(n):
            return mpmath.fsum(
                mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * s1**2) - (n - m * x) ** 2 / (2 * s2**2))
                for x in range(-150, 151)
            )

        ratios = [
            weight(n)
            / mpmath.exp(-(mpmath.mpf(n) ** 2) / (2 * s**2))
            / (t * mpmath.sqrt(2 * mpmath.pi))
            for n in range(-60, 61, 7)
        ]
        assert all(abs(ratio - 1) <= bound for ratio in ratios)
        assert max(abs(ratio - 1) for ratio in ratios) > bound / 10  # and the bound is not idle


def test_the_std_and_the_number_of_draws_are_those_of_the_proof():
    sampler, parts = WideDiscreteGaussian(MAX_STD), []
    top = sampler
    while top is not None:
        parts.append(top._fine.std)
        top = top._coarse
    assert len(parts) <= 4
    variance = sum((wide._STEP**i * mpmath.mpf(s)) ** 2 for i, s in enumerate(parts))
    assert abs(mpmath.sqrt(variance) / MAX_STD - 1) < 2.0**-48
    assert all(s == wide._FINE_STD for s in parts[:-1])
    assert 27 < math.sqrt((2.0**15) ** 2 - wide._FINE_STD**2) / wide._STEP
    assert parts[-1] > 27


@pytest.mark.parametrize("std", [0.4, MAX_STD * 1.01, math.nan, math.inf, -3.0])
def test_other_stds_are_refused(std):
    with pytest.raises(ConfigError, match="std = "):
        WideDiscreteGaussian(std)
