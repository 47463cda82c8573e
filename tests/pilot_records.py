"""Records whose figures are made up, round enough to be reckoned by hand.  Nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from securefed.pilot.records import Cost, Group, Metric, PilotRecord, Quality, Trial

RUN: dict[str, Any] = {
    "model": {"source": "builtin:made-up"},
    "data": {"source": "/somewhere/private/letters"},
    "privacy": {
        "mechanism": "distributed",
        "noise_multiplier": 0.6,
        "corrupt_fraction": 0.1,
        "dropout_fraction": 0.25,
    },
    "aggregation": {"kind": "pairwise", "masked": False, "bits": "auto"},
}


def guarantee(epsilon: float | str = 2.5, against: str = "server") -> dict[str, Any]:
    return {
        "against": against,
        "unit": "one example (a row of one client's data; not a document and not a person)",
        "adjacency": "zero-out of one example",
        "epsilon": epsilon,
        "delta": 1e-5,
        "rounds": 5,
        "accountant": "made up",
        "mechanism": "made up",
        "sampling": "made up",
        "trust": "made up",
        "assumptions": ["these figures are made up"],
    }


def cost(
    *,
    up: float = 600_000.0,
    down: float = 400_000.0,
    seconds: Mapping[str, float] | None = None,
    server: Mapping[str, float] | None = None,
    values: int = 1000,
    memory: int | None = 2**30,
    estimated: tuple[str, ...] = (),
) -> Cost:
    return Cost(
        values=values,
        bytes_up=up,
        bytes_down=down,
        client_seconds={"train": 1.5, "mask": 0.5} if seconds is None else seconds,
        server_seconds={"sum": 1.0} if server is None else server,
        memory_bytes=memory,
        storage_bytes={"base model": 1_000_000, "adapter": 1000},
        estimated=estimated,
    )


def trial(
    name: str = "base",
    group: Group = "base",
    *,
    after: float = 40.0,
    before: float = 50.0,
    metric: Metric = "perplexity",
    epsilon: float | None = 2.5,
    seed: int = 1,
    varied: Mapping[str, Any] | None = None,
    costs: Cost | None = None,
    clients: int = 10,
    rounds: int = 5,
    worst: tuple[float, float] | None = (60.0, 55.0),
    folder: str = "",
    why: str = "",
) -> Trial:
    return Trial(
        name=name,
        group=group,
        varied=varied or {},
        seed=seed,
        why=why,
        clients=clients,
        rounds=rounds,
        quality=Quality(
            metric=metric,
            before=before,
            after=after,
            worst_before=worst[0] if worst else None,
            worst_after=worst[1] if worst else None,
        ),
        cost=cost() if costs is None else costs,
        guarantees=() if epsilon is None else (guarantee(epsilon), guarantee(1.0, "release")),
        epsilon=epsilon,
        seconds=3.0,
        folder=folder,
    )


def skipped(name: str, group: Group = "sweep", **given: Any) -> Trial:
    return Trial(
        name=name,
        group=group,
        varied=given.get("varied", {}),
        seed=1,
        status="skipped",
        why=given.get("why", "time did not reach for it"),
    )


def record(*trials: Trial, **given: Any) -> PilotRecord:
    """A pilot of these trials; ``given`` are sections of its file, or fields of the record."""
    sections = {
        key: given.pop(key)
        for key in list(given)
        if key
        in ("decision", "prices", "projection", "sweep", "language", "name", "baselines", "seeds")
    }
    public = given.pop("public", True)
    config: dict[str, Any] = {"run": "run.toml", "data": {"public": public}} | sections
    if not public:
        config["budget"] = {"epsilon": 8.0}
    return PilotRecord(
        config=config,
        run=given.pop("run", RUN),
        software="securefed 0.0 (made up)",
        machine={"cores": 2, "processor": "made up"},
        public=public,
        spent={} if public else {"epsilon": 5.0, "delta": 2e-5},
        trials=trials,
        seconds=100.0,
        **given,
    )


ALONE_AT_45 = trial("clients alone", "baseline", after=45.0, epsilon=None)
"""Clients alone that gain 10 %."""


def full_pilot(**given: Any) -> PilotRecord:
    """All kinds of trials, for the page as a whole."""
    bare = {"privacy.mechanism": "none"}
    heavy = cost(up=3_000_000.0, down=2_400_000.0, seconds={"train": 1.5, "encrypt": 1.2})
    return record(
        trial(after=40.0, folder="runs/01-base"),
        trial("clients alone", "baseline", after=45.0, epsilon=None, costs=cost(up=0, down=0)),
        trial(
            "pooled training",
            "baseline",
            after=33.0,
            epsilon=None,
            costs=cost(up=0, down=0, seconds={}, server={"train": 1.0}),
        ),
        trial(
            "full fine-tuning",
            "baseline",
            after=34.0,
            epsilon=None,
            costs=cost(
                up=5.4e8, down=5.4e8, values=135_000_000, estimated=("bytes_up", "bytes_down")
            ),
            why="all parameters, no clip and no noise",
        ),
        trial("no protection", "protection", after=36.0, epsilon=None, varied=bare,
              costs=cost(up=100_000, down=100_000, seconds={"train": 1.4})),
        trial("clip alone", "protection", after=37.0, epsilon=None, varied=bare,
              costs=cost(up=100_000, down=100_000, seconds={"train": 1.4, "clip": 0.1})),
        trial("clip and noise", "protection", after=39.5, epsilon=None,
              costs=cost(up=100_000, down=100_000, seconds={"train": 1.4, "clip": 0.13})),
        trial("masks alone", "protection", after=36.0, epsilon=None, varied=bare,
              costs=cost(seconds={"train": 1.4, "mask": 0.5})),
        trial("encryption alone", "protection", after=36.1, epsilon=None, varied=bare,
              costs=heavy),
        trial("bits = 20", "sweep", after=40.4, varied={"aggregation.bits": 20},
              costs=cost(up=550_000), folder="runs/10-bits-20"),
        trial("epsilon = 1", "sweep", after=47.0, epsilon=0.998,
              varied={"privacy.target_epsilon": 1.0, "privacy.noise_multiplier": None}),
        trial("epsilon = 8", "sweep", after=38.6, epsilon=7.99,
              varied={"privacy.target_epsilon": 8.0, "privacy.noise_multiplier": None}),
        trial("aggregation = bfv", "sweep", after=40.1, varied={"aggregation.kind": "bfv"},
              costs=heavy),
        trial("rank = 2", "sweep", after=41.5, varied={"lora.rank": 2, "lora.alpha": 4.0},
              costs=cost(up=500_000, down=350_000)),
        trial("rank = 16", "sweep", after=39.2, varied={"lora.rank": 16, "lora.alpha": 32.0},
              costs=cost(up=900_000, down=700_000)),
        skipped("sharing = fedit", varied={"lora.sharing": "fedit"},
                why="it would not end within minutes = 30 by the trials before it"),
        **({"prices": {"per_gb": 0.05, "per_device_hour": 0.02, "per_server_hour": 0.4},
            "sweep": {"bits": [20], "epsilon": [1.0, 8.0], "aggregation": ["bfv"],
                      "rank": [2, 16], "sharing": ["fedit"]},
            "decision": {"least_improvement": 0.15, "share_of_full": 0.5, "epsilon": 3.0,
                         "megabytes_per_round": 4.0, "client_seconds_per_round": 60.0,
                         "memory_gib": 4.0}} | given),
    )  # fmt: skip
