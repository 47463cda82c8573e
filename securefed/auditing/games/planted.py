"""A planted base model, which makes single tokens stand in the sum of any number of clients.

A client whose run file pins the fingerprint of the weights refuses another model when it loads it.
A model that everybody was told to take is refused by nobody: all hold the same hash, and masks
cancel.  What it makes the sum tell is then bounded by noise alone.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from securefed.attacks import views
from securefed.attacks.malicious.imprint import ImprintReader, deviations
from securefed.attacks.malicious.planting import planted
from securefed.attacks.scoring import score
from securefed.auditing.games.parties import BARE, NOISED, Parties, given, holding
from securefed.auditing.games.results import GameResult, one_trial
from securefed.auditing.games.rounds import accounts, charged_round
from securefed.auditing.rounds import CPU
from securefed.config import ModelSection
from securefed.errors import ConfigError, SecureFedError
from securefed.privacy.policy import PrivacyPolicy
from securefed.training.models import load_model, weights_fingerprint

PLANTED = "Fowl et al. 2022 (2110.13057), 2023 (2201.12675); Sami et al. 2025 (2506.04453)"
_STANDS_OUT = 4.8
"""Standard deviations; noise alone does so once in 600,000 times."""
_ROUNDS = 100


def planted_model(
    parties: Parties, seed: int, *, weakened: bool, policy: PrivacyPolicy = BARE
) -> GameResult:
    """The server hands out planted weights and reads single tokens from the sum.

    As it is, the run file pins the honest weights.  The check removed: nothing is pinned, or the
    planted weights are.

    Args:
        parties: on a model that :func:`planted` can plant, B travelling.
        seed: of the planting.
        weakened: whether nothing is pinned.
        policy: of the round that is then played.

    Raises:
        ConfigError: the model is not one that can be planted.
    """
    model = parties.bench.model
    special = [int(token) for token in parties.bench.tokenizer.all_special_ids]
    generator = torch.Generator().manual_seed(seed)
    values, imprint = planted(model, special=special, generator=generator)
    refusal = None if weakened else _refusal(parties, values)
    read = 0.0, 0.0
    figures = {"clients": float(len(parties.names))}
    if refusal is None:
        with holding(model, values):
            session = parties.session(policy=policy, model=given(model))
            view = views.opened_sum(parties.opened(session, parties.updates()))
            guess = parties.guessed(view, session, ImprintReader(imprint))
        read = parties.scored(guess)
        everybody = score(guess, list(parties.texts.values()), special)
        figures |= {
            "bins": float(imprint.rows * len(imprint.modules)),
            "rows_read": guess.figures.get("rows", 0.0),
            "set_recall_of_all": everybody.set_recall,
            "set_precision": everybody.set_precision,
            "noise_multiplier": policy.noise_multiplier,
        }
    return one_trial(
        "planted-model",
        source=PLANTED,
        removed="model.fingerprint",
        weakened=weakened,
        seed=seed,
        refusal=refusal,
        read=read,
        figures=figures,
    )


def watched_token(parties: Parties, seed: int, *, weakened: bool) -> GameResult:
    """The server asks one thing of the sum: whether the victim's text holds one token.

    Planted so that this token alone moves anything, the victim's update is all of its clip in one
    row if it has the token, and nothing if not: the strongest question that a sum can be asked.
    Nobody refuses; the answer is the clip over the noise, which is what the epsilon is computed
    from.  The check removed: no noise.

    ``recovered`` and ``control`` are whether the row stands out of the noise, with a token of the
    victim and with one that nobody has.
    """
    policy = BARE if weakened else NOISED
    return _watched("watched-token", "noise", parties, seed, policy, 1, weakened=weakened)


def watched_rounds(parties: Parties, seed: int, *, weakened: bool) -> GameResult:
    """The same question, asked of the same victim's same text in a hundred noised rounds.

    What the rounds have in common stays in their mean, and noise falls as the root of their number.
    As it is, the victim's account allows one round.  The check removed: no account; all noise is
    there.
    """
    return _watched("watched-rounds", "account", parties, seed, NOISED, _ROUNDS, weakened=weakened)


def _watched(
    game: str,
    removed: str,
    parties: Parties,
    seed: int,
    policy: PrivacyPolicy,
    rounds: int,
    *,
    weakened: bool,
) -> GameResult:
    careful = () if weakened else (parties.victim,)
    model, tokenizer = parties.bench.model, parties.bench.tokenizer
    special = {int(token) for token in tokenizer.all_special_ids}
    taken = {token for text in parties.texts.values() for token in text} | special
    asked = next(token for token in parties.texts[parties.victim] if token not in special)
    absent = next(token for token in range(len(tokenizer)) if token not in taken)
    generator = torch.Generator().manual_seed(seed)
    others = set(range(len(tokenizer))) - {asked, absent}
    values, imprint = planted(model, special=others, generator=generator)
    opened: list[views.OpenedSum] = []
    refusal: SecureFedError | None = None
    with holding(model, values), accounts(careful) as charge_of:
        updates, hashed = parties.updates(), given(model)
        for number in range(1, rounds + 1):
            session = parties.session(policy=policy, model=hashed, number=number)
            found, refusal = charged_round(parties, session, updates, charge_of)
            if found is None:
                break
            opened.append(found)
        public = parties.bench.public(session)
        mean = views.sums_over_rounds(opened)
        # The mean's noise is that of one sum over the root of their number.
        seen, unseen = (
            math.sqrt(len(opened)) * deviations(mean, public, imprint, token)
            for token in (asked, absent)
        )
    figures = {
        "clients": float(len(parties.names)),
        "sums_opened": float(len(opened)),
        "deviations": seen,
    }
    if policy.mechanism != "none":
        plan = session.plan
        noise = math.sqrt(len(parties.names)) * plan.local_std * plan.resolution
        figures |= {
            "deviations_expected": math.sqrt(len(opened)) * policy.clip_norm / noise,
            "epsilon_of_one": session.guarantee(rounds=1).epsilon,
            "epsilon_of_all": session.guarantee(rounds=rounds).epsilon,
        }
    return one_trial(
        game,
        source=PLANTED,
        removed=removed,
        weakened=weakened,
        seed=seed,
        refusal=refusal,
        read=(float(seen > _STANDS_OUT), float(unseen > _STANDS_OUT)),
        figures=figures,
    )


def _refusal(parties: Parties, values: Mapping[str, torch.Tensor]) -> ConfigError | None:
    """What a client says that loads the planted weights with the honest ones pinned.

    Raises:
        ConfigError: it says something else than that the fingerprint is not the pinned one.
    """
    model, task = parties.bench.model, parties.bench.setup.task
    with tempfile.TemporaryDirectory() as name:
        honest, other = Path(name) / "honest", Path(name) / "planted"
        _write(model, honest)
        with holding(model, values):
            _write(model, other)
        for folder in (honest, other):
            parties.bench.tokenizer.save_pretrained(folder)
        section = ModelSection(
            source=str(other),
            task=task,
            labels=cast(Any, model).config.num_labels if task.startswith("sequence") else None,
            fingerprint=weights_fingerprint(honest),
        )
        try:
            load_model(section, cache=Path(name), offline=True, device=CPU)
        except ConfigError as error:
            if not str(error).startswith("model.fingerprint"):
                raise
            return ConfigError(str(error).replace(f"{name}/", ""))  # no path of this machine
    return None


def _write(model: nn.Module, folder: Path) -> None:
    """The base model's weights and configuration, without the adapter, by the base's own names."""
    folder.mkdir()
    tensors = {
        _own_name(name): p.detach().clone().contiguous()
        for name, p in model.named_parameters(remove_duplicate=False)
        if ".lora_" not in name and ".original_module." not in name
    }
    save_file(tensors, folder / "model.safetensors")
    cast(Any, model).config.save_pretrained(folder)


def _own_name(name: str) -> str:
    """A parameter's name without what an adapter adds to it."""
    plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return plain.replace(".modules_to_save.default.", ".")
