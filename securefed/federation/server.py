"""The server's half of a round: from clients' messages to the decoded sum."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from securefed.config import Stage
from securefed.crypto.prg import NoiseGenerator, SecretHolder
from securefed.errors import ConfigError
from securefed.federation.session import RoundSession
from securefed.privacy.correlated_release import CorrelatedRelease
from securefed.secagg.aggregator import AggregationServer
from securefed.secagg.carriers import MaskRemoval, apply_masks
from securefed.secagg.encrypted_server import EncryptedServer
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.plaintext import PlaintextServer


class ServerRound(SecretHolder):
    """The server in one round, sans I/O.

    Args:
        session: the round's public description.
        remove_masks: how a pairwise round's masks are removed; on one core by default, on several
            with ``engines.parallel.ParallelMasks``.
        generator: cryptographic source of the noise that a trusted server adds.
        correlated: with noise correlated over rounds, the run's state, the same in all its rounds.

    Raises:
        ConfigError: the policy asks for such noise and there is no state, or the other way round;
            or the state is for another matrix, scale or ring.
    """

    def __init__(
        self,
        session: RoundSession,
        *,
        remove_masks: MaskRemoval = apply_masks,
        generator: NoiseGenerator | None = None,
        correlated: CorrelatedRelease | None = None,
    ) -> None:
        if (session.policy.strategy is None) != (correlated is None):
            raise ConfigError(
                f"separation = {session.policy.separation}: the noise is "
                f"{'not ' * (correlated is not None)}correlated over rounds, so the server "
                f"{'must not' if correlated is not None else 'must'} be given the state of a run"
            )
        if correlated is not None and (
            (correlated.strategy, correlated.plan) != (session.policy.strategy, session.plan)
        ):
            raise ConfigError(
                f"round = {session.round}: noise correlated over rounds needs one matrix, scale "
                "and ring in all of them; the state given was made for others"
            )
        self._session = session
        self._correlated = correlated
        self._generator = NoiseGenerator() if generator is None else generator
        context, encryption = session.context, session.context.encryption
        if session.plaintext:
            self._half: AggregationServer = PlaintextServer(context)
        elif encryption is not None and not encryption.masked:
            self._half = EncryptedServer(context)
        else:
            self._half = PairwiseServer(context, remove_masks=remove_masks)

    @property
    def stage(self) -> Stage | None:
        """The stage whose messages are awaited; None once the round is over."""
        return self._half.stage

    def receive(self, client_id: str, message: bytes) -> None:
        """Take the message of one client, or of the decryptor.

        Raises:
            RemoteProtocolError: the message is refused; the round goes on without it.
        """
        self._half.receive(client_id, message)

    def advance(self) -> Mapping[str, bytes]:
        """End the present stage; what to send to whom next.

        Raises:
            ThresholdNotMet: too few clients are left; there is no result.
        """
        return self._half.advance()

    @property
    def survivors(self) -> tuple[str, ...]:
        """Clients whose contributions are inside the sum, sorted."""
        return self._half.result.survivors

    @property
    def sum(self) -> NDArray[np.float64]:
        """float64[d]: the noised sum of the survivors' clipped contributions.

        With ``mechanism="central"`` the server's noise is drawn once, when it is first asked for.
        """
        return self._decoded[0]

    @property
    def count(self) -> float | None:
        """Noised sum of b - 1/2 over units, b = 1 within the clip; None if it is not adaptive."""
        return self._decoded[1]

    @cached_property
    def _decoded(self) -> tuple[NDArray[np.float64], float | None]:
        codec = self._session.codec
        if self._correlated is not None:
            total, number = self._half.result.total, self._session.round
            return codec.decode_grid(self._correlated.release(total, round=number)), None
        noised = codec.add_server_noise(self._half.result.total, self._generator)
        return codec.decode_with_count(noised)
