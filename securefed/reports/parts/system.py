"""The parties of a run and what flows between them, with who sees it by the threat models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from securefed.reports.document import Adversary, Flow, Node, Role, System
from securefed.reports.material import (
    CONFIG,
    Material,
    ModelFile,
    figure,
    in_file,
    in_ledger,
    recorded,
)
from securefed.reports.values import Fact, Said, Words
from securefed.threats.views import View

_CONTRIBUTION: dict[str, View] = {
    "pairwise": "masked-updates",
    "bfv": "ciphertexts",
    "ckks": "ciphertexts",
    "plaintext": "individual-updates",
}


@dataclass(frozen=True)
class _Arrow:
    """A flow before it is numbered; ``key`` names what flows and how it is protected."""

    source: str
    target: str
    key: str
    views: tuple[View, ...]
    protected: bool = True


def system(material: Material) -> System:
    """Roles, the data-flow diagram and the settings that say what is learned from what."""
    arrows = _arrows(material)
    models = _applying(material)
    flows = [
        Flow(
            number=number,
            source=arrow.source,
            target=arrow.target,
            what=Said(key=f"flow.what.{arrow.key}"),
            protected=arrow.protected,
            how=Said(key=f"flow.how.{arrow.key}"),
            views=list(arrow.views),
            seen_by=[
                f"{one.model.id}/{actor.id}"
                for one in models
                for actor in one.model.actors
                if set(actor.view) & set(arrow.views)
            ],
        )
        for number, arrow in enumerate(arrows, 1)
    ]
    adversaries = [
        Adversary(
            name=f"{one.model.id}/{actor.id}",
            role=Said(key=f"actor.{actor.role}"),
            corruption=Said(key=f"corruption.{actor.corruption}"),
            sees=[flow.number for flow in flows if set(actor.view) & set(flow.views)],
        )
        for one in models
        for actor in one.model.actors
    ]
    return System(
        purpose=Said(key=f"system.purpose.{material.config.model.task}"),
        roles=_roles(material),
        nodes=_nodes(material),
        flows=flows,
        adversaries=adversaries,
        facts=_facts(material),
    )


def _applying(material: Material) -> list[ModelFile]:
    """The threat models with a claim about something that this run does."""
    if material.judgement is None:
        return list(material.models)
    applying = {
        finding.model
        for finding in material.judgement.findings
        if finding.verdict != "not_applicable"
    }
    return [one for one in material.models if one.model.id in applying]


def _has_decryptor(material: Material) -> bool:
    return material.config.aggregation.key_holder == "decryptor"


def _arrows(material: Material) -> list[_Arrow]:
    section, privacy = material.config.aggregation, material.config.privacy
    plain = section.kind == "plaintext"
    hidden = "encrypted_masked" if section.masked else section.kind
    noised = "noised" if privacy.mechanism != "none" else "exact"
    arrows = [
        _Arrow("data", "client", "examples", ("own-data",)),
        _Arrow(
            "client",
            "server",
            f"contribution.{'encrypted' if hidden in ('bfv', 'ckks') else hidden}",
            (_CONTRIBUTION[section.kind], "recorded-traffic", "metadata"),
            protected=not plain,
        ),
    ]
    if not plain:
        arrows.append(_Arrow("client", "server", "keys", ("public-keys", "recorded-traffic")))
    if _has_decryptor(material):
        arrows += [
            _Arrow("server", "decryptor", "ciphertext_sum", ("padded-checks", "round-key")),
            _Arrow("decryptor", "server", f"sum.{noised}", ("opened-sums",)),
        ]
    arrows += [
        _Arrow(
            "server",
            "adapter",
            f"sum.{noised}",
            ("aggregate", "opened-sums"),
            protected=noised == "noised",
        ),
        _Arrow("adapter", "client", "global", ("global-model",)),
        _Arrow("adapter", "user", "released", ("released-adapter", "query-only")),
    ]
    exact = material.config.evaluation.figures == "sum"
    arrows.append(
        _Arrow(
            "client",
            "server",
            f"held_out.{'sum' if exact else 'histogram'}",
            ("held-out-figures",) if exact else ("histograms",),
            protected=not exact,
        )
    )
    arrows.append(_Arrow("server", "ledger", "ledger", ("ledger", "run-folder", "logs")))
    return arrows


def _nodes(material: Material) -> list[Node]:
    places = {"data": (0, 0), "client": (1, 0), "server": (2, 0), "adapter": (3, 0), "user": (4, 0)}
    if _has_decryptor(material):
        places["decryptor"] = (3, 1)
    places["ledger"] = (2, 1)
    return [
        Node(id=name, label=Said(key=f"node.{name}"), column=column, row=row)
        for name, (column, row) in places.items()
    ]


def _roles(material: Material) -> list[Role]:
    section, first = material.config.aggregation, material.genesis
    plain = section.kind == "plaintext"
    central = material.policy.mechanism == "central"
    trusted: Words = Said(key="trusted.server_masked")
    if plain:
        trusted = Said(key="trusted.server_plain")
    elif central:
        trusted = Said(key="trusted.server_central")
    elif section.key_holder == "cohort":
        trusted = Said(key="trusted.server_cohort_key")
    roles = [
        Role(
            name=Said(key="role.client"),
            count=figure(len(first.body["cohort"]), "count", in_ledger(first, "/cohort")),
            sees=[Said(key="sees.client")],
            trusted=Said(key="trusted.client"),
        ),
        Role(
            name=Said(key="role.server"),
            sees=[Said(key=f"sees.server_{'plain' if plain else 'hidden'}")],
            trusted=trusted,
        ),
    ]
    if _has_decryptor(material):
        masked = "_masked" * section.masked
        roles.append(
            Role(
                name=Said(key="role.decryptor"),
                sees=[Said(key=f"sees.decryptor{masked}")],
                trusted=Said(key=f"trusted.decryptor{masked}"),
            )
        )
    roles += [
        Role(
            name=Said(key="role.user"),
            sees=[Said(key="sees.user")],
            trusted=Said(key="trusted.user"),
        ),
        Role(
            name=Said(key="role.auditor"),
            sees=[Said(key="sees.auditor")],
            trusted=Said(key="trusted.auditor"),
        ),
    ]
    return roles


def _facts(material: Material) -> list[Fact]:
    config = material.config
    first = material.genesis

    def fact(key: str, value: object) -> Fact:
        return Fact.model_validate({"label": Said(key=f"system.{key}"), "value": value})

    def setting(pointer: str, value: float | str, kind: str) -> object:
        place = in_file(CONFIG, pointer)
        return {"value": value, "kind": kind, "references": [place.model_dump()]}

    lora = config.lora
    return [
        fact("model", recorded(first, "/model", "name")),
        # A folder's place on somebody's machine is nobody else's business.
        fact("data", Said(key="as.code", values={"name": PurePath(config.data.source).name})),
        fact("task", Said(key=f"task.{config.model.task}")),
        fact("rank", setting("/lora/rank", lora.rank, "count")),
        fact("sharing", Said(key=f"sharing.{lora.sharing}")),
        fact("modules", Said(key="as.names", values={"names": list(lora.target_modules)})),
        fact("rounds", setting("/training/rounds", config.training.rounds, "count")),
        fact("unit", Said(key=f"unit.{config.privacy.unit}")),
    ]
