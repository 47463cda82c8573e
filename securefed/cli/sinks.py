"""``--sink``: where else the figures of a run's rounds go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from securefed.cli.watching import say
from securefed.config import RunConfig

if TYPE_CHECKING:
    from securefed.engines.sinks import Sink


@contextmanager
def opened(names: Sequence[str], folder: Path, config: RunConfig) -> Iterator[list[Sink]]:
    """The sinks that are asked for, open until the block ends.

    Args:
        names: each ``KIND`` or ``KIND:FOLDER``; by default the folder lies beside the run's.
        folder: of the run.
        config: of the run.

    Raises:
        ConfigError: there is no such kind, or its library is not installed.
    """
    if not names:
        yield []
        return
    from securefed.engines.settings import unit_name
    from securefed.engines.sinks import open_sink

    about = (
        f"epsilon is of {unit_name(config)}, against whom its name says and with the delta there; "
        "accountant, mechanism, trust and assumptions are in the closing record of the run's "
        "ledger. Held-out figures that are no noised counts have no epsilon."
    )
    with ExitStack() as held:
        found = []
        for name in names:
            kind, _, given = name.partition(":")
            where = Path(given) if given else folder.with_name(f"{folder.name}.{kind}")
            found.append(held.enter_context(open_sink(kind, where, run=folder.name, about=about)))
            say(f"sink: {kind} in {where}")
        yield found
