"""How single contributions are hidden, and who was lost in which round."""

from __future__ import annotations

from securefed.evidence.ledger import Record
from securefed.reports.document import Aggregation, RoundRow
from securefed.reports.material import (
    CONFIG,
    METRICS,
    Material,
    figure,
    in_file,
    in_ledger,
    recorded,
)
from securefed.reports.values import Fact, Figure, FigureKind, Said
from securefed.secagg.rlwe_parameters import BfvParameters, CkksParameters


def aggregation(material: Material) -> Aggregation:
    """Parameters of the secure sum, and its rounds."""
    section = material.config.aggregation
    name: str = section.kind
    if section.encrypted:
        name = f"encrypted_{section.key_holder}" + "_masked" * section.masked
    statement = [Said(key=f"aggregation.is.{name}")]
    if material.parameters.sparse and section.kind != "plaintext":
        statement.append(Said(key="aggregation.sparse"))
    if section.kind in ("pairwise",) or section.masked:
        statement += [Said(key="aggregation.keys"), Said(key="aggregation.consistency")]
    failed = [*material.of_kind("round_failed"), *material.of_kind("round_abandoned")]
    if failed:
        statement.append(
            Said(
                key="aggregation.failed",
                values={"rounds": [_round(record) for record in failed]},
            )
        )
    return Aggregation(
        kind=section.kind,
        statement=statement,
        parameters=_parameters(material),
        rounds=[_row(material, record) for record in material.of_kind("round_summed")],
    )


def _parameters(material: Material) -> list[Fact]:
    found, section = material.parameters, material.config.aggregation
    first = material.genesis
    size = len(first.body["cohort"])
    clients = figure(size, "count", in_ledger(first, "/cohort"))
    facts = [
        _fact("clients", clients),
        _fact("survivor_floor", figure(found.survivor_floor, "count")),
        _fact("corrupt", figure(found.corrupt, "count")),
        _fact(
            "corrupt_fraction",
            figure(
                material.config.privacy.corrupt_fraction,
                "percent",
                in_file(CONFIG, "/privacy/corrupt_fraction"),
            ),
        ),
        _fact(
            "dropout_fraction",
            figure(
                material.config.privacy.dropout_fraction,
                "percent",
                in_file(CONFIG, "/privacy/dropout_fraction"),
            ),
        ),
        _fact("ring_bits", recorded(first, "/privacy/bits", "count")),
        _fact("values", recorded(first, "/privacy/dimension", "count")),
    ]
    if section.kind == "pairwise" or section.masked:
        more: list[tuple[str, int, FigureKind]] = [
            ("degree", found.degree, "count"),
            ("threshold", found.threshold, "count"),
            ("quorum", found.quorum, "count"),
        ]
        facts += [_fact(key, figure(value, kind)) for key, value, kind in more]
        if found.sparse:
            facts.append(_fact("sigma", figure(found.sigma, "count")))
    if material.encryption is not None:
        facts += _encrypted(material.encryption.parameters, str(section.kind))
    return facts


def _encrypted(parameters: BfvParameters | CkksParameters, scheme: str) -> list[Fact]:
    facts = [
        _fact("scheme", figure(scheme.upper(), "name", in_file(CONFIG, "/aggregation/kind"))),
        _fact("ring_degree", figure(parameters.degree, "count")),
        _fact("modulus_bits", figure(sum(parameters.data_bits) + parameters.special_bits, "count")),
    ]
    if isinstance(parameters, BfvParameters):
        facts.append(_fact("plain_modulus", figure(parameters.plain_modulus, "count")))
    return facts


def _row(material: Material, record: Record) -> RoundRow:
    body = record.body
    number, survivors = int(body["round"]), len(body["survivors"])
    line = next((n for n, one in enumerate(material.metrics) if one["round"] == number), None)
    if line is None:
        cohort = figure(len(material.genesis.body["cohort"]), "count")
    else:
        place = in_file(METRICS, "/cohort", line=line + 1)
        cohort = figure(int(material.metrics[line]["cohort"]), "count", place)
    late = body.get("late", {})
    size = int(cohort.value or 0)
    return RoundRow(
        round=_round(record),
        cohort=cohort,
        survivors=figure(survivors, "count", in_ledger(record, "/survivors")),
        lost=figure(size - survivors, "count"),
        late=figure(len(late), "count", *([in_ledger(record, "/late")] if late else [])),
        silent=_counted(record, "silent"),
        refused=_counted(record, "refused"),
    )


def _round(record: Record) -> Figure:
    return recorded(record, "/round", "count")


def _counted(record: Record, name: str) -> Figure:
    value = int(record.body.get(name, 0))
    return figure(value, "count", *([in_ledger(record, f"/{name}")] if name in record.body else []))


def _fact(key: str, value: Figure) -> Fact:
    return Fact(label=Said(key=f"parameter.{key}"), value=value)
