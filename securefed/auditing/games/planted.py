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
from securefed.auditing.games.results import AS_IT_IS, GameResult, Refusal
from securefed.auditing.rounds import CPU
from securefed.config import ModelSection
from securefed.errors import ConfigError
from securefed.privacy.policy import PrivacyPolicy
from securefed.training.models import load_model, weights_fingerprint

PLANTED = "Fowl et al. 2022 (2110.13057), 2023 (2201.12675); Sami et al. 2025 (2506.04453)"
_STANDS_OUT = 3.0


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
    recovered = control = 0.0
    figures = {"clients": float(len(parties.names))}
    if refusal is None:
        with holding(model, values):
            session = parties.session(policy=policy, model=given(model))
            view = views.opened_sum(parties.opened(session, parties.updates()))
            guess = parties.guessed(view, session, ImprintReader(imprint))
        recovered, control = parties.scored(guess)
        everybody = score(guess, list(parties.texts.values()), special)
        figures |= {
            "bins": float(imprint.rows * len(imprint.modules)),
            "rows_read": guess.figures.get("rows", 0.0),
            "recall_of_all": everybody.token_recall,
            "precision": everybody.token_precision,
            "noise_multiplier": policy.noise_multiplier,
        }
    return GameResult(
        game="planted-model",
        source=PLANTED,
        protocol="check removed: model.fingerprint" if weakened else AS_IT_IS,
        refused_by=Refusal.of(refusal),
        refused=int(refusal is not None),
        recovered=recovered,
        interval=(recovered, recovered),
        control=control,
        trials=1,
        seeds=(seed,),
        figures=figures,
    )


def watched_token(parties: Parties, seed: int, *, weakened: bool) -> GameResult:
    """The server asks one thing of the sum: whether the victim's text holds one token.

    Planted so that no other token moves anything, the victim's update is all of its clip in one
    row if it has the token, and nothing if not: the strongest question that a sum can be asked.
    Nobody refuses; the answer is the clip over the noise, which is what the epsilon is computed
    from.  The check removed: no noise.  ``recovered`` and ``control`` are whether the row stands
    out by three standard deviations with the token of the victim, and with one that nobody has.
    """
    policy = BARE if weakened else NOISED
    special = {int(token) for token in parties.bench.tokenizer.all_special_ids}
    taken = {token for text in parties.texts.values() for token in text} | special
    asked = next(token for token in parties.texts[parties.victim] if token not in special)
    absent = next(token for token in range(len(parties.bench.tokenizer)) if token not in taken)
    session = parties.session(policy=policy)
    found = [_deviations(parties, seed, policy, token) for token in (asked, absent)]
    figures = {"clients": float(len(parties.names)), "deviations": found[0]}
    if not weakened:
        noise = math.sqrt(len(parties.names)) * session.plan.local_std * session.plan.resolution
        figures |= {
            "deviations_expected": policy.clip_norm / noise,
            "epsilon": session.guarantee().epsilon,
        }
    recovered, control = (float(each > _STANDS_OUT) for each in found)
    return GameResult(
        game="watched-token",
        source=PLANTED,
        protocol="check removed: noise" if weakened else AS_IT_IS,
        refused_by=None,
        refused=0,
        recovered=recovered,
        interval=(recovered, recovered),
        control=control,
        trials=1,
        seeds=(seed,),
        figures=figures,
    )


def _deviations(parties: Parties, seed: int, policy: PrivacyPolicy, token: int) -> float:
    """How far the row of one token stands out of a real round's sum."""
    model = parties.bench.model
    others = set(range(len(parties.bench.tokenizer))) - {token}
    generator = torch.Generator().manual_seed(seed)
    values, imprint = planted(model, special=others, generator=generator)
    with holding(model, values):
        session = parties.session(policy=policy, model=given(model))
        view = views.opened_sum(parties.opened(session, parties.updates()))
        longest = max(map(len, parties.texts.values()))
        return deviations(view, parties.bench.public(session), imprint, token, longest)


def _refusal(parties: Parties, values: Mapping[str, torch.Tensor]) -> ConfigError | None:
    """What a client says that loads the planted weights with the honest ones pinned."""
    model, task = parties.bench.model, parties.bench.setup.task
    with tempfile.TemporaryDirectory() as name:
        honest, other = Path(name) / "honest", Path(name) / "planted"
        _write(model, honest)
        with holding(model, values):
            _write(model, other)
        section = ModelSection(
            source=str(other),
            task=task,
            labels=2 if task == "sequence-classification" else None,
            fingerprint=weights_fingerprint(honest),
        )
        try:
            load_model(section, cache=Path(name), offline=True, device=CPU)
        except ConfigError as error:
            return error
    return None


def _write(model: nn.Module, folder: Path) -> None:
    """The base model's weights and configuration, without the adapter."""
    folder.mkdir()
    tensors = {
        name.replace(".base_layer.", "."): p.detach().clone().contiguous()
        for name, p in model.named_parameters(remove_duplicate=False)
        if ".lora_" not in name
    }
    save_file(tensors, folder / "model.safetensors")
    cast(Any, model).config.save_pretrained(folder)
