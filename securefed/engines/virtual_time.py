"""Rounds of a simulation on a clock that is only counted: real messages, stated speeds.

Every client's answer arrives after the seconds that its profile says; a stage closes by the same
rule as in a deployment.  Nothing sleeps, and nothing depends on the machine that runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from securefed.config import Stage
from securefed.engines.in_process import Answer
from securefed.federation.capability import Assignment, CapabilityProfile, Workload
from securefed.federation.deadlines import DeadlineRule, StageDeadline
from securefed.secagg.parameters import PairwiseParameters

SecondsOf = Callable[[str, Stage, int, int], float]
"""Seconds of a client in a stage, from the bytes that it sends and is sent."""


def modelled_seconds(
    workload: Workload,
    members: Mapping[str, tuple[CapabilityProfile, Assignment]],
    *,
    prepared: bool = False,
) -> SecondsOf:
    """Compute as the cost model has it, transfers by the bytes that are really carried.

    Args:
        workload: what a round asks.
        members: profile and assignment of each client.
        prepared: contributions are made before the round begins: before the first stage.
    """
    compute: dict[str, dict[Stage, float]] = {}
    for name, (profile, given) in members.items():
        stages = workload.stages(profile, given)
        own = {stage: parts.pop("training", 0.0) + parts.pop("encoding", 0.0)
               for stage, parts in stages.items()}  # fmt: skip
        compute[name] = {
            stage: parts["protocol"] + parts.get("adapter", 0.0) + (0.0 if prepared else own[stage])
            for stage, parts in stages.items()
        }
        if prepared:
            compute[name]["advertise"] += sum(own.values())

    def seconds(name: str, stage: Stage, up: int, down: int) -> float:
        profile = members[name][0]
        return compute[name][stage] + up / profile.upload + down / profile.download

    return seconds


class VirtualRound:
    """Orders the answers of each stage by when they arrive, and leaves out those that are late.

    Args:
        seconds: of a client in a stage.
        parameters: of the round; its floors are those that the server keeps too.
        rule: when a stage closes; without it every stage waits for everybody.

    Attributes:
        now: seconds since the round began.
        ends: when each stage ended.
        late: clients whose answer came after its stage had closed, and which stage that was.
    """

    def __init__(
        self, seconds: SecondsOf, parameters: PairwiseParameters, rule: DeadlineRule | None = None
    ) -> None:
        self._seconds, self._parameters, self._rule = seconds, parameters, rule
        self.now = 0.0
        self.ends: dict[Stage, float] = {}
        self.late: dict[str, Stage] = {}

    def in_time(self, stage: Stage, answers: Iterable[Answer], asked: int) -> Iterator[Answer]:
        """The answers that arrive before the stage closes, in that order.

        Args:
            stage: which one.
            answers: of those who are there.
            asked: how many were asked.
        """
        began = self.now
        arriving = sorted(
            (
                (began + self._seconds(one.client, stage, one.up, one.down), one.client, one)
                for one in answers
            ),
            key=lambda item: item[:2],
        )
        closed = self._closing(stage, [at for at, *_ in arriving], asked)
        for at, name, answer in arriving:
            if at <= closed:
                yield answer
            else:
                self.late[name] = stage
        self.now = self.ends[stage] = closed

    def _closing(self, stage: Stage, arrivals: list[float], asked: int) -> float:
        """When the stage closes; a stage that fails closes too, and the server says why."""
        if self._rule is None:
            return max(arrivals, default=self.now)
        parameters = self._parameters
        floor = {"consistency": parameters.quorum, "unmask": parameters.threshold}.get(
            stage, parameters.survivor_floor
        )
        if floor > asked:
            return max(arrivals, default=self.now)
        deadline = StageDeadline(self._rule, asked=asked, floor=floor, began=self.now)
        for at in arrivals:
            if deadline.wake <= at and deadline.decision(deadline.wake) != "wait":
                return deadline.wake
            if deadline.answered(at) != "wait":
                return at
        return deadline.wake
