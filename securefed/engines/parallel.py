"""Mask removal on several cores, for a server that is given it.

AES holds the interpreter's lock, so threads do not help; processes do.  Each adds its part of the
keystreams into a partial sum that it shares with this process, which adds up the partial sums in
the end.  Keys go through pipes and are never in a file.  The shared memory of a partial sum has no
name that could be left behind; where /dev/shm has no room for it, multiprocessing takes an unlinked
temporary file.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import KEY_BYTES, check_ring_vector
from securefed.errors import ConfigError, SecureFedError
from securefed.secagg.carriers import Mask, apply_masks

SERIAL_BELOW = 1 << 29
"""Values times masks from which on processes pay: about 0.3 s of work on one core.

Measured with two cores (tests/bench/bench_mask_removal.py): equal at 2^27, 1.5 times faster at
2^29, 1.6 at 2^30; but the first call also starts the fork server, which takes half a second once.
"""

_RECORD = 1 + KEY_BYTES
# A batch is some 60 ms of work, and at most 8 KiB, so that two of them fit into a pipe unread.
_BATCH_VALUES = 1 << 26
_BATCH_MASKS = 248
_AHEAD = 2
_DONE = b"done"


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ParallelMasks:
    """Applies masks with several processes: give it to ``ServerRound`` as ``remove_masks``.

    Processes start when they are needed and end with the call.  They are started afresh (by a fork
    server, or spawned), so nothing of this process's memory is in them.  As always with
    ``multiprocessing``, the program must be a file with an ``if __name__ == "__main__"`` guard, or
    run with ``-m``, or interactive; one piped into the interpreter cannot be started again.

    Args:
        workers: how many processes, >= 1; by default as many as there are usable cores.
        serial_below: on fewer values times masks than this, work on one core, in this process.

    Raises:
        ConfigError: ``workers`` is below 1, or ``serial_below`` below 0.

    Guarantees:
        - The result is the one of ``apply_masks``, bit for bit.
        - Where processes are used, ``vector`` is unchanged if anything raises.
    """

    def __init__(self, workers: int | None = None, *, serial_below: int = SERIAL_BELOW) -> None:
        self._workers = usable_cores() if workers is None else workers
        self._serial_below = serial_below
        for name, value, least in (
            ("workers", self._workers, 1),
            ("serial_below", serial_below, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} = {value}: must be >= {least}")

    def __call__(self, vector: NDArray[np.uint32], masks: Iterable[Mask]) -> None:
        """Apply ``masks`` to ``vector`` in place.

        Raises:
            ConfigError: a vector or key that ``add_keystream`` refuses.
            SecureFedError: a process ended early (out of memory, say).
            Exception: whatever ``masks`` raises.
        """
        check_ring_vector(vector)
        coming = iter(masks)
        least = -(-self._serial_below // max(vector.size, 1))
        first = list(itertools.islice(coming, least))
        if self._workers == 1 or vector.size == 0 or len(first) < least:
            apply_masks(vector, itertools.chain(first, coming))
            return
        with _crew(self._workers, vector.size) as crew:
            for batch in _batches(itertools.chain(first, coming), vector.size):
                crew.give(batch)
            crew.finish()
            for member in crew.members:
                vector += member.partial


class _Buffer(Protocol):
    """A ctypes array in shared memory."""

    def __len__(self) -> int: ...


class _Member:
    """One process, its end of the pipe and its partial sum."""

    def __init__(self, context: BaseContext, length: int) -> None:
        shared = context.RawArray("I", length)
        self.partial: NDArray[np.uint32] = np.frombuffer(shared, dtype=np.uint32)
        self.waiting = 0  # batches that it was given and has not said to be done with
        self.pipe: Connection[Any, Any]
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, shared), daemon=True
        )
        self.process.start()
        theirs.close()

    def lost(self) -> SecureFedError:
        self.process.join(timeout=10)
        return SecureFedError(
            f"mask removal: a process ended with exit code {self.process.exitcode} before its work "
            "was done; the round has no result"
        )


class _Crew:
    def __init__(self, members: list[_Member]) -> None:
        self.members = members

    def give(self, batch: bytes) -> None:
        """To whoever has least to do; waits while everyone has enough."""
        while True:
            member = min(self.members, key=lambda one: one.waiting)
            if member.waiting < _AHEAD:
                break
            self._hear()
        self._send(member, batch)

    def finish(self) -> None:
        """Wait until everyone has done all."""
        for member in self.members:
            self._send(member, b"")
        while any(member.waiting for member in self.members):
            self._hear()

    @staticmethod
    def _send(member: _Member, batch: bytes) -> None:
        try:
            member.pipe.send_bytes(batch)
        except OSError:
            raise member.lost() from None
        member.waiting += 1

    def _hear(self) -> None:
        busy = {member.pipe: member for member in self.members if member.waiting}
        for pipe in wait(list(busy)):
            member = busy[pipe]  # type: ignore[index]
            try:
                member.pipe.recv_bytes(len(_DONE))
            except (EOFError, OSError):
                raise member.lost() from None
            member.waiting -= 1


@contextmanager
def _crew(workers: int, length: int) -> Iterator[_Crew]:
    """Processes that have ended when the block is left, however it is left."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])  # has no effect on a server that runs already
    members: list[_Member] = []
    try:
        for _ in range(workers):
            members.append(_Member(context, length))
        yield _Crew(members)
    finally:
        for member in members:
            member.process.terminate()
            member.process.join()
            member.pipe.close()


def _batches(masks: Iterable[Mask], length: int) -> Iterator[bytes]:
    """Masks as bytes: a record is one byte (1 to subtract) and the key."""
    count = min(max(_BATCH_VALUES // length, 1), _BATCH_MASKS)
    coming = iter(masks)
    while batch := list(itertools.islice(coming, count)):
        for key, _ in batch:
            if len(key) != KEY_BYTES:
                raise ConfigError(f"key has {len(key)} bytes; it must have {KEY_BYTES}")
        yield b"".join(bytes([subtract]) + key for key, subtract in batch)


def _work(pipe: Connection[Any, Any], shared: _Buffer) -> None:
    """What a process does: add keystreams until an empty batch, or until nobody is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever is interrupted ends this process
    partial = np.frombuffer(shared, dtype=np.uint32)  # type: ignore[call-overload]
    try:
        while batch := pipe.recv_bytes():
            records = (batch[at : at + _RECORD] for at in range(0, len(batch), _RECORD))
            apply_masks(partial, ((record[1:], bool(record[0])) for record in records))
            pipe.send_bytes(_DONE)
        pipe.send_bytes(_DONE)
    except (EOFError, BrokenPipeError):
        return
