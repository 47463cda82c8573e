"""Membership attacks measured on a run: on the sum of one round, and on released adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from securefed.attacks.base import Limits
from securefed.attacks.membership.base import MembershipAttack
from securefed.attacks.membership_results import (
    MembershipResult,
    MembershipTrial,
    summarise_membership,
)
from securefed.auditing.cells import NOISE, OFF, Cell, NotApplicable
from securefed.auditing.entries import UNBOUNDED, Clock, Finding, Measure
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.membership import MembershipBench, attack_runs
from securefed.auditing.membership_sums import sum_trials
from securefed.config import RunConfig, parse_config
from securefed.errors import ConfigError
from securefed.evidence.results import Metric
from securefed.training.assets import cache_dir

POPULATION = 32
"""Records of the attacker's own."""
_PER_CLIENT = 16


def on_sums(make: Callable[[], MembershipAttack]) -> Measure:
    """Trials on the opened sum of one round over a random half of some records.

    All trials are of the same candidates, twice as many as a round trains on.
    """

    def measure(run: AuditedRun, cell: Cell, limits: Limits, clock: Clock) -> Finding:
        bench, attack = cell.bench(run, moves=False), make()
        count = 2 * cell.batch * bench.setup.clients
        texts, own = run.texts[:count], run.texts[count : count + POPULATION]
        if len(own) < POPULATION:
            raise NotApplicable(
                f"{count} candidates and {POPULATION} records of the attacker's own are needed; "
                f"there are {len(run.texts)} texts"
            )
        # All seeds at once: gradients of all records, which cost most, are then taken once.
        found = sum_trials([attack], bench, texts, own, seeds=cell.seeds)[attack.name]
        clock.trial(len(found), len(cell.seeds))
        # A record's promise in one round, given that it is in the sum or not.
        promise = bench.session().guarantee("server", rounds=1)
        known = cell.noise and promise.protected and np.isfinite(promise.epsilon)
        epsilon, delta = (promise.epsilon, promise.delta) if known else (None, 0.0)
        return _finding(attack.name, "sum of one round", found, epsilon, delta)

    return measure


def on_releases(make: Callable[[], MembershipAttack], *, shadows: bool = False) -> Measure:
    """Trials on adapters that whole trainings release, each over a random half of some records.

    Args:
        make: a new attack.
        shadows: whether the trainings are each other's shadow runs.
    """

    def measure(run: AuditedRun, cell: Cell, limits: Limits, clock: Clock) -> Finding:
        config = _config(run.config, noised=cell.defence != OFF)
        attack = make()
        try:
            bench = MembershipBench(
                config,
                per_client=_PER_CLIENT,
                population=POPULATION,
                seed=cell.seeds[0],
                cache=cache_dir(),
                offline=run.offline,
            )
        except ConfigError as error:
            raise NotApplicable(str(error)) from None
        generator = torch.Generator().manual_seed(cell.seeds[0])
        targets = []
        for inside in bench.halves(len(cell.seeds), generator):
            if clock.over:
                break
            targets.append(bench.trained(inside, generator))
            clock.trial(len(targets), len(cell.seeds))
        known = bench.shadows(targets) if shadows and targets else None
        found = attack_runs([attack], bench, targets, known, seed=cell.seeds[0])[attack.name]
        epsilon, delta = None, 0.0
        if cell.defence == NOISE:
            promise = bench.settings.guarantee("release", config.training.rounds)
            if np.isfinite(promise.epsilon):
                epsilon, delta = promise.epsilon, promise.delta
        return _finding(attack.name, "released adapter", found, epsilon, delta)

    return measure


def _config(config: RunConfig, *, noised: bool) -> RunConfig:
    values = config.model_dump(mode="json", exclude_none=True)
    values["cohort"].pop("simulated_dropouts", None)
    if not noised:
        privacy = values["privacy"]
        for name in ("noise_multiplier", "target_epsilon", "adaptive_clip"):
            privacy.pop(name, None)
        values["privacy"] = privacy | {
            "mechanism": "none",
            "noise": "discrete_gaussian",
            "remove_excess_noise": False,
        }
        values.pop("budget", None)
    else:
        if config.privacy.mechanism == "none":
            raise NotApplicable("this run adds no noise (privacy.mechanism = 'none')")
    return parse_config(values)


def _finding(
    attack: str,
    view: str,
    trials: list[MembershipTrial],
    epsilon: float | None = None,
    delta: float = 0.0,
) -> Finding:
    if not trials:
        return Finding.none("out_of_time", "no trial fitted the time")
    result = summarise_membership(attack, view, trials, epsilon=epsilon, delta=delta)
    return Finding(
        metrics=_metrics(result),
        headline="auc",
        seeds=result.seeds,
        n=result.runs,
        verdict=result.verdict,
        reason="the attack says itself that it does not apply" if result.void else "",
        void=result.void,
        predicted=None if epsilon is None else {"epsilon": epsilon, "delta": delta},
        curve=result.roc,
        seconds_per_trial=result.seconds,
    )


def _metrics(result: MembershipResult) -> Mapping[str, Metric]:
    low, high = result.auc_interval
    found = {
        "auc": Metric(
            value=result.auc,
            interval=(low, high),
            prior=0.5,
            lift=result.auc - 0.5,
            lift_interval=(low - 0.5, high - 0.5),
            method="bootstrap over records",
        ),
        "advantage": Metric(value=result.advantage, prior=0.0),
        "epsilon_lower": Metric(value=min(result.epsilon_lower, UNBOUNDED), prior=0.0),
    }
    for rate in result.rates:
        found[f"tpr_at_{rate.fpr:g}"] = Metric(
            value=rate.value, interval=rate.interval, prior=rate.fpr, lift=rate.value - rate.fpr
        )
    if result.worst is not None:
        found["worst_record_advantage"] = Metric(
            value=result.worst.advantage, interval=result.worst.interval, prior=0.0
        )
    return found
