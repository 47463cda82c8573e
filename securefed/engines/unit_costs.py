"""CPU seconds of the steps that a pairwise round is made of, measured here and now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey
from securefed.crypto.prg import add_keystreams, system_random
from securefed.crypto.shamir import Reconstructor, share
from securefed.encoding.wire import pack_ring, unpack_ring
from securefed.federation.costs import UnitCosts
from securefed.secagg import messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.client_secrets import checked_keys
from securefed.secagg.graph import (
    HASH_BYTES,
    NONCE_BYTES,
    Graph,
    commitments_hash,
    graph_seed,
    nonce_commitments,
)
from securefed.secagg.messages import Advertisement, Bundle, Neighbourhood, Reveal
from securefed.secagg.signed import Signed, signing_input

_TURNS = 60

_DIGEST = bytes(range(32))
_CLIENTS = 4096
_HOLDERS, _THRESHOLD = 256, 128
_VALUES = 1 << 18
_LONG = 1 << 20

_Step = tuple[Callable[[], object], float]
"""What is timed, and how many units it is."""


def measure_units() -> UnitCosts:
    """Measure every unit, in about two seconds on a quiet core.

    Steps are those of the halves themselves, with Ed25519 identities.  The short ones are taken in
    turn, as they follow each other in a round; each in a loop of its own, caches would flatter them
    by a fifth.  A unit is the median of 60 turns.
    """
    steps: dict[str, _Step] = {
        **_signatures(),
        **_bundles(),
        **_key_agreement(),
        **_sharing(),
        **_masks(),
        **_cohort_lists(),
    }
    short = [name for name, (_, units) in steps.items() if units == 1]
    unit = dict(zip(short, _medians([steps[name][0] for name in short]), strict=True))
    for name in steps.keys() - unit.keys():
        call, units = steps[name]
        unit[name] = _medians([call])[0] / units
    unit["keystream_value"] -= unit["keystream"] / _VALUES
    # A share is drawn coefficient by coefficient, and every other candidate is drawn again.
    unit["draw"] *= 2
    unit["share_step"] -= unit["draw"] / _HOLDERS
    return UnitCosts(**unit)


def _medians(calls: list[Callable[[], object]]) -> list[float]:
    """Median CPU seconds of each call, taken in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(_TURNS):
        for found, call in zip(times, calls, strict=True):
            started = time.process_time()
            call()
            found.append(time.process_time() - started)
    return [statistics.median(found) for found in times]


def _signatures() -> dict[str, _Step]:
    identity = IdentityKey.generate()
    label = keys.stage_label("graph")
    body = bytes(NONCE_BYTES + HASH_BYTES)

    def sign() -> bytes:
        signature = identity.sign(signing_input(_DIGEST, 1, body), label=label)
        return Signed(1, body, signature).encode()

    message = sign()

    def verify() -> None:
        signed = Signed.decode(message, limit=len(body))
        covered = signing_input(_DIGEST, signed.sender, signed.body)
        identity.public.verify(signed.signature, covered, label=label)

    long = system_random(_LONG)
    return {
        "sign": (sign, 1),
        "verify": (verify, 1),
        "hash": (lambda: signing_input(_DIGEST, 1, long), _LONG),
        "copy": (lambda: body + long, _LONG),
    }


def _bundles() -> dict[str, _Step]:
    identity, public = IdentityKey.generate(), HybridPrivateKey.generate(system_random).public
    count = 256

    def new() -> Bundle:
        sealed = system_random(messages.ENVELOPE_BYTES), system_random(messages.EDGE_WRAP_BYTES)
        return Bundle(*sealed, system_random(32), system_random(64))

    bundles = {index: new() for index in range(count)}
    body = messages.encode_shares(bundles)
    signatures = {index: bundle.signature for index, bundle in bundles.items()}
    confirmations = messages.encode_confirmations(signatures)
    reveal = Reveal({index: system_random(33) for index in range(count)}, {})
    revealed = reveal.encode()

    def cover() -> bytes:
        return _DIGEST + bundles[0].signed_part(
            sender=1, receiver=2, mask_key=public.raw, envelope_key=public.raw
        )

    signature = identity.sign(cover(), label=keys.SIGN_BUNDLE)
    return {
        "sign_bundle": (lambda: identity.sign(cover(), label=keys.SIGN_BUNDLE), 1),
        "verify_bundle": (
            lambda: identity.public.verify(signature, cover(), label=keys.SIGN_BUNDLE),
            1,
        ),
        "write_bundle": (lambda: messages.encode_shares(bundles), count),
        "read_bundle": (
            lambda: messages.decode_shares(body, with_edge=dict.fromkeys(bundles, True)),
            count,
        ),
        "write_signature": (lambda: messages.encode_confirmations(signatures), count),
        "read_signature": (
            lambda: messages.decode_confirmations(confirmations, size=_CLIENTS, limit=count),
            count,
        ),
        "write_reveal": (reveal.encode, count),
        "read_reveal": (lambda: Reveal.decode(revealed, size=_CLIENTS, limit=count), count),
    }


def _key_agreement() -> dict[str, _Step]:
    seed = system_random(32)
    private = HybridPrivateKey.from_seed(seed)
    raw = private.public.raw
    hashed = keys.key_hash(raw)
    encoded = Advertisement(
        mask_key=raw,
        envelope_key=HybridPrivateKey.generate(system_random).public.raw,
        root_commitment=bytes(32),
        self_commitment=bytes(32),
        nonce_commitment=bytes(32),
    ).encode()

    def seal() -> bytes:
        info = keys.envelope_info(_DIGEST, 1, 2, keys.key_hash(raw), keys.key_hash(raw))
        return private.public.seal(bytes(66), info=info)

    def open_sealed() -> bytes:
        info = keys.envelope_info(_DIGEST, 1, 2, hashed, hashed)
        return private.open(sealed, info=info)

    sealed = seal()
    return {
        "keygen": (lambda: HybridPrivateKey.from_seed(seed), 1),
        "parse": (lambda: checked_keys(Advertisement.decode(encoded), "a client"), 1),
        "seal": (seal, 1),
        "open": (open_sealed, 1),
        "derive": (lambda: keys.edge_secret(seed, _DIGEST, 1, 2, raw), 1),
    }


def _sharing() -> dict[str, _Step]:
    rng = np.random.default_rng(0)
    points = np.sort(rng.choice(_CLIENTS, _HOLDERS, replace=False) + 1).tolist()
    secret = system_random(32)

    def deal() -> dict[int, bytes]:
        return share(secret, threshold=_THRESHOLD, points=points, random=system_random)

    def candidates() -> None:
        for _ in range(_THRESHOLD):
            int.from_bytes(system_random(33), "big")

    shares, holders = deal(), Reconstructor(points, _THRESHOLD)
    return {
        "draw": (candidates, _THRESHOLD),
        "share_step": (deal, _THRESHOLD * _HOLDERS),
        "weight_step": (lambda: Reconstructor(points, _THRESHOLD), _THRESHOLD**2),
        "read_share": (lambda: holders.reconstruct(shares), _THRESHOLD),
    }


def _masks() -> dict[str, _Step]:
    long, short = np.zeros(_VALUES, dtype=np.uint32), np.zeros(1, dtype=np.uint32)
    key = system_random(32)
    masks = [(key, False)] * 64
    packed = pack_ring(long, 24)

    def unpack() -> None:
        np.add(long, unpack_ring(packed, _VALUES, 24), out=long)

    return {
        "keystream": (lambda: add_keystreams(short, masks), len(masks)),
        "keystream_value": (lambda: add_keystreams(long, masks[:8]), 8 * _VALUES),
        "pack_value": (lambda: pack_ring(long, 24), _VALUES),
        "unpack_value": (unpack, _VALUES),
    }


def _cohort_lists() -> dict[str, _Step]:
    nonces = {index: system_random(NONCE_BYTES) for index in range(_CLIENTS)}
    message = Neighbourhood.encode_ring(nonces, {}, size=_CLIENTS) + Neighbourhood.encode_keys({})
    listed = messages.encode_survivors(list(range(_CLIENTS)), size=_CLIENTS)

    def read_nonces() -> bytes:
        found = Neighbourhood.decode(message, size=_CLIENTS, degree=2)
        commitments_hash(found.withheld | nonce_commitments(found.nonces, _DIGEST))
        return graph_seed(_DIGEST, found.nonces)

    seed = read_nonces()

    def order() -> Graph:
        return Graph.from_seed(seed, size=_CLIENTS, degree=2, witnesses=2)

    def read_survivors() -> bytes:
        survivors = messages.decode_survivors(listed, size=_CLIENTS)
        set(survivors)
        return keys.survivors_statement(_DIGEST, seed, survivors)

    return {
        "nonce": (read_nonces, _CLIENTS),
        "place": (order, _CLIENTS),
        "listed": (read_survivors, _CLIENTS),
    }
