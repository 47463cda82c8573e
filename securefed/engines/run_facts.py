"""A verified run as claims are judged by it, and all of its claims judged.  Needs no torch."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from securefed.crypto.identity import IdentityPublicKey
from securefed.engines.software import software
from securefed.engines.threat_model_files import THREAT_MODELS
from securefed.engines.verify import VerifiedRun
from securefed.errors import RemoteProtocolError
from securefed.evidence.anchoring import read_signed
from securefed.evidence.results import RESULT_TYPE, AttackDocument
from securefed.evidence.software import source_sha256
from securefed.threats.facts import MeasuredAttack, RunFacts
from securefed.threats.files import folder as shipped_folder
from securefed.threats.files import read_file, shipped
from securefed.threats.judging import judge
from securefed.threats.ledger_values import Beside
from securefed.threats.loading import load_threat_models
from securefed.threats.model import ThreatModel
from securefed.threats.statements import read_statements
from securefed.threats.stored import StoredTests, read_stored
from securefed.threats.verdicts import Judgement, Reference

ATTACKS = "attacks"
"""Folder of a run folder that holds results of attacks on it (``securefed audit --out``)."""


def run_facts(
    folder: Path, verified: VerifiedRun, trusted: Collection[IdentityPublicKey] = ()
) -> RunFacts:
    """What claims are judged by.

    Args:
        folder: the run folder.
        verified: what its verification gave.
        trusted: keys whose signatures count as known; none is needed.

    Raises:
        ConfigError, RemoteProtocolError: a signed document of the run is not as it must be.
    """
    genesis = verified.records[0].body
    beyond = None
    if verified.opened is not None:
        beyond = verified.opened - len(verified.history.survivors)
    return RunFacts(
        config=verified.settings.config,
        records=verified.records,
        beside=Beside(openings_beyond_sums=beyond, unsigned_rounds=_unsigned(verified)),
        source_sha256=genesis.get("source_sha256"),
        model_fingerprint=genesis.get("model_fingerprint"),
        attacks=read_attacks(folder, trusted),
        statements=read_statements(folder, trusted),
    )


def _unsigned(verified: VerifiedRun) -> int | None:
    """Heads with no witnessed one at or after them; None of folders that kept no witnesses."""
    if not verified.heads:
        return None
    places = [n for n, head in enumerate(verified.heads, start=1) if head.witnessed]
    return len(verified.heads) - max(places, default=0)


def read_attacks(folder: Path, trusted: Collection[IdentityPublicKey] = ()) -> list[MeasuredAttack]:
    """Every signed result of an attack in ``attacks/`` of a run folder, by name.

    Raises:
        ConfigError, RemoteProtocolError: as :func:`~securefed.evidence.anchoring.read_signed`; or
            a document is no such result.
    """
    found = []
    for file in read_signed(folder / ATTACKS, trusted, payload_type=RESULT_TYPE):
        name = f"{ATTACKS}/{file.name}"
        try:
            document = AttackDocument.model_validate(file.document)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise RemoteProtocolError(f"{folder / name}: {where} is not as must be") from None
        reference = Reference(kind="file", path=name, sha256=file.sha256)
        found.append(MeasuredAttack(document, reference, file.anchored))
    return found


def threat_models_of(folder: Path) -> list[ThreatModel]:
    """The threat models that a run was begun under; the shipped ones where it keeps none.

    Raises:
        ConfigError: one is not as it must be.
    """
    place = folder / THREAT_MODELS
    files = {path.name: read_file(path) for path in sorted(place.glob("*.yaml"))}
    return load_threat_models(files or shipped())


def shipped_tests(trusted: Collection[IdentityPublicKey] = ()) -> StoredTests:
    """The results of cited tests that this installation comes with.

    Raises:
        ConfigError, RemoteProtocolError: a document is not as it must be.
    """
    return read_stored(shipped_folder() / "evidence", trusted, shown="threat_models/evidence")


def judge_run(
    folder: Path,
    verified: VerifiedRun,
    trusted: Collection[IdentityPublicKey] = (),
    *,
    now: datetime.datetime | None = None,
) -> tuple[list[ThreatModel], Judgement]:
    """Every claim about a run.

    Args:
        folder: the run folder.
        verified: what its verification gave.
        trusted: keys whose signatures count as known; none is needed.
        now: the time of the judgement; the present without it.

    Raises:
        ConfigError, RemoteProtocolError: as the functions above.
    """
    models = threat_models_of(folder)
    judgement = judge(
        models,
        run_facts(folder, verified, trusted),
        shipped_tests(trusted),
        now=now or datetime.datetime.now(datetime.UTC),
        software=software(),
        source_sha256=source_sha256(),
    )
    return models, judgement
