"""Pseudorandom streams from AES-256 in counter mode: masks, noise and public signs.

One primitive serves uses that must not share a key: the keystream that masks an update
(:func:`add_keystream`, or :func:`uniform_below` for another modulus than 2^32), the secret words
behind privacy noise (:class:`NoiseGenerator`) and the public signs of the random rotation
(:func:`expand_signs`).  The nonce is always zero, so every key
is used for one stream only; :func:`securefed.crypto.keys.derive` makes such keys.
"""

from __future__ import annotations

import builtins
import itertools
import os
from collections.abc import Callable, Iterable
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from securefed.errors import ConfigError, LocalProtocolError

KEY_BYTES = 32
"""Length of an AES-256 key, and of every seed and secret in this package."""

RandomBytes = Callable[[int], bytes]
"""``random(count)`` returns ``count`` fresh secret bytes; randomness is always an argument."""

# 256 KiB of keystream stays in the level-2 cache between the cipher and the addition; whole-vector
# buffers cost up to 3.9 times as much.
_CHUNK_WORDS = 1 << 16
_CHUNK_BYTES = 4 * _CHUNK_WORDS
# Bounds how many cipher contexts are alive; more would not save any more time.
_STREAMS_AT_ONCE = 64
_ZEROS = memoryview(bytes(_CHUNK_BYTES))


def system_random(count: int) -> bytes:
    """``count`` bytes from the operating system's generator."""
    return os.urandom(count)


def draw(random: RandomBytes, count: int) -> bytes:
    """``count`` bytes from ``random``, refusing a source that returns another number of them.

    Raises:
        LocalProtocolError: ``random`` is at fault; going on would use a short key.
    """
    block = random(count)
    if len(block) != count:
        raise LocalProtocolError(f"random({count}) returned {len(block)} bytes; {count} are needed")
    return block


def _stream(key: bytes, name: str) -> CipherContext:
    """The AES-256-CTR encryptor under ``key`` with the counter at zero."""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{name} has {len(key)} bytes; it must have {KEY_BYTES}")
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _checked_count(count: int) -> int:
    if count < 0:
        raise ConfigError(f"count = {count}; it must be >= 0")
    return count


def check_ring_vector(vector: NDArray[np.uint32]) -> None:
    """Refuse what :func:`add_keystream` cannot be applied to.

    Raises:
        ConfigError: not uint32[d], or not C-contiguous and writable.
    """
    if not isinstance(vector, np.ndarray) or vector.dtype != np.uint32 or vector.ndim != 1:
        shape, dtype = getattr(vector, "shape", None), getattr(vector, "dtype", type(vector))
        raise ConfigError(f"vector is {dtype} of shape {shape}; it must be uint32[d]")
    if not (vector.flags.c_contiguous and vector.flags.writeable):
        raise ConfigError("vector must be C-contiguous and writable")


def add_keystream(vector: NDArray[np.uint32], key: bytes, *, subtract: bool = False) -> None:
    """Add the keystream of ``key`` to ``vector`` modulo 2^32, in place.

    Element i changes by +s_i or -s_i, where s_0, s_1, ... is the AES-256-CTR keystream (zero
    nonce, counter from 0) read as little-endian 32-bit words.

    Args:
        vector: uint32[d], one-dimensional, C-contiguous, writable.
        key: 32 secret bytes, used for no other stream.
        subtract: subtract the keystream instead of adding it.

    Raises:
        ConfigError: ``vector`` or ``key`` is not of that form; ``vector`` is then unchanged.

    Guarantees:
        - Adding and then subtracting under one key restores ``vector`` exactly.
        - The keystream depends on ``key`` alone, not on the platform's byte order or on d.

    Source: NIST SP 800-38A, section 6.5; one pairwise or self mask of Bonawitz et al. 2017.
    """
    add_keystreams(vector, [(key, subtract)])


def add_keystreams(vector: NDArray[np.uint32], masks: Iterable[tuple[bytes, bool]]) -> None:
    """Add or subtract many keystreams, each as :func:`add_keystream` does.

    A piece of ``vector`` takes up many keystreams while it is in the cache, instead of going
    through memory once for each: about a sixth less time at d = 10^6.

    Args:
        vector: uint32[d], one-dimensional, C-contiguous, writable.
        masks: key, and whether its keystream is subtracted; consumed 64 at a time.

    Raises:
        ConfigError: ``vector`` or a key is not of that form; none of the keystreams of the same 64
            has then been added.
    """
    check_ring_vector(vector)
    words = np.empty(min(_CHUNK_WORDS, vector.size), dtype="<u4")
    block = words.view(np.uint8).data
    left = iter(masks)
    while streams := [
        (_stream(key, "key"), np.subtract if subtract else np.add)
        for key, subtract in itertools.islice(left, _STREAMS_AT_ONCE)
    ]:
        for start in range(0, vector.size, _CHUNK_WORDS):
            part = vector[start : start + _CHUNK_WORDS]
            zeros, piece = _ZEROS[: 4 * part.size], words[: part.size]
            for stream, combine in streams:
                stream.update_into(zeros, block)
                combine(part, piece, out=part)


def expand_signs(seed: bytes, count: int) -> NDArray[np.int8]:
    """Public pseudorandom signs: bit i of the seed's keystream is 0 for +1 and 1 for -1.

    Bits are taken from the least significant of each keystream byte upwards.

    Args:
        seed: 32 public bytes, used as a key for nothing else.
        count: how many signs, >= 0.

    Returns:
        int8[count] of +1 and -1; the first ``m`` do not depend on ``count``.

    Raises:
        ConfigError: ``seed`` or ``count`` is outside that.
    """
    stream = _stream(seed, "seed")
    packed = np.frombuffer(stream.update(bytes((_checked_count(count) + 7) // 8)), dtype=np.uint8)
    bits = np.unpackbits(packed, count=count, bitorder="little").view(np.int8)
    return np.int8(1) - 2 * bits


def uniform_below(key: bytes, bound: int, count: int) -> NDArray[np.uint64]:
    """Values uniform on 0..bound-1 from the keystream of ``key``.

    The keystream is read as little-endian 64-bit words, cut to the bit length of ``bound - 1``;
    words that are not below ``bound`` are skipped, so there is no bias.

    Args:
        key: 32 secret bytes, used for no other stream.
        bound: 2 <= bound <= 2^63.
        count: how many values, >= 0.

    Returns:
        uint64[count]; the first ``m`` do not depend on ``count``.

    Raises:
        ConfigError: an argument is outside that.
    """
    stream = _stream(key, "key")
    if not 2 <= bound <= 1 << 63:
        raise ConfigError(f"bound = {bound}; it must satisfy 2 <= bound <= 2^63")
    out = np.empty(_checked_count(count), dtype=np.uint64)
    mask, filled = np.uint64((1 << (bound - 1).bit_length()) - 1), 0
    while filled < count:
        words = min(count - filled, _CHUNK_BYTES // 8)
        drawn = np.frombuffer(stream.update(_ZEROS[: 8 * words]), dtype="<u8") & mask
        kept = drawn[drawn < bound]
        out[filled : filled + kept.size] = kept
        filled += kept.size
    return out


class SecretHolder:
    """Base of objects that hold a secret: never pickled, never copied, shown without it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        # TypeError is what pickle and copy document for objects that refuse.
        raise TypeError(f"{type(self).__name__} holds a secret: it is neither pickled nor copied")


class NoiseGenerator(SecretHolder):
    """A secret stream of uniform words for privacy noise: AES-256-CTR under a fresh key.

    The key comes from the operating system at construction and never leaves this object, but for
    noise that is to be removed again (:meth:`from_key`).  One generator serves one thread.

    Guarantees:
        - No output is repeated: not by a copy, a pickle or a forked child (each is refused).
        - Words are independent and uniform unless AES-256-CTR is distinguished from random; for
          N blocks of 16 bytes the generic advantage is about N^2 / 2^129.
    """

    __slots__ = ("_process", "_stream")

    def __init__(self) -> None:
        self._start(system_random(KEY_BYTES))

    @classmethod
    def from_key(cls, key: builtins.bytes) -> NoiseGenerator:
        """The stream of a key that others will learn: only for noise that is then removed.

        Args:
            key: 32 bytes, uniform and secret until then, used for no other stream.

        Raises:
            ConfigError: another length.
        """
        generator = NoiseGenerator.__new__(NoiseGenerator)
        generator._start(key)
        return generator

    def _start(self, key: builtins.bytes) -> None:
        self._process = os.getpid()
        self._stream = _stream(key, "key")

    def _check_process(self) -> None:
        # A forked child would repeat the parent's noise, and the difference of two noisy sums
        # would then be exact.
        if os.getpid() != self._process:
            raise LocalProtocolError(
                "this NoiseGenerator was made before a fork; make a new one in the child process"
            )

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` words, uint64[count], each uniform on 0..2^64 - 1.

        Raises:
            ConfigError: ``count`` < 0.
            LocalProtocolError: called in a process other than the one that made this generator.
        """
        self._check_process()
        out = np.empty(_checked_count(count), dtype="<u8")
        raw = out.view(np.uint8).data
        for start in range(0, len(raw), _CHUNK_BYTES):
            part = raw[start : start + _CHUNK_BYTES]
            self._stream.update_into(_ZEROS[: len(part)], part)
        return out.astype(np.uint64, copy=False)

    def bytes(self, count: int) -> builtins.bytes:
        """The next ``count`` bytes of the same stream; raises as :meth:`uint64` does."""
        self._check_process()
        return self._stream.update(builtins.bytes(_checked_count(count)))


class SeededNoiseGeneratorForTests(NoiseGenerator):
    """The same stream from a known seed: for tests and vectors, never for privacy noise.

    Args:
        seed: 0 <= seed < 2^256, the AES-256 key as a big-endian integer.

    Raises:
        ConfigError: ``seed`` is outside that.
    """

    __slots__ = ()

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < 1 << (8 * KEY_BYTES):
            raise ConfigError("seed must satisfy 0 <= seed < 2^256")
        self._start(seed.to_bytes(KEY_BYTES, "big"))
