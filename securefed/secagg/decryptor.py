"""A separate party that holds a round's key and sees sums only.

======================  ==========================  ===============================================
state                   server's message            what the decryptor then knows and sends
======================  ==========================  ===============================================
``NEW``                 (``start``)                 a fresh key; sends the public half, signed
``OFFERED``             clients' advertisements     (without masks only) whom to deal the round
                                                    secret to; sends it, sealed to each
``OFFERED`` or          open request                a sum and who is in it; checks it, and sends
``DEALT``                                           what it opens to
``DONE`` / ``FAILED``   nothing is accepted         the key is gone
======================  ==========================  ===============================================
"""

from __future__ import annotations

import enum

from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPublicKey
from securefed.crypto.prg import RandomBytes, SecretHolder, draw, system_random
from securefed.encoding.wire import message_type
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.encrypting import SumKey
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.key_holder import KeyHolder, OnOpen
from securefed.secagg.key_messages import decode_key_request, encode_dealt
from securefed.secagg.key_offer import SECRET_BYTES, Offer, Wrap, agreed
from securefed.secagg.signed import Signed, party_number, sign, verify


class DecryptorState(enum.Enum):
    """Where a decryptor stands in a round."""

    NEW = "new"
    OFFERED = "offered"
    DEALT = "dealt"
    DONE = "done"
    FAILED = "failed"


def advertised_keys(
    context: RoundContext, adverts: list[Signed], floor: int
) -> dict[int, HybridPublicKey]:
    """The hybrid keys that clients advertised, each signed by its client for this round.

    Raises:
        RemoteProtocolError: one is not signed, not valid, or stands for two clients.
        ThresholdNotMet: fewer than ``floor``.
    """
    found: dict[int, HybridPublicKey] = {}
    for signed in adverts:
        verify(context, signed, "advertise")
        try:
            found[signed.sender] = HybridPublicKey.from_bytes(signed.body)
        except RemoteProtocolError as error:
            name = context.cohort[signed.sender]
            raise RemoteProtocolError(f"advertisement of {name!r}: {error}") from None
    if len({key.raw for key in found.values()}) != len(found):
        raise RemoteProtocolError("advertisements: a public key appears twice")
    if len(found) < floor:
        raise ThresholdNotMet(f"advertisements: {len(found)} clients, at least {floor} are needed")
    return found


class Decryptor(SecretHolder):
    """The decryptor in one round, sans I/O; a party beside the clients.

    Args:
        context: what all parties agree on.
        identity: its long-term key; the roster must hold the public half under ``"decryptor"``.
        min_clients: its own floor: it opens no smaller sum, whatever the server agreed.
        on_open: told of the opening before it happens; what it raises ends the round unopened.
        random: source of the round secret; the operating system's generator outside tests.

    Guarantees:
        - A fresh key a round, never written, gone once one request was looked at.
        - It opens only what :mod:`securefed.secagg.key_holder` allows.
        - It sees sums, and the padded checks behind them; no client's ciphertexts.

    Raises:
        LocalProtocolError: the round has no decryptor, or the roster holds another key for it.
    """

    def __init__(
        self,
        context: RoundContext,
        identity: IdentityKey,
        *,
        min_clients: int = 2,
        on_open: OnOpen | None = None,
        random: RandomBytes = system_random,
    ) -> None:
        if not context.has_decryptor:
            raise LocalProtocolError("decryptor: this round has none")
        if context.roster[DECRYPTOR] != identity.public:
            raise LocalProtocolError("decryptor: the roster holds another identity key for it")
        self._context = context
        self._number = party_number(context, DECRYPTOR)
        self._identity = identity
        self._min_clients = max(min_clients, context.parameters.survivor_floor)
        if len(context.cohort) < self._min_clients:
            raise LocalProtocolError(
                f"cohort of {len(context.cohort)} clients: this decryptor opens sums of "
                f"{self._min_clients} on (min_clients)"
            )
        self._on_open = on_open
        self._random = random
        self._round_secret = b""
        self._offer: Offer | None = None
        self._holder: KeyHolder | None = None
        self.state = DecryptorState.NEW

    def start(self) -> bytes:
        """Make the round's key and offer its public half.

        Run by: decryptor.  Pre-conditions: called once.
        """
        if self.state is not DecryptorState.NEW:
            raise LocalProtocolError(f"start: the round is {self.state.value}, not new")
        context, encryption = self._context, agreed(self._context)
        key = SumKey.generate(encryption)
        public, _ = key.parts()
        offer = Offer.make(context, self._number, self._identity, public)
        if not encryption.masked:
            self._round_secret = draw(self._random, SECRET_BYTES)
        self._offer = offer
        self._holder = KeyHolder(
            context,
            offer,
            key,
            self._round_secret,
            min_clients=self._min_clients,
            on_open=self._on_open,
        )
        self.state = DecryptorState.OFFERED
        return offer.encoded

    def handle(self, message: bytes) -> bytes:
        """Answer the server.

        Raises:
            RemoteProtocolError: out of order (nothing changes), or bad content (the round is over,
                and nothing is opened).
            ThresholdNotMet: too few clients (the round is over).
        """
        found = message_type(message)
        masked = agreed(self._context).masked
        waiting = DecryptorState.OFFERED if masked else DecryptorState.DEALT
        answer = b""
        if (
            self.state is DecryptorState.OFFERED
            and not masked
            and (found == wire_messages.KEY_REQUEST)
        ):
            respond, following = self._deal, DecryptorState.DEALT
        elif self.state is waiting and found == wire_messages.OPEN_REQUEST:
            respond, following = self._open, DecryptorState.DONE
        else:
            raise RemoteProtocolError(
                f"message type {found} while {self.state.value}: not accepted"
            )
        try:
            answer = respond(message)
            self.state = following
        finally:
            if not answer:
                self.state = DecryptorState.FAILED
            if self.state in (DecryptorState.DONE, DecryptorState.FAILED):
                self._holder, self._round_secret = None, b""
        return answer

    def _deal(self, message: bytes) -> bytes:
        """Seal the round secret to every client that advertised a key."""
        context, offer = self._context, self._offer
        if offer is None:
            raise LocalProtocolError("the round's key is gone")
        adverts = decode_key_request(message, size=len(context.cohort))
        keys = advertised_keys(context, adverts, self._min_clients)
        wraps = {
            index: Wrap.make(context, offer, self._identity, index, key, self._round_secret)
            for index, key in keys.items()
        }
        return sign(context, self._number, self._identity, "share", encode_dealt(b"", wraps))

    def _open(self, message: bytes) -> bytes:
        if self._holder is None:
            raise LocalProtocolError("the round's key is gone")
        body = self._holder.open(message)
        return sign(self._context, self._number, self._identity, "unmask", body)
