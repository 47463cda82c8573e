"""Flower as the carrier: a ClientApp that relays bytes, and a ServerApp that runs the rounds.

Nothing of the protocol is here.  Flower gives transport, TLS, node authentication and the list of
nodes.  A ClientApp's process lives for one message, and what it keeps is handed to the SuperNode;
so it keeps nothing, holds no secret and loads no model: it passes each request to the agent behind
the owner's socket, and the reply back.

One message stage a stage of the round: five for a complete masking graph, with training inside the
masked input's (or inside the first, where answers are held back: ``answers.hold_seconds``), one
after each round and at the end of the run for clients' signatures of the ledger's head, and one for
the greeting of a run.  The next round's advertisement does not ride on this round's last
stage: it is bound to the adapter that only this round's sum makes.

A node that does not answer in time has fallen silent; one whose ClientApp fails, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from securefed.errors import ConfigError
from securefed.federation.frames import ask

ACTION = "train.relay"
RECORD, FIELD = "securefed", "message"
SOCKET = "agent-socket"
"""What a SuperNode's ``--node-config`` calls the path of its agent's socket."""

_POLL_SECONDS = 1.0

client_app = ClientApp()
server_app = ServerApp()


def packed(message: bytes) -> RecordDict:
    """Bytes as Flower carries them."""
    return RecordDict({RECORD: ConfigRecord({FIELD: message})})


def unpacked(content: RecordDict) -> bytes | None:
    """The bytes of a message's content; None if it holds none."""
    record = content.config_records.get(RECORD)
    found = None if record is None else record.get(FIELD)
    return found if isinstance(found, bytes) else None


@client_app.train("relay")
def relay(message: Message, context: Context) -> Message:
    """Pass one request to the owner's agent, and its reply back.

    The socket's path is in the SuperNode's own configuration, which the server has no hand in.

    Raises:
        ConfigError: that configuration names no socket, or the message holds no bytes.
        RemoteProtocolError: nobody listens there.
    """
    path = context.node_config.get(SOCKET)
    if not isinstance(path, str):
        raise ConfigError(f"{SOCKET} = {path!r}: --node-config must give the socket's path")
    request = unpacked(message.content)
    if request is None:
        raise ConfigError(f"message: it holds no bytes in {RECORD}.{FIELD}")
    reply = ask(Path(path), request, timeout=message.metadata.ttl)
    return Message(packed(reply), reply_to=message)


class GridCourier:
    """Carries requests over Flower's grid.

    Args:
        grid: of the ServerApp.
        stage_seconds: how long the replies of a stage are waited for.
        wait_seconds: how long nodes are waited for.
        poll_seconds: how often it is looked for them.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        stage_seconds: float,
        wait_seconds: float,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self._grid = grid
        self._stage_seconds, self._wait_seconds = stage_seconds, wait_seconds
        self._poll_seconds = poll_seconds

    def nodes(self, wanted: int) -> list[int]:
        """The nodes that are there, once ``wanted`` are or the time for waiting is over."""
        until = time.monotonic() + self._wait_seconds
        while True:
            found = sorted(self._grid.get_node_ids())
            if len(found) >= wanted or time.monotonic() >= until:
                return found
            time.sleep(self._poll_seconds)

    def exchange(self, requests: Mapping[int, bytes], *, what: str) -> Mapping[int, bytes]:
        """The reply of each node that gave one in time; an error of its ClientApp is none."""
        messages = [
            Message(
                packed(request),
                dst_node_id=node,
                message_type=ACTION,
                group_id=what,
                ttl=self._stage_seconds,
            )
            for node, request in requests.items()
        ]
        replies: dict[int, bytes] = {}
        for reply in self._grid.send_and_receive(messages, timeout=self._stage_seconds):
            node = reply.metadata.src_node_id
            found = None if reply.has_error() else unpacked(reply.content)
            if found is not None and node in requests:
                replies.setdefault(node, found)
        return replies


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the federation that this machine's configuration names (:mod:`.deployment`).

    Raises:
        ConfigError: a value is missing or of the wrong type.
        SecureFedError: as of :func:`~securefed.engines.remote_federation.federate`.
    """
    # Loads torch, which a ClientApp, for which this module is imported too, must not.
    from securefed.engines.deployment import Deployment
    from securefed.engines.remote_federation import federate
    from securefed.engines.server_log import logged
    from securefed.engines.simulation import utc_now

    settings = Deployment.of(context.run_config, os.environ)
    courier = GridCourier(
        grid, stage_seconds=settings.stage_seconds, wait_seconds=settings.wait_seconds
    )
    with logged(settings, utc_now) as observer:
        federate(settings, courier, observer=observer)
