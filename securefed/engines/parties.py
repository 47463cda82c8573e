"""Who takes part in a simulated run: clients, the decryptor if any, and the server's identity."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import get_args

from securefed.config import KeyHolder, Mechanism
from securefed.crypto.identity import IdentityPublicKey
from securefed.engines.cohort import SimulatedClient, SimulatedDecryptor
from securefed.engines.identities import Identities
from securefed.engines.metering import Meter
from securefed.engines.openings import noting
from securefed.engines.witnessing import gather
from securefed.errors import ConfigError, LocalProtocolError
from securefed.evidence.chain import Record
from securefed.evidence.ledger import Ledger
from securefed.evidence.witness import Witness
from securefed.federation.client import ClientRound
from securefed.federation.floors import ClientFloors
from securefed.federation.session import RoundSession
from securefed.federation.sliced_rounds import SlicedClientRound
from securefed.federation.slices import SlicedSession
from securefed.secagg.aggregator import AggregationClient
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encryption import DECRYPTOR


class Parties:
    """Clients, and the decryptor where there is one.

    Args:
        clients: the cohort, by id.
        decryptor: None where no separate party opens the sums.
        min_clients: each one's own floor.
        identities: everybody's keys; None before a run is opened.
        witnesses: the clients' halves of signing the ledger's head.
    """

    def __init__(
        self,
        clients: dict[str, SimulatedClient],
        decryptor: SimulatedDecryptor | None,
        min_clients: int,
        identities: Identities | None = None,
        witnesses: dict[str, Witness] | None = None,
    ) -> None:
        self.clients, self._decryptor = clients, decryptor
        self._identities, self._witnesses = identities, witnesses or {}
        self.cohort = tuple(sorted(clients))
        self._min_clients = min_clients
        self.floors = ClientFloors(
            min_clients=min_clients,
            mechanisms=get_args(Mechanism),
            key_holders=get_args(KeyHolder),
            allow_plaintext=True,
            allow_ring=True,
            allow_conditional_rounding=True,
        )

    @property
    def roster(self) -> dict[str, IdentityPublicKey]:
        """Everybody's identity key."""
        roster = {name: client.identity.public for name, client in self.clients.items()}
        if self._decryptor is not None:
            roster[DECRYPTOR] = self._decryptor.identity.public
        return roster

    @property
    def charges(self) -> int:
        """The most rounds that any client has charged."""
        return max(client.budget.charges for client in self.clients.values())

    @property
    def meters(self) -> dict[str, Meter]:
        """Everybody's own, by name."""
        meters = {name: client.meter for name, client in self.clients.items()}
        if self._decryptor is not None:
            meters[DECRYPTOR] = self._decryptor.meter
        return meters

    def witness(self, ledger: Ledger, record: Record, *, absent: Collection[str] = ()) -> None:
        """Have the head at a record signed by the server and by all clients but those absent.

        Raises:
            LedgerTampered, LedgerError: as :func:`~securefed.engines.witnessing.gather`.
        """
        if self._identities is None:
            raise LocalProtocolError("witness: the run is not opened yet, so nobody has a key")
        present = {n: one for n, one in self._witnesses.items() if n not in absent}
        gather(ledger, record, self._identities.server, present, self._identities.roster)

    def afford(self, members: Iterable[str]) -> bool:
        """Whether one more round stays within the limit of each client that is in it."""
        return all(self.clients[name].budget.affords() for name in members)

    def halves(
        self,
        session: RoundSession | SlicedSession,
        client_round: Callable[[SimulatedClient], ClientRound | SlicedClientRound],
    ) -> dict[str, AggregationClient]:
        """The half of everybody who is in one round, by name.

        Args:
            session: as the decryptor was told of the round.
            client_round: makes one client's half.

        Raises:
            ConfigError: there is a decryptor, and the round has slices.
        """
        halves: dict[str, AggregationClient] = {
            name: client_round(self.clients[name]) for name in session.cohort
        }
        own = self._decryptor
        if own is not None:
            if not isinstance(session, RoundSession):
                raise ConfigError("decryptor: sums that are formed slice by slice have none")
            halves[DECRYPTOR] = Decryptor(
                session.context,
                own.identity,
                min_clients=self._min_clients,
                on_open=noting(own.openings),
            )
        return halves
