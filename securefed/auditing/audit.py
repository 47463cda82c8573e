"""Epsilon measured through the real path of an update, against what the accountant promises.

An audit can find that a promise is broken.  It cannot show that one is kept: a lower bound below
the promise means only that these canaries, seen by this adversary, did not break it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from securefed.auditing.faults import FAULTS, Fault
from securefed.auditing.lower_bounds import METHODS, LowerBound, Method, lower_bound
from securefed.auditing.releases import Releases, Setting, check_audited
from securefed.config import RunConfig
from securefed.engines.settings import Settings
from securefed.errors import ConfigError
from securefed.privacy.accounting import (
    ADVERSARIES,
    Adversary,
    PrivacyGuarantee,
    accounted_adversary,
    epsilon_text,
)
from securefed.privacy.policy import PrivacyPolicy

Judgement = Literal["consistent", "violated", "out_of_reach", "unprotected"]
Progress = Callable[[int, int], None]
"""``progress(done, total)``, in releases."""

OBSERVATIONS = 2000
"""Canaries that are scored where nothing else is asked for: Gaussian bounds then come to 80 % of
epsilon and more on average, for noise multipliers up to 2."""
VERDICT_CONFIDENCE = 0.999
"""Of the bound that a verdict rests on."""
_LEAST = 40


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What was measured of one promise.

    Attributes:
        statement: what is promised: the accountant's words, for the very policy, adversary, number
            of rounds and dimension that were audited.
        bounds: from below, each at its own confidence.
        judged: what decides: the primary method at ``VERDICT_CONFIDENCE``, so that of 1000 audits
            of promises that are kept to the letter one says "violated"; at 95 % one of 20 would.
        primary: the method that decides, chosen before anything was measured: ``"gaussian"`` where
            noise is all that stands between a canary and its score, ``"clopper_pearson"`` where a
            secret sample does too.
        inside, outside: how many canaries were in, and out.
        releases: how many releases were scored, of ``canaries`` each and ``composed`` rounds.
        canaries: scored in each release.
        composed: rounds of a release.
        clients, dropouts, colluders: of each round: invited, fallen silent, and known to the
            adversary.
        dimension: of an update.
        scale: norm of a canary before clipping, over the clip.
        masked: whether rounds were carried masked or encrypted, or in plaintext with their plan.
        fault: what was planted; None in an audit of the library as it is.
        seed: of canaries and coins.
        seconds: that it took.
    """

    statement: PrivacyGuarantee
    bounds: tuple[LowerBound, ...]
    judged: LowerBound
    primary: Method
    inside: int
    outside: int
    releases: int
    canaries: int
    composed: int
    clients: int
    dropouts: int
    colluders: int
    dimension: int
    scale: float
    masked: bool
    fault: str | None
    seed: int
    seconds: float

    def bound(self, method: Method) -> LowerBound:
        """The one by this method."""
        return next(each for each in self.bounds if each.method == method)

    @property
    def reach(self) -> float:
        """What the bound that decides would be if scores told every canary; infinity: any number.

        An audit cannot find that more than this is promised and not kept.
        """
        return lower_bound(
            self.judged.method,
            np.ones(self.inside),
            np.zeros(self.outside),
            delta=self.judged.delta,
            confidence=self.judged.confidence,
            seed=self.seed,
        ).epsilon

    @property
    def verdict(self) -> Judgement:
        """``"violated"`` where the bound that decides exceeds what is promised.

        ``"unprotected"`` where nothing is promised that could be, and ``"out_of_reach"`` where no
        scores of so few canaries could have shown that the promise is broken.
        """
        if not self.statement.protected:
            return "unprotected"
        if self.judged.epsilon > self.statement.epsilon:
            return "violated"
        return "consistent" if self.reach > self.statement.epsilon else "out_of_reach"

    def __str__(self) -> str:
        found, judged = self.bound(self.primary), self.judged
        return (
            f"{self.verdict}: epsilon >= {judged.epsilon:.3g} at {100 * judged.confidence:g} %, >= "
            f"{found.epsilon:.3g} at {100 * found.confidence:g} % ({found.method}, {self.inside} "
            f"canaries in and {self.outside} out), promised "
            f"{epsilon_text(self.statement.epsilon)}, all at delta = {found.delta:g}, for "
            f"{self.statement.unit}, against {self.statement.against}, over "
            f"{self.statement.rounds} round(s)"
        )

    def as_json(self) -> dict[str, Any]:
        """Figures and words, JSON types only."""
        figures = {key: value for key, value in asdict(self).items() if key != "bounds"}
        return figures | {
            "statement": self.statement.to_record(),
            "bounds": [each.to_record() for each in self.bounds],
            "judged": self.judged.to_record(),
            "reach": self.reach if math.isfinite(self.reach) else "unbounded",
            "verdict": self.verdict,
        }


def audit_policy(
    policy: PrivacyPolicy,
    *,
    clients: int,
    adversary: Adversary | None = None,
    rounds: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    fault: Fault | None = None,
    progress: Progress = lambda done, total: None,
    **setting: Any,
) -> AuditResult:
    """Measure lower bounds on epsilon, through real rounds, and set them against the promise.

    The policy's unit says what a canary is: a client's whole update, or one row of its sum.

    Args:
        policy: of the rounds, as it is in force: clip, noise, sampling and all.
        clients: n of a round.
        adversary: None: the one that the policy's budget speaks of.
        rounds: releases that are scored; None: as many as give ``OBSERVATIONS`` scores.
        confidence: of each bound by itself, in (0.5, 1).
        seed: of canaries, coins and splits; noise has its own sources.
        fault: planted in the clients, with canaries and adversary that show it.
        progress: told of each release.
        setting: further arguments of :class:`~securefed.auditing.releases.Setting`.

    Raises:
        ConfigError: an argument is outside that, the policy is not one of single rounds with noise
            of their own, or fewer than 40 canaries would be scored.
    """
    if fault is not None:
        if not fault.applies(policy):
            raise ConfigError(f"fault = {fault.name!r}: clients under this policy cannot have it")
        setting = {"scale": fault.scale} | setting | {"behaviour": fault.behaviour}
        adversary = fault.adversary or adversary
    chosen = Setting(
        policy=policy,
        clients=clients,
        adversary=accounted_adversary(policy) if adversary is None else adversary,
        **setting,
    )
    count = math.ceil(OBSERVATIONS / chosen.count) if rounds is None else rounds
    if count * chosen.count < _LEAST:
        raise ConfigError(
            f"rounds = {count}, of {chosen.count} canaries each: {_LEAST} or more in all are needed"
        )
    started = time.perf_counter()
    releases = Releases(chosen)
    seen = []
    for number in range(count):
        seen.append(releases.observe(np.random.default_rng([seed, 1, number])))
        progress(number + 1, count)
    inside, scores = (np.concatenate(part) for part in zip(*seen, strict=True))
    primary: Method = "gaussian" if policy.sampling_probability == 1.0 else "clopper_pearson"
    bound = partial(
        lower_bound, inside=scores[inside], outside=scores[~inside], delta=policy.delta, seed=seed
    )
    return AuditResult(
        statement=releases.statement,
        bounds=tuple(bound(method, confidence=confidence) for method in METHODS),
        judged=bound(primary, confidence=VERDICT_CONFIDENCE),
        primary=primary,
        inside=int(inside.sum()),
        outside=int((~inside).sum()),
        releases=count,
        canaries=chosen.count,
        composed=chosen.composed,
        clients=clients,
        dropouts=chosen.missing,
        colluders=chosen.colluders,
        dimension=chosen.dimension,
        scale=chosen.scale,
        masked=chosen.as_stated,
        fault=None if fault is None else fault.name,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def audit_settings(
    settings: Settings, *, adversaries: Sequence[Adversary] = ADVERSARIES, **options: Any
) -> tuple[AuditResult, ...]:
    """Audit what a run file means for its cohort.

    One audit for each adversary that something is promised against, of one round.  Where each
    client draws a secret sample there are two for each: one of the noise as who knows the sample
    sees it, which is the sharp one; and one with the sample, over all rounds of the run, against
    what is promised of the run.  Rounds have as many dropouts as may be; where excess noise is
    removed, one more audit has none, so that all of it is.

    Args:
        settings: of a run; its cohort size and policy are audited, not its data or model.
        adversaries: those among them that nothing is promised against are left out; if that leaves
            none, the one that the policy's budget speaks of is audited.
        options: further arguments of :func:`audit_policy`.

    Raises:
        ConfigError: ranks differ between clients, whose rounds are several sums, or as
            :func:`audit_policy`.
    """
    if settings.slices is not None:
        raise ConfigError("cohort.ranks: rounds of several sums side by side are not audited")
    policy = settings.stated
    check_audited(policy, 1)
    given = replace(policy, sampling_probability=1.0)
    # Of no round at all: whether there is a promise, without the work of its number.
    audited = [who for who in adversaries if settings.guarantee(who, 0).protected]
    cases: list[tuple[PrivacyPolicy, dict[str, Any]]] = []
    for who in audited or [accounted_adversary(policy)]:
        cases.append((given, {"adversary": who}))
        if policy.sampling_probability < 1.0:
            composed = 1 if policy.adaptive_clip else policy.rounds
            cases.append((policy, {"adversary": who, "composed": composed}))
        if policy.remove_excess_noise and who == "release":
            cases.append((given, {"adversary": who, "dropouts": 0}))
    shared = {"clients": settings.cohort_size, "aggregation": settings.aggregation}
    return tuple(audit_policy(case, **(shared | own | options)) for case, own in cases)


def audit_config(
    config: RunConfig, *, cache: Path | None = None, offline: bool = False, **options: Any
) -> tuple[AuditResult, ...]:
    """Audit what a run file promises; model and data are loaded for the cohort's public sizes.

    Args:
        config: the run file.
        cache: where models and corpora are kept.
        offline: fetch nothing.
        options: further arguments of :func:`audit_policy`.

    Raises:
        ConfigError, DataError, FetchError: as :class:`~securefed.engines.simulation.Federation` and
            :func:`audit_settings`.
    """
    # Here: an audit of a policy needs no torch.
    from securefed.engines.simulation import Federation

    _, settings = Federation(config, cache=cache, offline=offline).prepare()
    return audit_settings(settings, **options)


def self_test(
    policy: PrivacyPolicy, *, clients: int, faults: Sequence[Fault] = FAULTS, **options: Any
) -> tuple[AuditResult, ...]:
    """Audit a policy with each fault planted, one at a time: every verdict should be "violated".

    Args:
        policy: of the rounds; its noise is tested as who knows the sample sees it.
        clients: n of a round.
        faults: those that clients under this policy cannot have are left out.
        options: further arguments of :func:`audit_policy`.

    Raises:
        ConfigError: none is left, so that nothing would be tested; or as :func:`audit_policy`.
    """
    given = replace(policy, sampling_probability=1.0)
    planted = [fault for fault in faults if fault.applies(policy)]
    if not planted:
        raise ConfigError("faults: clients under this policy can have none of them")
    return tuple(audit_policy(given, clients=clients, fault=fault, **options) for fault in planted)
