import numpy as np
import pytest

from securefed.auditing.canaries import directions, scores
from securefed.errors import ConfigError


def test_canaries_are_at_right_angles_and_of_length_one():
    chosen = directions(20, 50, np.random.default_rng(0))
    assert chosen.shape == (20, 50)
    np.testing.assert_allclose(chosen @ chosen.T, np.eye(20), atol=1e-12)


def test_a_score_is_one_where_the_canary_is_in_and_zero_where_it_is_not():
    chosen = directions(4, 30, np.random.default_rng(0))
    released = 0.5 * (chosen[0] + chosen[2])
    np.testing.assert_allclose(scores(released, chosen, 0.5), [1, 0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("times", [1.0, 8.0])
def test_known_noise_is_taken_out_however_often_it_is_there(times):
    rng = np.random.default_rng(0)
    chosen = directions(4, 4000, rng)
    noise = 50.0 * rng.normal(size=4000)
    released = chosen[1] + times * noise
    assert np.abs(scores(released, chosen, 1.0)).max() > 10.0
    found = scores(released, chosen, 1.0, [noise, noise])
    np.testing.assert_allclose(found, [0, 1, 0, 0], atol=0.01)


def test_a_colluder_that_sent_nothing_takes_nothing_out():
    chosen = directions(3, 10, np.random.default_rng(0))
    np.testing.assert_allclose(
        scores(chosen[0], chosen, 1.0, [np.zeros(10)]), [1, 0, 0], atol=1e-12
    )


@pytest.mark.parametrize("count", [0, 11])
def test_there_are_no_more_canaries_than_coordinates(count):
    with pytest.raises(ConfigError, match="canaries"):
        directions(count, 10, np.random.default_rng(0))
