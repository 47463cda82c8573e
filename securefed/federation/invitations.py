"""What a server and a client's agent say to each other around the messages of a round.

::

    server -> agent   Hello        a run, by the digest of its run file   (signed by the server)
    agent -> server   Introduction who this is, and how much data it has  (signed by the client)
    server -> agent   Invitation   a round, and the adapter to train      (signed by the server)
    server -> agent   Step         the server's next message of the round
    server -> agent   HeadRequest  where the run's ledger stands, to be signed
    server -> agent   Ending       the adapter as the run ended        (signed by the server)
    agent -> server   Answer       the client's message of the round, or its signature
    agent -> server   Refusal      of what kind; why is in the agent's log alone

An engine carries these bytes and reads none of them.  The round's own messages, inside steps and
answers, are checked by the protocol; a Hello and an Invitation are signed, so that nobody who can
reach an agent makes it train or spend.  An Introduction names the node that the Hello was sent to,
so that it is worth nothing from another node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import rfc8785

from securefed.crypto.identity import MAX_SIGNATURE_BYTES, IdentityKey, IdentityPublicKey
from securefed.encoding.wire import Reader, Writer, message_type
from securefed.errors import LocalProtocolError, RemoteProtocolError, WireError
from securefed.federation.frames import MAX_FRAME
from securefed.secagg.aggregator import SESSION_BYTES

HELLO, INTRODUCTION, INVITATION, STEP, ANSWER, REFUSAL, HEAD, ENDING = range(96, 104)

RUN_BYTES = 16
DIGEST_BYTES = 32
_LABEL = b"securefed/1/federation/server-to-agent"
_LABEL_INTRODUCTION = b"securefed/1/federation/introduction"
_MAX_ID = 255
_SESSION = re.compile(f"[0-9a-f]{{{2 * SESSION_BYTES}}}")
_MAX_KIND = 64
_MAX_DESCRIPTION = 1 << 24
_MAX_ENVELOPE = _MAX_LINE = 1 << 21
_MAX_LINES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A server greets a node at the start of a run.

    Attributes:
        run: 16 bytes that name the run.
        node: of the engine, that this is sent to.
        config: SHA-256 of the run file.
    """

    run: bytes
    node: int
    config: bytes

    def encode(self, server: IdentityKey) -> bytes:
        """The signed message."""
        return _signed(self._writer(), server, _LABEL)

    def _writer(self) -> Writer:
        writer = Writer()
        writer.header(HELLO)
        writer.fixed(self.run, RUN_BYTES, field="run")
        writer.u64(self.node, field="node")
        writer.fixed(self.config, DIGEST_BYTES, field="config")
        return writer

    @classmethod
    def decode(cls, message: bytes, server: IdentityPublicKey) -> Self:
        """Read and check.

        Raises:
            WireError: it is no such message.
            RemoteProtocolError: the server has not signed it.
        """
        reader = Reader(message)
        reader.header(HELLO)
        found = cls(
            run=reader.fixed(RUN_BYTES, field="run"),
            node=reader.u64(field="node"),
            config=reader.fixed(DIGEST_BYTES, field="config"),
        )
        _verify(reader, found._writer(), server, _LABEL)
        return found


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """A client says who it is.

    Attributes:
        client: its id in the roster.
        size: how many units (examples, users) it holds; public.
    """

    client: str
    size: int

    def encode(self, hello: Hello, identity: IdentityKey) -> bytes:
        """The message, signed together with what it answers."""
        return _signed(self._writer(), identity, _LABEL_INTRODUCTION, hello._writer().done())

    def _writer(self) -> Writer:
        writer = Writer()
        writer.header(INTRODUCTION)
        writer.blob(self.client.encode(), _MAX_ID, field="client")
        writer.u32(self.size, field="size")
        return writer

    @classmethod
    def decode(cls, message: bytes, hello: Hello, roster: Mapping[str, IdentityPublicKey]) -> Self:
        """Read and check.

        Raises:
            WireError: it is no such message.
            RemoteProtocolError: it names no client of the roster, or that client has not signed it
                for this Hello.
        """
        reader = Reader(message)
        reader.header(INTRODUCTION)
        try:
            client = reader.blob(_MAX_ID, field="client").decode()
        except UnicodeDecodeError:
            raise WireError("client: is not UTF-8") from None
        found = cls(client=client, size=reader.u32(field="size"))
        if client not in roster:
            raise RemoteProtocolError(f"introduction: {client!r} is not in the roster")
        greeted = hello._writer().done()
        _verify(reader, found._writer(), roster[client], _LABEL_INTRODUCTION, greeted)
        return found


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """A round that a client is invited to.

    What follows from the run file is not in it: the client has that file itself.

    Attributes:
        run: as in the Hello.
        ledger: hash of the first record of the run's ledger, which names the run for good.
        round: its number, >= 1.
        session: 16 fresh bytes that name this attempt.
        figures: whether held-out figures are summed, without noise, and not updates.
        sizes: public size of every client of the run.
        noise_multiplier: of the run, searched for by the server if the run file has a target.
        fractions: noised share of units within the clip in each round so far, where the clip
            adapts; each client computes the clip of the round from them.
        adapter: the adapter before the round; the client hashes what it loads.
        summed: for each client that was in a sum which was applied, the session of the last such
            sum, hexadecimal: by it a client knows which of its attempts counted.
        control: what the server sends beside the adapter (SCAFFOLD); empty without it.
    """

    run: bytes
    ledger: bytes
    round: int
    session: bytes
    figures: bool
    sizes: Mapping[str, int]
    noise_multiplier: float
    fractions: tuple[float, ...]
    adapter: bytes
    summed: Mapping[str, str] = field(default_factory=dict)
    control: bytes = b""

    def encode(self, server: IdentityKey) -> bytes:
        """The signed message."""
        return _signed(self._writer(), server, _LABEL)

    def _writer(self) -> Writer:
        writer = Writer()
        writer.header(INVITATION)
        writer.fixed(self.run, RUN_BYTES, field="run")
        writer.fixed(self.ledger, DIGEST_BYTES, field="ledger")
        writer.u32(self.round, field="round")
        writer.fixed(self.session, SESSION_BYTES, field="session")
        writer.u8(int(self.figures), field="figures")
        described: dict[str, Any] = {
            "sizes": dict(self.sizes),
            "noise_multiplier": self.noise_multiplier,
            "fractions": list(self.fractions),
            "summed": dict(self.summed),
        }
        writer.blob(rfc8785.dumps(described), _MAX_DESCRIPTION, field="description")
        writer.blob(self.adapter, MAX_FRAME, field="adapter")
        writer.blob(self.control, MAX_FRAME, field="control")
        return writer

    @classmethod
    def decode(cls, message: bytes, server: IdentityPublicKey) -> Self:
        """Read and check.

        Raises:
            WireError: it is no such message.
            RemoteProtocolError: the server has not signed it.
        """
        reader = Reader(message)
        reader.header(INVITATION)
        run, ledger = reader.fixed(RUN_BYTES, field="run"), reader.fixed(32, field="ledger")
        number = reader.u32(field="round")
        session, figures = reader.fixed(SESSION_BYTES, field="session"), reader.u8(field="figures")
        if number < 1 or figures > 1:
            raise WireError(f"round = {number}, figures = {figures}: must be >= 1, and 0 or 1")
        described = _description(reader.blob(_MAX_DESCRIPTION, field="description"))
        if len(described["fractions"]) >= number:
            raise WireError(
                f"fractions: {len(described['fractions'])} given for round {number}; there is at "
                "most one of each round before"
            )
        found = cls(
            run=run,
            ledger=ledger,
            round=number,
            session=session,
            figures=bool(figures),
            **described,
            adapter=reader.blob(MAX_FRAME, field="adapter"),
            control=reader.blob(MAX_FRAME, field="control"),
        )
        _verify(reader, found._writer(), server, _LABEL)
        return found


def _description(encoded: bytes) -> dict[str, Any]:
    """Sizes, noise, fractions and last sums, each of its type."""
    match found := _canonical(encoded, "description"):
        case {
            "sizes": dict(sizes),
            "noise_multiplier": int() | float() as noise,
            "fractions": list(fractions),
            "summed": dict(summed),
        } if len(found) == 4:
            pass
        case _:
            raise WireError("description: must hold sizes, noise_multiplier, fractions, summed")
    if not all(type(size) is int and 1 <= size < 2**32 for size in sizes.values()):
        raise WireError("description: a size must be an integer in 1..2^32 - 1")
    if isinstance(noise, bool) or not 0.0 <= noise < float("inf"):
        raise WireError("description: noise_multiplier must be >= 0 and finite")
    if not all(type(f) in (int, float) for f in fractions):
        raise WireError("description: fractions must be numbers")
    _check_summed(summed)
    return {
        "sizes": sizes,
        "noise_multiplier": float(noise),
        "fractions": tuple(float(fraction) for fraction in fractions),
        "summed": summed,
    }


@dataclass(frozen=True)
class Step:
    """The server's next message of a round.

    Attributes:
        session: of the round.
        message: as the server's half made it.
    """

    session: bytes
    message: bytes

    def encode(self) -> bytes:
        """The message."""
        writer = Writer()
        writer.header(STEP)
        writer.fixed(self.session, SESSION_BYTES, field="session")
        writer.blob(self.message, MAX_FRAME, field="message")
        return writer.done()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Read.

        Raises:
            WireError: it is no such message.
        """
        reader = Reader(message)
        reader.header(STEP)
        session = reader.fixed(SESSION_BYTES, field="session")
        found = cls(session, reader.blob(MAX_FRAME, field="message"))
        reader.finish()
        return found


@dataclass(frozen=True)
class HeadRequest:
    """Where a run's ledger stands: what the server has signed, and the lines since.

    Attributes:
        ledger: hash of its first record.
        envelope: the head that the server signed, as JSON.
        first: place (seq) of the first of the lines.
        lines: of the ledger, newline included, up to the head: from the one after the head that
            this client signed last, as far as the server knows.
    """

    ledger: bytes
    envelope: bytes
    first: int
    lines: tuple[bytes, ...]

    def encode(self) -> bytes:
        """The message; what is in it is signed already."""
        writer = Writer()
        writer.header(HEAD)
        writer.fixed(self.ledger, DIGEST_BYTES, field="ledger")
        writer.blob(self.envelope, _MAX_ENVELOPE, field="envelope")
        writer.u32(self.first, field="first")
        writer.u32(len(self.lines), field="lines")
        for line in self.lines:
            writer.blob(line, _MAX_LINE, field="line")
        return writer.done()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Read.

        Raises:
            WireError: it is no such message.
        """
        reader = Reader(message)
        reader.header(HEAD)
        ledger = reader.fixed(DIGEST_BYTES, field="ledger")
        envelope = reader.blob(_MAX_ENVELOPE, field="envelope")
        first, count = reader.u32(field="first"), reader.u32(field="lines")
        if count > _MAX_LINES:
            raise WireError(f"lines: {count} announced, at most {_MAX_LINES} allowed")
        lines = tuple(reader.blob(_MAX_LINE, field="line") for _ in range(count))
        reader.finish()
        return cls(ledger, envelope, first, lines)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A run is over; this is the shared adapter, for clients that make one of their own of it.

    Attributes:
        ledger: hash of the first record of the run's ledger.
        round: the last one.
        summed: as in the Invitation.
        adapter: after the last round.
    """

    ledger: bytes
    round: int
    summed: Mapping[str, str]
    adapter: bytes

    def encode(self, server: IdentityKey) -> bytes:
        """The signed message."""
        return _signed(self._writer(), server, _LABEL)

    def _writer(self) -> Writer:
        writer = Writer()
        writer.header(ENDING)
        writer.fixed(self.ledger, DIGEST_BYTES, field="ledger")
        writer.u32(self.round, field="round")
        writer.blob(rfc8785.dumps(dict(self.summed)), _MAX_DESCRIPTION, field="summed")
        writer.blob(self.adapter, MAX_FRAME, field="adapter")
        return writer

    @classmethod
    def decode(cls, message: bytes, server: IdentityPublicKey) -> Self:
        """Read and check.

        Raises:
            WireError: it is no such message.
            RemoteProtocolError: the server has not signed it.
        """
        reader = Reader(message)
        reader.header(ENDING)
        ledger, number = reader.fixed(DIGEST_BYTES, field="ledger"), reader.u32(field="round")
        summed = _canonical(reader.blob(_MAX_DESCRIPTION, field="summed"), "summed")
        if not isinstance(summed, dict):
            raise WireError("summed: must be an object")
        _check_summed(summed)
        found = cls(
            ledger=ledger,
            round=number,
            summed=summed,
            adapter=reader.blob(MAX_FRAME, field="adapter"),
        )
        _verify(reader, found._writer(), server, _LABEL)
        return found


def _canonical(encoded: bytes, field: str) -> Any:
    """What JSON in canonical form (RFC 8785) holds; any other spelling of it is refused."""
    try:
        found = json.loads(encoded)
        again = rfc8785.dumps(found)
    except (ValueError, RecursionError):
        raise WireError(f"{field}: is not JSON") from None
    if again != encoded:
        raise WireError(f"{field}: is not in canonical form")
    return found


def _check_summed(summed: Mapping[str, Any]) -> None:
    if not all(isinstance(s, str) and _SESSION.fullmatch(s) for s in summed.values()):
        raise WireError(f"summed: must name sessions, {2 * SESSION_BYTES} hexadecimal digits each")


def encode_answer(message: bytes) -> bytes:
    """A client's message of the round."""
    writer = Writer()
    writer.header(ANSWER)
    writer.blob(message, MAX_FRAME, field="message")
    return writer.done()


def encode_refusal(kind: str) -> bytes:
    """That there is no answer.

    Args:
        kind: the name of the error; its text may tell about data or policy, and stays here.
    """
    writer = Writer()
    writer.header(REFUSAL)
    writer.blob(kind.encode(), _MAX_KIND, field="kind")
    return writer.done()


class Refused(RemoteProtocolError):
    """The other side refused; it says no more than what kind of error it met.

    Attributes:
        kind: as the other side named it, an identifier or "no kind".
    """

    def __init__(self, kind: str) -> None:
        super().__init__(f"refused: {kind}")
        self.kind = kind


def answered(reply: bytes) -> bytes:
    """The message in a reply.

    Raises:
        Refused: it is a refusal.
        WireError: it is neither.
    """
    kind = message_type(reply)
    if kind == INTRODUCTION:
        return reply
    reader = Reader(reply)
    if kind == REFUSAL:
        reader.header(REFUSAL)
        name = reader.blob(_MAX_KIND, field="kind").decode("ascii", "replace")
        reader.finish()
        raise Refused(name if name.isidentifier() else "no kind")
    reader.header(ANSWER)
    message = reader.blob(MAX_FRAME, field="message")
    reader.finish()
    return message


def _signed(writer: Writer, key: IdentityKey, label: bytes, context: bytes = b"") -> bytes:
    body = writer.done()
    signature = key.sign(len(body).to_bytes(8, "big") + body + context, label=label)
    tail = Writer()
    tail.blob(signature, MAX_SIGNATURE_BYTES, field="signature")
    return body + tail.done()


def _verify(
    reader: Reader, writer: Writer, key: IdentityPublicKey, label: bytes, context: bytes = b""
) -> None:
    """The signature that stands next, over what was read so far and is encoded again."""
    signature = reader.blob(MAX_SIGNATURE_BYTES, field="signature")
    reader.finish()
    try:
        body = writer.done()
        key.verify(signature, len(body).to_bytes(8, "big") + body + context, label=label)
    except LocalProtocolError as error:  # what was read does not fit what may be written
        raise WireError(str(error)) from None
