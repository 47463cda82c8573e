import math

from hypothesis import given
from hypothesis import strategies as st
from pilot_records import cost, record, trial

from securefed.pilot.front import Point, front, points
from securefed.pilot.summaries import summaries

# Few values, so that ties and duplicates come.
LEVELS = st.integers(0, 3).map(float)
POINTS = st.lists(
    st.builds(
        Point,
        name=st.sampled_from("abcdef"),
        improvement=LEVELS,
        bytes=LEVELS,
        seconds=LEVELS | st.just(math.inf),
        epsilon=LEVELS | st.just(math.inf),
    ),
    max_size=12,
)


def beaten(one: Point, other: Point) -> bool:
    """Whether ``other`` is no worse in all four and better in one, spelled out."""
    no_worse = (
        other.improvement >= one.improvement
        and other.bytes <= one.bytes
        and other.seconds <= one.seconds
        and other.epsilon <= one.epsilon
    )
    better = (
        other.improvement > one.improvement
        or other.bytes < one.bytes
        or other.seconds < one.seconds
        or other.epsilon < one.epsilon
    )
    return no_worse and better


@given(POINTS)
def test_nobody_beats_a_member_and_a_member_beats_everybody_else(placed):
    best = front(placed)
    for one in placed:
        if one in best:
            assert not any(beaten(one, other) for other in placed)
        else:
            assert any(beaten(one, other) for other in best)


def test_the_front_of_three_by_hand():
    def at(name, gain, size):
        return Point(name, gain, size, 1.0, 1.0)

    first, second, third = at("a", 0.2, 10.0), at("b", 0.1, 20.0), at("c", 0.1, 5.0)
    assert front([first, second, third]) == (first, third)


def test_what_is_not_known_counts_as_the_worst_and_other_undertakings_are_left_out():
    found = summaries(
        record(
            trial("base"),
            trial("blind", "sweep", costs=cost(seconds={})),
            trial("bare", "protection", epsilon=None),
            trial("pooled training", "baseline", after=20.0, epsilon=None),
            trial("clients alone", "baseline", epsilon=None, costs=cost(up=0.0, down=0.0)),
            trial("full fine-tuning", "baseline", after=30.0, epsilon=None),
        )
    )
    placed = {point.name: point for point in points(found)}
    assert set(placed) == {"base", "blind", "bare", "full fine-tuning"}
    assert placed["blind"].seconds == math.inf
    assert placed["bare"].epsilon == math.inf
    assert {point.name for point in front(placed.values())} == {"base", "full fine-tuning"}
