"""The phases of a party's work, named where the work is done and measured by whoever is asked to.

Code that clips, trains or encodes reads no clock.  It says which phase it is in, through a function
that it was given; an engine hands in one that measures (``engines/metering.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Phase = Callable[[str], AbstractContextManager[None]]
"""From the name of a phase to the block in which it lasts; an inner block interrupts the outer."""


def unmeasured(name: str) -> AbstractContextManager[None]:
    """A phase that nobody measures."""
    return nullcontext()
