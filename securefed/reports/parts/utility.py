"""What a run reached and what it took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from securefed.reports.document import CostRow, Utility, UtilityRow
from securefed.reports.material import COSTS, METRICS, Material, figure, in_file, resolve
from securefed.reports.values import Figure, FigureKind, Said, Value

_COSTS: tuple[tuple[str, str, FigureKind], ...] = (
    ("bytes_up", "/bytes_up_per_client_and_round", "bytes"),
    ("bytes_down", "/bytes_down_per_client_and_round", "bytes"),
    ("server_bytes_in", "/server/bytes_in_per_round", "bytes"),
    ("server_bytes_out", "/server/bytes_out_per_round", "bytes"),
    ("server_sum", "/server/cpu_seconds/sum/mean", "seconds"),
    ("server_apply", "/server/cpu_seconds/apply/mean", "seconds"),
    ("server_memory", "/server/peak_memory_bytes/resident", "bytes"),
    ("run_files", "/server/disk_bytes/run", "bytes"),
    ("parameters", "/trainable_parameters", "count"),
)
"""Name, place in ``costs.json``, and how it is written."""


def utility(material: Material) -> Utility:
    """Held-out figures by round, and the costs of the run."""
    rows = [_row(number, line) for number, line in enumerate(material.metrics, 1)]
    notes = [Said(key=f"utility.figures_{material.config.evaluation.figures}")]
    if material.metrics and material.policy.mechanism != "none":
        line = material.metrics[-1]
        values: dict[str, Value] = {
            "against": Said(key=f"against.{line['against']}"),
            "unit": Said(key=f"unit.{material.policy.unit}"),
            "delta": figure(
                line["delta"], "probability", in_file(METRICS, "/delta", line=len(rows))
            ),
        }
        notes.append(Said(key="utility.spent", values=values))
    if material.config.evaluation.show_clients:
        notes.append(Said(key="utility.shown_clients"))
    if material.costs is not None and "client_work" in material.costs:
        notes.append(Said(key="utility.client_work"))
    statement = list(_statement(rows))
    return Utility(statement=statement, rounds=rows, costs=_costs(material.costs), notes=notes)


def measured(rows: list[UtilityRow], metric: str) -> list[UtilityRow]:
    """Rows in which a metric was measured."""
    return [row for row in rows if getattr(row, metric).value is not None]


def _statement(rows: list[UtilityRow]) -> Iterator[Said]:
    for metric in ("perplexity", "accuracy"):
        found = measured(rows, metric)
        if len(found) > 1:
            before, after = getattr(found[0], metric), getattr(found[-1], metric)
            yield Said(key=f"utility.{metric}", values={"before": before, "after": after})
    if not any(measured(rows, metric) for metric in ("perplexity", "accuracy")):
        yield Said(key="utility.not_measured")


def _row(number: int, line: Mapping[str, Any]) -> UtilityRow:
    def read(name: str, kind: FigureKind) -> Figure:
        return figure(line[name], kind, in_file(METRICS, f"/{name}", line=number))

    epsilon = read("epsilon", "epsilon")
    return UtilityRow(
        round=read("round", "count"),
        perplexity=read("perplexity", "figure"),
        accuracy=read("accuracy", "percent"),
        epsilon=epsilon,
        bytes_up=read("bytes_up", "bytes"),
        bytes_down=read("bytes_down", "bytes"),
    )


def _costs(costs: Mapping[str, Any] | None) -> list[CostRow]:
    rows: list[CostRow] = []
    for name, place, kind in _COSTS:
        value = resolve(costs or {}, place)
        if value is not None:
            shown = figure(value, kind, in_file(COSTS, place))
            rows.append(CostRow(label=Said(key=f"cost.{name}"), value=shown))
    return rows
