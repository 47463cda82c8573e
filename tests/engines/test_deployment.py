"""A SuperLink, three SuperNodes and three agents, each a process of its own."""

import tomllib
from pathlib import Path

import pytest
import tomli_w
from deployment import (
    Processes,
    free_port,
    listens_on,
    logged,
    until,
    write_certificates,
    write_node_key,
)
from tiny import write_run

from securefed.engines.verify import verified_run, verify_run

pytestmark = pytest.mark.deployment

NAMES = ["site-0", "site-1", "site-2"]


def prepared(folder: Path, processes: Processes) -> Path:
    """Keys, roster, app and policies, by the command line as people would make them."""
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
    processes.environment["SECUREFED_DEPLOYMENT"] = str(app / "deployment.toml")
    for name in NAMES:
        path = app / "policies" / f"{name}.toml"
        policy = tomllib.loads(path.read_text())
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


def start_superlink(processes: Processes, port: int, *words: object) -> None:
    processes.start(
        "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", port,
        "--disable-runtime-dependency-installation", *words,
    )  # fmt: skip


def start_node(processes: Processes, name: str, port: int, path: Path, *words: object) -> None:
    processes.start(
        f"{name}-supernode", "flower-supernode", "--superlink", f"127.0.0.1:{port}",
        "--host", "127.0.0.1", "--port", free_port(),
        "--node-config", f'agent-socket="{path}"', *words,
    )  # fmt: skip


def closed_and_signed(ledger: Path) -> bool:
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return any('"closed"' in line for line in lines) and '"witnessed"' in lines[-1]


def train_and_kill_one(folder: Path, app: Path, processes: Processes) -> None:
    """Start the run; kill one agent as soon as it is in the first round; wait for the end."""
    processes.start("run", "flwr", "run", app, "dep", "--stream")
    log, ledger = folder / "site-2.log", folder / "runs" / "tiny" / "ledger.jsonl"
    until(lambda: logged(log, event="invited", round=1, of="updates"), "round 1", 400)
    processes.kill("site-2")
    until(lambda: closed_and_signed(ledger), "the end", 600)


def check_finished(folder: Path) -> None:
    verdict = verify_run(folder / "runs" / "tiny", folder / "roster.public.json")
    assert verdict.finished
    assert verdict.anchored
    assert verdict.incomplete == []  # two of three clients have signed each head
    run = verified_run(folder / "runs" / "tiny")
    assert run.history.applied == 2
    assert all(each == frozenset({"site-0", "site-1"}) for each in run.history.survivors.values())


def test_three_agents_train_while_one_is_killed(tmp_path):
    with Processes(tmp_path / "processes") as processes:
        app = prepared(tmp_path, processes)
        sockets = {name: start_agent(tmp_path, app, name, processes) for name in NAMES}
        port = free_port()
        start_superlink(processes, port, "--insecure")
        until(lambda: all(path.exists() for path in sockets.values()), "agents", 180)
        for name in NAMES:
            start_node(processes, name, port, sockets[name], "--insecure")
        connection(processes, address=f"127.0.0.1:{port}", insecure=True)
        train_and_kill_one(tmp_path, app, processes)
    check_finished(tmp_path)


def test_the_same_over_tls_with_registered_nodes_alone(tmp_path):
    write_certificates(tmp_path)
    tls = ("--ssl-ca-certfile", tmp_path / "ca.crt", "--ssl-certfile", tmp_path / "tls.crt",
           "--ssl-keyfile", tmp_path / "tls.key")  # fmt: skip
    with Processes(tmp_path / "processes") as processes:
        app = prepared(tmp_path, processes)
        sockets = {name: start_agent(tmp_path, app, name, processes) for name in NAMES}
        port = free_port()
        start_superlink(processes, port, *tls, "--enable-supernode-auth")
        until(lambda: all(path.exists() for path in sockets.values()), "agents", 180)
        connection(
            processes,
            **{"address": f"127.0.0.1:{port}", "root-certificates": str(tmp_path / "ca.crt")},
        )
        until(lambda: "running on" in processes.output("superlink"), "SuperLink")
        for name in [*NAMES, "stranger"]:
            key = tmp_path / f"{name}-node-key"
            write_node_key(key)
            if name != "stranger":
                processes.call("flwr", "supernode", "register", f"{key}.pub", "dep")
            path = sockets.get(name, sockets["site-0"])
            trust = ("--root-certificates", tmp_path / "ca.crt")
            own = ("--auth-supernode-private-key", key)
            start_node(processes, name, port, path, *trust, *own, *tls)
        stranger = processes.started["stranger-supernode"]
        until(lambda: stranger.poll() is not None, "refusal of the unregistered node")
        assert stranger.returncode != 0
        assert "Exit Code: 305" in processes.output("stranger-supernode")
        assert "No SuperNode found with the given public key" in processes.output("superlink")
        train_and_kill_one(tmp_path, app, processes)
        for name, process in processes.started.items():
            if process.poll() is None:
                assert listens_on(process) <= {"127.0.0.1"}, name
                assert listens_on(process) or "site" in name or name == "run"
    check_finished(tmp_path)
