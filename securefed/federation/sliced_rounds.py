"""The two halves of a sliced round, sans I/O: one message a stage holds every slice's part.

A client runs a :class:`ClientRound` for each slice that it holds, the
server a :class:`ServerRound` for each.  A message is those rounds' own
messages side by side, each signed and checked as it would be alone::

    header | u8 parts | u8 slice | blob | u8 slice | blob | ...      slices 1-based, rising

A part that is refused, or a slice that too few are left in, ends that slice (for that client, or
for all) and no other.  Slices keep step: a large cohort's first slices have a stage more, and the
others wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator, RandomBytes, SecretHolder, system_random
from securefed.encoding.wire import Reader, Writer
from securefed.errors import (
    ConfigError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    ThresholdNotMet,
    WireError,
)
from securefed.federation.client import ClientRound, Encode
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.slices import SlicedCodec, SlicedSession
from securefed.secagg.aggregator import Outgoing
from securefed.secagg.carriers import MaskRemoval, apply_masks

SLICED = 31
_LONGEST_PART = 2**32 - 1  # of a u32; each part's own decoder has the real limit

SlicedEncode = Callable[[SlicedCodec, NoiseGenerator], Sequence[NDArray[np.uint32]]]
"""Makes and encodes all slices, e.g. ``lambda codec, g: codec.encode_update(update, g)``."""


def encode_parts(parts: Mapping[int, bytes]) -> bytes:
    """One message of at least one part, by number of the slice (1-based)."""
    writer = Writer()
    writer.header(SLICED)
    writer.u8(len(parts), field="parts")
    for number in sorted(parts):
        writer.u8(number, field="slice")
        writer.blob(parts[number], _LONGEST_PART, field=f"part of slice {number}")
    return writer.done()


def decode_parts(message: bytes, *, slices: int) -> dict[int, bytes]:
    """The inverse of :func:`encode_parts`.

    Args:
        message: as received.
        slices: the highest slice that there may be a part of.

    Raises:
        WireError: no such message, no part at all, or slices that do not rise in 1..``slices``.
    """
    reader = Reader(message)
    reader.header(SLICED)
    count = reader.u8(field="parts")
    if not 1 <= count <= slices:
        raise WireError(f"parts: {count} announced, 1..{slices} allowed")
    parts: dict[int, bytes] = {}
    last = 0
    for _ in range(count):
        number = reader.u8(field="slice")
        if not last < number <= slices:
            raise WireError(f"slice: {number} after {last}, must rise and be at most {slices}")
        parts[number] = reader.blob(_LONGEST_PART, field=f"part of slice {number}")
        last = number
    reader.finish()
    return parts


class _SharedContribution(SecretHolder):
    """All slices' encoded vectors: made once, charged once, each handed out once."""

    def __init__(
        self,
        make: Callable[[], Sequence[NDArray[np.uint32]]],
        slices: int,
        charge: Callable[[], None] | None,
    ) -> None:
        self._make: Callable[[], Sequence[NDArray[np.uint32]]] | None = make
        self._slices = slices
        self._charge = charge
        self._charged = charge is None
        self._vectors: dict[int, NDArray[np.uint32]] = {}

    def encode(self, number: int) -> Encode:
        """How the round of one slice gets its vector."""
        return lambda codec, generator: self._vector(number)

    def _vector(self, number: int) -> NDArray[np.uint32]:
        """The vector of one slice; the first that is asked for makes them all."""
        make, self._make = self._make, None
        if make is not None:
            made = make()
            if len(made) != self._slices:
                raise LocalProtocolError(
                    f"encode: {len(made)} slices made, the client holds {self._slices}"
                )
            self._vectors = dict(enumerate(made, start=1))
        if number not in self._vectors:
            raise LocalProtocolError(f"slice {number}: making the contribution failed")
        return self._vectors.pop(number)

    def charge(self) -> None:
        """Charge the whole round, before the first slice's masked input is made."""
        if self._charged:
            return
        charge, self._charge = self._charge, None
        if charge is None:
            raise LocalProtocolError("charge: it failed for another slice; nothing may be sent")
        charge()
        self._charged = True


class SlicedClientRound(SecretHolder):
    """One client in a sliced round: carry ``start()`` to the server, then each reply back.

    What :class:`ClientRound` says of ``prepare`` and of time holds.

    Args:
        session: the round's public description, built by this client.
        client_id: this client.
        identity: its long-term key.
        encode: makes all of its slices' encoded vectors; training may happen inside.  Called once.
        charge: called once, before the first slice's masked input is made: charges the whole round
            durably to the client's own budget.  If it raises, nothing leaves, of any slice.
        floors: what this client asks of each slice; None for no more than the protocol does.
        generator: cryptographic source of sampling, rounding and noise.
        random: source of round secrets.

    Attributes:
        refusals: slices that this client left, by number, and why.

    Raises:
        LocalProtocolError: a slice is below a floor (a note names it), or the roster holds another
            key for this client; nothing was computed or sent.
        ConfigError: the client is not in the cohort.

    Guarantees:
        - Of a slice whose survivors are too few, nothing more than signatures and the masked input
          leaves: no share of that slice's secrets.
        - The charge is made at most once, and no masked input of any slice leaves before it is.
    """

    def __init__(
        self,
        session: SlicedSession,
        client_id: str,
        identity: IdentityKey,
        encode: SlicedEncode,
        *,
        charge: Callable[[], None] | None = None,
        floors: ClientFloors | None = None,
        generator: NoiseGenerator | None = None,
        random: RandomBytes = system_random,
    ) -> None:
        if client_id not in session.tiers:
            raise ConfigError(f"client {client_id!r} is not in the cohort")
        tier = session.tiers[client_id]
        codec = session.codec(tier)
        noise = NoiseGenerator() if generator is None else generator
        shared = _SharedContribution(lambda: encode(codec, noise), tier, charge)
        self._slices = tier
        self._halves: dict[int, ClientRound] = {}
        self.refusals: dict[int, str] = {}
        for number in range(1, tier + 1):
            try:
                self._halves[number] = ClientRound(
                    session.sessions[number - 1],
                    client_id,
                    identity,
                    shared.encode(number),
                    charge=shared.charge,
                    floors=floors,
                    random=random,
                )
            except LocalProtocolError as error:
                error.add_note(f"slice {number} of {tier}")
                raise

    def prepare(self) -> None:
        """Make and keep all slices' encoded vectors now, so that no later answer waits for them.

        Run by: client.  Pre-conditions: called at most once, before ``start``.  Nothing is charged.

        Raises:
            LocalProtocolError: the round has started, or this was called before.
        """
        for half in self._halves.values():
            half.prepare()

    def start(self) -> bytes:
        """The first message to the server."""
        return encode_parts({number: half.start() for number, half in self._halves.items()})

    def handle(self, message: bytes) -> bytes:
        """Answer one message of the server, slice by slice.

        Raises:
            RemoteProtocolError, ThresholdNotMet: every part was refused (for some parts only,
                ``refusals`` says so and the rest is answered), or the message is malformed.
        """
        parts = decode_parts(message, slices=self._slices)
        answers: dict[int, bytes] = {}
        first: ProtocolError | None = None
        for number, part in parts.items():
            try:
                answers[number] = self._halves[number].handle(part)
            except (RemoteProtocolError, ThresholdNotMet) as error:
                error.add_note(f"slice {number}")
                first = first or error
                self.refusals.setdefault(number, str(error))
        if first is not None and not answers:
            raise first
        return encode_parts(answers)


class SlicedServerRound(SecretHolder):
    """The server in a sliced round, sans I/O.

    Args:
        session: the round's public description.
        remove_masks: how a pairwise round's masks are removed; on one core by default.

    Attributes:
        dropped: slices that ended without a sum, by number (1-based), and why.
        closed_by: the same slices, and the name of the error that ended each.
    """

    def __init__(self, session: SlicedSession, *, remove_masks: MaskRemoval = apply_masks) -> None:
        self._session = session
        self._live = {
            number: ServerRound(one, remove_masks=remove_masks)
            for number, one in enumerate(session.sessions, start=1)
        }
        self._held: dict[int, Mapping[str, bytes]] = {}
        self.dropped: dict[int, str] = {}
        self.closed_by: dict[int, str] = {}

    @property
    def stage(self) -> Stage | None:
        """The stage whose messages are awaited; None once every slice is over."""
        stages = [half.stage for half in self._live.values()]
        return min((s for s in stages if s is not None), key=STAGES.index, default=None)

    def receive(self, client_id: str, message: bytes) -> None:
        """Take one client's message: each part goes to its slice.

        Raises:
            RemoteProtocolError: the message is malformed, and nothing was taken; or the parts that
                it names were refused, and the others were taken.
            ConfigError: there is no such client.
            LocalProtocolError: the round is over.
        """
        stage = self.stage
        if stage is None:
            raise LocalProtocolError("receive: the round is over")
        if client_id not in self._session.tiers:
            raise ConfigError(f"client {client_id!r} is not in the cohort")
        refused: list[str] = []
        parts = decode_parts(message, slices=self._session.tiers[client_id])
        for number, part in parts.items():
            half = self._live.get(number)
            if half is None or half.stage != stage:
                refused.append(f"slice {number}: no message is awaited in {stage}")
                continue
            try:
                half.receive(client_id, part)
            except RemoteProtocolError as error:
                refused.append(f"slice {number}: {error}")
        if refused:
            raise RemoteProtocolError("; ".join(refused))

    def advance(self) -> Mapping[str, bytes]:
        """End the present stage; what to send to whom next.

        Raises:
            ThresholdNotMet: no slice is left; the round is over without a result.
        """
        stage = self.stage
        if stage is None:
            raise LocalProtocolError("advance: the round is over")
        for number, half in list(self._live.items()):
            if half.stage != stage:
                continue
            try:
                self._held[number] = half.advance()
            except (ThresholdNotMet, RemoteProtocolError) as error:
                self.dropped[number] = str(error)
                self.closed_by[number] = type(error).__name__
                del self._live[number]
                self._held.pop(number, None)
        if not self._live:
            reasons = "; ".join(f"slice {n}: {why}" for n, why in sorted(self.dropped.items()))
            raise ThresholdNotMet(f"no slice is left: {reasons}")
        return self._outgoing(self.stage)

    def _outgoing(self, stage: Stage | None) -> Mapping[str, bytes]:
        """What the slices that are in ``stage`` now send; the others' messages wait."""
        due = {
            number: self._held[number]
            for number, half in self._live.items()
            if stage is not None and half.stage == stage
        }
        names = [
            name for name in self._session.cohort if any(name in held for held in due.values())
        ]

        def encode(name: str) -> bytes:
            return encode_parts({n: held[name] for n, held in due.items() if name in held})

        return Outgoing(names, encode)

    @property
    def survivors(self) -> dict[int, tuple[str, ...]]:
        """By slice that has a sum: clients whose contributions are inside it, sorted."""
        return {number: half.survivors for number, half in self._live.items()}

    @property
    def sums(self) -> dict[int, NDArray[np.float64]]:
        """By slice that has one, float64[d_slice]: the noised sum of clipped contributions.

        Raises:
            LocalProtocolError: the round is not over.
        """
        return {number: half.sum for number, half in self._live.items()}
