"""Drives the two halves of a protocol in tests, with a hand on every message."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import system_random
from securefed.encoding.fixed_point import to_ring
from securefed.errors import ProtocolError
from securefed.privacy.layers import removable_stds
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encryption import DECRYPTOR, RoundEncryption
from securefed.secagg.noise_layers import NoiseLayers, chain, noise_of
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.parameters import PairwiseParameters

Meddle = Callable[[Stage, str, bytes], bytes]
Party = PairwiseClient | Decryptor

COMPLETE_STAGES: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage != "graph")


@dataclass
class Cohort:
    """A cohort with known inputs; with a degree, a sparse graph (also far below 200 clients).

    With ``encrypted`` contributions are encrypted beneath their masks, and there is a decryptor.
    """

    size: int = 5
    degree: int | None = None
    length: int = 40
    bits: int = 32
    corrupt: float = 0.0
    dropout: float = 0.25
    seed: int = 0
    binding: bytes = bytes(32)
    noise: float = 0.0  # std of the honest survivors' noise in grid units; > 0: layers of it
    value_bound: int | None = None  # inputs within +-this; None: anywhere in the ring
    encrypted: bool = False
    identities: dict[str, IdentityKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = tuple(f"c{i:03}" for i in range(self.size))
        rng = np.random.default_rng(self.seed)
        self.inputs = {
            name: rng.integers(0, 2**self.bits, self.length, dtype=np.uint32, endpoint=False)
            if self.bits < 32
            else rng.integers(0, 2**32, self.length, dtype=np.uint32)
            for name in self.names
        }
        if self.value_bound is not None:
            bound = self.value_bound
            self.inputs = {
                name: to_ring(rng.integers(-bound, bound + 1, self.length)) & self.mask
                for name in self.names
            }
        for name in self.names + ((DECRYPTOR,) if self.encrypted else ()):
            self.identities.setdefault(name, IdentityKey.generate())

    def context(self, *, session: bytes = b"s" * 16, number: int = 1) -> RoundContext:
        policy = PrivacyPolicy(
            clip_norm=1.0,
            mechanism="none",
            corrupt_fraction=self.corrupt,
            dropout_fraction=self.dropout,
        )
        bounds = CohortBounds.of(policy, self.size)
        return RoundContext(
            session=session,
            round=number,
            cohort=self.names,
            roster={name: key.public for name, key in self.identities.items()},
            length=self.length,
            bits=self.bits,
            parameters=self.parameters(bounds),
            binding=self.binding,
            noise_layers=removable_stds(self.noise, bounds) if self.noise else (),
            encryption=self.encryption(),
        )

    def encryption(self) -> RoundEncryption | None:
        if not self.encrypted:
            return None
        assert self.value_bound is not None
        largest = self.value_bound + math.ceil(12 * self.noise)
        return RoundEncryption(
            scheme="bfv",
            key_holder="decryptor",
            masked=True,
            clients=self.size,
            length=self.length,
            bits=self.bits,
            sum_bound=self.size * largest,
            value_bound=largest,
            noise_std=self.noise,
        )

    def parameters(self, bounds: CohortBounds) -> PairwiseParameters:
        if self.degree is None:
            return PairwiseParameters.of(bounds)
        half, few = self.degree // 2, min(bounds.corrupt, self.degree // 2)
        witnesses = min(self.degree + 4, bounds.size - 1)
        corrupt = min(bounds.corrupt, witnesses + 1)
        quorum = (
            (bounds.size + bounds.corrupt) // 2 + 1
            if witnesses == bounds.size - 1
            else -(-(witnesses + corrupt + half + 2) // 2)
        )
        return PairwiseParameters(
            size=bounds.size,
            corrupt=bounds.corrupt,
            survivor_floor=bounds.survivor_floor,
            degree=self.degree,
            threshold=half + few + 2,
            witnesses=witnesses,
            quorum=quorum,
        )

    def parties(self) -> dict[str, Party]:
        """All clients, and the decryptor where there is one."""
        found: dict[str, Party] = {name: self.client(name) for name in self.names}
        return found | ({DECRYPTOR: self.decryptor()} if self.encrypted else {})

    def decryptor(self, context: RoundContext | None = None, **changes) -> Decryptor:
        return Decryptor(context or self.context(), self.identities[DECRYPTOR], **changes)

    def client(self, name: str, context: RoundContext | None = None) -> PairwiseClient:
        context = context or self.context()
        if not context.noise_layers:
            return PairwiseClient(context, name, self.identities[name], lambda: self.inputs[name])
        layers = NoiseLayers(context, name, system_random)
        return PairwiseClient(
            context,
            name,
            self.identities[name],
            lambda: (self.inputs[name] + to_ring(layers.noise())) & self.mask,
            layers=layers,
        )

    @property
    def mask(self) -> np.uint32:
        return np.uint32((1 << self.bits) - 1)

    def plain_sum(self, survivors: tuple[str, ...]) -> NDArray[np.uint32]:
        total = np.zeros(self.length, dtype=np.uint32)
        for name in survivors:
            total += self.inputs[name]
        return total & self.mask


@dataclass
class Outcome:
    server: PairwiseServer
    clients: dict[str, Party]
    sent: dict[Stage, dict[str, bytes]]
    refused: dict[str, ProtocolError]
    ended: ProtocolError | None


def drive(
    cohort: Cohort,
    *,
    drop: Mapping[str, Stage] | None = None,
    meddle_up: Meddle | None = None,
    meddle_down: Meddle | None = None,
    clients: dict[str, Party] | None = None,
    server: PairwiseServer | None = None,
    until: Stage | None = None,
) -> Outcome:
    """Run a round; ``meddle_*`` may change a message on its way, keyed by the stage it is for."""
    server = server or PairwiseServer(cohort.context())
    clients = clients or cohort.parties()
    outcome = Outcome(server, clients, {}, {}, None)
    inbox: dict[str, bytes | None] = dict.fromkeys(clients)
    while (stage := server.stage) is not None:
        sent = outcome.sent.setdefault(stage, {})
        for name, reply in inbox.items():
            if drop and name in drop and STAGES.index(drop[name]) <= STAGES.index(stage):
                continue
            try:
                if reply is None:
                    message = clients[name].start()
                else:
                    if meddle_down:
                        reply = meddle_down(stage, name, reply)
                    message = clients[name].handle(reply)
                if meddle_up:
                    message = meddle_up(stage, name, message)
                sent[name] = message
                server.receive(name, message)
            except ProtocolError as error:
                outcome.refused[name] = error
        if stage == until:
            return outcome
        try:
            inbox = dict(server.advance())
        except ProtocolError as error:
            outcome.ended = error
            return outcome
    return outcome


def seeds_of(clients: dict[str, Party]) -> dict[str, bytes]:
    """First seeds, before the round: they are forgotten at its end."""
    return {name: clients[name]._layers._seed for name in clients if name != DECRYPTOR}


def left_in(
    cohort: Cohort, seeds: dict[str, bytes], survivors: tuple[str, ...], missing: int
) -> NDArray[np.uint32]:
    """Sum of the survivors' inputs and of layers 1..missing of each, worked out apart."""
    context, total = cohort.context(), cohort.plain_sum(survivors)
    for name in survivors:
        index = context.index(name)
        every = noise_of(seeds[name], context, index, 0)
        links = chain(seeds[name], context.digest, index, len(context.noise_layers))
        excess = (
            noise_of(links[missing], context, index, missing) if missing < len(links) else 0 * every
        )
        total += to_ring(every - excess)
    return total & cohort.mask
