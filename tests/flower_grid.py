"""Flower's own in-memory grid and messages, with a thread for each SuperNode, and no Ray.

The ServerApp's side is the real ``InMemoryGrid`` over the real in-memory link state; a node takes
its messages from that state, calls the ClientApp with them as a SuperNode does, and stores the
reply, or Flower's own error message if the ClientApp raised.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

_RUN_ID = 1

Answer = Callable[[Message], Message]


class Grid:
    """A grid, and the nodes on it by the socket of their agent."""

    def __init__(self, app: ClientApp, sockets: list[Path]) -> None:
        factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        self._state, self._app = factory.state(), app
        run = Run.create_empty(_RUN_ID)
        run.federation_id = NOOP_FEDERATION_ID
        run.primary_task_id = 1
        self._state.run_ids[_RUN_ID] = RunRecord(run=run)
        self._state.task_store[1] = Task(task_id=1, run_id=_RUN_ID)
        self.grid = InMemoryGrid(factory, pull_interval=0.01)
        self.grid.set_run(run)
        TaskIdentity.task_id, TaskIdentity.run_id = 1, _RUN_ID
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        self.sockets: Mapping[int, Path] = {self._node(): path for path in sockets}
        self.dropped: Callable[[int, Message], bool] = lambda node, message: False
        self.deliver: Callable[[int, Message, Answer], Message | None] = (
            lambda node, message, answer: answer(message)
        )
        """Brings a message to a node's ClientApp; gives what becomes the reply, None for none."""
        self._stopped = threading.Event()

    def _node(self) -> int:
        node: int = self._state.create_node("", "", secrets.token_bytes(32), 1e9)
        self._state.acknowledge_node_heartbeat(node_id=node, heartbeat_interval=1e9)
        return node

    def _work(self, nodes: Sequence[int]) -> None:
        contexts = {
            node: Context(
                run_id=_RUN_ID,
                node_id=node,
                node_config={"agent-socket": str(self.sockets[node])},
                state=RecordDict(),
                run_config={},
            )
            for node in nodes
        }
        while not self._stopped.wait(0.005):
            for node, context in contexts.items():
                for message in self._state.get_message_ins(node_id=node, limit=1):
                    if not self.dropped(node, message):
                        self._answer(node, message, context)

    def _answer(self, node: int, message: Message, context: Context) -> None:
        def answer(asked: Message) -> Message:
            try:
                return self._app(asked, context)
            except Exception as error:  # as Flower's own loop does
                return Message(Error(code=0, reason=str(error)), reply_to=asked)

        reply = self.deliver(node, message, answer)
        if reply is not None:
            reply.metadata.__dict__["_message_id"] = str(uuid4())
            self._state.store_message_res(reply)

    @contextmanager
    def running(self, threads: int | None = None) -> Iterator[InMemoryGrid]:
        """The grid while its nodes work: a thread for each of them, or ``threads`` for all."""
        nodes = list(self.sockets)
        count = len(nodes) if threads is None else threads
        workers = [
            threading.Thread(target=self._work, args=[nodes[first::count]])
            for first in range(count)
        ]
        for worker in workers:
            worker.start()
        try:
            yield self.grid
        finally:
            self._stopped.set()
            for worker in workers:
                worker.join()
