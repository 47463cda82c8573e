"""Run files over a tiny model and texts of random words, for whole runs to be attacked."""

from __future__ import annotations

import json
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


def write_labelled(folder: Path, clients: int = 9) -> Path:
    """Two classes, told apart by words that only one of them uses; other words in no text."""
    folder.mkdir(parents=True, exist_ok=True)
    for client in range(clients):
        rng = random.Random(client)
        lines = []
        for number in range(30):
            label = number % 2
            words = [rng.choice(WORDS[20 * label : 20 * label + 8]) for _ in range(6)]
            lines.append(json.dumps({"text": " ".join(words), "label": label}))
        (folder / f"site-{client}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run_file(folder: Path, **sections: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = write_texts(folder / "texts")
    sections["data"] = {"source": str(texts)} | sections.get("data", {})
    return write_run(folder, **sections)


def load(folder: Path, **sections: Any) -> AuditedRun:
    return AuditedRun.load(load_config(run_file(folder, **sections)))
