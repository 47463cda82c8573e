"""How often must a secret be in the data for the released adapter to know it?

    python examples/leakage/canaries.py
    python examples/leakage/canaries.py --run my_run.toml --copies 1 --copies 10

Random windows, canaries, take the place of some windows of one client; the run is a real one, with
all of the library's protocol.  Of each canary the first tokens are public, and the rest is looked
for: its rank among random others (exposure, in bits) and whether the model completes it.  Canaries
with 0 copies are the control.  The file of results holds figures only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from securefed.auditing.canary_runs import canary_run
from securefed.auditing.membership import MembershipBench
from securefed.config import parse_config
from securefed.training.assets import cache_dir

RUN_FILE = Path(__file__).with_name("canaries.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, default=RUN_FILE, help="of a causal language model")
    parser.add_argument("--only", action="append", choices=("none", "dp8"), help="a row's name")
    parser.add_argument("--copies", type=int, action="append", help="of a canary; may be repeated")
    parser.add_argument("--prefix", type=int, default=4, help="public tokens of a canary")
    parser.add_argument("--reference", type=int, default=400, help="other secrets that are rated")
    parser.add_argument("--per-client", type=int, default=32, help="it trains on half of them")
    parser.add_argument("--expected-batch", type=float, default=16.0, help="of dp8")
    parser.add_argument("--delta", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("canaries.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    base = tomllib.loads(options.run.read_text(encoding="utf-8"))
    table = Table(title=f"Canaries, {options.run.stem}")
    for name in ("row", "epsilon", "copies", "bits", "exposure", "extrapolated", "completed"):
        table.add_column(name)
    for name in options.only or ("none", "dp8"):
        measure(name, base, options, table)
    Console(width=120).print(table)


def measure(name: str, base: dict[str, Any], options: argparse.Namespace, table: Table) -> None:
    """One run."""
    values = dict(base)
    if name == "dp8":
        values["training"] = base["training"] | {"server_optimizer": "adam",
            "server_learning_rate": base["training"]["local_learning_rate"],
            "rounds": base["training"]["rounds"] * base["training"]["local_steps"]}  # fmt: skip
        values["privacy"] = {"unit": "example", "mechanism": "distributed", "clip_norm": 1.0,
            "expected_batch": options.expected_batch, "target_epsilon": 8.0, "delta": options.delta,
            "corrupt_fraction": 0.0, "dropout_fraction": 0.0}  # fmt: skip
    bench = MembershipBench(
        parse_config(values),
        per_client=options.per_client,
        population=1,
        seed=options.seed,
        cache=cache_dir(),
        offline=options.offline,
    )
    copies = options.copies or [0, 0, 1, 2, 4, 8]
    with tempfile.TemporaryDirectory(prefix="securefed-canaries-") as folder:
        found, result = canary_run(
            bench,
            copies=copies,
            prefix=options.prefix,
            reference=options.reference,
            generator=torch.Generator().manual_seed(options.seed),
            folder=Path(folder) / "run",
        )
    epsilon = result.guarantees["release"].epsilon
    for each in found:
        line = {"run_file": options.run.name, "row": name, "epsilon": str(epsilon)}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | each.as_json(), sort_keys=True) + "\n")
        table.add_row(
            name,
            f"{epsilon:.2f}",
            str(each.copies),
            f"{each.bits:.0f}",
            f"{each.sampled:.1f} [{each.interval[0]:.1f}, {each.interval[1]:.1f}]",
            "-" if each.extrapolated is None else f"{each.extrapolated:.1f}",
            str(each.extracted),
        )


if __name__ == "__main__":
    main()
