"""From a run file to a policy, its statements and the event that is charged."""

import pytest

from securefed.config import RunConfig, parse_config
from securefed.engines.settings import Settings
from securefed.errors import ConfigError
from securefed.privacy.accounting import ADVERSARIES

SIZES = {f"site-{i}": 100 for i in range(8)}


def settings_of(**privacy) -> Settings:
    return Settings(parse_config({"privacy": privacy}), sizes=SIZES, dimension=50)


def test_a_run_file_can_say_that_samples_are_shown_and_every_reading_then_counts_with_q_1():
    secret, shown = settings_of(), settings_of(sample_is_secret=False)
    whole = settings_of(expected_batch=800.0)
    assert RunConfig().privacy.sample_is_secret
    for who in ADVERSARIES:
        assert shown.guarantee(who, 3).epsilon > 1.5 * secret.guarantee(who, 3).epsilon
        # Not the same grid: a whole batch leaves less room in the ring.
        assert shown.guarantee(who, 3).epsilon == pytest.approx(
            whole.guarantee(who, 3).epsilon, rel=0.01
        )
        assert "sample_is_secret = false" in shown.guarantee(who, 3).sampling
    assert shown.epsilon_after(3) == shown.guarantee("server", 3).epsilon
    # The sample is drawn all the same.
    assert shown.sum_policy.sampling_probability == secret.sum_policy.sampling_probability == 0.16


def test_whether_the_sample_is_shown_is_part_of_what_is_charged_and_recorded():
    for value in (True, False):
        settings = settings_of(sample_is_secret=value)
        assert settings.event()["sample_is_secret"] is value
        assert settings.record()["sample_is_secret"] is value


def test_a_run_file_cannot_say_it_with_a_word_that_is_not_a_truth_value():
    with pytest.raises(ConfigError, match=r"privacy\.sample_is_secret"):
        settings_of(sample_is_secret="perhaps")
