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
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.config import Stage
from securefed.crypto.identity import IdentityPublicKey
from securefed.encoding.wire import Writer
from securefed.errors import ConfigError, LocalProtocolError
from securefed.secagg.encryption import DECRYPTOR, RoundEncryption
from securefed.secagg.parameters import PairwiseParameters

Contribution = Callable[[], NDArray[np.uint32]]
"""Makes the ring vector at the moment it is needed; called once, after the cohort is checked."""

SESSION_BYTES = 16
SPARSE_REMOVAL = (
    "remove_excess_noise = True on a sparse masking graph: the number of survivors decides what a "
    "client reveals, and there a client checks the signatures of its witnesses alone; use fewer "
    "than 200 clients or the complete graph, degree = n - 1"
)
_MAX_COHORT = 1 << 20
_CONTEXT_TYPE, _ENCRYPTED_CONTEXT_TYPE = 0, 2


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
        noise_layers: std in grid units of the layers of each client's noise that can be removed
            (:mod:`securefed.secagg.noise_layers`), one for each client that may be missing; none
            where noise is not removed.
        encryption: how contributions are encrypted; None where they are not.  With a decryptor the
            roster holds its identity key too, under ``DECRYPTOR``.

    Raises:
        ConfigError: these do not fit each other; layers of noise on a sparse graph among them.
    """

    session: bytes
    round: int
    cohort: tuple[str, ...]
    roster: Mapping[str, IdentityPublicKey]
    length: int
    bits: int
    parameters: PairwiseParameters
    binding: bytes
    noise_layers: tuple[float, ...] = ()
    encryption: RoundEncryption | None = None
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
        self._check_layers()
        self._check_encryption()
        parties = self.cohort + ((DECRYPTOR,) if self.has_decryptor else ())
        missing = [name for name in parties if name not in self.roster]
        if missing:
            raise ConfigError(f"roster: no identity key for {missing[:5]}")
        keys = {self.roster[name].raw for name in parties}
        if len(keys) != len(parties):
            raise ConfigError("roster: two parties have the same identity key")
        writer = Writer()
        writer.header(_CONTEXT_TYPE if self.encryption is None else _ENCRYPTED_CONTEXT_TYPE)
        writer.fixed(self.session, SESSION_BYTES)
        writer.u32(self.round)
        writer.u32(self.length)
        writer.u8(self.bits)
        for name, value in sorted(asdict(self.parameters).items()):
            writer.u32(value, field=name)
        writer.fixed(self.binding, 32)
        writer.u32(len(self.cohort))
        for name in self.cohort:
            writer.blob(_encoded(name), limit=1024, field="client id")
            writer.blob(raw := self.roster[name].raw, limit=len(raw))
        if self.encryption is not None:
            self.encryption.write(writer)
            if self.has_decryptor:
                writer.blob(raw := self.roster[DECRYPTOR].raw, limit=len(raw))
        if self.noise_layers:  # else nothing: rounds without them keep their digest
            writer.u32(len(self.noise_layers))
            writer.fixed(
                exact := struct.pack(f"<{len(self.noise_layers)}d", *self.noise_layers), len(exact)
            )
        object.__setattr__(self, "digest", hashlib.sha256(writer.done()).digest())

    @property
    def has_decryptor(self) -> bool:
        """Whether a separate party opens the sum."""
        return self.encryption is not None and self.encryption.key_holder == "decryptor"

    def _check_encryption(self) -> None:
        agreed = self.encryption
        if agreed is None:
            return
        if DECRYPTOR in self.cohort:
            raise ConfigError(f"cohort: no client may be called {DECRYPTOR!r}")
        for name, value, expected in (
            ("clients", agreed.clients, len(self.cohort)),
            ("length", agreed.length, self.length),
            ("bits", agreed.bits, self.bits),
        ):
            if value != expected:
                raise ConfigError(f"encryption: {name} = {value}, the round has {expected}")
        if self.noise_layers and not agreed.masked:
            raise ConfigError("encryption: layers of noise are removed in masked rounds only")

    def _check_layers(self) -> None:
        if not self.noise_layers:
            return
        parameters = self.parameters
        if parameters.sparse:
            raise ConfigError(SPARSE_REMOVAL)
        if len(self.noise_layers) != parameters.size - parameters.survivor_floor:
            raise ConfigError(
                f"noise_layers: {len(self.noise_layers)} given, must be one for each of the "
                f"{parameters.size - parameters.survivor_floor} clients that may be missing"
            )

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.cohort)}

    def index(self, client_id: str) -> int:
        """Position of a client in the cohort, 0-based.

        Raises:
            ConfigError: the client is not in the cohort.
        """
        try:
            return self._indices[client_id]
        except KeyError:
            raise ConfigError(f"client {client_id!r} is not in the cohort") from None

    def seat(
        self, client_id: str, identity: IdentityPublicKey, min_clients: int
    ) -> tuple[int, int]:
        """Index of a client that takes part, and the least clients of a sum that it is in.

        Args:
            client_id: who takes part.
            identity: the public half of its long-term key.
            min_clients: its own floor, beside the round's.

        Raises:
            LocalProtocolError: the roster holds another key for it, or the cohort is too small.
        """
        index = self.index(client_id)
        if self.roster[client_id] != identity:
            raise LocalProtocolError(
                f"client {client_id!r}: the roster holds another identity key for it"
            )
        floor = max(min_clients, self.parameters.survivor_floor)
        if len(self.cohort) < floor:
            raise LocalProtocolError(
                f"cohort of {len(self.cohort)} clients: this client takes part from {floor} on"
            )
        return index, floor


def _encoded(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"cohort: client id {name!r} is not valid Unicode") from None


@dataclass(frozen=True)
class Aggregate:
    """The server's result: ``total`` is uint32[length] mod 2^bits over ``survivors``, sorted."""

    total: NDArray[np.uint32]
    survivors: tuple[str, ...]


class Outgoing(Mapping[str, bytes]):
    """Messages by party, each encoded when it is asked for: never all in memory at once."""

    def __init__(self, names: Iterable[str], encode: Callable[[str], bytes]) -> None:
        self._names = dict.fromkeys(names)
        self._encode = encode

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        return self._encode(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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

    def advance(self) -> Mapping[str, bytes]:
        """End the present stage; returns what to send to whom (nothing after the last).

        Raises:
            ThresholdNotMet: too few clients are left; the round is over without a result.
        """
        ...
