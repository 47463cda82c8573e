"""Differential privacy in words: every statement with all that it rests on, and its hazards."""

from __future__ import annotations

import math
from typing import Literal

from securefed.privacy.accounting import PrivacyGuarantee
from securefed.reports.document import Privacy, Statement
from securefed.reports.material import (
    CONFIG,
    Material,
    SecondEpsilon,
    figure,
    in_file,
    in_ledger,
)
from securefed.reports.recognised import recognised, recognised_parts
from securefed.reports.values import Figure, Said
from securefed.reports.wording import UNPROTECTED
from securefed.threats.verdicts import Reference

Subject = Literal["training", "held_out"]

_FIRST_RATE = 0.01


def privacy(material: Material) -> Privacy:
    """Every statement of a run, and what its reader is likely to get wrong."""
    statements = [
        _statement(material, held, "training", f"/guarantees/{number}")
        for number, held in enumerate(material.guarantees)
    ]
    statements += [
        _statement(material, held, "held_out", f"/histograms/guarantees/{number}")
        for number, held in enumerate(material.figures)
    ]
    return Privacy(hazards=_hazards(material), statements=statements)


def _statement(
    material: Material, held: PrivacyGuarantee, subject: Subject, pointer: str
) -> Statement:
    second = _second(material, held, subject)
    return Statement(
        subject=subject,
        against=held.against,
        protected=held.protected,
        epsilon=figure(
            held.epsilon if held.protected else UNPROTECTED,
            "epsilon",
            *_claimed(material, f"{pointer}/epsilon"),
        ),
        delta=figure(held.delta, "probability", in_file(CONFIG, "/privacy/delta")),
        rounds=figure(held.rounds, "count", *_claimed(material, f"{pointer}/rounds")),
        unit=recognised(held.unit),
        adjacency=recognised(held.adjacency),
        mechanism=recognised(held.mechanism),
        sampling=recognised(held.sampling),
        accountant=recognised(held.accountant),
        trust=list(recognised_parts(held.trust)),
        assumptions=[recognised(each) for each in held.assumptions],
        second=None if second is None else _epsilon(second.epsilon),
        least=None
        if second is None
        # Rounded down, where _epsilon would round up.
        else figure(second.least if held.protected else UNPROTECTED, "figure"),
    )


def _epsilon(value: float) -> Figure:
    return figure(value if math.isfinite(value) else UNPROTECTED, "epsilon")


def _claimed(material: Material, pointer: str) -> list[Reference]:
    """The place in the closing record; none before the run is closed."""
    return [] if material.closing is None else [in_ledger(material.closing, pointer)]


def _second(material: Material, held: PrivacyGuarantee, subject: Subject) -> SecondEpsilon | None:
    found = (s for s in material.second if (s.subject, s.against) == (subject, held.against))
    return next(found, None)


def _hazards(material: Material) -> list[Said]:
    policy, config = material.policy, material.config
    first = material.guarantees[0]
    if policy.mechanism == "none":
        return [Said(key="hazard.no_noise")]
    found = []
    unprotected = [held.against for held in material.guarantees if not held.protected]
    if unprotected:
        against = [Said(key=f"against.{who}") for who in unprotected]
        found.append(Said(key="hazard.unprotected", values={"against": list(against)}))
    found.append(Said(key=f"hazard.unit_{policy.unit}"))
    protected = [held for held in material.guarantees if held.protected]
    if protected:
        worst = max(protected, key=lambda held: held.epsilon)
        most = min(1.0, math.exp(min(worst.epsilon, 700.0)) * _FIRST_RATE + worst.delta)
        other = 1.0 - math.exp(-worst.epsilon) * (1.0 - worst.delta - _FIRST_RATE)
        found.append(
            Said(
                key="hazard.meaning",
                values={
                    "against": Said(key=f"against.{worst.against}"),
                    "epsilon": _epsilon(worst.epsilon),
                    "delta": figure(worst.delta, "probability"),
                    "rate": _FIRST_RATE,
                    "most": min(most, other),
                },
            )
        )
    found.append(Said(key="hazard.zero_out"))
    if policy.unit != "client" and policy.sampling_probability < 1.0 and policy.sample_is_secret:
        found.append(Said(key="hazard.secret_sample"))
    if policy.mechanism == "distributed":
        values = {"honest": material.bounds.honest_floor, "clients": material.bounds.size}
        found.append(Said(key="hazard.honest_survivors", values=dict(values)))
    if policy.mechanism == "central":
        found.append(Said(key="hazard.central"))
    if config.evaluation.figures == "sum":
        found.append(Said(key="hazard.exact_figures"))
    else:
        found.append(Said(key="hazard.two_statements"))
    found += [Said(key="hazard.tuning"), Said(key="hazard.once_more")]
    if first.rounds != config.training.rounds:
        found.append(
            Said(
                key="hazard.charges",
                values={"charged": first.rounds, "planned": config.training.rounds},
            )
        )
    return found
