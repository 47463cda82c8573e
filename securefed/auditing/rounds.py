"""Real rounds over a real model, for attacks to be tried on: one client is the victim."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.attacks.base import PublicKnowledge, Transform
from securefed.attacks.collusion import ColludingClient
from securefed.attacks.views import Transcript
from securefed.config import LoraSection
from securefed.crypto.identity import IdentityKey
from securefed.engines.in_process import carry
from securefed.errors import ConfigError
from securefed.federation.client import ClientRound, Encode
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.lora.adapter import build_adapter
from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import divide, sharing_mode
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PlaintextAggregation
from securefed.secagg.aggregator import SESSION_BYTES, AggregationClient
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encryption import DECRYPTOR
from securefed.training.data import Examples
from securefed.training.steps import AdamWTrainer, SgdTrainer

CPU = torch.device("cpu")
_ATTENTION_WEIGHT = re.compile(r"\.(?:query|key|value|q_proj|k_proj|v_proj)\.weight$")


@dataclass(frozen=True)
class Setup:
    """A model in one state, what trains in it and how.

    Attributes:
        sharing: a sharing mode; ``"full"``: the weights of all attention layers, without LoRA.
        warm: std of B's values; 0: the first round, where B = 0.
        turn: number of the round, which decides what travels where factors alternate.
        clients: n of each round.
        dropout: probability of all of the model's dropout in the local steps; 0: it is off.
    """

    task: str
    targets: tuple[str, ...]
    rank: int
    sharing: str
    turn: int = 1
    warm: float = 0.02
    local_steps: int = 1
    batch: int = 1
    learning_rate: float = 1.0
    optimizer: str = "sgd"
    clients: int = 4
    window_tokens: int | None = None
    dropout: float = 0.0


def adapted(model: nn.Module, setup: Setup, seed: int) -> nn.Module:
    """The base model with the round's adapter, B drawn anew; ``model`` itself without LoRA."""
    if setup.sharing == "full":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_ATTENTION_WEIGHT.search(name) is not None)
        return model
    section = LoraSection(
        rank=setup.rank,
        alpha=float(setup.rank),
        target_modules=list(setup.targets),
        sharing=setup.sharing,
        seed=seed,
    )
    adapted = build_adapter(model, section, task=setup.task)
    divide(adapted, sharing_mode(setup.sharing), setup.turn)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(adapted.named_parameters()):
            if ".lora_B." in name:
                parameter.copy_(setup.warm * torch.randn(parameter.shape, generator=generator))
    return adapted


class Bench:
    """Rounds from one state of one model.

    Args:
        model: with its adapter.
        tokenizer: of the model.
        setup: what trains and how.
        aggregation: of the rounds; without protection by default.
        policy: clip 1 and no noise by default.
        transform: what every client does to its update before it is encoded.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        setup: Setup,
        *,
        aggregation: Aggregation | None = None,
        policy: PrivacyPolicy | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.model, self.tokenizer, self.setup = model, tokenizer, setup
        self._transform = transform
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.layout = AdapterLayout({n: tuple(p.shape) for n, p in self._trained.items()})
        self.names = tuple(f"site-{i:02d}" for i in range(setup.clients))
        self._keys = {name: IdentityKey.generate() for name in (*self.names, DECRYPTOR)}
        self._aggregation = PlaintextAggregation() if aggregation is None else aggregation
        self._policy = PrivacyPolicy(clip_norm=1.0, mechanism="none") if policy is None else policy

    def session(self) -> RoundSession:
        """A new round."""
        parties = [*self.names, *([DECRYPTOR] if self._aggregation.has_decryptor else [])]
        return RoundSession(
            session=secrets.token_bytes(SESSION_BYTES),
            round=1,
            cohort=self.names,
            roster={name: self._keys[name].public for name in parties},
            dimension=self.layout.size,
            policy=self._policy,
            aggregation=self._aggregation,
            model=hashlib.sha256(b"securefed/1/leakage experiment").digest(),
        )

    def public(self, session: RoundSession) -> PublicKnowledge:
        """What everybody knows of it."""
        setup = self.setup
        return PublicKnowledge(
            model=self.model,
            tokenizer=self.tokenizer,
            task=setup.task,
            layout=self.layout,
            session=session,
            sharing=setup.sharing,
            optimizer=setup.optimizer,
            local_steps=setup.local_steps,
            learning_rate=setup.learning_rate,
            batch_size=setup.batch,
            window_tokens=setup.window_tokens,
            dropout=setup.dropout,
            transform=self._transform,
        )

    def update(self, texts: Sequence[Sequence[int]], label: int = 1) -> NDArray[np.float32]:
        """How far local steps on these texts move what travels; the model is left as it was."""
        before = {name: p.detach().clone() for name, p in self._trained.items()}
        kind = SgdTrainer if self.setup.optimizer == "sgd" else AdamWTrainer
        trainer = kind(
            local_steps=self.setup.local_steps,
            batch_size=len(texts),
            learning_rate=self.setup.learning_rate,
            task=self.setup.task,
            device=CPU,
            seed=0,
        )
        with dropping(self.model, self.setup.dropout, texts):
            trainer.train(self.model, examples(texts, self.setup.task, label), 1)
        moved = {name: p.detach() - before[name] for name, p in self._trained.items()}
        flat = self.layout.flatten(moved)
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(before[name])
        return flat if self._transform is None else self._transform(flat)

    def encoding(self, update: NDArray[np.float32]) -> Encode:
        """How a client encodes what :meth:`update` gave it."""
        return lambda codec, noise: codec.encode_update(update, noise)

    def move(self, by: NDArray[np.float64]) -> None:
        """Add a mean update, float[layout.size], to the model."""
        with torch.no_grad():
            for name, moved in self.layout.unflatten(by.astype(np.float32)).items():
                self._trained[name].add_(moved)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The model is as it was, after the block."""
        before = {name: p.detach().clone() for name, p in self._trained.items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._trained.items():
                    parameter.copy_(before[name])

    def colluding(
        self, session: RoundSession, updates: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, ColludingClient]:
        """All clients but the first, as ones that tell the server what they learn."""
        return {
            name: ColludingClient(
                session,
                name,
                self._keys[name],
                self.encoding(updates[name]),
            )
            for name in self.names[1:]
        }

    def run(
        self,
        session: RoundSession,
        updates: Mapping[str, NDArray[np.float32]],
        clients: Mapping[str, AggregationClient] | None = None,
    ) -> tuple[ServerRound, Transcript]:
        """Carry the round; the server, and all that it received.

        Args:
            session: of :meth:`session`.
            updates: of every client.
            clients: those that are not plain ``ClientRound``s.
        """
        server = ServerRound(session)
        parties: dict[str, AggregationClient] = {
            name: ClientRound(
                session,
                name,
                self._keys[name],
                self.encoding(updates[name]),
            )
            for name in self.names
        }
        if self._aggregation.has_decryptor:
            parties[DECRYPTOR] = Decryptor(session.context, self._keys[DECRYPTOR])
        carried = carry(server, parties | dict(clients or {}))
        return server, carried.transcript


@contextmanager
def dropping(
    model: nn.Module, probability: float, texts: Sequence[Sequence[int]]
) -> Iterator[None]:
    """With the model's dropout on in every forward pass, though its trainer puts it off.

    Masks are drawn from a generator of their own, seeded by the texts: no attacker knows it.

    Raises:
        ConfigError: the model has no dropout.
    """
    if probability == 0.0:
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ConfigError(f"dropout = {probability}: the model has no layer of dropout")
    before = [layer.p for layer in layers]
    hooks = [
        model.register_forward_pre_hook(lambda module, _: _mode(module, True)),
        model.register_forward_hook(lambda module, *_: _mode(module, False)),
    ]
    seed = hashlib.sha256(repr([tuple(text) for text in texts]).encode()).digest()
    try:
        for layer in layers:
            layer.p = probability
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(seed[:8], "little") >> 1)
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, p in zip(layers, before, strict=True):
            layer.p = p
        model.eval()


def _mode(module: nn.Module, training: bool) -> None:
    module.train(training)


def examples(texts: Sequence[Sequence[int]], task: str, label: int) -> Examples:
    """Texts, special tokens included, padded on the right; all of one class."""
    width = max(map(len, texts))
    ids = np.zeros((len(texts), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    labels = None if task == "causal-lm" else np.full(len(texts), label, dtype=np.int64)
    return Examples(ids, mask, labels)
