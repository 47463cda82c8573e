"""The values of a run's ledger that a claim may rest on, by name: a closed list."""

from __future__ import annotations

from typing import Literal

LedgerName = Literal[
    "closing.epsilon.server",
    "closing.epsilon.release",
    "closing.epsilon.fellow_client",
    "closing.epsilon.figures",
    "closing.charges",
    "privacy.noise_multiplier",
    "privacy.delta",
    "rounds.summed",
    "rounds.failed",
    "rounds.survivors.min",
    "rounds.survivor_floor",
    "evaluation.unnoised_sums",
    "evaluation.histograms",
    "openings.beyond_sums",
    "witnesses.unsigned_rounds",
]
