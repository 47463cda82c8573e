"""One interface for every way to form a sum, and the public context all parties agree on.

A protocol is two halves without input or output of their own.  A driver carries bytes::

    messages = {i: client[i].start() for i in cohort}
    while server.stage is not None:
        for i, message in messages.items():
            server.receive(i, message)          # a client that fell silent has none
        replies = server.advance()
        messages = {i: client[i].handle(reply) for i, reply in replies.items()}
    server.result.total, server.result.survivors

Whichever client is missing from ``messages`` has dropped out; the protocol goes on without it as
long as enough remain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.config import Stage
from securefed.crypto.identity import IdentityPublicKey
from securefed.encoding.fixed_point import MAX_BITS, MIN_BITS
from securefed.encoding.wire import Writer
from securefed.errors import ConfigError
from securefed.secagg.parameters import PairwiseParameters

Contribution = Callable[[], NDArray[np.uint32]]
"""Makes the ring vector at the moment it is needed; called once, after the cohort is checked."""

SESSION_BYTES = 16
_MAX_COHORT = 100_000
_CONTEXT_TYPE = 0


def _check_bits(bits: int | str) -> None:
    if bits != "auto" and not (isinstance(bits, int) and MIN_BITS <= bits <= MAX_BITS):
        raise ConfigError(f"bits = {bits!r}: must be 'auto' or {MIN_BITS}..{MAX_BITS}")


@dataclass(frozen=True, kw_only=True)
class PairwiseAggregation:
    """Pairwise masking: the server sees only the sum.

    Args:
        bits: ring width on the wire, 20..32, or ``"auto"``: the least that the bound allows.
    """

    bits: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check_bits(self.bits)


@dataclass(frozen=True)
class PlaintextAggregation:
    """No protection: every contribution reaches the server as it is.  A baseline."""

    bits: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check_bits(self.bits)


Aggregation = PairwiseAggregation | PlaintextAggregation


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """What all parties of one round must agree on; its digest is in every key and signature.

    A server that tells two clients different things gives them different digests: their signatures
    do not verify to each other, and their masks do not cancel.

    Args:
        session: 16 random bytes that name this attempt at a round.
        round: the round's number, >= 1.
        cohort: ids of the clients invited, sorted, without repeats.
        roster: each invited client's long-term identity key.
        length: number of ring elements in a masked input.
        bits: ring width, 20..32.
        parameters: thresholds, computed from the cohort.
        binding: SHA-256 over what else is agreed (model, settings, adapter, rotation).
    """

    session: bytes
    round: int
    cohort: tuple[str, ...]
    roster: Mapping[str, IdentityPublicKey]
    length: int
    bits: int
    parameters: PairwiseParameters
    binding: bytes
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        if len(self.session) != SESSION_BYTES:
            raise ConfigError(f"session of {len(self.session)} bytes: must be {SESSION_BYTES}")
        if list(self.cohort) != sorted(set(self.cohort)):
            raise ConfigError("cohort: client ids must be sorted and without repeats")
        if not 2 <= len(self.cohort) <= _MAX_COHORT or len(self.cohort) != self.parameters.size:
            raise ConfigError(
                f"cohort of {len(self.cohort)} clients: must be 2..{_MAX_COHORT} and fit the "
                f"parameters, made for {self.parameters.size}"
            )
        missing = [name for name in self.cohort if name not in self.roster]
        if missing:
            raise ConfigError(f"roster: no identity key for {missing[:5]}")
        keys = {self.roster[name].raw for name in self.cohort}
        if len(keys) != len(self.cohort):
            raise ConfigError("roster: two clients have the same identity key")
        writer = Writer()
        writer.header(_CONTEXT_TYPE)
        writer.fixed(self.session, SESSION_BYTES)
        writer.u32(self.round)
        writer.u32(self.length)
        writer.u8(self.bits)
        writer.u32(self.parameters.threshold)
        writer.u32(self.parameters.survivor_floor)
        writer.fixed(self.binding, 32)
        writer.u32(len(self.cohort))
        for name in self.cohort:
            writer.blob(name.encode(), limit=1024)
            writer.fixed(self.roster[name].raw, 32)
        object.__setattr__(self, "digest", hashlib.sha256(writer.done()).digest())

    def index(self, client_id: str) -> int:
        """Position of a client in the cohort, 0-based.

        Raises:
            ConfigError: the client is not in the cohort.
        """
        try:
            return self.cohort.index(client_id)
        except ValueError:
            raise ConfigError(f"client {client_id!r} is not in the cohort") from None


@dataclass(frozen=True)
class Aggregate:
    """The server's result: ``total`` is uint32[length] mod 2^bits over ``survivors``, sorted."""

    total: NDArray[np.uint32]
    survivors: tuple[str, ...]


class AggregationClient(Protocol):
    """A client's half of one round."""

    def start(self) -> bytes:
        """The first message.  Call once."""
        ...

    def handle(self, message: bytes) -> bytes:
        """Answer one message of the server.

        Raises:
            RemoteProtocolError, ThresholdNotMet: nothing was disclosed.
        """
        ...


class AggregationServer(Protocol):
    """The server's half of one round."""

    @property
    def stage(self) -> Stage | None:
        """The stage whose messages are awaited; None once the round is over."""
        ...

    @property
    def result(self) -> Aggregate:
        """The sum, once ``stage`` is None."""
        ...

    def receive(self, client_id: str, message: bytes) -> None:
        """Take one client's message for the present stage.

        Raises:
            RemoteProtocolError: the message is refused; the round goes on without it.
        """
        ...

    def advance(self) -> dict[str, bytes]:
        """End the present stage; returns what to send to whom (nothing after the last).

        Raises:
            ThresholdNotMet: too few clients are left; the round is over without a result.
        """
        ...
