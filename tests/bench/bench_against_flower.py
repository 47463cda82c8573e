"""The pairwise round against the keystream floor and against Flower's SecAgg+, in one run.

Run by hand: ``python tests/bench/bench_against_flower.py [--repeats 7] [--values 1000000]``; some
minutes.  Where ``flwr`` is installed its own stage functions are called: ``_share_keys`` and
``_collect_masked_vectors`` of a client with real peers, and what ``unmask_stage`` of its workflow
calls for every secret, pair and mask, each timed by itself and multiplied by how often the workflow
calls it (a whole one takes minutes).  Where it is missing only the floor and the upload are
compared.  Exits with 1 if a limit does not hold; the limits are meant for the default of 10^6
values.

All times are CPU seconds of this process, pinned to one core, taken in turn and given as medians.
Ours are whole stages of real rounds, from the server's message to the client's answer:

- *masked input*, 50 neighbours: bundles are checked and opened, the vector is masked, packed,
  hashed and signed.  The contribution is at hand; from Flower's stage its own quantisation is
  therefore subtracted.  The floor is the bare keystream and the bare addition, once a mask.
- *share*, 100 neighbours: advertisements are checked, both secrets shared, all of it sealed and
  signed.
- *unmask*, 101 clients of which 30 fell silent after sharing: from the revealed shares to the sum,
  which is compared with what it must be.
- *upload*: every byte that a client sends in such a round, the client that sends most.

Flower runs with its workflow's default settings, and with the threshold that ours derives.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from flower_secagg import Flower

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator, add_keystreams
from securefed.federation.client import ClientRound
from securefed.federation.session import RoundSession
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.secagg.pairwise_server import PairwiseServer

HAS_FLOWER = importlib.util.find_spec("flwr") is not None
MASKING_CLIENTS = 51
CLIENTS = 101
DROPPED = 30
CHUNK = 1 << 16
# With 101 clients: threshold 61, at least 71 survivors.
POLICY = PrivacyPolicy(
    clip_norm=1.0, noise_multiplier=1.0, corrupt_fraction=0.2, dropout_fraction=0.3
)


def seconds(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


@dataclass(frozen=True)
class Line:
    """One line of the table: a ratio and what it must be."""

    what: str
    ours: str
    other: str
    ratio: float
    limit: float
    at_most: bool

    @property
    def holds(self) -> bool:
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit

    def __str__(self) -> str:
        side = "<=" if self.at_most else ">="
        return (
            f"{self.what:<42} {self.ours:>13} {self.other:>15} {self.ratio:8.2f} "
            f"{side} {self.limit:5.2f}  {'yes' if self.holds else 'NO'}"
        )


# -- ours ------------------------------------------------------------------------------------


class Round:
    """A real round, one stage at a time, with each client's CPU seconds and bytes by stage."""

    def __init__(self, clients: int, values: int, bits: int) -> None:
        self.names = tuple(f"c{i:03}" for i in range(clients))
        keys = {name: IdentityKey.generate() for name in self.names}
        self.session = RoundSession(
            session=os.urandom(16),
            round=1,
            cohort=self.names,
            roster={name: key.public for name, key in keys.items()},
            dimension=values,
            policy=POLICY,
            aggregation=PairwiseAggregation(bits=bits),
            model=bytes(32),
        )
        codec = self.session.codec
        update = np.random.default_rng(1).normal(size=values)
        self.ready = codec.encode_update(update, NoiseGenerator())
        self.halves = {
            name: ClientRound(self.session, name, keys[name], lambda codec, noise: self.ready)
            for name in self.names
        }
        self.server = PairwiseServer(self.session.context)
        self.inbox: Mapping[str, bytes | None] = dict.fromkeys(self.names)
        self.seconds: dict[Stage, dict[str, float]] = {stage: {} for stage in STAGES}
        self.bytes: dict[Stage, dict[str, int]] = {stage: {} for stage in STAGES}

    def answer(self, name: str) -> bytes:
        """One client's message for the present stage, timed and weighed."""
        half, reply = self.halves[name], self.inbox[name]
        started = time.process_time()
        message = half.start() if reply is None else half.handle(reply)
        self.seconds[self.server.stage][name] = time.process_time() - started
        self.bytes[self.server.stage][name] = len(message)
        return message

    def collect(
        self, silent: Collection[str] = (), before: Callable[[int], object] = lambda number: None
    ) -> None:
        """Carry everyone's message to the server; ``before`` runs before each client."""
        for number, name in enumerate(self.inbox):
            if name not in silent:
                before(number)
                self.server.receive(name, self.answer(name))

    def advance(self) -> None:
        """End the stage at the server."""
        self.inbox = self.server.advance()

    def until_unmask(self, before_share: Callable[[int], object] = lambda number: None) -> None:
        """Every stage, with 30 clients silent from the masked input on, but for the last step."""
        self.collect()
        self.advance()
        self.collect(before=before_share)
        self.advance()
        self.collect(silent=self.names[: 3 * DROPPED : 3])
        for _ in range(2):
            self.advance()
            self.collect()

    def check(self) -> None:
        """The sum is that of the survivors' vectors, exactly."""
        context, result = self.session.context, self.server.result
        survivors = np.uint32(len(result.survivors))
        wanted = self.ready * survivors & np.uint32((1 << context.bits) - 1)
        if survivors != CLIENTS - DROPPED or not np.array_equal(result.total, wanted):
            raise SystemExit("the sum is wrong")


def floor_of(length: int, masks: int) -> Callable[[], None]:
    """Keystream and addition alone, in cache-sized pieces, ``masks`` times over a vector."""
    vector = np.zeros(length, dtype=np.uint32)
    pieces = [vector[start : start + CHUNK] for start in range(0, length, CHUNK)]
    words = np.empty(CHUNK, dtype=np.uint32)
    buffer, zeros = words.view(np.uint8).data, memoryview(bytes(4 * CHUNK))

    def run() -> None:
        for _ in range(masks):
            stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
            for piece in pieces:
                stream.update_into(zeros[: 4 * piece.size], buffer)
                np.add(piece, words[: piece.size], out=piece)

    return run


# -- the measurements ------------------------------------------------------------------------


def masking(values: int, repeats: int) -> list[Line]:
    """The masked-input stage of a client with 50 neighbours."""
    ours = Round(MASKING_CLIENTS, values, 32)
    for _ in range(2):
        ours.collect()
        ours.advance()
    context = ours.session.context
    flower = Flower(MASKING_CLIENTS, context.parameters.threshold, values) if HAS_FLOWER else None
    floor = floor_of(context.length, MASKING_CLIENTS)
    vector = np.zeros(context.length, dtype=np.uint32)

    def masks_alone() -> None:
        add_keystreams(vector, [(os.urandom(32), False) for _ in range(MASKING_CLIENTS)])

    times: dict[str, list[float]] = {}

    def take(name: str, call: Callable[[], object]) -> None:
        times.setdefault(name, []).append(seconds(call))

    for name in ours.names[:repeats]:
        take("floor", floor)
        take("masks", masks_alone)
        take("stage", lambda name=name: ours.answer(name))
        if flower is not None:
            take("flower", flower.mask)
            take("quantise", flower.quantise)
    median = {name: statistics.median(found) for name, found in times.items()}
    floor_ms, masks_ms, stage_ms = (1e3 * median[name] for name in ("floor", "masks", "stage"))
    print(f"masked input, {MASKING_CLIENTS - 1} neighbours, {context.length} values after padding")
    print(f"  floor {floor_ms:.1f} ms, masks alone {masks_ms:.1f} ms, stage {stage_ms:.1f} ms")
    each = MASKING_CLIENTS
    lines = [
        Line(
            f"{what}, a mask, against the floor",
            f"{found / each:.3f} ms",
            f"{floor_ms / each:.3f} ms",
            found / floor_ms,
            1.6,
            True,
        )
        for what, found in (("masks alone", masks_ms), ("masked-input stage", stage_ms))
    ]
    if flower is None:
        return lines
    whole, quantise = 1e3 * median["flower"], 1e3 * median["quantise"]
    print(f"  Flower {whole:.1f} ms, of which quantisation {quantise:.1f} ms")
    theirs = whole - quantise
    against = Line(
        "masked-input stage, 50 neighbours",
        f"{stage_ms:.1f} ms",
        f"{theirs:.1f} ms",
        theirs / stage_ms,
        4.0,
        False,
    )
    return [*lines, against]


def sharing_and_unmasking(ours: Round, values: int, repeats: int) -> list[Line]:
    """The share stage with 100 neighbours, and the server's last step; carries ``ours`` there."""
    threshold = ours.session.context.parameters.threshold
    flower = Flower(CLIENTS, threshold, values) if HAS_FLOWER else None
    theirs: list[float] = []

    def before_share(number: int) -> None:
        if flower is not None and number % max(CLIENTS // repeats, 1) == 0:
            theirs.append(seconds(flower.share_keys))

    ours.until_unmask(before_share)
    share = 1e3 * statistics.median(ours.seconds["share"].values())
    print(f"share, {CLIENTS - 1} neighbours, threshold {threshold}: {share:.1f} ms")

    units = {} if flower is None else flower.unmask_units(DROPPED)
    unit: dict[str, list[float]] = {name: [] for name in units}
    whole: list[float] = []
    masked_sum = ours.server._sum.total
    for _ in range(repeats):
        ours.server._sum.total = masked_sum.copy()
        whole.append(seconds(ours.server._unmask))
        ours.check()
        for name, (_, inside, call) in units.items():
            unit[name].append(seconds(call) / inside)
    unmask = statistics.median(whole)
    print(f"unmask, {CLIENTS} clients, {DROPPED} of them silent after sharing: {unmask:.3f} s")
    if flower is None:
        return []
    parts = {name: units[name][0] * statistics.median(found) for name, found in unit.items()}
    for name, part in parts.items():
        count, cost = units[name][0], statistics.median(unit[name])
        print(f"  Flower: {count:5} {name:<15} of {1e3 * cost:9.3f} ms: {part:7.2f} s")
    share_theirs, unmask_theirs = 1e3 * statistics.median(theirs), sum(parts.values())
    return [
        Line(
            "share stage, 100 neighbours",
            f"{share:.1f} ms",
            f"{share_theirs:.1f} ms",
            share_theirs / share,
            20.0,
            False,
        ),
        Line(
            "server's unmasking, 30 of 101 dropped",
            f"{unmask:.3f} s",
            f"{unmask_theirs:.1f} s",
            unmask_theirs / unmask,
            50.0,
            False,
        ),
    ]


def upload(ours: Round, values: int, limit: float) -> Line:
    """Bytes that the client sends that sends most, over the values of its update."""
    bits, sent = ours.session.context.bits, ours.bytes
    total = {name: sum(sent[stage].get(name, 0) for stage in STAGES) for name in ours.names}
    worst = max(total, key=total.__getitem__)
    print(f"upload at {bits} bits, {CLIENTS - 1} neighbours: {total[worst]} bytes by {worst}")
    for stage in STAGES:
        if sent[stage]:
            print(f"  {stage:<13} at most {max(sent[stage].values()):8} bytes")
    ratio = total[worst] / values
    return Line(
        f"upload, {bits}-bit ring, bytes a value",
        f"{total[worst]} B",
        f"{values} values",
        ratio,
        limit,
        True,
    )


def main() -> None:
    """Measure, print the table, and say by the exit status whether every limit holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--values", type=int, default=1_000_000)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    version = importlib.metadata.version
    packages = ["numpy", "cryptography", *(["flwr"] if HAS_FLOWER else [])]
    print(
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + f"; {given.repeats} repeats"
    )
    if not HAS_FLOWER:
        print("flwr is not installed: only the floor and the upload are compared")

    lines = masking(given.values, given.repeats)
    wide = Round(CLIENTS, given.values, 32)
    lines += sharing_and_unmasking(wide, given.values, given.repeats)
    lines.append(upload(wide, given.values, 4.25))
    del wide
    narrow = Round(CLIENTS, given.values, 20)
    narrow.until_unmask()
    lines.append(upload(narrow, given.values, 2.75))
    print(f"\n{'what':<42} {'ours':>13} {'peer or floor':>15} {'ratio':>8} {'limit':>8}  holds")
    print(*lines, sep="\n")
    if not all(line.holds for line in lines):
        sys.exit(1)


if __name__ == "__main__":
    main()
