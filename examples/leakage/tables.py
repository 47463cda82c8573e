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


def lines_of(name: str) -> list[Line]:
    """All lines of one file."""
    text = (RESULTS / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def ladder_table() -> list[str]:
    """A line for each defence: every attacker, on all trials."""
    lines = [
        "| defence | rank | n | plain span | adaptive | prior | lift of the adaptive |",
        "|---|---|---|---|---|---|---|",
    ]
    kept: dict[tuple[str, int], dict[str, Line]] = {}
    for line in lines_of("ladder.jsonl"):
        if line["trials"] == "all" and line["metric"] == "token_recall":
            kept.setdefault((line["defence"], line["rank"]), {})[line["attack"]] = line
    for (defence, rank), found in kept.items():
        adaptive = found["sparse-bayes"]
        lines.append(
            f"| {defence} | {rank} | {adaptive['n']} | {recalled(found['span-inversion'])} | "
            f"{recalled(adaptive)} | {adaptive['prior']:.2f} | "
            f"{adaptive['lift']:+.2f} {ranged(adaptive['lift_interval'], '+')} |"
        )
    return lines


def recalled(line: Line) -> str:
    """A recall with its interval, or that the attack does not apply."""
    if line["verdict"] == "void":
        return "void"
    void = f", {line['void']} void" if line["void"] else ""
    return f"{line['value']:.2f} {ranged(line['interval'])}{void}"


def ranged(interval: list[float], sign: str = "") -> str:
    """An interval's ends."""
    return f"[{interval[0]:{sign}.2f}, {interval[1]:{sign}.2f}]"


def matching_table() -> list[str]:
    """A line for each attack and view."""
    rows: dict[tuple[str, str], dict[str, Line]] = {}
    for line in lines_of("matching.jsonl"):
        rows.setdefault((line["attack"], line["row"]), {})[line["metric"]] = line
    lines = ["| attack | row | n | token recall | ROUGE-L | prior | lift | s |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for (attack, row), found in rows.items():
        recall = found["token_recall"]
        lines.append(
            f"| {attack} | `{row}` | {recall['n']} | {recalled(recall)} | "
            f"{found['rouge_l']['value']:.2f} | {recall['prior']:.2f} | "
            f"{recall['lift']:+.2f} {ranged(recall['lift_interval'], '+')} | "
            f"{recall['seconds']:.1f} |"
        )
    return lines


def membership_table() -> list[str]:
    """A line for each attack on adapters: AUC with and without noise."""
    rows: dict[str, dict[str, Line]] = {}
    for line in lines_of("membership.jsonl"):
        if line["target"] == "at home":
            rows.setdefault(line["row"], {})[line["attack"]] = line
    lines = [
        f"| attack | {' | '.join(f'{row}: AUC | TPR at FPR 1 %' for row in rows)} |",
        f"|---{'|---' * 2 * len(rows)}|",
    ]
    for attack in next(iter(rows.values())):
        cells = []
        for found in rows.values():
            line = found[attack]
            rate = next(each for each in line["rates"] if each["fpr"] == 0.01)
            cells += [f"{line['auc']:.2f} {ranged(line['auc_interval'])}",
                      f"{rate['value']:.2f} {ranged(rate['interval'])}"]  # fmt: skip
        lines.append(f"| {attack} | {' | '.join(cells)} |")
    return lines


def sums_of_members_table() -> list[str]:
    """A line for each masked sum: AUC by attack."""
    rows: dict[tuple[int, float], dict[str, Line]] = {}
    for line in lines_of("membership_sums.jsonl"):
        rows.setdefault((line["clients"], line["noise_multiplier"]), {})[line["attack"]] = line
    attacks = list(next(iter(rows.values())))
    lines = [f"| sum of | noise multiplier | {' | '.join(attacks)} |",
             f"|---|---{'|---' * len(attacks)}|"]  # fmt: skip
    for (clients, noise), found in rows.items():
        cells = [f"{found[a]['auc']:.2f} {ranged(found[a]['auc_interval'])}" for a in attacks]
        lines.append(f"| {clients} | {noise:g} | {' | '.join(cells)} |")
    return lines


def poisoning_table() -> list[str]:
    """A line for each attack and defence."""
    lines = [
        "| attack | defence | accuracy | trigger taken for wanted | same mails, no trigger |",
        "|---|---|---|---|---|",
    ]
    for line in lines_of("poisoning.jsonl"):
        cells = [f"{line[part]['value']:.2f} {ranged(line[part]['interval'])}"
                 for part in ("accuracy", "success", "base")]  # fmt: skip
        lines.append(f"| {line['attack']} | {line['defence']['name']} | {' | '.join(cells)} |")
    return lines


def audit_table() -> list[str]:
    """A line for each kind of release."""
    lines = [
        "| release | n | scores each | promised epsilon | mean 95 % lower bound | "
        "at most promised | found broken |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines_of("audit.jsonl"):
        masked = ", masked" if line["masked"] else ""
        lines.append(
            f"| {line['what']}{masked} | {line['n']} | {line['canaries'] * line['releases']} | "
            f"{line['statement']['epsilon']:.2f} | {line['mean']:.2f} | "
            f"{line['at_most_promised']} of {line['n']} | {line['violated']} of {line['n']} |"
        )
    return lines


def tables() -> Iterable[list[str]]:
    """All of them, in the order of the README."""
    yield rows_table(read("inversion.jsonl", "minilm"))
    yield rows_table(read("inversion.jsonl", "smollm2"))
    yield sums_table(read("sums.jsonl", "minilm"))
    yield ladder_table()
    yield matching_table()
    yield membership_table()
    yield sums_of_members_table()
    yield poisoning_table()
    yield audit_table()


if __name__ == "__main__":
    print("\n\n".join("\n".join(table) for table in tables()))
