"""``securefed threats`` and ``securefed statement``: claims of a run judged, and answers signed."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from securefed.cli.trusting import Run, Signers, TrustedRoster
from securefed.cli.watching import console, printable, say, tampered
from securefed.errors import ConfigError, LedgerTampered, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from securefed.threats.model import Claim, ManualEvidence, ThreatModel
    from securefed.threats.verdicts import ClaimFinding, Verdict


_RED = frozenset({"refuted", "void"})
_OPEN = frozenset({"stale", "not_run", "inconclusive"})


def threats(
    folder: Run,
    roster: TrustedRoster = None,
    signer: Signers = None,
) -> None:
    """Judge every claim of the threat models about a run; writes RUN/threats/verdicts.json.

    Exit code 0: nothing is open, 1: something is refuted or void, or the run is tampered with, 2:
    usage, 3: something is stale, not run or inconclusive.
    """
    from securefed.engines.run_facts import judge_run
    from securefed.engines.verify import verified_run
    from securefed.evidence.anchoring import read_public_key
    from securefed.operations.whole_files import write_whole

    trusted = [read_public_key(path) for path in signer or ()]
    try:
        models, judgement = judge_run(folder, verified_run(folder, roster), trusted)
    except (LedgerTampered, RemoteProtocolError) as error:
        tampered(error)
        raise typer.Exit(1) from None
    target = folder / "threats" / "verdicts.json"
    target.parent.mkdir(exist_ok=True)
    write_whole(target, judgement.model_dump_json(indent=1) + "\n")
    _show(models, judgement.findings)
    say(f"verdicts: {target}")
    found = {each.verdict for each in judgement.findings}
    if found & _RED:
        raise typer.Exit(1)
    if found & _OPEN:
        raise typer.Exit(3)


def statement(
    folder: Run,
    claim: Annotated[str, typer.Argument(metavar="CLAIM", help="Id of the claim (C-...).")],
    text: Annotated[str, typer.Option(help="The answer.")],
    role: Annotated[str, typer.Option(help="Who answers, as the claim names the role.")],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="Key that signs; made if it is not there.")
    ],
    question: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Which question, where the claim asks a role several."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="DATE", help="Last day on which it counts: 2027-12-31.")
    ] = None,
) -> None:
    """Sign an answer to a claim that only people can answer; writes RUN/statements/."""
    from securefed.engines.run_facts import threat_models_of
    from securefed.engines.verify import verified_run
    from securefed.evidence.anchoring import signer_record
    from securefed.evidence.signing import key_id, signing_key
    from securefed.operations.whole_files import write_whole
    from securefed.threats.statements import STATEMENTS, Statement

    try:  # first: nobody shall sign an answer to a question that somebody has changed
        verified = verified_run(folder)
    except LedgerTampered as error:
        tampered(error)
        raise typer.Exit(1) from None
    model, asked = _asked(threat_models_of(folder), claim, role, question)
    until, today = _date(expires), datetime.datetime.now(datetime.UTC).date()
    if until is not None and until < today:
        raise ConfigError(f"--expires {expires}: is over; today is {today.isoformat()}")
    if not text.strip():
        raise ConfigError("--text is empty; it must be the answer")
    document = Statement(
        run=verified.records[0].hash,
        model=model.id,
        claim=claim,
        manual=asked.manual,
        statement=text.strip(),
        by=role,
        signed_off=today,
        expires=until,
    )
    new = not key.exists()
    signer = signing_key(key, make=True)
    short = key_id(signer.public)[:16]
    if new:
        say(f"made a key to sign statements with: {key} ({short})")
    place = folder / STATEMENTS
    place.mkdir(exist_ok=True)
    target = place / f"{claim}--{asked.manual}--{today.isoformat()}--{short}.json"
    write_whole(target, json.dumps(document.signed(signer), sort_keys=True) + "\n")
    write_whole(place / f"signer-{short}.json", signer_record(signer.public))
    say(f"asked: {asked.asks.en}")
    say(f"signed statement: {target}")


def _asked(
    models: Sequence[ThreatModel], claim: str, role: str, question: str | None
) -> tuple[ThreatModel, ManualEvidence]:
    """The question that is answered."""
    model, found = _claim(models, claim)
    manual = [item for item in found.evidence if item.type == "manual"]
    if not manual:
        raise ConfigError(f"{claim}: asks nobody; it rests on tests, attacks or the ledger")
    fits = [
        item
        for item in manual
        if role.casefold() in {words.casefold() for words in (item.who.en, item.who.ja) if words}
        and question in (None, item.manual)
    ]
    if len(fits) != 1:
        asked = "; ".join(f"{item.who.en!r} ({item.manual})" for item in manual)
        raise ConfigError(
            f"--role {role!r}{'' if question is None else f' --question {question!r}'}: must name "
            f"one of those whom {claim} asks: {asked}"
        )
    return model, fits[0]


def _claim(models: Sequence[ThreatModel], name: str) -> tuple[ThreatModel, Claim]:
    for model in models:
        for claim in model.claims:
            if claim.id == name:
                return model, claim
    known = ", ".join(
        claim.id
        for model in models
        for claim in model.claims
        if any(item.type == "manual" for item in claim.evidence)
    )
    raise ConfigError(f"{name}: there is no such claim; those that people must answer: {known}")


def _date(text: str | None) -> datetime.date | None:
    if text is None:
        return None
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--expires {text!r}: must be a date such as 2027-12-31") from None


def _show(models: Sequence[ThreatModel], findings: Sequence[ClaimFinding]) -> None:
    """A table, what is open first; then how many claims came to what."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from securefed.threats.judging import WORST_FIRST

    def rank(verdict: Verdict) -> int:
        return WORST_FIRST.index(verdict) if verdict in WORST_FIRST else len(WORST_FIRST)

    titles = {model.id: model.title.en for model in models}
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for heading in ("verdict", "claim", "adversary", "why"):
        table.add_column(heading, no_wrap=heading in ("verdict", "claim"))
    for found in sorted(findings, key=lambda found: rank(found.verdict)):
        cells = (found.verdict, found.claim, titles[found.model], found.reason)
        # As text: what looks like rich's markup is part of a test's name.
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    counts = Counter(found.verdict for found in findings)
    say(", ".join(f"{counts[v]} {v}" for v in sorted(counts, key=lambda v: (rank(v), v))))
