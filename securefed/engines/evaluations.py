"""Held-out figures in a run: exact sums outside the guarantee, or noised counts under their own."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.engines.arrangement import figures_aggregation
from securefed.engines.events import Observer
from securefed.engines.figures import Figures, encode_figures, figures_policy
from securefed.engines.histogram_records import recorded_histogram
from securefed.engines.histogram_settings import HistogramSettings, Of, histogram_guarantees
from securefed.engines.histograms import Carrier, Histograms, placed
from securefed.engines.in_process import Carried
from securefed.engines.noised_histogram import NoisedHistogram
from securefed.engines.parties import Parties
from securefed.engines.recorded import Shown, recorded_figures, shown_key
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.workbench import Workbench
from securefed.evidence.kinds import EVALUATED, EVALUATION_OPENED
from securefed.evidence.ledger import Ledger
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.accounting import Adversary, PrivacyGuarantee
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation
from securefed.secagg.aggregator import SESSION_BYTES


class Describe(Protocol):
    """Makes the public description of one attempt."""

    def __call__(
        self,
        name: bytes,
        number: int,
        policy: PrivacyPolicy,
        dimension: int,
        aggregation: Aggregation,
    ) -> RoundSession:
        """Of session ``name``, round ``number``."""
        ...


class Evaluations:
    """Measures, and remembers what was measured.

    Args:
        settings: what the run file means for the cohort.
        bench: model and clients' held-out data.
        folder: of the run.
        parties: the cohort.
        ledger: the run's.
        shown: what a simulation shows of single clients so far; it is added to.
        observer: told of progress.
        describe: makes the description of an attempt.
        carrier: carries it.
        book: notes what it cost, by the round that it came after.
    """

    def __init__(
        self,
        settings: Settings,
        bench: Workbench,
        folder: RunFolder,
        parties: Parties,
        ledger: Ledger,
        shown: dict[str, Shown],
        observer: Observer,
        *,
        describe: Describe,
        carrier: Carrier,
        book: Callable[[int, Carried], None],
    ) -> None:
        self._settings, self._bench, self._folder = settings, bench, folder
        self._parties, self._ledger, self._shown = parties, ledger, shown
        self._observer, self._describe = observer, describe
        self._carrier, self._book = carrier, book
        own = settings.histograms
        self._counting = None if own is None else (own, Histograms(own, parties, ledger))

    # -- what was found --------------------------------------------------------------------

    def recorded(self, number: int) -> Figures:
        """What was measured of the shared adapter after a round."""
        found = recorded_figures(self._ledger.records, number, self._shown)
        return Figures.unmeasured() if found is None else found

    def at_the_end(self, last: int, of: Of = "shared") -> Figures:
        """What was measured after the last round, or is measured now."""
        found = recorded_figures(self._ledger.records, last, self._shown, of=of)
        return self._measure(last, of, in_between=False) if found is None else found

    def gain(self, last: int) -> NoisedHistogram | None:
        """How the adapters in use compare with the shared one, where clients are counted."""
        if self._counting is None or not self._settings.config.personal.told:
            return None
        found = recorded_histogram(self._ledger.records, last, "gain")
        if found is None and self._affords(last, in_between=False):
            found = self._count(*self._counting, last, "gain")
        return found

    @property
    def charges(self) -> int:
        """The most histograms that any client has charged."""
        return 0 if self._counting is None else self._counting[1].charges

    @property
    def guarantees(self) -> dict[Adversary, PrivacyGuarantee]:
        """What holds of them; none where figures are sums."""
        return histogram_guarantees(self._settings.histograms, self.charges)

    def closing(self) -> dict[str, Any]:
        """What the run's closing record says of them."""
        if self._counting is None:
            return {}
        statements = [statement.to_record() for statement in self.guarantees.values()]
        return {"histograms": {"charges": self.charges, "guarantees": statements}}

    # -- measuring -------------------------------------------------------------------------

    def measure(self, number: int) -> None:
        """Measure the shared adapter after a round, if a budget of histograms allows for it."""
        between = number not in (0, self._settings.config.training.rounds)
        self._measure(number, "shared", in_between=between)

    def _measure(self, number: int, of: Of, *, in_between: bool) -> Figures:
        if self._counting is None:
            return self._sum(number, of)
        if not self._affords(number, in_between=in_between):
            return Figures.unmeasured()
        return Figures.from_histogram(self._count(*self._counting, number, of))

    def _affords(self, number: int, *, in_between: bool) -> bool:
        if self._counting is None or self._counting[1].affords(in_between=in_between):
            return True
        limit = self._counting[0].section.epsilon
        self._observer.message(
            f"evaluation.histogram.epsilon = {limit:g}: a histogram after round {number} would "
            f"exceed it{' or leave none for the end' * in_between}; it is left out"
        )
        return False

    def _sum(self, number: int, of: Of) -> Figures:
        """Each client measures its own held-out text; only the sum over clients is opened."""
        config, settings = self._settings.config, self._settings
        session = self._session(
            number,
            figures_policy(settings.sum_policy),
            Figures.DIMENSION,
            figures_aggregation(config.aggregation, settings.aggregation),
        )
        name_of = {"round": number, "session": session.session.hex(), "guaranteed": False}
        if of != "shared":
            name_of["of"] = of
        own = self._measured(own=of == "personal")
        self._ledger.append(EVALUATION_OPENED, name_of)
        server = ServerRound(session)
        carried = self._carrier(
            server,
            session,
            lambda client: ClientRound(
                session,
                client.client_id,
                client.identity,
                encode_figures(own[client.client_id]),
                floors=self._parties.floors,
            ),
        )
        self._book(number, carried)
        shown = own if config.evaluation.show_clients else None
        figures = Figures.from_sum(server.sum, len(server.survivors), shown)
        if shown is not None:
            self._shown[shown_key(number, of)] = Shown(figures.worst, figures.spread)
            self._write_shown()
        record = {"survivors": list(server.survivors), "figures": figures.to_record()}
        self._ledger.append(EVALUATED, name_of | record)
        return figures

    def _count(
        self, settings: HistogramSettings, histograms: Histograms, number: int, of: Of
    ) -> NoisedHistogram:
        """Each client counts in one public bin; the noised counts are opened, and nothing else."""
        session = self._session(
            number, settings.policy, settings.section.bins, settings.aggregation
        )
        bins = settings.bins(of)
        figures = self._measured(own=of != "shared")
        shared = self._measured(own=False) if of == "gain" else {}
        vectors = {
            name: placed(bins, figure, over=shared.get(name)) for name, figure in figures.items()
        }
        found, carried = histograms.take(of, number, session, vectors, self._carrier)
        self._book(number, carried)
        return found

    def _session(
        self, number: int, policy: PrivacyPolicy, dimension: int, aggregation: Aggregation
    ) -> RoundSession:
        # Held-out figures after a round are summed as the first thing of the next one.
        name = secrets.token_bytes(SESSION_BYTES)
        return self._describe(name, number + 1, policy, dimension, aggregation)

    def _measured(self, *, own: bool) -> dict[str, NDArray[np.float64]]:
        """Every client's figures, each as it alone knows them."""
        found: dict[str, NDArray[np.float64]] = {}
        cohort = self._parties.cohort
        for done, name in enumerate(cohort):
            self._observer.working("evaluating", done, len(cohort))
            with self._parties.clients[name].meter.phase("evaluate"):
                found[name] = self._bench.figures(name, own=own)
        self._observer.working("evaluating", len(cohort), len(cohort))
        return found

    def _write_shown(self) -> None:
        own = self._bench.own_adapters
        spreads = {key: list(each.spread) for key, each in self._shown.items() if each.spread}
        self._folder.write_shown(
            {"worst_client": {key: each.worst for key, each in self._shown.items()}}
            | {"spread": spreads}
            | ({} if own is None else {"mixes": own.mixes})
        )
