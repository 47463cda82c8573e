"""What combining by more than the plain mean buys on unlike clients, and what it does not.

Ten clients tell wanted mails from spam, twice: with labels dealt out by a Dirichlet distribution
of alpha = 0.1 (nearly one label a client), and by natural client, a sender of few or many wanted
mails with an even share of the spam.  Each client is measured on held-out mails of its own mix.
Every arm shares model, mails, rounds and local steps, and runs in the same call on the same seeds,
the plain mean too.  Sums are of whole clients' updates without noise, by the encoded vectors that a
masked round would add to the same bits.

Runs are appended to a file as they end, and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import (
    CPU,
    LORA,
    MODEL,
    TASK,
    Cohort,
    Memoised,
    Model,
    Results,
    joined,
    plain_sum,
    tokenized,
)
from numpy.typing import NDArray
from quick import Quick
from rich.console import Console

from securefed.config import LoraSection, ModelSection, TrainingSection
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.combining import Combining
from securefed.errors import DataError
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.weights import client_weights
from securefed.privacy.policy import PrivacyPolicy
from securefed.training.assets import cache_dir, fetch
from securefed.training.corpora import Document, mail_clients
from securefed.training.data import Examples
from securefed.training.evaluate import batches
from securefed.training.steps import AdamWTrainer, SgdTrainer

_SGD = {"local_optimizer": "sgd"}
_SPARSE = {"sparsify": "random", "keep_fraction": 0.25}
_SCAFFOLD = _SGD | {"control_weight": 1.0}


@dataclass(frozen=True)
class Arm:
    """A way to train and combine; of the ``choices`` one value is taken, on the tuning seeds."""

    name: str
    settings: Mapping[str, Any]
    key: str
    choices: tuple[float, ...]


ARMS = (
    Arm("plain mean", {}, "local_learning_rate", (0.005, 0.015, 0.04)),
    Arm("weights by examples", {"client_weights": "examples"}, "", ()),
    Arm("FedAvgM", {"server_momentum": 0.9}, "server_learning_rate", (0.1, 0.3, 1.0)),
    Arm("FedAdam", {"server_optimizer": "adam"}, "server_learning_rate", (0.03, 0.1, 0.3)),
    Arm("FedYogi", {"server_optimizer": "yogi"}, "server_learning_rate", (0.03, 0.1, 0.3)),
    Arm("FedAdagrad", {"server_optimizer": "adagrad"}, "server_learning_rate", (0.03, 0.1, 0.3)),
    Arm("FedProx", {}, "proximal_mu", (0.01, 0.1, 1.0)),
    Arm("a quarter of the coordinates", _SPARSE, "", ()),
    Arm("a quarter, error feedback", _SPARSE | {"error_feedback": True}, "", ()),
    Arm("plain mean, local SGD", _SGD, "local_learning_rate", (0.2, 0.8, 3.0)),
    Arm("SCAFFOLD, local SGD", _SCAFFOLD, "local_learning_rate", (0.2, 0.8, 3.0)),
)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What was fixed before the runs.

    No tuning seed is a seed of the runs.  Arms of local AdamW other than the first take the plain
    mean's local learning rate; the setting that an arm adds is the best of three by accuracy, over
    clients and tuning seeds, for each data set by itself.
    """

    rounds: int = 10
    local_steps: int = 6
    batch_size: int = 8
    clients: int = 10
    mails: int = 60
    alpha: float = 0.1
    held_out: float = 0.4
    seeds: tuple[int, ...] = (1, 2, 3)
    tuning_seeds: tuple[int, ...] = (10, 11, 12)
    clip_norm: float = 100.0  # beyond every update: what is compared is not clipping
    model: ModelSection = MODEL
    lora: LoraSection = LORA
    window_tokens: int = 32


@dataclass(frozen=True)
class Clients:
    """Each client's mails to learn from and to be measured on."""

    train: Mapping[str, Examples]
    held_out: Mapping[str, Examples]


def by_dirichlet(
    mails: tuple[list[Document], list[Document]], design: Design, seed: int
) -> dict[str, list[Document]]:
    """``design.clients`` clients of ``design.mails`` mails, each with its own share of spam.

    The share is drawn from Dirichlet(alpha, alpha), as in Hsu, Qi and Brown 2019 (1909.06335) for
    two labels of equal weight; mails are drawn without replacement.

    Args:
        mails: wanted, and spam.
        design: of the experiment.
        seed: of all draws.

    Raises:
        DataError: there are too few mails of one kind.
    """
    rng = np.random.default_rng([seed, 7])
    pools = [[own[i] for i in rng.permutation(len(own))] for own in mails]
    clients = {}
    for place in range(design.clients):
        spam = round(design.mails * float(rng.dirichlet([design.alpha, design.alpha])[1]))
        counts = (design.mails - spam, spam)
        if any(len(pool) < count for pool, count in zip(pools, counts, strict=True)):
            raise DataError("too few mails for this many clients")
        own = [pool.pop() for pool, count in zip(pools, counts, strict=True) for _ in range(count)]
        clients[f"client-{place:02}"] = own
    return clients


def by_sender(senders: Mapping[str, list[Document]], design: Design) -> dict[str, list[Document]]:
    """Every so-manieth sender by number of mails, from the smallest to the largest."""
    ordered = sorted(senders, key=lambda name: (len(senders[name]), name))
    places = np.linspace(0, len(ordered) - 1, design.clients).round().astype(int)
    return {ordered[place]: senders[ordered[place]] for place in places}


def parted(
    clients: Mapping[str, list[Document]], design: Design, seed: int
) -> dict[str, list[list[Document]]]:
    """Each client's mails, shuffled: those to learn from and those held out."""
    rng, found = np.random.default_rng([seed, 11]), {}
    for name, own in clients.items():
        order = [own[i] for i in rng.permutation(len(own))]
        cut = max(1, round(design.held_out * len(own)))
        found[name] = [order[cut:], order[:cut]]
    return found


class Experiment:
    """Model and mails, and how a run is made."""

    def __init__(
        self, design: Design, senders: Mapping[str, list[Document]], *, cache: Path, offline: bool
    ) -> None:
        self.design, self._cache, self._offline = design, cache, offline
        self._senders = senders
        every = [document for name in sorted(senders) for document in senders[name]]
        wanted, spam = ([d for d in every if d.label == label] for label in (0, 1))
        self._mails = (wanted, spam)
        self._known: Memoised | None = None

    def model(self, seed: int) -> Model:
        """A fresh real model; the frozen layers' outputs are shared between them."""
        model = Model(
            self.design.model,
            self.design.lora,
            cache=self._cache,
            offline=self._offline,
            seed=seed,
            known=self._known,
        )
        self._known = model.lower
        return model

    # One object lives as long as the script, so the cache keeps nothing alive that would go.
    @functools.lru_cache(maxsize=4)  # noqa: B019
    def made(self, data: str, seed: int) -> tuple[Quick, Clients]:
        """Model and clients of a data set, ``"dirichlet"`` or ``"senders"``, on a seed."""
        design, model = self.design, self.model(seed)
        documents = (
            by_dirichlet(self._mails, design, seed)
            if data == "dirichlet"
            else by_sender(self._senders, design)
        )
        parts = parted(documents, design, seed)
        whole = [d for train, held_out in parts.values() for d in train + held_out]
        examples = tokenized(whole, model.tokenizer, design.window_tokens)
        numbers = iter(range(len(whole)))

        def numbered(own: list[Document]) -> Examples:
            taken = np.array([[next(numbers)] for _ in own], dtype=np.int64)
            labels = np.array([document.label for document in own], dtype=np.int64)
            return Examples(taken, np.ones_like(taken), labels)

        train, held_out = {}, {}
        for name, (own, kept) in parts.items():
            train[name], held_out[name] = numbered(own), numbered(kept)
        return Quick(model, examples), Clients(train, held_out)

    def run(self, data: str, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Train by one arm and measure every client.

        Args:
            data: ``"dirichlet"`` or ``"senders"``.
            settings: of the ``training`` section, beside what all arms share.
            seed: of head, adapter, partition and batches.
        """
        design = self.design
        model, clients = self.made(data, seed)
        shared = {
            "server_optimizer": "sgd",
            "server_learning_rate": 1.0,
            "local_steps": design.local_steps,
            "batch_size": design.batch_size,
        }
        training = TrainingSection(**(shared | dict(settings)))
        weights = client_weights(training, {n: len(own) for n, own in clients.train.items()})
        combining = Combining(training, seed=seed, dimension=model.layout.size)
        optimizer = ServerOptimizer.of(model.initial, training)
        cohort = Cohort.of(tuple(sorted(clients.train)))
        policy = PrivacyPolicy(clip_norm=design.clip_norm, mechanism="none", rounds=design.rounds)
        for number in range(1, design.rounds + 1):
            session = cohort.session(number, policy, combining.length)
            encoded = {}
            for name in cohort.names:
                model.load(optimizer.parameters)
                added = combining.correction(name)
                self._train(model, clients.train[name], training, added, number, seed)
                vector = combining.vector(
                    name,
                    model.flat() - optimizer.parameters,
                    weight=weights[name],
                    clip_norm=design.clip_norm,
                    number=number,
                )
                encoded[name] = session.codec.encode_update(vector, NoiseGenerator())
            gradient = -plain_sum(session, encoded) / sum(weights.values())
            optimizer.step(combining.opened(gradient, number=number, share=1.0))
            combining.state.take_over(cohort.names)
        model.load(optimizer.parameters)
        accuracies, losses = measured(model, clients.held_out)
        return {
            "data": data,
            "seed": seed,
            "clients": len(cohort.names),
            "mails": sum(map(len, clients.train.values())),
            "held_out": sum(map(len, clients.held_out.values())),
            "input_bytes": session.plan.padded * session.plan.bits // 8,
            "mean": float(np.mean(accuracies)),
            "worst": min(accuracies),
            "mean_nll": float(np.mean(losses)),
            "worst_nll": max(losses),
        }

    def _train(
        self,
        model: Quick,
        examples: Examples,
        training: TrainingSection,
        added: NDArray[np.float64] | None,
        number: int,
        seed: int,
    ) -> None:
        steps = AdamWTrainer if training.local_optimizer == "adamw" else SgdTrainer
        steps(
            local_steps=training.local_steps,
            batch_size=training.batch_size,
            learning_rate=training.local_learning_rate,
            task=TASK,
            device=CPU,
            seed=seed,
            proximal_mu=training.proximal_mu,
            correction=None if added is None else model.layout.unflatten(added),
        ).train(model, examples, number)


def measured(model: Quick, held_out: Mapping[str, Examples]) -> tuple[list[float], list[float]]:
    """Accuracy and mean negative log-likelihood of each client's held-out mails."""
    whole = joined(list(held_out.values()))
    logits = []
    with torch.no_grad():
        for batch in batches(whole, 32, CPU):
            logits.append(model(batch.input_ids).logits.double())
    scores = torch.log_softmax(torch.cat(logits), dim=1).numpy()
    if whole.labels is None:
        raise DataError("held-out examples: labels are needed")
    hit = scores.argmax(axis=1) == whole.labels
    nll = -scores[np.arange(len(scores)), whole.labels]
    ends = np.cumsum([len(own) for own in held_out.values()])[:-1]
    return (
        [float(part.mean()) for part in np.split(hit, ends)],
        [float(part.mean()) for part in np.split(nll, ends)],
    )


def run_all(experiment: Experiment, results: Results, console: Console) -> None:
    """Choose each arm's setting on the tuning seed, then run every arm on every seed."""
    design = experiment.design

    def run(data: str, arm: Arm, value: float | None, seed: int, base: Mapping[str, Any]) -> float:
        which = {"data": data, "arm": arm.name, "value": value, "seed": seed}
        if not results.has(**which):
            started = time.process_time()
            settings = dict(base) | ({} if value is None else {arm.key: value})
            with console.status(f"{data}, {arm.name}, {arm.key} {value}, seed {seed}"):
                found = experiment.run(data, settings, seed) | which | {"key": arm.key}
            results.add(found | {"cpu_seconds": round(time.process_time() - started, 2)})
        (one,) = (run for run in results.runs if which.items() <= run.items())
        return float(one["mean"]) - 1e-3 * float(one["mean_nll"])  # the loss decides between equals

    for data in ("dirichlet", "senders"):
        rate: dict[str, float] = {}
        chosen: dict[str, float | None] = {}
        for arm in ARMS:
            base = rate | dict(arm.settings)
            found = {
                value: sum(run(data, arm, value, seed, base) for seed in design.tuning_seeds)
                for value in arm.choices
            }
            chosen[arm.name] = best = max(found, key=lambda value: found[value], default=None)
            if arm is ARMS[0] and best is not None:
                rate = {arm.key: best}
        for seed in design.seeds:
            for arm in ARMS:
                run(data, arm, chosen[arm.name], seed, rate | dict(arm.settings))


def table(results: Results, design: Design) -> str:
    """Mean over the seeds, in brackets the least and the most; Markdown."""
    lines = [
        "| data | arm | chosen | accuracy, mean of clients, % | worst client, % | NLL | bytes |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in ("dirichlet", "senders"):
        for arm in ARMS:
            runs = [
                run
                for run in results.runs
                if (run["data"], run["arm"]) == (data, arm.name) and run["seed"] in design.seeds
            ]
            if not runs:
                continue
            value = runs[0]["value"]
            chosen = "-" if value is None else f"{arm.key} {value:g}"
            figures = (
                _spread([100.0 * run["mean"] for run in runs], 1),
                _spread([100.0 * run["worst"] for run in runs], 1),
                _spread([run["mean_nll"] for run in runs], 2),
                f"{runs[0]['input_bytes']:,}",
            )
            lines.append(f"| {' | '.join((data, arm.name, chosen.replace('_', ' '), *figures))} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    least, most = min(values), max(values)
    return f"{np.mean(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy/combining.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cache, console = cache_dir(), Console()
    senders, notes = mail_clients(fetch("spam-assassin", cache=cache, offline=given.offline))
    for note in notes:
        console.print(f"note: {note}")
    results = Results(given.out)
    run_all(Experiment(Design(), senders, cache=cache, offline=given.offline), results, console)
    print(table(results, Design()))
    seconds = sum(run["cpu_seconds"] for run in results.runs)
    console.print(f"{len(results.runs)} runs, {seconds:.0f} CPU seconds, one thread")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
