"""Flower apps of the overhead bench: plain FedAvg, and securefed's rounds, on the same training.

The environment names a file (``OVERHEAD``) with where everything lies.  Both servers note when each
round began and ended, and what every message held, on the one grid that carried them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from recorded_agents import ONE_AT_A_TIME

from securefed.engines.flower import SOCKET, GridCourier

ROUND = ("advertise", "share", "masked_input", "consistency", "unmask", "head")


def given() -> dict[str, Any]:
    """Where things lie, and what is asked for."""
    found: dict[str, Any] = json.loads(Path(os.environ["OVERHEAD"]).read_text())
    return found


class Watched:
    """Every message that a grid sends and takes, with its bytes, in order of time."""

    def __init__(self, grid: Grid) -> None:
        self.carried: list[tuple[float, str, int]] = []
        push, pull = grid.push_messages, grid.pull_messages

        def pushed(messages: Any) -> Any:
            messages = list(messages)
            sizes = [bytes_of(each) for each in messages]
            now = time.time()
            self.carried += [(now, "down", size) for size in sizes]
            return push(messages)

        def pulled(ids: Any) -> Any:
            found = list(pull(ids))
            now = time.time()
            self.carried += [(now, "up", bytes_of(each)) for each in found]
            return found

        grid.push_messages, grid.pull_messages = pushed, pulled  # type: ignore[method-assign]

    def within(self, began: float, ended: float, way: str) -> int:
        return sum(size for at, what, size in self.carried if what == way and began <= at <= ended)


def bytes_of(message: Message) -> int:
    """What of a message goes over the wire, but for its headers."""
    return sum(len(each.deflate()) for each in get_all_nested_objects(message).values())


Moment = tuple[float, float]


def moment() -> Moment:
    """Wall seconds, and CPU seconds of this process."""
    return time.time(), time.process_time()


def write_rounds(path: str, watched: Watched, rounds: list[tuple[Moment, Moment]]) -> None:
    """A line a round: seconds and bytes."""
    with Path(path).open("a", encoding="utf-8") as lines:
        for (began, cpu_before), (ended, cpu_after) in rounds:
            found = {
                "seconds": ended - began,
                "cpu": cpu_after - cpu_before,
                "up": watched.within(began, ended, "up"),
                "down": watched.within(began, ended, "down"),
            }
            lines.write(json.dumps(found) + "\n")


class Timed(FedAvg):
    """Flower's FedAvg, and when its rounds began and ended."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rounds: list[tuple[Moment, Moment]] = []
        self._began = moment()

    def configure_train(self, *args: Any, **options: Any) -> Any:
        self._began = moment()
        return super().configure_train(*args, **options)

    def aggregate_train(self, *args: Any, **options: Any) -> Any:
        found = super().aggregate_train(*args, **options)
        self.rounds.append((self._began, moment()))
        return found


class TimedCourier:
    """Flower's grid as securefed uses it, and when its rounds began and ended."""

    def __init__(self, courier: GridCourier) -> None:
        self._courier = courier
        self._spans: list[tuple[str, Moment, Moment]] = []

    def nodes(self, wanted: int) -> list[int]:
        return self._courier.nodes(wanted)

    def exchange(self, requests: Mapping[int, bytes], *, what: str) -> Mapping[int, bytes]:
        began = moment()
        replies = self._courier.exchange(requests, what=what)
        self._spans.append((what, began, moment()))
        return replies

    @property
    def rounds(self) -> list[tuple[Moment, Moment]]:
        """Those whose stages follow each other, the signing of the head the last."""
        names = [what for what, _, _ in self._spans]
        starts = [i for i in range(len(names)) if tuple(names[i : i + len(ROUND)]) == ROUND]
        return [(self._spans[i][1], self._spans[i + len(ROUND) - 1][2]) for i in starts]


def serve_plain(grid: Grid, settings: dict[str, Any]) -> None:
    """FedAvg on the flat adapter."""
    import numpy as np

    watched = Watched(grid)
    count, rounds = settings["clients"], settings["rounds"]
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=count, min_available_nodes=count)
    begin = ArrayRecord({"adapter": Array(np.load(settings["initial"]))})
    result = strategy.start(grid, begin, num_rounds=rounds, timeout=settings["stage_seconds"])
    trained = result.arrays["adapter"].numpy()
    if len(strategy.rounds) != rounds or np.array_equal(trained, np.load(settings["initial"])):
        raise SystemExit(f"{len(strategy.rounds)} of {rounds} rounds, or nothing was trained")
    write_rounds(settings["plain_times"], watched, strategy.rounds)


def serve_secure(grid: Grid, settings: dict[str, Any]) -> None:
    """The rounds of :func:`~securefed.engines.remote_federation.federate`."""
    from securefed.engines.events import Silent
    from securefed.engines.remote_federation import Deployment, federate

    watched = Watched(grid)
    courier = TimedCourier(
        GridCourier(
            grid,
            stage_seconds=settings["stage_seconds"],
            wait_seconds=settings["stage_seconds"],
        )
    )
    deployment = settings["deployment"] | {"out": f"{settings['out']}-{time.time_ns()}"}
    result = federate(Deployment(**deployment), courier, observer=Silent())
    if result.rounds != settings["rounds"]:
        raise SystemExit(f"{result.rounds} of {settings['rounds']} rounds")
    write_rounds(settings["secure_times"], watched, courier.rounds)


class PlainTraining:
    """A client's model and data, and its local steps: just those of its securefed site."""

    def __init__(self, site: Any, name: str, sizes: dict[str, int], noise: float) -> None:
        self._bench, self._name = site._bench, name
        self._settings = site._settings(tuple(sorted(sizes.items())), noise)
        self._bench.sizes = self._settings.sizes

    def step(self, flat: Any, number: int) -> tuple[Any, int]:
        self._bench.begin_round(number)
        self._bench.parts.load_flat(flat)
        examples = self._bench.clients[self._name].train
        return flat + self._bench._delta(self._name, self._settings, examples, number), len(
            examples
        )


_kept: dict[str, PlainTraining] = {}


def training_of(name: str, settings: dict[str, Any]) -> PlainTraining:
    """Loaded once in a process; in a deployment a process lives for one message."""
    if name not in _kept:
        from securefed.config import load_config
        from securefed.engines.events import Silent
        from securefed.engines.site import TrainingSite

        site = TrainingSite(
            load_config(Path(settings["deployment"]["run_file"])),
            client=name,
            cache=Path(settings["cache"]),
            offline=True,
            observer=Silent(),
            model=settings["model"],
            data=settings["data"],
        )
        _kept[name] = PlainTraining(site, name, settings["sizes"], settings["noise"])
    return _kept[name]


plain_client = ClientApp()
plain_server, secure_server = ServerApp(), ServerApp()


@plain_client.train()
def train(message: Message, context: Context) -> Message:
    """Local steps from what the server sent."""
    settings = given()
    name = settings["names"][str(context.node_config[SOCKET])]
    flat = message.content["arrays"]["adapter"].numpy()
    with ONE_AT_A_TIME:  # as agents do that share a process
        trained, examples = training_of(name, settings).step(flat, 1)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"adapter": Array(trained)}),
            "metrics": MetricRecord({"num-examples": examples}),
        }
    )
    return Message(content, reply_to=message)


@plain_server.main()
def plain(grid: Grid, context: Context) -> None:
    """In a deployment."""
    serve_plain(grid, given())


@secure_server.main()
def secure(grid: Grid, context: Context) -> None:
    """In a deployment."""
    serve_secure(grid, given())
