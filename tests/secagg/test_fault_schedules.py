"""Random faults in whole rounds: each gives the exact sum of its survivors, or a named error.

Sixty schedules run in the quick suite.  A thousand, with the table of what came of them:

    python -m pytest tests/secagg/test_fault_schedules.py -m slow -s
"""

from collections import Counter

import numpy as np
import pytest
from secagg_faults import FAULTS, LENGTH, LIES, SHAPES, Play, Played, Schedule, check_disclosure
from secagg_rounds import Cohort

from securefed.secagg.pairwise_server import PairwiseServer


def run_schedule(seed: int) -> Played:
    schedule = Schedule.of(seed)
    played = Play(schedule).run()
    check_disclosure(schedule, played)
    return played


def test_sixty_fault_schedules_give_the_exact_sum_or_a_named_error():
    outcomes = Counter(run_schedule(seed).outcome for seed in range(60))
    # The schedules are neither harmless nor hopeless.
    sums = sum(count for outcome, count in outcomes.items() if outcome.startswith("sum"))
    assert 20 <= sums <= 55


@pytest.mark.slow
def test_a_thousand_fault_schedules_give_the_exact_sum_or_a_named_error(capsys):
    outcomes: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for seed in range(1000):
        played = run_schedule(seed)
        schedule = Schedule.of(seed)
        outcomes[played.outcome] += 1
        refusals += played.refusals
        faults.update(fault for fault, _ in schedule.faults.values())
        faults.update(f"server: {lie}" for lie in set(schedule.lies.values()))
        faults.update(f"drop at {stage}" for stage in schedule.drops.values())
    with capsys.disabled():
        for title, table in (
            ("outcomes of rounds", outcomes),
            ("faults tried", faults),
            ("messages refused", refusals),
        ):
            print(f"\n{title}")
            for what, count in table.most_common():
                print(f"  {count:6}  {what}")
    assert sum(outcomes.values()) == 1000
    assert set(faults) >= set(FAULTS)


def test_a_wrong_sum_would_be_seen():
    """The judge's own test: a server that forgets one client's mask is caught."""

    class Forgetful(PairwiseServer):
        def _unmasking(self):
            left = super()._unmasking()
            masks = list(left.masks())[1:]
            object.__setattr__(left, "masks", lambda: masks)
            return left

    play = Play(Schedule(0, Cohort(size=5, length=LENGTH, seed=0)))
    play.server = Forgetful(play.context)
    with pytest.raises(AssertionError, match="a wrong sum"):
        play.run()


def test_a_sum_over_too_few_clients_would_be_seen():
    play = Play(Schedule(0, Cohort(size=5, length=LENGTH, seed=0)))
    assert play.opened(play.sum_of(["c001", "c003"])) == [0b01010]
    assert play.opened(play.sum_of(["c001"]) + np.uint32(1)) == []


def test_a_round_without_faults_is_a_sum_of_everyone():
    for size, degree in SHAPES[::4]:
        schedule = Schedule(1, Cohort(size=size, degree=degree, length=LENGTH, seed=1))
        played = Play(schedule).run()
        assert played.outcome == "sum"
        assert isinstance(played.server.result.total, np.ndarray)
        assert not played.refusals


def test_a_message_that_is_refused_leaves_no_trace_in_the_sum():
    """A corrupted copy first, then the good one: the good one counts, once."""
    schedule = Schedule(3, Cohort(size=6, length=LENGTH, seed=3))
    schedule.faults = {name: ("noise", "masked_input") for name in schedule.cohort.names}
    played = Play(schedule).run()
    assert played.outcome == "sum"
    assert sum(played.refusals.values()) == 6


def test_every_lie_to_half_of_the_clients_opens_nothing_it_should_not():
    for lie in LIES:
        for size, degree in ((7, None), (10, 4)):
            schedule = Schedule(9, Cohort(size=size, degree=degree, length=LENGTH, seed=9))
            schedule.lies = dict.fromkeys(schedule.cohort.names[: size // 2], lie)
            schedule.careless = True
            check_disclosure(schedule, Play(schedule).run())
