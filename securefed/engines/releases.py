"""The releases of a run, for its ledger and for other accountants."""

from __future__ import annotations

from typing import Any

from securefed.engines.histogram_settings import HistogramSettings
from securefed.engines.settings import Settings
from securefed.privacy.accounting import ADVERSARIES, Adversary
from securefed.privacy.releases import Release, release_of, sliced_release, unlike_release
from securefed.secagg.aggregations import PlaintextAggregation


def run_release(settings: Settings, against: Adversary, charges: int) -> Release:
    """What ``Settings.guarantee`` states epsilon of, after ``charges`` rounds."""
    plaintext = isinstance(settings.aggregation, PlaintextAggregation)
    if settings.slices is not None:
        return sliced_release(
            settings.slices.slices, against=against, rounds=charges, plaintext=plaintext
        )
    if settings.run_plan is not None:
        return unlike_release(
            settings.cohorts.kinds, against=against, rounds=charges, plaintext=plaintext
        )
    return release_of(
        settings.stated,
        settings.plan,
        cohort_size=settings.cohort_size,
        against=against,
        rounds=charges,
        plaintext=plaintext,
    )


def histogram_release(settings: HistogramSettings, against: Adversary, charges: int) -> Release:
    """What ``HistogramSettings.guarantee`` states epsilon of, after ``charges`` histograms."""
    return release_of(
        settings.policy,
        settings.plan,
        cohort_size=settings.cohort_size,
        against=against,
        rounds=charges,
        plaintext=not settings.protects,
    )


def release_records(settings: Settings, charges: int) -> dict[str, dict[str, Any]]:
    """The release against each adversary, as a ledger holds them."""
    return {who: run_release(settings, who, charges).to_record() for who in ADVERSARIES}
