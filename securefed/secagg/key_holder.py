"""What a key holder checks before it opens anything, and that it opens one sum.

Both schemes give way to whoever may have ciphertexts of its own making decrypted, even once: the
secret key of such a ciphertext can stand in the clear in what comes back.  So a holder opens, with
one key, one request, and of that only

1. a sum of at least as many clients as the round's survivor floor and its own (``min_clients``);
2. for which enough clients signed: without masks every survivor its entry, in which it says that it
   took part in this attempt under this key; with masks, or where the cohort holds the key, more
   than (n + c) / 2 of them the very list;
3. without masks, a sum whose linear check is the sum of the survivors'
   (:mod:`securefed.secagg.sum_check`).

With masks there is no third check: a server that asks for something else gets masked slots, or the
key, and in either case no more than the server of a pairwise round has.
"""

from __future__ import annotations

from collections.abc import Callable

from securefed.crypto.prg import SecretHolder
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.encrypting import SumKey
from securefed.secagg.key_offer import Offer, agreed
from securefed.secagg.opening import (
    SIGN_ENTRY,
    Opening,
    OpenRequest,
    encode_opened_ring,
    encode_opened_slots,
    entry_statement,
)
from securefed.secagg.round_secrets import SIGN_SURVIVORS, survivors_statement
from securefed.secagg.sum_check import SumCheck

OnOpen = Callable[[Opening], None]
"""Told right before a sum is opened; if it raises, nothing is."""


def list_quorum(context: RoundContext) -> int:
    """How many signatures on one list leave no room for another: more than (n + c) / 2."""
    parameters = context.parameters
    return (parameters.size + parameters.corrupt) // 2 + 1


class KeyHolder(SecretHolder):
    """The key of one round, and what may be opened with it.

    Args:
        context: what all parties agree on.
        offer: of the key.
        key: its secret half.
        round_secret: W in a round without masks; empty with them.
        min_clients: the holder's own floor.
        on_open: told of the opening before it happens, to put it on record.

    Guarantees:
        - At most one request is looked at; the key is forgotten with it, opened or refused.
        - What is opened fulfils the conditions at the head of this module.
    """

    def __init__(
        self,
        context: RoundContext,
        offer: Offer,
        key: SumKey,
        round_secret: bytes,
        *,
        min_clients: int = 2,
        on_open: OnOpen | None = None,
    ) -> None:
        self._context = context
        self._offer = offer
        self._key: SumKey | None = key
        self._round_secret = round_secret
        self._floor = max(min_clients, context.parameters.survivor_floor)
        self._on_open = on_open

    def open(self, request: bytes, *, listed: tuple[int, ...] | None = None) -> bytes:
        """Check a request and open it.

        Run by: decryptor, or a client that holds the cohort's key.

        Args:
            request: an encoded ``OpenRequest``.
            listed: the survivors that this client signed for; None for a decryptor.

        Returns:
            The body of the answer.

        Raises:
            RemoteProtocolError: it is not the sum that it should be; nothing was opened.
            ThresholdNotMet: too few clients are in it, or signed.
            LocalProtocolError: a request was answered, or refused, before.
        """
        key, self._key = self._key, None
        round_secret, self._round_secret = self._round_secret, b""
        if key is None:
            raise LocalProtocolError("open: this round's key was used, and is gone")
        context, encryption = self._context, agreed(self._context)
        found = OpenRequest.decode(request, context)
        if len(found.survivors) < self._floor:
            raise ThresholdNotMet(
                f"open request: {len(found.survivors)} clients, at least {self._floor} are needed"
            )
        if listed is not None and found.survivors != listed:
            raise RemoteProtocolError("open request: not the survivors that this client signed for")
        view = self._offer.view(found.inner_view)
        if encryption.masked or encryption.key_holder == "cohort":
            self._check_list(found, view)
        if not encryption.masked:
            self._check_sum(found, view, round_secret)
        if self._on_open is not None:
            self._on_open(Opening.of(context, found))
        summands = len(found.survivors)
        if encryption.masked:
            return encode_opened_slots(key.open_slots(found.ciphertexts, summands))
        return encode_opened_ring(encryption, key.open_ring(found.ciphertexts, summands))

    def _check_list(self, found: OpenRequest, view: bytes) -> None:
        """That so many survivors signed this list that there is no other."""
        context = self._context
        strangers = found.signatures.keys() - set(found.survivors)
        if strangers:
            name = context.cohort[min(strangers)]
            raise RemoteProtocolError(f"open request: {name!r} signed and is no survivor")
        statement = survivors_statement(context.digest, view, list(found.survivors))
        for index, signature in found.signatures.items():
            context.roster[context.cohort[index]].verify(signature, statement, label=SIGN_SURVIVORS)
        if len(found.signatures) < (quorum := list_quorum(context)):
            raise ThresholdNotMet(
                f"open request: {len(found.signatures)} signatures on the list of survivors, at "
                f"least {quorum} are needed"
            )

    def _check_sum(self, found: OpenRequest, view: bytes, round_secret: bytes) -> None:
        """That it is the sum of what exactly these clients sent."""
        context = self._context
        check = SumCheck(agreed(context).parameters, round_secret, view)
        for index, signature in found.entries.items():
            identity = context.roster[context.cohort[index]]
            identity.verify(
                signature, entry_statement(context.digest, view, index), label=SIGN_ENTRY
            )
        opened = check.of(found.ciphertexts)
        if not check.agrees(opened, found.check, found.survivors):
            raise RemoteProtocolError(
                "open request: its ciphertexts are not the sum of what the listed clients sent"
            )
