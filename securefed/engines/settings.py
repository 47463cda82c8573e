"""From a run file and the cohort's public sizes to policies, plans and statements."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from securefed.config import RunConfig
from securefed.engines.arrangement import aggregation_of, check_key_holder
from securefed.engines.cohorts import Cohorts
from securefed.engines.histogram_settings import HistogramSettings
from securefed.engines.mixed_ranks import mixed_ranks
from securefed.engines.naming import named_clients
from securefed.engines.plan_records import plan_record, slices_event, slices_record
from securefed.engines.run_plan import RunPlan
from securefed.errors import ConfigError
from securefed.federation.slice_plans import SlicePlans
from securefed.federation.weights import client_weights
from securefed.privacy.accounting import (
    Adversary,
    PrivacyGuarantee,
    accounted_adversary,
    epsilon_text,
    guarantee,
)
from securefed.privacy.adaptive_clip import AdaptiveClip
from securefed.privacy.calibration import calibrated_by, calibrated_policy
from securefed.privacy.correlated import best_bands
from securefed.privacy.correlated_release import CorrelatedRelease
from securefed.privacy.cyclic import largest_batch
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PlaintextAggregation, check_removal
from securefed.secagg.encryption import RoundEncryption

_OVERFULL = 2.0**-64
_CLIP_RANGE = 1000.0
_WEIGHED = (
    "how many examples each client holds is public and decides its weight; the statement does not "
    "cover that number"
)


def check_cohort(config: RunConfig, clients: Collection[str]) -> None:
    """What the run file asks of the cohort, and can be seen from the clients' names.

    Raises:
        ConfigError: there are too few, one that is to fall silent is not among them, ranks do not
            fit them, or the arrangement does not allow for them.
    """
    least = config.cohort.min_clients
    if len(clients) < least:
        raise ConfigError(
            f"cohort.min_clients = {least}: the run needs at least {least} clients, data.source "
            f"{config.data.source} gives {len(clients)}; add clients, or lower it (2 at least)"
        )
    unknown = {item.client for item in config.cohort.simulated_dropouts} - set(clients)
    if unknown:
        raise ConfigError(
            f"cohort.simulated_dropouts: {min(unknown)!r} is no client of this run; "
            f"{named_clients(clients)}"
        )
    check_key_holder(config, clients)
    mixed_ranks(config, clients)


def unit_name(config: RunConfig) -> str:
    """What is protected as one, in a few words."""
    if config.privacy.unit == "client":
        return "one client"
    if config.privacy.unit == "user":
        field = config.data.user_field
        return "one document" if field is None else f"one {field} at one client"
    if config.data.messages_field is not None:
        return "one conversation"
    if config.model.task == "causal-lm":
        return f"one window of {config.data.window_tokens} tokens"
    return "one record"


class Settings:
    """What a run file means for a given cohort.

    ``stated`` is the policy that guarantees are computed from; ``sum_policy`` is the one under
    which vectors are summed.  They are one and the same for distributed noise.  With local DP-SGD
    the sum adds no noise of its own: it carries deltas that are private already.  Under adaptive
    clipping both are those of the first round; plan and epsilon are the same for every later one.

    With mixed ranks (``ranks`` and ``slices``, else None) a round is several sums side by side and
    one release; ``plan`` and ``bounds`` are then those of slice 1, which every client holds.

    Args:
        config: the run file.
        sizes: public size of each client: how many training examples, or users for ``unit =
            "user"``, it has.
        dimension: length of what is summed in a round.
        widths: d_1..d_m, of each slice, where ranks differ, by ``cohort.ranks`` or by the plan;
            None without.
        noise_multiplier: what ``privacy.target_epsilon`` was turned into when the run began, by its
            ledger; checked against the target.  Without it, the noise is searched for.
        run_plan: what each client does, where the run carries out a plan.  Policies, plan and
            bounds are then those of a round of everybody; statements count the worst of all rounds
            (:mod:`securefed.privacy.unlike_rounds`).  Where its ranks differ everybody is in all
            of them.

    Raises:
        ConfigError: a setting does not fit the cohort.
        OverflowBoundError: the sum would not fit the ring.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        sizes: Mapping[str, int],
        dimension: int,
        widths: Sequence[int] | None = None,
        noise_multiplier: float | None = None,
        run_plan: RunPlan | None = None,
    ) -> None:
        privacy = config.privacy
        self.config, self.dimension, self.run_plan = config, dimension, run_plan
        self.sizes = dict(sizes)
        self.weights = client_weights(config.training, sizes)
        self.cohort_size = len(sizes)
        check_cohort(config, sizes)
        self.ranks = mixed_ranks(config, sizes) if run_plan is None else run_plan.ranks
        self._widths = self._checked_widths(widths)
        total = sum(sizes.values())
        q, room, separation, bands = 1.0, None, None, 1
        if privacy.unit != "client":
            q = privacy.expected_batch / total
            if q > 1.0:
                raise ConfigError(
                    f"privacy.expected_batch = {privacy.expected_batch:g}: the clients hold "
                    f"{total} {privacy.unit}s in all, so it must be <= {total}"
                )
            room = _room_for(max(sizes.values()), q)
        if privacy.sampling == "cyclic":
            q, separation = 1.0, math.ceil(total / privacy.expected_batch)
            room = largest_batch(max(sizes.values()), separation)
            if (privacy.noise_bands or 1) > separation:
                raise ConfigError(
                    f"privacy.noise_bands = {privacy.noise_bands}: must be in 1..{separation}, the "
                    "number of batches (by privacy.expected_batch)"
                )
            bands = privacy.noise_bands or best_bands(separation, config.training.rounds)
        targeted = privacy.target_epsilon is not None
        chosen = noise_multiplier if targeted else privacy.noise_multiplier
        if privacy.mechanism == "none":
            chosen = 0.0
        try:
            self.stated = PrivacyPolicy(
                clip_norm=privacy.clip_norm,
                noise_multiplier=1.0 if chosen is None else chosen,
                unit=privacy.unit,
                mechanism=privacy.mechanism,
                noise=privacy.noise,
                rounding=privacy.rounding,
                sampling_probability=q,
                separation=separation,
                bands=bands,
                sample_is_secret=privacy.sample_is_secret,
                remove_excess_noise=privacy.remove_excess_noise,
                max_examples=room,
                local_steps=config.training.local_steps if privacy.mechanism == "local" else 1,
                delta=privacy.delta,
                rounds=config.training.rounds,
                corrupt_fraction=privacy.corrupt_fraction,
                dropout_fraction=privacy.dropout_fraction,
                adaptive_clip=_adaptive_clip(config),
            )
        except ConfigError as error:  # a policy's fields are named as the section's keys are
            raise ConfigError(f"privacy: {error}") from None
        at = replace(self.stated, noise_multiplier=1.0) if targeted else self.stated
        self.aggregation: Aggregation = aggregation_of(
            config.aggregation,
            self._summed(at),
            cohort_size=self.cohort_size,
            dimension=dimension,
        )
        self.cohorts = Cohorts(run_plan, sizes, self.aggregation, dimension, self._summed)
        self.aggregation = self.cohorts.aggregation
        if chosen is None:
            self.stated = self._calibrated(dimension)
        self.sum_policy = self._summed(self.stated)
        self.slices = self._sliced(self.sum_policy)
        if self.slices is not None:
            self.bounds = self.slices.slices[0].bounds
            self.plan: RoundPlan = self.slices.slices[0].plan
        else:
            self.bounds = CohortBounds.of(self.sum_policy, self.cohort_size)
            if self.sum_policy.remove_excess_noise:
                check_removal(self.aggregation, self.bounds)
            self.plan = plan_round(
                self.sum_policy,
                cohort_size=self.cohort_size,
                dimension=dimension,
                bits=self.aggregation.bits,
            )
        self.aggregation.parameters(self.bounds)  # refuses a cohort that leaves no safe threshold
        self.encryption: RoundEncryption | None = self.aggregation.encryption(
            self.plan, self.bounds
        )
        if self.slices is None:  # else the slices' own plans are what statements follow from
            self.cohorts.settle(self.stated)
        self.epsilon_after = functools.lru_cache(maxsize=None)(self._epsilon_after)
        section = config.evaluation.histogram
        self.histograms: HistogramSettings | None = None
        if section is not None:
            self.histograms = HistogramSettings(
                section, config, cohort_size=self.cohort_size, aggregation=self.aggregation
            )
        spent = self.epsilon_after(self.stated.rounds) if targeted else 0.0
        if targeted and spent > (privacy.target_epsilon or 0.0):
            raise ConfigError(
                f"privacy.target_epsilon = {privacy.target_epsilon:g}: the noise on record, "
                f"noise_multiplier = {self.stated.noise_multiplier:g}, costs epsilon "
                f"{epsilon_text(spent)} over {self.stated.rounds} rounds; it must not exceed the "
                "target"
            )

    def _summed(self, stated: PrivacyPolicy) -> PrivacyPolicy:
        """The policy under which vectors are summed, from that which statements are about."""
        if (
            stated.mechanism in ("distributed", "central")
            or self.one_step
            or stated.adaptive_clip is not None
        ):
            return stated
        return stated.without_noise(self.config.privacy.update_clip_norm)

    @property
    def stated_apart(self) -> PrivacyPolicy | None:
        """``stated`` where sums are under another policy, with local DP-SGD; None elsewhere."""
        return self.stated if self.stated.mechanism == "local" else None

    def _checked_widths(self, widths: Sequence[int] | None) -> tuple[int, ...] | None:
        if (self.ranks is None) != (widths is None):
            raise ConfigError(
                f"widths = {widths}: must be given exactly where ranks differ, one a slice"
            )
        if self.ranks is None or widths is None:
            return None
        found = tuple(int(width) for width in widths)
        self.ranks.check_widths(found)
        if sum(found) != self.dimension:
            raise ConfigError(f"widths = {list(found)}: must add up to {self.dimension}")
        if self.run_plan is not None:
            self.run_plan.check_widths(found)
        return found

    def _sliced(self, policy: PrivacyPolicy) -> SlicePlans | None:
        """The slices of a round under ``policy``; None with one rank for all."""
        if self.ranks is None or self._widths is None:
            return None
        return SlicePlans(
            tiers=self.ranks.tier_of,
            widths=self._widths,
            policy=policy,
            aggregation=self.aggregation,
            least_contributors=self.ranks.least_contributors,
        )

    @property
    def limit(self) -> tuple[str, float] | None:
        """The least epsilon that a run may reach, and the key that says so; None for no limit.

        A target is one too: retries are charged, and would carry a run beyond it.
        """
        named = {
            "budget.epsilon": self.config.budget.epsilon,
            "privacy.target_epsilon": self.config.privacy.target_epsilon,
        }
        given = [(key, value) for key, value in named.items() if value is not None]
        return min(given, key=lambda item: item[1], default=None)

    def _calibrated(self, dimension: int) -> PrivacyPolicy:
        """``stated`` with the least noise that keeps all rounds within ``target_epsilon``."""
        target = self.config.privacy.target_epsilon
        if target is None:
            raise ConfigError("noise_multiplier: neither it nor target_epsilon is given")
        if self.ranks is not None:
            return calibrated_by(self.stated, target, self._sliced_epsilon)
        if self.run_plan is not None:
            return calibrated_by(
                self.stated, target, lambda policy: self.cohorts.epsilon(policy, self.accounted)
            )
        return calibrated_policy(
            self.stated,
            target,
            cohort_size=self.cohort_size,
            dimension=dimension,
            against=self.accounted,
            plaintext=self.config.aggregation.kind == "plaintext",
            bits=self.aggregation.bits,
        )

    def _sliced_epsilon(self, policy: PrivacyPolicy) -> float:
        slices = self._sliced(policy)
        if slices is None:
            raise ConfigError("ranks: one for all, so that there are no slices")
        return slices.guarantee(self.accounted, rounds=policy.rounds).epsilon

    @property
    def accounted(self) -> Adversary:
        """Whom the budget, the target and each round's epsilon speak of."""
        return accounted_adversary(self.stated)

    @property
    def one_step(self) -> bool:
        """Whether a round is one step of distributed DP-SGD (or the same step without noise)."""
        return self.stated.unit != "client" and self.stated.mechanism != "local"

    def guarantee(self, against: Adversary, charges: int) -> PrivacyGuarantee:
        """The statement for one adversary after ``charges`` rounds."""
        if self.slices is not None:
            statement = self.slices.guarantee(against, rounds=charges)
        elif self.run_plan is not None:
            statement = self.cohorts.guarantee(against, charges)
        else:
            statement = guarantee(
                self.stated,
                self.plan,
                cohort_size=self.cohort_size,
                against=against,
                rounds=charges,
                plaintext=isinstance(self.aggregation, PlaintextAggregation),
                ring_sigma=self.aggregation.ring_sigma(self.bounds),
                key_holder=self.aggregation.trusted_key_holder,
            )
        if self.config.training.client_weights != "uniform":
            statement = replace(statement, assumptions=(*statement.assumptions, _WEIGHED))
        return replace(statement, unit=self._unit()) if self.stated.unit != "client" else statement

    def _unit(self) -> str:
        """What one example or user is, in the words of this run's data, and what it leaves out."""
        name = unit_name(self.config)
        if self.stated.unit == "user":
            field = self.config.data.user_field
            if field is None:
                return (
                    f"one user: {name} (a text file, line, row, address, module or mail), drawn "
                    "and clipped as one (not a person: several documents of one are several users)"
                )
            return (
                f"one user: {name}, that is all of one client's records with the same {field!r}, "
                "drawn and clipped as one (not the same one at another client, who counts there "
                "once more; not one under two keys; not who is only spoken of in a record)"
            )
        if self.config.model.task == "causal-lm" and self.config.data.messages_field is None:
            return (
                f"one example: {name} (a longer document or record is several; not a document and "
                "not a person)"
            )
        tokens = self.config.data.window_tokens
        return f"one example: {name}, cut off at {tokens} tokens (not a person)"

    def local_steps(self, name: str) -> int:
        """Local steps of one client in each round that it takes part in."""
        plan = self.run_plan
        return self.config.training.local_steps if plan is None else plan.given(name).local_steps

    def micro_batch(self, name: str) -> int | None:
        """Examples at a time of one client by the run's plan; None without one."""
        return None if self.run_plan is None else self.run_plan.given(name).micro_batch

    def _epsilon_after(self, charges: int) -> float:
        return self.guarantee(self.accounted, charges).epsilon

    def gradient(
        self, total: NDArray[np.float64], survivors: tuple[str, ...]
    ) -> NDArray[np.float64]:
        """From a decoded sum to what the server's optimiser descends.

        For distributed DP-SGD the sum over the expected batch (public sizes times q; the batch
        that was really drawn stays secret); else minus the mean delta, over the survivors' public
        weights.
        """
        if self.one_step:
            return total / self._units(survivors)
        return -total / sum(self.weights[name] for name in survivors)

    def share(self, survivors: tuple[str, ...]) -> float:
        """The survivors' part of the whole cohort's weights, in (0, 1]."""
        return sum(self.weights[name] for name in survivors) / sum(self.weights.values())

    def _units(self, survivors: tuple[str, ...]) -> float:
        """How many units a sum holds: clients, or the examples that are expected in it."""
        if self.one_step:
            return self.stated.expected_share * sum(self.sizes[s] for s in survivors)
        return float(len(survivors))

    def unclipped_fraction(self, count: float | None, survivors: tuple[str, ...]) -> float | None:
        """The noised share of units within the clip, as a round's record holds it.

        Args:
            count: noised sum of b - 1/2, from the opened sum; None without adaptive clipping.
            survivors: clients inside the sum.
        """
        rule = self.stated.adaptive_clip
        if rule is None or count is None:
            return None
        return rule.fraction(count, self._units(survivors))

    def correlated_release(self) -> CorrelatedRelease | None:
        """A trusted server's state for one whole run; None where its rounds need none."""
        if self.stated.strategy is None:
            return None
        return CorrelatedRelease(self.stated.strategy, self.plan)

    def event(self) -> dict[str, Any]:
        """The figures that every round is priced by.

        Under adaptive clipping ``clip_norm`` is not among them: noise and sensitivity are in
        proportion to it.
        """
        rule = self.stated.adaptive_clip
        clip = (
            {"clip_norm": self.stated.clip_norm}
            if rule is None
            else {"adaptive_clip": asdict(rule)}
        )
        priced = clip | {
            "mechanism": self.stated.mechanism,
            "unit": self.stated.unit,
            "noise": self.stated.noise,
            "rounding": self.stated.rounding,
            "noise_multiplier": self.stated.noise_multiplier,
            "sampling_probability": self.stated.sampling_probability,
            "separation": self.stated.separation,
            "bands": self.stated.bands,
            "sample_is_secret": self.stated.sample_is_secret,
            "remove_excess_noise": self.stated.remove_excess_noise,
            "local_steps": self.stated.local_steps,
        }
        if self.ranks is None or self.slices is None:
            return priced
        return priced | slices_event(self.ranks, self.slices)

    def round_event(self, policy: PrivacyPolicy) -> dict[str, Any]:
        """The privacy event of one round, as ledgers hold it.

        Args:
            policy: under which that round's vectors are summed; only its clip can differ from the
                first round's.
        """
        adaptive = policy.adaptive_clip is not None
        return self.event() | ({"clip_norm": policy.clip_norm} if adaptive else {})

    def record(self) -> dict[str, Any]:
        """Policy, plan and what a unit is, for the first record of ledger and accounts."""
        section = self.config.aggregation
        arrangement: dict[str, Any] = {"aggregation": section.kind}
        if self.run_plan is not None and self.slices is None:
            arrangement["cohorts"] = self.cohorts.to_record()
        if section.encrypted:
            arrangement |= {"key_holder": section.key_holder, "masked": section.masked}
        return (
            self.round_event(self.sum_policy)
            | arrangement
            | {
                "task": self.config.model.task,
                "window_tokens": self.config.data.window_tokens,
                "user_field": self.config.data.user_field,
                "examples_per_user": self.config.training.examples_per_user,
                "delta": self.stated.delta,
                "corrupt_fraction": self.stated.corrupt_fraction,
                "dropout_fraction": self.stated.dropout_fraction,
            }
            | self._planned()
        )

    def _planned(self) -> dict[str, Any]:
        """The figures of the plan, or of each slice's."""
        if self.ranks is None or self.slices is None:
            return plan_record(self.plan)
        return slices_record(self.ranks, self.slices)


def _adaptive_clip(config: RunConfig) -> AdaptiveClip | None:
    section, first = config.privacy.adaptive_clip, config.privacy.clip_norm
    if section is None:
        return None
    return AdaptiveClip(
        target_quantile=section.target_quantile,
        learning_rate=section.learning_rate,
        count_weight=section.count_weight,
        min_clip_norm=section.min_clip_norm or first / _CLIP_RANGE,
        max_clip_norm=section.max_clip_norm or first * _CLIP_RANGE,
    )


def _room_for(units: int, q: float) -> int:
    """Rows to leave room for in the ring: exceeded by a Poisson sample with probability <= 2^-64.

    The least such number, by bisection: ``binom.isf`` works with 1 - 2^-64, which is 1 in float64.

    A sample beyond it is summed all the same: cutting it off would make one unit's presence move
    another's.  At worst the sum wraps around, which costs accuracy and no privacy.
    """
    low, high = 0, units  # exceeded with more than that probability (or too few), and not
    while low + 1 < high:
        middle = (low + high) // 2
        if binom.sf(middle, units, q) <= _OVERFULL:
            high = middle
        else:
            low = middle
    return max(1, high)
