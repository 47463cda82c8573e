"""What each defence leaves when its strongest attacker comes, round by real round.

    python examples/leakage/ladder.py --texts 20 --rank 32 --defence noise-0.001 --defence noise-0.1
    python examples/leakage/ladder.py --texts 10 --rank 8 --defence adamw5 --defence int8

Texts are sentences of State of the Union addresses of 12 tokens, as in ``inversion.py``; the
attackers are told how long they are, as the prior is.  ``noise-Z`` takes any Z: the standard
deviation of what is added to each coordinate of one client's update, over the clip norm 1.  The
file of results holds figures only, no text: for each defence a line an attacker over all trials,
and a line for the strongest, chosen on every second trial and reported on the others.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from rich.console import Console

from securefed.attacks.adaptive.background import Background
from securefed.attacks.adaptive.likelihood import SparseBayes
from securefed.attacks.base import Attack, Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.results import AttackResult
from securefed.attacks.scoring import UnigramPrior
from securefed.auditing.defences import DEFENCES, Defence, noise
from securefed.auditing.ladder import Ladder
from securefed.auditing.rounds import CPU, Setup, adapted
from securefed.auditing.texts import sentences
from securefed.config import ModelSection
from securefed.errors import ConfigError
from securefed.training.assets import cache_dir
from securefed.training.corpora import load_corpus
from securefed.training.models import load_model

TOKENS, AROUND = 12, 2
TASK = "sequence-classification"


def defence(name: str) -> Defence:
    """By name; noise of any size."""
    if name in DEFENCES:
        return DEFENCES[name]
    try:
        kind, z = name.split("-", 1)
        if kind == "noise":
            return noise(float(z))
    except ValueError:
        pass
    raise ConfigError(f"--defence {name!r}; there are {', '.join(DEFENCES)}, and noise-Z")


def exposed(name: str) -> str:
    """What the attacker sees under a defence."""
    return "sum" if name.startswith("sum-") else "masked" if name == "masked" else "plain"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--defence", action="append", help="a name; may be repeated")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--texts", type=int, default=20, help="trials of each attacker")
    parser.add_argument("--first-seed", type=int, default=0, help="of the trials")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of one attack")
    parser.add_argument("--minutes", type=float, help="begin no defence after so many")
    parser.add_argument("--head", action="store_true", help="also the attacker of the output layer")
    parser.add_argument("--out", type=Path, default=Path("ladder.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    names = options.defence or list(DEFENCES)
    try:
        wanted = {name: defence(name) for name in names}
    except ConfigError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    corpus = load_corpus("builtin:state-of-the-union", cache=cache_dir(), offline=options.offline)
    section = ModelSection(source="builtin:minilm-l6-v2", task=TASK, labels=2)
    loaded = load_model(section, cache=cache_dir(), offline=options.offline, device=CPU)
    texts = sentences(corpus, loaded.tokenizer, TOKENS)
    known = sentences(corpus, loaded.tokenizer, TOKENS, held_out=True)
    special = loaded.tokenizer.all_special_ids
    prior = UnigramPrior(known, special)
    plain = Setup(
        TASK,
        ("query", "value"),
        options.rank,
        "rolora",
        turn=2,
        window_tokens=TOKENS + AROUND,
    )
    model = adapted(loaded.model, plain, 0)
    background = Background(known, len(loaded.tokenizer), special)
    attackers: list[Attack] = [SpanInversion(keep=True), SparseBayes(background, keep=True)]
    if options.head:
        attackers.append(SparseBayes(background, head=True, keep=True))
    limits = Limits(seconds=options.seconds, max_tokens=TOKENS + AROUND)
    console, started = Console(), time.monotonic()
    for name in names:
        if options.minutes and time.monotonic() - started > 60.0 * options.minutes:
            console.print(f"{name}: not begun")
            continue
        each = wanted[name]
        left = Ladder(each, attackers).climb(
            each.bench(model, loaded.tokenizer, plain),
            texts,
            prior,
            exposure=exposed(name),
            seeds=range(options.first_seed, options.first_seed + options.texts),
            limits=limits,
        )
        common = {"model": "minilm", "defence": name, "rank": options.rank, "tokens": TOKENS,
                  "sees": exposed(name)}  # fmt: skip
        with options.out.open("a", encoding="utf-8") as file:
            for result in left.every:
                line = common | {"trials": "all"} | result.as_json()
                file.write(json.dumps(line, sort_keys=True) + "\n")
            line = common | {"trials": "not chosen on"} | left.result.as_json()
            file.write(json.dumps(line, sort_keys=True) + "\n")
        for result in left.every:
            console.print(name, shown(result))
        console.print(name, "strongest:", shown(left.result))


def shown(result: AttackResult) -> str:
    """An attacker's recall and lift with their intervals."""
    low, high = result.interval
    least, most = result.lift_interval
    return (
        f"{result.attack:18} {result.value:.2f} [{low:.2f}, {high:.2f}] prior {result.prior:.2f} "
        f"lift {result.lift:+.2f} [{least:+.2f}, {most:+.2f}] {result.seconds:.1f} s "
        f"{result.verdict} n={result.n}"
    )


if __name__ == "__main__":
    main()
