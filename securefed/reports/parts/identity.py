"""Which run a report is about, and what must not be read into it."""

from __future__ import annotations

from securefed.reports.document import Command, Identity, Reproduce
from securefed.reports.material import CONFIG, Material, figure, in_file, in_ledger, recorded
from securefed.reports.values import Fact, Said


def identity(material: Material) -> Identity:
    """Name, base model, code and ledger of a run."""
    first, last = material.genesis, material.records[-1]
    body = first.body
    facts = [
        _fact("name", figure(material.config.output.name, "name", in_file(CONFIG, "/output/name"))),
        _fact("model", recorded(first, "/model", "name")),
        _fact("weights", recorded(first, "/model_fingerprint", "digest")),
        _fact("software", recorded(first, "/software", "name")),
        _fact("begun", figure(first.time, "name", in_ledger(first, "/time"))),
        _fact("closed", figure(last.time, "name", in_ledger(last, "/time"))),
        _fact("genesis", figure(first.hash, "digest", in_ledger(first, "/hash"))),
        _fact("head", figure(last.hash, "digest", in_ledger(last, "/hash"))),
    ]
    return Identity(
        name=material.config.output.name,
        finished=material.finished,
        anchored=material.anchored,
        model=str(body["model"]),
        weights=body.get("model_fingerprint"),
        software=str(body["software"]),
        source_sha256=body.get("source_sha256"),
        dependencies=dict(body.get("dependencies", {})),
        genesis=first.hash,
        head=last.hash,
        records=len(material.records),
        begun=first.time,
        closed=last.time,
        task=material.config.model.task,
        lora=material.config.lora.model_dump(mode="json", exclude_none=True),
        facts=facts,
    )


def not_this(material: Material) -> list[Said]:
    """What a reader must not take the report for."""
    found = ["certificate", "anonymous", "all_harm", "attacks", "recorded", "other_runs"]
    if material.policy.unit == "example":
        found.insert(2, "person")
    return [Said(key=f"not.{key}") for key in found]


def reproduce(material: Material) -> Reproduce:
    """Commands that make the report again, and digests of what it is made from."""
    commands = [
        ("verify", "securefed verify RUN --roster ROSTER"),
        ("report", "securefed report RUN --roster ROSTER"),
        ("audit", "securefed audit RUN --out RUN/attacks"),
        ("run", "securefed run RUN/config.toml"),
        ("claims", "pytest --threat-models"),
    ]
    first = material.genesis
    facts = [_fact("config", recorded(first, "/config_sha256", "digest"))]
    if "source_sha256" in first.body:
        facts.append(_fact("source", recorded(first, "/source_sha256", "digest")))
    if "dependencies_sha256" in first.body:
        facts.append(_fact("dependencies", recorded(first, "/dependencies_sha256", "digest")))
    for one in material.models:
        facts.append(
            Fact(
                label=Said(key="fact.threat_model", values={"id": one.model.id}),
                value=figure(one.sha256, "digest", in_file(one.path)),
            )
        )
    return Reproduce(
        commands=[Command(what=Said(key=f"reproduce.{key}"), command=c) for key, c in commands],
        facts=facts,
    )


def _fact(key: str, value: object) -> Fact:
    return Fact.model_validate({"label": Said(key=f"fact.{key}"), "value": value})
