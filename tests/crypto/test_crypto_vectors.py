"""Runs the JSON vectors: each good case must give its value, each bad one raise its error."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import securefed.errors
from securefed.crypto import identity, keys, prg, shamir
from securefed.privacy import samplers
from securefed.privacy.skellam import Skellam

FOLDER = Path(__file__).parents[1] / "vectors"
PREFIXES = ("prg_", "shamir_", "keys_", "samplers_")
FILES = sorted(path for path in FOLDER.glob("*.json") if path.name.startswith(PREFIXES))


def block(case, name):
    return bytes.fromhex(case[name])


def add_keystream(case):
    vector = np.array(case["vector"], dtype=np.uint32)
    prg.add_keystream(vector, block(case, "key"), subtract=case["subtract"])
    return vector.tolist()


def share(case):
    supply = block(case, "random")
    position = 0

    def random(count):
        nonlocal position
        position += count
        return supply[position - count : position]

    shares = shamir.share(
        block(case, "secret"), threshold=case["threshold"], points=case["points"], random=random
    )
    return {str(point): encoded.hex() for point, encoded in shares.items()}


def reconstruct(case):
    shares = {int(point): bytes.fromhex(encoded) for point, encoded in case["shares"].items()}
    return shamir.reconstruct(shares, threshold=case["threshold"]).hex()


def derive(case):
    return keys.derive(
        block(case, "secret"),
        label=block(case, "label"),
        context=block(case, "context"),
        length=case["length"],
    ).hex()


def commit(case):
    return keys.commit(
        block(case, "secret"), label=block(case, "label"), context=block(case, "context")
    ).hex()


def sign(case):
    key = identity.IdentityKey.generate(lambda count: block(case, "seed"))
    return key.sign(block(case, "message"), label=block(case, "label")).hex()


def verify(case):
    public = identity.IdentityPublicKey.from_bytes(block(case, "public"))
    public.verify(block(case, "signature"), block(case, "message"), label=block(case, "label"))


def identity_from_seed(case):
    seed = block(case, "seed")
    key = identity.IdentityKey.generate(lambda count: seed, algorithm=case["algorithm"])
    return hashlib.sha256(key.public.raw).hexdigest()


def identity_public(case):
    return identity.IdentityPublicKey.from_bytes(block(case, "raw")).raw.hex()


def hybrid_from_seed(case):
    public = keys.HybridPrivateKey.from_seed(block(case, "seed")).public
    return hashlib.sha256(public.raw).hexdigest()


def hybrid_public(case):
    return keys.HybridPublicKey.from_bytes(block(case, "raw")).raw.hex()


def open_envelope(case):
    key = keys.HybridPrivateKey.from_seed(block(case, "seed"))
    return key.open(block(case, "sealed"), info=block(case, "info")).hex()


def seeded(case):
    return prg.SeededNoiseGeneratorForTests(case["seed"])


def gaussian(case):
    return samplers.DiscreteGaussian(case["std"]).sample(case["count"], seeded(case)).tolist()


def skellam(case):
    return Skellam(case["variance"]).sample(case["count"], seeded(case)).tolist()


def rounded(case):
    return samplers.stochastic_round(np.array(case["values"]), seeded(case)).tolist()


def poisson(case):
    return samplers.poisson_sample(case["count"], case["probability"], seeded(case)).tolist()


OPERATIONS = {
    "prg.add_keystream": add_keystream,
    "prg.expand_signs": lambda case: prg.expand_signs(block(case, "seed"), case["count"]).tolist(),
    "shamir.share": share,
    "shamir.reconstruct": reconstruct,
    "keys.derive": derive,
    "keys.commit": commit,
    "keys.sign": sign,
    "keys.verify": verify,
    "keys.identity_from_seed": identity_from_seed,
    "keys.identity_public": identity_public,
    "keys.hybrid_from_seed": hybrid_from_seed,
    "keys.hybrid_public": hybrid_public,
    "keys.open": open_envelope,
    "samplers.gaussian": gaussian,
    "samplers.skellam": skellam,
    "samplers.round": rounded,
    "samplers.poisson": poisson,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_vector_gives_its_value_or_its_error(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["success"] == ("_bad_" not in path.stem)
    assert content["cases"]
    for case in content["cases"]:
        operation = OPERATIONS[content["operation"]]
        if content["success"]:
            assert operation(case) == case["expected"]
        else:
            with pytest.raises(getattr(securefed.errors, case["error"])) as caught:
                operation(case)
            assert type(caught.value).__name__ == case["error"]


def test_the_vectors_on_disk_are_those_that_the_generator_makes(oracle):
    made = oracle.build()
    assert {path.stem for path in FILES} == set(made)
    for path in FILES:
        assert path.read_text(encoding="utf-8") == oracle.encode(made[path.stem]), path.name


def test_every_operation_has_a_vector():
    used = {json.loads(path.read_text(encoding="utf-8"))["operation"] for path in FILES}
    assert used == set(OPERATIONS)
