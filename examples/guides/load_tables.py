"""Tables of examples/guides/load.md, from the files of results.

python examples/guides/load_tables.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

Line = dict[str, Any]


def lines_of(name: str) -> list[Line]:
    """All lines of one file."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def cells() -> list[tuple[Line, Line]]:
    """Round and echo of each cell, by clients and values."""
    found: dict[tuple[int, int], dict[str, Line]] = {}
    for line in lines_of("load.jsonl"):
        found.setdefault((line["clients"], line["values"]), {})[line["what"]] = line
    return [(cell["round"], cell["echo"]) for _, cell in sorted(found.items())]


def megabytes(count: float) -> str:
    """Of a count of bytes."""
    return f"{count / 1e6:.3g}"


def server_table() -> list[str]:
    """A line for each cell: what the server's process spends, and what Flower's grid adds."""
    lines = [
        "| clients | values | neighbours | server CPU s (wall) | clients a CPU s | Flower CPU s | "
        "server peak MB | MB in and out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for made, echo in cells():
        peak = made["server_peak"] - made["server_base"]
        lines.append(
            f"| {made['clients']} | {made['values']} | {made['degree']} | "
            f"{made['server_cpu']:.2f} ({made['server_wall']:.1f}) | "
            f"{made['clients'] / made['server_cpu']:.0f} | {echo['cpu']:.2f} | "
            f"{megabytes(peak)} | {megabytes(echo['bytes'])} |"
        )
    return lines


def stage_table() -> list[str]:
    """The server's CPU seconds by stage."""
    stages = ("hello", "advertise", "graph", "share", "masked_input", "consistency", "unmask")
    lines = [
        f"| clients | values | {' | '.join(stages)} |",
        f"|---|---|{'---|' * len(stages)}",
    ]
    for made, _ in cells():
        spent = {each["stage"]: f"{each['server_cpu']:.2f}" for each in made["stages"]}
        lines.append(
            f"| {made['clients']} | {made['values']} | "
            f"{' | '.join(spent.get(stage, '-') for stage in stages)} |"
        )
    return lines


def agent_table() -> list[str]:
    """A line for each cell: one agent in a process of its own."""
    lines = [
        "| clients | values | agent CPU s | kB up | kB down | agent peak MB, over its start |",
        "|---|---|---|---|---|---|",
    ]
    for made, _ in cells():
        up, down = (sum(each[way] for each in made["stages"]) for way in ("up", "down"))
        lines.append(
            f"| {made['clients']} | {made['values']} | {made['agent_cpu']:.3f} | "
            f"{up / 1e3:.0f} | {down / 1e3:.0f} | "
            f"{megabytes(made['agent_peak'] - made['agent_base'])} |"
        )
    return lines


def overhead_table() -> list[str]:
    """A line for each carrier: ratios first."""
    lines = [
        "| over | clients | values | seconds | CPU s | kB up | kB down | rounds timed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in lines_of("overhead.jsonl"):
        plain, secure = found["plain"], found["secure"]
        cells = [
            f"{secure[key] / plain[key]:.1f} ({secure[key] / unit:.2f} / {plain[key] / unit:.2f})"
            if key in plain
            else "not measured"
            for key, unit in (("seconds", 1.0), ("cpu", 1.0), ("up", 1e3), ("down", 1e3))
        ]
        lines.append(
            f"| {found['over']} | {found['clients']} | {found['values']} | {' | '.join(cells)} | "
            f"{secure['rounds']} / {plain['rounds']} |"
        )
    return lines


def tables() -> list[list[str]]:
    """All tables of the page, in its order."""
    return [overhead_table(), server_table(), stage_table(), agent_table()]


if __name__ == "__main__":
    for table in tables():
        print("\n".join(table) + "\n")
