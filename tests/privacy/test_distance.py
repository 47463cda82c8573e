import itertools
import math
from dataclasses import replace
from functools import lru_cache

import mpmath
import pytest
from mpmath import mpf

from securefed.errors import UnsupportedEvent
from securefed.privacy.distance import hellinger_bound, total_variation_per_round
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.samplers import STATISTICAL_DISTANCE

DIGITS = 60


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(DIGITS):
        yield


def discrete_gaussian(std, reach):
    """P(X = k) for k = 0..reach of the discrete Gaussian; its tail beyond ``reach`` is ignored."""
    weights = [mpmath.exp(-(mpf(k) ** 2) / (2 * mpf(std) ** 2)) for k in range(reach + 1)]
    total = weights[0] + 2 * mpmath.fsum(weights[1:])
    return [weight / total for weight in weights]


def rounded_gaussian(variance, reach):
    """P(round(N(0, variance)) = k) for k = 0..reach."""
    beyond = [
        mpmath.erfc((k + mpf("0.5")) / mpmath.sqrt(2 * variance)) / 2 for k in range(reach + 1)
    ]
    return [1 - 2 * beyond[0]] + [beyond[k - 1] - beyond[k] for k in range(1, reach + 1)]


def over_all_integers(term, left, right):
    """Sum of ``term`` over the integers, for two symmetric distributions."""
    values = [term(a, b) for a, b in zip(left, right, strict=True)]
    return values[0] + 2 * mpmath.fsum(values[1:])


@lru_cache
def exact_hellinger(std):
    with mpmath.workdps(DIGITS):
        reach = math.ceil(14 * std)  # what lies beyond is below exp(-98)
        noise = discrete_gaussian(std, reach)
        ideal = rounded_gaussian(mpf(std) ** 2 - mpf(1) / 12, reach)
        square = over_all_integers(
            lambda a, b: (mpmath.sqrt(a) - mpmath.sqrt(b)) ** 2 / 2, noise, ideal
        )
        return mpmath.sqrt(square)


def summed(pmf, count):
    """The distribution of a sum of ``count`` independent draws, as k -> probability, k >= 0."""
    reach = len(pmf) - 1
    total = {k: pmf[abs(k)] for k in range(-reach, reach + 1)}
    one = dict(total)
    for _ in range(count - 1):
        longer = {}
        for a, left in total.items():
            for b, right in one.items():
                longer[a + b] = longer.get(a + b, 0) + left * right
        total = longer
    return [total[k] for k in range(max(total) + 1)]


def tiny_plan(local_std: float, padded: int = 1) -> RoundPlan:
    """A round whose noise is as coarse as given, for the distance alone."""
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)
    plan = plan_round(policy, cohort_size=4, dimension=1)
    return replace(plan, local_std=local_std, padded=padded)


@pytest.mark.parametrize("std", [4, 5, 7, 10, 20, 40, 60])
def test_the_hellinger_bound_holds_at_60_digits_and_is_within_a_factor_of_three(std):
    exact = exact_hellinger(std)
    assert exact <= hellinger_bound(std) <= 3 * exact


def test_the_constant_falls_towards_a_limit_as_the_noise_gets_finer():
    """The bound's constant is used far beyond these: there it must not turn upwards."""
    scaled = [exact_hellinger(std) * std**4 for std in (4, 5, 7, 10, 20, 40)]
    assert scaled == sorted(scaled, reverse=True)
    steps = [float(a - b) for a, b in itertools.pairwise(scaled)]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] < 1e-9 < 1e-3 - scaled[0]


def test_without_sheppards_correction_the_distance_would_be_far_larger():
    """What the 1/12 is for: against a Gaussian of variance s^2 the bound does not hold."""
    noise, ideal = discrete_gaussian(10, 140), rounded_gaussian(mpf(100), 140)
    square = over_all_integers(
        lambda a, b: (mpmath.sqrt(a) - mpmath.sqrt(b)) ** 2 / 2, noise, ideal
    )
    assert mpmath.sqrt(square) > 1000 * hellinger_bound(10)


@pytest.mark.parametrize("std", [3.999, 1.0, 0.0])
def test_too_coarse_noise_has_no_stated_distance(std):
    with pytest.raises(UnsupportedEvent, match="grid units"):
        hellinger_bound(std)


@pytest.mark.parametrize("coordinates", [1, 100, 10**4, 10**6])
def test_over_many_coordinates_the_bound_covers_the_product_distribution(coordinates):
    """Total variation is at most sqrt(1 - BC^2), and BC multiplies over coordinates."""
    affinity = (1 - exact_hellinger(10) ** 2) ** coordinates
    exact = mpmath.sqrt(1 - affinity**2)
    bound = total_variation_per_round(tiny_plan(10.0, coordinates), honest=1)
    assert exact <= bound <= 3 * exact


@pytest.mark.parametrize(("std", "count"), [(1.0, 2), (1.0, 3), (1.5, 2), (1.5, 3), (2.0, 2)])
def test_a_sum_of_discrete_gaussians_is_as_close_to_one_as_stated(std, count):
    """Kairouz, Liu and Steinke 2021, at small std, where it can be seen."""
    together = summed(discrete_gaussian(std, math.ceil(15 * std)), count)
    one = discrete_gaussian(mpf(std) * mpmath.sqrt(count), len(together) - 1)
    near = math.ceil(5 * std * math.sqrt(count))
    log_ratio = max(
        abs(mpmath.log(a / b)) for a, b in zip(together[:near], one[:near], strict=True)
    )
    theorem = 10 * mpmath.fsum(
        mpmath.exp(-2 * mpmath.pi**2 * mpf(std) ** 2 * k / (k + 1)) for k in range(1, count)
    )
    used = 10 * (count - 1) * math.exp(-(math.pi**2) * std**2)
    assert log_ratio <= theorem <= used * (1 + 1e-12)
    if count == 2:  # a sixth of it would be wrong
        assert used <= 6 * log_ratio


@pytest.mark.parametrize(
    ("local_std", "honest"), [(1.0, 16), (1.25, 11), (1.5, 8), (2.0, 4), (4.0, 1), (4.0, 3)]
)
def test_the_stated_distance_covers_the_real_noise_of_a_tiny_cohort(local_std, honest):
    """Not a part of the bound but all of it: the sum of the clients' noise, pmf by pmf."""
    with mpmath.workdps(25):
        # Repeated squaring: the clients' noises have one distribution.
        wide = discrete_gaussian(local_std, math.ceil(11 * local_std))
        together = summed(wide, honest) if honest < 4 else _summed_fast(wide, honest)
        std = local_std * math.sqrt(honest)
        reach = len(together) - 1
        ideal = rounded_gaussian(mpf(local_std) ** 2 * honest - mpf(1) / 12, reach)
        distance = over_all_integers(lambda a, b: abs(a - b) / 2, together, ideal)
    stated = total_variation_per_round(tiny_plan(local_std), honest)
    assert std >= 4
    assert distance <= stated
    if local_std >= 2:  # where the distance of one discrete Gaussian is all there is
        assert stated <= 3 * distance


def _summed_fast(pmf, count):
    """``summed`` through binary powers of a Laurent polynomial with integer coefficients."""
    unit = 10**40
    reach = len(pmf) - 1
    coefficients = [int(pmf[abs(k)] * unit) for k in range(-reach, reach + 1)]
    # One big integer a polynomial: its digits in base 2^width are the coefficients.
    width = 40 * 4 * count
    packed = sum(c << (width * i) for i, c in enumerate(coefficients))
    power = packed**count
    mask = (1 << width) - 1
    middle = reach * count
    return [
        mpf((power >> (width * (middle + k))) & mask) / mpf(unit) ** count
        for k in range(middle + 1)
    ]


def test_coarse_noise_of_single_clients_is_charged():
    """Many clients with very coarse noise: the sum is fine, but not one discrete Gaussian."""
    fine = total_variation_per_round(tiny_plan(4.0), honest=16)
    coarse = total_variation_per_round(tiny_plan(1.0), honest=256)
    assert coarse > 1000 * fine
    assert total_variation_per_round(tiny_plan(0.5), honest=256) > 1


@pytest.mark.parametrize(("padded", "honest"), [(1, 16), (1, 100), (5000, 16)])
def test_the_charge_for_summing_is_at_least_the_theorems(padded, honest):
    local_std = 1.0
    theorem = 10 * mpmath.fsum(
        mpmath.exp(-2 * mpmath.pi**2 * local_std**2 * k / (k + 1)) for k in range(1, honest)
    )
    shape = math.sqrt(2 * padded) * hellinger_bound(local_std * math.sqrt(honest))
    stated = total_variation_per_round(tiny_plan(local_std, padded), honest)
    assert stated - shape >= padded * theorem


def test_the_samplers_own_distance_is_part_of_it():
    """With noise so fine that its shape adds nothing, the sampler's tables are left."""
    padded, honest = 2**20, 10
    tables = honest * padded * STATISTICAL_DISTANCE
    stated = total_variation_per_round(tiny_plan(1e9, padded), honest)
    assert tables <= stated <= 1.001 * tables


def convolved(one, other):
    """The distribution of a sum of two independent draws, k -> probability for k >= 0."""
    left = {k: one[abs(k)] for k in range(1 - len(one), len(one))}
    right = {k: other[abs(k)] for k in range(1 - len(other), len(other))}
    total = {}
    for a, p in left.items():
        for b, q in right.items():
            total[a + b] = total.get(a + b, 0) + p * q
    return [total[k] for k in range(max(total) + 1)]


def log_ratio_of_sum(stds):
    """Largest |log ratio| of the sum's probabilities and one discrete Gaussian's, near 0."""
    together = discrete_gaussian(stds[0], math.ceil(14 * stds[0]))
    for std in stds[1:]:
        together = convolved(together, discrete_gaussian(std, math.ceil(14 * std)))
    whole = mpmath.sqrt(mpmath.fsum(mpf(std) ** 2 for std in stds))
    one = discrete_gaussian(whole, len(together) - 1)
    near = math.ceil(4 * float(whole))
    return max(abs(mpmath.log(a / b)) for a, b in zip(together[:near], one[:near], strict=True))


@pytest.mark.parametrize(
    "stds",
    [(0.5, 0.5), (0.5, 2.0), (1.0, 3.0), (1.0, 1.5, 2.5), (1.25, 1.5, 1.75, 2.0), (0.75, 6.0)],
)
def test_a_sum_of_unequal_discrete_gaussians_is_as_close_to_one_as_stated(stds):
    found = log_ratio_of_sum(stds)
    stated = 10 * (len(stds) - 1) * math.exp(-(math.pi**2) * min(stds) ** 2)
    assert found <= stated
    # The largest in place of the smallest would be wrong, and so would half the exponent's share.
    if max(stds) >= 2 * min(stds):
        assert found > 10 * (len(stds) - 1) * math.exp(-(math.pi**2) * max(stds) ** 2)


def test_an_equal_pair_needs_the_whole_of_its_exponent():
    """The bound is five times the truth where two equal summands are merged."""
    for std in (0.75, 1.0, 1.5):
        stated = 10 * math.exp(-(math.pi**2) * std**2)
        assert stated / 6 <= log_ratio_of_sum((std, std)) <= stated


def test_layers_of_noise_are_charged_by_the_smallest_of_all_sums():
    """Real noise of three honest clients in two layers each, against what is stated for it."""
    plan = replace(tiny_plan(math.sqrt(7.25)), removable_stds=(1.0,))  # kept: 2.5
    assert plan.kept_std == pytest.approx(2.5)
    with mpmath.workdps(25):
        for missing, honest in ((0, 4), (1, 3)):
            stds = [2.5] * honest + [1.0] * honest * missing
            together = discrete_gaussian(stds[0], 30)
            for std in stds[1:]:
                together = convolved(together, discrete_gaussian(std, math.ceil(12 * std)))
            variance = mpf(sum(std**2 for std in stds))
            ideal = rounded_gaussian(variance - mpf(1) / 12, len(together) - 1)
            distance = over_all_integers(lambda a, b: abs(a - b) / 2, together, ideal)
            stated = total_variation_per_round(plan, honest=3)
            assert distance <= stated
