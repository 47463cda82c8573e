"""Requests to agents that are elsewhere, and their replies, whatever carries them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from securefed.config import Stage
from securefed.crypto.identity import IdentityKey
from securefed.engines.events import Observer, StageEvent
from securefed.engines.in_process import Answer, Carried, Exchange
from securefed.errors import ProtocolError, ThresholdNotMet
from securefed.evidence.roster import Roster
from securefed.federation.invitations import (
    RUN_BYTES,
    Hello,
    Introduction,
    Refused,
    Step,
    answered,
)
from securefed.federation.session import RoundSession

HELLO_STAGE = "hello"


class Courier(Protocol):
    """Carries requests to nodes and brings replies back; reads neither."""

    def nodes(self, wanted: int) -> list[int]:
        """The nodes that are there, once ``wanted`` are or the time for waiting is over."""
        ...

    def exchange(self, requests: Mapping[int, bytes], *, what: str) -> Mapping[int, bytes]:
        """The reply of each node that gave one in time.

        Args:
            requests: by node.
            what: the stage, for timing and for people who watch; the bytes do not depend on it.
        """
        ...


@dataclass(frozen=True)
class Greeted:
    """Which client is at which node, and how much data it says that it has.

    Attributes:
        run: 16 bytes that name this process's part of the run to agents.
        nodes: by client.
        sizes: by client.
    """

    run: bytes
    nodes: Mapping[str, int] = field(repr=False)
    sizes: Mapping[str, int] = field(repr=False)


def greet(
    courier: Courier,
    config: str,
    roster: Roster,
    server: IdentityKey,
    observer: Observer,
    *,
    min_clients: int,
) -> Greeted:
    """Find out who is where.

    Run by: the server, when a run begins or goes on.

    Args:
        courier: reaches the nodes.
        config: SHA-256 of the resolved run file, hexadecimal.
        roster: everybody's public key.
        server: the server's identity.
        observer: told who is not taken, and why.
        min_clients: how many clients must be there.

    Raises:
        ThresholdNotMet: fewer are.

    Guarantees:
        - A node counts as a client only by that client's signature over this very greeting, which
          names the node; of two nodes that have it, the first one counts.
    """
    run, digest = secrets.token_bytes(RUN_BYTES), bytes.fromhex(config)
    hellos = {
        node: Hello(run=run, node=node, config=digest)
        for node in courier.nodes(len(roster.clients))
    }
    requests = {node: hello.encode(server) for node, hello in hellos.items()}
    begun = time.monotonic()
    replies = courier.exchange(requests, what=HELLO_STAGE)
    seconds = time.monotonic() - begun
    nodes: dict[str, int] = {}
    sizes: dict[str, int] = {}
    refused: dict[str, str] = {}
    for node, hello in hellos.items():
        if node not in replies:
            observer.message(f"node {node}: silent")
            continue
        try:
            found = Introduction.decode(answered(replies[node]), hello, roster.clients)
        except ProtocolError as error:
            refused[f"node {node}"] = kind_of(error)
            observer.message(f"node {node}: {error}")
            continue
        if found.client in nodes or found.size < 1:
            refused[f"node {node}"] = "again, or without data"
            observer.message(f"node {node}: {found.client!r} again, or without data")
            continue
        nodes[found.client], sizes[found.client] = node, found.size
    observer.stage_end(
        StageEvent(
            round=0,
            stage=HELLO_STAGE,
            asked=len(requests),
            answered=len(nodes),
            refused=refused,
            silent=tuple(f"node {node}" for node in requests if node not in replies),
            seconds=seconds,
            bytes_up=sum(map(len, replies.values())),
            bytes_down=sum(map(len, requests.values())),
        )
    )
    if len(nodes) < min_clients:
        raise ThresholdNotMet(
            f"hello: {len(nodes)} clients are there, cohort.min_clients = {min_clients} are needed"
        )
    return Greeted(run, nodes, sizes)


def over_agents(
    courier: Courier,
    nodes: Mapping[str, int],
    invitation: bytes,
    session: RoundSession,
    *,
    charge: Callable[[str], None],
    observer: Observer,
    of: str = "updates",
) -> Exchange:
    """How one round's messages reach agents: one exchange of the courier for each stage.

    Args:
        courier: reaches the nodes.
        nodes: by client; one that is not there is silent.
        invitation: what each client is sent first, the same for all.
        session: of the round.
        charge: called with the name of each client before its masked input is asked for, whether it
            will answer or not: it may have sent.
        observer: told of each stage.
        of: what the round sums: ``updates`` or ``figures``.
    """

    def exchange(
        stage: Stage, inbox: Mapping[str, bytes | None], carried: Carried
    ) -> Iterator[Answer]:
        requests = {
            name: invitation if message is None else Step(session.session, message).encode()
            for name, message in inbox.items()
            if name in nodes
        }
        if stage == "masked_input":
            for name in requests:
                charge(name)
        observer.message(f"round {session.round}: {stage}, {len(requests)} asked")
        begun = time.monotonic()
        replies = courier.exchange(
            {nodes[name]: request for name, request in requests.items()}, what=stage
        )
        seconds = time.monotonic() - begun
        answers: list[Answer] = []
        refused: dict[str, str] = {}
        silent: list[str] = []
        up = 0
        for name, request in requests.items():
            carried.bytes_down[name] += len(request)
            reply = replies.get(nodes[name])
            if reply is None:
                silent.append(name)
                continue
            carried.bytes_up[name] += len(reply)
            up += len(reply)
            try:
                message = answered(reply)
            except ProtocolError as error:
                carried.refusals[name] = str(error)
                refused[name] = kind_of(error)
                observer.message(f"round {session.round}: {stage}: {name}: {error}")
                continue
            answers.append(Answer(name, message, len(request)))
        observer.stage_end(
            StageEvent(
                round=session.round,
                stage=stage,
                of=of,
                asked=len(requests),
                answered=len(answers),
                refused=refused,
                silent=tuple(silent),
                seconds=seconds,
                bytes_up=up,
                bytes_down=sum(map(len, requests.values())),
            )
        )
        yield from answers

    return exchange


def kind_of(error: ProtocolError) -> str:
    """The kind that a refusal tells; the error's own kind where the reply is no refusal."""
    return error.kind if isinstance(error, Refused) else type(error).__name__
