"""Makes the vectors of messages, graphs and whole rounds, without the package under test.

Run ``python tests/vectors/make_message_vectors.py`` to write them; a test builds them again and
compares.  A message is written here from struct formats, a graph by sorting integers, a round's
values from HMAC, SHA-256, AES-ECB and polynomials (:mod:`make_vectors`).

Good files hold a message and what it decodes to; a value of more than 64 bytes stands there as
``sha256:...``.  Cases of ``_bad_`` files are patches of a good message: ``[offset, removed bytes,
inserted hex]``, applied in order.  Long random-looking fields are SHAKE-256 of a name
(:func:`make_vectors.filler`).

In a round, ``random`` is what each client draws: root, self-mask seed, nonce, envelope key seed,
then the coefficients that share root and seed.  Fixed by that, and in the vector: every
advertisement, the graph, the view, edge secrets with their commitments, keystream keys, masked
inputs, statements and signatures on them, revealed shares, the sum.  *Not* fixed: sealing draws its
own randomness in the library, so envelopes and edge wraps, and with them the signatures on bundles
and on the share message, differ each time; nothing else depends on them.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path
from typing import Any

import mpmath
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).parent))

from make_vectors import (
    Case,
    derived,
    encode,
    filler,
    framed,
    gaussian_weights,
    hybrid_public,
    inversion_draws,
    polynomial_shares,
    vector,
    words,
)

FOLDER = Path(__file__).parent
SIGNED, ADVERTISED, DELIVERY, SURVIVORS, CONFIRMATIONS, COMMITMENTS, NEIGHBOURHOOD = (
    1,
    *range(11, 17),
)
KEYED_DELIVERY = 17
LABEL = b"securefed/1/round/"
HYBRID, ENVELOPE, WRAP = 1216, 2 * 33 + 1136, 32 + 1136
HUGE = "ffffffff"

Patch = list[int | str]


def header(kind: int) -> bytes:
    return b"SFED" + bytes([1, kind])


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def blob(value: bytes) -> bytes:
    return u32(len(value)) + value


def index4(value: int) -> bytes:
    return struct.pack(">I", value)


def shown(value: bytes) -> str:
    return value.hex() if len(value) <= 64 else "sha256:" + hashlib.sha256(value).hexdigest()


def signed(sender: int, body: bytes, signature: bytes) -> bytes:
    return header(SIGNED) + u32(sender) + blob(signature) + blob(body)


def bitmap(indices: list[int], size: int) -> bytes:
    return sum(1 << index for index in indices).to_bytes((size + 7) // 8, "little")


def advertisement(name: str) -> bytes:
    return filler(f"mask key {name}", HYBRID) + filler(f"rest {name}", HYBRID + 96)


def bundle(name: str, *, with_edge: bool, envelope: int = ENVELOPE) -> bytes:
    edge = filler(f"wrap {name}", WRAP) + filler(f"commitment {name}") if with_edge else b""
    return (
        filler(f"envelope {name}", envelope)
        + bytes([with_edge])
        + edge
        + blob(filler(f"bundle signature {name}", 64))
    )


def bundle_fields(name: str, *, with_edge: bool, envelope: int = ENVELOPE) -> Case:
    return {
        "envelope": shown(filler(f"envelope {name}", envelope)),
        "edge": shown(filler(f"wrap {name}", WRAP)) if with_edge else "",
        "edge_commitment": shown(filler(f"commitment {name}")) if with_edge else "",
        "signature": shown(filler(f"bundle signature {name}", 64)),
    }


class Messages:
    """Collects good vectors and the patches that must be refused."""

    def __init__(self) -> None:
        self.files: dict[str, Case] = {}

    def add(
        self, kind: str, about: str, message: bytes, expected: Any, bad: list[Case], **bounds: Any
    ) -> None:
        operation = f"messages.{kind}"
        good = {**bounds, "message": message.hex(), "expected": expected}
        self.files[f"messages_{kind}"] = vector(operation, about, [good])
        cut: list[Case] = [
            patch("empty", [0, len(message), ""]),
            patch("last byte missing", [len(message) - 1, 1, ""]),
            patch("a byte to spare", [len(message), 0, "00"]),
        ]
        if message[:4] == b"SFED":
            cut += [
                patch("magic", [0, 1, "52"]),
                patch("version 2", [4, 1, "02"]),
                patch("type 255", [5, 1, "ff"]),
            ]
        self.files[f"messages_bad_{kind}"] = {
            **vector(operation, f"patches of messages_{kind}", [*cut, *bad], success=False),
        }


def patch(about: str, *changes: Patch) -> Case:
    return {"about": about, "patch": list(changes), "error": "WireError"}


def message_vectors() -> dict[str, Case]:
    made = Messages()
    signature, body = filler("signature", 64), filler("body", 20)
    made.add(
        "signed",
        "a client's message; the body of at most `limit` bytes",
        signed(7, body, signature),
        {"sender": 7, "signature": signature.hex(), "body": body.hex()},
        [
            patch("body of limit + 1", [78, 4, u32(21).hex()], [102, 0, "00"]),
            patch("signature of 2^32 - 1 bytes announced", [10, 4, HUGE]),
            patch("signature of 3310 bytes", [10, 68, blob(bytes(3310)).hex()]),
            patch("body of 2^32 - 1 bytes announced", [78, 4, HUGE]),
            patch("body one byte longer than there is", [78, 4, u32(21).hex()]),
        ],
        limit=20,
    )
    advert = advertisement("a")
    fields = [advert[:HYBRID], advert[HYBRID : 2 * HYBRID]]
    fields += [advert[2 * HYBRID + 32 * i : 2 * HYBRID + 32 * (i + 1)] for i in range(3)]
    names = ("mask_key", "envelope_key", "root_commitment", "self_commitment", "nonce_commitment")
    made.add(
        "advertisement",
        "body of stage advertise: 2528 bytes, no header (it is inside of a signed message)",
        advert,
        {name: shown(value) for name, value in zip(names, fields, strict=True)},
        [],
    )
    one, two = signed(1, advertisement("1"), signature), signed(4, advertisement("4"), signature)
    made.add(
        "advertised",
        "two advertisements to a client of a cohort of five",
        header(ADVERTISED) + u32(2) + blob(one) + blob(two),
        [[1, shown(advertisement("1"))], [4, shown(advertisement("4"))]],
        [
            patch("2^32 - 1 of them", [6, 4, HUGE]),
            patch("six of them in a cohort of five", [6, 4, u32(6).hex()]),
            patch("one fewer announced", [6, 4, u32(1).hex()]),
            patch("senders 4 and 4", [20, 4, u32(4).hex()]),
            patch("senders 4 and 1", [20, 4, u32(4).hex()], [24 + len(one), 4, u32(1).hex()]),
            patch("sender 5 of five", [24 + len(one), 4, u32(5).hex()]),
            patch("an advertisement of 2^32 - 1 bytes", [10, 4, HUGE]),
            patch("an advertisement of a smaller blob", [10, 4, u32(len(one) - 1).hex()]),
        ],
        size=5,
    )
    made.add(
        "commitments",
        "hash of all nonce commitments",
        header(COMMITMENTS) + filler("commitments"),
        filler("commitments").hex(),
        [],
    )
    nonces = {0: filler("nonce 0", 16), 3: filler("nonce 3", 16), 9: filler("nonce 9", 16)}
    withheld = {1: filler("withheld 1"), 2: filler("withheld 2")}
    ring = header(NEIGHBOURHOOD) + bitmap([0, 3, 9], 10)
    start = len(ring) + 48
    ring += b"".join(nonces.values()) + u32(2)
    ring += b"".join(u32(i) + value for i, value in withheld.items()) + u32(1) + blob(one)
    made.add(
        "neighbourhood",
        "three nonces, two withheld, the keys of one neighbour; cohort of 10, degree 4",
        ring,
        {
            "nonces": {str(i): value.hex() for i, value in nonces.items()},
            "withheld": {str(i): value.hex() for i, value in withheld.items()},
            "advertisements": [[1, shown(advertisement("1"))]],
        },
        [
            patch("bit 10 of a cohort of 10", [7, 1, "06"]),
            patch("a nonce announced that is not there", [6, 1, "0b"]),
            patch("2^32 - 1 withheld", [start, 4, HUGE]),
            patch("11 withheld in a cohort of 10", [start, 4, u32(11).hex()]),
            patch("withheld 2 and 2", [start + 4, 4, u32(2).hex()]),
            patch("withheld 1 and 10 of 10", [start + 40, 4, u32(10).hex()]),
            patch("withheld 0, which revealed", [start + 4, 4, u32(0).hex()]),
            patch("five neighbours of degree 4", [start + 76, 4, u32(5).hex()]),
            patch("2^32 - 1 neighbours", [start + 76, 4, HUGE]),
        ],
        size=10,
        degree=4,
    )
    offer = filler("offer", 200)
    for kind, lead, who in (
        ("shares", b"", "receivers"),
        ("delivery", header(DELIVERY), "senders"),
        ("keyed_delivery", header(KEYED_DELIVERY) + blob(offer), "senders"),
    ):
        first = bundle("2", with_edge=False)
        whole = lead + u32(2) + u32(2) + first + u32(5) + bundle("5", with_edge=True)
        at, next_ = len(lead), len(lead) + 8 + len(first)
        bad = [
            patch("2^32 - 1 bundles", [at, 4, HUGE]),
            patch("four bundles where three can be", [at, 4, u32(4).hex()]),
            patch("one fewer announced", [at, 4, u32(1).hex()]),
            patch(f"{who} 2 and 2", [next_, 4, u32(2).hex()]),
            patch(f"{who} 2 and 3, who is no neighbour", [next_, 4, u32(3).hex()]),
            patch("an edge flagged that 2 does not have", [at + 8 + ENVELOPE, 1, "01"]),
            patch("flag 2", [next_ + 4 + ENVELOPE, 1, "02"]),
            patch("no edge where there must be one", [next_ + 4 + ENVELOPE, 1 + WRAP + 32, "00"]),
            patch("signature of 2^32 - 1 bytes", [at + 9 + ENVELOPE, 4, HUGE]),
        ]
        edges = {"2": False, "5": True}
        expected: dict[str, Any] = {
            "2": bundle_fields("2", with_edge=False),
            "5": bundle_fields("5", with_edge=True),
        }
        limits = {}
        if kind == "shares":
            bad = [b for b in bad if "four" not in b["about"]]
            bad.append(patch("three bundles where two can be", [0, 4, u32(3).hex()]))
            bad.append(patch("one receiver only", [0, 4, u32(1).hex()], [next_, 9999, ""]))
        else:
            edges["7"] = False  # of whom no bundle came
        if kind == "keyed_delivery":
            expected, limits = {"offer": shown(offer), "bundles": expected}, {"offer_limit": 200}
            bad += [
                patch("an offer of 2^32 - 1 bytes", [6, 4, HUGE]),
                patch("an offer of 201 bytes", [6, 204, blob(bytes(201)).hex()]),
                patch("an offer one byte shorter than announced", [10, 1, ""]),
                patch("no offer", [6, 204, ""]),
            ]
        made.add(
            kind,
            f"two bundles, by {who[:-1]}: one without the edge's secret, one with it",
            whole,
            expected,
            bad,
            with_edge=edges,
            **limits,
        )
    made.add(
        "survivors",
        "clients 0, 3 and 9 of 10",
        header(SURVIVORS) + bitmap([0, 3, 9], 10),
        [0, 3, 9],
        [patch("bit 10 of a cohort of 10", [7, 1, "06"]), patch("bit 15", [7, 1, "82"])],
        size=10,
    )
    said = {1: filler("said 1", 64), 4: filler("said 4", 64)}
    made.add(
        "confirmations",
        "two signatures on a survivor list, of at most 3",
        header(CONFIRMATIONS) + u32(2) + b"".join(u32(i) + blob(s) for i, s in said.items()),
        {str(i): value.hex() for i, value in said.items()},
        [
            patch("2^32 - 1 of them", [6, 4, HUGE]),
            patch("four, of at most three", [6, 4, u32(4).hex()]),
            patch("one fewer announced", [6, 4, u32(1).hex()]),
            patch("signers 4 and 4", [10, 4, u32(4).hex()]),
            patch("signers 5 and 4", [10, 4, u32(5).hex()]),
            patch("signer 8 of 8", [82, 4, u32(8).hex()]),
            patch("signature of 3310 bytes", [14, 68, blob(bytes(3310)).hex()]),
        ],
        size=8,
        limit=3,
    )
    ours = {0: filler("self 0", 33), 2: filler("self 2", 33)}
    roots = {1: filler("root 1", 33)}
    listed = [u32(len(g)) + b"".join(u32(i) + s for i, s in g.items()) for g in (ours, roots)]
    made.add(
        "reveal",
        "body of stage unmask: shares of two survivors' seeds and of one dropped client's root",
        b"".join(listed),
        {
            "self_shares": {str(i): value.hex() for i, value in ours.items()},
            "root_shares": {str(i): value.hex() for i, value in roots.items()},
        },
        [
            patch("2^32 - 1 self shares", [0, 4, HUGE]),
            patch("four self shares of at most three", [0, 4, u32(4).hex()]),
            patch("four root shares of at most three", [78, 4, u32(4).hex()]),
            patch("self shares of 2 and 2", [4, 4, u32(2).hex()]),
            patch("self shares of 3 and 2", [4, 4, u32(3).hex()]),
            patch("a share of client 5 of five", [41, 4, u32(5).hex()]),
            patch("both kinds of share of client 2", [82, 4, u32(2).hex()]),
        ],
        size=5,
        limit=3,
    )
    return made.files


def layered_vectors() -> dict[str, Case]:
    """The forms that messages have in a round with two layers of noise that can be removed."""
    made, layers = Messages(), 2
    advert = advertisement("a") + filler("layers a")
    parts = [advert[2 * HYBRID + 32 * i : 2 * HYBRID + 32 * (i + 1)] for i in range(4)]
    names = ("root_commitment", "self_commitment", "nonce_commitment", "layers_commitment")
    made.add(
        "layered_advertisement",
        "body of stage advertise: 2560 bytes, a commitment to the layers' seeds last",
        advert,
        {
            "mask_key": shown(advert[:HYBRID]),
            "envelope_key": shown(advert[HYBRID : 2 * HYBRID]),
            **{name: shown(part) for name, part in zip(names, parts, strict=True)},
        },
        [patch("no commitment to layers", [len(advert) - 32, 32, ""])],
        noise_layers=layers,
    )
    envelope = ENVELOPE + layers * 33
    expected = {
        "2": bundle_fields("2", with_edge=False, envelope=envelope),
        "5": bundle_fields("5", with_edge=True, envelope=envelope),
    }
    for kind, lead in (("shares", b""), ("delivery", header(DELIVERY))):
        first = bundle("2", with_edge=False, envelope=envelope)
        last = bundle("5", with_edge=True, envelope=envelope)
        at = len(lead) + 8
        made.add(
            f"layered_{kind}",
            "two bundles, whose envelopes hold two shares more",
            lead + u32(2) + u32(2) + first + u32(5) + last,
            expected,
            [
                patch("an envelope of one layer", [at, 33, ""]),
                patch("an envelope of three layers", [at, 0, "00" * 33]),
            ],
            with_edge={"2": False, "5": True},
            noise_layers=layers,
        )
    ours = {0: filler("self 0", 33), 2: filler("self 2", 33)}
    roots = {1: filler("root 1", 33)}
    excess = {i: filler(f"layer {i}", 33) for i in ours}
    body = b"".join(u32(len(g)) + b"".join(u32(i) + s for i, s in g.items()) for g in (ours, roots))
    made.add(
        "layered_reveal",
        "as reveal, then a share of a layer's seed of each survivor, in the same order",
        body + b"".join(excess.values()),
        {
            name: {str(i): value.hex() for i, value in shares.items()}
            for name, shares in (
                ("self_shares", ours),
                ("root_shares", roots),
                ("layer_shares", excess),
            )
        },
        [
            patch("no share of a layer", [len(body), 66, ""]),
            patch("shares of a layer of one survivor", [len(body), 33, ""]),
            patch("shares of a layer of three survivors", [len(body), 0, "00" * 33]),
        ],
        size=5,
        limit=3,
        excess=True,
    )
    return {**made.files, "messages_noise_layers": noise_layers_vector()}


def noise_layers_vector() -> Case:
    """A chain of seeds, the layers' keys, what each seed's owner promised, and the noise."""
    digest, index, values = filler("round digest"), 3, 12
    stds = [2.5, 4.0, 6.75]
    where = digest + index4(index)
    seeds = [filler("first layer seed")]
    while len(seeds) < len(stds):
        seeds.append(derived(seeds[-1], LABEL + b"next-noise-layer", where, 32))
    keys = [derived(seed, LABEL + b"noise-layer", where, 32) for seed in seeds]
    commitment = hashlib.sha256(framed(LABEL + b"noise-layers-commitment", where, seeds[-1]))
    with mpmath.workprec(600):
        drawn = [
            inversion_draws(gaussian_weights(std), key, values)
            for std, key in zip(stds, keys, strict=True)
        ]
    case = {
        "digest": digest.hex(),
        "index": index,
        "seed": seeds[0].hex(),
        "count": len(stds),
        "stds": stds,
        "values": values,
        "expected": {
            "seeds": [seed.hex() for seed in seeds],
            "keys": [key.hex() for key in keys],
            "commitments": [commitment.hexdigest()] * len(stds),
            "noise": [sum(column) for column in zip(*drawn, strict=True)],
        },
    }
    return vector("noise_layers", "layers of noise from one seed", [case])


def ring_order(seed: bytes, size: int) -> list[int]:
    """Clients in the order of their 16 bytes of keystream, read as little-endian integers."""
    drawn = words(derived(seed, LABEL + b"graph-order", b"", 32), size, 16)
    return sorted(range(size), key=lambda index: drawn[index])


def ring_neighbours(order: list[int], index: int, reach: int) -> list[int]:
    place, size = order.index(index), len(order)
    return sorted(order[(place + step) % size] for step in range(-reach, reach + 1) if step)


def listed_hash(label: bytes, digest: bytes, items: dict[int, bytes]) -> bytes:
    joined = b"".join(index4(index) + items[index] for index in sorted(items))
    return hashlib.sha256(framed(LABEL + label, digest, joined)).digest()


def graph_vectors() -> dict[str, Case]:
    orders, seeds = [], []
    for size, degree, witnesses in ((6, 2, 4), (13, 6, 8), (200, 62, 82)):
        seed = filler(f"graph seed {size}")
        order = ring_order(seed, size)
        place = {client: at for at, client in enumerate(order)}
        near = ring_neighbours(order, 0, degree // 2)
        gives = [i for i in near if (place[i] - place[0]) % size <= degree // 2]
        orders.append(
            {
                "seed": seed.hex(),
                "size": size,
                "degree": degree,
                "witnesses": witnesses,
                "expected": {
                    "order": order,
                    "neighbours_of_0": near,
                    "witnesses_of_0": sorted([0, *ring_neighbours(order, 0, witnesses // 2)]),
                    "0_gives_to": gives,
                },
            }
        )
    for revealed in ([0, 1, 2, 3], [0, 2]):
        digest = filler("round digest")
        nonces = {i: filler(f"graph nonce {i}", 16) for i in range(4)}
        committed = {
            i: hashlib.sha256(framed(LABEL + b"graph-nonce", digest + index4(i), nonce)).digest()
            for i, nonce in nonces.items()
        }
        there = {i: nonces[i] for i in revealed}
        seeds.append(
            {
                "digest": digest.hex(),
                "nonces": {str(i): nonce.hex() for i, nonce in nonces.items()},
                "revealed": revealed,
                "expected": {
                    "commitments": {str(i): value.hex() for i, value in committed.items()},
                    "commitments_hash": listed_hash(b"graph-commitments", b"", committed).hex(),
                    "seed": listed_hash(b"graph-seed", digest, there).hex(),
                },
            }
        )
    complete = {
        "size": 5,
        "expected": [[i, j] for i in range(5) for j in range(5) if i != j and _gives(i, j)],
    }
    return {
        "messages_graph_order": vector("graph.order", "from a seed to a ring", orders),
        "messages_graph_seed": vector("graph.seed", "from nonces to a seed", seeds),
        "messages_graph_complete": vector(
            "graph.complete", "[giver, taker] of every edge of a complete graph", [complete]
        ),
    }


def _gives(giver: int, taker: int) -> bool:
    """The lower of two indices gives where their sum is odd, the higher where it is even."""
    return (giver < taker) == ((giver + taker) % 2 == 1)


class Round:
    """One round in which the last client shares and sends no input."""

    def __init__(self, *, sparse: bool) -> None:
        self.parameters = (
            {"size": 8, "corrupt": 0, "survivor_floor": 6, "degree": 4}
            | {"threshold": 4, "witnesses": 4, "quorum": 4, "sigma": 40, "eta": 30}
            if sparse
            else {"size": 4, "corrupt": 0, "survivor_floor": 3, "degree": 3}
            | {"threshold": 3, "witnesses": 3, "quorum": 3, "sigma": 40, "eta": 30}
        )
        self.sparse, self.size = sparse, self.parameters["size"]
        self.bits, self.length = 27, 5
        self.everyone = range(self.size)
        self.alive = list(range(self.size - 1))
        self.names = [f"client-{i}" for i in self.everyone]
        self.identities = [
            Ed25519PrivateKey.from_private_bytes(filler(f"round identity {i}"))
            for i in self.everyone
        ]
        self.session, self.binding = filler("session", 16), filler("binding")
        self.digest = self.context_digest()
        self.roots = [filler(f"round root {i}") for i in self.everyone]
        self.seeds = [filler(f"round self seed {i}") for i in self.everyone]
        self.nonces = [filler(f"round nonce {i}", 16) for i in self.everyone]
        self.envelope_seeds = [filler(f"round envelope {i}") for i in self.everyone]
        self.mask_keys = [
            hybrid_public(derived(root, LABEL + b"mask-key", self.digest + index4(i), 32))
            for i, root in enumerate(self.roots)
        ]
        nonce_commitments = {
            i: hashlib.sha256(
                framed(LABEL + b"graph-nonce", self.digest + index4(i), nonce)
            ).digest()
            for i, nonce in enumerate(self.nonces)
        }
        self.adverts = [
            self.mask_keys[i]
            + hybrid_public(self.envelope_seeds[i])
            + self.committed(b"root-commitment", self.roots[i], index4(i))
            + self.committed(b"self-mask-commitment", self.seeds[i], index4(i))
            + nonce_commitments[i]
            for i in self.everyone
        ]
        self.commitments = listed_hash(b"graph-commitments", b"", nonce_commitments)
        if sparse:
            self.view = listed_hash(b"graph-seed", self.digest, dict(enumerate(self.nonces)))
            self.order = ring_order(self.view, self.size)
        else:
            hashes = [index4(i) + hashlib.sha256(a).digest() for i, a in enumerate(self.adverts)]
            self.view = hashlib.sha256(LABEL + b"sharers" + b"".join(hashes)).digest()
            self.order = list(self.everyone)

    def context_digest(self) -> bytes:
        message = header(0) + self.session + u32(1) + u32(self.length) + bytes([self.bits])
        message += b"".join(u32(value) for _, value in sorted(self.parameters.items()))
        message += self.binding + u32(self.size)
        for name, key in zip(self.names, self.identities, strict=True):
            message += blob(name.encode()) + blob(key.public_key().public_bytes_raw())
        return hashlib.sha256(message).digest()

    def committed(self, label: bytes, secret: bytes, whose: bytes) -> bytes:
        return hashlib.sha256(framed(LABEL + label, self.digest + whose, secret)).digest()

    def neighbours(self, index: int) -> list[int]:
        reach = self.parameters["degree"] // 2
        return (
            ring_neighbours(self.order, index, reach)
            if self.sparse
            else [i for i in self.everyone if i != index]
        )

    def gives(self, giver: int, taker: int) -> bool:
        if not self.sparse:
            return _gives(giver, taker)
        ahead = (self.order.index(taker) - self.order.index(giver)) % self.size
        return ahead <= self.parameters["degree"] // 2

    def edge_secret(self, one: int, other: int) -> bytes:
        giver, taker = (one, other) if self.gives(one, other) else (other, one)
        context = self.digest + index4(giver) + index4(taker) + self.mask_keys[taker]
        return derived(self.roots[giver], LABEL + b"edge-secret", context, 32)

    def coefficients(self, kind: str, index: int) -> list[bytes]:
        count = self.parameters["threshold"] - 1
        return [filler(f"round {kind} coefficient {index} {i}") for i in range(count)]

    def random(self, index: int) -> bytes:
        """Everything that a client draws, in order; sealing draws elsewhere."""
        drawn = self.roots[index] + self.seeds[index] + self.nonces[index]
        drawn += self.envelope_seeds[index]
        for kind in ("root", "self"):
            drawn += b"".join(bytes(1) + block for block in self.coefficients(kind, index))
        return drawn

    def share_of(self, kind: str, owner: int, holder: int) -> bytes:
        """Coefficients are drawn with the highest power first."""
        secret = self.roots[owner] if kind == "root" else self.seeds[owner]
        blocks = [secret, *reversed(self.coefficients(kind, owner))]
        numbers = [int.from_bytes(block, "big") for block in blocks]
        return polynomial_shares(numbers, [holder + 1])[holder + 1]

    def contribution(self, index: int) -> list[int]:
        return [v % 2**self.bits for v in words(filler(f"round input {index}"), self.length, 4)]

    def self_key(self, index: int) -> bytes:
        context = self.digest + index4(index) + self.view
        return derived(self.seeds[index], LABEL + b"self-keystream", context, 32)

    def pair_key(self, one: int, other: int) -> bytes:
        low, high = sorted((one, other))
        context = self.digest + index4(low) + index4(high) + self.view
        return derived(self.edge_secret(one, other), LABEL + b"pairwise-keystream", context, 32)

    def masked(self, index: int) -> list[int]:
        vector = self.contribution(index)
        masks = [(self.self_key(index), 1)]
        masks += [(self.pair_key(index, i), 1 if index < i else -1) for i in self.neighbours(index)]
        for key, sign in masks:
            stream = words(key, self.length, 4)
            vector = [v + sign * s for v, s in zip(vector, stream, strict=True)]
        return [v % 2**self.bits for v in vector]

    def packed(self, index: int) -> bytes:
        number = sum(v << (self.bits * i) for i, v in enumerate(self.masked(index)))
        return number.to_bytes(-(-self.bits * self.length // 8), "little")

    def signed(self, stage: str, index: int, body: bytes) -> bytes:
        covered = self.digest + u32(index) + hashlib.sha256(body).digest()
        label = LABEL + b"sign-stage/" + stage.encode()
        return signed(index, body, self.identities[index].sign(framed(label, covered)))

    def statement(self) -> bytes:
        listed = b"".join(index4(i) for i in self.alive)
        return self.digest + self.view + hashlib.sha256(LABEL + b"survivors" + listed).digest()

    def confirmation(self, index: int) -> bytes:
        return self.identities[index].sign(framed(LABEL + b"sign-survivors", self.statement()))

    def reveal(self, index: int) -> bytes:
        held = sorted([index, *self.neighbours(index)])
        body = b""
        for kind, whose in (
            ("self", [i for i in held if i in self.alive]),
            ("root", [i for i in held if i not in self.alive]),
        ):
            body += u32(len(whose))
            body += b"".join(u32(i) + self.share_of(kind, i, index) for i in whose)
        return body

    def vector(self) -> Case:
        last = self.size - 1
        sent = {
            "advertise": {i: self.signed("advertise", i, self.adverts[i]) for i in self.everyone},
            "masked_input": {
                i: self.signed("masked_input", i, self.view + self.packed(i)) for i in self.alive
            },
            "consistency": {
                i: self.signed("consistency", i, self.confirmation(i)) for i in self.alive
            },
            "unmask": {i: self.signed("unmask", i, self.reveal(i)) for i in self.alive},
        }
        if self.sparse:
            sent["graph"] = {
                i: self.signed("graph", i, self.nonces[i] + self.commitments) for i in self.everyone
            }
        near = self.neighbours(0)[0]
        total = [
            sum(column) % 2**self.bits
            for column in zip(*(self.contribution(i) for i in self.alive), strict=True)
        ]
        giver, taker = (0, near) if self.gives(0, near) else (near, 0)
        secret = self.edge_secret(0, near)
        pair = index4(giver) + index4(taker)
        return {
            "parameters": self.parameters,
            "session": self.session.hex(),
            "binding": self.binding.hex(),
            "length": self.length,
            "bits": self.bits,
            "cohort": self.names,
            "identity_seeds": [filler(f"round identity {i}").hex() for i in self.everyone],
            "contributions": [self.contribution(i) for i in self.everyone],
            "random": [self.random(i).hex() for i in self.everyone],
            "dropped": last,
            "expected": {
                "digest": self.digest.hex(),
                "view": self.view.hex(),
                "order": self.order,
                "edge": {
                    "giver": giver,
                    "taker": taker,
                    "secret": secret.hex(),
                    "commitment": self.committed(b"edge-commitment", secret, pair).hex(),
                    "keystream_key": self.pair_key(0, near).hex(),
                },
                "self_keystream_key_of_0": self.self_key(0).hex(),
                "masked_input_of_0": self.masked(0),
                "statement": self.statement().hex(),
                "messages": {
                    stage: {str(i): shown(message) for i, message in by.items()}
                    for stage, by in sorted(sent.items())
                },
                "total": total,
            },
        }


def round_vectors() -> dict[str, Case]:
    return {
        f"messages_round_{kind}": vector(
            "round", f"a {kind} round; the last client is lost after sharing", [made.vector()]
        )
        for kind, made in (("complete", Round(sparse=False)), ("sparse", Round(sparse=True)))
    }


def build() -> dict[str, Case]:
    """File stem to content."""
    return {**message_vectors(), **layered_vectors(), **graph_vectors(), **round_vectors()}


if __name__ == "__main__":
    for stem, content in build().items():
        (FOLDER / f"{stem}.json").write_text(encode(content), encoding="utf-8")
