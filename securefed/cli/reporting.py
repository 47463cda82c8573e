"""``securefed report``: the verified facts of a run as a report, and its renderings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securefed.cli.trusting import Run, Signers, TrustedRoster
from securefed.cli.watching import errors, say, tampered
from securefed.errors import ConfigError, LedgerTampered, RemoteProtocolError

if TYPE_CHECKING:
    import datetime
    from collections.abc import Collection

    from securefed.crypto.identity import IdentityPublicKey
    from securefed.engines.verify import VerifiedRun
    from securefed.reports.material import Material, ModelFile, SecondEpsilon
    from securefed.threats.model import ThreatModel

REPORT = "report"
_FORMATS = "html, md, json, pdf, cyclonedx, dp-registry or model-card"


def report(
    folder: Run,
    lang: Annotated[str, typer.Option(help="'en' or 'ja'.")] = "en",
    shape: Annotated[str, typer.Option("--format", help=_FORMATS)] = "html",
    roster: TrustedRoster = None,
    signer: Signers = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the rendering; default: in RUN/report/.")
    ] = None,
) -> None:
    """Write a run's report: RUN/report/report.json, and a rendering of it.

    The run is verified and its claims are judged first; of a run that does not verify there is no
    report.  Exit code 1: tampered with, 2: usage.
    """
    from securefed.engines.verify import verified_run
    from securefed.evidence.anchoring import read_public_key
    from securefed.operations.whole_files import write_whole
    from securefed.reports.build import build
    from securefed.reports.catalogue import LANGUAGES, checked_language
    from securefed.reports.formats import format_of

    if lang not in LANGUAGES:
        raise ConfigError(f"--lang {lang!r}: must be one of {', '.join(LANGUAGES)}")
    language, wanted = checked_language(lang), format_of(shape)
    trusted = [read_public_key(path) for path in signer or ()]
    try:
        found = material(folder, verified_run(folder, roster), trusted)
    except (LedgerTampered, RemoteProtocolError) as error:
        tampered(error)
        errors.print("no report was written", markup=False)
        raise typer.Exit(1) from None
    made = build(found)
    rendered = wanted.load()(made, language)
    place = folder / REPORT
    if found.judgement is not None:
        target = folder / found.judged_path
        target.parent.mkdir(exist_ok=True)
        write_whole(target, found.judgement.model_dump_json(indent=1) + "\n")
    place.mkdir(exist_ok=True)
    write_whole(place / "report.json", made.to_text())
    say(f"report: {place / 'report.json'}")
    target = out or place / wanted.file_name(language)
    if target != place / "report.json":
        _write(target, rendered)
        say(f"{shape}: {target}")


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def material(
    folder: Path,
    run: VerifiedRun,
    trusted: Collection[IdentityPublicKey] = (),
    *,
    now: datetime.datetime | None = None,
) -> Material:
    """All that a report is made from.

    Args:
        folder: the run folder.
        run: what its verification gave.
        trusted: keys whose signatures count as known; none is needed.
        now: the time at which claims are judged; the present without it.

    Raises:
        ConfigError, RemoteProtocolError: a document of the run is not as it must be.
    """
    from securefed.engines.histogram_settings import histogram_guarantees
    from securefed.engines.run_facts import judge_run, read_attacks
    from securefed.engines.threat_model_files import THREAT_MODELS
    from securefed.privacy.accounting import ADVERSARIES
    from securefed.reports.material import COSTS, METRICS, AttackFile, Material

    settings = run.settings
    models, judgement = judge_run(folder, run, trusted, now=now)
    own = folder / THREAT_MODELS
    kept = own.is_dir() and any(own.glob("*.yaml"))
    finished = run.history.closed is not None
    figures = histogram_guarantees(settings.histograms, run.histogram_charges)
    return Material(
        config=settings.config,
        records=run.records,
        finished=finished,
        anchored=run.anchored,
        incomplete=[why for why in run.incomplete if why != "the run is not finished"],
        policy=settings.stated,
        bounds=settings.bounds,
        parameters=settings.aggregation.parameters(settings.bounds),
        encryption=settings.encryption,
        guarantees=[settings.guarantee(who, run.charges) for who in ADVERSARIES],
        figures=list(figures.values()),
        second=_second(run),
        metrics=_lines(folder / METRICS),
        costs=_whole(folder / COSTS) if finished else None,
        attacks=[
            AttackFile(one.reference.path, one.document, one.anchored)
            for one in read_attacks(folder, trusted)
        ],
        models=_model_files(models, own if kept else None),
        shipped_models=not kept,
        judgement=judgement,
    )


def _second(run: VerifiedRun) -> list[SecondEpsilon]:
    from securefed.reports.material import SecondEpsilon

    return [
        SecondEpsilon(
            "training" if one.of == "training" else "held_out",
            one.stated.against,
            one.opinion.lower,
            one.opinion.upper,
        )
        for one in run.second
        if one.opinion is not None
    ]


def _model_files(models: list[ThreatModel], own: Path | None) -> list[ModelFile]:
    from securefed.reports.material import ModelFile
    from securefed.threats.files import read_file, shipped

    if own is None:
        files = shipped()
    else:
        files = {path.name: read_file(path) for path in sorted(own.glob("*.yaml"))}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return [
        ModelFile(f"threat_models/{Path(one.name).name}", digests[Path(one.name).name], one)
        for one in models
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; none where it is not there."""
    if not path.is_file():
        return []
    return [_object(line, f"{path}") for line in path.read_text(encoding="utf-8").splitlines()]


def _whole(path: Path) -> dict[str, Any] | None:
    return _object(path.read_text(encoding="utf-8"), f"{path}") if path.is_file() else None


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise LedgerTampered(f"{where}: is not JSON as a run writes it")
    return found
