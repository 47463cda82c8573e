"""Run files over a tiny model and texts of random words, for whole runs to be attacked."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny import WORDS, write_run

from securefed.auditing.from_config import AuditedRun
from securefed.config import load_config


def write_texts(folder: Path, clients: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for client in range(clients):
        rng = random.Random(client)
        words = [" ".join(rng.choice(WORDS) for _ in range(200)) for _ in range(2)]
        (folder / f"site-{client}.txt").write_text("\n\n".join(words) + "\n")
    return folder


def run_file(folder: Path, **sections: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = write_texts(folder / "texts")
    sections["data"] = {"source": str(texts)} | sections.get("data", {})
    return write_run(folder, **sections)


def load(folder: Path, **sections: Any) -> AuditedRun:
    return AuditedRun.load(load_config(run_file(folder, **sections)))
