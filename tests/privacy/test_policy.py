import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import ConfigError
from securefed.privacy.policy import CohortBounds, PrivacyPolicy


def policy(**changes) -> PrivacyPolicy:
    return PrivacyPolicy(**({"clip_norm": 1.0, "noise_multiplier": 1.0} | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", math.nan),
        ("clip_norm", math.inf),
        ("clip_norm", 1e-101),
        ("clip_norm", 1e101),
        ("noise_multiplier", 0.0),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", math.inf),
        ("delta", 0.0),
        ("delta", 1.0),
        ("delta", math.nan),
        ("unit", "person"),
        ("mechanism", "laplace"),
        ("sampling_probability", 0.0),
        ("sampling_probability", 1.0001),
        ("sampling_probability", math.nan),
        ("rounding", "nearest"),
        ("sample_is_secret", 0),
        ("sample_is_secret", "no"),
        ("rounds", 0),
        ("rounds", 2.0),
        ("rounds", 2**60),
        ("local_steps", 2**70),
        ("max_examples", 2**60),
        ("local_steps", 0),
        ("local_steps", 1.5),
        ("corrupt_fraction", -0.1),
        ("corrupt_fraction", 1.0),
        ("corrupt_fraction", math.nan),
        ("dropout_fraction", -0.1),
        ("dropout_fraction", 1.0),
        ("dropout_fraction", math.nan),
        ("max_examples", 0),
        ("max_examples", 3.5),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field_and_value(field, value):
    with pytest.raises(ConfigError, match=f"^{field} = ") as refusal:
        policy(**{field: value})
    assert repr(value) in str(refusal.value)
    assert "must be" in str(refusal.value)


def test_noise_goes_with_a_mechanism_and_none_with_none():
    with pytest.raises(ConfigError, match=r"noise_multiplier = 1\.0: must be 0"):
        policy(mechanism="none")
    for mechanism in ("distributed", "local"):
        with pytest.raises(ConfigError, match="mechanism = 'none'"):
            policy(mechanism=mechanism, unit="example", noise_multiplier=0.0)
    assert policy(mechanism="none", noise_multiplier=0.0).noise_multiplier == 0.0


def test_local_noise_is_for_examples_only():
    with pytest.raises(ConfigError, match="unit = 'client'"):
        policy(mechanism="local", unit="client")


def test_rounding_that_depends_on_the_result_is_for_clients_whose_time_is_not_seen():
    assert policy(rounding="conditional").rounding == "conditional"
    with pytest.raises(ConfigError, match="depend on its other units"):
        policy(rounding="conditional", unit="example")
    with pytest.raises(ConfigError, match="response times are shown"):
        policy(rounding="conditional", sample_is_secret=False)


def test_a_policy_cannot_be_changed_after_its_checks():
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy().noise_multiplier = 0.0


@pytest.mark.parametrize(
    ("size", "corrupt", "dropout", "expected"),
    [
        (10, 0.1, 0.25, (1, 8, 7)),
        (4, 0.1, 0.25, (0, 3, 3)),
        (20, 0.1, 0.25, (2, 15, 13)),
        (3, 0.0, 0.0, (0, 3, 3)),
        (100, 0.33, 0.1, (33, 90, 57)),
        # 0.29 * 100 is 28.999999999999996 in float64: 29 clients are meant.
        (100, 0.29, 0.29, (29, 71, 42)),
    ],
)
def test_the_floors_of_a_cohort(size, corrupt, dropout, expected):
    bounds = CohortBounds.of(policy(corrupt_fraction=corrupt, dropout_fraction=dropout), size)
    assert (bounds.corrupt, bounds.survivor_floor, bounds.honest_floor) == expected


@given(
    size=st.integers(-1, 300),
    corrupt=st.floats(0, 1, exclude_max=True),
    dropout=st.floats(0, 1, exclude_max=True),
)
def test_any_accepted_cohort_leaves_two_honest_survivors(size, corrupt, dropout):
    settings = policy(corrupt_fraction=corrupt, dropout_fraction=dropout)
    try:
        bounds = CohortBounds.of(settings, size)
    except ConfigError:
        # Refused only where too few would be left, to within one client of rounding down.
        assert size * (1 - corrupt - dropout) < 3
        return
    assert bounds.honest_floor >= 2
    # As many as the fractions say may be corrupt and silent at once, to the last bit.
    assert bounds.corrupt >= corrupt * size - 1
    assert bounds.corrupt <= corrupt * size + 1e-6
    assert bounds.survivor_floor >= (1 - dropout) * size - 1e-6
    assert bounds.survivor_floor <= size


@pytest.mark.parametrize(
    ("size", "corrupt", "dropout"), [(1, 0.0, 0.0), (0, 0.0, 0.0), (4, 0.5, 0.25), (2, 0.5, 0.0)]
)
def test_a_cohort_that_is_too_small_is_refused(size, corrupt, dropout):
    settings = policy(corrupt_fraction=corrupt, dropout_fraction=dropout)
    with pytest.raises(ConfigError, match=f"cohort of {size} clients"):
        CohortBounds.of(settings, size)


def test_numbers_of_numpy_are_taken_as_numbers():
    assert policy(clip_norm=np.float64(0.5)) == policy(clip_norm=0.5)
