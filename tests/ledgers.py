"""Run folders altered by someone who can rebuild hash chains, or cut back as a kill leaves them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import rfc8785

from securefed.evidence.ledger import Ledger, read_ledger

Records = list[tuple[str, dict]]


def rewrite(path: Path, change: Callable[[Records], Records]) -> None:
    """Rebuild a ledger with a valid chain and head from changed (kind, body) pairs."""
    records = change([(r.kind, dict(r.body)) for r in read_ledger(path)])
    path.unlink()
    path.with_name(f"{path.stem}.head.json").unlink()
    with Ledger.create(path, records[0][1], clock=lambda: "2026-01-01T00:00:00Z") as ledger:
        for kind, body in records[1:]:
            ledger.append(kind, body)


def cut(path: Path, count: int) -> None:
    """Keep the first lines of a ledger as they are, under a head that fits them."""
    lines = path.read_bytes().splitlines(keepends=True)[:count]
    path.write_bytes(b"".join(lines))
    last = json.loads(lines[-1])
    head = rfc8785.dumps({"hash": last["hash"], "seq": last["seq"]})
    path.with_name(f"{path.stem}.head.json").write_bytes(head + b"\n")


def cut_run(folder: Path, count: int) -> None:
    """Cut a run's ledger, and from clients' accounts what they signed of lines behind it."""
    cut(folder / "ledger.jsonl", count)
    for path in folder.glob("clients/*/budget.jsonl"):
        account = read_ledger(path)
        late = (r.seq for r in account if r.kind == "witnessed" and r.body["seq"] >= count)
        cut(path, next(late, len(account)))


def place_of(folder: Path, kind: str, at: int = 0) -> int:
    """Seq of the record of a kind that stands at a place among its like."""
    return [r.seq for r in read_ledger(folder / "ledger.jsonl") if r.kind == kind][at]


def copy_run(run: Path, target: Path) -> Path:
    """A copy of a run folder, and of its parties' keys beside it."""
    shutil.copytree(run, target)
    keys = run.with_name(run.name + ".keys")
    if keys.is_dir():
        shutil.copytree(keys, target.with_name(target.name + ".keys"))
    return target


def charged(count: int) -> Callable[[Records], Records]:
    """A change that leaves an account its first charges only, and all other records."""

    def change(records: Records) -> Records:
        charges = [place for place, (kind, _) in enumerate(records) if kind == "charge"]
        return [r for place, r in enumerate(records) if place not in charges[count:]]

    return change
