"""The published distances, computed again by other means than privacy/distance.py and its test.

The discrete Gaussian is normalised by Jacobi's theta function, the rounded Gaussian is integrated
by quadrature, sums are inverted from characteristic functions: no step is shared with
test_distance.py, which sums weights and takes differences of erfc.
"""

import functools
import math

import mpmath
import pytest
from mpmath import mpf

from securefed.privacy.distance import hellinger_bound

DIGITS = 70


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(DIGITS):
        yield


@functools.cache
def nodes(count=24):
    """Gauss and Legendre's nodes and weights on [-1/2, 1/2]."""
    with mpmath.workdps(DIGITS):
        guesses = [mpmath.cos(mpmath.pi * (k + mpf(3) / 4) / (count + mpf(1) / 2))
                   for k in range(count)]  # fmt: skip
        found = []
        for guess in guesses:
            x = guess
            for _ in range(8):
                low, high = mpf(1), x
                for degree in range(2, count + 1):
                    low, high = high, ((2 * degree - 1) * x * high - (degree - 1) * low) / degree
                slope = count * (x * high - low) / (x**2 - 1)
                x -= high / slope
            found.append((x / 2, 1 / ((1 - x**2) * slope**2)))
        return found


@functools.cache
def rounded_gaussian(variance, reach):
    scale = 1 / mpmath.sqrt(2 * mpmath.pi * variance)
    return [
        scale * mpmath.fsum(w * mpmath.exp(-((k + x) ** 2) / (2 * variance)) for x, w in nodes())
        for k in range(reach + 1)
    ]


def discrete_gaussian(std, reach):
    nome = mpmath.exp(-1 / (2 * mpf(std) ** 2))
    total = mpmath.jtheta(3, 0, nome)
    return [nome ** (k * k) / total for k in range(reach + 1)]


@functools.cache
def skellam(std, reach):
    """By the trapezoidal rule on the characteristic function; aliases lie beyond 26 std.

    The number of points is odd: angle pi, which has no partner, is not among them.
    """
    variance, points = mpf(std) ** 2, 40 * std + 401
    angles = [2 * mpmath.pi * j / points for j in range(points // 2 + 1)]
    heights = [mpmath.exp(variance * (mpmath.cos(angle) - 1)) for angle in angles]
    kept = [(a, h) for a, h in zip(angles, heights, strict=True) if h > mpf(10) ** -DIGITS]
    return [
        (1 + 2 * mpmath.fsum(h * mpmath.cos(k * a) for a, h in kept[1:])) / points
        for k in range(reach + 1)
    ]


def both_sides(term, left, right):
    values = [term(a, b) for a, b in zip(left, right, strict=True)]
    return values[0] + 2 * mpmath.fsum(values[1:])


def hellinger(left, right):
    square = both_sides(lambda a, b: (mpmath.sqrt(a) - mpmath.sqrt(b)) ** 2 / 2, left, right)
    return mpmath.sqrt(square)


def two_digits(value):
    return f"{float(value):.1e}"


# numbers.md, "Distributed noise", second table: std in grid units; total variation and Hellinger
# distance of the discrete Gaussian, Hellinger distance of Skellam, each from a Gaussian of variance
# std^2 - 1/12 rounded to integers.
FIGURES = [
    (4, "1.9e-06", "2.3e-06", "4.3e-03"),
    (10, "4.9e-08", "6.0e-08", "7.2e-04"),
    (20, "3.0e-09", "3.8e-09", "1.8e-04"),
    (50, "7.8e-11", "9.6e-11", "2.9e-05"),
]


@pytest.mark.parametrize(("std", "variation", "distance", "of_skellam"), FIGURES)
def test_the_figures_of_the_distance_table_are_reproduced(std, variation, distance, of_skellam):
    reach = 14 * std
    ideal = rounded_gaussian(mpf(std) ** 2 - mpf(1) / 12, reach)
    noise = discrete_gaussian(std, reach)
    assert two_digits(both_sides(lambda a, b: abs(a - b) / 2, noise, ideal)) == variation
    found = hellinger(noise, ideal)
    assert two_digits(found) == distance
    assert found <= hellinger_bound(std) <= 2 * found
    if std <= 20:
        assert two_digits(hellinger(skellam(std, reach), ideal)) == of_skellam


@pytest.mark.parametrize("std", [4, 10, 20])
def test_the_distance_falls_with_the_fourth_power_of_the_std_and_skellams_with_the_second(std):
    reach = 14 * std
    ideal = rounded_gaussian(mpf(std) ** 2 - mpf(1) / 12, reach)
    gaussian = hellinger(discrete_gaussian(std, reach), ideal) * std**4
    assert float(gaussian) == pytest.approx(6.0e-4, rel=0.01)
    found = hellinger(skellam(std, reach), ideal) * std**2
    assert float(found) == pytest.approx(7.2e-2, rel=0.06)


def characteristic(std, angle):
    """Of one discrete Gaussian: a ratio of theta functions."""
    nome = mpmath.exp(-1 / (2 * mpf(std) ** 2))
    return mpmath.jtheta(3, angle / 2, nome) / mpmath.jtheta(3, 0, nome)


@pytest.mark.parametrize(
    ("std", "count"), [(1.0, 4), (1.0, 100), (1.5, 10), (2.0, 30), (3.0, 10), (3.0, 100)]
)
def test_the_sum_of_many_discrete_gaussians_is_one_to_within_the_bound(std, count):
    """More summands and finer noise than a convolution reaches, by inverting the product."""
    whole = mpf(std) * mpmath.sqrt(count)
    points = 2 * math.ceil(20 * whole) + 1  # odd; what is aliased lies beyond 36 std
    heights = [
        characteristic(std, 2 * mpmath.pi * j / points) ** count for j in range(points // 2 + 1)
    ]
    total = mpmath.jtheta(3, 0, mpmath.exp(-1 / (2 * whole**2)))
    used = 10 * (count - 1) * mpmath.exp(-(mpmath.pi**2) * mpf(std) ** 2)
    worst = mpf(0)
    for k in {round(share * float(whole)) for share in (0, 0.5, 1, 2, 3, 4)}:
        summed = (
            heights[0]
            + 2 * mpmath.fsum(
                h * mpmath.cos(2 * mpmath.pi * j * k / points)
                for j, h in enumerate(heights[1:], start=1)
            )
        ) / points  # fmt: skip
        one = mpmath.exp(-(mpf(k) ** 2) / (2 * whole**2)) / total
        worst = max(worst, abs(mpmath.log(summed / one)))
    assert 0 < worst <= used
    # From std 3 the summands' shape is beyond anything that matters: 10^-38 each.
    if std >= 3:
        assert worst < mpf(10) ** -35
