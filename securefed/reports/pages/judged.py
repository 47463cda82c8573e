"""Sections on threat models and on the frameworks that a report is read by."""

from __future__ import annotations

from collections import Counter

from securefed.reports.blocks import (
    Block,
    Cell,
    Definitions,
    Heading,
    Line,
    Paragraph,
    Run,
    Section,
)
from securefed.reports.document import Report
from securefed.reports.judged import ClaimRow, CrosswalkRow, EvidenceRow, ThreatModelPart, ThreatRow
from securefed.reports.pages.front import CLAIM
from securefed.reports.pages.rows import badge, shown, table
from securefed.reports.values import Item, Said
from securefed.reports.wording import Wording, referred
from securefed.threats.verdicts import Reference, Verdict


def threats(report: Report, word: Wording) -> Section:
    """Threats, controls, evidence, verdict and residual risk."""
    if not report.threat_models:
        none = (Paragraph(word.line_of("threats.none")),)
        return Section("threat_models", word("section.threat_models"), none)
    counted = Counter(claim.verdict for part in report.threat_models for claim in part.claims)
    rows = [
        (
            (badge(verdict, word(f"verdict.{verdict}")),),
            word.cell(Said(key=f"means.{verdict}")),
            word.cell(str(counted[verdict])),
        )
        for verdict in _ORDER
        if counted[verdict]
    ]
    blocks: list[Block] = [
        Paragraph(word.line_of("threats.first")),
        table("table.verdicts", ("verdict", "means", "claims"), rows, word),
    ]
    for part in report.threat_models:
        blocks += _part(part, word)
    return Section("threat_models", word("section.threat_models"), tuple(blocks))


ELSEWHERE: Verdict = "not_applicable"
"""Of claims that say nothing about the run; the table says why, and nothing more is told."""

_ORDER: tuple[Verdict, ...] = (
    "refuted",
    "void",
    "stale",
    "inconclusive",
    "not_run",
    "manual",
    "not_refuted",
    "verified",
    "not_applicable",
)


def _part(part: ThreatModelPart, word: Wording) -> list[Block]:
    actors = [
        (
            (_code(actor.id), *(() if actor.words is None else (word.line(actor.words),))),
            word.cell(Said(key=f"actor.{actor.role}"), Said(key=f"corruption.{actor.corruption}")),
            word.cell(str(actor.colluding or 0)),
            (word.line(list(actor.view), "code"),),
        )
        for actor in part.actors
    ]
    blocks: list[Block] = [
        Heading(word.text(part.title)),
        Paragraph((Run(part.id, code=True), Run(" — "), Run(part.file, code=True)), note=True),
        table("table.actors", ("actor", "role", "colluding", "view"), actors, word),
        table(
            "table.threats",
            ("threat", "against", "severity", "mapped"),
            [_threat(threat, word) for threat in part.threats],
            word,
        ),
        table(
            "table.claims",
            ("claim", "threats", "controls", "evidence", "verdict", "residual"),
            [_claim(part, claim, word) for claim in part.claims],
            word,
        ),
    ]
    for claim in part.claims:
        if claim.verdict != ELSEWHERE:
            blocks += _details(part, claim, word)
    left = [
        (
            (word.line(each.threat),),
            (
                word.line(each.reason),
                *(() if each.demonstrated_by is None else (_code(each.demonstrated_by),)),
            ),
        )
        for each in part.out_of_scope
    ]
    blocks.append(Heading(word("heading.out_of_scope"), level=4))
    blocks.append(table("table.out_of_scope", ("threat", "why"), left, word))
    return blocks


def _code(text: str) -> Line:
    return (Run(text, code=True),)


def _threat(threat: ThreatRow, word: Wording) -> tuple[Cell, ...]:
    mapped: list[Item] = [
        Said(
            key=f"mapped.{'exact' if one.exact else 'approximate'}",
            values={"catalogue": Said(key=f"catalogue.{one.catalogue}"), "entry": one.entry},
        )
        for one in threat.mapped
    ]
    return (
        (_code(threat.id), word.line(threat.title)),
        (_code(threat.asset), _code(threat.actor)),
        word.cell(Said(key=f"severity.{threat.severity}")),
        (word.line(mapped),) if mapped else word.cell("—"),
    )


def _claim(part: ThreatModelPart, claim: ClaimRow, word: Wording) -> tuple[Cell, ...]:
    """A claim in one row, from its threats to what is left."""
    elsewhere = claim.verdict == ELSEWHERE
    anchor = None if elsewhere else CLAIM.format(model=part.id, claim=claim.id)
    counted = Counter((each.type, each.verdict) for each in claim.evidence)
    evidence = tuple(
        word.line_of(
            "evidence.counted",
            type=Said(key=f"evidence.{kind}"),
            count=count,
            verdict=Said(key=f"verdict.{verdict}"),
        )
        for (kind, verdict), count in counted.items()
    )
    verdict = [badge(claim.verdict, word(f"verdict.{claim.verdict}"))]
    if elsewhere and claim.reason is not None:
        verdict.append(word.line(claim.reason))
    return (
        ((Run(claim.id, link=anchor, code=elsewhere),), word.line(claim.statement)),
        tuple(_code(threat) for threat in claim.threats),
        tuple(_code(control) for control in claim.controls) or word.cell("—"),
        evidence or word.cell("—"),
        tuple(verdict),
        word.cell(Said(key=f"level.{claim.residual_level}")),
    )


def _details(part: ThreatModelPart, claim: ClaimRow, word: Wording) -> list[Block]:
    """What a claim rests on, piece by piece; the table above has the rest."""
    verdict: list[Line] = [badge(claim.verdict, word(f"verdict.{claim.verdict}"))]
    if claim.reason is not None:
        verdict[0] = (*verdict[0], Run(" "), *word.line(claim.reason))
    rows: list[tuple[str, Cell]] = [
        ("verdict", tuple(verdict)),
        ("assumes", word.cell(*claim.assumptions)),
        ("evidence", tuple(_evidence(each, word) for each in claim.evidence)),
        (
            "residual",
            word.cell(
                Said(
                    key="claim.residual",
                    values={
                        "level": Said(key=f"level.{claim.residual_level}"),
                        "words": claim.residual,
                    },
                )
            ),
        ),
    ]
    anchor = CLAIM.format(model=part.id, claim=claim.id)
    return [
        Heading(claim.id, level=4, id=anchor),
        Definitions(tuple((word.line_of(f"column.{name}"), cell) for name, cell in rows if cell)),
    ]


def _evidence(found: EvidenceRow, word: Wording) -> Line:
    """A piece of evidence in one line: its verdict, what it is, and what it came to."""
    line: Line = (
        *badge(found.verdict, word(f"verdict.{found.verdict}")),
        Run(f" {word(f'evidence.{found.type}')} "),
        Run(found.cites, code=True),
    )
    if found.value is not None:
        line = (*line, Run(" "), *shown(found.value, word)[0])
    if found.allowed is not None:
        line = (*line, Run(" "), *word.line_of("evidence.allowed", bound=found.allowed))
    if found.reason is not None:
        line = (*line, Run(" — "), *word.line(found.reason))
    return referred(line, _files(found.references))


def _files(references: list[Reference]) -> list[Reference]:
    """Each file once, without the place inside it."""
    whole = [one.model_copy(update={"pointer": None}) for one in references]
    return list(dict.fromkeys(whole))


def crosswalk(report: Report, word: Wording) -> Section:
    """Frameworks, row by row."""
    blocks: list[Block] = [Paragraph(word.line_of("crosswalk.first"))]
    columns = ("requirement", "state", "why", "who")
    for framework in report.crosswalk:
        title = "".join(run.text for run in word.line(framework.title))
        blocks.append(Heading(title))
        edition = word.line_of("crosswalk.edition", edition=framework.edition)
        blocks.append(Paragraph((*edition, Run(" "), Run(framework.source, code=True)), note=True))
        if framework.note is not None:
            blocks.append(Paragraph(word.line(framework.note), note=True))
        rows = [_framework_row(row, word) for row in framework.rows]
        blocks.append(table("table.crosswalk", columns, rows, word))
    if not report.crosswalk:
        blocks = [Paragraph(word.line_of("crosswalk.none"))]
    return Section("crosswalk", word("section.crosswalk"), tuple(blocks))


def _framework_row(row: CrosswalkRow, word: Wording) -> tuple[Cell, ...]:
    why = [referred(word.line(row.why), _files(row.references))]
    if row.sections:
        links: list[Run] = []
        for number, section in enumerate(row.sections):
            links += [Run(word("join"))] if number else []
            links.append(Run(word(f"section.{section}"), link=section))
        why.append((*word.line_of("crosswalk.see"), *links))
    if row.checked_against is None:
        checked = word.line_of("crosswalk.unseen")
    else:
        checked = word.line(row.checked_against)
    return (
        ((Run(row.id, strong=True),), word.line(row.requirement)),
        (badge(row.verdict, word(f"row.{row.verdict}")),),
        (*why, checked),
        word.cell("—") if row.who is None else (word.line(row.who),),
    )
