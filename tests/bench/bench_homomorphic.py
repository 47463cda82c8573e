"""Homomorphic aggregation against its limits and against the setting of NVIDIA FLARE, in one run.

Run by hand: ``python tests/bench/bench_homomorphic.py [--values 1000000] [--clients 100]``; some
minutes.  Exits with 1 if a limit does not hold; the limits are meant for the defaults.

All times are CPU seconds of this process, pinned to one core: the median client's, and those of the
whole sum.  Ours end with bytes: a client packs ring elements and encrypts them, the server takes
the bytes apart and adds them, the key holder decrypts and unpacks.  The contributions are different
for every client, with the bounds that ``plan_round`` gives for a ring of 20 bits, and their sum is
compared with the sum of integers.

FLARE provisions CKKS with N = 8192, moduli of 60, 40 and 40 bits, a scale of 2^40 and one symmetric
key that every client has.  Its clients encrypt and serialise, its server loads and adds.  It gets
the same contributions as floats (one grid step is 1/4096), and its error is given in grid steps.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import time
from collections.abc import Iterator

import numpy as np
import tenseal

from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.ciphertexts import CiphertextSum
from securefed.secagg.homomorphic import (
    BfvEncryptor,
    BfvSecretKey,
    CkksEncryptor,
    CkksSecretKey,
)
from securefed.secagg.rlwe_parameters import BfvParameters, CkksParameters
from securefed.secagg.slots import SlotPacking, bounds_of_plan

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


def bfv(plan: RoundPlan, clients: int, values: int) -> Cost:
    cost = Cost("BFV, several values a slot (ours)")
    sum_bound, value_bound = bounds_of_plan(plan)
    packing = SlotPacking.of(
        length=values,
        bits=plan.bits,
        clients=clients,
        sum_bound=sum_bound,
        value_bound=value_bound,
    )
    parameters = BfvParameters.of(clients)
    key = BfvSecretKey.generate(parameters)
    encryptor = BfvEncryptor(parameters, key.public_key())
    running = CiphertextSum(parameters, parameters.ciphertexts(packing.slots))
    wanted = np.zeros(values, dtype=np.int64)
    for vector in contributions(plan, clients, values):
        ring, started = to_ring(vector), time.process_time()
        sent = list(encryptor.encrypt(packing.pack(ring)))
        cost.encrypt.append(time.process_time() - started)
        started = time.process_time()
        running.add(sent)
        cost.add.append(time.process_time() - started)
        cost.bytes = sum(map(len, sent))
        wanted += vector
    started = time.process_time()
    slots = key.decrypt(running.ciphertexts(), slots=packing.slots, summands=clients)
    total = packing.unpack(slots)
    cost.decrypt = time.process_time() - started
    cost.error = float(np.abs(from_ring(total, plan.bits) - wanted).max())
    print(
        f"{packing.fields} fields of radix {packing.radix} a slot; q of "
        f"{parameters.modulus.bit_length()} bits, N = {parameters.degree}; noise at most "
        f"{parameters.noise_bound} of {parameters.modulus // (2 * parameters.plain_modulus)}"
    )
    return cost


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
    ours = bfv(plan, clients, values)
    lines = [ours, ckks(plan, clients, values), theirs := flare(plan, clients, values)]
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
