"""Coverage-guided fuzzing of every decoder, and of both state machines behind them.

    pip install atheris          # beside the package; it is no dependency of the tests
    python tests/fuzz/fuzz_decoders.py --target decoders --seconds 300
    python tests/fuzz/fuzz_decoders.py --target server --seconds 300
    python tests/fuzz/fuzz_decoders.py --target client --seconds 300

Targets:

``decoders``  bytes to every decoder of messages.py, and to ``unpack_ring``.
``server``    a body under a good signature of a client whose turn it is, at every stage.
``client``    bytes to a client in every state that listens.

A finding is: an exception that is no RemoteProtocolError (``ThresholdNotMet`` where a party counts
who is left); a decoded value that encodes otherwise; more than 64 KiB + 32 bytes a byte of input
allocated at once (decoders only); a server that refused and is not as it was before.  The input is
then written to ``--artifacts``, and the run ends with status 77.  The seed corpus is the messages
of two honest rounds, made anew at each start; with ``--corpus`` what is found is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["securefed.secagg", "securefed.encoding"]):
    from secagg_probe import (
        allocation_bound,
        body_of,
        check_decoder,
        codecs,
        frozen,
        resigned,
        twin,
    )
    from secagg_rounds import Cohort, drive

    from securefed.errors import RemoteProtocolError, ThresholdNotMet

COUNTS: Counter[str] = Counter()
Target = tuple[Callable[[bytes], None], list[bytes]]


def decoders() -> Target:
    """The first byte picks the decoder; the rest is for it."""
    known = codecs()

    def run(data: bytes) -> None:
        codec, rest = known[(data[0] if data else 0) % len(known)], data[1:]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        accepted = check_decoder(codec, rest)
        peak = tracemalloc.get_traced_memory()[1] - before
        COUNTS[f"{codec.name}: {'accepted' if accepted else 'refused'}"] += 1
        if peak > allocation_bound(rest):
            raise MemoryError(f"{codec.name}: {peak} bytes for {len(rest)}")

    tracemalloc.start()
    return run, [bytes([i]) + sample for i, codec in enumerate(known) for sample in codec.samples]


def server() -> Target:
    """The first byte picks the stage of a complete or a sparse round; the rest is a body."""
    places = []
    for cohort in (Cohort(size=5, length=5, bits=27), Cohort(size=13, degree=6, length=5, bits=27)):
        whole = drive(cohort)
        for stage in whole.sent:
            kept: dict[str, bytes] = {}

            def hold(at, name, message, *, stage=stage, kept=kept):
                if at == stage and name == "c002":
                    kept["body"] = body_of(message)
                    return b""
                return message

            waiting = drive(cohort, meddle_up=hold, until=stage).server
            places.append((cohort, waiting, stage, kept["body"]))

    def run(data: bytes) -> None:
        cohort, waiting, stage, _ = places[(data[0] if data else 0) % len(places)]
        before = frozen(waiting)
        message = resigned(cohort, waiting._context, "c002", stage, data[1:])
        try:
            waiting.receive("c002", message)
        except RemoteProtocolError:
            COUNTS[f"{stage}: refused"] += 1
            if frozen(waiting) != before:
                raise AssertionError(f"{stage}: a refused message changed the server") from None
        else:
            COUNTS[f"{stage}: accepted"] += 1
            _undo(waiting, before)

    def _undo(waiting, before) -> None:
        """Make the server forget an accepted body: what it may add to, and the running sum."""
        for part, was in ((waiting, before), (waiting._relay, before["_relay"])):
            for name, held in vars(part).items():
                if isinstance(held, dict):
                    for fresh in held.keys() - was[name].keys():
                        del held[fresh]
                elif isinstance(held, set):
                    held &= was[name]
        waiting._sum.total[:] = np.frombuffer(before["_sum"]["total"][2], dtype=np.uint32)
        if frozen(waiting) != before:
            raise AssertionError("an accepted message changed what it should not")

    return run, [bytes([i]) + body for i, (*_, body) in enumerate(places)]


def client() -> Target:
    """The first byte picks a listening client; the rest is the server's message."""
    places = []
    for cohort in (Cohort(size=5, length=5, bits=27), Cohort(size=13, degree=6, length=5, bits=27)):
        kept = []

        clients = {name: cohort.client(name) for name in cohort.names}

        def keep(at, name, reply, *, kept=kept, clients=clients):
            if name == "c002":
                kept.append((twin(clients["c002"]), reply))
            return reply

        drive(cohort, clients=clients, meddle_down=keep)
        places += kept

    def run(data: bytes) -> None:
        listening, _ = places[(data[0] if data else 0) % len(places)]
        victim = twin(listening)
        try:
            victim.handle(data[1:])
        except (RemoteProtocolError, ThresholdNotMet):
            COUNTS[f"{listening.state.value}: refused"] += 1
        else:
            COUNTS[f"{listening.state.value}: answered"] += 1

    return run, [bytes([i]) + reply for i, (_, reply) in enumerate(places)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz decoders, server or client with atheris.")
    parser.add_argument("--target", choices=["decoders", "server", "client"], default="decoders")
    parser.add_argument("--seconds", type=int, default=60, help="how long, >= 1")
    parser.add_argument("--seed", type=int, default=1, help="libFuzzer's seed")
    parser.add_argument("--corpus", type=Path, help="folder that keeps what is found")
    parser.add_argument("--artifacts", type=Path, default=Path("."), help="where findings go")
    asked = parser.parse_args()
    run, seeds = {"decoders": decoders, "server": server, "client": client}[asked.target]()
    with tempfile.TemporaryDirectory() as folder:
        seeded = Path(folder)
        for number, sample in enumerate(seeds):
            (seeded / f"{number:03}").write_bytes(sample)
        corpus = asked.corpus or seeded / "found"
        corpus.mkdir(parents=True, exist_ok=True)
        settings = [
            f"-max_total_time={asked.seconds}",
            f"-seed={asked.seed}",
            f"-max_len={2 * max(map(len, seeds))}",
            f"-artifact_prefix={asked.artifacts}/",
            "-rss_limit_mb=1024",
            "-timeout=5",
            "-print_final_stats=1",
        ]
        arguments = [sys.argv[0], *settings, str(corpus), str(seeded)]
        atheris.Setup(arguments, lambda data: report_at_end(run, data), enable_python_coverage=True)
        atheris.Fuzz()


def report_at_end(run: Callable[[bytes], None], data: bytes) -> None:
    run(data)
    COUNTS["executions"] += 1
    if COUNTS["executions"] & (COUNTS["executions"] - 1) == 0:  # at powers of two
        sys.stderr.write(f"{dict(sorted(COUNTS.items()))}\n")


if __name__ == "__main__":
    main()
