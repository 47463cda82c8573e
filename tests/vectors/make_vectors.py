"""Makes the JSON test vectors of this folder, without importing the package under test.

Run ``python tests/vectors/make_vectors.py`` to write them; a test runs :func:`build` again and
compares.  Every expected value is computed here in another way than the package does it: keystreams
block by block with AES-ECB, HKDF from HMAC, Shamir with explicit powers and fractions of products,
discrete Gaussian draws by bisection in a table from mpmath, Skellam draws likewise from the
convolution of two Poisson distributions.  Ed25519 and ML-DSA are the library's;
an ML-DSA public key is compared with RFC 9881, and a signature is checked from FIPS 204's hash of
key and message.

A file is ``{"operation", "success", "about", "cases"}``.  Names with ``_bad_`` hold inputs that
must be refused, each with the name of the error in place of ``expected``.  Bytes are hex.

Sealing and ML-DSA signing are randomised, so the envelope and the signature on disk are kept unless
``--new-envelope`` or ``--new-signature`` is given; the corrupted ones follow from them.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import json
import sys
from pathlib import Path
from typing import Any

import mpmath
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

FOLDER = Path(__file__).parent
PRIME = 2**256 + 297
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493

Case = dict[str, Any]


def filler(name: str, count: int = 32) -> bytes:
    """Reproducible bytes that no other name shares."""
    return hashlib.shake_256(b"vector " + name.encode()).digest(count)


def flipped(block: bytes, position: int) -> bytes:
    """``block`` with one bit of byte ``position`` changed."""
    changed = bytearray(block)
    changed[position] ^= 1
    return bytes(changed)


def keystream(key: bytes, count: int) -> bytes:
    """AES-256-CTR with zero nonce, as ECB of the counters 0, 1, 2, ... (big-endian)."""
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    counters = b"".join(i.to_bytes(16, "big") for i in range(-(-count // 16)))
    return blocks.update(counters)[:count]


def words(key: bytes, count: int, size: int) -> list[int]:
    stream = keystream(key, size * count)
    return [int.from_bytes(stream[size * i : size * (i + 1)], "little") for i in range(count)]


def framed(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256."""
    return hkdf_expand(hmac.digest(salt or bytes(32), secret, "sha256"), info, length)


def hkdf_expand(key: bytes, info: bytes, length: int) -> bytes:
    out, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        out += block
    return out[:length]


def derived(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    return hkdf(b"", secret, framed(label, context, length.to_bytes(2, "big")), length)


def hybrid_keys(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    material = derived(seed, b"securefed/1/keys/hybrid-key", b"", 96)
    return (
        MLKEM768PrivateKey.from_seed_bytes(material[:64]),
        X25519PrivateKey.from_private_bytes(material[64:]),
    )


def hybrid_public(seed: bytes) -> bytes:
    mlkem, x25519 = hybrid_keys(seed)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def polynomial_shares(coefficients: list[int], points: list[int]) -> dict[int, bytes]:
    return {
        x: (sum(c * x**power for power, c in enumerate(coefficients)) % PRIME).to_bytes(33, "big")
        for x in points
    }


def gaussian_weights(std: float) -> list[Any]:
    """exp(-k^2 / (2 std^2)) for k = 0, 1, ..."""
    scale = 2 * mpmath.mpf(std) ** 2
    return [mpmath.exp(-(mpmath.mpf(k) ** 2) / scale) for k in range(int(12 * std) + 2)]


def skellam_weights(variance: float) -> list[Any]:
    """P(A - B = k) for k = 0, 1, ... and independent Poisson A and B, term by term."""
    mean = mpmath.mpf(variance) / 2
    unit = 2**500
    poisson, term = [], mpmath.exp(-mean)
    for j in range(int(mean + 40 * mpmath.sqrt(mean + 1)) + 60):
        poisson.append(int(term * unit))
        term *= mean / (j + 1)
    last = int(14 * mpmath.sqrt(variance)) + 20
    return [
        mpmath.mpf(sum(a * b for a, b in zip(poisson[k:], poisson, strict=False))) / unit**2
        for k in range(last)
    ]


def inversion_draws(weights: list[Any], key: bytes, count: int) -> list[int]:
    """Inversion of 191 bits by bisection; raises if a draw needs more than its first 63."""
    total = weights[0] + 2 * mpmath.fsum(weights[1:])
    running, table = weights[0] / total, []
    for weight in [*weights[1:], mpmath.mpf(0)]:
        table.append(int(mpmath.floor(running * 2**63)))
        running += 2 * weight / total
    draws = []
    for word in words(key, count, 8):
        top = word >> 1
        if top in table:
            raise ValueError("a tie: choose another seed")
        magnitude = bisect.bisect_right(table, top)
        draws.append(-magnitude if word & 1 else magnitude)
    return draws


def vector(operation: str, about: str, cases: list[Case], *, success: bool = True) -> Case:
    return {"operation": operation, "success": success, "about": about, "cases": cases}


def refused(operation: str, about: str, error: str, **inputs: Any) -> Case:
    return vector(operation, about, [{**inputs, "error": error}], success=False)


def prg_vectors() -> dict[str, Case]:
    adding = []
    for size, subtract in ((0, False), (1, False), (5, True), (40, False), (40, True)):
        key, start = filler(f"prg key {size}"), words(filler("prg start"), size, 4)
        sign = -1 if subtract else 1
        moved = [(v + sign * s) % 2**32 for v, s in zip(start, words(key, size, 4), strict=True)]
        adding.append({"key": key.hex(), "vector": start, "subtract": subtract, "expected": moved})
    signs = []
    for size in (0, 1, 13, 64):
        seed = filler(f"sign seed {size}")
        stream = int.from_bytes(keystream(seed, size), "little")
        expected = [1 - 2 * (stream >> i & 1) for i in range(size)]
        signs.append({"seed": seed.hex(), "count": size, "expected": expected})
    start = [1, 2, 3]
    return {
        "prg_add_keystream": vector("prg.add_keystream", "AES-256-CTR masks", adding),
        "prg_expand_signs": vector("prg.expand_signs", "public signs", signs),
        "prg_bad_key_length": vector(
            "prg.add_keystream",
            "AES-128 and over-long keys",
            [
                {"key": bytes(n).hex(), "vector": start, "subtract": False, "error": "ConfigError"}
                for n in (0, 16, 31, 33)
            ],
            success=False,
        ),
    }


def shamir_vectors() -> dict[str, Case]:
    cases = []
    for points, threshold in (([1, 2], 2), ([1, 2, 3, 4, 5], 3), ([7, 2**32 - 1, 12, 9], 4)):
        secret = filler(f"shamir secret {threshold}")
        # 33 random bytes a coefficient, highest power first, already below the prime.
        random = [filler(f"coefficient {threshold} {i}") for i in range(threshold - 1)]
        coefficients = [int.from_bytes(block, "big") for block in (secret, *reversed(random))]
        shares = polynomial_shares(coefficients, points)
        cases.append(
            {
                "secret": secret.hex(),
                "threshold": threshold,
                "points": points,
                "random": b"".join(bytes(1) + block for block in random).hex(),
                "expected": {str(x): shares[x].hex() for x in sorted(points)},
            }
        )
    good = polynomial_shares([11, 22, 33], [1, 2, 3])
    too_large = polynomial_shares([2**256, 22, 33], [1, 2, 3])

    def bad(about: str, error: str, shares: dict[int, bytes], threshold: int = 3) -> Case:
        encoded = {str(x): block.hex() for x, block in shares.items()}
        return refused("shamir.reconstruct", about, error, shares=encoded, threshold=threshold)

    remote = "RemoteProtocolError"
    return {
        "shamir_share": vector("shamir.share", "shares of given coefficients", cases),
        "shamir_bad_share_equal_to_prime": bad(
            "0 encoded as p", remote, good | {2: PRIME.to_bytes(33, "big")}
        ),
        "shamir_bad_share_all_ones": bad("33 bytes of ff", remote, good | {3: b"\xff" * 33}),
        "shamir_bad_share_truncated": bad("32 bytes", remote, good | {1: good[1][:-1]}),
        "shamir_bad_share_extended": bad("34 bytes", remote, good | {1: good[1] + b"\0"}),
        "shamir_bad_share_empty": bad("0 bytes", remote, good | {1: b""}),
        "shamir_bad_secret_too_large": bad("value at 0 is 2^256", remote, too_large),
        "shamir_bad_too_few_shares": bad(
            "two of three", "ThresholdNotMet", {1: good[1], 2: good[2]}
        ),
        "shamir_bad_point_zero": bad(
            "a share at 0 would be the secret", "ConfigError", good | {0: good[1]}
        ),
        "shamir_bad_threshold_one": bad("threshold 1", "ConfigError", good, threshold=1),
    }


def derivation_vectors() -> dict[str, Case]:
    derivations, commitments = [], []
    for label, context, length in (
        (b"securefed/1/a", b"", 32),
        (b"securefed/1/a", b"context", 32),
        (b"securefed/1/", b"acontext", 32),
        (b"securefed/1/a", b"context", 100),
    ):
        secret = filler("derivation secret")
        inputs = {"secret": secret.hex(), "label": label.hex(), "context": context.hex()}
        value = derived(secret, label, context, length)
        derivations.append({**inputs, "length": length, "expected": value.hex()})
        commitment = hashlib.sha256(framed(label, context, secret)).hexdigest()
        commitments.append({**inputs, "expected": commitment})
    inputs = {"secret": filler("s").hex(), "label": b"securefed/1/a".hex(), "context": ""}
    return {
        "keys_derive": vector("keys.derive", "HKDF-SHA256", derivations),
        "keys_commit": vector("keys.commit", "SHA-256 commitments", commitments),
        "keys_bad_derive_short_secret": refused(
            "keys.derive", "31 bytes", "ConfigError", **inputs | {"secret": "00" * 31}, length=32
        ),
        "keys_bad_derive_foreign_label": refused(
            "keys.derive", "prefix", "ConfigError", **inputs | {"label": b"a".hex()}, length=32
        ),
        "keys_bad_commit_long_secret": refused(
            "keys.commit", "33 bytes", "ConfigError", **inputs | {"secret": "00" * 33}
        ),
    }


def signature_vectors() -> dict[str, Case]:
    label, message, seed = b"securefed/1/test", b"the message", filler("identity")
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public = key.public_key().public_bytes_raw()
    signature = key.sign(framed(label, message))
    large_s = (int.from_bytes(signature[32:], "little") + ED25519_ORDER).to_bytes(32, "little")
    good = {
        "public": public.hex(),
        "message": message.hex(),
        "label": label.hex(),
        "signature": signature.hex(),
    }
    other = Ed25519PrivateKey.from_private_bytes(filler("other identity")).public_key()

    def bad(about: str, **changes: bytes) -> Case:
        changed = good | {name: block.hex() for name, block in changes.items()}
        return refused("keys.verify", about, "RemoteProtocolError", **changed)

    made = {"seed": seed.hex(), "message": message.hex(), "label": label.hex()}
    made["expected"] = signature.hex()
    return {
        "keys_sign": vector("keys.sign", "Ed25519 under a label", [made]),
        "keys_verify": vector("keys.verify", "a valid signature", [good | {"expected": None}]),
        "keys_bad_signature_r": bad("a bit of R", signature=flipped(signature, 0)),
        "keys_bad_signature_s": bad("a bit of S", signature=flipped(signature, 40)),
        "keys_bad_signature_s_not_reduced": bad("S + L", signature=signature[:32] + large_s),
        "keys_bad_signature_truncated": bad("63 bytes", signature=signature[:-1]),
        "keys_bad_signature_extended": bad("65 bytes", signature=signature + b"\0"),
        "keys_bad_signature_zero": bad("all zero", signature=bytes(64)),
        "keys_bad_signature_message": bad("another message", message=message + b"!"),
        "keys_bad_signature_label": bad("another label", label=b"securefed/1/other"),
        "keys_bad_signature_unlabelled": bad("no label signed", signature=key.sign(message)),
        "keys_bad_signature_key": bad("another key", public=other.public_bytes_raw()),
        "keys_bad_identity_small_order": bad(
            "identity point, under which R = identity and S = 0 fits every message",
            public=b"\1" + bytes(31),
            signature=b"\1" + bytes(63),
        ),
        "keys_bad_identity_length": bad("31 bytes", public=public[:-1]),
    }


# The seed 00 01 .. 1f, and SHA-256 of its public key as printed in RFC 9881, appendix C.
RFC_9881_SEED = bytes(range(32))
RFC_9881_PUBLIC_SHA256 = "d666806e11cee19a7c989f7445f90dd419cf4d2d51db8c0fdb4c0f0a542238c9"
# An ML-DSA-65 signature is a challenge, 5 polynomials of 20-bit coefficients and a hint: the
# positions of at most 55 ones, then for each of 6 polynomials where its positions end.
MLDSA_RESPONSE, MLDSA_HINT, MLDSA_ONES = 48, 48 + 5 * 640, 55


def mldsa_representative(public: bytes, message: bytes) -> bytes:
    """mu of FIPS 204, algorithms 3 and 8, for the empty context."""
    key_hash = hashlib.shake_256(public).digest(64)
    return hashlib.shake_256(key_hash + b"\0\0" + message).digest(64)


def padded_hint(signature: bytes) -> bytes:
    """The same hint with a spare position that is not zero: a second encoding of one signature."""
    ones = signature[-1]
    if ones >= MLDSA_ONES:
        raise ValueError("no spare position: make another signature")
    return flipped(signature, MLDSA_HINT + ones)


def reordered_hint(signature: bytes) -> bytes:
    """The same hint with two positions of one polynomial swapped: again a second encoding."""
    start = 0
    for end in signature[MLDSA_HINT + MLDSA_ONES :]:
        if end - start >= 2:
            at = MLDSA_HINT + start
            pair = signature[at : at + 2]
            return signature[:at] + pair[::-1] + signature[at + 2 :]
        start = end
    raise ValueError("no polynomial has two positions: make another signature")


def mldsa_vectors(kept: bytes | None) -> dict[str, Case]:
    label, message, seed = b"securefed/1/test", b"the message", filler("ml-dsa identity")
    key = MLDSA65PrivateKey.from_seed_bytes(seed)
    public = key.public_key().public_bytes_raw()
    signed = framed(label, message)
    signature = kept if kept is not None else key.sign(signed)
    key.public_key().verify_mu(signature, mldsa_representative(public, signed))
    good = {
        "public": public.hex(),
        "message": message.hex(),
        "label": label.hex(),
        "signature": signature.hex(),
    }
    other = MLDSA65PrivateKey.from_seed_bytes(filler("other ml-dsa identity")).public_key()
    ed25519 = Ed25519PrivateKey.from_private_bytes(seed)

    def bad(about: str, **changes: bytes) -> Case:
        changed = good | {name: block.hex() for name, block in changes.items()}
        return refused("keys.verify", about, "RemoteProtocolError", **changed)

    def determined(seed: bytes, sha256: str) -> Case:
        return {"seed": seed.hex(), "algorithm": "ml-dsa-65", "expected": sha256}

    return {
        "keys_mldsa_public": vector(
            "keys.identity_from_seed",
            "SHA-256 of the public key that a seed determines; the first is that of RFC 9881",
            [
                determined(RFC_9881_SEED, RFC_9881_PUBLIC_SHA256),
                determined(seed, hashlib.sha256(public).hexdigest()),
            ],
        ),
        "keys_mldsa_verify": vector(
            "keys.verify", "a valid ML-DSA-65 signature", [good | {"expected": None}]
        ),
        "keys_mldsa_bad_signature_challenge": bad(
            "a bit of the challenge", signature=flipped(signature, 0)
        ),
        "keys_mldsa_bad_signature_response": bad(
            "a bit of z", signature=flipped(signature, MLDSA_RESPONSE)
        ),
        "keys_mldsa_bad_signature_hint_padded": bad(
            "a spare byte of the hint not zero", signature=padded_hint(signature)
        ),
        "keys_mldsa_bad_signature_hint_order": bad(
            "two positions of the hint swapped", signature=reordered_hint(signature)
        ),
        "keys_mldsa_bad_signature_truncated": bad("3308 bytes", signature=signature[:-1]),
        "keys_mldsa_bad_signature_extended": bad("3310 bytes", signature=signature + b"\0"),
        "keys_mldsa_bad_signature_zero": bad("all zero", signature=bytes(3309)),
        "keys_mldsa_bad_signature_ed25519": bad(
            "Ed25519's under the same seed", signature=ed25519.sign(signed)
        ),
        "keys_mldsa_bad_signature_message": bad("another message", message=message + b"!"),
        "keys_mldsa_bad_signature_label": bad("another label", label=b"securefed/1/other"),
        "keys_mldsa_bad_signature_key": bad("another key", public=other.public_bytes_raw()),
        "keys_mldsa_bad_signature_ed25519_key": bad(
            "under the Ed25519 key of the same seed", public=ed25519.public_key().public_bytes_raw()
        ),
        "keys_mldsa_bad_public_length": vector(
            "keys.identity_public",
            "1951, 1953 and 1312 (ML-DSA-44) bytes",
            [
                {"raw": raw.hex(), "error": "RemoteProtocolError"}
                for raw in (public[:-1], public + b"\0", public[:1312])
            ],
            success=False,
        ),
    }


def fresh_envelope(seed: bytes, plaintext: bytes, info: bytes) -> bytes:
    mlkem, x25519 = hybrid_keys(seed)
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    public = hpke.MLKEM768X25519PublicKey(mlkem.public_key(), x25519.public_key())
    return suite.encrypt(plaintext, public, info)


def envelope_vectors(kept: bytes | None) -> dict[str, Case]:
    seed, info, plaintext = filler("hybrid seed"), b"securefed/1/test info", b"the plaintext"
    sealed = kept if kept is not None else fresh_envelope(seed, plaintext, info)
    public = hybrid_public(seed)
    inputs = {"seed": seed.hex(), "info": info.hex(), "sealed": sealed.hex()}

    def bad(about: str, **changes: bytes) -> Case:
        changed = inputs | {name: block.hex() for name, block in changes.items()}
        return refused("keys.open", about, "RemoteProtocolError", **changed)

    def bad_public(about: str, raw: bytes) -> Case:
        return refused("keys.hybrid_public", about, "RemoteProtocolError", raw=raw.hex())

    swapped = sealed[:1088] + bytes(32) + sealed[1120:]
    return {
        "keys_hybrid_public": vector(
            "keys.hybrid_from_seed",
            "SHA-256 of the public key that a seed determines",
            [{"seed": seed.hex(), "expected": hashlib.sha256(public).hexdigest()}],
        ),
        "keys_envelope": vector(
            "keys.open", "HPKE base mode over X-Wing", [inputs | {"expected": plaintext.hex()}]
        ),
        "keys_bad_envelope_mlkem_ciphertext": bad("byte 0", sealed=flipped(sealed, 0)),
        "keys_bad_envelope_x25519_ciphertext": bad("byte 1088", sealed=flipped(sealed, 1088)),
        "keys_bad_envelope_x25519_small_order": bad("zero point", sealed=swapped),
        "keys_bad_envelope_payload": bad("byte 1120", sealed=flipped(sealed, 1120)),
        "keys_bad_envelope_tag": bad("last byte", sealed=flipped(sealed, len(sealed) - 1)),
        "keys_bad_envelope_truncated": bad("one byte short", sealed=sealed[:-1]),
        "keys_bad_envelope_only_kem": bad("1120 bytes", sealed=sealed[:1120]),
        "keys_bad_envelope_empty": bad("0 bytes", sealed=b""),
        "keys_bad_envelope_extended": bad("one byte more", sealed=sealed + b"\0"),
        "keys_bad_envelope_info": bad("another info", info=info + b"!"),
        "keys_bad_envelope_key": bad("another key", seed=filler("other hybrid seed")),
        "keys_bad_hybrid_public_length": bad_public("1215 bytes", public[:-1]),
        "keys_bad_hybrid_public_mlkem_not_reduced": bad_public(
            "first coefficient 4095 >= 3329", b"\xff" + bytes([public[1] | 0x0F]) + public[2:]
        ),
        "keys_bad_hybrid_public_x25519_zero": bad_public("zero", public[:1184] + bytes(32)),
        "keys_bad_hybrid_public_x25519_one": bad_public(
            "the point of order 1", public[:1184] + b"\1" + bytes(31)
        ),
    }


def sampler_vectors() -> dict[str, Case]:
    gaussian, skellam, rounding, poisson = [], [], [], []
    for seed, std in enumerate((0.5, 3.0, 47.25, 1000.0)):
        with mpmath.workprec(600):
            draws = inversion_draws(gaussian_weights(std), seed.to_bytes(32, "big"), 24)
        gaussian.append({"seed": seed, "std": std, "count": 24, "expected": draws})
    for seed, variance in enumerate((0.25, 2.5, 100.0, 900.75)):
        with mpmath.workprec(600):
            draws = inversion_draws(skellam_weights(variance), seed.to_bytes(32, "big"), 24)
        skellam.append({"seed": seed, "variance": variance, "count": 24, "expected": draws})
    values = [0.0, -0.5, 0.25, 2.75, -3.999, 1e6 + 0.5, -(2.0**51) - 0.5, 2.0**-60, -(2.0**-60)]
    for seed in range(4):
        expected = []
        for value, word in zip(values, words(seed.to_bytes(32, "big"), 9, 8), strict=True):
            exact = mpmath.mpf(value)
            floor = int(mpmath.floor(exact))
            with mpmath.workprec(200):
                expected.append(floor + (mpmath.mpf(word >> 11) / 2**53 < exact - floor))
        rounding.append({"seed": seed, "values": values, "expected": [int(e) for e in expected]})
    for seed, probability in enumerate((0.0, 0.1, 0.5, 1.0)):
        draws = words(seed.to_bytes(32, "big"), 40, 8)
        kept = [i for i, word in enumerate(draws) if (word >> 11) < int(probability * 2**53)]
        poisson.append({"seed": seed, "count": 40, "probability": probability, "expected": kept})
    return {
        "samplers_discrete_gaussian": vector("samplers.gaussian", "seeded draws", gaussian),
        "samplers_skellam": vector("samplers.skellam", "seeded draws", skellam),
        "samplers_bad_variance": vector(
            "samplers.skellam",
            "outside 0.25 <= variance <= 2^34",
            [
                {"seed": 0, "variance": variance, "count": 1, "error": "ConfigError"}
                for variance in (0.0, -3.0, 0.24, 2.0**34 + 4, 1e300)
            ],
            success=False,
        ),
        "samplers_stochastic_round": vector("samplers.round", "seeded rounding", rounding),
        "samplers_poisson": vector("samplers.poisson", "seeded subsets", poisson),
        "samplers_bad_round_overflow": vector(
            "samplers.round",
            "too large for a fraction, or not finite",
            [
                {"seed": 0, "values": [0.5, value], "error": "OverflowBoundError"}
                for value in (2.0**52, -(2.0**52), 1e300)
            ],
            success=False,
        ),
        "samplers_bad_std": vector(
            "samplers.gaussian",
            "outside 0.5 <= std <= 2^20",
            [
                {"seed": 0, "std": std, "count": 1, "error": "ConfigError"}
                for std in (0.0, -3.0, 0.49, 2.0**20 + 1, 1e300)
            ],
            success=False,
        ),
    }


def kept(stem: str, field: str) -> bytes | None:
    """A randomised value that is on disk, if it is."""
    path = FOLDER / f"{stem}.json"
    if not path.exists():
        return None
    return bytes.fromhex(json.loads(path.read_text(encoding="utf-8"))["cases"][0][field])


def build(*, new_envelope: bool = False, new_signature: bool = False) -> dict[str, Case]:
    """File stem to content, for every vector of the crypto package and the samplers."""
    envelope = None if new_envelope else kept("keys_envelope", "sealed")
    signature = None if new_signature else kept("keys_mldsa_verify", "signature")
    return {
        **prg_vectors(),
        **shamir_vectors(),
        **derivation_vectors(),
        **signature_vectors(),
        **mldsa_vectors(signature),
        **envelope_vectors(envelope),
        **sampler_vectors(),
    }


def encode(content: Case) -> str:
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    made = build(
        new_envelope="--new-envelope" in sys.argv[1:],
        new_signature="--new-signature" in sys.argv[1:],
    )
    for stem, content in made.items():
        (FOLDER / f"{stem}.json").write_text(encode(content), encoding="utf-8")
