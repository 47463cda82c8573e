"""What an operator does to a running agent: scrape it, give it a roster, revoke it."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
import tomli_w
from deployment import (
    NAMES,
    Machines,
    Processes,
    free_port,
    listens_on,
    logged,
    until,
    write_certificates,
    write_node_key,
)
from hostile_app import hostile
from tiny import write_run

pytestmark = pytest.mark.deployment

SIGN = Path(__file__).parents[2] / "examples" / "sign_app.py"
GUIDE = Path(__file__).parents[2] / "examples" / "guides" / "deployment.md"
NGINX, REGISTRY = re.findall(
    r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL
)


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


class Link:
    """A SuperLink over TLS for registered nodes, and what is started beside it."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        write_certificates(folder)
        self.folder, self.processes, self.port = folder, processes, free_port()
        self.tls = ("--ssl-ca-certfile", folder / "ca.crt", "--ssl-certfile", folder / "tls.crt",
                    "--ssl-keyfile", folder / "tls.key")  # fmt: skip
        processes.start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", self.port,
            "--disable-runtime-dependency-installation", "--enable-supernode-auth", *self.tls,
        )  # fmt: skip
        self.name("dep", self.port)
        until(lambda: "running on" in processes.output("superlink"), "SuperLink", 300)

    def name(self, connection: str, port: int) -> None:
        home = Path(self.processes.environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        trust = {
            "address": f"127.0.0.1:{port}",
            "root-certificates": str(self.folder / "ca.crt"),
        }
        with (home / "config.toml").open("a") as file:
            file.write(tomli_w.dumps({"superlink": {connection: trust}}))

    def call(self, *words: object) -> str:
        return self.processes.call("flwr", *words, timeout=300)

    def node(self, name: str, key: Path, port: int | None = None):
        return self.processes.start(
            name, "flower-supernode", "--superlink", f"127.0.0.1:{port or self.port}",
            "--host", "127.0.0.1", "--port", free_port(),
            "--root-certificates", self.folder / "ca.crt", *self.tls,
            "--auth-supernode-private-key", key, "--node-config", 'agent-socket="none"',
        )  # fmt: skip

    def number(self, name: str) -> str:
        """Of a node, once it is served."""
        until(lambda: "SuperNode ID" in self.processes.output(name), name, 300)
        said = self.processes.output(name).splitlines()
        (found,) = [line.split()[-1] for line in said if "SuperNode ID" in line]
        return found


def test_a_node_that_is_unregistered_is_served_no_more(tmp_path):
    key = tmp_path / "node"
    write_node_key(key)
    with Processes(tmp_path / "processes") as processes:
        link = Link(tmp_path, processes)
        link.call("supernode", "register", f"{key}.pub", "dep")
        running = link.node("node", key)
        number = link.number("node")
        assert number in link.call("supernode", "list", "dep")
        link.call("supernode", "unregister", number, "dep")
        until(lambda: running.poll() is not None, "the end of the node that ran", 600)
        again = link.node("again", key)
        until(lambda: again.poll() is not None, "refusal of the node", 300)
        assert "Exit Code: 305" in processes.output("again")


def nginx() -> str:
    found = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert found is not None, (
        "this test runs what the guide gives to nginx, which must be installed"
    )
    return found


def test_through_the_guides_proxy_nodes_are_served_and_nobody_commands(tmp_path):
    """Without it, whoever reaches the port commands: that is shown first."""
    key, other = tmp_path / "node", tmp_path / "other"
    write_node_key(key)
    write_node_key(other)
    with Processes(tmp_path / "processes") as processes:
        link = Link(tmp_path, processes)
        link.call("supernode", "register", f"{key}.pub", "dep")  # by no more than the port
        door = free_port()
        text = NGINX.replace("9380", f"127.0.0.1:{door}").replace("9390", str(link.port))
        (tmp_path / "nginx.conf").write_text(text)
        processes.start("nginx", nginx(), "-p", tmp_path, "-c", "nginx.conf", "-g", "daemon off;")
        link.name("outside", door)
        link.node("node", key, door)
        assert link.number("node") in link.call("supernode", "list", "dep")
        for words in (["supernode", "register", f"{other}.pub"], ["supernode", "list"]):
            with pytest.raises(AssertionError, match="403"):
                link.call(*words, "outside")


AS_ROOT = "daemon off; user root;"
"""A worker of another user could not come to pytest's folders."""


def bundled(machines: Machines, app: Path) -> Path:
    """An app as `flwr build` makes it, which leaves it where it is called."""
    before = set(machines.folder.glob("*.fab"))
    with contextlib.chdir(machines.folder):
        machines.flwr("build", "--app", app)
    (bundle,) = set(machines.folder.glob("*.fab")) - before
    return bundle


def sign(folder: Path, bundle: Path, url: str) -> None:
    """Sign a bundle as the guide does, and write what owners get."""
    key = folder / "signing"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    words = ("--key", key, "--name", "reader", "--url", url, "--folder", folder / "signed")
    subprocess.run([sys.executable, SIGN, bundle, *words], check=True)
    public = key.with_name("signing.pub").read_text().strip()
    (folder / "trusted.yaml").write_text(f"reader: '{public}'\n")


def test_supernodes_that_trust_a_key_run_the_app_that_it_signed_and_no_other(tmp_path):
    door = free_port()
    with Processes(tmp_path / "processes") as processes:
        machines = Machines(tmp_path, processes, tls=True, rounds=1)
        sign(tmp_path, bundled(machines, machines.app), f"http://127.0.0.1:{door}")
        text = NGINX[: NGINX.index("    server {")] + REGISTRY.replace("9480", str(door)) + "}"
        (tmp_path / "nginx.conf").write_text(text)
        processes.start("nginx", nginx(), "-p", tmp_path, "-c", "nginx.conf", "-g", AS_ROOT)
        processes.environment["FLWR_SUPERGRID_API_URL"] = f"http://127.0.0.1:{door}"
        machines.up(nodes=("--trusted-entities", tmp_path / "trusted.yaml"))
        project = tomllib.loads((machines.app / "pyproject.toml").read_text())["project"]
        registered = f"@securefed/{project['name']}=={project['version']}"
        out, served = tmp_path / "stolen.json", tmp_path / "signed" / "app.fab"
        theirs = hostile(machines.app, [tmp_path / f"{name}.pem" for name in NAMES], out)

        def refused(app: object, why: str) -> None:
            out.unlink(missing_ok=True)
            machines.app = app
            machines.run("hostile")
            until(lambda: out.exists() and out.read_text().endswith("]"), "hostile app", 600)
            assert out.read_text() == "[]"
            assert all(why in machines.said(f"{name}-supernode") for name in NAMES)

        refused(theirs, "The FAB could not be verified")  # without a signature
        signed = served.read_bytes()
        served.write_bytes(bundled(machines, theirs).read_bytes())
        refused(registered, "FAB verification failed")  # with the signature of another bundle
        served.write_bytes(signed)
        machines.app = registered
        machines.run()
        machines.wait_for_the_end()
        assert [sorted(each) for each in machines.survivors()] == [NAMES]
