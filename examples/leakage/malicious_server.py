"""What a server gains by lying: every game as it is, and with one check removed.

    python examples/leakage/malicious_server.py --trials 20
    python examples/leakage/malicious_server.py --model smollm2 --trials 5 --only planted-model
    python examples/leakage/malicious_server.py --planted --clients 8 --noise 0.01 --noise 0.1

The first table says, of each game, who refuses and how much of the victim's text the server reads.
With ``--planted`` it is a planted model that everybody was told to take: how many tokens of all
clients are read from a sum, by the number of clients and the noise in it.  Texts are sentences of
State of the Union addresses of exactly so many tokens.  The file of results holds figures and error
texts only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from securefed.auditing.games import GAMES, PLANTED, GameResult, play, together
from securefed.auditing.games.parties import BARE, NOISED, Parties
from securefed.auditing.games.planted import planted_model
from securefed.auditing.rounds import CPU, Bench, Setup, adapted
from securefed.auditing.texts import sentences
from securefed.config import ModelSection
from securefed.training.assets import cache_dir
from securefed.training.corpora import load_corpus
from securefed.training.models import load_model

MODELS = {
    "minilm": ("builtin:minilm-l6-v2", "sequence-classification", ("query", "value")),
    "smollm2": ("builtin:smollm2-135m-instruct", "causal-lm", ("q_proj", "v_proj")),
}
VALUES = {"minilm": ("query", "value"), "smollm2": ("v_proj",)}
"""What has LoRA where a model is planted."""


def setups(model: str, clients: int, tokens: int) -> tuple[Setup, Setup]:
    """Rounds for all games but one, in which one client's update shows its text; and for planting.

    The second is the default of a run file: B travels, A is frozen, rank 4.
    """
    _, task, targets = MODELS[model]
    window = tokens if task == "causal-lm" else None
    open_to_inversion = Setup(
        task, targets, 16, "rolora", turn=2, clients=clients, window_tokens=window
    )
    planted = replace(
        open_to_inversion, targets=VALUES[model], rank=4, sharing="ffa", turn=1, warm=0.0
    )
    return open_to_inversion, planted


def shown(result: GameResult) -> str:
    """What was recovered, with its interval."""
    low, high = result.interval
    return f"{result.recovered:.2f} [{low:.2f}, {high:.2f}]"


def refusal(result: GameResult) -> str:
    """Who refused, in a few words."""
    if result.refused_by is None:
        return "nobody"
    return f"{result.refused_by.error}, {result.refused} of {result.trials}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="minilm")
    parser.add_argument(
        "--corpus", default="builtin:state-of-the-union", help="a built-in corpus, or a folder"
    )
    parser.add_argument("--clients", type=int, action="append", help="of a round; default 4")
    parser.add_argument("--tokens", type=int, default=12, help="of a text")
    parser.add_argument("--trials", type=int, default=20, help="of each row")
    parser.add_argument("--only", action="append", choices=list(GAMES), help="may be repeated")
    parser.add_argument("--planted", action="store_true", help="measure a planted model instead")
    parser.add_argument(
        "--noise", type=float, action="append", help="multipliers for --planted; default 0"
    )
    parser.add_argument("--out", type=Path, default=Path("malicious_server.jsonl"))
    parser.add_argument("--offline", action="store_true", help="fetch nothing")
    options = parser.parse_args()
    if options.trials < 1:
        parser.error(f"--trials: {options.trials}; it must be >= 1")
    torch.set_num_threads(1)
    source, task, _ = MODELS[options.model]
    labels = 2 if task == "sequence-classification" else None
    section = ModelSection(source=source, task=task, labels=labels)
    corpus = load_corpus(options.corpus, cache=cache_dir(), offline=options.offline)
    console = Console()
    table = Table(title=f"A hostile server, {options.model}, n = {options.trials} a row")
    for name in ("game", "clients", "noise", "protocol", "refused by", "victim's tokens read",
                 "of all", "set_precision", "control"):  # fmt: skip
        table.add_column(name)

    def bench(clients: int, *, planted: bool) -> Bench:
        loaded = load_model(section, cache=cache_dir(), offline=options.offline, device=CPU)
        setup = setups(options.model, clients, options.tokens)[planted]
        return Bench(adapted(loaded.model, setup, 0), loaded.tokenizer, setup)

    def report(results: list[GameResult], noise: float) -> None:
        result = together(results)
        line = {"model": options.model, "tokens": options.tokens, "noise": noise}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | result.as_json(), allow_nan=False, sort_keys=True) + "\n")
        of_all, precision = (
            f"{result.figures[name]:.2f}" if name in result.figures else ""
            for name in ("set_recall_of_all", "set_precision")
        )
        table.add_row(result.game, f"{result.figures['clients']:.0f}", f"{noise:g}",
                      result.protocol, refusal(result), shown(result), of_all, precision,
                      f"{result.control:.2f}")  # fmt: skip
        console.print(result.game, result.protocol, refusal(result), shown(result))

    seeds = range(options.trials)
    for clients in options.clients or [4]:
        made: dict[bool, Bench] = {}
        for name in ["planted-model"] if options.planted else options.only or list(GAMES):
            planted = name in PLANTED
            if planted not in made:
                made = {planted: bench(clients, planted=planted)}
            texts = sentences(corpus, made[planted].tokenizer, options.tokens)
            if options.planted:
                for noise in options.noise or [0.0]:
                    policy = replace(NOISED, noise_multiplier=noise) if noise else BARE
                    report(
                        [
                            planted_model(
                                Parties(made[True], seed, texts), seed, weakened=True, policy=policy
                            )
                            for seed in seeds
                        ],
                        noise,
                    )
                continue
            for weakened in (False, True):
                report(
                    [
                        play(name, made[planted], seed, weakened=weakened, texts=texts)
                        for seed in seeds
                    ],
                    0.0 if weakened or name not in NOISY else NOISED.noise_multiplier,
                )
    console.print(table)


NOISY = ("watched-token", "watched-rounds", "sybils", "same-victim", "random-cohorts", "retry")
"""Games whose rounds carry noise as they are."""


if __name__ == "__main__":
    main()
