"""The sharing modes at one epsilon: what the noise of distributed DP-SGD leaves of each.

The clients, mails and rounds of mechanisms.py's distributed arm: 80 senders, a secret Poisson
sample of mails a round, each mail's gradient clipped, noise added in shares before the sum, a step
of the server's Adam.  The adapter is on the last layer's query, key and value, and the head travels
in every mode.  Each mode has its own least noise for the same epsilon (its vector's length counts,
a little) and its own learning rate, chosen with that noise on validation mails and another seed,
which no epsilon covers.  ``fedsa`` is not here: a run refuses it for single mails.

Runs are appended to a file as they end, and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mechanisms
import numpy as np
import torch
from bench import CPU, TASK, Cohort, Memoised, Model, Results, climbed, joined, plain_sum
from numpy.typing import NDArray
from rich.console import Console
from sharing_table import spread

from securefed.config import LoraSection
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.checked_gradients import CheckedGradients
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.federation.session import RoundSession
from securefed.lora.parts import AdapterParts
from securefed.privacy.calibration import calibrated_policy
from securefed.privacy.clipping import L2Clip
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.samplers import poisson_sample
from securefed.training.assets import cache_dir
from securefed.training.corpora import Corpus, load_corpus
from securefed.training.data import Examples, tokenize_clients
from securefed.training.dp_sgd import PerExampleGradients

MODES = ("ffa", "fedit", "fedsb", "rolora", "fedsvd")
"""The first one without noise too."""


LORA = LoraSection(
    rank=4,
    alpha=4.0,
    target_modules=[f"layer.5.attention.self.{kind}" for kind in ("query", "key", "value")],
    modules_to_save=["classifier"],
)


@dataclass(frozen=True, kw_only=True)
class Design(mechanisms.Design):
    """What was fixed before the runs, where it is not as in mechanisms.py."""

    epsilon: float = 4.0
    rounds: int = 8
    expected_batch: float = 512.0
    learning_rate: float = 0.03  # the search begins here
    most_tried: int = 3
    seeds: tuple[int, ...] = (1, 2, 3)
    tuning_seed: int = 0
    core_rank: int = 16
    lora: LoraSection = LORA

    def section(self, mode: str) -> LoraSection:
        """The adapter of a mode, at one scale alpha / r."""
        changes: dict[str, Any] = {"sharing": mode}
        if mode == "fedsb":
            alpha = self.lora.alpha * self.core_rank / self.lora.rank
            changes |= {"rank": self.core_rank, "alpha": alpha}
        return self.lora.model_copy(update=changes)


class Experiment:
    """Mails, and how a run is made."""

    def __init__(self, design: Design, corpus: Corpus, *, cache: Path, offline: bool) -> None:
        self.design, self._cache, self._offline = design, cache, offline
        self._known: Memoised | None = None
        self.mails = mechanisms.Mails.of(
            tokenize_clients(
                corpus,
                design.data,
                tokenizer=self.model("ffa", 0).tokenizer,
                task=TASK,
                labels=2,
                held_out_windows=2**31,
                held_out_tokens=design.data.window_tokens,
            )
        )
        self.cohort = Cohort.of(tuple(self.mails.clients))
        self._policies: dict[tuple[int, bool], PrivacyPolicy] = {}

    def model(self, mode: str, seed: int) -> Model:
        """A fresh model; the frozen layers' outputs are shared between them."""
        model = Model(
            self.design.model,
            self.design.section(mode),
            cache=self._cache,
            offline=self._offline,
            seed=seed,
            known=self._known,
        )
        self._known = model.lower
        return model

    def policy(self, dimension: int, noise: bool) -> PrivacyPolicy:
        """The least noise for the design's epsilon against the server, or none."""
        design, known = self.design, self._policies
        if (dimension, noise) not in known:
            policy = PrivacyPolicy(
                clip_norm=design.clip_norm,
                noise_multiplier=1.0,
                delta=design.delta,
                unit="example",
                mechanism="distributed",
                sampling_probability=design.expected_batch / self.mails.trained,
                rounds=design.rounds,
                corrupt_fraction=design.corrupt_fraction,
                dropout_fraction=design.dropout_fraction,
                max_examples=max(len(data.train) for data in self.mails.clients.values()),
            )
            known[dimension, noise] = (
                calibrated_policy(
                    policy,
                    design.epsilon,
                    cohort_size=len(self.cohort.names),
                    dimension=dimension,
                    against="server",
                )
                if noise
                else replace(policy, mechanism="none", noise_multiplier=0.0)
            )
        return known[dimension, noise]

    def run(
        self, mode: str, rate: float, seed: int, *, noise: bool, on: Examples
    ) -> dict[str, Any]:
        """Train under one mode and measure.

        Args:
            mode: one of ``MODES``.
            rate: of the server's Adam.
            seed: of head and adapter; samples and noise are from the system's randomness.
            noise: for the design's epsilon; else none.
            on: held-out mails.
        """
        design, model = self.design, self.model(mode, seed)
        parts = AdapterParts(model.module, mode)
        policy = self.policy(parts.dimension, noise)
        gradients = CheckedGradients(model.module, parts, task=TASK, device=CPU)
        few = next(iter(self.mails.clients.values())).train.take(range(3))
        gradients.check(few, design.micro_batch)
        server = ServerStep(
            parts, lambda initial: ServerOptimizer(initial, kind="adam", learning_rate=rate)
        )
        for number in range(1, design.rounds + 1):
            parts.begin(number)
            session = self.cohort.session(number, policy, parts.dimension)
            total = self._sum(session, gradients.now())
            server.step(number, total / design.expected_batch)
        gradients.close()
        stated = session.guarantee(rounds=design.rounds) if noise else None
        return {
            "values": parts.dimension,
            "noise_multiplier": policy.noise_multiplier,
            "epsilon": None if stated is None else stated.epsilon,
            "delta": None if stated is None else stated.delta,
            "clients": len(self.cohort.names),
            "mails": self.mails.trained,
            "held_out": len(on),
            **model.figures(on),
        }

    def _sum(self, session: RoundSession, gradients: PerExampleGradients) -> NDArray[np.float64]:
        """The decoded sum of all clients' encoded sums; gradients are computed in one stream."""
        drawn = {
            name: data.train.take(
                poisson_sample(
                    len(data.train), session.policy.sampling_probability, NoiseGenerator()
                )
            )
            for name, data in self.mails.clients.items()
        }
        clip = L2Clip(session.policy.clip_norm)
        sums = {name: np.zeros(session.dimension) for name in drawn}
        owners = itertools.chain.from_iterable([name] * len(own) for name, own in drawn.items())
        for rows in gradients.flat_rows(joined(list(drawn.values()))):
            for row in rows:
                sums[next(owners)] += clip.clip_rows(row[None])
        encoded = {
            name: session.codec.encode_clipped_sum(own, NoiseGenerator())
            for name, own in sums.items()
        }
        return plain_sum(session, encoded)


def run_all(experiment: Experiment, results: Results, console: Console) -> None:
    """For every mode choose the learning rate with its noise, then run every seed."""
    design, mails = experiment.design, experiment.mails

    def run(mode: str, rate: float, seed: int, noise: bool = True) -> Mapping[str, Any]:
        which = {"mode": mode, "rate": rate, "seed": seed, "noise": noise}
        if not results.has(**which):
            started = time.process_time()
            on = mails.validation if seed == design.tuning_seed else mails.test
            with console.status(" ".join(map(str, which.values()))):
                found = experiment.run(mode, rate, seed, noise=noise, on=on) | which
            found["cpu_seconds"] = round(time.process_time() - started, 2)
            results.add(found)
            console.print(
                f"{mode} {rate:g} seed {seed} noise {noise}: accuracy {found['accuracy']:.4f}, "
                f"AUC {found['auc']:.4f} ({found['cpu_seconds']:.0f} s)",
                highlight=False,
            )
        (one,) = (run for run in results.runs if which.items() <= run.items())
        return one

    for noise, modes in ((True, MODES), (False, MODES[:1])):
        for mode in modes:
            rate = climbed(
                lambda rate, mode=mode, noise=noise: (
                    -float(run(mode, rate, design.tuning_seed, noise)["auc"])
                ),
                design.learning_rate,
                design.most_tried,
            )
            for seed in design.seeds:
                run(mode, rate, seed, noise)


def table(runs: Sequence[Mapping[str, Any]], design: Design) -> str:
    """Markdown: means over the seeds, in brackets the least and the most."""
    head = ["mode", "epsilon", "noise multiplier", "learning rate", "values", "accuracy, %"]
    lines = [[*head, "balanced, %", "AUC, %"], ["---"] * (len(head) + 2)]
    for noise, modes in ((True, MODES), (False, MODES[:1])):
        for mode in modes:
            own = [r for r in runs if (r["mode"], r["noise"]) == (mode, noise)]
            own = [run for run in own if run["seed"] in design.seeds]
            if not own:
                continue
            cells = [mode, f"{own[0]['epsilon']:.3g}" if noise else "no noise"]
            cells += [f"{own[0]['noise_multiplier']:.3g}", f"{own[0]['rate']:g}"]
            cells.append(f"{own[0]['values']:,}")
            for figure in ("accuracy", "balanced_accuracy", "auc"):
                cells.append(spread([100 * float(run[figure]) for run in own], 1))
            lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace(" --- ", "---")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy/sharing_private.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console, cache, design = Console(), cache_dir(), Design()
    corpus = load_corpus(design.data.source, cache=cache, offline=given.offline)
    for note in corpus.notes:
        console.print(f"note: {note}")
    experiment = Experiment(design, corpus, cache=cache, offline=given.offline)
    results = Results(given.out)
    run_all(experiment, results, console)
    print(table(results.runs, design))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
