"""Sources of randomness for audits that come out the same each time."""

import hashlib
import itertools

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from securefed.auditing.releases import Sources
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import SeededNoiseGeneratorForTests


def seeded(seed: int) -> Sources:
    """All that rounds draw, from one number."""
    counter = itertools.count()

    def random(count: int) -> bytes:
        return hashlib.shake_256(b"audit %d %d" % (seed, next(counter))).digest(count)

    return Sources(
        noise=lambda: SeededNoiseGeneratorForTests(int.from_bytes(random(32), "big")),
        random=random,
        identity=lambda: IdentityKey(Ed25519PrivateKey.from_private_bytes(random(32))),
    )
