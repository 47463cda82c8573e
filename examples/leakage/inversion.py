"""What the exact family of gradient inversion recovers of short texts, round by real round.

    python examples/leakage/inversion.py --texts 20
    python examples/leakage/inversion.py --texts 5 --only r4 --only masked
    python examples/leakage/inversion.py --model smollm2 --texts 10
    python examples/leakage/inversion.py --sums --texts 20 --out sums.jsonl

Each row is one way of training and one thing that the attacker sees.  Texts are sentences of State
of the Union addresses of exactly so many tokens, special ones not counted; each is the whole data
of a client in a round of four.  The prior is made of sentences of addresses that are not attacked,
and guesses as many tokens as the attack.  A forced attack guesses where it would call itself void.
The file of results holds figures only, no text; seconds are those of the processor.
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
from securefed.secagg.aggregations import (
    Aggregation,
    HomomorphicAggregation,
    PairwiseAggregation,
)
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
        forced: whether the attack must guess.
        seconds: limit of one attack.
    """

    name: str
    what: str
    setup: Setup
    tokens: int = 12
    sees: str = "plain"
    forced: bool = False
    seconds: float = 60.0


def rows(model: str) -> list[Row]:
    """All rows for one model."""
    _, task, targets = MODELS[model]
    decoder = task == "causal-lm"
    warm = Setup(task, targets, 8, "rolora", turn=2, window_tokens=12 if decoder else None)
    ffa = replace(warm, sharing="ffa", turn=1)
    wide = replace(warm, rank=32)
    four = replace(wide, batch=4)
    low = replace(warm, rank=4)
    alone = "sum with all others"
    longer = replace(warm, window_tokens=16 if decoder else None)
    return [
        Row("full", "full gradients", replace(warm, sharing="full", turn=1)),
        Row("r32-b4", "A r=32, 4 texts", four, seconds=240.0),
        Row("r32-b4-large", "A r=32, 4 texts, B of std .1", replace(four, warm=0.1), seconds=240.0),
        Row("r32-b2", "A r=32, 2 texts", replace(wide, batch=2)),
        Row("r32", "A r=32", wide),
        Row("r8", "A r=8, 16 tokens", longer, tokens=16),
        Row("r4", "A r=4", low, seconds=240.0),
        Row("r2", "A r=2", replace(warm, rank=2), seconds=240.0),
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
        Row("r32-forced", "A r=32, forced", wide, forced=True),
        Row("masked-forced", "A r=32, masked share, forced", wide, sees="masked", forced=True),
        Row("encrypted-forced", "A r=32, encrypted share, forced", wide, sees="encrypted",
            forced=True),
        Row("sum-all", "A r=32, sum of 4, 3 collude, forced", wide, sees=alone, forced=True),
        Row("masked4", "A r=4, masked share", low, sees="masked"),
        Row("encrypted4", "A r=4, encrypted share", low, sees="encrypted"),
        Row("masked4-forced", "A r=4, masked share, forced", low, sees="masked", forced=True,
            seconds=8.0),
        Row("masked4-all", "A r=4, masked, 3 collude, forced", low, sees="masked with all others",
            forced=True, seconds=8.0),
        Row("sum", "A r=32, sum of 4", wide, sees="sum"),
        Row("rounds", "A r=32, sums of 4 in 4 rounds", wide, sees="rounds"),
        *(Row(f"released{n}", f"A r=32, adapter after a round of {n}",
              replace(wide, clients=n), sees="released") for n in (2, 3, 4)),
    ]  # fmt: skip


def sum_rows(model: str) -> list[Row]:
    """The curve over n, per rank: the attack is forced, so that there is a guess to every sum."""
    _, task, targets = MODELS[model]
    warm = Setup(
        task, targets, 8, "rolora", turn=2, window_tokens=12 if task == "causal-lm" else None
    )
    kinds = {f"A r={rank}": replace(warm, rank=rank) for rank in (8, 16, 32, 64)}
    kinds |= {f"B r={rank}": replace(warm, rank=rank, sharing="ffa", turn=1) for rank in (16, 64)}
    kinds["full"] = replace(warm, sharing="full", turn=1)
    return [
        Row(
            f"{kind}, {clients}",
            kind,
            replace(setup, clients=max(clients, 2)),
            sees="sum" if clients > 1 else "plain",
            forced=True,
            seconds=4.0,
        )
        for kind, setup in kinds.items()
        for clients in (1, 2, 4, 8, 16)
    ]


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
    parser.add_argument("--sums", action="store_true", help="the curve over the clients of a sum")
    parser.add_argument("--out", type=Path, default=Path("inversion.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    every = sum_rows(options.model) if options.sums else rows(options.model)
    wanted = [row for row in every if not options.only or row.name in options.only]
    unknown = set(options.only or ()) - {row.name for row in wanted}
    if unknown or options.texts < 1:
        parser.error(f"--only: there is no row {', '.join(sorted(unknown)) or '(--texts >= 1)'}")
    torch.set_num_threads(1)
    source, task, _ = MODELS[options.model]
    labels = 2 if task == "sequence-classification" else None
    section = ModelSection(source=source, task=task, labels=labels)
    corpus = load_corpus(options.corpus, cache=cache_dir(), offline=options.offline)
    kept: dict[int, torch.Tensor] = {}
    console = Console()
    table = Table(title=f"Exact gradient inversion, {options.model}, n = {options.texts} a row")
    for name in ("row", "what", "predicted", "token recall", "exact match", "ROUGE-L", "prior",
                 "lift", "s", "verdict"):  # fmt: skip
        table.add_column(name)
    dealt: dict[int, tuple[list[tuple[int, ...]], UnigramPrior]] = {}
    for row in wanted:
        attack = SpanInversion(forced=row.forced, keep=kept)
        loaded = load_model(section, cache=cache_dir(), offline=options.offline, device=CPU)
        if row.tokens not in dealt:
            background = sentences(corpus, loaded.tokenizer, row.tokens, held_out=True)
            dealt[row.tokens] = (
                sentences(corpus, loaded.tokenizer, row.tokens),
                UnigramPrior(background, loaded.tokenizer.all_special_ids),
            )
        texts, prior = dealt[row.tokens]
        aggregation: Aggregation | None = None
        if row.sees == "encrypted":
            aggregation = HomomorphicAggregation()
        elif row.sees not in ("plain", "other"):
            aggregation = PairwiseAggregation()
        model = adapted(loaded.model, row.setup, 0)
        bench = Bench(model, loaded.tokenizer, row.setup, aggregation=aggregation)
        tried, predicted = trials(
            attack,
            bench,
            texts,
            prior,
            exposure=row.sees,
            seeds=range(
                max(2, options.texts // row.setup.clients) if options.sums else options.texts
            ),
            everyone=options.sums,
            limits=Limits(seconds=row.seconds, max_tokens=row.tokens + 4),
        )
        found = {metric: summarise(attack.name, metric, tried) for metric in SHOWN}
        with options.out.open("a", encoding="utf-8") as file:
            for result in found.values():
                line = {"model": options.model, "row": row.name, "what": row.what,
                        "tokens": row.tokens, "sees": row.sees, "clients": row.setup.clients,
                        "rank": row.setup.rank, "warm": row.setup.warm,
                        "predicted": vars(predicted), **result.as_json()}  # fmt: skip
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
