"""From a contribution to ciphertexts, and from opened ciphertexts to the sum, for both schemes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import SecretHolder
from securefed.encoding.fixed_point import from_ring
from securefed.errors import ConfigError
from securefed.secagg.encryption import RoundEncryption
from securefed.secagg.homomorphic import BfvEncryptor, BfvSecretKey, CkksEncryptor, CkksSecretKey
from securefed.secagg.rlwe_parameters import BfvParameters
from securefed.secagg.slots import mask_slots

OnEncrypted = Callable[[int, int], None]
"""Told how many ciphertexts are made, and of how many."""


class EncryptedInput:
    """Makes one contribution's ciphertexts.

    Run by: client.

    Args:
        encryption: what the round agreed on.
        public_key: from an offer that was checked.
        on_encrypted: told of progress.

    Raises:
        RemoteProtocolError: the key is not one of these parameters.
        ConfigError: TenSEAL is missing, or makes other moduli.
    """

    def __init__(
        self,
        encryption: RoundEncryption,
        public_key: bytes,
        on_encrypted: OnEncrypted | None = None,
    ) -> None:
        self._encryption = encryption
        self._on_encrypted = on_encrypted
        parameters = encryption.parameters
        self._encryptor: BfvEncryptor | CkksEncryptor = (
            BfvEncryptor(parameters, public_key)
            if isinstance(parameters, BfvParameters)
            else CkksEncryptor(parameters, public_key)
        )

    def protect(
        self, vector: NDArray[np.uint32], masks: Iterable[tuple[bytes, bool]] = ()
    ) -> Iterator[bytes]:
        """One ciphertext after another; one is in memory at a time.

        Args:
            vector: uint32[length], the contribution in the ring; values beyond ``value_bound`` are
                cut.
            masks: keystreams that are added or subtracted modulo t beneath the encryption.

        Yields:
            ``encryption.count`` ciphertexts.

        Raises:
            ConfigError: the vector is of another form, or CKKS is to carry masks.
        """
        for made, data in enumerate(self._ciphertexts(vector, masks), start=1):
            yield data
            if self._on_encrypted is not None:
                self._on_encrypted(made, self._encryption.count)

    def _ciphertexts(
        self, vector: NDArray[np.uint32], masks: Iterable[tuple[bytes, bool]]
    ) -> Iterator[bytes]:
        encryption, packing = self._encryption, self._encryption.packing
        if isinstance(self._encryptor, BfvEncryptor) and packing is not None:
            slots = mask_slots(packing.pack(vector), masks, packing.modulus)
            return self._encryptor.encrypt(slots)
        if isinstance(self._encryptor, BfvEncryptor) or any(True for _ in masks):
            raise ConfigError("masks beneath the encryption need scheme = 'bfv'")
        if vector.shape != (encryption.length,):
            raise ConfigError(f"vector of shape {vector.shape}: must be ({encryption.length},)")
        values = from_ring(vector, encryption.bits)
        np.clip(values, -encryption.value_bound, encryption.value_bound, out=values)
        return self._encryptor.encrypt(values)


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
