"""Epsilon measured through real rounds, against what the accountant promises.

    python examples/leakage/audit_epsilon.py --config examples/demo.toml
    python examples/leakage/audit_epsilon.py --unit client --noise-multiplier 1 --seeds 100
    python examples/leakage/audit_epsilon.py --unit example --self-test --seeds 20

With a run file: its policy, against each adversary that something is promised against.  Without:
rounds of a policy made of the options, once for each seed.  ``--self-test`` plants faults, one at a
time, and says how often each is found.  Canaries stand for units; nobody's data is used.

A bound is at 95 % by itself, so one of 20 may exceed a promise that is kept to the letter; verdicts
are at 99.9 %.  The file of results holds figures only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from securefed.attacks.results import clopper_pearson
from securefed.auditing.audit import AuditResult, audit_config, audit_policy
from securefed.auditing.faults import FAULTS
from securefed.config import load_config
from securefed.privacy.policy import PrivacyPolicy

COLUMNS = ("what", "promised", "lower bound", "share", "at most promised", "violated", "n", "s")


def summary(what: str, results: Sequence[AuditResult]) -> dict[str, object]:
    """Figures of one audit, repeated."""
    first, primary = results[0], results[0].primary
    found = np.array([each.bound(primary).epsilon for each in results])
    promised = first.statement.epsilon
    kept, violated = int((found <= promised).sum()), sum(r.verdict == "violated" for r in results)
    return {
        "what": what,
        "statement": first.statement.to_record(),
        "method": primary,
        "confidence": first.bound(primary).confidence,
        "verdict_confidence": first.judged.confidence,
        "lower_bounds": [round(float(value), 4) for value in found],
        "mean": float(found.mean()),
        "mean_share": float((found / promised).mean()),
        "at_most_promised": kept,
        "at_most_promised_interval": clopper_pearson(kept, len(found), 0.95),
        "violated": violated,
        "violated_interval": clopper_pearson(violated, len(found), 0.95),
        "other_methods": {
            bound.method: float(np.mean([each.bound(bound.method).epsilon for each in results]))
            for bound in first.bounds
            if bound.method != primary
        },
        "n": len(results),
        "seeds": [each.seed for each in results],
        "seconds": float(np.mean([each.seconds for each in results])),
        **{
            name: getattr(first, name)
            for name in (
                "releases", "canaries", "composed", "clients", "dropouts", "colluders",
                "dimension", "scale", "masked", "fault",
            )
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, help="a run file")
    parser.add_argument("--offline", action="store_true", help="fetch nothing for the run file")
    parser.add_argument("--unit", choices=("client", "example", "user"), default="client")
    parser.add_argument("--noise-multiplier", type=float, action="append", help="may be repeated")
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--canaries", type=int, help="in each release")
    parser.add_argument("--rounds", type=int, help="releases; as many as give 2000 scores")
    parser.add_argument("--corrupt", type=float, default=0.0, help="corrupt_fraction")
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout_fraction")
    parser.add_argument("--adversary", choices=("server", "release", "fellow_client"))
    parser.add_argument("--masked", action="store_true", help="with pairwise masks, not plaintext")
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--self-test", action="store_true", help="plant faults")
    parser.add_argument("--out", type=Path, default=Path("audit.jsonl"))
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    console, table = Console(), Table(title="Lower bounds on epsilon")
    for name in COLUMNS:
        table.add_column(name)
    rows: list[tuple[str, list[AuditResult]]] = []
    if options.config is not None:
        for result in audit_config(load_config(options.config), offline=options.offline):
            rows.append((f"{result.statement.against}, {result.composed} round(s)", [result]))
    else:
        for z in options.noise_multiplier or [1.0]:
            policy = PrivacyPolicy(
                clip_norm=1.0,
                noise_multiplier=z,
                delta=options.delta,
                unit=options.unit,
                corrupt_fraction=options.corrupt,
                dropout_fraction=options.dropout,
                max_examples=None if options.unit == "client" else 2 * options.dimension,
            )
            for fault in FAULTS if options.self_test else (None,):
                what = f"{options.unit}, z = {z:g}" + ("" if fault is None else f", {fault.name}")
                with Progress(console=console, transient=True) as progress:
                    found = [
                        audit_policy(
                            policy,
                            clients=options.clients,
                            adversary=options.adversary,
                            rounds=options.rounds,
                            seed=seed,
                            fault=fault,
                            dimension=options.dimension,
                            canaries=options.canaries,
                            masked=options.masked,
                        )
                        for seed in progress.track(seeds, description=what)
                    ]
                rows.append((what, found))
    with options.out.open("a", encoding="utf-8") as file:
        for what, found in rows:
            line = summary(what, found)
            file.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
            table.add_row(
                what,
                f"{found[0].statement.epsilon:.3g}",
                f"{line['mean']:.3g}",
                f"{line['mean_share']:.2f}",
                f"{line['at_most_promised']} of {len(found)}",
                f"{line['violated']} of {len(found)}",
                str(found[0].inside + found[0].outside),
                f"{line['seconds']:.1f}",
            )
    console.print(table)
    # A self-test ends well if every audit says "violated", any other if none does.
    verdicts = [each.verdict == "violated" for _, found in rows for each in found]
    sys.exit(not all(verdicts) if options.self_test else any(verdicts))


if __name__ == "__main__":
    main()
