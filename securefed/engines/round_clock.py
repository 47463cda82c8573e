"""The virtual clock of one round of a run that carries out a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from securefed.config import STAGES, Stage
from securefed.engines.settings import Settings
from securefed.errors import ConfigError
from securefed.federation.client import ClientRound
from securefed.federation.session import RoundSession
from securefed.federation.sliced_rounds import SlicedClientRound
from securefed.federation.slices import SlicedSession
from securefed.secagg.aggregator import AggregationClient

UNCHARGED: tuple[Stage, ...] = ("advertise", "graph", "share")
"""Stages before a client charges itself: who is late in one of them has spent nothing."""


class RoundClock:
    """Times a round by the clients' profiles; does nothing where the run has no plan.

    Args:
        settings: of the run.
        number: of the round.
        session: of the round, as the server has it.

    Attributes:
        timing: what decides who is in time; None without a plan.
        skips: whether any client takes part in some rounds only.
    """

    def __init__(
        self, settings: Settings, number: int, session: RoundSession | SlicedSession
    ) -> None:
        plan, policy = settings.run_plan, settings.stated
        # Every member holds slice 1; a slice above it that too few are in time for stays closed.
        whole = session.sessions[0] if isinstance(session, SlicedSession) else session
        self.timing = (
            None if plan is None else plan.timing(number, policy, whole.context.parameters)
        )
        self.skips = plan is not None and plan.skips
        self._prepare = plan is not None and plan.prepared(policy)

    def prepared(self, halves: dict[str, AggregationClient]) -> dict[str, AggregationClient]:
        """Where lateness would tell of a sample or an update: make every contribution now."""
        for half in halves.values() if self._prepare else ():
            if isinstance(half, ClientRound | SlicedClientRound):
                half.prepare()
        return halves

    def to_record(self) -> dict[str, Any]:
        """What the ledger holds of it: public speeds and sizes alone decide it."""
        if self.timing is None:
            return {}
        return {"late": dict(self.timing.late), "virtual_seconds": self.timing.now}


def checked_late(
    body: Mapping[str, Any], members: set[str], *, timed: bool, closes: bool
) -> dict[str, Stage]:
    """Who was late in which stage, by the record of a round's end.

    Args:
        body: of the record.
        members: the round's cohort.
        timed: whether rounds of the run have a clock.
        closes: whether a stage may close before everybody has answered.

    Raises:
        ConfigError: it says what no round does.
    """
    if not timed and ("late" in body or "virtual_seconds" in body):
        raise ConfigError("late, virtual_seconds: no round of this run is timed")
    late, seconds = body.get("late", {}), body.get("virtual_seconds", 0.0)
    if not isinstance(seconds, float | int) or not seconds >= 0.0:
        raise ConfigError(f"virtual_seconds = {seconds!r}: must be >= 0")
    if not isinstance(late, Mapping):
        raise ConfigError(f"late = {late!r}: must be stages by client")
    if late and not closes:
        raise ConfigError(f"late = {dict(late)}: without a deadline every stage waits for all")
    for name, stage in late.items():
        if name not in members or stage not in STAGES:
            raise ConfigError(f"late: {name!r} in {stage!r}, which is no member or no stage")
        if stage in UNCHARGED and name in body["charged"]:
            raise ConfigError(f"late: {name} in {stage!r}, before it charges itself, was charged")
        if stage not in UNCHARGED and name not in body["charged"]:
            raise ConfigError(f"late: {name} in {stage!r}, after it charged itself, was not")
        if stage in (*UNCHARGED, "masked_input") and name in body.get("survivors", ()):
            raise ConfigError(f"late: {name} in {stage!r}, and it is among the survivors")
    return dict(late)
