"""What a party's work takes: seconds by phase, and the most memory that was in use meanwhile."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

Clock = Callable[[], float]
"""Seconds, from any origin; never backwards."""

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak resident set size to what is resident now


class MemoryWatch(Protocol):
    """Watches one kind of memory."""

    name: str

    def begin(self) -> None:
        """Forget the peak so far."""
        ...

    def peak(self) -> int:
        """Bytes: the most in use since ``begin``."""
        ...


class ResidentMemory:
    """Resident memory of this whole process, whoever's data it holds.

    In a deployment that is the client.  A simulation's process holds the model once, every client's
    data and the server besides.  On Linux the kernel's own peak is set back at the start of each
    piece of work.  Elsewhere it cannot be, and the figure is the peak since the process began:
    ``name`` says which of the two it is.
    """

    def __init__(self) -> None:
        self._resets = _reset_peak()
        self.name = "resident" if self._resets else "resident_since_start"

    def begin(self) -> None:
        """Forget the peak so far, where that can be done."""
        if self._resets:
            _reset_peak()

    def peak(self) -> int:
        """Bytes."""
        if self._resets:
            for line in _STATUS.read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


class DeviceMemory:
    """Memory that torch holds on one CUDA device.

    Args:
        device: of type ``cuda``.
    """

    name = "device"

    def __init__(self, device: torch.device) -> None:
        from torch import cuda  # who runs no model measures without torch

        self._device, self._cuda = device, cuda

    def begin(self) -> None:
        """Forget the peak so far."""
        self._cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Bytes."""
        return int(self._cuda.max_memory_allocated(self._device))


@dataclass
class Work:
    """What was measured between two calls of :meth:`Meter.take`.

    Attributes:
        cpu_seconds: by phase: of all threads of the process.
        seconds: by phase: by the clock on the wall; what a device other than the CPU takes is here
            and not in ``cpu_seconds``.
        peak_memory_bytes: by kind of memory.
    """

    cpu_seconds: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: dict[str, int] = field(default_factory=dict)

    def to_record(self) -> dict[str, Mapping[str, float]]:
        """As files hold it, seconds to the microsecond."""
        return {
            "cpu_seconds": {name: round(found, 6) for name, found in self.cpu_seconds.items()},
            "seconds": {name: round(found, 6) for name, found in self.seconds.items()},
            "peak_memory_bytes": dict(self.peak_memory_bytes),
        }


class Meter:
    """Measures one party's work by phase; a phase inside another interrupts it.

    So each second counts once, and the phases add up to the whole.

    Args:
        cpu: clock of CPU time.
        wall: clock of time that passes.
        memory: watched from the beginning of an outermost phase to its end.

    Example:
        >>> ticks = iter(range(100))
        >>> meter = Meter(cpu=lambda: 0.0, wall=lambda: float(next(ticks)))
        >>> with meter.phase("mask"):
        ...     with meter.phase("train"):
        ...         pass
        >>> meter.take().seconds
        {'mask': 2.0, 'train': 1.0}
    """

    def __init__(
        self,
        *,
        cpu: Clock = time.process_time,
        wall: Clock = time.perf_counter,
        memory: Sequence[MemoryWatch] = (),
    ) -> None:
        self._cpu, self._wall, self._memory = cpu, wall, tuple(memory)
        self._within: list[str] = []
        self._since = (0.0, 0.0)
        self._work = Work()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A block of the phase ``name``; what raises inside it is measured all the same."""
        if not self._within:
            for watch in self._memory:
                watch.begin()
            self._since = (self._cpu(), self._wall())
        else:
            self._book(self._within[-1])
        self._within.append(name)
        try:
            yield
        finally:
            self._book(self._within.pop())
            if not self._within:
                for watch in self._memory:
                    most = max(self._work.peak_memory_bytes.get(watch.name, 0), watch.peak())
                    self._work.peak_memory_bytes[watch.name] = most

    def take(self) -> Work:
        """What was measured since the last call; measuring begins anew."""
        found, self._work = self._work, Work()
        return found

    def _book(self, name: str) -> None:
        now = (self._cpu(), self._wall())
        for book, at, since in zip(
            (self._work.cpu_seconds, self._work.seconds), now, self._since, strict=True
        ):
            book[name] = book.get(name, 0.0) + at - since
        self._since = now
