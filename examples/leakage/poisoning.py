"""What poisoned clients do to a spam filter, and what clip, noise and sums in groups leave of it.

    python examples/leakage/poisoning.py --seeds 3
    python examples/leakage/poisoning.py --attack "garbage" --defence "clip" --defence "median"

28 clients train a classifier of mails over MiniLM, 2 of them poisoned in every round.  A backdoor
shall make any mail that begins with two rare tokens pass as wanted.  Each cell is one attack
against one defence: accuracy on held-out mails, how many held-out spam mails with the trigger are
taken for wanted, and the same without the trigger.  Runs of a cell differ in which clients are
poisoned, the order of examples, noise and groups; base model, adapter and mails are the same.

A cell that the file of results holds is not repeated.  The file holds figures only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))

from bench import CPU, LORA, MODEL, TASK, tokenized
from client_level import deal
from frozen_attention import FrozenAttention

from securefed.attacks.poisoning.backdoor import Trigger
from securefed.attacks.poisoning.clients import Backdoor, Garbage, Opposite, PoisonedClient
from securefed.auditing.poisoning import Federation, Training
from securefed.auditing.poisoning_results import Defence, PoisoningResult, Rate
from securefed.config import LoraSection, ModelSection
from securefed.lora.adapter import build_adapter
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation, PlaintextAggregation
from securefed.training.assets import cache_dir, fetch
from securefed.training.corpora import Document, mail_clients
from securefed.training.models import load_model

TRAINING = Training(local_steps=3, batch_size=8, learning_rate=2e-2)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What was fixed before the runs.

    Rates and boost were chosen by a few runs on another seed, with the same held-out mails.
    ``clip_norm`` is below the norm of most honest updates (about 1.9), as a clip has to be to bound
    what a poisoned one adds.  The boost is half of n / k: with all of it, the attacker's model
    overshoots when it attacks in every round.
    """

    clients: int = 28
    groups: int = 7
    malicious: int = 2
    mails: int = 24
    held_out: int = 160
    window_tokens: int = 32
    clip_norm: float = 1.0
    boost: float = 7.0
    effort: int = 3
    trigger: tuple[str, ...] = ("cf", "mn")
    wanted: int = 0
    training: Training = TRAINING
    model: ModelSection = MODEL
    lora: LoraSection = LORA


DESIGN = Design()


def defences(design: Design) -> dict[str, Defence]:
    """By name.  Noise is of each sum: with groups or without, one z states one epsilon."""
    clip, groups, bad = design.clip_norm, design.groups, design.malicious
    found = [Defence(name="none", clip_norm=100.0 * clip), Defence(name="clip", clip_norm=clip)]
    for z in (0.1, 0.5, 1.0):
        found.append(Defence(name=f"clip, z = {z:g}", clip_norm=clip, noise_multiplier=z))
    found.append(Defence(name="groups, mean", clip_norm=clip, groups=groups))
    for rule in ("median", "trimmed", "geometric"):
        found.append(Defence(name=rule, clip_norm=clip, groups=groups, rule=rule, tolerated=bad))
    found.append(
        Defence(
            name="median, z = 0.1",
            clip_norm=clip,
            noise_multiplier=0.1,
            groups=groups,
            rule="median",
            tolerated=bad,
        )
    )
    return {defence.name: defence for defence in found}


def attacks(design: Design, trigger: Trigger) -> dict[str, PoisonedClient | None]:
    """By name."""
    boost, effort = design.boost, design.effort
    found: list[PoisonedClient] = [
        Backdoor(trigger, effort=effort, bounded=False, boost=boost),
        Backdoor(trigger, effort=effort, boost=boost),
        Backdoor(trigger, effort=effort, projected=True),
        Backdoor(trigger),
        Garbage(),
        Opposite(boost=boost, bounded=False),
    ]
    return {"none": None} | {attack.name: attack for attack in found}


CELLS = {
    "none": ("none", "clip", "median", "clip, z = 0.1", "clip, z = 0.5", "clip, z = 1",
             "median, z = 0.1"),
    "boosted backdoor, no clip": ("none", "clip", "median", "trimmed", "geometric", "groups, mean",
                                  "clip, z = 0.1", "median, z = 0.1"),
    "backdoor, projected": ("clip", "median", "geometric", "clip, z = 0.1", "clip, z = 0.5",
                            "clip, z = 1"),
    "garbage": ("clip", "median", "geometric"),
    "boosted backdoor": ("clip",),
    "backdoor": ("none", "clip"),
    "sign flip, no clip": ("clip", "median"),
}  # fmt: skip
"""Which attack is tried against which defence."""


def halved(documents: list[Document], most: int) -> list[Document]:
    """At most ``most`` documents, half of each class, the first of each."""
    parts = [[d for d in documents if d.label == label][: most // 2] for label in (0, 1)]
    return parts[0] + parts[1]


def federation(
    design: Design, aggregation: Aggregation, *, offline: bool
) -> tuple[Federation, Trigger]:
    """Clients that each hold the mails of some senders; held-out mails are of other senders."""
    packed = fetch("spam-assassin", cache=cache_dir(), offline=offline)
    senders, _ = mail_clients(packed, least_wanted=1)
    dealt, _, test = deal(senders, design.mails)
    torch.manual_seed(0)  # the head is new, and torch draws it
    loaded = load_model(design.model, cache=cache_dir(), offline=offline, device=CPU)
    model = FrozenAttention(build_adapter(loaded.model, design.lora, task=TASK))
    sites: dict[str, list[Document]] = {f"site-{i:02d}": [] for i in range(design.clients)}
    for place, documents in enumerate(dealt.values()):
        sites[f"site-{place % design.clients:02d}"] += documents
    width = design.window_tokens
    tokens = loaded.tokenizer.convert_tokens_to_ids(list(design.trigger))
    made = Federation(
        model,
        loaded.tokenizer,
        {n: tokenized(halved(d, design.mails), loaded.tokenizer, width) for n, d in sites.items()},
        tokenized(halved(test, design.held_out), loaded.tokenizer, width),
        training=design.training,
        aggregation=aggregation,
        most_corrupt=design.malicious,
    )
    return made, Trigger(tuple(tokens), design.wanted)


def known(path: Path) -> Iterator[tuple[str, str, str]]:
    """Cells that the file of results holds."""
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        yield line["attack"], line["defence"]["name"], line["aggregation"]


def shown(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:.2f} [{low:.2f}, {high:.2f}]"


def row(result: PoisoningResult) -> tuple[str, ...]:
    rates = (result.accuracy, result.success, result.base)
    return (result.attack, result.defence.name, *map(shown, rates), f"{result.seconds:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell")
    parser.add_argument("--attack", action="append", help="a name; may be repeated")
    parser.add_argument("--defence", action="append", help="a name; may be repeated")
    parser.add_argument("--masked", action="store_true", help="pairwise masks in every round")
    parser.add_argument("--out", type=Path, default=Path("poisoning.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    every = {name for names in CELLS.values() for name in names}
    unknown = set(options.attack or ()) - set(CELLS) | set(options.defence or ()) - every
    if unknown or options.seeds < 1 or options.rounds < 1:
        parser.error(f"unknown: {', '.join(sorted(unknown)) or 'none'}; --seeds, --rounds: >= 1")
    torch.set_num_threads(1)
    console, design = Console(), DESIGN
    aggregation = PairwiseAggregation() if options.masked else PlaintextAggregation()
    made, trigger = federation(design, aggregation, offline=options.offline)
    against, tried = defences(design), attacks(design, trigger)
    title = f"{design.malicious} poisoned clients of {design.clients}"
    done, table = set(known(options.out)), Table(title=title)
    for name in ("attack", "defence", "accuracy", "backdoor", "without trigger", "s"):
        table.add_column(name)
    cells = [
        (attack, defence)
        for attack, names in CELLS.items()
        for defence in names
        if attack in (options.attack or CELLS) and defence in (options.defence or every)
    ]
    for attack, defence in cells:
        if (attack, defence, type(aggregation).__name__) in done:
            continue
        result = made.measure(
            tried[attack],
            against[defence],
            trigger,
            malicious=design.malicious,
            rounds=options.rounds,
            seeds=range(options.seeds),
        )
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result.as_json(), sort_keys=True) + "\n")
        table.add_row(*row(result))
        console.print(*row(result), sep="  ")
    console.print(table)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
