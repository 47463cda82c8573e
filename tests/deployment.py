"""Real processes of a deployment on this machine: agents, SuperLink, SuperNodes, a run."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

BIN = Path(sys.executable).parent


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
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def start(self, name: str, *words: Any) -> subprocess.Popen:
        with (self.folder / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / str(words[0])), *map(str, words[1:])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.started[name] = process
        return process

    def call(self, *words: Any, timeout: float = 120.0) -> str:
        done = subprocess.run(
            [str(BIN / str(words[0])), *map(str, words[1:])],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """As a power cut would: the process and all that it started."""
        os.killpg(self.started[name].pid, signal.SIGKILL)
        self.started[name].wait()

    def __exit__(self, *of: object) -> None:
        for process in self.started.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
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


def write_certificates(folder: Path) -> None:
    """A certificate authority, and a certificate of 127.0.0.1 with its key."""
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
    local = x509.SubjectAlternativeName(
        [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    )
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
