"""Poisoned clients tried on real rounds: what they do to a task, and what a defence leaves."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.attacks.base import PublicKnowledge
from securefed.attacks.poisoning.backdoor import Trigger
from securefed.attacks.poisoning.clients import PoisonedClient
from securefed.attacks.poisoning.training import local_update
from securefed.auditing.poisoning_results import Defence, Outcome, PoisoningResult, Rate
from securefed.crypto.identity import IdentityKey
from securefed.engines.in_process import carry
from securefed.errors import ConfigError
from securefed.federation.client import ClientRound, Encode
from securefed.federation.group_sums import GroupedSession
from securefed.federation.robust_mean import robust_mean
from securefed.federation.server import ServerRound
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.session import RoundSession
from securefed.lora.layout import AdapterLayout
from securefed.secagg.aggregations import Aggregation
from securefed.secagg.aggregator import SESSION_BYTES
from securefed.training.data import Examples
from securefed.training.evaluate import batches, predict

_TASK = "sequence-classification"
_CPU = torch.device("cpu")
_MICRO_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an honest client trains, and the server steps on the mean of the updates."""

    local_steps: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-2
    optimizer: str = "adamw"
    server_learning_rate: float = 1.0


class Federation:
    """A cohort that trains one classifier; some of its clients may be poisoned.

    Args:
        model: with its adapter, at the beginning of training.
        tokenizer: of the model.
        clients: training examples by client id, two clients or more.
        held_out: what is measured on.
        training: how honest clients train.
        aggregation: how each sum is formed.
        most_corrupt: clients that thresholds and noise are sized against, >= 0.
        sharing: of the adapter, as public knowledge.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        clients: Mapping[str, Examples],
        held_out: Examples,
        *,
        training: Training,
        aggregation: Aggregation,
        most_corrupt: int = 0,
        sharing: str = "ffa",
    ) -> None:
        self._model, self._tokenizer, self._sharing = model, tokenizer, sharing
        self._clients, self._held_out = dict(sorted(clients.items())), held_out
        self._training, self._aggregation = training, aggregation
        self._corrupt = most_corrupt / len(clients)
        self._trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._layout = AdapterLayout({n: tuple(p.shape) for n, p in self._trained.items()})
        self._initial = self._layout.flatten(self._trained)
        self._keys = {name: IdentityKey.generate() for name in self._clients}

    def run(
        self,
        attack: PoisonedClient | None,
        defence: Defence,
        trigger: Trigger,
        *,
        malicious: int,
        rounds: int,
        seed: int,
    ) -> Outcome:
        """Train from the beginning and measure; the model then is as it was.

        Args:
            attack: what poisoned clients do, in every round; None: none is.
            defence: how updates are bounded and combined.
            trigger: that success is measured with.
            malicious: k, how many are poisoned; drawn by ``seed``.
            rounds: >= 1.
            seed: of that draw, of the order of examples and of the attack's choices.

        Raises:
            ConfigError: k is not within the cohort; or the defence does not fit it.
        """
        if not 0 <= malicious < len(self._clients) or rounds < 1:
            raise ConfigError(
                f"malicious = {malicious} of {len(self._clients)}, rounds = {rounds}: must be "
                "0..n - 1 and >= 1"
            )
        started, names = time.perf_counter(), list(self._clients)
        drawn = np.random.default_rng([seed, 1]).permutation(len(names))[:malicious]
        bad = {names[place] for place in drawn} if attack is not None else set()
        optimizer = ServerOptimizer(
            self._initial, kind="sgd", learning_rate=self._training.server_learning_rate
        )
        norms: list[float] = []

        def encoding(name: str, session: RoundSession) -> Encode:
            public, own = self._public(session), self._clients[name]
            turn = names.index(name) + len(names) * session.round
            if attack is not None and name in bad:
                generator = torch.Generator().manual_seed((seed << 32) + turn)
                return attack.contribution(own, public, generator=generator)
            update = local_update(public, own, seed=turn + (seed << 20))
            norms.append(float(np.linalg.norm(update)))
            return lambda codec, noise: codec.encode_update(update, noise)

        try:
            for number in range(1, rounds + 1):
                self._load(optimizer.parameters)
                means = [
                    self._mean(session, encoding) for session in self._sessions(defence, number)
                ]
                mean = robust_mean(means, rule=defence.rule, tolerated=defence.tolerated)
                optimizer.step(-mean)
            self._load(optimizer.parameters)
            victims = trigger.victims(self._held_out)
            asked = np.full(len(victims), trigger.label, dtype=np.int64)
            plain = Examples(victims.input_ids, victims.attention_mask, asked)
            return Outcome(
                seed,
                self._hits(self._held_out),
                self._hits(trigger.stamp(victims)),
                self._hits(plain),
                np.array(norms),
                time.perf_counter() - started,
            )
        finally:
            self._load(self._initial)

    def measure(
        self,
        attack: PoisonedClient | None,
        defence: Defence,
        trigger: Trigger,
        *,
        malicious: int,
        rounds: int,
        seeds: Sequence[int],
    ) -> PoisoningResult:
        """One cell of a matrix: a run a seed, otherwise as :meth:`run`.

        Args:
            attack: what poisoned clients do.
            defence: what stands against it.
            trigger: that success is measured with.
            malicious: k.
            rounds: of each run.
            seeds: one or more, all different.

        Raises:
            ConfigError: there is no seed or one is there twice; or as of :meth:`run`.
        """
        if not seeds or len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds = {list(seeds)}: must be one or more, all different")
        runs = [
            self.run(attack, defence, trigger, malicious=malicious, rounds=rounds, seed=seed)
            for seed in seeds
        ]
        return PoisoningResult(
            attack="none" if attack is None else attack.name,
            defence=defence,
            aggregation=type(self._aggregation).__name__,
            clients=len(self._clients),
            malicious=0 if attack is None else malicious,
            rounds=rounds,
            accuracy=Rate.of(np.stack([run.correct for run in runs])),
            success=Rate.of(np.stack([run.fooled for run in runs])),
            base=Rate.of(np.stack([run.unstamped for run in runs])),
            seeds=tuple(seeds),
            seconds=float(np.mean([run.seconds for run in runs])),
        )

    def _sessions(self, defence: Defence, number: int) -> Sequence[RoundSession]:
        common: dict[str, Any] = {
            "session": secrets.token_bytes(SESSION_BYTES),
            "round": number,
            "cohort": tuple(self._clients),
            "roster": {name: key.public for name, key in self._keys.items()},
            "dimension": self._layout.size,
            "policy": defence.policy(self._corrupt),
            "aggregation": self._aggregation,
            "model": hashlib.sha256(b"securefed/1/poisoning experiment").digest(),
        }
        if defence.groups == 1:
            return (RoundSession(**common),)
        return GroupedSession(**common, groups=defence.groups).sessions

    def _mean(
        self, session: RoundSession, encoding: Callable[[str, RoundSession], Encode]
    ) -> NDArray[np.float64]:
        """The mean of one secure sum's contributions, by a real round."""
        server = ServerRound(session)
        carry(
            server,
            {
                name: ClientRound(session, name, self._keys[name], encoding(name, session))
                for name in session.cohort
            },
            keep_transcript=False,
        )
        return server.sum / len(server.survivors)

    def _public(self, session: RoundSession) -> PublicKnowledge:
        training = self._training
        return PublicKnowledge(
            model=self._model,
            tokenizer=self._tokenizer,
            task=_TASK,
            layout=self._layout,
            session=session,
            sharing=self._sharing,
            optimizer=training.optimizer,
            local_steps=training.local_steps,
            learning_rate=training.learning_rate,
            batch_size=training.batch_size,
        )

    def _load(self, values: NDArray[np.float32]) -> None:
        tensors = self._layout.unflatten(values)
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(tensors[name])

    def _hits(self, examples: Examples) -> NDArray[np.bool_]:
        with torch.no_grad():
            found = [
                predict(self._model, batch, _TASK).hit[:, 0].numpy()
                for batch in batches(examples, _MICRO_BATCH, _CPU)
            ]
        return np.concatenate(found)
