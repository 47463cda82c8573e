"""What a run tells whoever watches it; nothing individual is in an event."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from securefed.federation.scheduling import Schedule
from securefed.privacy.accounting import Adversary


@dataclass(frozen=True, kw_only=True)
class RoundEvent:
    """One finished (or failed) round.

    Attributes:
        round: its number; 0 is the evaluation before the first round.
        rounds: how many the run has in all.
        survivors: clients inside the sum.
        cohort: clients invited.
        silent: survivors that were not heard of again after their masked input; none that refused.
        epsilon: spent so far; None when unprotected.
        against: whom epsilon speaks of: the server, or the release where the server is trusted.
        delta: goes with epsilon.
        perplexity: held-out, mean over clients; None where not measured or not a language model.
        accuracy: held-out, mean over clients, in [0, 1]; None likewise.
        bytes_up: mean bytes a client sent.
        bytes_down: mean bytes a client was sent, the adapter included.
        client_seconds: mean seconds a simulated client worked.
        seconds: wall-clock time of the round.
        encrypting_seconds, adding_seconds, opening_seconds: of an encrypted round, as
            ``engines.timing.EncryptionSeconds`` has them; 0 where nothing was encrypted.
        clip_norm: the round's clip under adaptive clipping; None where it never changes.
        unclipped_fraction: noised share of units within it, from which the next one follows.
        virtual_seconds: of the round, where a plan is carried out: from public speeds and sizes.
        note: what was out of the ordinary.
        held_out_guaranteed: whether perplexity and accuracy are estimates from noised counts of
            clients, under a guarantee of their own; exact means are under none.
    """

    round: int
    rounds: int
    survivors: int
    cohort: int
    epsilon: float | None
    against: Adversary
    delta: float
    perplexity: float | None
    accuracy: float | None
    bytes_up: float
    bytes_down: float
    client_seconds: float
    seconds: float
    encrypting_seconds: float = 0.0
    adding_seconds: float = 0.0
    opening_seconds: float = 0.0
    silent: int = 0
    clip_norm: float | None = None
    unclipped_fraction: float | None = None
    virtual_seconds: float | None = None
    note: str = ""
    held_out_guaranteed: bool = False

    def public(self) -> RoundEvent:
        """The event as it may be handed to others: nothing of it tells how much was drawn.

        Measured seconds are 0, and there is no note, which may name who was late.
        """
        return replace(
            self,
            note="",
            client_seconds=0.0,
            seconds=0.0,
            encrypting_seconds=0.0,
            adding_seconds=0.0,
            opening_seconds=0.0,
        )

    def to_record(self) -> dict[str, Any]:
        """What is written down: no measured seconds, which tell how large a secret sample was."""
        kept = {key: value for key, value in asdict(self).items() if "seconds" not in key}
        if self.virtual_seconds is not None:
            kept["virtual_seconds"] = self.virtual_seconds
        return kept


@dataclass(frozen=True, kw_only=True)
class StageEvent:
    """One exchange with clients that are elsewhere, as the server saw it.

    Attributes:
        round: its number; 0 where it belongs to none.
        stage: ``hello``, a stage of the round, or ``head``.
        of: what the round sums, ``updates`` or ``figures``; empty where it belongs to none.
        asked: how many were asked.
        answered: how many gave an answer that is none of the following.
        refused: the kind of refusal, or what is wrong with the reply, by party.
        silent: who gave no reply in time.
        seconds: that replies were waited for.
        bytes_up: of all replies.
        bytes_down: of all requests.
    """

    round: int
    stage: str
    of: str = ""
    asked: int
    answered: int
    refused: Mapping[str, str] = field(default_factory=dict)
    silent: tuple[str, ...] = ()
    seconds: float
    bytes_up: int
    bytes_down: int

    def to_record(self) -> dict[str, Any]:
        """JSON values, by name."""
        return asdict(self) | {
            "refused": dict(self.refused),
            "silent": list(self.silent),
            "seconds": round(self.seconds, 3),
        }


class Observer(Protocol):
    """Told what happens; draws a progress bar, or does nothing."""

    def begun(self, folder: Path) -> None:
        """The run folder is there: from now on a stopped run can be resumed."""
        ...

    def message(self, text: str) -> None:
        """A line worth reading."""
        ...

    def planned(self, plan: Schedule) -> None:
        """The run carries out this plan."""
        ...

    def working(self, what: str, done: int, total: int) -> None:
        """Progress inside a round: ``done`` of ``total`` steps of ``what``."""
        ...

    def stage_end(self, event: StageEvent) -> None:
        """Clients that are elsewhere were asked, and waited for."""
        ...

    def round_end(self, event: RoundEvent) -> None:
        """A round is over."""
        ...


class Silent:
    """An observer that looks away."""

    def begun(self, folder: Path) -> None:
        """Nothing."""

    def message(self, text: str) -> None:
        """Nothing."""

    def planned(self, plan: Schedule) -> None:
        """Nothing."""

    def working(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def stage_end(self, event: StageEvent) -> None:
        """Nothing."""

    def round_end(self, event: RoundEvent) -> None:
        """Nothing."""


OnRoundEnd = Callable[[RoundEvent], object]
"""Called with :meth:`RoundEvent.public` when a round is over; what it raises stops the run."""


class Told:
    """An observer, and functions that are told of each round's end besides it.

    A function that raises stops the run after that round, which is on record; the run can be
    resumed.  After a resume the last round is told once more.
    """

    def __init__(self, observer: Observer, each: Sequence[OnRoundEnd]) -> None:
        self._observer, self._each = observer, tuple(each)

    def begun(self, folder: Path) -> None:
        """To the observer alone."""
        self._observer.begun(folder)

    def message(self, text: str) -> None:
        """To the observer alone."""
        self._observer.message(text)

    def planned(self, plan: Schedule) -> None:
        """To the observer alone."""
        self._observer.planned(plan)

    def working(self, what: str, done: int, total: int) -> None:
        """To the observer alone: how long a client trains tells how much was drawn."""
        self._observer.working(what, done, total)

    def stage_end(self, event: StageEvent) -> None:
        """To the observer alone."""
        self._observer.stage_end(event)

    def round_end(self, event: RoundEvent) -> None:
        """To the observer, and what is public of it to each function."""
        self._observer.round_end(event)
        for function in self._each:
            function(event.public())


class Lines:
    """Writes a line for each event to standard error: for a process without a terminal."""

    def begun(self, folder: Path) -> None:
        """Name the run folder."""
        self.message(f"run folder: {folder}")

    def message(self, text: str) -> None:
        """The line."""
        print(f"securefed: {text}", file=sys.stderr, flush=True)

    def planned(self, plan: Schedule) -> None:
        """Nothing."""

    def working(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def stage_end(self, event: StageEvent) -> None:
        """Who did not answer, if anybody."""
        if event.silent:
            self.message(f"round {event.round}: {event.stage}: silent: {', '.join(event.silent)}")

    def round_end(self, event: RoundEvent) -> None:
        """Round, survivors and epsilon with what goes with it."""
        unprotected = event.epsilon is None
        spent = "UNPROTECTED" if unprotected else f"epsilon {event.epsilon:.4g}"
        self.message(
            f"round {event.round} of {event.rounds}: {event.survivors} of {event.cohort} clients, "
            f"{spent} (delta {event.delta:g}, against {event.against})"
        )
