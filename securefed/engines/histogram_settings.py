"""What a run file's histograms of held-out figures mean for a cohort.  Needs no torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from securefed.config import HistogramSection, RunConfig
from securefed.engines.arrangement import figures_aggregation
from securefed.engines.noised_histogram import Bins, NoisedHistogram
from securefed.errors import ConfigError
from securefed.privacy.accounting import (
    ADVERSARIES,
    Adversary,
    PrivacyGuarantee,
    accounted_adversary,
    epsilon_text,
    guarantee,
)
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PlaintextAggregation

Of = Literal["shared", "personal", "gain"]
"""Figures of the shared adapter, of the one in use, or of the one over the other."""

_UNIT = "one client: all of its data, as far as its held-out figures show it"
_ADJACENCY = "zero-out of one client: it counts in no bin; who takes part is public"
_BESIDE = "this is spent on held-out figures, beside what is spent on training: "
_ADD = "add, epsilon to epsilon and delta to delta"


def evaluated_rounds(config: RunConfig) -> tuple[int, ...]:
    """After which rounds a whole run measures the shared adapter; 0 is before the first."""
    rounds, every = config.training.rounds, config.evaluation.every
    return tuple(sorted({0, rounds, *(range(every, rounds + 1, every) if every else ())}))


class HistogramSettings:
    """Policy, plan, price and statement of the histograms of one run.

    Each is a round of its own: a one-hot vector a client, clipped to L2 norm 1, with distributed
    discrete Gaussian noise, unit ``client``.  All have one length and so one price.

    Args:
        section: of the run file.
        config: the whole of it.
        cohort_size: n.
        aggregation: of the run's rounds.

    Attributes:
        planned: histograms of a run in which none is repeated.
        at_the_end: how many of these come after the last round.
        protects: whether single counts are hidden from the server; not in plaintext sums.

    Raises:
        ConfigError: ``epsilon`` does not allow for the first and the last ones, or nothing holds
            with so little noise.
        OverflowBoundError: the sum would not fit the ring.
    """

    def __init__(
        self,
        section: HistogramSection,
        config: RunConfig,
        *,
        cohort_size: int,
        aggregation: Aggregation,
    ) -> None:
        self.section, self.config, self.cohort_size = section, config, cohort_size
        self.at_the_end = 1 + 2 * config.personal.told
        self.planned = len(evaluated_rounds(config)) - 1 + self.at_the_end
        self.policy = PrivacyPolicy(
            clip_norm=1.0,
            noise_multiplier=section.noise_multiplier,
            delta=config.privacy.delta,
            unit="client",
            mechanism="distributed",
            rounds=self.planned,
            corrupt_fraction=config.privacy.corrupt_fraction,
            dropout_fraction=config.privacy.dropout_fraction,
        )
        self.aggregation = figures_aggregation(config.aggregation, aggregation)
        self.bounds = CohortBounds.of(self.policy, cohort_size)
        self.plan: RoundPlan = plan_round(
            self.policy,
            cohort_size=cohort_size,
            dimension=section.bins,
            bits=self.aggregation.ring_bits(
                self.policy, cohort_size=cohort_size, dimension=section.bins
            ),
        )
        self.protects = not isinstance(self.aggregation, PlaintextAggregation)
        self.epsilon_after = functools.lru_cache(maxsize=None)(self._epsilon_after)
        if self.protects and not math.isfinite(self.epsilon_after(self.planned)):
            raise ConfigError(
                f"evaluation.histogram.noise_multiplier = {section.noise_multiplier:g}: nothing "
                f"can be stated of the {self.planned} histograms that are planned; use more noise"
            )
        least = 1 + self.at_the_end
        if section.epsilon is not None and self.epsilon_after(least) > section.epsilon:
            raise ConfigError(
                f"evaluation.histogram.epsilon = {section.epsilon:g}: the histograms before the "
                f"first and after the last round alone, {least} of them, cost "
                f"{epsilon_text(self.epsilon_after(least))}; allow for them, or raise "
                "evaluation.histogram.noise_multiplier"
            )

    def bins(self, of: Of) -> Bins:
        """The public bins of a figure."""
        classifier = self.config.model.task == "sequence-classification"
        count = self.section.bins
        if of == "gain":
            return Bins.of_gain(count, classifier=classifier)
        if classifier:
            return Bins.of_accuracy(count)
        return Bins.of_perplexity(count, *self.section.perplexity_range)

    def histogram(self, of: Of, counts: Iterable[float], *, clients: int) -> NoisedHistogram:
        """What an opened sum of ``clients`` one-hot vectors is."""
        noised = tuple(float(count) for count in counts)
        return NoisedHistogram(self.bins(of), noised, clients, self.std(clients))

    def std(self, clients: int) -> float:
        """Std of the noise of each count in a sum of ``clients`` vectors, rounding included."""
        variance = clients * (self.plan.local_std**2 + 0.25)
        return self.plan.resolution * math.sqrt(variance)

    def guarantee(self, against: Adversary, charges: int) -> PrivacyGuarantee:
        """The statement for one adversary after ``charges`` histograms."""
        found = self._stated(self.plan, against, charges)
        return replace(
            found,
            unit=_UNIT,
            adjacency=_ADJACENCY,
            assumptions=(*found.assumptions, self._beside(against, charges)),
        )

    def _stated(self, plan: RoundPlan, against: Adversary, charges: int) -> PrivacyGuarantee:
        return guarantee(
            self.policy,
            plan,
            cohort_size=self.cohort_size,
            against=against,
            rounds=charges,
            plaintext=not self.protects,
            ring_sigma=self.aggregation.ring_sigma(self.bounds),
            key_holder=self.aggregation.trusted_key_holder,
        )

    def moved(self, against: Adversary, charges: int) -> float:
        """Epsilon, at the same delta, where a client is in another bin instead of in none.

        That is all that one example, or one user, can do, and more than zero-out: two bins change
        by 1, so the L2 norm is sqrt(2), and the rounded difference of two vectors has at most
        sqrt(2) times the bound on one of them (its mean is sqrt(2) times as long, and the rest of
        the bound the same).
        """
        plan = replace(self.plan, sensitivity=math.sqrt(2.0) * self.plan.sensitivity)
        return self._stated(plan, against, charges).epsilon

    def of_training_unit(self, charges: int) -> float:
        """Epsilon of one unit of training in ``charges`` histograms; it adds to training's.

        Against the adversary that histograms are accounted for, at the policy's delta.
        """
        against = accounted_adversary(self.policy)
        if self.config.privacy.unit == "client":
            return self.epsilon_after(charges)
        return self.moved(against, charges)

    def _beside(self, against: Adversary, charges: int) -> str:
        """What the statement is to that of training, whose unit may be another."""
        unit = self.config.privacy.unit
        if unit == "client":
            return f"{_BESIDE}for the data of one client the two statements {_ADD}"
        return (
            f"{_BESIDE}the unit there is one {unit}, and of all of a client's data training states "
            f"nothing; one {unit} can move its client from one bin to another, for which these "
            f"histograms cost epsilon {epsilon_text(self.moved(against, charges))}; that and "
            f"training's {_ADD}"
        )

    def leaves_out(self, charges: int, *, in_between: bool) -> bool:
        """Whether ``epsilon`` allows for no further histogram after ``charges``.

        Args:
            charges: of the client with the most.
            in_between: those at the end must be afforded after it too.
        """
        limit, more = self.section.epsilon, 1 + self.at_the_end * in_between
        return limit is not None and self.epsilon_after(charges + more) > limit

    def _epsilon_after(self, charges: int) -> float:
        return self.guarantee(accounted_adversary(self.policy), charges).epsilon

    def event(self) -> dict[str, Any]:
        """The figures that every histogram is priced by, as accounts hold them."""
        return {
            "figures": "histogram",
            "bins": self.section.bins,
            "unit": self.policy.unit,
            "mechanism": self.policy.mechanism,
            "noise": self.policy.noise,
            "rounding": self.policy.rounding,
            "clip_norm": self.policy.clip_norm,
            "noise_multiplier": self.policy.noise_multiplier,
        }

    def record(self) -> dict[str, Any]:
        """Price, plan and cohort bounds, for the first record of ledger and accounts."""
        return self.event() | {
            "aggregation": self.config.aggregation.kind,
            "delta": self.policy.delta,
            "corrupt_fraction": self.policy.corrupt_fraction,
            "dropout_fraction": self.policy.dropout_fraction,
            "planned": self.planned,
            "padded": self.plan.padded,
            "bits": self.plan.bits,
            "local_std": self.plan.local_std,
            "sensitivity": self.plan.sensitivity,
            "rounding_failure": self.plan.rounding_failure,
            "wrap_probability": self.plan.wrap_probability,
        }


def histogram_guarantees(
    settings: HistogramSettings | None, charges: int
) -> dict[Adversary, PrivacyGuarantee]:
    """What holds of a run's histograms against each adversary; empty where it has none."""
    if settings is None:
        return {}
    return {who: settings.guarantee(who, charges) for who in ADVERSARIES}
