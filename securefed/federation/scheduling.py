"""Who does how much, and how often, so that no client holds the others up.

A round ends with its slowest client.  The planner first finds how early rounds can end when every
client does the least that is asked of it; then it gives each client as much as fits into that time.
What it may vary is decided by the privacy rules:

==============  ==========================================================================
rank            a public tier each; from capability, never from data
local steps     with ``unit = "client"`` only: elsewhere steps and sampling are priced alike
micro-batch     always: it is memory
bits            one ring for the whole cohort, or masks would not cancel
participation   a fixed public schedule: every p-th round, the same rounds for all who have p
==============  ==========================================================================

**Participation in the account.**  A client is charged for the rounds that it takes part in, and for
no others: sums without it do not depend on its data.  A run's statement is the largest over its
clients, so as long as one of them takes part always it is that of all rounds.  The schedule is
public, so nothing is credited for the rounds in between.  Rounds differ in their number of clients:
thresholds and noise of each are sized for its own, and the statement counts the worst of them in
every round (:mod:`securefed.privacy.unlike_rounds`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from securefed.config import Unit
from securefed.errors import ConfigError
from securefed.federation.capability import Assignment, CapabilityProfile, Part, Workload

Lever = Literal["rank", "steps", "bits", "participation"]

_AS_GOOD = 1.05
"""Of two plans whose mean rounds are within 5 %, the one in which clients take part more often."""
_PART_WORDS: dict[Part, str] = {
    "adapter": "receiving the adapter",
    "training": "training",
    "encoding": "encoding",
    "protocol": "the protocol's compute",
    "upload": "sending",
    "download": "receiving messages",
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a planner may choose from.

    Args:
        uniform: what every client does without a plan; the most that any client is given.
        ranks: public tiers, ascending, up to ``uniform.rank``.
        steps: local steps, ascending, up to ``uniform.local_steps``.
        bits: ring widths that the cohort's sum is safe in, ascending, up to ``uniform.bits``.
        periods: how rarely a client may take part, ascending, from 1.
        least_work: share of ``uniform.work`` that every client does at least, in (0, 1].
        least_cohort: clients that every round, and every slice of a rank in it, needs, >= 2: a
            slice of few contributors shows what they sent.

    Raises:
        ConfigError: a field is out of range.
    """

    uniform: Assignment
    ranks: Sequence[int]
    steps: Sequence[int]
    bits: Sequence[int]
    periods: Sequence[int] = (1,)
    least_work: float = 0.5
    least_cohort: int = 2

    def __post_init__(self) -> None:
        for name, most in (
            ("ranks", self.uniform.rank),
            ("steps", self.uniform.local_steps),
            ("bits", self.uniform.bits),
        ):
            values = list(getattr(self, name))
            if values != sorted(set(values)) or not values or values[0] < 1 or values[-1] != most:
                raise ConfigError(f"{name} = {values}: must ascend from >= 1 to {most}")
        periods = list(self.periods)
        if periods != sorted(set(periods)) or periods[:1] != [1]:
            raise ConfigError(f"periods = {periods}: must ascend from 1")
        if self.uniform.period != 1:
            raise ConfigError(f"uniform.period = {self.uniform.period}: must be 1")
        if not 0 < self.least_work <= 1:
            raise ConfigError(f"least_work = {self.least_work}: must be in (0, 1]")
        if self.least_cohort < 2:
            raise ConfigError(f"least_cohort = {self.least_cohort}: must be >= 2")

    def check(self, unit: Unit) -> None:
        """Refuse a choice that the privacy rules do not leave.

        Raises:
            ConfigError: steps differ where the unit is an example or a user.
        """
        if unit != "client" and len(self.steps) > 1:
            raise ConfigError(
                f"steps = {list(self.steps)} with unit = {unit!r}: sampling probability and steps "
                "are the same for every client there; the planner may choose rank, micro-batch and "
                "participation"
            )

    def only(self, *levers: Lever) -> Rules:
        """These rules with every lever but ``levers`` at the uniform plan's value."""
        return replace(
            self,
            ranks=self.ranks if "rank" in levers else (self.uniform.rank,),
            steps=self.steps if "steps" in levers else (self.uniform.local_steps,),
            bits=self.bits if "bits" in levers else (self.uniform.bits,),
            periods=self.periods if "participation" in levers else (1,),
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One client's part of a plan.

    Attributes:
        assignment: what it does.
        seconds: of a round, waiting for nobody, and ``parts`` of it.
        uniform_seconds: the same without a plan.
        work: share of the uniform plan's examples, over all rounds.
        reason: why, in words.
    """

    assignment: Assignment
    seconds: float
    parts: dict[Part, float]
    uniform_seconds: float
    work: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A plan for a cohort.

    Attributes:
        clients: by name, sorted.
        ordinary_seconds: a round of those who take part always.
        full_seconds: a round of everybody.
        mean_seconds: over rounds.
        uniform_seconds: a round in which everybody does the same.
    """

    clients: dict[str, Planned]
    ordinary_seconds: float
    full_seconds: float
    mean_seconds: float
    uniform_seconds: float

    def participants(self, number: int) -> tuple[str, ...]:
        """Who is in round ``number``, from 1; the first round is everybody's."""
        if number < 1:
            raise ConfigError(f"round = {number}: must be >= 1")
        return tuple(
            name
            for name, planned in self.clients.items()
            if (number - 1) % planned.assignment.period == 0
        )

    def charges(self, rounds: int) -> dict[str, int]:
        """How often each client is charged over ``rounds`` rounds without a retry.

        A run's statement counts the largest; nothing is credited for rounds in between.
        """
        return {
            name: -(-rounds // planned.assignment.period) for name, planned in self.clients.items()
        }

    @property
    def smallest_cohort(self) -> int:
        """Clients of the smallest round."""
        always = sum(planned.assignment.period == 1 for planned in self.clients.values())
        return always or len(self.clients)

    def to_record(self) -> dict[str, object]:
        """The plan as JSON values."""
        return asdict(self) | {"smallest_cohort": self.smallest_cohort}


def schedule(
    profiles: Mapping[str, CapabilityProfile], workload: Workload, rules: Rules
) -> Schedule:
    """Plan a cohort's rounds.

    Every p-th round is of all clients, the others of those that take part always.  The mean round
    lasts ((p - 1) A + max(A, B)) / p: A the slowest of those that take part always, B the slowest
    of the others, each doing the least that ``rules`` allow.  Every split of the clients by speed
    is tried, for every p.

    Args:
        profiles: what each client states of itself.
        workload: what a round asks, in public sizes; for ``len(profiles)`` clients.
        rules: what may be chosen.

    Returns:
        The same plan for the same arguments.

    Raises:
        ConfigError: a client's memory holds no example beside the model, a client is available too
            rarely for the periods allowed, or too few would be left for a round.
    """
    if workload.clients != len(profiles):
        raise ConfigError(f"workload.clients = {workload.clients}, {len(profiles)} profiles given")
    return _Planner(dict(sorted(profiles.items())), workload, rules).plan()


class _Planner:
    def __init__(
        self, profiles: dict[str, CapabilityProfile], workload: Workload, rules: Rules
    ) -> None:
        self._profiles, self._workload, self._rules = profiles, workload, rules
        self._base = {name: self._fitted(name) for name in profiles}

    def _fitted(self, name: str) -> Assignment:
        """The uniform assignment with the largest micro-batch that the client's memory holds."""
        given, memory = self._rules.uniform, self._profiles[name].memory
        size = given.micro_batch
        rank = self._rules.ranks[0]
        while size > 1 and self._workload.memory(rank, size) > memory:
            size //= 2
        needed = self._workload.memory(rank, size)
        if needed > memory:
            raise ConfigError(
                f"profile of {name}: memory = {memory} bytes; the model and one example at rank "
                f"{rank} take {needed:.0f}; leave the client out, take a smaller base model, or "
                "keep it in fewer bits (model.quantize)"
            )
        return replace(given, micro_batch=size)

    def _seconds(self, name: str, given: Assignment) -> float:
        return self._workload.seconds(self._profiles[name], given)

    def _least(self, name: str, period: int) -> Assignment | None:
        """The least that a client may do when it takes part in every ``period``-th round."""
        rules = self._rules
        wanted = rules.least_work * rules.uniform.work * (1.0 - 1e-9)
        if period < self._profiles[name].least_period:
            return None
        for steps in rules.steps:
            given = replace(
                self._base[name],
                rank=rules.ranks[0],
                local_steps=steps,
                bits=rules.bits[0],
                period=period,
                tiers=tuple(rules.ranks) if len(rules.ranks) > 1 else (),
            )
            if given.work >= wanted:
                return given
        return None

    def plan(self) -> Schedule:
        least, deadlines = self._best()
        filled = self._filled(least, deadlines)
        clients = {name: self._planned(name, given, deadlines) for name, given in filled.items()}
        always = [name for name, given in filled.items() if given.period == 1]
        full = self._round(filled, list(filled))
        ordinary = self._round(filled, always) if always else full
        period = max(given.period for given in filled.values())
        uniform = self._round(self._base, list(self._base))
        return Schedule(
            clients=clients,
            ordinary_seconds=ordinary,
            full_seconds=full,
            mean_seconds=((period - 1) * ordinary + full) / period,
            uniform_seconds=uniform,
        )

    def _round(self, given: Mapping[str, Assignment], names: Sequence[str]) -> float:
        return self._workload.round_seconds((self._profiles[n], given[n]) for n in names)

    def _best(self) -> tuple[dict[str, Assignment], tuple[float, float]]:
        """Everybody's least assignment, and when ordinary and full rounds end with these."""
        found: list[tuple[float, float, int, dict[str, Assignment]]] = []
        for period in self._rules.periods:
            always = {n: a for n in self._profiles if (a := self._least(n, 1)) is not None}
            rarely = {n: a for n in self._profiles if (a := self._least(n, period)) is not None}
            if set(always) | set(rarely) != set(self._profiles):
                continue
            fast_first = sorted(always, key=lambda n: (self._seconds(n, always[n]), n))
            forced = [n for n in self._profiles if n not in always]
            for kept in range(len(fast_first), -1, -1):
                others = [*fast_first[kept:], *forced]
                if not all(n in rarely for n in others) or (period == 1 and others):
                    break
                if (others and kept < self._rules.least_cohort) or len(
                    self._profiles
                ) < self._rules.least_cohort:
                    break
                chosen = {n: always[n] for n in fast_first[:kept]} | {n: rarely[n] for n in others}
                early, late = self._deadlines(chosen)
                mean = ((period - 1) * early + late) / period if others else early
                share = sum(1.0 / given.period for given in chosen.values())
                found.append((mean, -share, period, chosen))
        if not found:
            rules = self._rules
            raise ConfigError(
                f"no plan: periods {list(rules.periods)}, least_work = {rules.least_work:g} and "
                f"least_cohort = {rules.least_cohort} leave no round that {len(self._profiles)} "
                "clients with their stated availability can fill"
            )
        shortest = min(mean for mean, *_ in found)
        as_good = [plan for plan in found if plan[0] <= _AS_GOOD * shortest]
        _, _, _, chosen = min(as_good, key=lambda plan: (plan[1], plan[0], plan[2]))
        chosen = {name: chosen[name] for name in self._profiles}
        return chosen, self._deadlines(chosen)

    def _deadlines(self, chosen: Mapping[str, Assignment]) -> tuple[float, float]:
        times = [(given.period, self._seconds(name, given)) for name, given in chosen.items()]
        late = max(seconds for _, seconds in times)
        return max((seconds for period, seconds in times if period == 1), default=late), late

    def _filled(
        self, chosen: Mapping[str, Assignment], deadlines: tuple[float, float]
    ) -> dict[str, Assignment]:
        """As much as ends in time: first each client's rank, then, the tiers settled, its steps."""

        def fits(name: str, other: Assignment) -> bool:
            deadline = deadlines[0] if other.period == 1 else deadlines[1]
            held = self._workload.memory(other.rank, other.micro_batch)
            in_time = self._seconds(name, other) <= deadline * (1.0 + 1e-9)
            return in_time and held <= self._profiles[name].memory

        found = dict(chosen)
        for rank, name in itertools.product(self._rules.ranks, found):
            more = replace(found[name], rank=rank)
            if rank > found[name].rank and fits(name, more):
                found[name] = more
        found = self._shared(found)
        for steps, name in itertools.product(self._rules.steps, found):
            more = replace(found[name], local_steps=steps)
            if steps > found[name].local_steps and fits(name, more):
                found[name] = more
        return found

    def _shared(self, filled: dict[str, Assignment]) -> dict[str, Assignment]:
        """Ranks lowered until every slice has contributors enough in each round it is sent in.

        What is then no longer a client's rank ends no slice.
        """
        ranks = list(self._rules.ranks)
        for lower, rank in reversed(list(itertools.pairwise(ranks))):
            holders = {name for name, given in filled.items() if given.rank >= rank}
            always = {name for name in holders if filled[name].period == 1}
            if any(0 < len(group) < self._rules.least_cohort for group in (holders, always)):
                filled |= {name: replace(filled[name], rank=lower) for name in holders}
        used = sorted({given.rank for given in filled.values()})
        tiers = tuple(used) if len(used) > 1 else ()
        return {name: replace(given, tiers=tiers) for name, given in filled.items()}

    def _planned(self, name: str, given: Assignment, deadlines: tuple[float, float]) -> Planned:
        profile, uniform = self._profiles[name], self._base[name]
        before = self._workload.parts(profile, uniform)
        parts = self._workload.parts(profile, given)
        return Planned(
            assignment=given,
            seconds=sum(parts.values()),
            parts=parts,
            uniform_seconds=sum(before.values()),
            work=given.work / self._rules.uniform.work,
            reason=self._reason(profile, given, before, deadlines),
        )

    def _reason(
        self,
        profile: CapabilityProfile,
        given: Assignment,
        before: Mapping[Part, float],
        deadlines: tuple[float, float],
    ) -> str:
        uniform, whole = self._rules.uniform, sum(before.values())
        slowest = max(before, key=lambda part: before[part])
        changes = [
            f"{what} {new}, not {old}"
            for what, new, old in (
                ("rank", given.rank, uniform.rank),
                ("steps", given.local_steps, uniform.local_steps),
                ("micro-batch", given.micro_batch, uniform.micro_batch),
            )
            if new != old
        ]
        if given.period > 1:
            why = "it is available no oftener" if profile.least_period > 1 else "rounds end sooner"
            changes.append(f"in one of {given.period} rounds ({why})")
        deadline = deadlines[0] if given.period == 1 else deadlines[1]
        return (
            f"the uniform plan would take it {whole:.3g} s, most of it {_PART_WORDS[slowest]}; "
            + (f"{', '.join(changes)}: " if changes else "it does all of it: ")
            + f"done within {deadline:.3g} s"
        )
