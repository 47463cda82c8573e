"""One secure round between a server and three clients, each a process of its own, over TCP.

NOISE 0 gives the exact sum, unprotected; LOST names clients, with commas, whose connections break
half-way; FOLDER keeps the clients' accounts from run to run.  The server gets public keys and
signed, masked messages only.  There is no TLS: updates stay secret without it, but a stranger could
take a client's place.
"""

import argparse
import secrets
import socket
import struct
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import securefed as sf
from securefed.errors import SecureFedError
from securefed.evidence.budget import read_charges

SITES, DIMENSION = ("site-1", "site-2", "site-3"), 1000
MAX_FRAME = 1 << 20  # the most that a peer can make this side hold
TIMEOUT_S = 60.0
JOIN_S = 5.0  # a client joins this long after it was invited, however long its training took

# What a client's owner asks of any round, and how much epsilon it will ever spend.
FLOORS = sf.ClientFloors(min_clients=2, min_noise_multiplier=0.5, max_clip_norm=1.0, max_delta=1e-5)
LIMIT = 20.0
TRIAL = sf.ClientFloors(min_clients=2, mechanisms=("none",))  # for NOISE 0, on made-up data


def own_update(site: str) -> np.ndarray:
    """What a client's training would have given."""
    return np.random.default_rng(SITES.index(site)).uniform(-0.03, 0.03, DIMENSION)


def send(link: socket.socket, message: bytes) -> None:
    link.sendall(struct.pack(">I", len(message)) + message)


def receive(stream: BinaryIO) -> bytes:
    head = stream.read(4)
    length = struct.unpack(">I", head)[0] if len(head) == 4 else 0
    if not 0 < length <= MAX_FRAME or len(message := stream.read(length)) < length:
        raise ConnectionError("the connection was closed, or a frame is empty or too long")
    return message


def describe(name: bytes, keys: Any, policy: sf.PrivacyPolicy) -> sf.RoundSession:
    """Each party makes the round's description itself; the server only gives it a name."""
    roster = {site: sf.IdentityPublicKey.from_bytes(keys[site]) for site in SITES}
    agreed = {"policy": policy, "aggregation": sf.PairwiseAggregation(), "dimension": DIMENSION}
    agreed["model"] = bytes(32)  # SHA-256 of the model that each client trains; here there is none
    return sf.RoundSession(session=name, round=1, cohort=SITES, roster=roster, **agreed)


def client(site: str, board: Any, ready: Any, policy: sf.PrivacyPolicy, **own: Any) -> None:
    identity, update = sf.IdentityKey.generate(), own_update(site)
    board[site] = identity.public.raw
    ready.wait(TIMEOUT_S)
    link = socket.create_connection(("127.0.0.1", board["port"]), TIMEOUT_S)
    with link, link.makefile("rb") as stream:
        send(link, site.encode())
        session = describe(receive(stream), board, policy)
        joins_at = time.monotonic() + JOIN_S
        limit, floors = (None, TRIAL) if own["trial"] else (LIMIT, FLOORS)
        half = sf.ClientRound(
            session,
            site,
            identity,
            encode=lambda codec, noise: codec.encode_update(update, noise),
            charge=lambda: account.charge(session.event()),  # on disk before the input leaves
            floors=floors,
        )
        path = own["folder"] / f"{site}.jsonl"
        with closing(sf.open_account(path, session, site, limit=limit)) as account:
            half.prepare()
            time.sleep(joins_at - time.monotonic())  # too late: raises, and nothing is sent
            send(link, half.start())
            send(link, half.handle(receive(stream)))
            for _ in () if own["lost"] else ("masked input", "consistency", "unmask"):
                send(link, half.handle(receive(stream)))


def serve(board: Any, ready: Any, policy: sf.PrivacyPolicy) -> tuple[Any, ...]:
    links, streams, sent = {}, {}, dict.fromkeys(SITES, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        board["port"] = listener.getsockname()[1]
        ready.wait(TIMEOUT_S)
        session = describe(secrets.token_bytes(16), board, policy)
        while len(links) < len(SITES):
            link, _ = listener.accept()
            link.settimeout(TIMEOUT_S)
            stream = link.makefile("rb")
            site = receive(stream).decode()
            links[site], streams[site] = link, stream
            send(link, session.session)
    server = sf.ServerRound(session)
    while (stage := server.stage) is not None:
        for site in list(links):
            try:
                message = receive(streams[site])
                server.receive(site, message)
                sent[site] += len(message)
            except (OSError, SecureFedError) as error:  # lost or refused: it has dropped out
                print(f"{site} has dropped out at {stage}: {error}", flush=True)
                del links[site]
        for site, reply in server.advance().items():  # raises where too few are left
            with suppress(OSError):  # lost: its next message will be missing
                send(links[site], reply)
    return server.sum, server.survivors, sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("noise", nargs="?", type=float, default=1.0, help="multiplier, >= 0")
    parser.add_argument("lost", nargs="?", default="", help=f"some of {','.join(SITES)}")
    parser.add_argument(
        "folder", nargs="?", type=Path, help="default runs/separate-processes-NOISE"
    )
    given = parser.parse_args()
    noise, lost = given.noise, [site for site in given.lost.split(",") if site]
    accounts = given.folder or Path(f"runs/separate-processes-{noise:g}")
    if unknown := set(lost) - set(SITES):
        parser.error(f"lost: {', '.join(sorted(unknown))}: not among {', '.join(SITES)}")
    try:
        policy = sf.PrivacyPolicy(
            clip_norm=1.0,
            noise_multiplier=noise,
            mechanism="distributed" if noise else "none",
            dropout_fraction=0.34,  # one of the three
        )
    except SecureFedError as error:
        parser.error(str(error))
    accounts.mkdir(parents=True, exist_ok=True)
    spawn = get_context("spawn")
    with spawn.Manager() as manager, ProcessPoolExecutor(4, spawn) as pool:
        board, ready = manager.dict(), manager.Barrier(4)  # public keys and port; "all are here"
        for site in SITES:
            own = {"folder": accounts, "trial": not noise, "lost": site in lost}
            pool.submit(client, site, board, ready, policy, **own)
        try:
            total, survivors, sent = pool.submit(serve, board, ready, policy).result()
        except SecureFedError as error:
            sys.exit(f"no result: {error}")
        session = describe(bytes(16), board, policy)
    mean, plain = total / len(survivors), np.mean([own_update(s) for s in survivors], axis=0)
    print(f"in the sum: {', '.join(survivors)}; bytes sent: {sent}")
    print(f"mean over the coordinates: decoded {mean.mean():.9f}, plain {plain.mean():.9f}")
    print(f"largest difference of a coordinate: {np.abs(mean - plain).max():.9f} (noise {noise})")
    charges = max(len(read_charges(accounts / f"{site}.jsonl")) for site in SITES)
    print(session.guarantee(rounds=charges))


if __name__ == "__main__":
    main()
