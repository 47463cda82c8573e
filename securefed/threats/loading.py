"""Reading threat models: the schema, then what no schema can say, each fault with file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from securefed.errors import ConfigError
from securefed.threats.conditions import Conditions, check, check_path
from securefed.threats.files import read_file
from securefed.threats.model import AttackEvidence, Bound, Claim, LedgerEvidence, Named, ThreatModel
from securefed.threats.views import why_not_seen
from securefed.threats.yaml_files import Document, Place, read_yaml

_MOST_FAULTS = 20

Fault = tuple[Place, str]


def load_threat_model(source: Path | bytes, name: str | None = None) -> ThreatModel:
    """One threat model.

    Args:
        source: its file, or the bytes of one.
        name: what messages call the file; its path where it has one.

    Raises:
        ConfigError: the file cannot be read; it is not YAML as :func:`read_yaml` takes it; or
            something in it is unknown, missing, of another type, or refers to what is not there.
            Each fault stands on a line of its own that begins with ``file:line``.
    """
    if isinstance(source, Path):
        data, named = read_file(source), name or str(source)
    else:
        data, named = source, name or "threat model"
    document = read_yaml(data, named)
    try:
        model = ThreatModel.model_validate(document.value)
    except ValidationError as error:
        raise ConfigError(_told(document, _of_schema(error))) from None
    model._source = document
    faults = sorted(_faults(model), key=lambda fault: document.line(fault[0]))
    if faults:
        raise ConfigError(_told(document, faults))
    return model


def load_threat_models(files: Mapping[str, bytes]) -> list[ThreatModel]:
    """Several that go together, in the order of their names.

    Ids of models, threats and claims are unique over all of them, so that one alone names a claim.

    Raises:
        ConfigError: as :func:`load_threat_model`, or an id stands twice.
    """
    models = [load_threat_model(data, name) for name, data in sorted(files.items())]
    first: dict[str, str] = {}
    for model in models:
        places: list[tuple[str, Place]] = [(model.id, ("id",))]
        several: list[tuple[str, Sequence[Named]]] = [
            ("threats", model.threats),
            ("claims", model.claims),
        ]
        for kind, items in several:
            places += [(item.id, (kind, n, "id")) for n, item in enumerate(items)]
        for name, place in places:
            if name in first:
                raise ConfigError(f"{model.where(*place)}: {name} stands at {first[name]} too")
            first[name] = model.where(*place)
    return models


def _told(document: Document, faults: Iterable[Fault]) -> str:
    every = [f"{document.where(place)}: {what}" for place, what in faults]
    more = len(every) - _MOST_FAULTS
    shown = every[:_MOST_FAULTS]
    return "\n".join([*shown, f"... and {more} more"] if more > 0 else shown)


def _of_schema(error: ValidationError) -> Iterator[Fault]:
    for item in error.errors():
        place = item["loc"]
        named = ".".join(str(part) for part in place) or "the file"
        value = item["input"]
        # A whole mapping or list would say less than its line does.
        shown = "" if isinstance(value, dict | list) else f" (value: {str(value)[:80]!r})"
        if item["type"] == "extra_forbidden":
            said, shown = "no such key is known here", ""
        elif item["type"] == "missing":
            said, shown = "is missing; it must be given", ""
        elif item["type"] == "literal_error":
            said = f"must be {item['ctx']['expected']}"
        else:
            said = item["msg"].removeprefix("Value error, ")
        yield place, f"{named}: {said}{shown}"


def _faults(model: ThreatModel) -> Iterator[Fault]:
    several: list[tuple[str, Sequence[Named]]] = [
        ("assets", model.assets),
        ("actors", model.actors),
        ("threats", model.threats),
        ("claims", model.claims),
    ]
    for kind, items in several:
        seen: set[str] = set()
        for number, item in enumerate(items):
            if item.id in seen:
                yield (kind, number, "id"), f"{item.id} stands twice among {kind}"
            seen.add(item.id)
    yield from _threat_faults(model)
    for number, claim in enumerate(model.claims):
        yield from _claim_faults(model, ("claims", number), claim)


def _threat_faults(model: ThreatModel) -> Iterator[Fault]:
    actors, assets = {a.id for a in model.actors}, {a.id for a in model.assets}
    threats = {threat.id for threat in model.threats}
    answered = {name for claim in model.claims for name in claim.threats}
    for number, out in enumerate(model.out_of_scope):
        if out.threat.en.startswith("T-") and " " not in out.threat.en:
            answered.add(out.threat.en)
            if out.threat.en not in threats:
                place: Place = ("out_of_scope", number, "threat")
                yield place, f"{out.threat.en} is no threat of this file"
    for number, threat in enumerate(model.threats):
        at: Place = ("threats", number)
        if threat.actor not in actors:
            yield (*at, "actor"), f"{threat.actor!r} is no actor of this file: {sorted(actors)}"
        if threat.asset not in assets:
            yield (*at, "asset"), f"{threat.asset!r} is no asset of this file: {sorted(assets)}"
        if threat.id not in answered:
            yield at, f"{threat.id} is answered by no claim and is not in out_of_scope"


def _claim_faults(model: ThreatModel, at: Place, claim: Claim) -> Iterator[Fault]:
    known = {threat.id: threat.actor for threat in model.threats}
    for number, name in enumerate(claim.threats):
        if name not in known:
            yield (*at, "threats", number), f"{name!r} is no threat of this file"
    yield from _condition_faults((*at, "applies_when"), claim.applies_when)
    for number, control in enumerate(claim.controls):
        place: Place = (*at, "controls", number)
        yield from _condition_faults((*place, "config"), control.config)
        for which, conditions in enumerate(control.any_of):
            yield from _condition_faults((*place, "any_of", which), conditions)
        if control.optional and not (control.config or control.any_of):
            yield place, f"{control.code} is optional, and no config says when it is in force"
    cited: set[tuple[str, str]] = set()
    for number, item in enumerate(claim.evidence):
        here: Place = (*at, "evidence", number)
        # Both sides of one cell are one piece of evidence; two bounds on a ledger value may be two.
        if item.type in ("test", "manual") and (item.type, item.cites) in cited:
            yield here, f"{item.cites} stands twice in this claim"
        cited.add((item.type, item.cites))
        yield from _condition_faults((*here, "applies_when"), item.applies_when)
        if isinstance(item, LedgerEvidence):
            yield from _bound_faults((*here, "accept"), item.accept)
        if isinstance(item, AttackEvidence):
            actors = {known[name] for name in claim.threats if name in known}
            yield from _view_faults(model, here, item, actors)


def _view_faults(
    model: ThreatModel, at: Place, item: AttackEvidence, actors: set[str]
) -> Iterator[Fault]:
    why = ""
    for actor in model.actors:
        if actor.id not in actors:
            continue
        why = why_not_seen(item.exposure, actor.view, actor.corruption)
        if not why:
            break  # the actor of one of the claim's threats sees it
        why += f" ({actor.id})"
    if why:
        yield (*at, "exposure"), why
    if (item.exposure, item.defence) == (item.baseline.exposure, item.baseline.defence):
        yield (*at, "baseline"), "is the very cell that it should be compared with"


def _condition_faults(at: Place, conditions: Conditions) -> Iterator[Fault]:
    for path, wanted in conditions.items():
        try:
            check(path, wanted)
        except ConfigError as error:
            yield (*at, path), str(error)


def _bound_faults(at: Place, bound: Bound) -> Iterator[Fault]:
    if bound.of != "point":
        yield (*at, "of"), f"of = {bound.of!r}: a value of the ledger has no interval; 'point'"
    if bound.config is not None:
        try:
            check_path(bound.config)
        except ConfigError as error:
            yield (*at, "config"), str(error)
