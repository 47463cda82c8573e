"""The report as an entry of the Differential Privacy Deployments Registry, at its tier 3.

The registry's fields ask for what no software knows: who publishes, what for, and where.  They are
left as ``FILL IN: ...``; where the registry has a closed list, that makes its check refuse the
entry until somebody has answered.

All its strings are read as Markdown with LaTeX: words of the run have their marks escaped.

Source: opendp/deployments-registry-data, ``schemas/deployments-schema.yaml`` and the template in
``tests/good_deployments/``, at commit 057e5d81cf60150dd3307e0cf4504b957802fb3b, seen in a stored
copy on 2026-11-29.  The registry changes its schema often; no later one was seen.
Tiers: registry.opendp.org/transparency-tiers.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from securefed.errors import ConfigError
from securefed.reports.catalogue import Language
from securefed.reports.document import Report, Statement
from securefed.reports.markdown_text import escaped
from securefed.reports.values import Said, Value
from securefed.reports.wording import Wording, plain

FILL_IN = "FILL IN: "
_HEAD = """\
# An entry for the Differential Privacy Deployments Registry (registry.opendp.org), by securefed.
# Every "FILL IN" must be answered by whoever publishes the model. Delete this comment then.
# Schema: opendp/deployments-registry-data at 057e5d81 (seen 2026-11-29); check against a newer one.
"""


def render(report: Report, language: Language) -> str:
    """The entry, as YAML.

    Raises:
        ConfigError: nothing protects whoever's data trained the model against those who have it: a
            registry of differential privacy has no place for such a run.
    """
    statements = [one for one in report.privacy.statements if one.protected]
    release = [s for s in statements if s.subject == "training" and s.against == "release"]
    if not release:
        raise ConfigError(
            "dp-registry: the run has no differential-privacy guarantee against whoever has the "
            "release, so there is nothing to register"
        )
    words = _Markdown(language)
    entry = {
        "url_slug": _slug(report),
        "deployment": {
            "basic": _basic(report, words),
            "dp_variant": _variant(report, release[0], words),
            "privacy_loss": _loss(report, release[0], words),
            "deployment_model": _model(report, release[0], words),
            "implementation": _implementation(report, release[0], words),
            "administrative": {
                "status": "Draft",
                "registry_authors": [f"{FILL_IN}who fills out this entry"],
                "tier": 3,
            },
        },
    }
    text: str = yaml.dump(
        entry, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000
    )
    return _HEAD + text


class _Markdown:
    """Words of a report in one language, escaped for Markdown with LaTeX."""

    def __init__(self, language: Language) -> None:
        self._words = Wording(language)

    def __call__(self, key: str, **values: Value) -> str:
        """A sentence of the catalogue, with what stands in it escaped."""
        filled = {name: self.said(value) for name, value in values.items()}
        return self._words(f"registry.{key}", **filled)

    def said(self, value: Value) -> str:
        return escaped(plain(self._words.line(value)))

    def bullets(self, items: list[str]) -> str:
        return "\n".join(f"- {item}" for item in items)


def _basic(report: Report, words: _Markdown) -> dict[str, Any]:
    return {
        "name": escaped(report.identity.name),
        "data_curators": [
            {
                "data_curator_name": f"{FILL_IN}who publishes the model",
                "data_curator_type": f"{FILL_IN}Government, Industry or Nonprofit",
            }
        ],
        "description": words("description", model=report.identity.model, task=report.identity.task),
        "intended_use": f"{FILL_IN}what the model is for",
        "data_product_type": "Machine learning model",
        "data_product_region": f"{FILL_IN}whose data, and which law applies",
        "publication_date": report.identity.closed[:10],
    }


def _variant(report: Report, statement: Statement, words: _Markdown) -> dict[str, Any]:
    open_figures = [
        one
        for one in report.privacy.statements
        if one.subject == "held_out" and one.against == "release" and one.protected
    ]
    return {
        "variant_name": "Approximate DP",
        "data_domain": words("domain", unit=statement.unit),
        "unprotected_quantities": words(
            "unprotected" if open_figures else "unprotected_figures", adjacency=statement.adjacency
        ),
    }


def _loss(report: Report, statement: Statement, words: _Markdown) -> dict[str, Any]:
    return {
        "privacy_unit": words.said(statement.unit),
        "privacy_unit_details": words.said(statement.adjacency),
        "privacy_parameters": {
            "epsilon": statement.epsilon.value,
            "delta": statement.delta.value,
        },
        "privacy_parameters_details": words.bullets(
            [_parameters(one, words) for one in report.privacy.statements]
        ),
    }


def _parameters(one: Statement, words: _Markdown) -> str:
    said = words(
        "parameters" if one.protected else "parameters_none",
        subject=Said(key=f"registry.subject.{one.subject}"),
        against=Said(key=f"registry.against.{one.against}"),
        epsilon=one.epsilon,
        delta=one.delta,
        accountant=one.accountant,
        sampling=one.sampling,
    )
    if one.second is None or one.second_accountant is None:
        return said
    return f"{said} {words('second', second=one.second, accountant=one.second_accountant)}"


def _model(report: Report, statement: Statement, words: _Markdown) -> dict[str, Any]:
    parties = [
        words(
            "party",
            name=role.name,
            sees=list(role.sees),
            trusted=role.trusted,
        )
        for role in report.system.roles
    ]
    outside = [
        words("adversary", title=part.title, actor=actor.id, corruption=actor.corruption)
        for part in report.threat_models
        for actor in part.actors
    ]
    return {
        "model_name": "Federated",
        "model_name_details": words("model_details", kind=report.aggregation.kind),
        "trust_assumptions": words.bullets(
            [words.said(one) for one in (*statement.trust, *statement.assumptions)]
        ),
        "actors": words.bullets(parties + outside),
        "release_type": "One release",
        "release_type_details": f"{FILL_IN}whether the same data will be used or published again",
        "data_source_type": "Static",
        "access_type": "Non-interactive",
    }


def _implementation(report: Report, statement: Statement, words: _Markdown) -> dict[str, Any]:
    identity = report.identity
    return {
        "preprocessing_and_hyperparameter_tuning": (
            f"{FILL_IN}how data were prepared and settings chosen, and whether that spent privacy"
        ),
        "mechanisms": words.bullets(
            [
                words("mechanism", mechanism=statement.mechanism, sampling=statement.sampling),
                words("software", software=identity.software, source=identity.source_sha256 or "?"),
                words("floating_point"),
            ]
        ),
        "composition": words(
            "composition", accountant=statement.accountant, rounds=statement.rounds
        ),
        "post_processing": words("post_processing"),
        "justification": f"{FILL_IN}why these settings were chosen, and who decided",
        "utility": _utility(report, words),
        "additional_information": words(
            "ledger", genesis=identity.genesis, head=identity.head, records=identity.records
        ),
    }


def _utility(report: Report, words: _Markdown) -> str:
    rows = [
        words("utility_row", round=row.round, perplexity=row.perplexity, accuracy=row.accuracy)
        for row in report.utility.rounds[-1:]
    ]
    return words.bullets(rows) if rows else words("utility_none")


def _slug(report: Report) -> str:
    """Letters, digits and hyphens of the run's name, with the head of its ledger."""
    name = re.sub(r"[^a-z0-9]+", "-", report.identity.name.lower()).strip("-") or "run"
    return f"{name[:40]}-{report.identity.head[:12]}"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it stands, which the registry asks for, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    style = "|" if "\n" in data else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _text)
