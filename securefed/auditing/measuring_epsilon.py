"""Epsilon measured through a run's own policy, cohort and aggregation, against its promise."""

from __future__ import annotations

from dataclasses import replace

from pydantic import JsonValue

from securefed.attacks.base import Limits
from securefed.auditing.audit import AuditResult, audit_policy, audit_settings
from securefed.auditing.cells import BOTH, OFF, Cell, NotApplicable
from securefed.auditing.entries import UNBOUNDED, Clock, Column, Finding
from securefed.auditing.faults import FAULTS
from securefed.auditing.from_config import AuditedRun
from securefed.errors import ConfigError
from securefed.evidence.results import Metric

PROMISE: Column = ("canaries", BOTH)
FAULT: Column = ("canaries", OFF)
"""A quarter of the noise: an audit that does not flag it shows nothing about the whole noise."""

HEADLINE = "epsilon_lower"


def canaries(run: AuditedRun, cell: Cell, limits: Limits, clock: Clock) -> Finding:
    """One audit for each adversary; of the planted fault, one.

    ``prior`` is what is promised, and ``lift`` how far the bound that decides exceeds it: above 0
    the promise is broken.  An audit that could not have found that, whatever it saw, is no evidence
    and is left out; the reason names it.
    """
    seed = cell.seeds[0]
    policy = run.settings.stated
    quartered = FAULTS[0]
    try:
        if cell.defence == OFF:
            if not quartered.applies(policy):
                raise NotApplicable("clients of this run add no noise that could be missing")
            whole = policy if policy.unit == "client" else replace(policy, sampling_probability=1.0)
            results: tuple[AuditResult, ...] = (
                audit_policy(whole, clients=run.settings.cohort_size, fault=quartered, seed=seed),
            )
        else:
            results = audit_settings(run.settings, seed=seed)
    except ConfigError as error:
        raise NotApplicable(str(error)) from None
    clock.trial(len(cell.seeds), len(cell.seeds))
    far = [_name(each) for each in results if each.verdict == "out_of_reach"]
    left_out = f"; more is promised than so few canaries can test: {', '.join(far)}" if far else ""
    results = tuple(each for each in results if each.verdict in ("consistent", "violated"))
    if not results:
        raise NotApplicable(f"nothing is promised that could be audited{left_out}")
    found = {_name(each): _metric(each) for each in results}
    worst = max(found, key=lambda name: found[name].lift or 0.0)
    promises: dict[str, JsonValue] = {_name(each): each.statement.epsilon for each in results}
    return Finding(
        metrics={HEADLINE: found[worst]} | found,
        headline=HEADLINE,
        seeds=(seed,),
        n=results[0].inside + results[0].outside,
        reason=f"{worst.replace('_', ' ')}: {_verdict(found[worst])}{left_out.replace('_', ' ')}",
        predicted=promises,
        seconds_per_trial=sum(each.seconds for each in results),
    )


def _name(result: AuditResult) -> str:
    rounds = "run" if result.composed > 1 else "round"
    return f"{HEADLINE}_{result.statement.against}_{rounds}"


def _metric(result: AuditResult) -> Metric:
    bound, promised = result.bound(result.primary), result.statement.epsilon
    excess = min(result.judged.epsilon, UNBOUNDED) - promised
    return Metric(
        value=min(bound.epsilon, UNBOUNDED),
        prior=promised,
        lift=excess,
        lift_interval=(excess, UNBOUNDED),
        method=bound.method,
    )


def _verdict(metric: Metric) -> str:
    return "more than is promised" if metric.shows_lift else "within what is promised"
