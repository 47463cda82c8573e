"""A large cohort in one process: every client a real state machine, clients lost at every stage.

No model and no privacy mechanism: contributions are uniform ring vectors made from a seed, so that
the sum of the survivors is known exactly.  Messages are handed over one at a time; what stays in
memory is what the halves themselves keep (mostly the sealed shares that the server relays between
two stages) and one vector.
"""

from __future__ import annotations

import hashlib
import resource
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.config import Stage, share_of
from securefed.crypto.identity import IdentityKey
from securefed.engines.events import Observer, Silent
from securefed.errors import ProtocolError
from securefed.federation.costs import CohortPlan
from securefed.secagg.aggregator import SESSION_BYTES, RoundContext
from securefed.secagg.carriers import MaskRemoval, apply_masks
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.parameters import PairwiseParameters


@dataclass(frozen=True)
class Spread:
    """Mean and largest over the clients of a stage."""

    mean: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(float(np.mean(values)), float(np.max(values)))


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """What one stage cost.

    Attributes:
        stage: its name.
        asked: clients that the server asked.
        present: clients that answered.
        bytes_up: sent by a client.
        bytes_down: the message that a client answers (none in the first stage).
        client_seconds: CPU seconds of a client.
        server_seconds: CPU seconds of the server: encoding what those clients are sent, taking
            their answers, and ending the stage.
        peak_bytes: largest resident memory of the process up to the end of the stage.
    """

    stage: Stage
    asked: int
    present: int
    bytes_up: Spread
    bytes_down: Spread
    client_seconds: Spread
    server_seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        up, down, client = self.bytes_up, self.bytes_down, self.client_seconds
        return (
            f"{self.stage:<12} {self.present:>7}/{self.asked:<7} "
            f"up {up.mean:>10.0f} (most {up.most:>8.0f})  "
            f"down {down.mean:>10.0f} (most {down.most:>8.0f})  "
            f"client {1e3 * client.mean:>8.2f} ms (most {1e3 * client.most:>8.2f})  "
            f"server {self.server_seconds:>8.2f} s  peak {self.peak_bytes / 2**30:.2f} GiB"
        )


@dataclass(frozen=True, kw_only=True)
class CohortRun:
    """A round that ended with the exact sum of its survivors."""

    plan: CohortPlan
    parameters: PairwiseParameters
    survivors: int
    stages: tuple[StageFigures, ...]
    cpu_seconds: float

    @property
    def bytes_up(self) -> float:
        """Mean bytes sent by a client that stayed to the end."""
        return sum(stage.bytes_up.mean for stage in self.stages)

    @property
    def bytes_down(self) -> float:
        """Mean bytes sent to a client that stayed to the end."""
        return sum(stage.bytes_down.mean for stage in self.stages)

    @property
    def client_seconds(self) -> float:
        """Mean CPU seconds of a client that stayed to the end."""
        return sum(stage.client_seconds.mean for stage in self.stages)

    @property
    def server_seconds(self) -> float:
        """CPU seconds of the server."""
        return sum(stage.server_seconds for stage in self.stages)


def run_cohort(
    plan: CohortPlan,
    *,
    observer: Observer | None = None,
    remove_masks: MaskRemoval = apply_masks,
) -> CohortRun:
    """Run one round of ``plan`` and compare the server's sum with the plain one.

    Args:
        plan: sizes and losses.
        observer: told of progress, and one line a stage.
        remove_masks: how the server removes masks; its work in other processes is not in
            ``server_seconds``.

    Raises:
        ConfigError: the plan has no safe parameters.
        ProtocolError: a message was refused in this honest round, or the sum is wrong.
        ThresholdNotMet: too few were left after all.
    """
    return _Round(plan, Silent() if observer is None else observer, remove_masks).go()


class _Round:
    def __init__(self, plan: CohortPlan, observer: Observer, remove_masks: MaskRemoval) -> None:
        self._plan, self._observer = plan, observer
        self._began = time.process_time()
        self._parameters = plan.parameters
        names = tuple(f"c{index:07}" for index in range(plan.clients))
        identities = {name: IdentityKey.generate() for name in names}
        self._context = RoundContext(
            session=secrets.token_bytes(SESSION_BYTES),
            round=1,
            cohort=names,
            roster={name: key.public for name, key in identities.items()},
            length=plan.values,
            bits=plan.bits,
            parameters=self._parameters,
            binding=hashlib.sha256(b"securefed/1/large cohort, no model").digest(),
        )
        self._server = PairwiseServer(self._context, remove_masks=remove_masks)
        self._clients = {name: self._client(name, key) for name, key in identities.items()}
        self._lost = np.random.default_rng((plan.seed, 1))

    def _client(self, name: str, identity: IdentityKey) -> PairwiseClient:
        return PairwiseClient(self._context, name, identity, lambda: self._contribution(name))

    def _contribution(self, name: str) -> NDArray[np.uint32]:
        rng = np.random.default_rng((self._plan.seed, 0, self._context.index(name)))
        vector = rng.integers(0, 2**32, self._plan.values, dtype=np.uint32)
        return vector & np.uint32((1 << self._plan.bits) - 1)

    def go(self) -> CohortRun:
        stages = []
        inbox: Mapping[str, bytes | None] = dict.fromkeys(self._clients)
        while (stage := self._server.stage) is not None:
            figures, inbox = self._stage(stage, inbox)
            stages.append(figures)
            self._observer.message(str(figures))
        self._check()
        return CohortRun(
            plan=self._plan,
            parameters=self._parameters,
            survivors=len(self._server.result.survivors),
            stages=tuple(stages),
            cpu_seconds=time.process_time() - self._began,
        )

    def _stage(
        self, stage: Stage, inbox: Mapping[str, bytes | None]
    ) -> tuple[StageFigures, Mapping[str, bytes]]:
        """One stage: some fall silent, the others answer, the server goes on."""
        asked = len(inbox)
        present = self._still_there(list(inbox))
        up, down, own = [], [], []
        server = 0.0
        for done, name in enumerate(present):
            if done % 64 == 0:
                self._observer.working(stage, done, len(present))
            client = self._clients[name]
            started = time.process_time()
            reply = inbox[name]
            sent = time.process_time()
            message = client.start() if reply is None else client.handle(reply)
            answered = time.process_time()
            self._server.receive(name, message)
            server += time.process_time() - answered + sent - started
            up.append(len(message))
            down.append(0 if reply is None else len(reply))
            own.append(answered - sent)
        self._observer.working(stage, len(present), len(present))
        started = time.process_time()
        outgoing = self._server.advance()
        server += time.process_time() - started
        figures = StageFigures(
            stage=stage,
            asked=asked,
            present=len(present),
            bytes_up=Spread.of(up),
            bytes_down=Spread.of(down),
            client_seconds=Spread.of(own),
            server_seconds=server,
            peak_bytes=_peak_bytes(),
        )
        return figures, outgoing

    def _still_there(self, names: list[str]) -> list[str]:
        """Those who do not fall silent now; the state of the others is given up."""
        silent = set(
            self._lost.choice(len(names), share_of(self._plan.drop, len(names)), replace=False)
        )
        for place in silent:
            del self._clients[names[place]]
        return [name for place, name in enumerate(names) if place not in silent]

    def _check(self) -> None:
        result = self._server.result
        wanted = np.zeros(self._plan.values, dtype=np.uint32)
        for name in result.survivors:
            wanted += self._contribution(name)
        wanted &= np.uint32((1 << self._plan.bits) - 1)
        wrong = int(np.count_nonzero(wanted != result.total))
        if wrong:
            raise ProtocolError(
                f"sum of {len(result.survivors)} survivors: {wrong} of {self._plan.values} values "
                "are wrong"
            )


def _peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
