"""What an operator does to a running agent: scrape it, give it a roster, revoke it."""

import signal
import urllib.request
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

pytestmark = pytest.mark.deployment


def prepared(folder, processes):
    """Keys, roster, run file and policies of three clients, by the command line."""
    run_file = write_run(folder, privacy={"sample_is_secret": False, "noise_multiplier": 0.8})
    server = processes.call("securefed", "keys", "new", folder / "server.pem").strip()
    enrol, clients = [], []
    for name in ("site-0", "site-1", "site-2"):
        public = processes.call("securefed", "keys", "new", folder / f"{name}.pem").strip()
        enrol += ["--client", f"{name}={public}"]
        clients += ["--client", name]
    key = ("--key", folder / "server.pem")
    processes.call("securefed", "keys", "enrol", folder / "roster.json", *key, *enrol)
    app = folder / "app"
    processes.call("securefed", "flower", "init", run_file, app, "--server", server, *clients)
    return app


def test_an_agent_takes_later_rosters_alone_and_ends_when_it_is_revoked(tmp_path):
    with Processes(tmp_path / "processes") as processes:
        app = prepared(tmp_path, processes)
        roster, log = tmp_path / "roster.json", tmp_path / "site-0.log"
        place = f"127.0.0.1:{free_port()}"
        agent = processes.start(
            "site-0", "securefed", "client",
            "--policy", app / "policies" / "site-0.toml",
            "--config", app / "run.toml",
            "--roster", roster,
            "--key", tmp_path / "site-0.pem",
            "--socket", tmp_path / "site-0" / "agent.sock",
            "--accounts", tmp_path / "site-0-accounts",
            "--model", tmp_path / "model",
            "--data", tmp_path / "data",
            "--log", log,
            "--metrics", place,
            "--offline",
        )  # fmt: skip
        until(lambda: logged(log, event="listening"), "agent", 300)

        def serial() -> str:
            with urllib.request.urlopen(f"http://{place}/metrics", timeout=60) as reply:
                text = reply.read().decode()
            return next(x for x in text.splitlines() if x.startswith("securefed_agent_roster"))

        assert listens_on(agent) == {"127.0.0.1"}
        assert serial().endswith(" 1.0")
        older = roster.read_bytes()
        key = ("--key", tmp_path / "server.pem")
        processes.call("securefed", "keys", "revoke", roster, "site-2", *key)
        agent.send_signal(signal.SIGHUP)
        until(lambda: logged(log, event="roster", serial=2), "the later roster", 60)
        assert serial().endswith(" 2.0")
        later = roster.read_bytes()
        roster.write_bytes(older)
        agent.send_signal(signal.SIGHUP)
        until(lambda: logged(log, event="refused", request="roster"), "refusal", 60)
        assert agent.poll() is None
        assert serial().endswith(" 2.0")
        roster.write_bytes(later)
        processes.call("securefed", "keys", "revoke", roster, "site-0", *key)
        agent.send_signal(signal.SIGHUP)
        assert agent.wait(timeout=60) == 2
        assert logged(log, event="revoked")
        assert not (tmp_path / "site-0" / "agent.sock").exists()


def test_a_node_that_is_unregistered_is_served_no_more(tmp_path):
    write_certificates(tmp_path)
    tls = ("--ssl-ca-certfile", tmp_path / "ca.crt", "--ssl-certfile", tmp_path / "tls.crt",
           "--ssl-keyfile", tmp_path / "tls.key")  # fmt: skip
    key, port = tmp_path / "node", free_port()
    write_node_key(key)
    with Processes(tmp_path / "processes") as processes:
        processes.start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", port,
            "--disable-runtime-dependency-installation", "--enable-supernode-auth", *tls,
        )  # fmt: skip
        home = Path(processes.environment["FLWR_HOME"])
        home.mkdir()
        trust = {"address": f"127.0.0.1:{port}", "root-certificates": str(tmp_path / "ca.crt")}
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"dep": trust}}))
        until(lambda: "running on" in processes.output("superlink"), "SuperLink", 300)
        processes.call("flwr", "supernode", "register", f"{key}.pub", "dep", timeout=300)

        def start(name: str) -> None:
            processes.start(
                name, "flower-supernode", "--superlink", f"127.0.0.1:{port}",
                "--host", "127.0.0.1", "--port", free_port(),
                "--root-certificates", tmp_path / "ca.crt", *tls,
                "--auth-supernode-private-key", key, "--node-config", 'agent-socket="none"',
            )  # fmt: skip

        start("node")
        until(lambda: "SuperNode ID" in processes.output("node"), "SuperNode", 300)
        said = processes.output("node")
        (number,) = [x.split()[-1] for x in said.splitlines() if "SuperNode ID" in x]
        assert number in processes.call("flwr", "supernode", "list", "dep", timeout=300)
        processes.call("flwr", "supernode", "unregister", number, "dep", timeout=300)
        running = processes.started["node"]
        until(lambda: running.poll() is not None, "the end of the node that ran", 600)
        assert running.returncode != 0
        start("again")
        again = processes.started["again"]
        until(lambda: again.poll() is not None, "refusal of the node", 300)
        assert "Exit Code: 305" in processes.output("again")
