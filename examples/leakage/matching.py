"""What gradient matching recovers of short texts, round by real round.

    python examples/leakage/matching.py --texts 10
    python examples/leakage/matching.py --texts 5 --attack lamp --only r32 --only masked

Rows, texts and the file of results are as in ``inversion.py`` beside this script, whose exact
attacks find more in less time wherever they apply.  The attacker is told neither lengths nor
labels.  LAMP's prior of the language is made of documents that are not attacked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from inversion import MODELS, SHOWN, Row, shown
from rich.console import Console
from rich.table import Table

from securefed.attacks.base import Attack, Limits
from securefed.attacks.matching.attack import cosine, dlg, lamp, tag
from securefed.attacks.matching.descent import Schedule
from securefed.attacks.matching.priors import LanguagePrior, NGramPrior
from securefed.attacks.results import summarise
from securefed.attacks.scoring import UnigramPrior
from securefed.auditing.rounds import CPU, Bench, Setup, adapted
from securefed.auditing.texts import sentences, set_aside
from securefed.auditing.trials import trials
from securefed.config import ModelSection
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.training.assets import cache_dir
from securefed.training.corpora import Corpus, load_corpus
from securefed.training.models import load_model

ATTACKS: dict[str, Callable[[Schedule, LanguagePrior], Attack]] = {
    "dlg": lambda schedule, _: dlg(schedule=schedule),
    "cosine": lambda schedule, _: cosine(schedule=schedule),
    "tag": lambda schedule, _: tag(schedule=schedule),
    "lamp": lambda schedule, prior: lamp(prior, schedule=schedule),
}


def rows(model: str) -> list[Row]:
    """All rows for one model."""
    _, task, targets = MODELS[model]
    window = 12 if task == "causal-lm" else None
    warm = Setup(task, targets, 8, "rolora", turn=2, window_tokens=window)
    wide = replace(warm, rank=32)
    return [
        Row("full", "full gradients", replace(warm, sharing="full", turn=1)),
        Row("r32", "A r=32", wide),
        Row("r8", "A r=8", warm),
        Row("ffa16", "B r=16 (FFA)", replace(warm, rank=16, sharing="ffa", turn=1)),
        Row("ffa8", "B r=8 (FFA)", replace(warm, sharing="ffa", turn=1)),
        Row("a0", "A r=32, B=0", replace(wide, warm=0.0)),
        Row("sgd20", "A r=8, 20 steps of SGD", replace(warm, local_steps=20, learning_rate=0.05)),
        Row("other", "A r=32, wrong client", wide, sees="other"),
        Row("masked", "A r=32, masked share", wide, sees="masked"),
        Row("sum", "A r=32, sum of 4", wide, sees="sum"),
    ]


def language(corpus: Corpus, tokenizer: Any, vocabulary: int) -> NGramPrior:
    """A prior of documents whose sentences are not attacked."""
    texts = []
    for documents in corpus.clients.values():
        for number, document in enumerate(documents):
            if set_aside(document, number):
                lines = document.text.splitlines()
                texts += [tokenizer(line)["input_ids"] for line in lines if line.strip()]
    return NGramPrior(texts, frozenset(tokenizer.all_special_ids), vocabulary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument(
        "--corpus", default="builtin:state-of-the-union", help="a built-in corpus, or a folder"
    )
    parser.add_argument("--attack", action="append", choices=sorted(ATTACKS), help="default: lamp")
    parser.add_argument("--texts", type=int, default=10, help="trials of each row")
    parser.add_argument("--only", action="append", help="a row's name; may be repeated")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one attack")
    parser.add_argument("--steps", type=int, default=200, help="of gradient matching")
    parser.add_argument("--restarts", type=int, default=2, help="beginnings of gradient matching")
    parser.add_argument("--out", type=Path, default=Path("matching.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    wanted = [row for row in rows(options.model) if not options.only or row.name in options.only]
    unknown = set(options.only or ()) - {row.name for row in wanted}
    if unknown or options.texts < 1:
        parser.error(f"--only: there is no row {', '.join(sorted(unknown)) or '(--texts >= 1)'}")
    torch.set_num_threads(1)
    source, task, _ = MODELS[options.model]
    labels = 2 if task == "sequence-classification" else None
    section = ModelSection(source=source, task=task, labels=labels)
    corpus = load_corpus(options.corpus, cache=cache_dir(), offline=options.offline)
    console, schedule = Console(), Schedule(steps=options.steps, restarts=options.restarts)
    table = Table(title=f"Gradient matching, {options.model}, n = {options.texts} a row")
    for name in (
        "attack",
        "row",
        "what",
        "token recall",
        "ROUGE-L",
        "prior",
        "lift",
        "s",
        "verdict",
    ):
        table.add_column(name)
    for row in wanted:
        loaded = load_model(section, cache=cache_dir(), offline=options.offline, device=CPU)
        tokenizer = loaded.tokenizer
        texts = sentences(corpus, tokenizer, row.tokens)
        background = sentences(corpus, tokenizer, row.tokens, held_out=True)
        prior = UnigramPrior(background, tokenizer.all_special_ids)
        aggregation = None if row.sees in ("plain", "other") else PairwiseAggregation()
        model = adapted(loaded.model, row.setup, 0)
        bench = Bench(model, tokenizer, row.setup, aggregation=aggregation)
        spoken = language(corpus, tokenizer, len(tokenizer))
        for name in options.attack or ["lamp"]:
            attack = ATTACKS[name](schedule, spoken)
            tried, _ = trials(
                attack,
                bench,
                texts,
                prior,
                exposure=row.sees,
                seeds=range(options.texts),
                limits=Limits(seconds=options.seconds, max_tokens=row.tokens + 4),
            )
            found = {metric: summarise(attack.name, metric, tried) for metric in SHOWN}
            with options.out.open("a", encoding="utf-8") as file:
                for result in found.values():
                    line = {"model": options.model, "row": row.name, "what": row.what,
                            "tokens": row.tokens, "sees": row.sees, "steps": options.steps,
                            "restarts": options.restarts, **result.as_json()}  # fmt: skip
                    file.write(json.dumps(line, sort_keys=True) + "\n")
            recall = found["token_recall"]
            low, high = recall.lift_interval
            table.add_row(
                name,
                row.name,
                row.what,
                shown(recall),
                f"{found['rouge_l'].value:.2f}",
                f"{recall.prior:.2f}",
                f"{recall.lift:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{recall.seconds:.1f}",
                recall.verdict,
            )
            console.print(name, row.name, shown(recall), recall.verdict)
    console.print(table)


if __name__ == "__main__":
    main()
