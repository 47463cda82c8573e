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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from google.protobuf.message import DecodeError

from securefed.errors import ConfigError
from securefed.federation.frames import ask

ACTION = "train.relay"
RECORD, FIELD = "securefed", "message"
SOCKET = "agent-socket"
"""What a SuperNode's ``--node-config`` calls the path of its agent's socket."""

_POLL_SECONDS = 1.0
_SOONEST_LOOK, _LATEST_LOOK = 0.1, 1.0

_UNREADABLE = (
    AttributeError,
    DecodeError,
    LookupError,
    RecursionError,
    TypeError,
    UnexpectedObjectContentError,
    ValueError,
)
"""What Flower raises over a reply that is not one: it puts it together here, unchecked."""

server_app = ServerApp()


def packed(message: bytes) -> RecordDict:
    """Bytes as Flower carries them."""
    return RecordDict({RECORD: ConfigRecord({FIELD: message})})


def unpacked(content: RecordDict) -> bytes | None:
    """The bytes of a message's content; None if it holds none."""
    record = content.config_records.get(RECORD)
    found = None if record is None else record.get(FIELD)
    return found if isinstance(found, bytes) else None


def relaying(socket_of: Callable[[Context], Path]) -> ClientApp:
    """A ClientApp that passes each request to the owner's agent, and its reply back.

    Args:
        socket_of: where the agent of a node listens.  It raises ConfigError if it cannot say.
    """
    app = ClientApp()

    @app.train("relay")
    def relay(message: Message, context: Context) -> Message:
        request = unpacked(message.content)
        if request is None:
            raise ConfigError(f"message: it holds no bytes in {RECORD}.{FIELD}")
        reply = ask(socket_of(context), request, timeout=message.metadata.ttl)
        return Message(packed(reply), reply_to=message)

    return app


def _configured(context: Context) -> Path:
    """The path in the SuperNode's own configuration, which the server has no hand in."""
    path = context.node_config.get(SOCKET)
    if not isinstance(path, str):
        raise ConfigError(f"{SOCKET} = {path!r}: --node-config must give the socket's path")
    return Path(path)


client_app = relaying(_configured)


class GridCourier:
    """Carries requests over Flower's grid.

    Args:
        grid: of the ServerApp.
        stage_seconds: how long the replies of a stage are waited for.
        wait_seconds: how long nodes are waited for.
        poll_seconds: how often it is looked for them.
        stopped: once it says so, nothing more is waited for: who has not answered is silent.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        stage_seconds: float,
        wait_seconds: float,
        poll_seconds: float = _POLL_SECONDS,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._grid, self._stopped = grid, stopped
        self._stage_seconds, self._wait_seconds = stage_seconds, wait_seconds
        self._poll_seconds = poll_seconds

    def nodes(self, wanted: int) -> list[int]:
        """The nodes that are there, once ``wanted`` are or the time for waiting is over."""
        until = time.monotonic() + self._wait_seconds
        while True:
            found = sorted(self._grid.get_node_ids())
            if len(found) >= wanted or time.monotonic() >= until or self._stopped():
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
        return dict(self._replies(messages))

    def _replies(self, messages: list[Message]) -> Iterator[tuple[int, bytes]]:
        """Node and reply, as they come, in time.

        ``grid.send_and_receive`` looks for replies every three seconds, and so would each stage
        take that much longer; here it is looked soon at first and then more seldom.

        A reply is asked for by the message that it answers, one at a time, and is that message's
        node's: the SuperLink compared the two.  What the reply says of itself is up to its node,
        which could name another one there, or fail to be read and take those beside it along.
        """
        pushed = set(self._grid.push_messages(messages))
        sent = {each.metadata.message_id: each.metadata.dst_node_id for each in messages}
        waiting = {asked: node for asked, node in sent.items() if asked in pushed}
        until, pause = time.monotonic() + self._stage_seconds, _SOONEST_LOOK
        while waiting:
            for asked, node in list(waiting.items()):
                for found in self._pulled(asked)[:1]:
                    del waiting[asked]
                    if found is not None:
                        yield node, found
            if not waiting or time.monotonic() >= until or self._stopped():
                return
            time.sleep(pause)
            pause = min(_LATEST_LOOK, 1.5 * pause)

    def _pulled(self, asked: str) -> list[bytes | None]:
        """What came back to one message, if anything did; None for what holds no bytes."""
        try:
            return [
                None if reply.has_error() else unpacked(reply.content)
                for reply in self._grid.pull_messages([asked])
            ]
        except _UNREADABLE:
            return [None]


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
