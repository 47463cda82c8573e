"""A secure round of long vectors with dropouts, and a client's masking against its floor.

Run by hand: ``python tests/bench/bench_round.py [--clients 20] [--values 1000000] [--dropouts 3]``.

The whole round runs in this process, so its seconds are those of all clients and the server
together.  Masking is one keystream added a neighbour and one of the client's own; the masked-input
stage is that and opening and checking the others' bundles, packing, hashing and signing, with the
contribution at hand.  The floor is the bare keystream and the bare addition, once a mask, in
cache-sized pieces.  All are measured in turn, and medians are printed.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from securefed import IdentityKey, PairwiseAggregation, PrivacyPolicy, RoundSession, secure_round
from securefed.crypto.prg import NoiseGenerator, add_keystreams
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound

CHUNK = 1 << 16
POLICY = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def whole_round(clients: int, values: int, dropouts: int) -> None:
    """One ``secure_round``, checked and timed."""
    rng = np.random.default_rng(0)
    updates = {f"c{i:03}": rng.normal(size=values).astype(np.float32) for i in range(clients)}
    silent = dict.fromkeys(list(updates)[:dropouts], "masked_input")
    started = time.perf_counter()
    result = secure_round(updates, privacy=POLICY, drop=silent)
    took = time.perf_counter() - started
    if len(result.survivors) != clients - dropouts:
        raise SystemExit(f"{len(result.survivors)} survivors")
    plan = result.session.plan
    wanted = sum(updates[name] / np.linalg.norm(updates[name]) for name in result.survivors)
    noise = plan.local_std * plan.resolution * np.sqrt(len(result.survivors))
    error = float(np.std(result.sum - wanted))
    up = max(result.bytes_up.values())
    print(f"{clients} clients, {values} values, {dropouts} silent before their masked input")
    print(f"whole round        {took:9.2f} s, all parties in one process")
    print(f"ring               {plan.bits:9d} bits, {plan.padded} values after rotation")
    print(f"sent by a client   {up / values:9.3f} bytes a value ({up} bytes)")
    print(f"received           {max(result.bytes_down.values()):9d} bytes")
    print(f"error of the sum   {error / noise:9.4f} of the noise that was added")


def masking(clients: int, values: int) -> None:
    """One client's steps, and its masking against the keystream and additions alone."""
    names = tuple(f"c{i:03}" for i in range(clients))
    keys = {name: IdentityKey.generate() for name in names}
    session = RoundSession(
        session=os.urandom(16),
        round=1,
        cohort=names,
        roster={name: key.public for name, key in keys.items()},
        dimension=values,
        policy=POLICY,
        aggregation=PairwiseAggregation(),
        model=bytes(32),
    )
    update = np.random.default_rng(1).normal(size=values)
    encode = [
        seconds(lambda: session.codec.encode_update(update, NoiseGenerator())) for _ in range(5)
    ]
    ready = session.codec.encode_update(update, NoiseGenerator())
    halves = {
        name: ClientRound(session, name, keys[name], lambda codec, noise: ready) for name in names
    }
    server = ServerRound(session)
    messages = {name: half.start() for name, half in halves.items()}
    for _ in range(2):
        for name, message in messages.items():
            server.receive(name, message)
        replies = server.advance()
        if server.stage == "share":
            messages = {name: halves[name].handle(reply) for name, reply in replies.items()}

    vector = np.zeros(session.plan.padded, dtype=np.uint32)
    pieces = [vector[start : start + CHUNK] for start in range(0, vector.size, CHUNK)]
    words = np.empty(CHUNK, dtype=np.uint32)
    buffer, zeros = words.view(np.uint8).data, memoryview(bytes(4 * CHUNK))

    def floor() -> None:
        for _ in range(clients):
            stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
            for piece in pieces:
                stream.update_into(zeros[: 4 * piece.size], buffer)
                np.add(piece, words[: piece.size], out=piece)

    def masks() -> None:
        add_keystreams(vector, [(os.urandom(32), False) for _ in range(clients)])

    stage, masked, bare = [], [], []
    for name in names:
        stage.append(seconds(lambda name=name: halves[name].handle(replies[name])))
        masked.append(seconds(masks))
        bare.append(seconds(floor))
    whole, mask, least = (statistics.median(times) for times in (stage, masked, bare))
    print(f"encode an update   {1e3 * statistics.median(encode):9.1f} ms (clip, rotate, noise)")
    print(f"floor              {1e3 * least:9.1f} ms (keystream and additions alone)")
    print(f"masking            {1e3 * mask:9.1f} ms for {clients} masks of {vector.size} values")
    print(f"masked-input stage {1e3 * whole:9.1f} ms")
    print(f"ratio              {mask / least:9.2f} (masking) {whole / least:.2f} (whole stage)")


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--dropouts", type=int, default=3)
    given = parser.parse_args()
    whole_round(given.clients, given.values, given.dropouts)
    masking(given.clients, given.values)


if __name__ == "__main__":
    main()
