"""What every fault must leave as it is, and the table of faults that were tried.

A test that has the fixture ``fault`` puts rows into the table at the end of its session, and
``--fault-results=FILE`` writes the rows as JSON lines.  ``python tests/fault_matrix.py FILE``
prints the table of such a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("fault", "where", "expected", "seen")
PROPERTY = "fault"


def table(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The rows as a Markdown table, in the order in which they come."""
    lines = [f"| {' | '.join(COLUMNS)} | outcome |", f"|---{'|---' * len(COLUMNS)}|"]
    lines += [
        f"| {' | '.join(row.get(column, '') for column in COLUMNS)} | {row['outcome']} |"
        for row in rows
    ]
    return lines


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass
class Row:
    """One fault: what is done, where, and what is expected; ``seen`` is what came of it."""

    fault: str
    where: str
    expected: str
    seen: str = ""


def rows_of(reports: Iterable[Any]) -> list[dict[str, str]]:
    """The rows of a session's reports, in the order of the tests' names."""
    found = []
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == PROPERTY and report.when == "call":
                test = report.nodeid.rpartition("::")[2]
                found.append(value | {"outcome": report.outcome, "test": test})
    return sorted(found, key=lambda row: row["test"])


def check_kept(
    run: Path,
    accounts: Mapping[str, Path],
    *,
    roster: Path,
    sent: Collection[tuple[str, str]] = (),
    rounds: int = 2,
) -> str:
    """Check what every fault must leave as it is.

    Args:
        run: the run folder, finished.
        accounts: of each client, on its own disk.
        roster: the keys that the reader trusts.
        sent: session and client of each masked input that was seen to leave an agent.
        rounds: how many there must be.

    Returns:
        What was seen, in words.
    """
    from securefed.engines.verify import verified_run, verify_run

    verdict = verify_run(run, roster)
    assert verdict.finished
    assert verdict.anchored
    found = verified_run(run, roster)
    applied = [r.body for r in found.records if r.kind == "round_applied"]
    summed = [r.body for r in found.records if r.kind == "round_summed"]
    # Each round is in the adapter once, from a sum of its own that was taken once.
    assert [body["round"] for body in applied] == list(range(1, rounds + 1))
    names = [body["session"] for body in summed]
    assert len(set(names)) == len(names)
    assert {body["session"] for body in applied} <= set(names)
    check_adapter(run, applied[-1]["adapter_sha256"])
    survived = {(body["session"], name) for body in summed for name in body["survivors"]}
    charged = []
    for name, folder in sorted(accounts.items()):
        charged.append(_check_account(run, name, folder, {s for s, n in survived if n == name},
                                      {s for s, n in sent if n == name}))  # fmt: skip
    by_round = ", ".join(str(len(body["survivors"])) for body in summed)
    words = verdict.lines[-1].removeprefix("verdict: ").partition(":")[0].partition(";")[0]
    return (
        f"{words}; survivors {by_round} of {len(accounts)}; charged at home / at the server's copy "
        f"{', '.join(charged)}"
    )


def check_adapter(run: Path, digest: str) -> None:
    """The adapter that the run ends with is the one of the ledger's last round."""
    from safetensors.torch import load_file

    from securefed.lora.adapter import state_hash

    state = load_file(run / "adapter" / "adapter_model.safetensors")
    # PEFT leaves the adapter's own name out of the names of its tensors.
    assert (
        state_hash({n.replace(".weight", ".default.weight"): t for n, t in state.items()}) == digest
    )


def _check_account(run: Path, name: str, folder: Path, survived: set[str], sent: set[str]) -> str:
    """An owner's own account holds all that it sent, once each; the server's copy no less."""
    from securefed.evidence.budget import read_charges
    from securefed.evidence.ledger import read_ledger

    own = [
        record.body["session"]
        for path in sorted(folder.glob("*.jsonl"))
        if len(path.stem) == 32
        for record in read_charges(path)
    ]
    in_all = [r.body["session"] for r in read_ledger(folder / "total.jsonl") if r.kind == "spends"]
    copy = [r.body["session"] for r in read_charges(run / "clients" / name / "budget.jsonl")]
    for each in (own, in_all, copy):
        assert len(set(each)) == len(each), name
    assert survived | sent <= set(own) <= set(in_all), name
    assert survived | sent <= set(copy), name
    opened = {r.body["session"] for r in read_ledger(run / "ledger.jsonl")
              if r.kind == "round_opened"}  # fmt: skip
    assert set(own) & opened <= set(copy), name
    return f"{len(set(own) & opened)}/{len(copy)}"


if __name__ == "__main__":
    print("\n".join(table(read_rows(Path(sys.argv[1])))))
