"""What differs between a round of one sum and a round of several slices, for a run.

A run makes the two halves of a round, carries their messages and reads what was opened; which kind
of round it is it does not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import IdentityPublicKey
from securefed.engines.cohort import Encode, SimulatedClient
from securefed.engines.settings import Settings
from securefed.errors import LocalProtocolError
from securefed.federation.client import ClientRound
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.federation.sliced_rounds import SlicedClientRound, SlicedServerRound
from securefed.federation.slices import SlicedSession
from securefed.privacy.correlated_release import CorrelatedRelease
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.encrypting import OnEncrypted

AnySession = RoundSession | SlicedSession
AnyServer = ServerRound | SlicedServerRound


@dataclass(frozen=True)
class OpenedRound:
    """What a round that ended shows.

    Attributes:
        survivors: clients whose vector is in its sum, or in some of its sums, sorted.
        gradient: made when it is called, so that the record can be written before:
            float64[length], zero where nothing was opened.
        count: noised sum of b - 1/2 over units; None without adaptive clipping.
        record: what the ledger holds of it besides.
        still: bool[length], coordinates of slices that stayed closed; None where none did.
    """

    survivors: tuple[str, ...]
    gradient: Callable[[], NDArray[np.float64]] = field(repr=False)
    count: float | None = None
    record: dict[str, Any] = field(default_factory=dict)
    still: NDArray[np.bool_] | None = None


class RoundHalves(Protocol):
    """Makes the halves of one kind of round."""

    def session(
        self,
        name: bytes,
        number: int,
        policy: PrivacyPolicy,
        *,
        cohort: tuple[str, ...],
        roster: Mapping[str, IdentityPublicKey],
        model: bytes,
    ) -> AnySession:
        """The round's public description, as a party with this policy makes it."""
        ...

    def server(self, session: AnySession) -> AnyServer:
        """The server's half."""
        ...

    def client(
        self,
        session: AnySession,
        client: SimulatedClient,
        encode: Encode,
        *,
        charge: Callable[[], None],
        floors: ClientFloors,
        on_encrypted: OnEncrypted,
    ) -> ClientRound | SlicedClientRound:
        """A client's half."""
        ...

    def opened(self, server: AnyServer) -> OpenedRound:
        """What the round shows once it is over."""
        ...


class WholeHalves:
    """Rounds of one sum.

    Args:
        settings: of the run.
        length: of what is summed.
        correlated: a trusted server's state over rounds, where there is one.
    """

    def __init__(
        self, settings: Settings, length: int, correlated: CorrelatedRelease | None
    ) -> None:
        self._settings, self._length, self._correlated = settings, length, correlated

    def session(
        self,
        name: bytes,
        number: int,
        policy: PrivacyPolicy,
        *,
        cohort: tuple[str, ...],
        roster: Mapping[str, IdentityPublicKey],
        model: bytes,
    ) -> RoundSession:
        """As of :class:`RoundHalves`."""
        return RoundSession(
            session=name,
            round=number,
            cohort=cohort,
            roster=roster,
            dimension=self._length,
            policy=policy,
            aggregation=self._settings.aggregation,
            model=model,
            stated=self._settings.stated_apart,
        )

    def server(self, session: AnySession) -> ServerRound:
        """As of :class:`RoundHalves`."""
        return ServerRound(_whole(session), correlated=self._correlated)

    def client(
        self,
        session: AnySession,
        client: SimulatedClient,
        encode: Encode,
        *,
        charge: Callable[[], None],
        floors: ClientFloors,
        on_encrypted: OnEncrypted,
    ) -> ClientRound:
        """As of :class:`RoundHalves`."""
        return ClientRound(
            _whole(session),
            client.client_id,
            client.identity,
            encode,
            charge=charge,
            floors=floors,
            on_encrypted=on_encrypted,
        )

    def opened(self, server: AnyServer) -> OpenedRound:
        """As of :class:`RoundHalves`."""
        if not isinstance(server, ServerRound):
            raise LocalProtocolError("opened: the round has slices")
        survivors = server.survivors
        return OpenedRound(
            survivors, lambda: self._settings.gradient(server.sum, survivors), server.count
        )


class SlicedHalves:
    """Rounds of slices, each summed among the clients that hold it.

    A client encodes all of its slices in one go and charges once.  Each slice's sum is divided by
    what *its* survivors stand for.

    Args:
        settings: of the run, with ``slices``.
        order: int64[d], where each coordinate of the vector of slices stands in the flat vector.
    """

    def __init__(self, settings: Settings, order: NDArray[np.int64]) -> None:
        if settings.slices is None:
            raise LocalProtocolError("sliced rounds in a run of one rank for all")
        self._settings, self._plans, self._order = settings, settings.slices, order

    def session(
        self,
        name: bytes,
        number: int,
        policy: PrivacyPolicy,
        *,
        cohort: tuple[str, ...],
        roster: Mapping[str, IdentityPublicKey],
        model: bytes,
    ) -> SlicedSession:
        """As of :class:`RoundHalves`."""
        if cohort != self._plans.cohort:
            raise LocalProtocolError("cohort: slices are planned for all clients of the run")
        return SlicedSession(
            session=name,
            round=number,
            roster=roster,
            tiers=self._plans.tiers,
            widths=self._plans.widths,
            policy=policy,
            aggregation=self._plans.aggregation,
            model=model,
            least_contributors=self._plans.least_contributors,
        )

    def server(self, session: AnySession) -> SlicedServerRound:
        """As of :class:`RoundHalves`."""
        return SlicedServerRound(_sliced(session))

    def client(
        self,
        session: AnySession,
        client: SimulatedClient,
        encode: Encode,
        *,
        charge: Callable[[], None],
        floors: ClientFloors,
        on_encrypted: OnEncrypted,
    ) -> SlicedClientRound:
        """As of :class:`RoundHalves`; nothing is encrypted."""
        return SlicedClientRound(
            _sliced(session),
            client.client_id,
            client.identity,
            encode,
            charge=charge,
            floors=floors,
        )

    def opened(self, server: AnyServer) -> OpenedRound:
        """As of :class:`RoundHalves`."""
        if not isinstance(server, SlicedServerRound):
            raise LocalProtocolError("opened: the round has no slices")
        survivors = server.survivors
        still = np.zeros(self._order.size, dtype=np.bool_)
        for number in server.dropped:
            still[self._places(number)] = True

        def gradient() -> NDArray[np.float64]:
            whole = np.zeros(self._order.size)
            for number, total in server.sums.items():
                whole[self._places(number)] = self._settings.gradient(total, survivors[number])
            return whole

        return OpenedRound(
            survivors=tuple(sorted({name for names in survivors.values() for name in names})),
            gradient=gradient,
            record={
                "slices": {str(number): list(names) for number, names in survivors.items()},
                "closed": {str(number): why for number, why in server.closed_by.items()},
            },
            still=still if server.dropped else None,
        )

    def _places(self, number: int) -> NDArray[np.int64]:
        start = sum(self._plans.widths[: number - 1])
        return self._order[start : start + self._plans.widths[number - 1]]


def _whole(session: AnySession) -> RoundSession:
    if not isinstance(session, RoundSession):
        raise LocalProtocolError("session: it has slices")
    return session


def _sliced(session: AnySession) -> SlicedSession:
    if not isinstance(session, SlicedSession):
        raise LocalProtocolError("session: it has no slices")
    return session


def halves_of(
    settings: Settings,
    *,
    length: int,
    order: NDArray[np.int64] | None,
    correlated: CorrelatedRelease | None,
) -> RoundHalves:
    """The kind of rounds that a run has.

    Args:
        settings: of the run.
        length: of what is summed in a round.
        order: as of :class:`SlicedHalves`; None with one rank for all.
        correlated: as of :class:`WholeHalves`.
    """
    if settings.slices is None or order is None:
        return WholeHalves(settings, length, correlated)
    return SlicedHalves(settings, order)
