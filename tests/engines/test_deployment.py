"""A SuperLink, three SuperNodes and three agents, each a process of its own."""

import tomllib
from pathlib import Path

import pytest
import tomli_w
from deployment import Processes, free_port, logged, until
from tiny import write_run

from securefed.engines.verify import verified_run
from securefed.training.models import weights_fingerprint

pytestmark = pytest.mark.deployment
pytest.importorskip("flwr", reason="the flower extra is not installed")

NAMES = ["site-0", "site-1", "site-2"]


def prepared(folder: Path, processes: Processes) -> Path:
    """Keys, roster, app, policies and everybody's data, made by the command line as an owner would."""
    run_file = write_run(
        folder,
        training={"rounds": 2},
        privacy={
            "sample_is_secret": False,
            "noise_multiplier": 0.8,
            "corrupt_fraction": 0.0,
            "dropout_fraction": 0.34,
            "expected_batch": 30,
        },
        cohort={"min_clients": 2},
    )
    server = processes.call("securefed", "keys", "new", folder / "server.pem").strip()
    enrol = []
    for name in NAMES:
        public = processes.call("securefed", "keys", "new", folder / f"{name}.pem").strip()
        enrol += ["--client", f"{name}={public}"]
    processes.call(
        "securefed", "keys", "enrol", folder / "roster.json", "--key", folder / "server.pem", *enrol
    )
    app = folder / "app"
    clients = [word for name in NAMES for word in ("--client", name)]
    processes.call("securefed", "flower", "init", run_file, app, "--server", server, *clients)
    for name in NAMES:
        path = app / "policies" / f"{name}.toml"
        policy = tomllib.loads(path.read_text())
        policy["runs"]["models"] = [weights_fingerprint(folder / "model")]
        policy["budget"]["epsilon"] = 1e4
        path.write_text(tomli_w.dumps(policy))
    return app


def start_agent(folder: Path, app: Path, name: str, processes: Processes) -> Path:
    """The owner's agent; its socket's path."""
    path = folder / f"{name}-socket" / "agent.sock"
    processes.start(
        name, "securefed", "client",
        "--policy", app / "policies" / f"{name}.toml",
        "--config", app / "run.toml",
        "--roster", folder / "roster.json",
        "--key", folder / f"{name}.pem",
        "--socket", path,
        "--accounts", folder / f"{name}-accounts",
        "--model", folder / "model",
        "--data", folder / "data",
        "--log", folder / f"{name}.log",
        "--offline",
    )  # fmt: skip
    return path


def connection(processes: Processes, **values: object) -> None:
    home = Path(processes.environment["FLWR_HOME"])
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"dep": values}}))


def test_three_agents_train_while_one_is_killed(tmp_path):
    with Processes(tmp_path / "processes") as processes:
        app = prepared(tmp_path, processes)
        sockets = {name: start_agent(tmp_path, app, name, processes) for name in NAMES}
        api, fleet, control = free_port(), free_port(), free_port()
        processes.start(
            "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", api,
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        until(lambda: all(path.exists() for path in sockets.values()), "agents", 180)
        for name in NAMES:
            processes.start(
                f"{name}-supernode", "flower-supernode", "--insecure",
                "--superlink", f"127.0.0.1:{api}", "--host", "127.0.0.1", "--port", free_port(),
                "--node-config", f'agent-socket="{sockets[name]}"',
            )  # fmt: skip
        connection(processes, address=f"127.0.0.1:{api}", insecure=True)
        processes.start("run", "flwr", "run", app, "dep", "--stream")
        log = tmp_path / "site-2.log"
        until(lambda: logged(log, event="invited", round=1, of="updates"), "round 1", 400)
        processes.kill("site-2")
        ledger = tmp_path / "runs" / "tiny" / "ledger.jsonl"
        until(lambda: ledger.exists() and '"closed"' in ledger.read_text(), "the end", 600)
    run = verified_run(tmp_path / "runs" / "tiny")
    assert run.finished
    assert run.history.applied == 2
    assert all(each == frozenset({"site-0", "site-1"}) for each in run.history.survivors.values())
