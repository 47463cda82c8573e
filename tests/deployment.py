"""Real processes of a deployment on this machine: agents, SuperLink, SuperNodes, a run."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fault_matrix import check_kept
from tiny import write_run

from securefed.crypto.identity import IdentityKey
from securefed.engines.verify import verified_run
from securefed.evidence.roster import Roster
from securefed.evidence.signed_roster import SignedRoster, read_signed_roster

BIN = Path(sys.executable).parent
NAMES = ["site-0", "site-1", "site-2"]

_RUNNING = "running on"
_MARK = "SECUREFED_STARTED_BY"  # tells the processes of one test from others, whatever they become


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Processes(AbstractContextManager):
    """Starts processes with a log each, and ends those that are left, and their children."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, {}
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            _MARK: str(folder),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def start(self, name: str, *words: Any, under: Sequence[Any] = ()) -> subprocess.Popen:
        """Start one; ``under``: the words of a command that runs it, of ``ip netns exec`` say."""
        with (self.folder / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                [*map(str, under), str(BIN / str(words[0])), *map(str, words[1:])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.started[name] = process
        return process

    def call(self, *words: Any, timeout: float = 300.0, under: Sequence[Any] = ()) -> str:
        done = subprocess.run(
            [*map(str, under), str(BIN / str(words[0])), *map(str, words[1:])],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def output(self, name: str) -> str:
        """All that it printed, over its restarts too."""
        path = self.folder / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self, name: str) -> None:
        """As a power cut would: the process and all that it started, sessions of their own too."""
        process = self.started[name]
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()

    def descendants(self) -> Iterator[psutil.Process]:
        """All that was started here and is still there, whoever its parent is by now."""
        for each in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if each.environ().get(_MARK) == self.environment[_MARK]:
                    yield each

    def __exit__(self, *of: object) -> None:
        for each in [*self.started.values(), *self.descendants()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        for process in self.started.values():
            process.wait()


def until(holds: Any, what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


def logged(path: Path, **values: Any) -> bool:
    """Whether an agent's log has a line with these values."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = (json.loads(line) for line in lines)
    return any(values.items() <= line.items() for line in found)


def write_certificates(folder: Path, addresses: Sequence[str] = ("127.0.0.1",)) -> None:
    """A certificate authority, and a certificate of addresses with its key, valid for a day."""
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)

    def certificate(name: str, public: Any, signer: Any, *extensions: Any) -> x509.Certificate:
        subject, issuer = (
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (name, "CA")
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(signer, hashes.SHA256())

    authority, own = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    root = certificate(
        "CA", authority.public_key(), authority, x509.BasicConstraints(ca=True, path_length=0)
    )
    places = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    local = x509.SubjectAlternativeName([*places, x509.DNSName("localhost")])
    served = certificate("localhost", own.public_key(), authority, local)
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(root.public_bytes(pem))
    (folder / "tls.crt").write_bytes(served.public_bytes(pem))
    key = own.private_bytes(
        pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "tls.key").write_bytes(key)


def write_node_key(path: Path) -> None:
    """A SuperNode's key as ``ssh-keygen -t ecdsa -b 384`` makes it: ``path`` and ``path.pub``."""
    key = ec.generate_private_key(ec.SECP384R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    path.with_name(f"{path.name}.pub").write_bytes(public)


def listens_on(process: subprocess.Popen) -> set[str]:
    """The addresses that a process and all that it started listen on."""
    first = psutil.Process(process.pid)
    found = set()
    for each in [first, *first.children(recursive=True)]:
        for connection in each.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.add(connection.laddr.ip)
    return found


def prepared(folder: Path, processes: Processes, rounds: int) -> Path:
    """Keys, roster, app and policies, by the command line as people would make them."""
    run_file = write_run(
        folder,
        training={"rounds": rounds},
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
        policy["budget"] |= {"epsilon": 1e4, "delta": 1e-4}  # for runs of other cohorts too
        path.write_text(tomli_w.dumps(policy))
        path.chmod(0o600)
    return app


class Machines:
    """A SuperLink, three SuperNodes and three agents: a process each, as people start them.

    Args:
        folder: of all that they write.
        processes: starts them.
        tls: whether over TLS, with registered nodes alone; else in the clear.
        server: the address that the SuperLink listens on.
        under: by party (``"server"`` or a client), the words of a command that its processes run
            under.
        rounds: of a run.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        *,
        tls: bool,
        server: str = "127.0.0.1",
        under: Mapping[str, Sequence[Any]] = MappingProxyType({}),
        rounds: int = 2,
    ) -> None:
        self.folder, self.processes, self.tls = folder, processes, tls
        self.server, self.under, self.rounds = server, dict(under), rounds
        self.port, self.ports = free_port(), {}
        self.app = prepared(folder, processes, rounds)
        if tls:
            write_certificates(folder, sorted({"127.0.0.1", server}))

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / "tiny"

    @property
    def ledger(self) -> Path:
        return self.run_folder / "ledger.jsonl"

    def socket(self, name: str) -> Path:
        return self.folder / f"{name}-socket" / "agent.sock"

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start_agent(self, name: str, *words: Any, under: Sequence[Any] = ()) -> None:
        """The owner's agent; ``words`` are more of its own.

        ``under``: as of ``Processes.start``, besides the host's own.
        """
        folder = self.folder
        self.processes.start(
            name, "securefed", "client",
            "--policy", self.app / "policies" / f"{name}.toml",
            "--config", self.app / "run.toml",
            "--roster", folder / "roster.json",
            "--key", folder / f"{name}.pem",
            "--socket", self.socket(name),
            "--accounts", folder / f"{name}-accounts",
            "--model", folder / "model",
            "--data", folder / "data",
            "--log", self.log(name),
            "--offline",
            *words,
            under=(*self.under.get(name, ()), *under),
        )  # fmt: skip

    def start_superlink(self, *words: Any) -> None:
        """Listens from when it says so."""
        before = self.said("superlink").count(_RUNNING)
        trust = (*self._served(), "--enable-supernode-auth") if self.tls else ("--insecure",)
        self.processes.start(
            "superlink", "flower-superlink", "--host", self.server, "--port", self.port,
            "--disable-runtime-dependency-installation", *trust, *words,
            under=self.under.get("server", ()),
        )  # fmt: skip
        until(lambda: self.said("superlink").count(_RUNNING) > before, "SuperLink", 180)

    def start_node(
        self, name: str, agent: str | None = None, *words: Any, under: Sequence[Any] = ()
    ) -> None:
        """A SuperNode whose agent is the one of this name, or ``agent``.

        It listens on its own host's loopback, for its ClientApps.
        """
        trust: tuple[Any, ...] = ("--insecure",)
        if self.tls:
            trust = (
                "--root-certificates", self.folder / "ca.crt",
                "--auth-supernode-private-key", self.node_key(name),
                *self._served(),
            )  # fmt: skip
        self.ports[name] = free_port()
        self.processes.start(
            f"{name}-supernode", "flower-supernode", "--superlink", f"{self.server}:{self.port}",
            "--host", "127.0.0.1", "--port", self.ports[name],
            "--node-config", f'agent-socket="{self.socket(agent or name)}"', *trust, *words,
            under=(*self.under.get(name, ()), *under),
        )  # fmt: skip

    def node_key(self, name: str) -> Path:
        path = self.folder / f"{name}-node-key"
        if not path.exists():
            write_node_key(path)
        return path

    def flwr(self, *words: Any) -> str:
        """One command of the server's operator."""
        return self.processes.call("flwr", *words, under=self.under.get("server", ()))

    def register(self, name: str) -> str:
        """Have the SuperLink know a SuperNode's key; the id that it gives to the node."""
        said = self.flwr("supernode", "register", f"{self.node_key(name)}.pub", "dep")
        found = re.search(r"SuperNode (\d+) registered", said)
        assert found is not None, said
        return found[1]

    def connect(self) -> None:
        """Write where the operator's commands find the SuperLink."""
        trust = (
            {"root-certificates": str(self.folder / "ca.crt")} if self.tls else {"insecure": True}
        )
        home = Path(self.processes.environment["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        values = {"address": f"{self.server}:{self.port}"} | trust
        (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"dep": values}}))

    def up(
        self,
        *words: Any,
        agents: Mapping[str, Sequence[Any]] = MappingProxyType({}),
        nodes: Sequence[Any] = (),
    ) -> None:
        """Start all of them.

        ``words`` are the SuperLink's, ``nodes`` each SuperNode's, ``agents`` what each runs under.
        """
        for name in NAMES:
            self.start_agent(name, under=agents.get(name, ()))
        self.start_superlink(*words)
        self.connect()
        if self.tls:
            self.node_ids = {name: self.register(name) for name in NAMES}
        until(lambda: all(self.socket(name).exists() for name in NAMES), "agents", 300)
        for name in NAMES:
            self.start_node(name, None, *nodes)

    def run(self, name: str = "run", **settings: Any) -> None:
        """Start a run; ``settings`` override the app's configuration, dashes as underscores."""
        given = " ".join(
            f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in settings.items()
        )
        words = ("-c", given) if given else ()
        self.processes.start(
            name, "flwr", "run", self.app, "dep", "--stream", *words,
            under=self.under.get("server", ()),
        )  # fmt: skip

    def said(self, name: str) -> str:
        """All that a process printed."""
        return self.processes.output(name)

    def invited(self, name: str, number: int) -> bool:
        """Whether an agent is in a round."""
        return logged(self.log(name), event="invited", round=number, of="updates")

    def charged(self, name: str, number: int) -> bool:
        """Whether an agent was charged for a round, which is right before its masked input."""
        return logged(self.log(name), event="charged", round=number)

    def recorded(self, kind: str) -> bool:
        """Whether the run's ledger holds a record of this kind."""
        return self.ledger.exists() and f'"kind":"{kind}"' in self.ledger.read_text()

    def ended(self) -> bool:
        """Whether the run is closed, and the head over its closing record signed."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return any('"closed"' in line for line in lines) and '"witnessed"' in lines[-1]

    def wait_for_the_end(self, seconds: float = 900.0) -> None:
        until(self.ended, "the end of the run", seconds)

    def server_app(self) -> psutil.Process | None:
        """The process of the ServerApp, whoever is its parent by now."""
        for each in self.processes.descendants():
            with contextlib.suppress(psutil.Error):
                if any(word.endswith("flwr-serverapp") for word in each.cmdline()):
                    return each
        return None

    def revoke(self, name: str) -> None:
        """Take a client out of the roster; the one before stays as ``first.public.json``."""
        folder = self.folder
        shutil.copy(folder / "roster.public.json", folder / "first.public.json")
        server = IdentityKey.load(folder / "server.pem")
        before = read_signed_roster(folder / "roster.json", server.public)
        left = {who: key for who, key in before.roster.clients.items() if who != name}
        now = SignedRoster(Roster(server.public, left), before.serial + 1)
        now.save(folder / "roster.json", server)

    def times_up(self, name: str) -> int:
        """How often an agent has begun to listen."""
        path = self.log(name)
        return path.read_text().count('"listening"') if path.exists() else 0

    def survivors(self) -> list[frozenset[str]]:
        """Who is in each sum of the run."""
        return list(verified_run(self.run_folder).history.survivors.values())

    def kept(self, names: Sequence[str] = NAMES) -> str:
        """What every fault must leave as it is, looked at; what was seen, in words."""
        accounts = {name: self.folder / f"{name}-accounts" for name in names}
        roster = self.folder / "roster.public.json"
        return check_kept(self.run_folder, accounts, roster=roster, rounds=self.rounds)

    def _served(self) -> tuple[Any, ...]:
        return (
            "--ssl-ca-certfile", self.folder / "ca.crt",
            "--ssl-certfile", self.folder / "tls.crt",
            "--ssl-keyfile", self.folder / "tls.key",
        )  # fmt: skip
