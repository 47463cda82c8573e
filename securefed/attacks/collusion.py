"""Clients that follow the protocol and tell the server all they learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator, RandomBytes, system_random
from securefed.errors import ConfigError, LocalProtocolError
from securefed.federation.client import Encode
from securefed.federation.session import RoundSession
from securefed.secagg.carriers import Mask
from securefed.secagg.pairwise_client import PairwiseClient


@dataclass(frozen=True, eq=False)
class Learned:
    """What one colluding client knows of one round beyond what the server does.

    Attributes:
        client: its id.
        contribution: uint32[plan.padded], what it sent before masking, its noise included.
        masks: by neighbour, the mask of the edge as this client applied it.
    """

    client: str
    contribution: NDArray[np.uint32] = field(repr=False)
    masks: Mapping[str, Mask] = field(repr=False)


class ColludingClient(PairwiseClient):
    """A client of a pairwise round without encryption, honest but talkative.

    It sends what an honest client sends, byte for byte.  Masks of its edges are all that it knows
    of another client's contribution: shares of secrets open nothing below the threshold.

    Args:
        session: the round.
        client_id: this client.
        identity: its long-term key.
        encode: makes its contribution, as for ``ClientRound``.
        generator: of sampling, rounding and noise.
        random: source of its round secrets.

    Raises:
        ConfigError: the round removes excess noise or is encrypted, which is not covered here.
    """

    def __init__(
        self,
        session: RoundSession,
        client_id: str,
        identity: IdentityKey,
        encode: Encode,
        *,
        generator: NoiseGenerator | None = None,
        random: RandomBytes = system_random,
    ) -> None:
        if session.plan.removable_stds or session.context.encryption is not None:
            raise ConfigError(
                "session: colluding clients are there for pairwise rounds without removable noise "
                "and without encryption"
            )
        noise = NoiseGenerator() if generator is None else generator
        self._made: NDArray[np.uint32] | None = None
        self._edges: dict[str, Mask] = {}
        self._name = client_id

        def contribution() -> NDArray[np.uint32]:
            self._made = encode(session.codec, noise)
            return self._made

        super().__init__(session.context, client_id, identity, contribution, random=random)

    def _mask(self, message: bytes) -> bytes:
        answer = super()._mask(message)
        bundles, _ = self._delivered(message)
        for sender, bundle in bundles.items():
            edge = self._held.open(sender, bundle)
            (_, mask) = self._held.masks({sender: edge}, self._view)
            self._edges[self._context.cohort[sender]] = mask
        return answer

    @property
    def learned(self) -> Learned:
        """What it can tell.

        Raises:
            LocalProtocolError: it has not sent its contribution.
        """
        if self._made is None:
            raise LocalProtocolError("learned: nothing was contributed in this round")
        return Learned(self._name, self._made, self._edges)
