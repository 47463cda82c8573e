"""The client's half of an encrypted round without masks.

======================  ==========================  ===============================================
state                   server's message            what the client then knows and sends
======================  ==========================  ===============================================
``NEW``                 (``start``)                 sends a fresh hybrid key, signed
``ADVERTISED``          advertisements              (cohort's key only) that it makes the key; sends
                                                    the offer, and the round secret sealed to each
``ADVERTISED`` or       the offer, and the round    under which key to encrypt; sends its
``DEALT``               secret sealed to it         **ciphertexts** and their padded check.  With a
                                                    decryptor this is its last message
``ENCRYPTED``           survivor list               (cohort's key only) who is in the sum; signs
                                                    that list, once
``CONFIRMED``           open request                (cohort's key only) that enough clients signed
                                                    the same, and that the sum is theirs; sends the
                                                    sum
``DONE`` / ``FAILED``   nothing is accepted         secrets are forgotten
======================  ==========================  ===============================================

A message of the wrong type for the present state is refused and changes nothing.  A message of the
right type with bad content ends the round for this client: it forgets its secrets.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import numpy as np

from securefed.crypto.identity import MAX_SIGNATURE_BYTES, IdentityKey
from securefed.crypto.keys import HybridPrivateKey
from securefed.crypto.prg import RandomBytes, SecretHolder, draw, system_random
from securefed.encoding.wire import Writer, message_type
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg.aggregator import Contribution, RoundContext
from securefed.secagg.decryptor import advertised_keys
from securefed.secagg.encrypting import EncryptedInput, OnEncrypted, SumKey
from securefed.secagg.key_holder import KeyHolder
from securefed.secagg.key_messages import decode_key_request, decode_keys, encode_dealt
from securefed.secagg.key_offer import (
    SECRET_BYTES,
    Offer,
    Wrap,
    agreed,
    lock,
    offer_limit,
    unlock,
)
from securefed.secagg.opening import SIGN_ENTRY, entry_statement
from securefed.secagg.round_secrets import SIGN_SURVIVORS, survivors_statement
from securefed.secagg.signed import sign
from securefed.secagg.sum_check import SumCheck


class ClientState(enum.Enum):
    """Where a client stands in a round."""

    NEW = "new"
    ADVERTISED = "advertised"
    DEALT = "dealt"
    ENCRYPTED = "encrypted"
    CONFIRMED = "confirmed"
    DONE = "done"
    FAILED = "failed"


# By state and message type: which method answers, and the state that follows.
_Transitions = dict[tuple[ClientState, int], tuple[str, ClientState]]
WITH_DECRYPTOR: Final[_Transitions] = {
    (ClientState.ADVERTISED, wire_messages.KEYS): ("_encrypt", ClientState.DONE),
}
COHORTS_KEY: Final[_Transitions] = {
    (ClientState.ADVERTISED, wire_messages.KEY_REQUEST): ("_deal", ClientState.DEALT),
    (ClientState.ADVERTISED, wire_messages.KEYS): ("_encrypt", ClientState.ENCRYPTED),
    (ClientState.DEALT, wire_messages.KEYS): ("_encrypt", ClientState.ENCRYPTED),
    (ClientState.ENCRYPTED, wire_messages.SURVIVORS): ("_confirm", ClientState.CONFIRMED),
    (ClientState.CONFIRMED, wire_messages.OPEN_REQUEST): ("_open", ClientState.DONE),
}


class EncryptedClient(SecretHolder):
    """One client in one encrypted round without masks.

    Args:
        context: what all parties agree on.
        client_id: this client.
        identity: its long-term key; the roster must hold the public half.
        contribution: makes uint32[context.length], values below 2^bits; called once, after the key
            was checked.  What it raises ends the round for this client.
        min_clients: the client's own floor: it opens, and signs for, no smaller sum.  Where a
            decryptor opens, the round's survivor floor must not be below it.
        random: source of round secrets; the operating system's generator outside tests.
        on_encrypted: told of progress.

    Guarantees:
        - Nothing that depends on the contribution is sent except encrypted, under a key that the
          round's decryptor, or a client of the cohort, signed for this round.
        - At most one sum is opened, and only with the checks of
          :mod:`securefed.secagg.key_holder`.

    Raises:
        LocalProtocolError: the round is none of this kind, the identity is not the one in the
            roster, or cohort or survivor floor are below the client's own floor.
    """

    def __init__(
        self,
        context: RoundContext,
        client_id: str,
        identity: IdentityKey,
        contribution: Contribution,
        *,
        min_clients: int = 2,
        random: RandomBytes = system_random,
        on_encrypted: OnEncrypted | None = None,
    ) -> None:
        encryption = agreed(context)
        if encryption.masked:
            raise LocalProtocolError("encryption: masked = True is for PairwiseClient")
        self._context = context
        self._encryption = encryption
        self._index, self._floor = context.seat(client_id, identity.public, min_clients)
        if context.has_decryptor and self._floor > context.parameters.survivor_floor:
            raise LocalProtocolError(
                f"min_clients = {min_clients}: the decryptor opens sums of "
                f"{context.parameters.survivor_floor} clients on, and this client could not refuse "
                "one once it has sent its contribution"
            )
        self._identity = identity
        self._contribution: Contribution | None = contribution
        self._random = random
        self._on_encrypted = on_encrypted
        self._envelope_key: HybridPrivateKey | None = None
        self._made: Offer | None = None
        self._holder: KeyHolder | None = None
        self._view = b""
        self._listed: tuple[int, ...] = ()
        self._transitions = COHORTS_KEY if encryption.key_holder == "cohort" else WITH_DECRYPTOR
        self.state = ClientState.NEW

    def __repr__(self) -> str:
        return f"EncryptedClient(index={self._index}, state={self.state.value})"

    def start(self) -> bytes:
        """Advertise where this client's round secret is to be sealed to.

        Run by: client.  Pre-conditions: called once.
        """
        if self.state is not ClientState.NEW:
            raise LocalProtocolError(f"start: the round is {self.state.value}, not new")
        self._envelope_key = HybridPrivateKey.generate(self._random)
        self.state = ClientState.ADVERTISED
        return self._signed("advertise", self._envelope_key.public.raw)

    def handle(self, message: bytes) -> bytes:
        """Answer the server's message for the present state.

        Raises:
            RemoteProtocolError: out of order (nothing changes), or bad content (the round is over
                for this client).
            ThresholdNotMet: too few clients are left (the round is over).
        """
        found = message_type(message)
        if (self.state, found) not in self._transitions:
            raise RemoteProtocolError(
                f"message type {found} while {self.state.value}: not accepted"
            )
        method, following = self._transitions[self.state, found]
        respond: Callable[[bytes], bytes] = getattr(self, method)
        answer = b""
        try:
            answer = respond(message)
            self.state = following
        finally:
            if not answer:
                self.state = ClientState.FAILED
            if self.state in (ClientState.DONE, ClientState.FAILED):
                self._forget()
        return answer

    def _deal(self, message: bytes) -> bytes:
        """Stage share.  Make the cohort's key; lock its secret half under W, and seal W to each."""
        context = self._context
        adverts = decode_key_request(message, size=len(context.cohort))
        keys = advertised_keys(context, adverts, self._floor)
        own = self._envelope_key
        if own is None or self._index not in keys or keys[self._index] != own.public:
            raise RemoteProtocolError("advertisements: another one stands for this client")
        key = SumKey.generate(self._encryption)
        public, secret = key.parts()
        round_secret = draw(self._random, SECRET_BYTES)
        locked = lock(secret, round_secret, context.digest)
        offer = Offer.make(context, self._index, self._identity, public, locked)
        wraps = {
            index: Wrap.make(context, offer, self._identity, index, receiver, round_secret)
            for index, receiver in keys.items()
        }
        self._made = offer
        return self._signed("share", encode_dealt(offer.encoded, wraps))

    def _encrypt(self, message: bytes) -> bytes:
        """Stage masked_input.  Check whose key it is; only then make the contribution."""
        context, encryption = self._context, self._encryption
        encoded, wrap = decode_keys(message, offer_limit=offer_limit(context))
        offer = Offer.read(context, encoded)
        if self._made is not None and offer.hash != self._made.hash:
            raise RemoteProtocolError("offer: not the key that this client made")
        if self._envelope_key is None or self._contribution is None:
            raise LocalProtocolError("the round's keys are gone")
        round_secret = wrap.open(context, offer, self._index, self._envelope_key)
        if encryption.key_holder == "cohort":
            secret = unlock(offer.locked_secret, round_secret, context.digest)
            key = SumKey.from_parts(encryption, offer.public_key, secret)
            self._holder = KeyHolder(context, offer, key, round_secret, min_clients=self._floor)
        self._view = offer.view()
        carrier = EncryptedInput(encryption, offer.public_key, self._on_encrypted)
        contribution, self._contribution = self._contribution, None
        vector = contribution()
        if vector.dtype != np.uint32 or vector.shape != (context.length,):
            raise LocalProtocolError(
                f"contribution: {vector.dtype}[{vector.shape}], must be uint32[{context.length}]"
            )
        ciphertexts = list(carrier.protect(vector))
        check = SumCheck(encryption.parameters, round_secret, self._view)
        padded = check.padded(check.of(ciphertexts), self._index)
        statement = entry_statement(context.digest, self._view, self._index)
        writer = Writer()
        writer.fixed(self._view, 32)
        writer.fixed(padded, len(padded))
        writer.blob(self._identity.sign(statement, label=SIGN_ENTRY), limit=MAX_SIGNATURE_BYTES)
        return self._signed("masked_input", writer.done(), *ciphertexts)

    def _confirm(self, message: bytes) -> bytes:
        """Stage consistency.  Sign the survivor list, once."""
        context = self._context
        survivors = wire_messages.decode_survivors(message, size=len(context.cohort))
        if self._index not in survivors:
            raise RemoteProtocolError("survivors: this client sent its input but is not listed")
        if len(survivors) < self._floor:
            raise ThresholdNotMet(
                f"survivors: {len(survivors)} clients, at least {self._floor} are needed"
            )
        self._listed = tuple(survivors)
        statement = survivors_statement(context.digest, self._view, survivors)
        return self._signed("consistency", self._identity.sign(statement, label=SIGN_SURVIVORS))

    def _open(self, message: bytes) -> bytes:
        """Stage unmask.  Open the sum for the server."""
        if self._holder is None:
            raise LocalProtocolError("the round's key is gone")
        return self._signed("unmask", self._holder.open(message, listed=self._listed))

    def _signed(self, stage: str, *body: bytes) -> bytes:
        return sign(self._context, self._index, self._identity, stage, *body)

    def _forget(self) -> None:
        self._envelope_key = None
        self._holder = None
        self._contribution = None
