"""A cohort whose contributions are encrypted, driven with a hand on every message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.encoding.fixed_point import to_ring
from securefed.errors import ProtocolError
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import HomomorphicAggregation
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encrypted_client import EncryptedClient
from securefed.secagg.encrypted_server import EncryptedServer
from securefed.secagg.encryption import DECRYPTOR, RoundEncryption

Party = EncryptedClient | Decryptor
Meddle = Callable[[Stage, str, bytes], bytes]


@dataclass
class EncryptedCohort:
    """A cohort with known inputs, each coordinate within +-``value_bound``."""

    size: int = 5
    length: int = 40
    bits: int = 20
    value_bound: int = 50_000
    scheme: str = "bfv"
    key_holder: str = "decryptor"
    dropout: float = 0.25
    seed: int = 0
    session: bytes = b"s" * 16
    opened: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = tuple(f"c{i:03}" for i in range(self.size))
        rng = np.random.default_rng(self.seed)
        self.values = {
            name: rng.integers(-self.value_bound, self.value_bound + 1, self.length)
            for name in self.names
        }
        self.inputs = {
            name: to_ring(values) & np.uint32((1 << self.bits) - 1)
            for name, values in self.values.items()
        }
        self.identities = {name: IdentityKey.generate() for name in (*self.names, DECRYPTOR)}

    def context(self, **changes) -> RoundContext:
        policy = PrivacyPolicy(
            clip_norm=1.0, mechanism="none", corrupt_fraction=0.0, dropout_fraction=self.dropout
        )
        bounds = CohortBounds.of(policy, self.size)
        aggregation = HomomorphicAggregation(scheme=self.scheme, key_holder=self.key_holder)
        parties = self.names + ((DECRYPTOR,) if self.key_holder == "decryptor" else ())
        described = {
            "session": self.session,
            "round": 1,
            "cohort": self.names,
            "roster": {name: self.identities[name].public for name in parties},
            "length": self.length,
            "bits": self.bits,
            "parameters": aggregation.parameters(bounds),
            "binding": bytes(32),
            "encryption": RoundEncryption(
                scheme=self.scheme,
                key_holder=self.key_holder,
                masked=False,
                clients=self.size,
                length=self.length,
                bits=self.bits,
                sum_bound=self.size * self.value_bound,
                value_bound=self.value_bound,
                noise_std=64.0 if self.scheme == "ckks" else 0.0,
            ),
        }
        return RoundContext(**(described | changes))

    def client(self, name: str, context: RoundContext | None = None, **options) -> EncryptedClient:
        return EncryptedClient(
            context or self.context(),
            name,
            self.identities[name],
            lambda: self.inputs[name],
            **options,
        )

    def decryptor(self, context: RoundContext | None = None, **options) -> Decryptor:
        return Decryptor(
            context or self.context(),
            self.identities[DECRYPTOR],
            **({"on_open": self.opened.append} | options),
        )

    def parties(self) -> dict[str, Party]:
        parties: dict[str, Party] = {name: self.client(name) for name in self.names}
        if self.key_holder == "decryptor":
            parties[DECRYPTOR] = self.decryptor()
        return parties

    def plain_sum(self, survivors: tuple[str, ...]) -> NDArray[np.uint32]:
        total = np.zeros(self.length, dtype=np.uint32)
        for name in survivors:
            total += self.inputs[name]
        return total & np.uint32((1 << self.bits) - 1)


@dataclass
class Outcome:
    server: EncryptedServer
    parties: dict[str, Party]
    sent: dict[Stage, dict[str, bytes]]
    answered: dict[Stage, dict[str, bytes]]
    refused: dict[str, ProtocolError]
    ended: ProtocolError | None


def drive(
    cohort: EncryptedCohort,
    *,
    drop: Mapping[str, Stage] | None = None,
    meddle_up: Meddle | None = None,
    meddle_down: Meddle | None = None,
    parties: dict[str, Party] | None = None,
    server: EncryptedServer | None = None,
    until: Stage | None = None,
) -> Outcome:
    """Run a round; ``meddle_*`` may change a message on its way, keyed by the stage it is for."""
    server = server or EncryptedServer(cohort.context())
    parties = parties or cohort.parties()
    outcome = Outcome(server, parties, {}, {}, {}, None)
    inbox: dict[str, bytes | None] = dict.fromkeys(parties)
    while (stage := server.stage) is not None:
        sent = outcome.sent.setdefault(stage, {})
        outcome.answered.setdefault(stage, {}).update({n: m for n, m in inbox.items() if m})
        if stage == until:
            return outcome
        for name, reply in inbox.items():
            if drop and name in drop and STAGES.index(drop[name]) <= STAGES.index(stage):
                continue
            try:
                if reply is None:
                    message = parties[name].start()
                else:
                    if meddle_down:
                        reply = meddle_down(stage, name, reply)
                    message = parties[name].handle(reply)
                if meddle_up:
                    message = meddle_up(stage, name, message)
                sent[name] = message
                server.receive(name, message)
            except ProtocolError as error:
                outcome.refused[name] = error
        try:
            inbox = dict(server.advance())
        except ProtocolError as error:
            outcome.ended = error
            return outcome
    return outcome
