"""What the exact family of gradient inversion recovers of short texts, round by real round.

    python examples/leakage/inversion.py --texts 20
    python examples/leakage/inversion.py --texts 5 --only r4 --only masked
    python examples/leakage/inversion.py --model smollm2 --texts 10

Each row is one way of training and one thing that the attacker sees.  Texts are sentences of State
of the Union addresses of exactly so many tokens, special ones not counted; each is the whole data
of a client in a round of four.  The prior is made of sentences of addresses that are not attacked.
The file of results holds figures only, no text.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from securefed.attacks.base import Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.results import AttackResult, summarise
from securefed.attacks.scoring import UnigramPrior
from securefed.auditing.rounds import CPU, Bench, Setup, adapted
from securefed.auditing.texts import sentences
from securefed.auditing.trials import trials
from securefed.config import ModelSection
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.training.assets import cache_dir
from securefed.training.corpora import load_corpus
from securefed.training.models import load_model

SHOWN = ("token_recall", "token_precision", "exact_match", "rouge_1", "rouge_2", "rouge_l")
MODELS = {
    "minilm": ("builtin:minilm-l6-v2", "sequence-classification", ("query", "value")),
    "smollm2": ("builtin:smollm2-135m-instruct", "causal-lm", ("q_proj", "v_proj")),
}
KEYS = {"minilm": ("key",), "smollm2": ("k_proj",)}


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: for ``--only``.
        what: in words.
        setup: of the rounds.
        tokens: of each text, special ones not counted.
        sees: one of ``EXPOSURES``.
    """

    name: str
    what: str
    setup: Setup
    tokens: int = 12
    sees: str = "plain"


def rows(model: str) -> list[Row]:
    """All rows for one model."""
    _, task, targets = MODELS[model]
    decoder = task == "causal-lm"
    warm = Setup(task, targets, 8, "rolora", turn=2, window_tokens=12 if decoder else None)
    ffa = replace(warm, sharing="ffa", turn=1)
    wide = replace(warm, rank=32)
    four = replace(wide, batch=4, warm=0.1)
    longer = replace(warm, window_tokens=16 if decoder else None)
    return [
        Row("full", "full gradients", replace(warm, sharing="full", turn=1)),
        Row("r32-b4", "A r=32, 4 texts, larger B", four),
        Row("r32-b2", "A r=32, 2 texts", replace(wide, batch=2)),
        Row("r32", "A r=32", wide),
        Row("r8", "A r=8, 16 tokens", longer, tokens=16),
        Row("r4", "A r=4", replace(warm, rank=4)),
        Row("r2", "A r=2", replace(warm, rank=2)),
        Row("r1", "A r=1", replace(warm, rank=1)),
        Row("key", "A r=32, key alone", replace(wide, targets=KEYS[model])),
        Row("ffa32", "B r=32 (FFA)", replace(ffa, rank=32)),
        Row("ffa16", "B r=16 (FFA)", replace(ffa, rank=16)),
        Row("ffa8", "B r=8 (FFA)", ffa),
        Row("a0", "A r=32, B=0", replace(wide, warm=0.0)),
        Row("b0", "A and B r=32, B=0", replace(wide, warm=0.0, sharing="fedit", turn=1)),
        Row("sgd20", "A r=8, 20 steps of SGD", replace(warm, local_steps=20, learning_rate=0.05)),
        Row("adamw5", "A r=8, 5 steps of AdamW",
            replace(warm, local_steps=5, learning_rate=1e-3, optimizer="adamw")),
        Row("other", "A r=32, wrong client", wide, sees="other"),
        Row("masked", "A r=32, masked share", wide, sees="masked"),
        Row("masked4", "A r=4, masked share", replace(warm, rank=4), sees="masked"),
        Row(
            "masked4-all",
            "the same, 3 of 4 collude",
            replace(warm, rank=4),
            sees="masked with all others",
        ),
        Row("sum", "A r=32, sum of 4", wide, sees="sum"),
        Row("sum-all", "the same, 3 of 4 collude", wide, sees="sum with all others"),
    ]  # fmt: skip


def shown(result: AttackResult) -> str:
    """A value with its interval."""
    low, high = result.interval
    return f"{result.value:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument(
        "--corpus", default="builtin:state-of-the-union", help="a built-in corpus, or a folder"
    )
    parser.add_argument("--texts", type=int, default=20, help="trials of each row")
    parser.add_argument("--only", action="append", help="a row's name; may be repeated")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one attack")
    parser.add_argument("--out", type=Path, default=Path("inversion.jsonl"))
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
    console, attack = Console(), SpanInversion(keep=True)
    table = Table(title=f"Exact gradient inversion, {options.model}, n = {options.texts} a row")
    for name in ("row", "what", "predicted", "token recall", "exact match", "ROUGE-L", "prior",
                 "lift", "s", "verdict"):  # fmt: skip
        table.add_column(name)
    for row in wanted:
        loaded = load_model(section, cache=cache_dir(), offline=options.offline, device=CPU)
        texts = sentences(corpus, loaded.tokenizer, row.tokens)
        background = sentences(corpus, loaded.tokenizer, row.tokens, held_out=True)
        prior = UnigramPrior(background, loaded.tokenizer.all_special_ids)
        aggregation = None if row.sees in ("plain", "other") else PairwiseAggregation()
        model = adapted(loaded.model, row.setup, 0)
        bench = Bench(model, loaded.tokenizer, row.setup, aggregation=aggregation)
        tried, predicted = trials(
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
                        "tokens": row.tokens, "sees": row.sees, "predicted": vars(predicted),
                        **result.as_json()}  # fmt: skip
                file.write(json.dumps(line, sort_keys=True) + "\n")
        recall = found["token_recall"]
        table.add_row(
            row.name,
            row.what,
            f"{predicted.outcome} ({predicted.inputs} of {predicted.dimensions})",
            shown(recall),
            shown(found["exact_match"]),
            f"{found['rouge_l'].value:.2f}",
            f"{recall.prior:.2f}",
            f"{recall.lift:+.2f} [{recall.lift_interval[0]:+.2f}, {recall.lift_interval[1]:+.2f}]",
            f"{recall.seconds:.1f}",
            recall.verdict,
        )
        console.print(row.name, shown(recall), recall.verdict)
    console.print(table)


if __name__ == "__main__":
    main()
