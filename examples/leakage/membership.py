"""Who was trained on, by the adapter that a run releases: with and without differential privacy.

    python examples/leakage/membership.py --only none
    python examples/leakage/membership.py --run my_run.toml --per-client 20 --runs 16
    python examples/leakage/membership.py --only none --real 2

Each run trains on a random half of the candidates, some records of each client.  ``--runs`` runs of
the public recipe, without masks and ledger, come in pairs of opposite halves and are attacked in
turn with all other pairs as shadow runs; ``--real`` runs go through the whole library and are
attacked with all of these.  ``--offline-runs`` shadow runs see no candidate.  Model, data, adapter
and cohort are those of the run file; training and privacy are a row's.  The file of results holds
figures only: rates, intervals and the points of each ROC curve, beside those that the row's epsilon
allows.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from securefed.attacks.membership.alignment import GradientAlignment
from securefed.attacks.membership.base import MembershipAttack
from securefed.attacks.membership.lira import LikelihoodRatio
from securefed.attacks.membership.loss import LossThreshold, ReferenceLoss
from securefed.attacks.membership.rmia import RobustMembership
from securefed.attacks.membership_results import MembershipTrial, summarise_membership
from securefed.auditing.membership import MembershipBench, attack_runs
from securefed.config import RunConfig, parse_config
from securefed.privacy.accounting import PrivacyGuarantee
from securefed.training.assets import cache_dir

RUN_FILE = Path(__file__).with_name("membership.toml")
BY_LOSS: list[MembershipAttack] = [
    LossThreshold(),
    ReferenceLoss(),
    GradientAlignment(),
    GradientAlignment(whitened=True),
]
ONLINE: list[MembershipAttack] = [LikelihoodRatio(), RobustMembership()]
OFFLINE: list[MembershipAttack] = [LikelihoodRatio(online=False), RobustMembership(online=False)]


def rows(options: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Training and privacy of each row."""
    local = {
        "rounds": options.rounds,
        "local_steps": options.local_steps,
        "batch_size": options.batch,
        "local_learning_rate": options.rate,
        "server_optimizer": "sgd",
        "server_learning_rate": 1.0,
    }
    one = {
        "rounds": options.rounds * options.local_steps,
        "server_optimizer": "adam",
        "server_learning_rate": options.rate,
    }
    whole = {"unit": "client", "mechanism": "none", "clip_norm": 100.0}
    step = {"unit": "example", "mechanism": "distributed", "clip_norm": 1.0,
            "expected_batch": options.expected_batch, "delta": options.delta}  # fmt: skip
    return {
        "none": {"training": local, "privacy": whole},
        "clip": {"training": one, "privacy": step | {"mechanism": "none"}},
        "dp8": {"training": one, "privacy": step | {"target_epsilon": 8.0}},
        "dp1": {"training": one, "privacy": step | {"target_epsilon": 1.0}},
        "local8": {"training": local, "privacy": step | {"mechanism": "local",
                   "target_epsilon": 8.0, "update_clip_norm": 100.0}},
    }  # fmt: skip


def row_config(base: dict[str, Any], row: dict[str, dict[str, Any]]) -> RunConfig:
    """The run file with a row's training and privacy."""
    values = base | {name: base.get(name, {}) | section for name, section in row.items()}
    return parse_config(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, default=RUN_FILE, help="a run file")
    parser.add_argument("--only", action="append", help="a row's name; may be repeated")
    parser.add_argument("--per-client", type=int, default=32, help="candidates of each client")
    parser.add_argument("--population", type=int, default=100, help="records of the attacker's own")
    parser.add_argument("--runs", type=int, default=16, help="runs that are attacked in turn")
    parser.add_argument(
        "--offline-runs", type=int, default=0, help="shadow runs without candidates"
    )
    parser.add_argument("--real", type=int, default=1, help="runs with the whole protocol")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--local-steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4, help="records in a local step")
    parser.add_argument("--rate", type=float, default=2e-3, help="of local, or of server steps")
    parser.add_argument("--expected-batch", type=float, default=16.0)
    parser.add_argument("--delta", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("membership.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    known = rows(options)
    wanted = options.only or list(known)
    if set(wanted) - set(known) or options.runs < 4 or options.runs % 2:
        parser.error(f"--only: allowed are {', '.join(known)}; --runs: an even number >= 4")
    base = tomllib.loads(options.run.read_text(encoding="utf-8"))
    table = Table(title=f"Membership inference, {options.run.stem}, by the released adapter")
    for name in ("row", "runs", "attack", "epsilon", "AUC", "TPR at FPR .1 %", "1 %", "5 %",
                 "worst record", "epsilon >=", "verdict"):  # fmt: skip
        table.add_column(name)
    for name in wanted:
        measure(name, row_config(base, known[name]), options, table)
    Console(width=200).print(table)


def measure(name: str, config: RunConfig, options: argparse.Namespace, table: Table) -> None:
    """One row: train, attack, write."""
    console, seed = Console(), options.seed
    generator = torch.Generator().manual_seed(seed)
    bench = MembershipBench(
        config,
        per_client=options.per_client,
        population=options.population,
        seed=seed,
        cache=cache_dir(),
        offline=options.offline,
    )
    promise = bench.settings.guarantee("release", config.training.rounds)
    facts = {
        "run_file": options.run.name,
        "row": name,
        "candidates": len(bench.candidates),
        "trained_on": len(bench.candidates) // 2,
        "clients": len(bench.names),
        "training_rounds": config.training.rounds,
        "noise_multiplier": bench.settings.stated.noise_multiplier,
    }
    begun = time.perf_counter()
    targets = []
    for inside in bench.halves(options.runs, generator):
        targets.append(bench.trained(inside, generator))
        console.print(f"{name}: {len(targets)} runs in {time.perf_counter() - begun:.0f} s")
    shadows = bench.shadows(targets)
    online = [*BY_LOSS, *ONLINE]
    found = attack_runs(online, bench, targets, shadows, seed=seed)
    write(facts | {"target": "at home"}, promise, found, options.runs - 2, options, table)
    if options.offline_runs:
        apart = bench.shadows([bench.offline(generator) for _ in range(options.offline_runs)])
        found = attack_runs(OFFLINE, bench, targets, apart, seed=seed)
        write(facts | {"target": "at home"}, promise, found, options.offline_runs, options, table)
    real = []
    with tempfile.TemporaryDirectory(prefix="securefed-membership-") as folder:
        for number, inside in enumerate(bench.halves(options.real, generator)):
            real.append(bench.federated(inside, Path(folder) / str(number))[0])
    if real:
        found = attack_runs(online, bench, real, shadows, seed=seed)
        write(facts | {"target": "real"}, promise, found, options.runs, options, table)


def write(
    facts: dict[str, object],
    promise: PrivacyGuarantee,
    found: dict[str, list[MembershipTrial]],
    shadow_runs: int,
    options: argparse.Namespace,
    table: Table,
) -> None:
    """Results of some attacks, into the file and the table."""
    epsilon = promise.epsilon if math.isfinite(promise.epsilon) else None
    for attack, trials in found.items():
        result = summarise_membership(
            attack,
            "released adapter",
            trials,
            epsilon=epsilon,
            delta=promise.delta if epsilon is not None else 0.0,
            shadow_runs=shadow_runs,
            seed=options.seed,
        )
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts | result.as_json(), sort_keys=True) + "\n")
        worst = result.worst
        table.add_row(
            str(facts["row"]),
            f"{len(trials)} {facts['target']}",
            attack,
            "none" if epsilon is None else f"{epsilon:.2f}",
            shown(result.auc, result.auc_interval),
            *(shown(rate.value, rate.interval) for rate in result.rates),
            "-" if worst is None else shown(worst.advantage, worst.interval),
            f"{result.epsilon_lower:.2f}",
            result.verdict,
        )


def shown(value: float, interval: tuple[float, float]) -> str:
    """A value with its interval."""
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


if __name__ == "__main__":
    main()
