"""Homomorphic aggregation against its limits and against the setting of NVIDIA FLARE, in one run.

Run by hand: ``python tests/bench/bench_homomorphic.py [--values 1000000] [--clients 100]``; some
minutes.  Exits with 1 if a limit does not hold; the limits are meant for the defaults.

All times are CPU seconds of this process, pinned to one core: the median client's, and those of the
whole sum.  Ours with BFV are whole rounds of the protocol: to encrypt is to answer the message that
brings the key (its check, packing, masks, encryption, the check of the sum, signatures), to add is
to take that answer, and to open is to answer the request and to take that.  The contributions are
different for every client, with the bounds that ``plan_round`` gives for a ring of 20 bits, and
their sum is compared with the sum of integers.  CKKS of ours is measured without the protocol.

FLARE provisions CKKS with N = 8192, moduli of 60, 40 and 40 bits, a scale of 2^40 and one symmetric
key that every client has.  Its clients encrypt and serialise, its server loads and adds.  It gets
the same contributions as floats (one grid step is 1/4096), and its error is given in grid steps.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import tenseal

from securefed.crypto.identity import IdentityKey
from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import HomomorphicAggregation
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.ciphertexts import CiphertextSum
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encrypted_client import EncryptedClient
from securefed.secagg.encrypted_server import EncryptedServer
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.homomorphic import CkksEncryptor, CkksSecretKey
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.rlwe_parameters import CkksParameters
from securefed.secagg.slots import bounds_of_plan

BYTES_LIMIT = 8.0
SECONDS_LIMIT = 0.6
STEP = 1.0 / 4096


class Cost:
    """What one way of aggregating took."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.encrypt: list[float] = []
        self.add: list[float] = []
        self.decrypt = 0.0
        self.bytes = 0
        self.error = 0.0
        self.up: dict[str, int] = {}
        self.client_seconds = 0.0

    def line(self, values: int) -> str:
        error = "exact" if self.error == 0.0 else f"{self.error:.1e}"
        return (
            f"{self.name:<42} {self.bytes / values:8.2f} {statistics.median(self.encrypt):9.3f} "
            f"{sum(self.add):9.2f} {self.decrypt:8.3f}  {error}"
        )


def contributions(plan: RoundPlan, clients: int, values: int) -> Iterator[np.ndarray]:
    """Different integers for every client: noise of the plan's std and a few large values."""
    for client in range(clients):
        rng = np.random.default_rng(client)
        vector = np.rint(rng.normal(0.0, plan.local_std, values)).astype(np.int64)
        vector[:3] = bounds_of_plan(plan)[0] // clients * (-1) ** client
        yield vector


def bfv(plan: RoundPlan, clients: int, values: int, key_holder: str, masked: bool) -> Cost:
    """Whole rounds: every message as it is signed and sent, checks of the sum included."""
    what = {"cohort": "cohort's key", "decryptor": "decryptor"}[key_holder]
    cost = Cost(f"BFV, {what}{', masks beneath' if masked else ''} (ours)")
    names = tuple(f"c{number:04}" for number in range(clients))
    identities = {name: IdentityKey.generate() for name in (*names, DECRYPTOR)}
    context = context_of(plan, names, values, identities, key_holder, masked)
    inputs = contributions(plan, clients, values)
    wanted, rings = np.zeros(values, dtype=np.int64), {}

    def contribution_of(name: str) -> Callable[[], np.ndarray]:
        return lambda: rings.pop(name)

    half, server_half = (
        (PairwiseClient, PairwiseServer) if masked else (EncryptedClient, EncryptedServer)
    )
    server = server_half(context)
    parties = {name: half(context, name, identities[name], contribution_of(name)) for name in names}
    if key_holder == "decryptor":
        parties[DECRYPTOR] = Decryptor(context, identities[DECRYPTOR])
    inbox: dict[str, bytes | None] = dict.fromkeys(parties)
    spent = dict.fromkeys(parties, 0.0)
    while (stage := server.stage) is not None:
        for name, reply in inbox.items():
            if stage == "masked_input" and name in names:
                vector = next(inputs)
                rings[name] = to_ring(vector) & np.uint32((1 << plan.bits) - 1)
                wanted += vector
            started = time.process_time()
            sent = parties[name].start() if reply is None else parties[name].handle(reply)
            took = time.process_time() - started
            spent[name] += took
            cost.up[name] = cost.up.get(name, 0) + len(sent)
            if stage == "masked_input":
                cost.encrypt.append(took)
                cost.bytes = len(sent)
            elif stage == "unmask" and (name == DECRYPTOR or key_holder == "cohort"):
                cost.decrypt = took
            started = time.process_time()
            server.receive(name, sent)
            if stage == "masked_input":
                cost.add.append(time.process_time() - started)
        started = time.process_time()
        inbox = dict(server.advance())
        if stage == "unmask":
            cost.decrypt += time.process_time() - started
    cost.client_seconds = statistics.median(spent[name] for name in names)
    found = from_ring(server.result.total, plan.bits)
    cost.error = float(np.abs(found - wanted).max())
    return cost


def context_of(
    plan: RoundPlan,
    names: tuple[str, ...],
    values: int,
    identities: dict[str, IdentityKey],
    key_holder: str,
    masked: bool,
) -> RoundContext:
    bounds = CohortBounds(size=len(names), corrupt=0, survivor_floor=len(names) * 3 // 4)
    aggregation = HomomorphicAggregation(key_holder=key_holder, masked=masked, bits=plan.bits)
    encryption = dataclasses.replace(aggregation.encryption(plan, bounds), length=values)
    parties = names + ((DECRYPTOR,) if key_holder == "decryptor" else ())
    return RoundContext(
        session=os.urandom(16),
        round=1,
        cohort=names,
        roster={name: identities[name].public for name in parties},
        length=values,
        bits=plan.bits,
        parameters=aggregation.parameters(bounds),
        binding=bytes(32),
        encryption=encryption,
    )


def ckks(plan: RoundPlan, clients: int, values: int) -> Cost:
    """A few clients are enough for a figure of ours that has no limit."""
    cost, used = Cost("CKKS, one value a slot (ours), 5 clients"), min(clients, 5)
    parameters = CkksParameters(clients=clients, sum_bound=plan.sum_bound)
    key = CkksSecretKey.generate(parameters)
    encryptor = CkksEncryptor(parameters, key.public_key())
    running = CiphertextSum(parameters, parameters.ciphertexts(values))
    wanted = np.zeros(values, dtype=np.int64)
    for vector in contributions(plan, used, values):
        started = time.process_time()
        sent = list(encryptor.encrypt(vector))
        cost.encrypt.append(time.process_time() - started)
        started = time.process_time()
        running.add(sent)
        cost.add.append(time.process_time() - started)
        cost.bytes = sum(map(len, sent))
        wanted += vector
    started = time.process_time()
    total = key.decrypt(
        running.ciphertexts(), length=values, summands=used, noise_std=plan.local_std
    )
    cost.decrypt = time.process_time() - started
    cost.error = float(np.abs(total - wanted).max())
    return cost


def flare(plan: RoundPlan, clients: int, values: int) -> Cost:
    cost = Cost("CKKS as NVIDIA FLARE provisions it")
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=8192,
        coeff_mod_bit_sizes=[60, 40, 40],
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.global_scale = 2**40
    running, wanted = None, np.zeros(values)
    for vector in contributions(plan, clients, values):
        floats, started = vector * STEP, time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):  # a warning that vectors are split
            sent = tenseal.ckks_vector(context, floats).serialize()
        cost.encrypt.append(time.process_time() - started)
        started = time.process_time()
        loaded = tenseal.ckks_vector_from(context, sent)
        if running is None:
            running = loaded
        else:
            running += loaded
        cost.add.append(time.process_time() - started)
        cost.bytes = len(sent)
        wanted += floats
    started = time.process_time()
    total = np.array(running.decrypt())
    cost.decrypt = time.process_time() - started
    cost.error = float(np.abs(total - wanted).max()) / STEP
    return cost


def main() -> int:
    parser = argparse.ArgumentParser(description="homomorphic aggregation, measured")
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=100)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    values, clients = arguments.values, arguments.clients
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)
    plan = plan_round(policy, cohort_size=clients, dimension=values, bits=20)
    print(f"{values} values, {clients} clients, ring of {plan.bits} bits, TenSEAL", end=" ")
    print(tenseal.__version__)
    ours = bfv(plan, clients, values, "decryptor", masked=False)
    cohort = bfv(plan, clients, values, "cohort", masked=False)
    masked = bfv(plan, clients, values, "decryptor", masked=True)
    theirs = flare(plan, clients, values)
    lines = [ours, cohort, masked, ckks(plan, clients, values), theirs]
    print(f"{'':<42} {'B/value':>8} {'encrypt s':>9} {'sum s':>9} {'open s':>8}  error")
    for cost in lines:
        print(cost.line(values))
    ratio_bytes = theirs.bytes / ours.bytes
    ratio_seconds = statistics.median(theirs.encrypt) / statistics.median(ours.encrypt)
    print(f"FLARE's setting takes {ratio_bytes:.1f} times the bytes, {ratio_seconds:.1f} times the")
    print(f"seconds a client and {sum(theirs.add) / sum(ours.add):.1f} times those of the sum")
    limits = [
        ("bytes a value", ours.bytes / values, BYTES_LIMIT),
        ("seconds a client", statistics.median(ours.encrypt), SECONDS_LIMIT),
        ("error, grid steps", ours.error, 0.0),
    ]
    for name, found, limit in limits:
        print(f"{name:<18} {found:8.3f} <= {limit:5.2f}  {'yes' if found <= limit else 'NO'}")
    return 0 if all(found <= limit for _, found, limit in limits) else 1


if __name__ == "__main__":
    sys.exit(main())
