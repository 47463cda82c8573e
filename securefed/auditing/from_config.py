"""The rounds that a run file describes, with texts dealt by a trial in place of a secret sample.

Everything a client does is the run's own: model, adapter, local steps or per-example gradients,
weights, clip, noise and aggregation come from the objects that a run uses.  What differs: which
examples a client has in the round is chosen by the trial.  Under sampling that is the case that the
sample turned out so; that it is secret is a protection that no view of one round is credited with.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.attacks.scoring import UnigramPrior
from securefed.auditing.configured_rounds import ConfiguredBench, Unencoded, without_noise
from securefed.auditing.rounds import CPU, Bench, Setup, adapted
from securefed.config import RunConfig, load_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.events import Observer, Silent
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.simulation import Federation
from securefed.engines.verified import verified_run
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, LedgerTampered
from securefed.lora.adapter import adapter_state
from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import sharing_mode
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import PlaintextAggregation
from securefed.training.assets import cache_dir
from securefed.training.data import Examples
from securefed.training.models import load_model

Text = tuple[int, ...]

WARM = 0.02
"""Std that B gets where a run has not been trained: the gradient of A is zero while B is."""

_KEPT_UPDATES = 256


@dataclass(eq=False)
class AuditedRun:
    """A run file's model and texts, ready for rounds to be attacked.

    Attributes:
        config: the run file.
        workbench: with the adapter in the state that is audited.
        settings: of the run.
        number: which round is audited.
        state: in words: the state of the adapter.
        texts: token ids of every training example, special ones included, padding left out.
        background: the same of held-out examples.
        offline: fetch nothing.
    """

    config: RunConfig
    workbench: Workbench
    settings: Settings
    number: int
    state: str
    texts: list[Text] = field(repr=False)
    background: list[Text] = field(repr=False)
    _rows: Mapping[Text, Examples] = field(repr=False)
    offline: bool = False
    _known: dict[tuple[object, ...], NDArray[np.float32]] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        config: RunConfig,
        *,
        folder: Path | None = None,
        offline: bool = False,
        observer: Observer | None = None,
    ) -> AuditedRun:
        """Load all that a run of this file would, and choose the round.

        The round is the first in which A travels, if it ever does, as A shows inputs in full; B is
        then drawn at random, as if training had moved it.  Else it is the first.

        Args:
            config: the run file; its texts must be such as may be used for tests.
            folder: of a finished run of this file, whose adapter is attacked in its last state.
            offline: fetch nothing.
            observer: told what is being loaded.

        Raises:
            ConfigError: the file has what is not covered here: mixed ranks, plans, cut or doubled
                vectors, noise over rounds; or as a run.
            LedgerTampered: the run folder does not verify.
        """
        _check_covered(config)
        small = config.training.model_copy(
            update={"micro_batch": 1}
        )  # shapes, no guarantee, differ
        federation = Federation(
            config.model_copy(update={"training": small}),
            observer=Silent() if observer is None else observer,
            offline=offline,
        )
        workbench, settings = federation.prepare()
        turns = sharing_mode(config.lora.sharing).turns
        moves_a = [n for n, turn in enumerate(turns, start=1) if "A" in turn]
        number = moves_a[0] if moves_a else 1
        state = "as made"
        if folder is not None:
            number, state = _trained_state(workbench, RunFolder(folder), number, len(turns))
        elif moves_a:
            _warm(workbench.model)
            state = f"B drawn at random, std {WARM}"
        rows: dict[Text, Examples] = {}
        held_out: list[Text] = []
        for data in workbench.clients.values():
            for row in range(len(data.train)):
                one = data.train.take([row])
                rows.setdefault(_text(one), one)
            held_out += [_text(data.held_out.take([row])) for row in range(len(data.held_out))]
        return cls(config, workbench, settings, number, state, list(rows), held_out, rows, offline)

    def prior(self) -> UnigramPrior:
        """The best guess without an update, by held-out texts."""
        return UnigramPrior(self.background, self.special)

    @property
    def special(self) -> tuple[int, ...]:
        """Ids that stand in every text, or in none."""
        return tuple(int(token) for token in self.workbench.tokenizer.all_special_ids)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model embeds."""
        model = cast(Any, self.workbench.model)
        return int(model.get_input_embeddings().weight.shape[0])

    @property
    def removes_noise(self) -> bool:
        """Whether excess noise is removed from its sums."""
        return self.settings.sum_policy.remove_excess_noise

    @property
    def share(self) -> int:
        """How many examples a client has in a round, expected or set."""
        if not self.settings.one_step:
            return self.config.training.batch_size
        return max(1, round(self.config.privacy.expected_batch / len(self.workbench.clients)))

    def setup(self, batch: int, clients: int | None = None) -> Setup:
        """The rounds, as attacks are told of them."""
        config, one_step = self.config, self.settings.one_step
        causal = config.model.task == "causal-lm"
        return Setup(
            task=config.model.task,
            targets=tuple(config.lora.target_modules),
            rank=config.lora.rank,
            sharing=config.lora.sharing,
            turn=self.number,
            local_steps=1 if one_step else config.training.local_steps,
            batch=batch,
            learning_rate=1.0 if one_step else config.training.local_learning_rate,
            optimizer="sgd" if one_step else config.training.local_optimizer,
            clients=len(self.workbench.clients) if clients is None else clients,
            window_tokens=config.data.window_tokens if causal else None,
        )

    def bench(
        self,
        *,
        noise: bool | float,
        masks: bool,
        batch: int = 1,
        clients: int | None = None,
        moves: bool = True,
    ) -> ConfiguredBench:
        """Rounds with the run's protections, or without some of them.

        Args:
            noise: as the run file has it; else none.  A number z > 0: distributed noise of which
                each client adds a share of std z clip norms to every coordinate.
            masks: or encryption, as the run file has it; else contributions are in the clear.
            batch: examples of each client in a round.
            clients: how many; as many as the run has without it.
            moves: as of :class:`ConfiguredBench`.

        Raises:
            ConfigError: the run file has no such protection.
        """
        policy = self.settings.sum_policy
        if policy.unit != "client":
            # The trial has drawn already.
            policy = replace(policy, sampling_probability=1.0)
        if noise is True and policy.mechanism != "distributed":
            raise ConfigError(
                f"privacy.mechanism = {self.config.privacy.mechanism!r}: clients of this run add "
                "no noise to what they send"
            )
        if masks and isinstance(self.settings.aggregation, PlaintextAggregation):
            raise ConfigError("aggregation.kind = 'plaintext': nothing is hidden in this run")
        if noise is not True:
            policy = without_noise(policy)
            size = len(self.workbench.clients) if clients is None else clients
            if noise:
                honest = CohortBounds.of(policy, size).honest_floor
                policy = replace(
                    policy, mechanism="distributed", noise_multiplier=noise * math.sqrt(honest)
                )
        aggregation = self.settings.aggregation if masks else PlaintextAggregation()
        return ConfiguredBench(
            self,
            policy=policy,
            aggregation=aggregation,
            batch=batch,
            clients=clients,
            moves=moves,
        )

    def contribution(self, texts: Sequence[Text], policy: PrivacyPolicy) -> NDArray[np.float32]:
        """What a client with these texts makes, before it is encoded; the same for the same."""
        key = (self.workbench.adapter_hash(), self.number, policy.clip_norm, *texts)
        if key not in self._known:
            if len(self._known) >= _KEPT_UPDATES:
                self._known.pop(next(iter(self._known)))
            name = next(iter(self.workbench.clients))
            self.workbench.begin_round(self.number)
            encode = self.workbench.encoder(self.settings, self.number, name)
            made = encode(self._examples(texts), Unencoded(policy), NoiseGenerator())
            self._known[key] = made.astype(np.float32)
            self.workbench.close_gradients()  # an attack's own backward pass must not meet hooks
        return self._known[key]

    def control(self, batch: int = 1) -> Bench:
        """Rounds of two over all attention weights, without LoRA, noise or masks.

        An attack that recovers nothing here fails for reasons of its own.

        Raises:
            ConfigError: the base model is quantised, so that its weights have no gradient.
        """
        if self.config.model.quantize != "none":
            raise ConfigError(
                f"model.quantize = {self.config.model.quantize!r}: its weights do not train"
            )
        return self.fresh(
            replace(
                self.setup(batch, 2),
                sharing="full",
                local_steps=1,
                learning_rate=1.0,
                optimizer="sgd",
            )
        )

    def fresh(self, setup: Setup) -> Bench:
        """Rounds of the run's base model, loaded anew, in another setup: no noise and no masks."""
        loaded = load_model(self.config.model, cache=cache_dir(), offline=self.offline, device=CPU)
        return Bench(adapted(loaded.model, setup, 0), loaded.tokenizer, setup)

    def released(self) -> dict[str, torch.Tensor]:
        """The adapter in the state that is audited, by name."""
        return adapter_state(self.workbench.model)

    def digest(self) -> bytes:
        """SHA-256 over all texts and labels; secret: who knows all but one could test a guess."""
        rows = [
            (text, None if row.labels is None else row.labels.tolist())
            for text, row in self._rows.items()
        ]
        return hashlib.sha256(repr((rows, self.background)).encode()).digest()

    def subject(self) -> dict[str, Any]:
        """Name and fingerprint of the base model."""
        return {"source": self.workbench.model_name, "fingerprint": self.workbench.fingerprint}

    def _examples(self, texts: Sequence[Text]) -> Examples:
        rows = [self._rows[text] for text in texts]
        labels = [row.labels for row in rows if row.labels is not None]
        every = range(len(rows))
        return Examples(
            np.concatenate([row.input_ids for row in rows]),
            np.concatenate([row.attention_mask for row in rows]),
            np.concatenate(labels) if labels else None,
            np.array(every, dtype=np.int64) if rows[0].users is not None else None,
        )


def audited_file(path: Path) -> tuple[RunConfig, Path | None]:
    """The run file that an argument names, and the run folder if it is one.

    Raises:
        ConfigError: it is neither a run file nor a run folder.
    """
    if path.is_dir():
        folder = RunFolder(path)
        for file in (folder.config, folder.ledger):
            if not file.is_file():
                raise ConfigError(
                    f"{file} is missing: {path} is not a run folder; name a run file, or the "
                    "folder that `securefed run` printed"
                )
        return load_config(folder.config), path
    return load_config(path), None


def _check_covered(config: RunConfig) -> None:
    training, cohort = config.training, config.cohort
    for what, there in {
        "cohort.ranks": bool(cohort.ranks),
        "cohort.schedule.carry_out": cohort.schedule.carry_out,
        "training.sparsify": training.sparsify != "none",
        "training.control_weight": training.control_weight is not None,
        "training.trainer": training.trainer is not None,
        "training.class_weights": training.class_weights is not None,
        "data.messages_field": config.data.messages_field is not None,
        "privacy.sampling = 'cyclic'": config.privacy.sampling == "cyclic",
    }.items():
        if there:
            raise ConfigError(
                f"{what}: rounds of such a run cannot be audited from its file yet; audit a run "
                "file without it"
            )


def _text(one: Examples) -> Text:
    (ids,), (mask,) = one.input_ids.tolist(), one.attention_mask.tolist()
    return tuple(ids[: sum(mask)])


def _warm(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if ".lora_B." in name:
                parameter.copy_(WARM * torch.randn(parameter.shape, generator=generator))


def _trained_state(
    workbench: Workbench, folder: RunFolder, number: int, turns: int
) -> tuple[int, str]:
    """Put the adapter into the state after the last round, and say which round would be next."""
    history = verified_run(folder.path).history
    workbench.load_initial(folder.initial)
    state = folder.load_checkpoint(history.applied)
    if state is None:
        raise LedgerTampered(f"{folder.checkpoints}: no state after round {history.applied}")
    served = {name: tuple(value.shape) for name, value in workbench.parts.served().items()}
    layout = AdapterLayout(served)
    values = state["parameters"].numpy()
    if values.shape != (layout.size,):
        raise LedgerTampered(f"{folder.checkpoints}: parameters of {values.shape} do not fit")
    workbench.parts.load_served(layout.unflatten(values))
    if workbench.adapter_hash().hex() != history.adapter:
        raise LedgerTampered(
            f"{folder.checkpoints}: the state after round {history.applied} is not the one that "
            "the ledger names"
        )
    following = history.applied + 1
    while (following - number) % turns:
        following += 1
    return following, f"after round {history.applied}"
