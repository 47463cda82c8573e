"""A client's half of a round: from its update to its messages, without input or output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator, RandomBytes, SecretHolder, system_random
from securefed.federation.session import RoundSession
from securefed.federation.update_codec import UpdateCodec
from securefed.secagg.aggregator import AggregationClient
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.plaintext import PlaintextClient

Encode = Callable[[UpdateCodec, NoiseGenerator], NDArray[np.uint32]]
"""Makes and encodes the contribution, e.g. ``lambda codec, g: codec.encode_update(update, g)``."""


class ClientRound(SecretHolder):
    """One client in one round, sans I/O: carry ``start()`` to the server, then each reply back.

    Args:
        session: the round's public description, built by this client.
        client_id: this client.
        identity: its long-term key.
        encode: makes the encoded contribution when the protocol asks for it, after the cohort was
            checked; training may happen inside.  Called once.
        charge: called right before the masked input is made: charges the client's own budget
            durably.  If it raises, nothing leaves.
        min_clients: the client's own floor on cohort and survivors.
        generator: cryptographic source of sampling, rounding and noise.
        random: source of round secrets.

    Example:
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
        min_clients: int = 2,
        generator: NoiseGenerator | None = None,
        random: RandomBytes = system_random,
    ) -> None:
        noise = NoiseGenerator() if generator is None else generator

        def contribution() -> NDArray[np.uint32]:
            encoded = encode(session.codec, noise)
            if charge is not None:
                charge()
            return encoded

        self._half: AggregationClient = (
            PlaintextClient(session.context, client_id, contribution)
            if session.plaintext
            else PairwiseClient(
                session.context,
                client_id,
                identity,
                contribution,
                min_clients=min_clients,
                random=random,
            )
        )

    def start(self) -> bytes:
        """The first message to the server."""
        return self._half.start()

    def handle(self, message: bytes) -> bytes:
        """Answer one message of the server.

        Raises:
            RemoteProtocolError: the message was refused; see ``PairwiseClient.handle``.
            ThresholdNotMet: too few clients are left.
        """
        return self._half.handle(message)
