"""What an adapter of each client's own buys on unlike clients, and whom it would harm.

The clients, mails and rounds of ``combining.py``, with the plain mean: after the last round each
client trains on from the shared adapter, on its own mails, and uses what it gets as one of several
rules says.  Each client is measured on held-out mails of its own mix; nothing is sent after the
last round.

Runs are appended to a file as they end, and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import CPU, TASK, Results
from combining import Clients, Design, Experiment, measured
from quick import Quick
from rich.console import Console

from securefed.config import PersonalSection
from securefed.lora.interpolation import interpolated
from securefed.training.assets import cache_dir, fetch
from securefed.training.corpora import mail_clients
from securefed.training.data import Examples
from securefed.training.personal import PersonalTrainer


@dataclass(frozen=True)
class Rule:
    """How a client uses what it trained; None keeps the shared adapter."""

    name: str
    settings: Mapping[str, Any] | None


COMMONEST = Rule("no model: its commonest label", None)
RULES = (
    COMMONEST,
    Rule("shared", None),
    Rule("half and half", {"mix": 0.5}),
    Rule("its own", {"mix": 1.0}),
    Rule("chosen, margin 0", {"margin": 0.0}),
    Rule("chosen, margin 1", {"margin": 1.0}),
    Rule("chosen, margin 2", {"margin": 2.0}),
    Rule("chosen, margin 1, pull 0.1", {"margin": 1.0, "pull": 0.1}),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was fixed before the runs; the design is that of ``combining.py``.

    The learning rate of the rounds is the plain mean's there.  That of personal steps is the best
    of three for "its own" by accuracy, over clients and tuning seeds, for each data set by itself.
    """

    design: Design = field(default_factory=Design)
    rounds_rate: float = 0.04
    steps: int = 40
    batch_size: int = 8
    rates: tuple[float, ...] = (0.001, 0.005, 0.02)


def personal_run(
    model: Quick, clients: Clients, plan: Plan, rule: Rule, rate: float, seed: int
) -> dict[str, Any]:
    """Measure every client under a rule; the model holds the shared adapter, and does afterwards.

    Returns:
        Counts and averages over clients.
    """
    accuracies, losses, mixes = [], [], []
    before, _ = measured(model, clients.held_out)
    for name in sorted(clients.train):
        held_out = {name: clients.held_out[name]}
        if rule is COMMONEST:
            found, mix = by_commonest(clients.train[name], clients.held_out[name]), 0.0
        elif rule.settings is None:
            found, mix = measured(model, held_out), 0.0
        else:
            section = PersonalSection(
                kind="adapter",
                steps=plan.steps,
                batch_size=plan.batch_size,
                learning_rate=rate,
                **rule.settings,
            )
            trainer = PersonalTrainer(
                model,
                dict(model.named_parameters()),
                section,
                task=TASK,
                device=CPU,
                seed=seed,
                micro_batch=plan.batch_size,
            )
            own, choice = trainer.made(clients.train[name])
            mix = choice.mix
            with trainer.holding(interpolated(trainer.values(), own, mix)):
                found = measured(model, held_out)
        accuracies.append(found[0][0])
        losses.append(found[1][0])
        mixes.append(mix)
    shared = dict(zip(clients.held_out, before, strict=True))
    change = [own - shared[name] for own, name in zip(accuracies, sorted(shared), strict=True)]
    return {
        "mean": float(np.mean(accuracies)),
        "worst": min(accuracies),
        "mean_nll": float(np.mean(losses)),
        "worst_nll": max(losses),
        "better": sum(each > 0 for each in change),
        "harmed": sum(each < 0 for each in change),
        "most_harm": max(0.0, -min(change)),
        "own": sum(mix > 0.0 for mix in mixes),
        "clients": len(mixes),
    }


def by_commonest(train: Examples, held_out: Examples) -> tuple[list[float], list[float]]:
    """What a client reaches by its own share of labels alone, with one of each added."""
    share = (float(np.sum(train.labels)) + 1.0) / (len(train) + 2.0)
    ones = np.asarray(held_out.labels) == 1
    losses = -np.log(np.where(ones, share, 1.0 - share))
    return [float(np.mean(ones == (share > 0.5)))], [float(losses.mean())]


def run_all(experiment: Experiment, plan: Plan, results: Results, console: Console) -> None:
    """Choose the rate of personal steps on the tuning seeds, then every rule on every seed."""
    trained: dict[tuple[str, int], Any] = {}

    def shared(data: str, seed: int) -> tuple[Quick, Clients]:
        model, clients = experiment.made(data, seed)
        if (data, seed) not in trained:
            experiment.run(data, {"local_learning_rate": plan.rounds_rate}, seed)
            trained[data, seed] = model.flat()
        model.load(trained[data, seed])
        return model, clients

    def run(data: str, rule: Rule, rate: float, seed: int) -> float:
        which = {"data": data, "rule": rule.name, "rate": rate, "seed": seed}
        if not results.has(**which):
            started = time.process_time()
            with console.status(f"{data}, {rule.name}, {rate}, seed {seed}"):
                found = personal_run(*shared(data, seed), plan, rule, rate, seed)
            results.add(which | found | {"cpu_seconds": round(time.process_time() - started, 2)})
        (one,) = (run for run in results.runs if which.items() <= run.items())
        return float(one["mean"]) - 1e-3 * float(one["mean_nll"])  # the loss decides between equals

    (tuned,) = (rule for rule in RULES if rule.name == "its own")
    for data in ("dirichlet", "senders"):
        found = {
            rate: sum(run(data, tuned, rate, seed) for seed in plan.design.tuning_seeds)
            for rate in plan.rates
        }
        best = max(found, key=lambda rate: found[rate])
        for seed in plan.design.seeds:
            for rule in RULES:
                run(data, rule, best, seed)


def table(results: Results, plan: Plan) -> str:
    """Means over the seeds; Markdown."""
    lines = [
        "| data | rule | accuracy, mean of clients, % | worst client, % | NLL | clients that use "
        "their own | better | harmed, most by, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for data in ("dirichlet", "senders"):
        for rule in RULES:
            runs = [
                run
                for run in results.runs
                if (run["data"], run["rule"]) == (data, rule.name)
                and run["seed"] in plan.design.seeds
            ]
            if not runs:
                continue
            mean = {key: float(np.mean([run[key] for run in runs])) for key in _COUNTED}
            harm = 100.0 * max(run["most_harm"] for run in runs)
            count = sum(run["clients"] for run in runs)
            whole = {key: sum(run[key] for run in runs) for key in ("own", "better", "harmed")}
            figures = (
                f"{100.0 * mean['mean']:.1f}",
                f"{100.0 * mean['worst']:.1f}",
                f"{mean['mean_nll']:.2f}",
                f"{whole['own']} of {count}",
                f"{whole['better']}",
                f"{whole['harmed']}, {harm:.1f}",
            )
            lines.append(f"| {' | '.join((data, rule.name, *figures))} |")
    return "\n".join(lines)


_COUNTED = ("mean", "worst", "mean_nll")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy/personal.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    plan, cache, console = Plan(), cache_dir(), Console()
    senders, notes = mail_clients(fetch("spam-assassin", cache=cache, offline=given.offline))
    for note in notes:
        console.print(f"note: {note}")
    results = Results(given.out)
    experiment = Experiment(plan.design, senders, cache=cache, offline=given.offline)
    run_all(experiment, plan, results, console)
    print(table(results, plan))
    seconds = sum(run["cpu_seconds"] for run in results.runs)
    console.print(f"{len(results.runs)} runs, {seconds:.0f} CPU seconds, one thread")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
