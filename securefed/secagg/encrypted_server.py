"""The server's half of an encrypted round without masks.

It adds ciphertexts as they arrive, never holds two contributions at once, and has no key.

==================  ==============================  ===============================================
stage               messages                        what the server then knows and sends
==================  ==============================  ===============================================
``advertise``       clients' hybrid keys; the       who is there; sends the advertisements to the
                    decryptor's offer               decryptor, or to the client that makes the key
``share``           the offer (of the cohort's      sends each client the offer and its round
                    key), round secrets, sealed     secret; asks another maker if this one is silent
``masked_input``    ciphertexts, padded checks      their sum; asks the decryptor to open it, or
                                                    sends clients the list of survivors
``consistency``     (cohort's key) signatures on    who agrees; asks as many clients to open the
                    that list                       sum as may be missing, and two more
``unmask``          the opened sum                  the sum; sends nothing
==================  ==============================  ===============================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from securefed.config import STAGES, Stage
from securefed.crypto.identity import MAX_SIGNATURE_BYTES
from securefed.crypto.keys import HYBRID_PUBLIC_BYTES, HybridPublicKey
from securefed.encoding.wire import Reader
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg.aggregator import Aggregate, RoundContext
from securefed.secagg.ciphertexts import CiphertextSum, ciphertext_size
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.key_holder import list_quorum
from securefed.secagg.key_messages import (
    dealt_limit,
    decode_dealt,
    encode_key_request,
    encode_keys,
)
from securefed.secagg.key_offer import Offer, Wrap, agreed, offer_limit
from securefed.secagg.opening import (
    SIGN_ENTRY,
    OpenRequest,
    decode_opened_ring,
    entry_statement,
    opened_size,
)
from securefed.secagg.round_secrets import SIGN_SURVIVORS, survivors_statement
from securefed.secagg.signed import Signed, party_name, party_number, verify
from securefed.secagg.sum_check import add_padded, check_bytes

_OPENERS = 2
"""Least clients that open a sum with the cohort's key: one alone could say what it likes."""


class EncryptedServer:
    """The server in one encrypted round without masks.

    Args:
        context: what all parties agree on.

    Guarantees:
        - A message that is malformed, wrongly signed, out of turn or a second one is refused and
          changes nothing.
        - The result is what the key holder opened: with a decryptor its word is taken for it; where
          the cohort holds the key, at least two answer, and all that do say the same.
    """

    def __init__(self, context: RoundContext) -> None:
        encryption = agreed(context)
        if encryption.masked:
            raise LocalProtocolError("encryption: masked = True is for PairwiseServer")
        self._context = context
        self._encryption = encryption
        self._stage: Stage | None = STAGES[0]
        self._awaited = set(range(len(context.cohort)))
        if context.has_decryptor:
            self._awaited.add(party_number(context, DECRYPTOR))
        self._seen: set[int] = set()
        self._adverts: dict[int, bytes] = {}
        self._public_keys: set[bytes] = set()
        self._offer: Offer | None = None
        self._makers: list[int] = []
        self._wraps: dict[int, Wrap] = {}
        self._view = b""
        self._entries: dict[int, bytes] = {}
        self._check = bytes(check_bytes(encryption.parameters))
        self._sum = CiphertextSum(encryption.parameters, encryption.count)
        self._survivors: tuple[int, ...] = ()
        self._confirmations: dict[int, bytes] = {}
        self._opened: dict[int, bytes] = {}
        self._result: Aggregate | None = None

    @property
    def stage(self) -> Stage | None:
        """The stage whose messages are awaited; None once the round is over."""
        return self._stage

    @property
    def result(self) -> Aggregate:
        """The sum over the survivors.

        Raises:
            LocalProtocolError: the round is not over, or ended without a result.
        """
        if self._result is None:
            raise LocalProtocolError("the round has no result (yet)")
        return self._result

    def receive(self, client_id: str, message: bytes) -> None:
        """Take one party's message for the present stage; the decryptor's too.

        Run by: server.

        Raises:
            RemoteProtocolError: the message is refused, and why; the sender may be named.
            LocalProtocolError: the round is over.
        """
        context, stage = self._context, self._stage
        if stage is None:
            raise LocalProtocolError("receive: the round is over")
        sender = party_number(context, client_id)
        if sender in self._seen:
            raise RemoteProtocolError(f"{client_id!r} has already sent its {stage} message")
        if sender not in self._awaited:
            raise RemoteProtocolError(f"{client_id!r} is not awaited in {stage}")
        if stage == "advertise" and client_id == DECRYPTOR:
            self._offer = Offer.read(context, message)
            self._seen.add(sender)
            return
        signed = Signed.decode(message, limit=self._limit(stage))
        if signed.sender != sender:
            raise RemoteProtocolError(f"{client_id!r} speaks as party number {signed.sender}")
        verify(context, signed, stage)
        if stage == "advertise":
            self._add_advertisement(sender, client_id, signed)
        elif stage == "share":
            self._add_dealt(sender, client_id, signed.body)
        elif stage == "masked_input":
            self._add_input(sender, client_id, signed.body)
        elif stage == "consistency":
            statement = survivors_statement(context.digest, self._view, list(self._survivors))
            context.roster[client_id].verify(signed.body, statement, label=SIGN_SURVIVORS)
            self._confirmations[sender] = signed.body
        else:
            if len(signed.body) != opened_size(self._encryption):
                raise RemoteProtocolError(
                    f"unmask: {client_id!r} sent {len(signed.body)} bytes, "
                    f"{opened_size(self._encryption)} expected"
                )
            self._opened[sender] = signed.body
        self._seen.add(sender)

    def advance(self) -> Mapping[str, bytes]:
        """End the present stage.

        Run by: server.  Pre-conditions: all messages that will be waited for were received.

        Returns:
            What to send to whom; empty after the last stage, when ``result`` is ready.

        Raises:
            ThresholdNotMet: too few clients are left, or the key holder is silent.
            RemoteProtocolError: those who opened the sum do not agree on it.
        """
        stage = self._stage
        if stage is None:
            raise LocalProtocolError("advance: the round is over")
        clients = sorted(self._seen - {len(self._context.cohort)})
        self._seen, self._stage = set(), None  # over, unless this stage ends well
        if stage == "advertise":
            following, outgoing = self._ask_for_keys(clients)
        elif stage == "share":
            following, outgoing = self._pass_keys_on()
        elif stage == "masked_input":
            following, outgoing = self._close_the_sum(clients)
        elif stage == "consistency":
            following, outgoing = self._ask_clients_to_open(clients)
        else:
            self._finish()
            return {}
        self._awaited = {party_number(self._context, name) for name in outgoing}
        self._stage = following
        return outgoing

    # -- what is sent ----------------------------------------------------------------------

    def _check_floor(self, stage: Stage, found: int, floor: int) -> None:
        if found < floor:
            raise ThresholdNotMet(
                f"{stage}: {found} clients answered, at least {floor} are needed; no sum was opened"
            )

    def _ask_for_keys(self, clients: list[int]) -> tuple[Stage, dict[str, bytes]]:
        context = self._context
        self._check_floor("advertise", len(clients), context.parameters.survivor_floor)
        if not context.has_decryptor:
            # If one falls silent another is asked: as many as may be missing, and one more.
            parameters = context.parameters
            most = parameters.size - parameters.survivor_floor + 1
            self._makers = self._in_turn(clients)[:most]
            return self._ask_for_key(self._makers.pop(0))
        if self._offer is None:
            raise ThresholdNotMet("advertise: the decryptor did not answer")
        return self._ask_for_key(party_number(context, DECRYPTOR))

    def _ask_for_key(self, maker: int) -> tuple[Stage, dict[str, bytes]]:
        request = encode_key_request(self._adverts[index] for index in sorted(self._adverts))
        return "share", {party_name(self._context, maker): request}

    def _pass_keys_on(self) -> tuple[Stage, dict[str, bytes]]:
        offer, context = self._offer, self._context
        if not self._wraps and self._makers:
            return self._ask_for_key(self._makers.pop(0))
        if offer is None or not self._wraps:
            raise ThresholdNotMet("share: nobody dealt a key")
        self._view = offer.view()
        return "masked_input", {
            context.cohort[index]: encode_keys(offer.encoded, wrap)
            for index, wrap in self._wraps.items()
        }

    def _close_the_sum(self, clients: list[int]) -> tuple[Stage, dict[str, bytes]]:
        context = self._context
        self._check_floor("masked_input", len(clients), context.parameters.survivor_floor)
        self._survivors = tuple(clients)
        if context.has_decryptor:
            return "unmask", {DECRYPTOR: self._open_request()}
        listed = wire_messages.encode_survivors(clients, size=len(context.cohort))
        return "consistency", {context.cohort[index]: listed for index in clients}

    def _ask_clients_to_open(self, clients: list[int]) -> tuple[Stage, dict[str, bytes]]:
        context = self._context
        self._check_floor("consistency", len(clients), list_quorum(context))
        parameters = context.parameters
        request = self._open_request()
        openers = self._in_turn(clients)[: parameters.size - parameters.survivor_floor + 2]
        return "unmask", {context.cohort[index]: request for index in openers}

    def _open_request(self) -> bytes:
        request = OpenRequest(
            inner_view=b"",
            survivors=self._survivors,
            signatures=self._confirmations,
            entries=self._entries,
            check=self._check,
            ciphertexts=tuple(self._sum.ciphertexts()),
        )
        return request.encode(self._context)

    def _in_turn(self, clients: Iterable[int]) -> list[int]:
        """The order in which clients are asked for more than others: another one in each round."""
        digest = self._context.digest
        return sorted(
            clients, key=lambda index: hashlib.sha256(digest + index.to_bytes(4, "big")).digest()
        )

    # -- what is received ------------------------------------------------------------------

    def _limit(self, stage: Stage) -> int:
        encryption, size = self._encryption, len(self._context.cohort)
        return {
            "advertise": HYBRID_PUBLIC_BYTES,
            "share": dealt_limit(size, offer_limit(self._context)),
            "masked_input": 32
            + check_bytes(encryption.parameters)
            + 4
            + MAX_SIGNATURE_BYTES
            + encryption.input_bytes,
            "consistency": MAX_SIGNATURE_BYTES,
            "unmask": opened_size(encryption),
        }[stage]

    def _add_advertisement(self, sender: int, client_id: str, signed: Signed) -> None:
        try:
            HybridPublicKey.from_bytes(signed.body)
        except RemoteProtocolError as error:
            raise RemoteProtocolError(f"advertisement of {client_id!r}: {error}") from None
        if signed.body in self._public_keys:
            raise RemoteProtocolError(f"advertisement of {client_id!r}: a public key appears twice")
        self._public_keys.add(signed.body)
        self._adverts[sender] = signed.encode()

    def _add_dealt(self, sender: int, client_id: str, body: bytes) -> None:
        context = self._context
        encoded, wraps = decode_dealt(
            body, size=len(context.cohort), offer_limit=offer_limit(context)
        )
        offer = self._offer
        if not context.has_decryptor:
            offer = Offer.read(context, encoded)
        elif encoded:
            raise RemoteProtocolError("share: the decryptor offered its key before")
        if offer is None or offer.holder != sender:
            raise RemoteProtocolError(f"share: {client_id!r} dealt for a key that is not its own")
        if wraps.keys() != self._adverts.keys():
            raise RemoteProtocolError(
                f"share: {client_id!r} dealt to other clients than those that advertised"
            )
        self._offer, self._wraps = offer, wraps

    def _add_input(self, sender: int, client_id: str, body: bytes) -> None:
        context, encryption = self._context, self._encryption
        reader = Reader(body)
        if reader.fixed(32, field="view") != self._view:
            raise RemoteProtocolError(f"masked_input: {client_id!r} encrypted under another key")
        parameters = encryption.parameters
        padded = reader.fixed(check_bytes(parameters), field="check of the sum")
        entry = reader.blob(MAX_SIGNATURE_BYTES, field="signature")
        each = ciphertext_size(parameters)
        ciphertexts = [reader.fixed(each, field="ciphertext") for _ in range(encryption.count)]
        reader.finish()
        statement = entry_statement(context.digest, self._view, sender)
        context.roster[client_id].verify(entry, statement, label=SIGN_ENTRY)
        check = add_padded(parameters, self._check, padded)
        self._sum.add(ciphertexts)
        self._check, self._entries[sender] = check, entry

    def _finish(self) -> None:
        context = self._context
        if context.has_decryptor and not self._opened:
            raise ThresholdNotMet("unmask: the decryptor did not open the sum")
        if not context.has_decryptor and len(self._opened) < _OPENERS:
            raise ThresholdNotMet(
                f"unmask: {len(self._opened)} clients opened the sum, at least {_OPENERS} must"
            )
        bodies = set(self._opened.values())
        if len(bodies) != 1:
            names = [context.cohort[index] for index in sorted(self._opened)]
            raise RemoteProtocolError(f"unmask: {names[:5]} opened one sum to different values")
        survivors = tuple(context.cohort[index] for index in self._survivors)
        self._result = Aggregate(decode_opened_ring(self._encryption, bodies.pop()), survivors)
