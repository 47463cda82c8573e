import collections
import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.evidence import budget
from securefed.evidence.budget import rounds_of_schedule


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 12))
def test_no_unit_takes_part_more_often_than_the_count_says(numbers, separation):
    """Whatever was missed, tried again or begun anew; a unit's batch is its round modulo B."""
    taken = collections.Counter(number % separation for number in numbers)
    counted = rounds_of_schedule(numbers, separation)
    assert max(taken.values(), default=0) <= -(-counted // separation)


@given(st.integers(0, 50), st.integers(1, 12))
def test_a_run_in_which_nothing_was_missed_counts_as_its_rounds(rounds, separation):
    assert rounds_of_schedule(range(1, rounds + 1), separation) == rounds


@pytest.mark.parametrize(
    ("numbers", "counted"),
    [([], 0), ([1], 1), ([9], 9), ([1, 7], 7), ([1, 1], 7), ([1, 2, 3, 1, 2], 8), ([10, 2], 14)],
)
def test_missed_rounds_and_beginnings_count(numbers, counted):
    assert rounds_of_schedule(numbers, 6) == counted


def test_the_example_holds():
    assert doctest.testmod(budget).failed == 0
