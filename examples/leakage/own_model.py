"""What updates from your own model and texts give away, rank by rank, with and without masks.

    python examples/leakage/own_model.py --model ./my-model --texts ./texts --target q_proj

``--texts`` is a folder with one text file or one sub-folder for each client.  Nothing is sent
anywhere: rounds of all clients run in this process, and an attacker gets what a server would see.
Results hold figures and no text; each is signed, and a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from securefed.attacks.base import Limits
from securefed.auditing.cells import MASKS, OFF, Cell
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.matrix import Matrix
from securefed.config import RunConfig, parse_config
from securefed.evidence.signing import signing_key

COLUMNS = (("plain", OFF), ("other", OFF), ("masked", MASKS), ("sum", MASKS))


def run_file(model: str, texts: Path, targets: list[str], rank: int, window: int) -> RunConfig:
    """The run that is tried: clients send B after one step of SGD on all their texts of a round."""
    return parse_config(
        {
            "model": {"source": model},
            "data": {"source": str(texts), "window_tokens": window},
            "lora": {"rank": rank, "target_modules": targets, "sharing": "ffa"},
            "training": {"local_optimizer": "sgd", "local_steps": 1, "local_learning_rate": 1.0},
            "privacy": {"unit": "client", "mechanism": "none", "clip_norm": 1.0},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="a folder, or a name on the hub")
    parser.add_argument("--texts", type=Path, required=True, help="one file or folder a client")
    parser.add_argument("--target", action="append", required=True, help="a layer that LoRA adapts")
    parser.add_argument("--rank", action="append", type=int, help="may be repeated; default 2 8 32")
    parser.add_argument("--window", type=int, default=16, help="tokens of one text")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one trial")
    parser.add_argument("--out", type=Path, default=Path("leakage"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    key = signing_key(options.out.with_suffix(".pem"), make=True)
    table = Table("rank", "sees", "predicted", "recall", "prior", "lift [95 %]", "verdict")
    for rank in options.rank or [2, 8, 32]:
        config = run_file(options.model, options.texts, options.target, rank, options.window)
        run = AuditedRun.load(config, offline=options.offline)
        limits = Limits(seconds=options.seconds, max_tokens=options.window + 2)
        folder = options.out / f"rank-{rank}"
        matrix = Matrix(run, folder, key, limits, cell_seconds=options.seconds * options.trials)
        seeds = tuple(range(options.trials))
        cells = [Cell("span-inversion", *column, seeds=seeds) for column in COLUMNS]
        for cell, document in zip(cells, matrix.measure(cells, seconds=1e9), strict=True):
            found = document.measurement
            main, predicted = found.main, found.predicted or {}
            row = ["", "", ""]
            if main is not None and found.verdict == "guessed":
                low, high = main.lift_interval or (float("nan"), float("nan"))
                row = [
                    f"{main.value:.2f}",
                    f"{main.prior:.2f}",
                    f"{main.lift:+.2f} [{low:+.2f}, {high:+.2f}]",
                ]
            outcome = str(predicted.get("outcome", ""))
            table.add_row(str(rank), cell.exposure, outcome, *row, found.verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
