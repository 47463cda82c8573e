"""What a pilot has measured, as it is kept in ``pilot.json``.  Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from securefed.errors import ConfigError

FORMAT = 1
FILE = "pilot.json"

Group = Literal["base", "baseline", "protection", "sweep"]
Metric = Literal["perplexity", "accuracy"]
Status = Literal["done", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Held-out figures before and after, outside every guarantee.

    Attributes:
        metric: perplexity falls, accuracy rises, where training helps.
        before: mean over clients of the untrained model.
        after: mean over clients at the end.
        worst_before, worst_after: of the worst client; None where clients' own figures must not be
            seen.
        clients: by name, each client's figure at the end; empty where they must not be seen.
    """

    metric: Metric
    before: float
    after: float
    worst_before: float | None = None
    worst_after: float | None = None
    clients: Mapping[str, float] = field(default_factory=dict)

    @property
    def improvement(self) -> float:
        """Of perplexity: the share by which it fell.  Of accuracy: the gain, as a share."""
        if self.metric == "perplexity":
            return 1.0 - self.after / self.before
        return self.after - self.before


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one trial costs, measured.

    Attributes:
        values: numbers that are trained and summed; all parameters for full fine-tuning.
        bytes_up, bytes_down: mean of a client and round, as carried; 0 where nothing is sent.
        client_seconds: CPU seconds of a client and round, by phase (mean).
        server_seconds: CPU seconds of the server and round, by phase (mean).
        memory_bytes: most resident memory of the process that simulates all parties; None where
            it would tell a secret.
        storage_bytes: at a client, by what it is: base model, adapter, own part, account.
        estimated: names of figures above that are not measured but follow from a stated formula.
    """

    values: int
    bytes_up: float
    bytes_down: float
    client_seconds: Mapping[str, float]
    server_seconds: Mapping[str, float]
    memory_bytes: int | None
    storage_bytes: Mapping[str, int]
    estimated: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to train, tried once.

    Attributes:
        name: ``"base"``, ``"rank = 2"``, ``"full fine-tuning"``; the same for all of its seeds.
        group: what it is for.
        varied: run-file paths that differ from the base run, with their values.
        seed: of the adapter.
        status: ``"skipped"`` where time or budget did not reach for it.
        why: of a skipped trial, in words; otherwise what should be known of it, or nothing.
        clients, rounds: how many.
        quality, cost: None for a skipped one.
        guarantees: privacy statements as records; empty where nothing holds.
        epsilon: against the accounted adversary; None where nothing holds.
        seconds: by the clock, loading left out.
        folder: of its run, inside the pilot's; empty where there is none.
    """

    name: str
    group: Group
    varied: Mapping[str, Any]
    seed: int
    status: Status = "done"
    why: str = ""
    clients: int = 0
    rounds: int = 0
    quality: Quality | None = None
    cost: Cost | None = None
    guarantees: tuple[Mapping[str, Any], ...] = ()
    epsilon: float | None = None
    seconds: float = 0.0
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class PilotRecord:
    """All of a pilot.

    Attributes:
        config: the pilot file, resolved.
        run: the run file, resolved.
        software: name and version.
        machine: cores, threads and processor, in words.
        public: whether the data is.
        spent: epsilon and delta of all trials together; empty on public data.
        trials: in the order of running.
        seconds: by the clock, of all of it.
        units: CPU seconds of the masking protocol's steps on this machine, by name, as in
            :class:`~securefed.federation.costs.UnitCosts`; empty where they were not measured.
    """

    config: Mapping[str, Any]
    run: Mapping[str, Any]
    software: str
    machine: Mapping[str, Any]
    public: bool
    spent: Mapping[str, float]
    trials: tuple[Trial, ...]
    seconds: float
    units: Mapping[str, float] = field(default_factory=dict)

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps({"format": FORMAT} | asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Back from :meth:`to_text`.

        Raises:
            ConfigError: the file is missing, or is not such a record.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ConfigError(f"{path}: is not a pilot's record of format {FORMAT}")
            trials = tuple(trial_of(trial) for trial in values.pop("trials"))
            return cls(trials=trials, **values)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: is not a pilot's record ({error})") from None


def trial_of(values: dict[str, Any]) -> Trial:
    """A trial back from its fields as JSON values."""
    quality, cost = values.pop("quality"), values.pop("cost")
    if cost is not None:
        cost["estimated"] = tuple(cost["estimated"])
    return Trial(
        quality=None if quality is None else Quality(**quality),
        cost=None if cost is None else Cost(**cost),
        guarantees=tuple(values.pop("guarantees")),
        **values,
    )
