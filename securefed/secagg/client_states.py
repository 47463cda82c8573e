"""What a client of a pairwise round accepts in which state; transitions are a table.

======================  =============================  ==========================================
state                   server's message               what the client then knows and sends
======================  =============================  ==========================================
``NEW``                 (``start``)                    own secrets; sends keys and commitments
``ADVERTISED``          hash of nonce commitments      (sparse graph only) that all nonces are
                                                       fixed; sends its nonce and signs the hash
``ADVERTISED`` or       advertisements, and in a       its neighbours and their keys; sends each
``REVEALED``            sparse graph all nonces        of them sealed shares
``SHARED``              bundles for this client, and   which neighbours shared, and whose key to
                        in an encrypted round a key    encrypt under; sends its **masked input**
``MASKED``              survivor list                  who survived; signs that list, once
``CONFIRMED``           signatures on the list         that enough honest clients signed the same;
                                                       sends one share of each neighbour, once, and
                                                       where noise is removed one of each
                                                       survivor's excess layers
``DONE`` / ``FAILED``   nothing is accepted            secrets are forgotten
======================  =============================  ==========================================

A message of the wrong type for the present state is refused and changes nothing.  A message of the
right type with bad content ends the round for this client: it forgets its secrets.
"""

from __future__ import annotations

import enum
from typing import Final

from securefed.secagg import messages as wire_messages
from securefed.secagg.aggregator import RoundContext


class ClientState(enum.Enum):
    """Where a client stands in a round."""

    NEW = "new"
    ADVERTISED = "advertised"
    REVEALED = "revealed"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    DONE = "done"
    FAILED = "failed"


Transition = tuple[int, str, ClientState]
"""What is accepted in a state, which method answers it, and the state that follows."""
_COMMON: Final[dict[ClientState, Transition]] = {
    ClientState.SHARED: (wire_messages.DELIVERY, "_mask", ClientState.MASKED),
    ClientState.MASKED: (wire_messages.SURVIVORS, "_confirm", ClientState.CONFIRMED),
    ClientState.CONFIRMED: (wire_messages.CONFIRMATIONS, "_reveal", ClientState.DONE),
}
COMPLETE: Final[dict[ClientState, Transition]] = {
    ClientState.ADVERTISED: (wire_messages.ADVERTISED, "_share_with_all", ClientState.SHARED),
    **_COMMON,
}
SPARSE: Final[dict[ClientState, Transition]] = {
    ClientState.ADVERTISED: (wire_messages.COMMITMENTS, "_reveal_nonce", ClientState.REVEALED),
    ClientState.REVEALED: (
        wire_messages.NEIGHBOURHOOD,
        "_share_with_neighbours",
        ClientState.SHARED,
    ),
    **_COMMON,
}
_KEYED: Final[dict[ClientState, Transition]] = {
    ClientState.SHARED: (wire_messages.KEYED_DELIVERY, "_mask", ClientState.MASKED),
}


def transitions(context: RoundContext) -> dict[ClientState, Transition]:
    """The table of one round."""
    table = SPARSE if context.parameters.sparse else COMPLETE
    return table if context.encryption is None else table | _KEYED
