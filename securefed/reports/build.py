"""From the verified facts of a run to its report.

The same facts give the same report: nothing is measured, dated or drawn here.
"""

from __future__ import annotations

from securefed.reports.crosswalk import crosswalk
from securefed.reports.document import Report
from securefed.reports.judged import ThreatModelPart
from securefed.reports.material import Material
from securefed.reports.parts.aggregation import aggregation
from securefed.reports.parts.identity import identity, not_this, reproduce
from securefed.reports.parts.leakage import leakage
from securefed.reports.parts.opening import open_items, summary
from securefed.reports.parts.privacy import privacy
from securefed.reports.parts.system import system
from securefed.reports.parts.threats import threat_models
from securefed.reports.parts.utility import utility
from securefed.reports.values import Said, Words


def build(material: Material) -> Report:
    """The report of a run."""
    parts = threat_models(material)
    report = Report(
        identity=identity(material),
        open_items=open_items(material, parts),
        summary=[],
        not_this=not_this(material),
        system=system(material),
        privacy=privacy(material),
        aggregation=aggregation(material),
        leakage=leakage(material),
        utility=utility(material),
        threat_models=parts,
        crosswalk=[],
        limitations=_limitations(material, parts),
        reproduce=reproduce(material),
    )
    report = report.model_copy(update={"summary": summary(material, report)})
    return report.model_copy(update={"crosswalk": crosswalk(report)})


def _limitations(material: Material, parts: list[ThreatModelPart]) -> list[Words]:
    found: list[Words] = [
        Said(key="limit.recorded"),
        Said(key="limit.client_data"),
        Said(key="limit.attacks"),
        Said(key="limit.poisoning"),
        Said(key="limit.adapter"),
    ]
    if material.config.aggregation.kind != "plaintext":
        found.append(Said(key="limit.implementation"))
    if material.config.aggregation.encrypted:
        found.append(Said(key="limit.encryption"))
    found += [
        Said(
            key="limit.out_of_scope",
            values={"model": part.id, "threat": left.threat, "reason": left.reason},
        )
        for part in parts
        for left in part.out_of_scope
    ]
    return found
