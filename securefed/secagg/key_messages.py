"""Messages by which the key of a round without masks is asked for and dealt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from securefed.crypto.identity import MAX_SIGNATURE_BYTES
from securefed.crypto.keys import HYBRID_PUBLIC_BYTES
from securefed.encoding.wire import Reader, Writer
from securefed.errors import WireError
from securefed.secagg.key_offer import WRAP_BYTES, Wrap
from securefed.secagg.messages import KEY_REQUEST, KEYS, read_count, strictly_rising
from securefed.secagg.signed import Signed

_ADVERT = HYBRID_PUBLIC_BYTES + MAX_SIGNATURE_BYTES + 64


def encode_key_request(adverts: Iterable[bytes]) -> bytes:
    """Server to whoever makes the key: what clients advertised, as they signed it, in order."""
    writer = Writer()
    writer.header(KEY_REQUEST)
    signed = list(adverts)
    writer.u32(len(signed))
    for data in signed:
        writer.blob(data, limit=_ADVERT)
    return writer.done()


def decode_key_request(data: bytes, *, size: int) -> list[Signed]:
    """Advertisements in strictly rising order of sender, at most ``size``."""
    reader = Reader(data)
    reader.header(KEY_REQUEST)
    adverts = [
        Signed.decode(reader.blob(_ADVERT, field="advertisement"), limit=HYBRID_PUBLIC_BYTES)
        for _ in range(read_count(reader, "advertisements", size))
    ]
    reader.finish()
    strictly_rising([signed.sender for signed in adverts], "advertisements", size)
    return adverts


def encode_dealt(offer: bytes, wraps: Mapping[int, Wrap]) -> bytes:
    """Body of stage share: the offer, where it was not made before, and W for each client."""
    writer = Writer()
    writer.blob(offer, limit=len(offer))
    writer.u32(len(wraps))
    for index in sorted(wraps):
        writer.u32(index)
        wraps[index].write(writer)
    return writer.done()


def decode_dealt(body: bytes, *, size: int, offer_limit: int) -> tuple[bytes, dict[int, Wrap]]:
    """The encoded offer, and W by client index."""
    reader = Reader(body)
    offer = reader.blob(offer_limit, field="offer")
    order, wraps = [], {}
    for _ in range(read_count(reader, "round secrets", size)):
        order.append(reader.u32(field="client"))
        wraps[order[-1]] = Wrap.take(reader)
    reader.finish()
    strictly_rising(order, "round secrets", size)
    return offer, wraps


def dealt_limit(size: int, offer_limit: int) -> int:
    """Most bytes of such a body."""
    return offer_limit + 8 + size * (8 + WRAP_BYTES + MAX_SIGNATURE_BYTES)


def encode_keys(offer: bytes, wrap: Wrap) -> bytes:
    """Server to one client: under which key it encrypts, and its W."""
    writer = Writer()
    writer.header(KEYS)
    writer.blob(offer, limit=len(offer))
    wrap.write(writer)
    return writer.done()


def decode_keys(data: bytes, *, offer_limit: int) -> tuple[bytes, Wrap]:
    """The encoded offer, and this client's W, sealed."""
    reader = Reader(data)
    reader.header(KEYS)
    offer = reader.blob(offer_limit, field="offer")
    wrap = Wrap.take(reader)
    reader.finish()
    if not offer:
        raise WireError("offer: it is empty")
    return offer, wrap
