"""Whose records are inside an opened sum?  By cohort size and by noise, round by real round.

    python examples/leakage/membership_sums.py --clients 2 --clients 8 --trials 5
    python examples/leakage/membership_sums.py --clients 8 --noise 0.1 --noise 1 --rounds 4

In each trial n clients take one step on some records each, their clipped updates are masked and
summed, and the server, which knows twice as many records as were trained on, says which of them
were.  Noise is that of differential privacy for one client.  Records are the beginnings of mails;
the file of results holds figures only.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from securefed.attacks.membership.alignment import GradientAlignment
from securefed.attacks.membership.loss import ReferenceLoss
from securefed.attacks.membership_results import summarise_membership
from securefed.auditing.membership_sums import sum_trials
from securefed.auditing.rounds import CPU, Bench, Setup, adapted
from securefed.config import ModelSection
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.training.assets import cache_dir
from securefed.training.corpora import load_corpus
from securefed.training.models import load_model

ATTACKS = (ReferenceLoss(), GradientAlignment(), GradientAlignment(whitened=True))
TASK = "sequence-classification"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="builtin:minilm-l6-v2")
    parser.add_argument("--corpus", default="builtin:spam-assassin")
    parser.add_argument("--target", action="append", help="a module; default query and value")
    parser.add_argument("--clients", type=int, action="append", help="n; may be repeated")
    parser.add_argument("--noise", type=float, action="append", help="noise multiplier")
    parser.add_argument("--rounds", type=int, default=1, help="sums that the server sees")
    parser.add_argument("--records", type=int, default=4, help="of each client")
    parser.add_argument("--population", type=int, default=200, help="records of the server's own")
    parser.add_argument("--tokens", type=int, default=16, help="of a record, at most")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("membership_sums.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    section = ModelSection(source=options.model, task=TASK, labels=2)
    loaded = load_model(section, cache=cache_dir(), offline=options.offline, device=CPU)
    corpus = load_corpus(options.corpus, cache=cache_dir(), offline=options.offline)
    beginnings = [
        document.text[: 20 * options.tokens]
        for documents in corpus.clients.values()
        for document in documents
    ]
    ids = loaded.tokenizer(beginnings, truncation=True, max_length=options.tokens)["input_ids"]
    texts = sorted({tuple(text) for text in ids})
    order = np.random.default_rng(0).permutation(len(texts))
    targets = tuple(options.target or ("query", "value"))
    base = Setup(TASK, targets, options.rank, "fedit", batch=options.records)
    model = adapted(loaded.model, base, 0)
    table = Table(title=f"Membership in a sum, {options.model}, {options.trials} trials a row")
    for name in ("n", "records", "noise", "epsilon", "attack", "AUC", "TPR at FPR 1 %", "5 %"):
        table.add_column(name)
    for clients in options.clients or [2, 4, 8, 16]:
        need = 2 * clients * options.records
        if need + options.population > len(texts):
            parser.error(f"--corpus: {len(texts)} records; n = {clients} needs more")
        chosen = [texts[i] for i in order[:need]]
        others = [texts[i] for i in order[need : need + options.population]]
        for noise in options.noise or [0.0]:
            setup = Setup(**vars(base) | {"clients": clients})
            policy = PrivacyPolicy(
                clip_norm=1.0,
                noise_multiplier=noise,
                mechanism="distributed" if noise else "none",
                rounds=options.rounds,
                corrupt_fraction=0.0,
                dropout_fraction=0.0,
            )
            bench = Bench(
                model, loaded.tokenizer, setup, aggregation=PairwiseAggregation(), policy=policy
            )
            measure(bench, chosen, others, options, table)
    Console(width=160).print(table)


def measure(
    bench: Bench,
    texts: Sequence[Sequence[int]],
    others: Sequence[Sequence[int]],
    options: argparse.Namespace,
    table: Table,
) -> None:
    """One row of each attack."""
    session = bench.session()
    promise, noise = session.guarantee("server"), session.policy.noise_multiplier
    private = math.isfinite(promise.epsilon)
    tried = sum_trials(
        ATTACKS, bench, texts, others, seeds=range(options.trials), rounds=options.rounds
    )
    for attack, trials in tried.items():
        result = summarise_membership(
            attack,
            "opened sum" if options.rounds == 1 else f"opened sums of {options.rounds} rounds",
            trials,
            epsilon=promise.epsilon if private else None,
            delta=promise.delta if private else 0.0,
        )
        facts = {
            "model": Path(options.model).name,  # a folder's place is nobody's business
            "clients": len(bench.names),
            "records": options.records,
            "rank": options.rank,
            "noise_multiplier": noise,
            "candidates": len(texts),
            "population": len(others),
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts | result.as_json(), sort_keys=True) + "\n")
        low, high = result.auc_interval
        rates = (f"{r.value:.3f} [{r.interval[0]:.3f}, {r.interval[1]:.3f}]" for r in result.rates)
        table.add_row(
            str(len(bench.names)),
            str(options.records),
            f"{noise:g}",
            f"{promise.epsilon:.2f}" if private else "none",
            attack,
            f"{result.auc:.3f} [{low:.3f}, {high:.3f}]",
            *list(rates)[1:],
        )


if __name__ == "__main__":
    main()
