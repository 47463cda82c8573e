"""Rounds with faults drawn from a seed: of the network, of clients, of a server that lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from secagg_probe import body_of, dealing, resigned
from secagg_rounds import COMPLETE_STAGES, Cohort

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey
from securefed.crypto.prg import system_random
from securefed.crypto.shamir import SHARE_BYTES
from securefed.encoding.wire import pack_ring, unpack_ring
from securefed.errors import LocalProtocolError, ProtocolError
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Outgoing, RoundContext
from securefed.secagg.client_states import ClientState
from securefed.secagg.messages import Neighbourhood, Reveal
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer

LENGTH = 12
IDENTITIES = {f"c{i:03}": IdentityKey.generate() for i in range(16)}
SHAPES: tuple[tuple[int, int | None], ...] = (
    *((size, None) for size in range(4, 13)),
    *((10, 4), (11, 4), (12, 6), (13, 6), (14, 8), (16, 8)),
)

# Faults of the network or of a client, each of one client in one stage.
IN_TRANSIT = ("flip", "truncate", "extend", "empty", "noise")
RESENT = ("duplicate", "earlier stage", "other session", "another client's", "swap")
INPUTS = ("contribution too short", "contribution of floats", "contribution raises")
BODIES = ("body too short", "body too long", "spare bits", "other view", "poison")
DEALERS = (
    "dealt wrongly to some",
    "dealt wrongly to all",
    "false root commitment",
    "false self commitment",
    "foreign mask key",
    "foreign edge secrets",
    "false edge commitment",
)
HOLDERS = ("lies about self shares", "lies about root shares", "wrong clients' shares")
FAULTS = (*IN_TRANSIT, *RESENT, *INPUTS, *BODIES, *DEALERS, *HOLDERS)
# What a server may tell one client and not another.
LIES = (
    "fewer adverts",
    "fewer bundles",
    "fewer survivors",
    "more survivors",
    "fewer confirmations",
    "another client's reply",
    "earlier reply",
)


@dataclass
class Schedule:
    """One round's faults, all from one seed."""

    seed: int
    cohort: Cohort
    drops: dict[str, Stage] = field(default_factory=dict)
    faults: dict[str, tuple[str, Stage]] = field(default_factory=dict)
    lies: dict[str, str] = field(default_factory=dict)
    careless: bool = False  # the server skips its checks of what lied-to clients answer

    @classmethod
    def of(cls, seed: int) -> Schedule:
        rng = np.random.default_rng(seed)
        size, degree = SHAPES[rng.integers(len(SHAPES))]
        corrupt = float(rng.choice([0.0, 0.1])) if size >= 10 and degree is None else 0.0
        cohort = Cohort(
            size=size,
            degree=degree,
            length=LENGTH,
            bits=int(rng.choice([20, 27, 32])),
            corrupt=corrupt,
            dropout=float(rng.choice([0.25, 0.3])),
            seed=seed,
            identities={name: IDENTITIES[name] for name in list(IDENTITIES)[:size]},
        )
        found = cls(seed, cohort)
        stages = STAGES if degree else COMPLETE_STAGES
        # Most schedules stay about as harmful as the cohort is made for.
        rate = float(rng.choice([0.05, 0.1, 0.2]))
        for name in cohort.names:
            if rng.random() < rate:
                found.drops[name] = stages[rng.integers(len(stages))]
            if rng.random() < rate:
                fault = FAULTS[rng.integers(len(FAULTS))]
                found.faults[name] = fault, stages[rng.integers(len(stages))]
        if rng.random() < 0.25:
            found.careless = bool(rng.random() < 0.5)
            lie = LIES[rng.integers(len(LIES))]
            for name in cohort.names:
                if rng.random() < rng.choice([0.1, 0.5]):
                    found.lies[name] = lie
        return found


class Careless(PairwiseServer):
    """Takes inputs for any view, signatures on any list and shares of any client."""

    def _add_input(self, body: bytes) -> None:
        self._sum.total += unpack_ring(body[32:], self._context.length, self._context.bits)

    def _add_confirmation(self, sender: int, client_id: str, body: bytes) -> None:
        self._confirmations[sender] = body

    def _confirm(self, present: list[int]) -> Outgoing:
        """To each client the signatures on its own list that it counts."""

        def content(index: int) -> list[int]:
            own = self.told[index]
            around = self._relay.graph.witnesses(index) & self._confirmations.keys()
            same = sorted(i for i in around if self.told[i] == own and i in own)
            return same[: self._context.parameters.quorum]

        return Outgoing(
            self._names(present),
            lambda name: wire_messages.encode_confirmations(
                {i: self._confirmations[i] for i in content(self._context.index(name))}
            ),
        )

    def _add_reveal(self, sender: int, client_id: str, body: bytes) -> None:
        size = self._context.parameters.size
        self._reveals[sender] = Reveal.decode(body, size=size, limit=size)

    told: dict[int, list[int]]


@dataclass
class Played:
    """What came of a schedule."""

    outcome: str
    server: PairwiseServer
    clients: dict[str, PairwiseClient]
    reveals: dict[str, Reveal]
    refusals: Counter[str]


class Play:
    """One run of a schedule: every message in an order, and with the faults, of its seed."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule, self.cohort = schedule, schedule.cohort
        self.rng = np.random.default_rng([schedule.seed, 1])
        self.context = self.cohort.context()
        kind = Careless if schedule.careless else PairwiseServer
        self.server = kind(self.context)
        self.inputs = {name: vector.copy() for name, vector in self.cohort.inputs.items()}
        self.clients = {name: self.client(name) for name in self.cohort.names}
        self.stale = {}
        if any(fault == "other session" for fault, _ in schedule.faults.values()):
            other = self.cohort.context(session=b"o" * 16)
            self.stale = {n: self.cohort.client(n, other).start() for n in self.cohort.names}
        self.up: dict[str, list[bytes]] = {name: [] for name in self.cohort.names}
        self.down: dict[str, list[bytes]] = {name: [] for name in self.cohort.names}
        self.told: dict[int, list[int]] = {}
        self.reveals: dict[str, Reveal] = {}
        self.accepted: list[str] = []
        self.refusals: Counter[str] = Counter()
        if isinstance(self.server, Careless):
            self.server.told = self.told

    def client(self, name: str) -> PairwiseClient:
        fault = self.schedule.faults.get(name, ("", "advertise"))[0]
        contribution: Callable[[], np.ndarray] = lambda: self.inputs[name]  # noqa: E731
        if fault == "contribution too short":
            contribution = lambda: self.inputs[name][:-1]  # noqa: E731
        elif fault == "contribution of floats":
            contribution = lambda: self.inputs[name].astype(np.float64)  # noqa: E731
        elif fault == "contribution raises":

            def contribution():
                raise LocalProtocolError("no budget is left")

        made = PairwiseClient(self.context, name, self.cohort.identities[name], contribution)
        if fault.startswith("dealt wrongly"):
            deal(made, to_all=fault.endswith("all"))
        elif fault == "foreign edge secrets":
            foreign_edges(made)
        elif fault == "false edge commitment":
            false_edge_commitment(made)
        return made

    def run(self) -> Played:
        inbox: dict[str, bytes | None] = dict.fromkeys(self.cohort.names)
        outcome = ""
        while (stage := self.server.stage) is not None:
            sent = self.answers(stage, inbox)
            self.deliver(stage, sent)
            try:
                replies = self.server.advance()
                inbox = {name: replies[name] for name in replies}
            except ProtocolError as error:
                outcome = f"{type(error).__name__} in {stage}"
        if not outcome:
            outcome = self.judged()
        return Played(outcome, self.server, self.clients, self.reveals, self.refusals)

    def answers(self, stage: Stage, inbox: dict[str, bytes | None]) -> dict[str, bytes]:
        sent = {}
        for name, reply in inbox.items():
            drop = self.schedule.drops.get(name)
            if drop and STAGES.index(drop) <= STAGES.index(stage):
                continue
            client = self.clients[name]
            try:
                if reply is None:
                    message = self.started(name)
                else:
                    told = self.lied(stage, name, reply, inbox)
                    self.down[name].append(reply)
                    if stage == "consistency":
                        self.told[self.context.index(name)] = wire_messages.decode_survivors(
                            told, size=self.cohort.size
                        )
                    message = client.handle(told)
            except ProtocolError as error:
                self.refusals[type(error).__name__] += 1
                assert client.state is ClientState.FAILED
                continue
            if stage == "unmask":
                size = self.cohort.size
                self.reveals[name] = Reveal.decode(body_of(message), size=size, limit=size)
            sent[name] = message
        return sent

    def started(self, name: str) -> bytes:
        """The first message; some clients advertise what they will not stand by."""
        client, fault = self.clients[name], self.schedule.faults.get(name, ("", ""))[0]
        message = client.start()
        advert = client._secrets.advert
        if fault == "false root commitment":
            advert = replace(advert, root_commitment=bytes(32))
        elif fault == "false self commitment":
            advert = replace(advert, self_commitment=bytes(32))
        elif fault == "foreign mask key":
            client._secrets.mask_key = HybridPrivateKey.generate(system_random)
            advert = replace(advert, mask_key=client._secrets.mask_key.public.raw)
        else:
            return message
        client._secrets.advert = advert
        return resigned(self.cohort, self.context, name, "advertise", advert.encode())

    def deliver(self, stage: Stage, sent: dict[str, bytes]) -> None:
        names = list(sent)
        self.rng.shuffle(names)
        for name in names:
            for speaker, message in self.faulty(stage, name, sent):
                try:
                    self.server.receive(speaker, message)
                except ProtocolError as error:
                    self.refusals[type(error).__name__] += 1
                else:
                    if stage == "masked_input":
                        self.accepted.append(speaker)
            self.up[name].append(sent[name])

    def faulty(self, stage: Stage, name: str, sent: dict[str, bytes]) -> list[tuple[str, bytes]]:
        """What reaches the server in place of ``name``'s message, and under which name."""
        message, rng = sent[name], self.rng
        fault, when = self.schedule.faults.get(name, ("", stage))
        others = [other for other in sent if other != name]
        other = str(rng.choice(others)) if others else name
        good = [(name, message)]
        if fault in HOLDERS and stage == "unmask":
            return [(name, self.lying(name, fault, message))]
        if fault in BODIES and stage == "masked_input":
            return [(name, self.other_input(name, fault, body_of(message)))]
        if stage != when:
            return good
        at = int(rng.integers(len(message)))
        if fault == "flip":
            bad = message[:at] + bytes([message[at] ^ (1 << rng.integers(8))]) + message[at + 1 :]
            return [(name, bad), *(good if rng.random() < 0.5 else [])]
        if fault == "truncate":
            return [(name, message[:at])]
        if fault == "extend":
            return [(name, message + rng.bytes(1 + at % 40))]
        if fault == "empty":
            return [(name, b""), *good]
        if fault == "noise":
            return [(name, rng.bytes(len(message))), *good]
        if fault == "duplicate":
            return good * 3
        if fault == "earlier stage" and self.up[name]:
            return [(name, self.up[name][rng.integers(len(self.up[name]))]), *good]
        if fault == "other session":
            return [(name, self.stale[name]), *good]
        if fault == "another client's":
            return [(name, sent[other]), *good]
        if fault == "swap":
            return [(name, sent[other]), (other, message)]
        return good

    def other_input(self, name: str, fault: str, body: bytes) -> bytes:
        """A well-signed masked input that is not what the protocol asks for."""
        if fault == "body too short":
            body = body[:-1]
        elif fault == "body too long":
            body = body + b"\0"
        elif fault == "spare bits":
            body = body[:-1] + bytes([body[-1] | 0x80]) + (b"" if self.cohort.bits == 27 else b"!")
        elif fault == "other view":
            body = bytes(32) + body[32:]
        else:
            # Whatever a client masks is its contribution: a sum of lies is exact.
            view, packed = body[:32], body[32:]
            vector = unpack_ring(packed, LENGTH, self.cohort.bits)
            changed = (vector + np.uint32(77)) & np.uint32((1 << self.cohort.bits) - 1)
            self.inputs[name] = self.inputs[name] + np.uint32(77)
            body = view + pack_ring(changed, self.cohort.bits)
        return resigned(self.cohort, self.context, name, "masked_input", body)

    def lying(self, name: str, fault: str, message: bytes) -> bytes:
        size = self.cohort.size
        reveal = Reveal.decode(body_of(message), size=size, limit=size)
        ours, roots = dict(reveal.self_shares), dict(reveal.root_shares)
        bad = {i: self.rng.bytes(SHARE_BYTES - 1).rjust(SHARE_BYTES, b"\0") for i in range(size)}
        if fault == "lies about self shares":
            ours = {i: bad[i] for i in ours}
        elif fault == "lies about root shares":
            roots = {i: bad[i] for i in roots}
        elif ours:
            roots[min(ours)] = ours.pop(min(ours))
        return resigned(self.cohort, self.context, name, "unmask", Reveal(ours, roots).encode())

    def lied(self, stage: Stage, name: str, reply: bytes, inbox: dict[str, bytes | None]) -> bytes:
        """What ``name`` is told in place of ``reply``."""
        lie, size, rng = self.schedule.lies.get(name), self.cohort.size, self.rng
        client = self.clients[name]
        if lie == "fewer adverts" and stage == "share":
            if self.context.parameters.sparse:
                degree = self.context.parameters.degree
                found = Neighbourhood.decode(reply, size=size, degree=degree)
                gone = int(rng.choice(sorted(found.nonces)))
                nonces = {i: nonce for i, nonce in found.nonces.items() if i != gone}
                return Neighbourhood(nonces, found.withheld, found.advertisements).encode(size=size)
            signed = wire_messages.decode_advertised(reply, size=size)
            del signed[rng.integers(len(signed))]
            return wire_messages.encode_advertised({s.sender: s.encode() for s in signed})
        if lie == "fewer bundles" and stage == "masked_input":
            me = self.context.index(name)
            given = {other: client._graph.gives(other, me) for other in client._secrets.peers}
            bundles = wire_messages.decode_delivery(reply, with_edge=given)
            if bundles:
                del bundles[int(rng.choice(sorted(bundles)))]
            return wire_messages.encode_delivery(bundles)
        if stage == "consistency" and lie in ("fewer survivors", "more survivors"):
            listed = set(wire_messages.decode_survivors(reply, size=size))
            # The same lie to everyone it is told to, so that they sign the same list.
            if lie == "fewer survivors":
                listed -= {max(listed)}
            else:
                listed |= set(range(size)) - listed
            return wire_messages.encode_survivors(sorted(listed), size=size)
        if lie == "fewer confirmations" and stage == "unmask":
            found = wire_messages.decode_confirmations(reply, size=size, limit=size)
            kept = dict(list(found.items())[: int(rng.integers(len(found) + 1))])
            return wire_messages.encode_confirmations(kept)
        if lie == "another client's reply" and rng.random() < 0.3:
            other = inbox[str(rng.choice(list(inbox)))]
            return reply if other is None else other
        if lie == "earlier reply" and self.down[name] and rng.random() < 0.3:
            earlier = self.down[name][rng.integers(len(self.down[name]))]
            with pytest.raises(ProtocolError):
                client.handle(earlier)
        return reply

    def judged(self) -> str:
        result, honest_server = self.server.result, not self.schedule.lies
        assert list(result.survivors) == sorted(self.accepted)
        assert len(result.survivors) >= self.context.parameters.survivor_floor
        if np.array_equal(result.total, self.sum_of(result.survivors)):
            lost = len(result.survivors) < self.cohort.size
            return (
                "sum"
                + (", some lost" if lost else "")
                + (", wrong shares spared" if self.server.wrong_shares else "")
            )
        assert not honest_server, f"schedule {self.schedule.seed}: a wrong sum"
        # What a server got that told lies is noise, and no sum over anybody else.
        assert self.opened(result.total) == []
        return "noise for a server that lied"

    def sum_of(self, names: tuple[str, ...] | list[str]) -> np.ndarray:
        total = np.zeros(LENGTH, dtype=np.uint32)
        for name in names:
            total += self.inputs[name]
        return total & np.uint32((1 << self.cohort.bits) - 1)

    def opened(self, total: np.ndarray) -> list[int]:
        """Sets of clients, as bits, whose plain sum agrees with ``total`` in any two places."""
        size, mask = self.cohort.size, np.uint32((1 << self.cohort.bits) - 1)
        sums = np.zeros((1, LENGTH), dtype=np.uint32)
        for name in self.cohort.names:
            sums = np.concatenate((sums, sums + self.inputs[name]))
        agreeing = ((sums & mask) == total).sum(axis=1)
        assert sums.shape[0] == 1 << size
        # 2^16 sets of 12 places: two chance agreements in 20 bits happen once in 2 * 10^5 rounds.
        return [int(i) for i in np.flatnonzero(agreeing >= 2)]


def deal(client: PairwiseClient, *, to_all: bool) -> None:
    """Seals shares of something else, to everyone or to every third client."""

    def bundle_for(original, other, shares, *keys_):
        wrong = bytes(SHARE_BYTES - 1) + b"\7"
        return original(other, wrong * 2 if to_all or other % 3 == 0 else shares, *keys_)

    dealing(client, bundle_for)


def foreign_edges(client: PairwiseClient) -> None:
    """Gives edge secrets that do not follow from its root, rightly sealed and committed to."""

    def bundle_for(original, other, shares, *keys_):
        if client._secrets.peers[other].edge_secret:
            client._secrets.peers[other].edge_secret = system_random(32)
        return original(other, shares, *keys_)

    dealing(client, bundle_for)


def false_edge_commitment(client: PairwiseClient) -> None:
    """Commits to other edge secrets than it gives."""

    def bundle_for(original, other, shares, mask_key, envelope_key):
        made = original(other, shares, mask_key, envelope_key)
        if not made.edge:
            return made
        changed = replace(made, edge_commitment=bytes(32))
        covered = changed.signed_part(
            sender=client._index,
            receiver=other,
            mask_key=mask_key.raw,
            envelope_key=envelope_key.raw,
        )
        signature = client._identity.sign(client._context.digest + covered, label=keys.SIGN_BUNDLE)
        return replace(changed, signature=signature)

    dealing(client, bundle_for)


def check_disclosure(schedule: Schedule, played: Played) -> None:
    """No two thresholds of both kinds of share of one client, and nothing below the floor."""
    context: RoundContext = schedule.cohort.context()
    parameters = context.parameters
    for index in range(parameters.size):
        selves = sum(index in reveal.self_shares for reveal in played.reveals.values())
        roots = sum(index in reveal.root_shares for reveal in played.reveals.values())
        # Corrupt holders would add both kinds.
        assert min(selves, roots) + parameters.corrupt < parameters.threshold
    for client in played.clients.values():
        if client.state in (ClientState.DONE, ClientState.FAILED):
            assert client._secrets is None
    if played.outcome.endswith(("masked_input", "advertise", "share", "graph")):
        assert not played.reveals
