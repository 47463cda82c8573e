"""Which rows of a crosswalk a report answers.

=================  =================================================================================
evidenced          every claim is shown and every fact holds, and nothing is left to anybody
partly             the same, but software answers a part of it only; or some of it, not all
organisational     people must answer it, and no figure can
not_met            a claim is refuted, or nothing of it is shown
not_applicable     every claim that it rests on is about something that this run does not do
=================  =================================================================================

A claim is shown by ``verified`` or ``not_refuted``.  ``manual``: somebody signed for it, which
shows nothing by itself.  Any other verdict, or no such claim in the run, leaves it open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from securefed.reports.crosswalk.facts import FactName, find
from securefed.reports.crosswalk.files import BothLanguages, FrameworkFile, Row, frameworks
from securefed.reports.document import Report
from securefed.reports.judged import CrosswalkRow, Framework, RowVerdict
from securefed.reports.values import Said, Text
from securefed.threats.verdicts import Reference, Verdict

_SHOWN: tuple[Verdict, ...] = ("verified", "not_refuted")
ABSENT = "absent"
"""Stands for the verdict of a claim that the run's threat models do not hold."""


@dataclass(frozen=True)
class _Answer:
    """What claims and facts of one row came to, each by its name."""

    shown: list[str]
    signed: list[str]
    refuted: list[str]
    open: list[tuple[str, str]]  # with the verdict
    elsewhere: list[str]  # not applicable
    holding: list[FactName]
    lacking: list[FactName]
    references: list[Reference]


def crosswalk(report: Report, files: Sequence[FrameworkFile] | None = None) -> list[Framework]:
    """Every framework, each row with its verdict.

    Args:
        report: all but its crosswalk, which is not read.
        files: frameworks; None for those of this package.

    Raises:
        ConfigError: a framework's file is not as it must be.
    """
    verdicts = {
        f"{part.id}/{claim.id}": claim.verdict
        for part in report.threat_models
        for claim in part.claims
    }
    return [
        Framework(
            id=one.id,
            title=_text(one.title),
            edition=one.edition,
            source=one.source,
            note=None if one.note is None else _text(one.note),
            texts=[
                Said(
                    key="crosswalk.text",
                    values={"what": _text(seen.what), "address": seen.address, "date": seen.date},
                )
                for seen in one.seen.values()
            ],
            rows=[_row(row, one, report, verdicts) for row in one.rows],
        )
        for one in (frameworks() if files is None else files)
    ]


def _row(
    row: Row, framework: FrameworkFile, report: Report, verdicts: Mapping[str, Verdict]
) -> CrosswalkRow:
    seen = None if row.seen is None else framework.seen[row.seen]
    answer = _answer(row, report, verdicts)
    verdict = _verdict(row, answer)
    unsettled = verdict in ("partly", "organisational", "not_met")
    return CrosswalkRow(
        id=row.id,
        requirement=_text(row.requirement),
        verdict=verdict,
        why=_why(row, answer),
        who=Said(key=f"crosswalk.who.{row.who}") if unsettled and row.who is not None else None,
        claims=list(row.claims),
        sections=list(row.sections),
        checked=seen is not None and seen.copy_of == "official",
        checked_against=None
        if seen is None
        else Said(
            key=f"crosswalk.seen.{seen.copy_of}",
            values={"what": _text(seen.what), "date": seen.date},
        ),
        references=answer.references,
    )


def _answer(row: Row, report: Report, verdicts: Mapping[str, Verdict]) -> _Answer:
    answer = _Answer([], [], [], [], [], [], [], [])
    for name in row.claims:
        verdict = verdicts.get(name)
        if verdict in _SHOWN:
            answer.shown.append(name)
        elif verdict == "manual":
            answer.signed.append(name)
        elif verdict == "refuted":
            answer.refuted.append(name)
        elif verdict == "not_applicable":
            answer.elsewhere.append(name)
        else:
            answer.open.append((name, ABSENT if verdict is None else verdict))
    for fact in (*row.facts, *row.partly_unless):
        finding = find(fact, report)
        (answer.holding if finding.holds else answer.lacking).append(fact)
        answer.references.extend(r for r in finding.references if r not in answer.references)
    return answer


def _verdict(row: Row, answer: _Answer) -> RowVerdict:
    if row.most == "organisational":
        return "organisational"
    if answer.refuted:
        return "not_met"
    if row.claims and len(answer.elsewhere) == len(row.claims):
        return "not_applicable"
    needed = [fact for fact in row.facts if fact in answer.lacking]
    if needed or answer.open or answer.signed:
        held = answer.shown or answer.signed or [f for f in row.facts if f in answer.holding]
        return "partly" if held else "not_met"
    if row.most == "partly" or answer.lacking:
        return "partly"
    return "evidenced"


def _why(row: Row, answer: _Answer) -> Said:
    if row.most == "organisational":
        return Said(key="crosswalk.why.organisational")
    sentences: list[Said] = []
    if answer.refuted:
        sentences.append(_names("refuted", answer.refuted))
    if answer.open:
        names = [
            Said(key="crosswalk.open", values={"claim": name, "verdict": _verdict_word(verdict)})
            for name, verdict in answer.open
        ]
        sentences.append(Said(key="crosswalk.why.open", values={"claims": list(names)}))
    sentences += [Said(key=f"crosswalk.lacks.{fact}") for fact in answer.lacking]
    if answer.shown:
        sentences.append(_names("shown", answer.shown))
    if answer.signed:
        sentences.append(_names("signed", answer.signed))
    if answer.elsewhere:
        sentences.append(_names("elsewhere", answer.elsewhere))
    sentences += [Said(key=f"crosswalk.holds.{fact}") for fact in answer.holding]
    said = sentences[-1]
    for sentence in reversed(sentences[:-1]):
        said = Said(key="crosswalk.then", values={"first": sentence, "then": said})
    return said


def _names(how: str, names: list[str]) -> Said:
    return Said(key=f"crosswalk.why.{how}", values={"claims": list(names)})


def _verdict_word(verdict: str) -> Said:
    return Said(key="crosswalk.absent" if verdict == ABSENT else f"verdict.{verdict}")


def _text(words: BothLanguages) -> Text:
    return Text(en=words.en, ja=words.ja)
