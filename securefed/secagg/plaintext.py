"""The insecure baseline: contributions reach the server as they are.

It exists so that the cost of protection can be measured and so that attacks can be shown to work
when nothing is masked.  It has the interface of the secure protocols and a single stage.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from securefed.config import Stage
from securefed.encoding.wire import Reader, Writer, pack_ring, packed_size, unpack_ring
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg.aggregator import Aggregate, Contribution, RoundContext

_PLAIN = 21


class PlaintextClient:
    """Sends its contribution in the clear."""

    def __init__(self, context: RoundContext, client_id: str, contribution: Contribution) -> None:
        self._context = context
        self._index = context.index(client_id)
        self._contribution: Contribution | None = contribution

    def start(self) -> bytes:
        """The contribution itself."""
        if self._contribution is None:
            raise LocalProtocolError("start: the contribution was already sent")
        contribution, self._contribution = self._contribution, None
        packed = pack_ring(contribution(), self._context.bits)
        writer = Writer()
        writer.header(_PLAIN)
        writer.fixed(self._context.digest, 32)
        writer.u32(self._index)
        writer.blob(packed, limit=len(packed))
        return writer.done()

    def handle(self, message: bytes) -> bytes:
        """The server has nothing to say in this protocol."""
        raise RemoteProtocolError("plaintext aggregation has no second message")


def read_contribution(context: RoundContext, client_id: str, message: bytes) -> NDArray[np.uint32]:
    """What a client sent in the clear: uint32[context.length], values below 2^bits.

    Raises:
        WireError: these bytes are no contribution.
        RemoteProtocolError: it is another client's or another round's.
    """
    reader = Reader(message)
    reader.header(_PLAIN)
    if reader.fixed(32, field="round digest") != context.digest:
        raise RemoteProtocolError(f"{client_id!r}: contribution was made for another round")
    if reader.u32(field="sender") != context.index(client_id):
        raise RemoteProtocolError(f"{client_id!r} speaks as another client")
    packed = reader.blob(packed_size(context.length, context.bits), field="contribution")
    reader.finish()
    return unpack_ring(packed, context.length, context.bits)


class PlaintextServer:
    """Adds what arrives."""

    def __init__(self, context: RoundContext) -> None:
        self._context = context
        self._stage: Stage | None = "masked_input"
        self._seen: set[int] = set()
        self._total: NDArray[np.uint32] = np.zeros(context.length, dtype=np.uint32)
        self._result: Aggregate | None = None

    @property
    def stage(self) -> Stage | None:
        """``"masked_input"`` (though nothing is masked), then None."""
        return self._stage

    @property
    def result(self) -> Aggregate:
        """The sum."""
        if self._result is None:
            raise LocalProtocolError("the round has no result (yet)")
        return self._result

    def receive(self, client_id: str, message: bytes) -> None:
        """Add one contribution."""
        context = self._context
        values = read_contribution(context, client_id, message)
        index = context.index(client_id)
        if index in self._seen:
            raise RemoteProtocolError(f"{client_id!r} has already sent its contribution")
        self._total += values
        self._seen.add(index)

    def advance(self) -> dict[str, bytes]:
        """End the round."""
        self._stage = None
        floor = self._context.parameters.survivor_floor
        if len(self._seen) < floor:
            raise ThresholdNotMet(
                f"masked_input: {len(self._seen)} clients answered, at least {floor} are needed; "
                "no sum was formed"
            )
        self._total &= np.uint32((1 << self._context.bits) - 1)
        survivors = tuple(self._context.cohort[index] for index in sorted(self._seen))
        self._result = Aggregate(self._total, survivors)
        return {}
