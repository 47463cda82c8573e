"""What every accountant of this package must do, as tests that each of them inherits."""

import itertools
import math

import pytest

from securefed.errors import SecureFedError
from securefed.privacy.pld import gaussian_epsilon

DELTA = 1e-5


class AccountantContract:
    """Subclass it, name the class ``Test...`` and define :meth:`epsilon`.

    Attributes:
        slack: how far this accountant may lie above the Gaussian's privacy loss distribution at
            equal noise, as a factor, over ``comparisons``.
    """

    comparisons = ((1.0, 1.0, 10), (4.0, 1.0, 10), (4.0, 0.1, 10), (1.0, 0.1, 10), (4.0, 0.1, 300))
    slack = math.inf

    def epsilon(self, noise_multiplier, sampling_probability, rounds, delta) -> float:
        """The accountant's answer for noise of std ``noise_multiplier`` times the sensitivity."""
        raise NotImplementedError

    def test_more_rounds_cost_more(self):
        for q in (1.0, 0.1):
            found = [self.epsilon(4.0, q, rounds, DELTA) for rounds in (0, 1, 10, 300)]
            assert all(a < b for a, b in itertools.pairwise(found)), found

    def test_more_noise_costs_less(self):
        for q in (1.0, 0.1):
            found = [self.epsilon(noise, q, 10, DELTA) for noise in (1.0, 4.0, 20.0)]
            assert all(a > b for a, b in itertools.pairwise(found)), found

    def test_more_frequent_sampling_costs_more(self):
        found = [self.epsilon(4.0, q, 10, DELTA) for q in (0.01, 0.1, 0.97, 1.0)]
        assert all(a <= b for a, b in itertools.pairwise(found)), found
        assert found[0] < 0.2 * found[-1]

    def test_no_round_costs_nothing(self):
        for q, delta in itertools.product((1.0, 0.1), (1e-2, 1e-12)):
            assert self.epsilon(1.0, q, 0, delta) == 0.0

    def test_a_larger_delta_never_costs_more(self):
        for q in (1.0, 0.1):
            found = [self.epsilon(4.0, q, 10, delta) for delta in (1e-9, DELTA, 0.3)]
            assert all(a >= b for a, b in itertools.pairwise(found)), found
            assert found[0] > found[-1]

    def test_splitting_a_run_does_not_make_it_cheaper(self):
        """Basic composition of two halves, each at half of delta, is never better than one run."""
        whole = self.epsilon(4.0, 0.1, 10, DELTA)
        assert whole <= 2 * self.epsilon(4.0, 0.1, 5, DELTA / 2)

    def test_it_is_never_below_the_gaussians_privacy_loss_distribution(self):
        for noise, q, rounds in self.comparisons:
            found = self.epsilon(noise, q, rounds, DELTA)
            tight = gaussian_epsilon(noise, q, rounds, DELTA)
            assert tight <= found <= tight * self.slack, (noise, q, rounds)

    @pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan])
    def test_a_noise_that_is_none_is_refused(self, noise):
        with pytest.raises(SecureFedError):
            self.epsilon(noise, 0.5, 1, DELTA)

    @pytest.mark.parametrize("q", [0.0, -0.1, 1.0001, math.nan])
    def test_a_sampling_probability_out_of_range_is_refused(self, q):
        with pytest.raises(SecureFedError, match="sampling_probability ="):
            self.epsilon(1.0, q, 1, DELTA)

    @pytest.mark.parametrize("rounds", [-1, 1.5, True])
    def test_a_number_of_rounds_that_is_none_is_refused(self, rounds):
        with pytest.raises(SecureFedError, match="rounds ="):
            self.epsilon(1.0, 0.5, rounds, DELTA)

    @pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
    def test_a_delta_out_of_range_is_refused(self, delta):
        with pytest.raises(SecureFedError, match="delta ="):
            self.epsilon(1.0, 0.5, 1, delta)
