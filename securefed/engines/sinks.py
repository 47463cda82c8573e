"""Where the figures of a run's rounds can go besides the run folder: other people's dashboards.

A sink takes public events alone (:meth:`~securefed.engines.events.RoundEvent.public`) and writes
numbers: no text, no client's name, nothing measured that tells how much was drawn.  All three write
to files of this machine; what sends these on is the user's own command (``wandb sync``, say).
"""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from securefed.engines.events import RoundEvent
from securefed.errors import ConfigError

_NAMES = {
    "survivors": "survivors",
    "cohort": "cohort",
    "silent": "silent",
    "perplexity": "held_out_perplexity",
    "accuracy": "held_out_accuracy",
    "bytes_up": "bytes_up_per_client",
    "bytes_down": "bytes_down_per_client",
    "clip_norm": "clip_norm",
    "unclipped_fraction": "unclipped_fraction",
    "virtual_seconds": "virtual_seconds",
}
"""What is written of an event besides epsilon, and what it is called there."""


def figures_of(event: RoundEvent) -> dict[str, float]:
    """The numbers of an event by name; epsilon's own name says against whom, and delta.

    Example:
        >>> event = RoundEvent(round=1, rounds=2, survivors=5, cohort=6, epsilon=2.0,
        ...     against="server", delta=1e-5, perplexity=None, accuracy=None, bytes_up=1.0,
        ...     bytes_down=1.0, client_seconds=9.0, seconds=9.0)
        >>> figures_of(event)["epsilon_against_server_delta_1e-05"]
        2.0
    """
    public = event.public()
    found = {
        name: float(value)
        for field, name in _NAMES.items()
        if (value := getattr(public, field)) is not None
    }
    if public.round and public.epsilon is not None:
        found[f"epsilon_against_{public.against}_delta_{public.delta:g}"] = public.epsilon
    return found


class Sink(ABC):
    """Takes events; for ``Federation(on_round_end=...)``, within a ``with`` block.

    Args:
        folder: where it writes; is made.
        run: what the run is called there.
        about: what epsilon speaks of, in words; it stands beside the figures.

    Raises:
        ConfigError: the library is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, *, run: str, about: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"sink folder {folder}: {error.strerror}") from None

    def __call__(self, event: RoundEvent) -> None:
        """Write the figures of a round."""
        self.write(event.round, figures_of(event))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def write(self, step: int, figures: dict[str, float]) -> None:
        """Write figures of round ``step``."""

    @abstractmethod
    def close(self) -> None:
        """Flush, and end the run there."""


class TensorBoardSink(Sink):
    """Event files for ``tensorboard --logdir FOLDER``."""

    def __init__(self, folder: Path, *, run: str, about: str) -> None:
        _library("tensorboard", "tensorboard")
        super().__init__(folder, run=run, about=about)
        self._writer: Any = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter(
            str(folder / run)
        )
        self._writer.add_text("about", about)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One scalar a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflowSink(Sink):
    """An MLflow run in a file store, for ``mlflow ui --backend-store-uri FOLDER``.

    MLflow keeps no new features for file stores and asks that their use be stated; this does it by
    ``MLFLOW_ALLOW_FILE_STORE``.  Its telemetry is switched off in this process.
    """

    def __init__(self, folder: Path, *, run: str, about: str) -> None:
        super().__init__(folder, run=run, about=about)
        # Read when it is imported.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        module = _library("mlflow.tracking", "mlflow-skinny")
        self._client: Any = module.MlflowClient(tracking_uri=folder.absolute().as_uri())
        known = self._client.get_experiment_by_name("securefed")
        number = known.experiment_id if known else self._client.create_experiment("securefed")
        self._run = self._client.create_run(
            number, run_name=run, tags={"about": about, "mlflow.user": ""}
        )

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One metric a figure."""
        for name, value in figures.items():
            self._client.log_metric(self._run.info.run_id, name, value, step=step)

    def close(self) -> None:
        """End the run there."""
        self._client.set_terminated(self._run.info.run_id)


class WandbSink(Sink):
    """A Weights & Biases run in offline mode: nothing is sent until ``wandb sync`` is called.

    What wandb would add of its own (machine, source code, packages, console) is switched off as
    far as its settings go; its logs beside the run hold paths of this machine.
    """

    def __init__(self, folder: Path, *, run: str, about: str) -> None:
        module = _library("wandb", "wandb")
        super().__init__(folder, run=run, about=about)
        self._run: Any = module.init(
            mode="offline",
            project="securefed",
            name=run,
            notes=about,
            dir=str(folder),
            settings=module.Settings(
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                host="unnamed",
                console="off",
                silent=True,
            ),
        )

    def write(self, step: int, figures: dict[str, float]) -> None:
        """All figures of a round at once."""
        self._run.log(figures, step=step)

    def close(self) -> None:
        """End the run there."""
        self._run.finish()


SINKS: dict[str, Callable[..., Sink]] = {
    "tensorboard": TensorBoardSink,
    "mlflow": MLflowSink,
    "wandb": WandbSink,
}


def open_sink(kind: str, folder: Path, *, run: str, about: str) -> Sink:
    """A sink by its kind.

    Raises:
        ConfigError: there is no such kind, its library is not installed, or the folder cannot be
            written.
    """
    if kind not in SINKS:
        raise ConfigError(f"--sink {kind!r}: must be one of {', '.join(SINKS)}")
    return SINKS[kind](folder, run=run, about=about)


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"sink: needs {package}, which is not installed ({error}); in the clone of securefed, "
            "pip install -c constraints.txt -e '.[watch]'"
        ) from None
