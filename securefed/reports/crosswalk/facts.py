"""What a report can be asked, yes or no, for a row of a crosswalk to rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from securefed.reports.document import AttackRow, Report, Statement
from securefed.reports.values import Figure, Said
from securefed.threats.verdicts import Reference

FactName = Literal[
    "finished",  # the ledger has a closing record
    "anchored",  # its signatures were checked against keys that the reader trusts
    "versions",  # software and weights of the base model are named by digest or version
    "dependencies",  # and so is what the software was run with
    "roles",  # parties, what each sees, and what flows between them
    "masked",  # single contributions leave a client masked or encrypted only
    "dp_protected",  # against whoever has the release: a finite epsilon, with all it goes with
    "unit_is_person",  # whose data may differ is everything of a person or of a client
    "second_accountant",  # each such epsilon was computed a second way
    "attacks",  # at least one signed attack on this run's model
    "membership_attacks",
    "poisoning_attacks",
    "baselines",  # each attack on the defence was also run with the defence off
    "worst_and_average",  # an attack states the worst record beside the average
    "utility",
    "costs",
    "threats",
    "out_of_scope",
    "limitations",
]
FACTS: tuple[FactName, ...] = get_args(FactName)

_PERSONS = ("user", "field", "client")  # a field of records says whose they are


@dataclass(frozen=True)
class Finding:
    """The answer, and where the figures that it rests on stand."""

    holds: bool
    references: list[Reference] = field(default_factory=list)


def find(name: FactName, report: Report) -> Finding:
    """Whether a fact holds in a report."""
    return _FINDERS[name](report)


def _said(holds: bool) -> Finding:
    return Finding(holds)


def _of(figures: Iterable[Figure | None]) -> list[Reference]:
    found: list[Reference] = []
    for figure in figures:
        found += [r for r in ([] if figure is None else figure.references) if r not in found]
    return found


def _protected(report: Report) -> list[Statement]:
    return [
        statement
        for statement in report.privacy.statements
        if statement.subject == "training"
        and statement.against == "release"
        and statement.protected
    ]


def _dp_protected(report: Report) -> Finding:
    statements = _protected(report)
    return Finding(bool(statements), _of(s.epsilon for s in statements))


def _unit_is_person(report: Report) -> Finding:
    units = [s.unit for s in _protected(report)]
    return _said(
        bool(units)
        and all(isinstance(u, Said) and u.key.rpartition(".")[2] in _PERSONS for u in units)
    )


def _second_accountant(report: Report) -> Finding:
    statements = _protected(report)
    holds = bool(statements) and all(s.second is not None for s in statements)
    return Finding(holds, _of(s.second for s in statements))


def _measured(report: Report) -> list[AttackRow]:
    """Attacks that ran on this run's model, signed by a key that the reader trusts."""
    return [
        row
        for row in report.leakage.attacks
        if row.anchored and row.fits is not False and row.verdict == "guessed"
    ]


def _attacks(report: Report, kinds: tuple[str, ...] = ()) -> Finding:
    rows = [r for r in _measured(report) if r.defended and (not kinds or r.kind in kinds)]
    return Finding(bool(rows), _of(row.value for row in rows))


def _baselines(report: Report) -> Finding:
    rows = [row for row in _measured(report) if row.defended]
    return _said(bool(rows) and all(row.baseline is not None for row in rows))


def _worst_and_average(report: Report) -> Finding:
    rows = [r for r in _measured(report) if r.worst is not None and r.average is not None]
    return Finding(bool(rows), _of(f for row in rows for f in (row.worst, row.average)))


def _utility(report: Report) -> Finding:
    figures = [
        figure
        for row in report.utility.rounds
        for figure in (row.perplexity, row.accuracy)
        if figure.value is not None
    ]
    return Finding(bool(figures), _of(figures[-1:]))


_FINDERS: dict[FactName, Callable[[Report], Finding]] = {
    "finished": lambda report: _said(report.identity.finished),
    "anchored": lambda report: _said(report.identity.anchored),
    "versions": lambda report: _said(report.identity.weights is not None),
    "dependencies": lambda report: _said(bool(report.identity.dependencies)),
    "roles": lambda report: _said(bool(report.system.roles and report.system.flows)),
    "masked": lambda report: _said(report.aggregation.kind != "plaintext"),
    "dp_protected": _dp_protected,
    "unit_is_person": _unit_is_person,
    "second_accountant": _second_accountant,
    "attacks": _attacks,
    "membership_attacks": lambda report: _attacks(report, ("membership", "epsilon")),
    "poisoning_attacks": lambda report: _attacks(report, ("poisoning",)),
    "baselines": _baselines,
    "worst_and_average": _worst_and_average,
    "utility": _utility,
    "costs": lambda report: _said(bool(report.utility.costs)),
    "threats": lambda report: _said(any(part.threats for part in report.threat_models)),
    "out_of_scope": lambda report: _said(any(part.out_of_scope for part in report.threat_models)),
    "limitations": lambda report: _said(bool(report.limitations)),
}
