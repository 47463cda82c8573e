"""securefed's rounds against plain Flower FedAvg on the same training, over the same carrier.

Run by hand::

    python tests/bench/bench_deployment_overhead.py [--over memory deployment] [--clients 3] \
        [--rounds 3] [--turns 2] [--out FILE.jsonl]

Both sides train the same adapter of the same model on the same clients' data with the same local
steps; plain FedAvg is Flower's own strategy, with the adapter in an ArrayRecord and without a sum
of figures.  securefed adds clipping, noise, masks, signatures, accounts, ledger and witnesses.
They take turns, and medians over rounds are printed.  A round of securefed is its five stages and
the signing of the ledger's head.

``memory``: Flower's in-memory grid, all clients in this process, models loaded once on both sides:
what the protocol costs.  ``deployment``: a SuperLink and SuperNodes as processes on loopback; each
message starts a process, which on the plain side loads the model anew, while securefed's agents
keep theirs: what a round takes in practice.  CPU seconds are of the server's process, with all
clients in it over ``memory``.  Bytes are those of the messages' contents.

The model is tiny, so that training hides nothing of what carries it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import overhead_apps
import tomli_w
from deployed import World, write_deployment
from deployment import Processes, free_port, until
from flower_grid import Grid
from recorded_agents import listening, quiet

from securefed.engines.flower import client_app
from securefed.operations.log import Log

HERE = Path(__file__).resolve()
PRIVACY = {
    "unit": "client",
    "expected_batch": None,
    "noise_multiplier": 1.0,
    "corrupt_fraction": 0.0,
    "dropout_fraction": 0.34,
    "sample_is_secret": True,
}


def prepared(folder: Path, clients: int, rounds: int) -> tuple[World, dict[str, Any]]:
    """Run file, data, keys and roster of a tiny deployment, and where they lie."""
    world = write_deployment(
        folder,
        clients=clients,
        privacy=PRIVACY,
        training={"rounds": rounds, "local_steps": 4},
        cohort={"min_clients": clients},
        data={"clients": [f"site-{i}" for i in range(clients)]},
    )
    deployment = world.deployment.model_dump()
    deployment["stage_seconds"] = 600.0
    return world, {
        "clients": clients,
        "rounds": rounds,
        "stage_seconds": 600.0,
        "deployment": deployment,
        "out": str(folder / "run"),
        "cache": str(folder / "cache"),
        "model": str(folder / "model"),
        "data": str(folder / "data"),
        "initial": str(folder / "initial.npy"),
        "plain_times": str(folder / "plain.jsonl"),
        "secure_times": str(folder / "secure.jsonl"),
    }


@contextmanager
def agents(world: World, settings: dict[str, Any]) -> Iterator[list[Path]]:
    """An agent for each client, behind its socket; the settings learn what plain training needs."""
    with ExitStack() as held:
        sockets, sizes = [], {}
        for name in world.identities:
            site = world.site(name)
            sizes[name] = site.size
            agent = world.agent(
                name,
                site,
                floors={"units": ["client"], "max_dropout_fraction": 0.34,
                        "min_corrupt_fraction": 0.0, "max_clip_norm": 10.0, "exact_figures": False},
                budget={"epsilon": 1e9, "delta": 1e-4, "unit": "client"},
            )  # fmt: skip
            path = Path(held.enter_context(tempfile.TemporaryDirectory())) / "s" / "agent.sock"
            log: Log = quiet(world.folder / f"{name}.log")
            held.enter_context(listening(path, agent, log))
            sockets.append(path)
        np.save(settings["initial"], site._bench.parts.flat())
        settings["sizes"] = sizes
        settings["noise"] = PRIVACY["noise_multiplier"]
        settings["names"] = {str(s): n for s, n in zip(sockets, world.identities, strict=True)}
        path = world.folder / "overhead.json"
        path.write_text(json.dumps(settings))
        os.environ["OVERHEAD"] = str(path)
        yield sockets


def in_memory(sockets: list[Path], settings: dict[str, Any], side: str) -> None:
    """One run of one side over the in-memory grid."""
    app = client_app if side == "secure" else overhead_apps.plain_client
    serve = overhead_apps.serve_secure if side == "secure" else overhead_apps.serve_plain
    with Grid(app, sockets).running() as grid:
        serve(grid, settings)


APP = {
    "project": {"version": "0.1.0", "description": "bench", "license": {"text": "Apache-2.0"},
                "dependencies": []},
    "tool": {"flwr": {"app": {"publisher": "securefed", "config": {}}}},
}  # fmt: skip


def write_app(folder: Path, side: str) -> Path:
    """A Flower app of one side: names in overhead_apps."""
    client = "securefed.engines.flower" if side == "secure" else "overhead_apps"
    name = "client_app" if side == "secure" else "plain_client"
    place = folder / f"app_{side}"
    package = place / f"{side}_app"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for module, source in (
        ("server", f"from overhead_apps import {side}_server as app"),
        ("client", f"from {client} import {name} as app"),
    ):
        (package / f"{module}.py").write_text(f'{source}\n\n__all__ = ["app"]\n')
    values = json.loads(json.dumps(APP))
    values["project"]["name"] = f"bench-{side}"
    values["tool"]["flwr"]["app"]["components"] = {
        "serverapp": f"{side}_app.server:app",
        "clientapp": f"{side}_app.client:app",
    }
    (place / "pyproject.toml").write_text(tomli_w.dumps(values))
    return place


@contextmanager
def deployment(sockets: list[Path], settings: dict[str, Any], folder: Path) -> Iterator[Any]:
    """SuperLink and SuperNodes on loopback; what runs one side on them."""
    with Processes(folder / "processes") as processes:
        processes.environment |= {
            "PYTHONPATH": os.pathsep.join(
                map(str, (HERE.parents[2], HERE.parents[1], HERE.parent))
            ),
            "OVERHEAD": os.environ["OVERHEAD"],
        }
        port = free_port()
        processes.start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", port,
            "--insecure", "--disable-runtime-dependency-installation",
        )  # fmt: skip
        for number, path in enumerate(sockets):
            processes.start(
                f"supernode-{number}", "flower-supernode", "--superlink", f"127.0.0.1:{port}",
                "--host", "127.0.0.1", "--port", free_port(), "--insecure",
                "--node-config", f'agent-socket="{path}"',
            )  # fmt: skip
        home = Path(processes.environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        connection = {"address": f"127.0.0.1:{port}", "insecure": True}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"dep": connection}}))
        until(lambda: "running on" in processes.output("superlink"), "SuperLink", 300)
        apps = {side: write_app(folder, side) for side in ("plain", "secure")}

        def run(side: str) -> None:
            times = Path(settings[f"{side}_times"])
            before = len(times.read_text().splitlines()) if times.exists() else 0
            processes.call("flwr", "run", apps[side], "dep", timeout=600)
            wanted = before + settings["rounds"] - (side == "secure")
            until(
                lambda: times.exists() and len(times.read_text().splitlines()) >= wanted,
                f"{side} run",
                1800,
            )

        yield run


def medians(path: str) -> dict[str, float]:
    """Of all rounds that were timed."""
    rounds = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {
        "rounds": len(rounds),
        **{key: statistics.median(each[key] for each in rounds) for key in rounds[0]},
    }


def measured(over: str, clients: int, rounds: int, turns: int) -> dict[str, Any]:
    """Both sides in turn over one carrier."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as place:
        folder = Path(place)
        world, settings = prepared(folder, clients, rounds)
        with ExitStack() as held:
            sockets = held.enter_context(agents(world, settings))
            if over == "memory":

                def run(side: str) -> None:
                    in_memory(sockets, settings, side)
            else:
                run = held.enter_context(deployment(sockets, settings, folder))
            for turn in range(turns):
                for side in ("plain", "secure") if turn % 2 == 0 else ("secure", "plain"):
                    run(side)
        plain, secure = (medians(settings[f"{side}_times"]) for side in ("plain", "secure"))
        values = int(np.load(settings["initial"]).size)
    return {
        "what": "overhead",
        "over": over,
        "model": "tiny",
        "clients": clients,
        "values": values,
        "plain": plain,
        "secure": secure,
        "load": os.getloadavg()[0],
    }


def shown(found: dict[str, Any]) -> str:
    """Ratios first."""
    plain, secure = found["plain"], found["secure"]
    ratios = ", ".join(
        f"{secure[key] / plain[key]:.1f} times the {what} ({secure[key]:.2f} / {plain[key]:.2f})"
        for key, what in (
            ("seconds", "seconds"),
            ("cpu", "CPU seconds"),
            ("up", "bytes up"),
            ("down", "bytes down"),
        )
    )
    return (
        f"{found['over']:<10} {found['model']}, {found['clients']} clients, {found['values']} "
        f"values: {ratios}; {plain['rounds']} and {secure['rounds']} rounds"
    )


def main() -> None:
    """Measure over each carrier."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--over", nargs="*", default=["memory", "deployment"],
                        choices=["memory", "deployment"])  # fmt: skip
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append a line of JSON for each carrier")
    given = parser.parse_args()
    for over in given.over:
        found = measured(over, given.clients, given.rounds, given.turns)
        print(shown(found), flush=True)
        if given.out is not None:
            with given.out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(found, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
