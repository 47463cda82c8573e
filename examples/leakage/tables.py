"""Tables of examples/leakage/README.md, from the files of results.

python examples/leakage/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Line = dict[str, Any]
Rows = dict[str, dict[str, Line]]


def read(name: str, model: str) -> Rows:
    """Of one file and model: by row and metric."""
    found: Rows = {}
    for text in (RESULTS / name).read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if line["model"] == model:
            found.setdefault(line["row"], {})[line["metric"]] = line
    return found


def rows_table(rows: Rows) -> list[str]:
    """A line a row."""
    lines = [
        "| row | what | predicted | n | token recall | exact match | ROUGE-L | prior | lift | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, metrics in rows.items():
        recall, predicted = metrics["token_recall"], metrics["token_recall"]["predicted"]
        cells = [
            f"`{name}`",
            recall["what"],
            f"{predicted['outcome']} ({predicted['inputs']} of {predicted['dimensions']})",
            str(recall["n"]),
        ]
        if recall["verdict"] == "void":
            cells += ["void", "-", "-", f"{recall['prior']:.2f}", "-", f"{recall['seconds']:.1f}"]
        else:
            low, high = recall["lift_interval"]
            cells += [
                f"{recall['value']:.2f}" + (f" ({recall['void']} void)" if recall["void"] else ""),
                f"{metrics['exact_match']['value']:.2f}",
                f"{metrics['rouge_l']['value']:.2f}",
                f"{recall['prior']:.2f}",
                f"{recall['lift']:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{recall['seconds']:.1f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sums_table(rows: Rows) -> list[str]:
    """A line for each thing that travels: recall, precision and lift for each n."""
    kinds: dict[str, dict[int, dict[str, Line]]] = {}
    for name, metrics in rows.items():
        kind, _, clients = name.rpartition(", ")
        kinds.setdefault(kind, {})[int(clients)] = metrics
    counts = sorted({count for found in kinds.values() for count in found})
    lines = [
        f"| what travels | {' | '.join(f'n = {count}' for count in counts)} | at the prior from |",
        f"|---{'|---' * len(counts)}|---|",
    ]
    for kind, found in kinds.items():
        cells = []
        for count in counts:
            if count not in found:
                cells.append("")
                continue
            recall, precision = found[count]["token_recall"], found[count]["token_precision"]
            low, high = recall["lift_interval"]
            cells.append(
                f"{recall['value']:.2f} / {precision['value']:.2f}, lift {recall['lift']:+.2f} "
                f"[{low:+.2f}, {high:+.2f}]"
            )
        lines.append(f"| {kind} | {' | '.join(cells)} | {at_the_prior(found)} |")
    return lines


def at_the_prior(found: dict[int, dict[str, Line]]) -> str:
    """The least n from which on no lift's interval lies above 0."""
    above = [n for n, metrics in found.items() if metrics["token_recall"]["lift_interval"][0] > 0.0]
    rest = [n for n in sorted(found) if n > max(above, default=0)]
    return f"{rest[0]}" if rest else f"beyond {max(found)}"


def tables() -> Iterable[list[str]]:
    """All of them, in the order of the README."""
    yield rows_table(read("inversion.jsonl", "minilm"))
    yield rows_table(read("inversion.jsonl", "smollm2"))
    yield sums_table(read("sums.jsonl", "minilm"))


if __name__ == "__main__":
    print("\n\n".join("\n".join(table) for table in tables()))
