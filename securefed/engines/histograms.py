"""Noised histograms of held-out figures in a run: each charged by each client before it counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefed.engines.attempts import History
from securefed.engines.cohort import SimulatedClient
from securefed.engines.events import Observer
from securefed.engines.figures import Figures, encode_figures
from securefed.engines.histogram_settings import HistogramSettings, Of
from securefed.engines.in_process import Carried
from securefed.engines.noised_histogram import Bins, NoisedHistogram
from securefed.engines.parties import Parties
from securefed.engines.run_folder import RunFolder
from securefed.errors import SecureFedError
from securefed.evidence.budget import CHARGE, ClientBudget
from securefed.evidence.kinds import (
    HISTOGRAM_ABANDONED,
    HISTOGRAM_FAILED,
    HISTOGRAM_OPENED,
    HISTOGRAM_SUMMED,
)
from securefed.evidence.ledger import Ledger
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.accounting import epsilon_text

Carrier = Callable[[ServerRound, RoundSession, Callable[[SimulatedClient], ClientRound]], Carried]
"""Carries one round between a server and the clients' halves."""


def placed(
    bins: Bins, figures: NDArray[np.float64], *, over: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """One client's one-hot vector.

    Args:
        bins: of accuracy, of perplexity, or of the gain.
        figures: ``Figures.vector`` of what is measured.
        over: likewise of what it is compared with; with bins of the gain, and only then.
    """
    nll, accuracy = Figures.of_vector(figures)
    if over is not None:
        nll_before, accuracy_before = Figures.of_vector(over)
        gained = (
            nll_before - nll if accuracy_before is None else (accuracy or 0.0) - accuracy_before
        )
        return bins.one_hot(gained)
    return bins.one_hot(math.exp(nll) if accuracy is None else accuracy)


class Histograms:
    """Counts clients by their figures, under an account of each client's own.

    Args:
        settings: what the run file says of them.
        parties: the cohort; each client holds its account (:func:`open_accounts`).
        ledger: the run's.

    Guarantees:
        - The ledger names an attempt before its first message, and each client charges it durably
          before its masked vector leaves; one that failed stays charged.
        - Histograms between the first and the last round are made only where the limit then still
          allows for those at the end.
    """

    def __init__(self, settings: HistogramSettings, parties: Parties, ledger: Ledger) -> None:
        self._settings, self._parties, self._ledger = settings, parties, ledger

    @property
    def charges(self) -> int:
        """The most histograms that any client has charged."""
        return max(account.charges for account in self._accounts.values())

    @property
    def _accounts(self) -> dict[str, ClientBudget]:
        return {
            name: client.histograms
            for name, client in self._parties.clients.items()
            if client.histograms is not None
        }

    def affords(self, *, in_between: bool) -> bool:
        """Whether one more is within every client's limit, and those at the end after it."""
        more = 1 + self._settings.at_the_end * in_between
        return all(account.affords(more) for account in self._accounts.values())

    def take(
        self,
        of: Of,
        number: int,
        session: RoundSession,
        vectors: Mapping[str, NDArray[np.float64]],
        carrier: Carrier,
    ) -> tuple[NoisedHistogram, Carried]:
        """One histogram.

        Args:
            of: what is counted.
            number: of the round that it is taken after.
            session: its description, under ``settings.policy``.
            vectors: one-hot, by client.
            carrier: carries the round.

        Raises:
            ThresholdNotMet: too few clients were left; what was charged stays charged.
        """
        name_of = {"round": number, "session": session.session.hex(), "of": of}
        event = self._settings.event() | name_of
        self._ledger.append(HISTOGRAM_OPENED, event)
        charged: list[str] = []
        accounts = self._accounts

        def client_round(client: SimulatedClient) -> ClientRound:
            def charge() -> None:
                accounts[client.client_id].charge(event)
                charged.append(client.client_id)

            return ClientRound(
                session,
                client.client_id,
                client.identity,
                encode_figures(vectors[client.client_id]),
                charge=charge,
                floors=self._parties.floors,
            )

        server = ServerRound(session)
        try:
            carried = carrier(server, session, client_round)
        except SecureFedError as error:
            why = {"charged": sorted(charged), "why": type(error).__name__}
            self._ledger.append(HISTOGRAM_FAILED, name_of | why)
            raise
        survivors = server.survivors
        found = self._settings.histogram(of, server.sum, clients=len(survivors))
        self._ledger.append(
            HISTOGRAM_SUMMED,
            name_of
            | {
                "survivors": list(survivors),
                "charged": sorted(charged),
                "charges": self.charges,
                "histogram": found.to_record(),
            },
        )
        return found, carried


# -- accounts ------------------------------------------------------------------------------


def begin_accounts(
    folder: RunFolder,
    cohort: tuple[str, ...],
    settings: HistogramSettings | None,
    clock: Callable[[], str],
) -> None:
    """Begin each client's account of histograms, where the run has any."""
    if settings is None:
        return
    for name in cohort:
        account = {"client": name, "privacy": settings.record()}
        Ledger.create(folder.histograms(name), account, clock=clock).close()


def open_accounts(
    folder: RunFolder,
    clients: Mapping[str, SimulatedClient],
    settings: HistogramSettings | None,
    clock: Callable[[], str],
    held: ExitStack,
) -> dict[str, Ledger]:
    """Give each client its account of histograms; ``held`` closes them.

    Returns:
        The accounts' ledgers by client; none where the run has no histograms.
    """
    accounts: dict[str, Ledger] = {}
    if settings is None:
        return accounts
    for name, client in clients.items():
        accounts[name] = held.enter_context(Ledger.open(folder.histograms(name), clock=clock))
        client.histograms = ClientBudget(
            accounts[name],
            event=settings.event(),
            epsilon_after=settings.epsilon_after,
            limit=settings.section.epsilon,
        )
    return accounts


def abandon_histogram(
    ledger: Ledger,
    history: History,
    accounts: Mapping[str, Ledger],
    clients: Mapping[str, SimulatedClient],
    observer: Observer,
) -> None:
    """Charge a histogram without an end to every client that may not have recorded it."""
    attempt = history.open_histogram
    if attempt is None:
        return
    for name, account in accounts.items():
        paid = {r.body["session"] for r in account.records if r.kind == CHARGE}
        budget = clients[name].histograms
        if budget is not None and attempt.session not in paid:
            budget.charge(attempt.event)
    observer.message(
        f"a histogram of held-out figures after round {attempt.round} was begun and not ended; it "
        "counts as spent by all"
    )
    body: dict[str, Any] = {key: attempt.event[key] for key in ("round", "session", "of")}
    ledger.append(HISTOGRAM_ABANDONED, body | {"charged": sorted(accounts)})


def told_of_histograms(settings: HistogramSettings) -> str:
    """What a run's histograms will cost, in a line."""
    limit = settings.section.epsilon
    return (
        f"held-out figures: {settings.planned} noised histograms are planned, at most epsilon "
        f"{epsilon_text(settings.epsilon_after(settings.planned))} against the server (one client, "
        f"delta {settings.policy.delta:g}), beside what training spends"
        + ("" if limit is None else f"; stopped at {limit:g}")
    )
