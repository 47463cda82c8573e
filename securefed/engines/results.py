"""What a run has to show, and how it is made again from the run's ledger.  Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from securefed.engines.events import RoundEvent
from securefed.engines.figures import Figures
from securefed.engines.histogram_records import recorded_histogram
from securefed.engines.histogram_settings import histogram_guarantees
from securefed.engines.noised_histogram import NoisedHistogram
from securefed.engines.recorded import read_shown, recorded_event, recorded_figures
from securefed.engines.verified import verified_run
from securefed.evidence.kinds import closing
from securefed.evidence.ledger import read_ledger
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee


@dataclass(frozen=True)
class RunResult:
    """What a finished run has to show.

    Attributes:
        folder: the run folder.
        rounds: rounds applied to the adapter.
        charges: most masked inputs any client charged (retries included); epsilon counts these.
        guarantees: what holds against each adversary.
        noise_multiplier: of the run, whether it was given or followed from a target.
        before: held-out figures of the untouched model, and ``after``: of the last adapter.
        events: one a round.
        stopped: why the run ended early; empty if it did not.
        personal: held-out figures of the adapters that clients use; None without such.
        gain: how these compare with the last adapter; where figures come from histograms.
        histogram_charges: most histograms any client charged.
        histogram_guarantees: what holds of them; none where figures are sums.
    """

    folder: Path
    rounds: int
    charges: int
    guarantees: dict[Adversary, PrivacyGuarantee]
    noise_multiplier: float
    before: Figures
    after: Figures
    events: list[RoundEvent] = field(repr=False)
    stopped: str = ""
    personal: Figures | None = None
    gain: NoisedHistogram | None = None
    histogram_charges: int = 0
    histogram_guarantees: dict[Adversary, PrivacyGuarantee] = field(default_factory=dict)


def recorded_result(folder: Path) -> RunResult | None:
    """What a finished run had to show, once more; None if the run is not finished.

    Raises:
        ConfigError, LedgerTampered: the folder does not verify.
    """
    if closing(read_ledger(folder / "ledger.jsonl")) is None:
        return None  # another process may be writing it
    run = verified_run(folder)
    closed = run.history.closed or {}
    rounds = run.history.applied
    shown = read_shown(folder / "shown.json")
    before, after = (recorded_figures(run.records, number, shown) for number in (0, rounds))
    histograms = run.settings.histograms
    personal = None
    if run.settings.config.personal.told:
        found = recorded_figures(run.records, rounds, shown, of="personal")
        personal = found or Figures.unmeasured()
    return RunResult(
        folder=folder,
        rounds=rounds,
        charges=run.charges,
        guarantees={who: run.settings.guarantee(who, run.charges) for who in ADVERSARIES},
        noise_multiplier=run.settings.stated.noise_multiplier,
        before=before or Figures.unmeasured(),
        after=after or Figures.unmeasured(),
        events=[recorded_event(run.records, n, run.settings) for n in range(rounds + 1)],
        stopped=str(closed["stopped"]),
        personal=personal,
        gain=recorded_histogram(run.records, rounds, "gain"),
        histogram_charges=run.histogram_charges,
        histogram_guarantees=histogram_guarantees(histograms, run.histogram_charges),
    )
