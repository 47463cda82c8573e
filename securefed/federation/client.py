"""A client's half of a round: from its update to its messages, without input or output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator, RandomBytes, SecretHolder, system_random
from securefed.errors import LocalProtocolError
from securefed.federation.floors import ClientFloors
from securefed.federation.session import RoundSession
from securefed.federation.update_codec import UpdateCodec
from securefed.secagg.aggregator import AggregationClient
from securefed.secagg.encrypted_client import EncryptedClient
from securefed.secagg.encrypting import OnEncrypted
from securefed.secagg.noise_layers import NoiseLayers
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.plaintext import PlaintextClient

Encode = Callable[[UpdateCodec, NoiseGenerator], NDArray[np.uint32]]
"""Makes and encodes the contribution, e.g. ``lambda codec, g: codec.encode_update(update, g)``."""


class _Contribution(SecretHolder):
    """The encoded vector, made once and handed out once, after it was charged."""

    def __init__(self, make: Callable[[], NDArray[np.uint32]], charge: Callable[[], None] | None):
        self._make: Callable[[], NDArray[np.uint32]] | None = make
        self._charge = charge
        self._made: NDArray[np.uint32] | None = None

    def prepare(self) -> None:
        make, self._make = self._make, None
        if make is None:
            raise LocalProtocolError("prepare: the contribution was made, or tried, already")
        self._made = make()

    def __call__(self) -> NDArray[np.uint32]:
        if self._made is None:
            self.prepare()
        made, self._made = self._made, None
        if made is None:
            raise LocalProtocolError("contribution: making it failed")
        if self._charge is not None:
            self._charge()
        return made


class ClientRound(SecretHolder):
    """One client in one round, sans I/O: carry ``start()`` to the server, then each reply back.

    How long ``encode`` takes tells about how many examples were drawn and, with conditional
    rounding, about how often the update had to be rounded again.  A client whose time can be
    seen, over a network say, therefore calls ``prepare()`` first and sends ``start()`` at a moment
    that was fixed before, not as soon as it is ready: after that no answer waits for the sample.
    A client that does neither must account with ``PrivacyPolicy.sample_is_secret = False``.

    Args:
        session: the round's public description, built by this client.
        client_id: this client.
        identity: its long-term key.
        encode: makes the encoded contribution; training may happen inside.  Called once: by
            ``prepare``, else when the protocol asks for it, after the cohort was checked.
        charge: called right before the masked input is made: charges the client's own budget
            durably.  If it raises, nothing leaves.
        floors: what this client asks of any round; None asks for no more than the protocol does.
        generator: cryptographic source of sampling, rounding and noise.
        random: source of round secrets.
        on_encrypted: told how many ciphertexts are made, and of how many.

    Raises:
        LocalProtocolError: the round is below a floor, or the roster holds another key for this
            client; nothing was computed or sent.
        ConfigError: the client is not in the cohort.

    Example:
        >>> client.prepare()                              # doctest: +SKIP
        >>> message = client.start()                      # doctest: +SKIP
        >>> while (reply := exchange(message)) is not None:   # doctest: +SKIP
        ...     message = client.handle(reply)
    """

    def __init__(
        self,
        session: RoundSession,
        client_id: str,
        identity: IdentityKey,
        encode: Encode,
        *,
        charge: Callable[[], None] | None = None,
        floors: ClientFloors | None = None,
        generator: NoiseGenerator | None = None,
        random: RandomBytes = system_random,
        on_encrypted: OnEncrypted | None = None,
    ) -> None:
        if floors is not None:
            floors.check(session)
        noise = NoiseGenerator() if generator is None else generator
        layers = (
            NoiseLayers(session.context, client_id, random) if session.plan.removable_stds else None
        )
        codec = session.codec.with_layers(layers)
        contribution = _Contribution(lambda: encode(codec, noise), charge)
        self._contribution: _Contribution | None = contribution
        least = 2 if floors is None else floors.min_clients
        context, encryption = session.context, session.context.encryption
        if session.plaintext:
            self._half: AggregationClient = PlaintextClient(context, client_id, contribution)
        elif encryption is not None and not encryption.masked:
            self._half = EncryptedClient(
                context,
                client_id,
                identity,
                contribution,
                min_clients=least,
                random=random,
                on_encrypted=on_encrypted,
            )
        else:
            self._half = PairwiseClient(
                context,
                client_id,
                identity,
                contribution,
                min_clients=least,
                min_threshold=2 if floors is None else floors.min_threshold,
                random=random,
                layers=layers,
                on_encrypted=on_encrypted,
            )

    def prepare(self) -> None:
        """Make and keep the encoded contribution now, so that no later answer waits for it.

        Run by: client.  Pre-conditions: called at most once, before ``start``.  Nothing is charged:
        that happens right before the masked input leaves.

        Raises:
            LocalProtocolError: the round has started, or this was called before.
        """
        if self._contribution is None:
            raise LocalProtocolError("prepare: the round has started")
        self._contribution.prepare()

    def start(self) -> bytes:
        """The first message to the server."""
        self._contribution = None  # the half that sends it forgets it in the end
        return self._half.start()

    def handle(self, message: bytes) -> bytes:
        """Answer one message of the server.

        Raises:
            RemoteProtocolError: the message was refused; see ``PairwiseClient.handle``.
            ThresholdNotMet: too few clients are left.
        """
        return self._half.handle(message)
