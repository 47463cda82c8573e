"""What federated methods of fine-tuning send, what they gain, and whom they serve worst.

Two tasks on real texts, each with clients that train and clients that never take part: speeches (a
language model, a client a president) and mails (a classifier, a client a sender).  Every method has
the same clients, rounds, local steps and batches, its own learning rate, and no noise.

Claims, stated before the runs:

1. LoRA (FFA, FedIT) keeps at least 95 % of what full fine-tuning gains, at 1 % or less of its
   bytes.  Gain: held-out loss before less after, mean over the clients that train; each seed is
   compared with full fine-tuning on the same seed.  Accuracy of the mails likewise.
2. The personal copy: its worst client is better than FFA's on every seed, by held-out loss.

Runs are appended to a file as they end, and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import CPU, Results, climbed
from numpy.typing import NDArray
from rich.console import Console
from sharing_rounds import Tiered, Trained, alone, arithmetic, full, personal, shared, tiered
from sharing_table import BEFORE, FULL, line, tables
from sharing_tasks import ALPHA, LABELS, MAILS, SPEECHES, Clients, Ground, Mails, Speeches, Task
from sharing_wire import cohort_of, wire
from torch import nn

from securefed.lora.adapter import build_adapter
from securefed.lora.parts import AdapterParts
from securefed.training.assets import cache_dir, fetch
from securefed.training.corpora import mail_clients
from securefed.training.data import Examples
from securefed.training.evaluate import evaluate

MOST_TRIED = 4
"""Learning rates of an arm, each three times its neighbour (``bench.climbed``)."""


@dataclass(frozen=True)
class Arm:
    """A method.

    Args:
        name: of the method.
        way: which function trains.
        rates: learning rate that the search begins at, by task; it runs on no other task.
        lora: what is set besides the task's own section.
    """

    name: str
    way: str
    rates: Mapping[str, float]
    lora: Mapping[str, Any] = field(default_factory=dict)


def _at(speeches: float, mails: float, labels: float | None = None) -> dict[str, float]:
    found = {"speeches": speeches, "mails": mails}
    return found if labels is None else found | {"labels": labels}


FFA, FEDIT, PERSONAL = "FFA", "FedIT", "personal copy after FFA"
ARMS = (
    Arm(FULL, "full", _at(1e-4, 1e-4)),
    Arm(FFA, "shared", _at(3e-3, 3e-3, 3e-3)),
    Arm(FEDIT, "shared", _at(1e-3, 1e-3), {"sharing": "fedit"}),
    Arm("RoLoRA", "shared", _at(3e-3, 1e-3), {"sharing": "rolora"}),
    Arm("FedSA", "shared", _at(1e-3, 1e-3), {"sharing": "fedsa"}),
    Arm("Fed-SB", "shared", _at(1e-2, 1e-2), {"sharing": "fedsb"}),
    Arm("FedSVD", "shared", _at(3e-3, 3e-3), {"sharing": "fedsvd"}),
    Arm("mixed ranks", "tiered", _at(3e-3, 3e-3)),
    Arm(PERSONAL, "personal", _at(1e-3, 1e-3, 3e-3)),
    Arm("each client alone", "alone", _at(3e-3, 3e-3, 3e-3)),
    Arm("bottleneck", "shared", _at(1e-3, 3e-3), {"kind": "bottleneck"}),
    Arm("FFA + bottleneck", "shared", _at(3e-3, 3e-3), {"kind": ["lora", "bottleneck"]}),
)


class Experiment:
    """One task, and how a run of it is made."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.task = ground, ground.task
        self._clients: dict[int, Clients] = {}
        self._common: dict[tuple[int, float], NDArray[np.float32]] = {}
        self._cores: nn.Module | None = None

    def clients(self, seed: int) -> Clients:
        """Those of a seed; the last ones are kept."""
        if seed not in self._clients:
            self._clients = {seed: self.ground.clients(seed)}
        return self._clients[seed]

    def adapted(self, arm: Arm, seed: int) -> nn.Module:
        """The base model with the arm's adapter."""
        if arm.lora.get("sharing") == "fedsb":  # of the base alone, and slow to make
            self._cores = self._cores or self._built(arm, 0)
            return self.ground.with_head(copy.deepcopy(self._cores), seed)
        return self._built(arm, seed)

    def _built(self, arm: Arm, seed: int) -> nn.Module:
        changes = dict(arm.lora)
        if arm.way == "tiered":
            changes |= _of_rank(max(self.task.tiers), self.task)
        if changes.get("sharing") == "fedsb":
            changes |= _of_rank(self.task.core_rank, self.task)
        section = self.task.section(changes, seed)
        return build_adapter(self.ground.fresh(seed), section, task=self.task.model.task)

    def trained(self, arm: Arm, rate: float, seed: int, common_rate: float) -> Trained:
        """Run an arm; ``common_rate`` is that of the rounds before a personal copy."""
        clients = self.clients(seed)
        if arm.way == "full":
            return full(self.task, self.ground.fresh(seed), clients, rate=rate, seed=seed)
        model = self.adapted(arm, seed)
        if arm.way == "personal":
            common = self._common_part(common_rate, seed)
            return personal(self.task, model, clients, common=common, rate=rate, seed=seed)
        if arm.way == "shared":
            sharing = str(arm.lora.get("sharing", "ffa"))
            found = shared(self.task, model, clients, sharing=sharing, rate=rate, seed=seed)
            if arm.name == FFA:
                self._common[seed, rate] = AdapterParts(model, "ffa").flat()
            return found
        ways: dict[str, Callable[..., Trained]] = {"tiered": tiered, "alone": alone}
        return ways[arm.way](self.task, model, clients, rate=rate, seed=seed)

    def _common_part(self, rate: float, seed: int) -> NDArray[np.float32]:
        if (seed, rate) not in self._common:  # an earlier call of the script ran it
            (ffa,) = (arm for arm in ARMS if arm.name == FFA)
            self.trained(ffa, rate, seed, rate)
        return self._common[seed, rate]

    def before(self, seed: int) -> dict[str, Any]:
        """Figures of the model that nobody has trained."""
        return self.measured(Trained(self.ground.fresh(seed), 0), seed, whole=True)

    def measured(self, trained: Trained, seed: int, *, whole: bool) -> dict[str, Any]:
        """Means over clients of each one's own figures, and its worst; nothing of one client.

        Args:
            trained: a model after its rounds.
            seed: of the clients.
            whole: those that are left out too.
        """
        clients = self.clients(seed)
        inside = [self._scored(trained, name, own) for name, own in clients.held_out.items()]
        found = _summary(inside, "")
        if whole and trained.common:
            outside = [self._scored(trained, "", own) for own in clients.left_out.values()]
            found |= _summary(outside, "left_")
        return found

    def _scored(self, trained: Trained, name: str, examples: Examples) -> tuple[float, float]:
        with trained.at(name), arithmetic(self.task):
            own = evaluate(
                trained.model, examples, task=self.task.model.task, micro_batch=32, device=CPU
            )
        return own.nll_sum / own.tokens, own.accuracy


def _summary(scores: list[tuple[float, float]], prefix: str) -> dict[str, float]:
    losses, accuracies = np.array(scores).T
    return {
        f"{prefix}nll": float(losses.mean()),
        f"{prefix}worst_nll": float(losses.max()),
        f"{prefix}perplexity": float(np.exp(losses).mean()),
        f"{prefix}worst_perplexity": float(np.exp(losses).max()),
        f"{prefix}accuracy": float(accuracies.mean()),
        f"{prefix}worst_accuracy": float(accuracies.min()),
    }


def _of_rank(rank: int, task: Task) -> dict[str, Any]:
    """Another rank at the same scale alpha / r."""
    return {"rank": rank, "alpha": task.lora["alpha"] * rank / task.lora["rank"]}


class Runs:
    """The runs of one task, each made once."""

    def __init__(self, experiment: Experiment, results: Results, console: Console) -> None:
        self._experiment, self._results, self._console = experiment, results, console
        self.task = experiment.task

    def run(self, arm: Arm, rate: float, seed: int, common_rate: float = 0.0) -> Mapping[str, Any]:
        """One run; a tuning seed's is of the clients that train alone."""
        which = {"task": self.task.name, "arm": arm.name, "rate": rate, "seed": seed}
        if not self._results.has(**which):
            started, whole = time.process_time(), seed not in self.task.tuning_seeds
            with self._console.status(" ".join(map(str, which.values()))):
                trained = self._experiment.trained(arm, rate, seed, common_rate)
                found = self._experiment.measured(trained, seed, whole=whole)
            found |= which | trained.notes
            found |= {
                "values": trained.values,
                "kept": trained.kept,
                "train_seconds": sum(trained.seconds) / self.task.rounds / self.task.clients,
            }
            self._add(found, started)
        return self._the(which)

    def before(self, seed: int) -> Mapping[str, Any]:
        """Figures of the model that nobody has trained."""
        which = {"task": self.task.name, "arm": BEFORE, "seed": seed}
        if not self._results.has(**which):
            started = time.process_time()
            self._add(self._experiment.before(seed) | which, started)
        return self._the(which)

    def tuned(self, arm: Arm, common_rate: float = 0.0) -> float:
        """The learning rate of least mean loss on the tuning seeds."""

        def loss(rate: float) -> float:
            seeds = self.task.tuning_seeds
            return sum(float(self.run(arm, rate, seed, common_rate)["nll"]) for seed in seeds)

        return climbed(loss, arm.rates[self.task.name], MOST_TRIED)

    def wired(self, arm: Arm, values: int) -> None:
        """A masked round of what the arm sends."""
        which = {"task": self.task.name, "wire": "tiers" if arm.way == "tiered" else values}
        if values and not self._results.has(**which):
            started, tiers = time.process_time(), None
            if arm.way == "tiered":
                parts = AdapterParts(self._experiment.adapted(arm, 0), "ffa")
                tiers = Tiered.of(self.task, parts, cohort_of(self.task).names)
            self._add(wire(self.task, values, tiers) | which, started)

    def _add(self, found: dict[str, Any], started: float) -> None:
        spent = round(time.process_time() - started, 2)
        self._results.add(found | {"cpu_seconds": spent})
        self._console.print(line(found), f"{spent:.0f} s", highlight=False)

    def _the(self, which: Mapping[str, Any]) -> Mapping[str, Any]:
        (one,) = (run for run in self._results.runs if which.items() <= run.items())
        return one


def run_all(experiment: Experiment, results: Results, console: Console) -> None:
    """Choose each arm's learning rate, run it on every seed, and send what it sends once."""
    runs = Runs(experiment, results, console)
    rates, sent = dict[str, float](), dict[str, int]()
    for seed in experiment.task.seeds:
        runs.before(seed)
    for arm in ARMS:
        if experiment.task.name not in arm.rates:
            continue
        rates[arm.name] = runs.tuned(arm, rates.get(FFA, 0.0))
        for seed in experiment.task.seeds:
            found = runs.run(arm, rates[arm.name], seed, rates.get(FFA, 0.0))
        sent[arm.name] = int(found["values"])
    for arm in ARMS:
        runs.wired(arm, sent.get(arm.name, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy/sharing.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console, results = Console(), Results(given.out)
    where: dict[str, Any] = {"cache": cache_dir(), "offline": given.offline}
    senders, notes = mail_clients(fetch("spam-assassin", **where))
    for note in notes:
        console.print(f"note: {note}")
    for make in (
        lambda: Speeches(SPEECHES, **where),
        lambda: Mails(MAILS, senders, **where),
        lambda: Mails(LABELS, senders, **where, alpha=ALPHA),
    ):
        run_all(Experiment(make()), results, console)
    print(tables(results))
    seconds = sum(run["cpu_seconds"] for run in results.runs)
    console.print(f"{len(results.runs)} lines, {seconds:.0f} CPU seconds, one thread")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
