"""What carries a contribution from a client into the sum: ring elements, or slots encrypted.

A pairwise round hides each contribution beneath keystreams and adds what it gets.  Keys, shares,
lists and signatures are the same whatever is added; this module is what is not.

========  ==================================  =====================================================
carrier   a client sends                      the server adds, and takes the masks that are left
                                              from
========  ==================================  =====================================================
ring      d values of ``bits`` bits, masked   ring elements
          modulo 2^32
slots     BFV ciphertexts of slots, several   ciphertexts; then slots that the decryptor opened,
          values each, masked modulo t        masked still.  Without masks they are the packed sum
========  ==================================  =====================================================

Masks modulo t lie over whole slots: see :mod:`securefed.secagg.slots`.  In either ring a client's
masked vector is uniform to whoever lacks one of its keys.  The sum of the same vectors is the same,
bit for bit, as long as it stays within ``RoundEncryption.sum_bound``.

With slots the decryptor takes part in two stages.  It offers a key when clients advertise theirs.
The offer reaches a client with the shares that are dealt to it, and its hash is part of the view
from then on: of keystream keys, inputs and survivor lists.  Once clients signed a list, it opens
the sum for as many signatures as leave no room for another list.  It sees that sum, masked, and no
contribution.  It is taken at its word for what the ciphertexts open to: a wrong word spoils the
sum, and tells it nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import add_keystreams
from securefed.encoding.wire import pack_ring, packed_size, unpack_ring
from securefed.errors import LocalProtocolError, RemoteProtocolError, WireError
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.ciphertexts import CiphertextSum, ciphertext_size
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.key_holder import list_quorum
from securefed.secagg.key_offer import Offer, agreed
from securefed.secagg.opening import OpenRequest, decode_opened_slots, opened_size
from securefed.secagg.signed import Signed, party_name, verify
from securefed.secagg.slots import mask_slots

Mask = tuple[bytes, bool]
"""A keystream key, and whether the keystream is subtracted."""
MaskRemoval = Callable[[NDArray[np.uint32], Iterable[Mask]], None]
"""Applies masks to a ring vector in place; an engine may spread them over several cores."""


def apply_masks(vector: NDArray[np.uint32], masks: Iterable[Mask]) -> None:
    """Apply the masks on one core."""
    add_keystreams(vector, masks)


class InputCarrier(Protocol):
    """The client's side: :class:`RingInput`, or ``encrypting.EncryptedInput``."""

    def protect(self, vector: NDArray[np.uint32], masks: Iterable[Mask]) -> Iterator[bytes]:
        """A contribution beneath its masks, in parts of the message's body.

        Args:
            vector: uint32[length]; left as it is.
            masks: the client's own and one towards each neighbour.
        """
        ...


class SumCarrier(Protocol):
    """The server's side: holds the running sum and nothing else of a contribution."""

    @property
    def size(self) -> int:
        """Bytes of one contribution."""
        ...

    def add(self, body: bytes) -> None:
        """Add one contribution, whole or not at all.

        Raises:
            WireError: another length, or no encoding of a contribution; nothing was added.
        """
        ...

    def unmasked(self, masks: Iterable[Mask]) -> NDArray[np.uint32]:
        """The sum without the masks that did not cancel.  Called once.

        Returns:
            uint32[length]; its low ``bits`` bits are the sum.
        """
        ...


class RingInput:
    """Masks modulo 2^32, sends the low ``bits`` bits."""

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def protect(self, vector: NDArray[np.uint32], masks: Iterable[Mask]) -> Iterator[bytes]:
        """One part; see :meth:`InputCarrier.protect`."""
        masked = vector.copy()
        add_keystreams(masked, masks)
        yield pack_ring(masked, self._bits)


class RingSum:
    """Adds ring elements.

    Args:
        length: d.
        bits: ring width.
        remove_masks: applies the masks that are left.
    """

    def __init__(self, length: int, bits: int, remove_masks: MaskRemoval) -> None:
        self._bits = bits
        self._remove_masks = remove_masks
        self.total: NDArray[np.uint32] = np.zeros(length, dtype=np.uint32)

    @property
    def size(self) -> int:
        """Bytes of one contribution."""
        return packed_size(self.total.size, self._bits)

    def add(self, body: bytes) -> None:
        """See :meth:`SumCarrier.add`."""
        self.total += unpack_ring(body, self.total.size, self._bits)

    def unmasked(self, masks: Iterable[Mask]) -> NDArray[np.uint32]:
        """See :meth:`SumCarrier.unmasked`."""
        self._remove_masks(self.total, masks)
        return self.total


def check_masked(context: RoundContext) -> None:
    """Whether contributions carry masks in this round, encrypted or not.

    Raises:
        LocalProtocolError: they are encrypted without: that is another protocol.
    """
    if context.encryption is not None and not context.encryption.masked:
        raise LocalProtocolError("encryption: masked = False, and this is the protocol with masks")


class SlotSum:
    """Adds ciphertexts, and asks the decryptor what their sum opens to; holds no key.

    Args:
        context: of an encrypted round.
    """

    def __init__(self, context: RoundContext) -> None:
        self._context = context
        encryption = agreed(context)
        if encryption.packing is None:
            raise LocalProtocolError(f"scheme = {encryption.scheme!r}: masks need 'bfv'")
        self._packing = encryption.packing
        self._one = ciphertext_size(encryption.parameters)
        self._sum = CiphertextSum(encryption.parameters, encryption.count)
        self._offer: Offer | None = None
        self._slots: NDArray[np.uint64] | None = None
        self.size = encryption.input_bytes

    @property
    def offer(self) -> Offer:
        """Whose key the round is encrypted under.

        Raises:
            LocalProtocolError: there is none yet.
        """
        if self._offer is None:
            raise LocalProtocolError("offer: the decryptor has not sent one")
        return self._offer

    def take_offer(self, message: bytes) -> None:
        """Take the decryptor's offer.

        Raises:
            RemoteProtocolError: it is not one that the decryptor signed for this round.
        """
        self._offer = Offer.read(self._context, message)

    def add(self, body: bytes) -> None:
        """See :meth:`SumCarrier.add`."""
        if len(body) != self.size:
            raise WireError(f"ciphertexts: {len(body)} bytes found, {self.size} expected")
        self._sum.add([body[at : at + self._one] for at in range(0, self.size, self._one)])

    def request(
        self, inner_view: bytes, survivors: tuple[int, ...], signatures: Mapping[int, bytes]
    ) -> bytes:
        """What the decryptor is to open.

        Args:
            inner_view: the view of the masking.
            survivors: whose contributions were added, rising.
            signatures: of survivors on that list; as many are passed on as the decryptor asks for.
        """
        enough = sorted(signatures)[: list_quorum(self._context)]
        asked = OpenRequest(
            inner_view=inner_view,
            survivors=survivors,
            signatures={index: signatures[index] for index in enough},
            entries={},
            check=b"",
            ciphertexts=tuple(self._sum.ciphertexts()),
        )
        return asked.encode(self._context)

    def take_opened(self, message: bytes) -> None:
        """Take what the sum opened to, masked still.

        Raises:
            RemoteProtocolError: the decryptor did not sign it, or these are not slots.
        """
        encryption = agreed(self._context)
        signed = Signed.decode(message, limit=opened_size(encryption))
        if party_name(self._context, signed.sender) != DECRYPTOR:
            raise RemoteProtocolError(f"opened slots: sent as party number {signed.sender}")
        verify(self._context, signed, "unmask")
        self._slots = decode_opened_slots(encryption, signed.body)

    def unmasked(self, masks: Iterable[Mask]) -> NDArray[np.uint32]:
        """See :meth:`SumCarrier.unmasked`.

        Raises:
            LocalProtocolError: the sum was not opened.
        """
        if self._slots is None:
            raise LocalProtocolError("sum: the decryptor has not opened it")
        return self._packing.unpack(mask_slots(self._slots, masks, self._packing.modulus))
