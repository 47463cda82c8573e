"""How each method of the table trains: rounds over the library's own parts, or a loop said here.

What travels of an adapter is chosen, averaged and written back by the code that a run uses
(``AdapterParts``, ``PersonalParts``, ``ServerStep``, ``RankLayout``), and each sum is of encoded
vectors, as a masked round would add them to the same bits.  Only full fine-tuning is averaged in
float32: encoding a hundred million values for every client and round would take most of the time.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from bench import CPU, Cohort, plain_sum
from numpy.typing import NDArray
from sharing_tasks import Clients, Task
from torch import nn

from securefed.config import TrainingSection
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.personal import PersonalParts
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.federation.slices import SlicedSession
from securefed.lora.parts import AdapterParts
from securefed.lora.ranks import RankLayout, limited_to_rank
from securefed.lora.tiers import RankTiers
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.training.data import Examples
from securefed.training.evaluate import evaluate
from securefed.training.steps import AdamWTrainer

AVERAGED = TrainingSection(server_optimizer="sgd", server_learning_rate=1.0)
_MODEL = hashlib.sha256(b"securefed/1/accuracy experiment").digest()


@dataclass
class Trained:
    """A model after its rounds.

    Attributes:
        model: holds the server's values.
        values: most values that a client sends in a round.
        kept: values that a client keeps of its own, and never sends.
        seconds: CPU seconds of each client's training in each round.
        own: by client, the block in which the model is that client's; not there where all use one.
        common: whether there is one model for clients that took no part.
        notes: figures of this method alone.
    """

    model: nn.Module
    values: int
    kept: int = 0
    seconds: list[float] = field(default_factory=list)
    own: Mapping[str, Callable[[], AbstractContextManager[None]]] = field(default_factory=dict)
    common: bool = True
    notes: dict[str, float] = field(default_factory=dict)

    def at(self, client: str) -> AbstractContextManager[None]:
        """The block in which the model is what ``client`` would use."""
        return self.own.get(client, nullcontext)()


def arithmetic(task: Task) -> AbstractContextManager[None]:
    """Matrix products as the task wants them.

    Without the cache of cast weights, which within one block would keep those of its first step.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=task.bfloat16, cache_enabled=False)


def local_steps(
    task: Task,
    model: nn.Module,
    examples: Examples,
    *,
    rate: float,
    number: int,
    seed: int,
    steps: int | None = None,
) -> float:
    """One client's training in a round; CPU seconds."""
    started = time.process_time()
    trainer = AdamWTrainer(
        local_steps=steps or task.local_steps,
        batch_size=task.batch_size,
        learning_rate=rate,
        task=task.model.task,
        device=CPU,
        seed=seed,
    )
    with arithmetic(task):
        trainer.train(model, examples, number)
    return time.process_time() - started


def policy_of(task: Task) -> PrivacyPolicy:
    """No noise, and a clip that nothing reaches."""
    return PrivacyPolicy(clip_norm=task.clip_norm, mechanism="none", rounds=task.rounds)


# -- methods -------------------------------------------------------------------------------


def full(task: Task, model: nn.Module, clients: Clients, *, rate: float, seed: int) -> Trained:
    """FedAvg of all parameters, the deltas' mean in float32."""
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    trained = Trained(model, sum(p.numel() for p in parameters.values()))
    with torch.no_grad():
        start = {name: p.detach().clone() for name, p in parameters.items()}
    for number in range(1, task.rounds + 1):
        moved = {name: torch.zeros_like(value) for name, value in start.items()}
        for examples in clients.train.values():
            trained.seconds.append(
                local_steps(task, model, examples, rate=rate, number=number, seed=seed)
            )
            with torch.no_grad():
                for name, p in parameters.items():
                    moved[name].add_(p - start[name], alpha=1.0 / len(clients.train))
                    p.copy_(start[name])
        with torch.no_grad():
            for name, p in parameters.items():
                start[name].add_(moved[name])
                p.copy_(start[name])
    return trained


def shared(
    task: Task, model: nn.Module, clients: Clients, *, sharing: str, rate: float, seed: int
) -> Trained:
    """Rounds of one of the library's sharing modes."""
    parts = AdapterParts(model, sharing)
    kept = PersonalParts(parts)
    server = ServerStep(parts, lambda initial: ServerOptimizer.of(initial, AVERAGED))
    cohort = Cohort.of(tuple(sorted(clients.train)))
    own = {name: partial(kept.of, name) for name in cohort.names} if kept.some else {}
    trained = Trained(model, parts.dimension, own=own)
    for number in range(1, task.rounds + 1):
        parts.begin(number)
        kept.forget_new()
        session = cohort.session(number, policy_of(task), parts.dimension)
        encoded = {}
        for name in cohort.names:
            with kept.of(name):
                before = parts.flat()
                trained.seconds.append(
                    local_steps(
                        task, model, clients.train[name], rate=rate, number=number, seed=seed
                    )
                )
                kept.trained(name)
                delta = parts.flat() - before
                parts.load_flat(before)
            encoded[name] = session.codec.encode_update(delta, NoiseGenerator())
        server.step(number, -plain_sum(session, encoded) / len(cohort.names))
        kept.take_over(cohort.names)
    trained.kept = sum(tensor.numel() for tensor in parts.kept().values())
    return trained


@dataclass(frozen=True)
class Tiered:
    """Clients of unlike ranks over one adapter of the largest (``lora.ranks``)."""

    ranks: Mapping[str, int]
    layout: RankLayout

    @classmethod
    def of(cls, task: Task, parts: AdapterParts, names: tuple[str, ...]) -> Tiered:
        """Ranks go around the clients in the order of their names: by nothing of their data."""
        ranks = {name: task.tiers[i % len(task.tiers)] for i, name in enumerate(names)}
        tiers = RankTiers(tuple(sorted(set(ranks.values()))))
        return cls(ranks, RankLayout(tiers, parts.layout.shapes))

    def session(self, cohort: Cohort, number: int, policy: PrivacyPolicy) -> SlicedSession:
        """The public description of round ``number``."""
        tiers = self.layout.tiers
        return SlicedSession(
            session=secrets.token_bytes(16),
            round=number,
            roster={name: key.public for name, key in cohort.identities.items()},
            tiers={name: tiers.tier(rank) for name, rank in self.ranks.items()},
            widths=self.layout.widths,
            policy=policy,
            aggregation=PairwiseAggregation(),
            model=_MODEL,
        )


def tiered(task: Task, model: nn.Module, clients: Clients, *, rate: float, seed: int) -> Trained:
    """B of unlike ranks over one frozen A: each slice of columns averaged over who holds it."""
    parts = AdapterParts(model, "ffa")
    cohort = Cohort.of(tuple(sorted(clients.train)))
    tiers = Tiered.of(task, parts, cohort.names)
    order = tiers.layout.order()
    own = {name: partial(limited_to_rank, model, tiers.ranks[name]) for name in cohort.names}
    server = ServerStep(parts, lambda initial: ServerOptimizer.of(initial, AVERAGED))
    trained = Trained(model, parts.dimension, own=own)
    for number in range(1, task.rounds + 1):
        session = tiers.session(cohort, number, policy_of(task))
        encoded: dict[str, tuple[NDArray[np.uint32], ...]] = {}
        for name in cohort.names:
            before = parts.flat()
            with own[name]():
                low = parts.flat()
                trained.seconds.append(
                    local_steps(
                        task, model, clients.train[name], rate=rate, number=number, seed=seed
                    )
                )
                delta = parts.flat() - low
            parts.load_flat(before)
            codec = session.codec(session.tiers[name])
            encoded[name] = codec.encode_update(delta[order[: codec.dimension]], NoiseGenerator())
        mean, start = np.zeros(order.size), 0
        for place, one in enumerate(session.sessions):
            total = plain_sum(one, {name: encoded[name][place] for name in one.cohort})
            stop = start + total.size
            mean[order[start:stop]] = total / len(one.cohort)
            start = stop
        server.step(number, -mean)
    return trained


@dataclass
class Copies:
    """Each client's own values of what trains in one model, in turn."""

    parts: AdapterParts
    of_client: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @contextmanager
    def at(self, client: str) -> Iterator[None]:
        """The client's values in the model; afterwards what was there before."""
        before = self.parts.flat()
        self.parts.load_flat(self.of_client[client])
        try:
            yield
        finally:
            self.parts.load_flat(before)


def alone(task: Task, model: nn.Module, clients: Clients, *, rate: float, seed: int) -> Trained:
    """Each client by itself, with as many steps as in the rounds; nothing travels."""
    parts = AdapterParts(model, "ffa")
    copies = Copies(parts)
    initial = parts.flat()
    own = {name: partial(copies.at, name) for name in clients.train}
    trained = Trained(model, 0, kept=parts.dimension, own=own, common=False)
    for name, examples in clients.train.items():
        parts.load_flat(initial)
        for number in range(1, task.rounds + 1):
            trained.seconds.append(
                local_steps(task, model, examples, rate=rate, number=number, seed=seed)
            )
        copies.of_client[name] = parts.flat()
    parts.load_flat(initial)
    return trained


WEIGHTS = (0.25, 0.5, 0.75, 1.0)


def personal(
    task: Task,
    model: nn.Module,
    clients: Clients,
    *,
    common: NDArray[np.float32],
    rate: float,
    seed: int,
) -> Trained:
    """After FFA's rounds: each client trains a copy of B, and keeps what serves it.

    Of a client's training examples a part is put aside.  The copy is trained on the others, and of
    ``shared + w (copy - shared)`` the w with the least loss on that part is kept; the shared one
    (w = 0) where none is better.  The shared one has seen that part in its rounds, which is to its
    favour.

    Args:
        task: the task.
        model: adapted for ``"ffa"``.
        clients: theirs.
        common: float32[d], what the rounds gave.
        rate: of the copy's steps.
        seed: of the parts and the steps.
    """
    parts = AdapterParts(model, "ffa")
    copies = Copies(parts)
    own = {name: partial(copies.at, name) for name in clients.train}
    trained = Trained(model, parts.dimension, kept=parts.dimension, own=own)
    chosen = []
    for place, (name, examples) in enumerate(sorted(clients.train.items())):
        order = np.random.default_rng([seed, 17, place]).permutation(len(examples))
        aside = min(max(1, round(task.validation * len(examples))), task.most_validation)
        parts.load_flat(common)
        trained.seconds.append(
            local_steps(
                task,
                model,
                examples.take(order[aside:]),
                rate=rate,
                number=task.rounds + 1,
                seed=seed,
                steps=task.personal_steps,
            )
        )
        copy, put_aside = parts.flat(), examples.take(order[:aside])
        best = (loss(task, model, put_aside, parts, common), 0.0)
        copies.of_client[name] = common
        for weight in WEIGHTS:
            between = common + np.float32(weight) * (copy - common)
            found = loss(task, model, put_aside, parts, between)
            if found < best[0]:
                best = (found, weight)
                copies.of_client[name] = between
        chosen.append(best[1])
    parts.load_flat(common)
    trained.notes = {
        "mean_weight": float(np.mean(chosen)),
        "kept_the_shared": float(np.mean([weight == 0.0 for weight in chosen])),
    }
    return trained


def loss(
    task: Task,
    model: nn.Module,
    examples: Examples,
    parts: AdapterParts,
    values: NDArray[np.float32],
) -> float:
    """Mean loss with these values in the model."""
    parts.load_flat(values)
    with arithmetic(task):
        found = evaluate(model, examples, task=task.model.task, micro_batch=32, device=CPU)
    return found.nll_sum / found.tokens
