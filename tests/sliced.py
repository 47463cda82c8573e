"""For tests of sliced rounds: a cohort of tiers, and faults of one client in one slice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.engines.in_process import Carried, carry
from securefed.errors import RemoteProtocolError
from securefed.federation.sliced_rounds import (
    SlicedClientRound,
    SlicedServerRound,
    decode_parts,
    encode_parts,
)
from securefed.federation.slices import SlicedSession
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation, PlaintextAggregation

KEYS = {f"c{i:02}": IdentityKey.generate() for i in range(24)}
QUIET = PrivacyPolicy(clip_norm=1.0, mechanism="none", corrupt_fraction=0.0)
NOISED = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, corrupt_fraction=0.0)
SilentFrom = Mapping[tuple[str, int], Stage]
"""By client and slice: the stage from which on it is silent in that slice."""


def session_of(tiers=(1, 1, 1, 1, 2, 2, 2, 2), widths=(5, 3), **changes) -> SlicedSession:
    """Client i has tier ``tiers[i]``."""
    names = list(KEYS)[: len(tiers)]
    base = {
        "session": b"0123456789abcdef",
        "round": 3,
        "roster": {name: KEYS[name].public for name in names},
        "tiers": dict(zip(names, tiers, strict=True)),
        "widths": tuple(widths),
        "policy": QUIET,
        "aggregation": PairwiseAggregation(),
        "model": b"m" * 32,
    }
    return SlicedSession(**(base | changes))


class SilentInSlices:
    """A client whose parts are lost, slice by slice, from a stage on."""

    def __init__(self, client, server, name: str, silent: SilentFrom, slices: int) -> None:
        self._client, self._server, self._name = client, server, name
        self._silent, self._slices = silent, slices

    def start(self) -> bytes:
        return self._left(self._client.start())

    def handle(self, message: bytes) -> bytes:
        return self._left(self._client.handle(message))

    def _left(self, message: bytes) -> bytes:
        now = STAGES.index(self._server.stage)
        parts = {
            number: part
            for number, part in decode_parts(message, slices=self._slices).items()
            if (self._name, number) not in self._silent
            or STAGES.index(self._silent[self._name, number]) > now
        }
        if not parts:
            raise RemoteProtocolError("silent in all slices")
        return encode_parts(parts)


@dataclass
class Played:
    session: SlicedSession
    server: SlicedServerRound
    clients: dict[str, SlicedClientRound]
    encoded: dict[str, tuple[NDArray[np.uint32], ...]]
    charges: dict[str, int] = field(default_factory=dict)
    carried: Carried | None = None

    def plain_sum(self, number: int, survivors: tuple[str, ...]) -> NDArray[np.float64]:
        """What adding the survivors' encoded slices gives, nothing masked."""
        one = self.session.sessions[number - 1]
        total = np.zeros(one.plan.padded, dtype=np.uint32)
        for name in survivors:
            total += self.encoded[name][number - 1]
        total &= np.uint32((1 << one.plan.bits) - 1)
        return one.codec.decode(total)


def updates_of(session: SlicedSession, seed: int = 0) -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=session.dimension(tier)) * rng.choice([0.01, 1.0, 100.0])
        for name, tier in session.tiers.items()
    }


def set_up(session: SlicedSession, seed: int = 0) -> Played:
    """Halves whose rounding and noise are known beforehand."""
    updates = updates_of(session, seed)
    played = Played(session, SlicedServerRound(session), {}, {})

    def encode(name: str):
        generator = SeededNoiseGeneratorForTests(list(KEYS).index(name))
        return session.codec(session.tiers[name]).encode_update(updates[name], generator)

    def charge(name: str) -> None:
        played.charges[name] = played.charges.get(name, 0) + 1

    for name in session.tiers:
        played.encoded[name] = encode(name)
        played.clients[name] = SlicedClientRound(
            session,
            name,
            KEYS[name],
            lambda codec, generator, name=name: played.encoded[name],
            charge=lambda name=name: charge(name),
        )
    return played


def play(session: SlicedSession, silent: SilentFrom | None = None, seed: int = 0) -> Played:
    played = set_up(session, seed)
    wrapped = {
        name: SilentInSlices(client, played.server, name, silent or {}, len(session.widths))
        for name, client in played.clients.items()
    }
    played.carried = carry(played.server, wrapped)
    return played


def aggregation_of(kind: str) -> Aggregation:
    return {"pairwise": PairwiseAggregation(), "plaintext": PlaintextAggregation()}[kind]
