"""What a deployment's server writes down while it runs: log lines, and metrics counted from them.

One JSON object a line: ``started``, ``stage`` for each exchange with clients, ``round`` for each
round, ``note`` for a line to people, and ``finished`` or ``failed``.  Seconds are those that the
replies of a stage were waited for, which agents hold back where samples are secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import securefed
from securefed.config import RunConfig, load_config
from securefed.engines.deployed import config_digest
from securefed.engines.deployment import Deployment
from securefed.engines.events import Lines, RoundEvent, StageEvent
from securefed.errors import SecureFedError
from securefed.federation.scheduling import Schedule
from securefed.operations.log import UNPROTECTED, Log, appended


class Logged:
    """An observer that writes into a log what it shows to people.

    Args:
        shown: shows it.
        log: of the server.
        config: the run file, for the terms of an epsilon.
    """

    def __init__(self, shown: Lines, log: Log, config: RunConfig) -> None:
        self._shown, self._log, self._config = shown, log, config

    def begun(self, folder: Path) -> None:
        """The run folder."""
        self._log.write("begun", folder=str(folder))
        self._shown.begun(folder)

    def message(self, text: str) -> None:
        """A line for people."""
        self._log.write("note", what=text)
        self._shown.message(text)

    def planned(self, plan: Schedule) -> None:
        """Nothing: a plan is carried out in simulations only."""

    def working(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def stage_end(self, event: StageEvent) -> None:
        """Who was asked, who answered, refused or was silent, in how many seconds and bytes."""
        self._log.write("stage", **event.to_record())
        self._shown.stage_end(event)

    def round_end(self, event: RoundEvent) -> None:
        """Survivors, and what is spent with its terms."""
        self._log.write(
            "round",
            round=event.round,
            rounds=event.rounds,
            cohort=event.cohort,
            survivors=event.survivors,
            silent=event.silent,
            epsilon=UNPROTECTED if event.epsilon is None else event.epsilon,
            unit=self._config.privacy.unit,
            adjacency="zero-out",
            delta=event.delta,
            against=event.against,
            bytes_up=event.bytes_up,
            bytes_down=event.bytes_down,
        )
        self._shown.round_end(event)


@contextmanager
def logged(deployment: Deployment, clock: Callable[[], str]) -> Iterator[Logged]:
    """Log a run, and answer Prometheus if the deployment says where, for the length of a block.

    Args:
        deployment: the server's own configuration.
        clock: gives RFC 3339 text.

    Raises:
        ConfigError: run file, log or address are not as they must be.
        ModuleNotFoundError: metrics are asked for, and prometheus_client is not installed.
    """
    config = load_config(Path(deployment.run_file))
    with ExitStack() as held:
        count = None
        if deployment.metrics:
            from securefed.operations.metrics import ServerMetrics, answering

            metrics = ServerMetrics()
            held.enter_context(answering(deployment.metrics, metrics.registry))
            count = metrics.count
        stream = held.enter_context(appended(Path(deployment.log))) if deployment.log else None
        log = Log(stream, clock, count=count)
        log.write(
            "started",
            version=securefed.__version__,
            run_file=config_digest(config),
            resume=deployment.resume,
        )
        try:
            yield Logged(Lines(), log, config)
        except SecureFedError as error:
            log.write("failed", kind=type(error).__name__, why=str(error))
            raise
        log.write("finished")
