"""What an agent asks of the model and the data of its owner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from securefed.crypto.identity import IdentityPublicKey
from securefed.federation.client import Encode
from securefed.federation.invitations import Invitation
from securefed.federation.session import RoundSession


class Site(Protocol):
    """Data and model, and how a contribution is made of them."""

    @property
    def config(self) -> str:
        """SHA-256 of the resolved run file, hexadecimal."""
        ...

    @property
    def model(self) -> str:
        """Fingerprint of the base weights, hexadecimal, as this side computed it."""
        ...

    @property
    def size(self) -> int:
        """How many units (examples, users) this client holds."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether this run has clients keep something from round to round."""
        ...

    def take(self, kept: bytes) -> None:
        """Go on from what :meth:`kept` gave in an earlier round; empty for the beginning.

        Raises:
            LedgerTampered: it is not of this run.
        """
        ...

    def kept(self) -> bytes:
        """What is kept if the contribution that was made last is in its sum."""
        ...

    @property
    def leaves(self) -> bool:
        """Whether this run leaves clients an adapter of their own."""
        ...

    def finish(self, adapter: bytes, kept: bytes, folder: Path) -> None:
        """Make the client's own adapter of the shared one and of what it kept, in ``folder``.

        Raises:
            SecureFedError: they do not fit the run file.
        """
        ...

    def round(
        self, invitation: Invitation, roster: Mapping[str, IdentityPublicKey]
    ) -> tuple[RoundSession, Encode]:
        """The round as this side describes it, and what makes the contribution.

        Raises:
            SecureFedError: the invitation does not fit the run file, the model or the data.
        """
        ...

    def priced(self, invitation: Invitation) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What the run's ledger must say of it: the run's figures, and the round's event."""
        ...
