"""From a contribution to ciphertexts, and from opened ciphertexts to the sum, for both schemes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import SecretHolder
from securefed.encoding.fixed_point import from_ring
from securefed.errors import ConfigError
from securefed.secagg.encryption import RoundEncryption
from securefed.secagg.homomorphic import BfvEncryptor, BfvSecretKey, CkksEncryptor, CkksSecretKey
from securefed.secagg.rlwe_parameters import BfvParameters
from securefed.secagg.slots import mask_slots


def encrypted(
    encryption: RoundEncryption,
    public_key: bytes,
    vector: NDArray[np.uint32],
    masks: Iterable[tuple[bytes, bool]] = (),
) -> Iterator[bytes]:
    """One contribution, one ciphertext after another.

    Run by: client.

    Args:
        encryption: what the round agreed on.
        public_key: from an offer that was checked.
        vector: uint32[length], the contribution in the ring.
        masks: keystreams that are added or subtracted modulo t beneath the encryption.

    Yields:
        ``encryption.count`` ciphertexts; one is in memory at a time.

    Raises:
        RemoteProtocolError: the key is not one of these parameters.
        ConfigError: TenSEAL is missing, or the vector is of another form.
    """
    parameters, packing = encryption.parameters, encryption.packing
    if isinstance(parameters, BfvParameters) and packing is not None:
        slots = mask_slots(packing.pack(vector), masks, packing.modulus)
        yield from BfvEncryptor(parameters, public_key).encrypt(slots)
        return
    if isinstance(parameters, BfvParameters) or any(True for _ in masks):
        raise ConfigError("masks beneath the encryption need scheme = 'bfv'")
    if vector.shape != (encryption.length,):
        raise ConfigError(f"vector of shape {vector.shape}: must be ({encryption.length},)")
    values = from_ring(vector, encryption.bits)
    np.clip(values, -encryption.value_bound, encryption.value_bound, out=values)
    yield from CkksEncryptor(parameters, public_key).encrypt(values)


class SumKey(SecretHolder):
    """The secret key of one round; opens one sum.

    Run by: the key holder, which checks what it opens (:mod:`securefed.secagg.key_holder`).
    """

    __slots__ = ("_encryption", "_key")

    def __init__(self, encryption: RoundEncryption, key: BfvSecretKey | CkksSecretKey) -> None:
        self._encryption = encryption
        self._key: BfvSecretKey | CkksSecretKey | None = key

    @classmethod
    def generate(cls, encryption: RoundEncryption) -> SumKey:
        """A fresh key, drawn by SEAL's own generator from the operating system's."""
        parameters = encryption.parameters
        if isinstance(parameters, BfvParameters):
            return cls(encryption, BfvSecretKey.generate(parameters))
        return cls(encryption, CkksSecretKey.generate(parameters))

    @classmethod
    def from_parts(cls, encryption: RoundEncryption, public: bytes, secret: bytes) -> SumKey:
        """The key whose parts are given.

        Raises:
            RemoteProtocolError: not a key of these parameters.
        """
        parameters = encryption.parameters
        if isinstance(parameters, BfvParameters):
            return cls(encryption, BfvSecretKey.from_bytes(parameters, public + secret))
        return cls(encryption, CkksSecretKey.from_bytes(parameters, public + secret))

    def parts(self) -> tuple[bytes, bytes]:
        """The public key, and the secret one; the latter leaves its maker sealed only."""
        key = self._taken(keep=True)
        public = key.public_key()
        return public, key.secret_bytes()[len(public) :]

    def open_ring(self, ciphertexts: Iterable[bytes], summands: int) -> NDArray[np.uint32]:
        """The sum of contributions that carry no masks; the key is gone afterwards.

        Returns:
            uint32[length], each below 2^bits.

        Raises:
            RemoteProtocolError: not ciphertexts of this key, or another number of summands.
        """
        encryption, key = self._encryption, self._taken()
        packing = encryption.packing
        if isinstance(key, CkksSecretKey) or packing is None:
            if isinstance(key, BfvSecretKey):
                raise ConfigError("scheme = 'bfv' without slots")
            sums = key.decrypt(
                ciphertexts,
                length=encryption.length,
                summands=summands,
                noise_std=encryption.noise_std,
            )
            return encryption.to_ring(sums)
        return packing.unpack(key.decrypt(ciphertexts, slots=encryption.slots, summands=summands))

    def open_slots(self, ciphertexts: Iterable[bytes], summands: int) -> NDArray[np.uint64]:
        """The sum of slots, with the masks in it; the key is gone afterwards."""
        key = self._taken()
        if isinstance(key, CkksSecretKey):
            raise ConfigError("masks beneath the encryption need scheme = 'bfv'")
        return key.decrypt(ciphertexts, slots=self._encryption.slots, summands=summands)

    def _taken(self, *, keep: bool = False) -> BfvSecretKey | CkksSecretKey:
        key = self._key
        if key is None:
            raise ConfigError("the round's key has opened a sum already, and is gone")
        if not keep:
            self._key = None
        return key
