"""Several ring values in one slot of a BFV plaintext, and slots masked modulo t.

A contribution is a vector of ring elements mod 2^bits, as in the pairwise protocol.  Each is lifted
to its representative x in [-2^(bits-1), 2^(bits-1)) and cut to [-value_bound, value_bound].  k of
them, the *fields*, share one slot as digits in an odd radix W:

    slot_i = sum_j x_ij W^j  modulo t,      j = 0..k-1,      H = (W - 1) / 2.

Why sums are exact.  Adding slots modulo t gives sum_j S_j W^j modulo t with S_j = sum_i x_ij, an
integer.  If |S_j| <= H for every j, then

    |sum_j S_j W^j| <= H (W^k - 1) / (W - 1) = (W^k - 1) / 2 <= (t - 1) / 2   as   W^k <= t,

so the representative of the slot in [-(t-1)/2, (t-1)/2] is that integer, and its digits in -H..H
are unique: they are the S_j.  No field carries into the next, and the top field cannot pass t.
This does not depend on how many clients took part, so a dropout needs no correction.  The result is
S_j mod 2^bits, what the masked path gives, bit for bit, whenever no value was cut and |S_j| <= H.

What is proven to fit before anything is packed (``SlotPacking.of``) is one of

- *certain*: clients * value_bound <= H.  No contribution of clients that pack with this code can
  overflow, whatever its data.
- *by the sum's bound*: sum_bound <= H, where ``RoundPlan.sum_bound`` holds for the sum except with
  probability ``RoundPlan.wrap_probability`` a round.  The pairwise path has the same condition:
  beyond it a sum wraps around.  Here it carries into the next field of its slot.  Either is
  computed from the integer sums alone, so it costs accuracy and no privacy.

Why clients do not cut at H / clients.  n such values always fit.  But noise adds like sqrt(n):
where sum_bound just fits H, H / clients is only a few std of a client's own noise, and cutting
there would take away noise that the guarantee counts on.  ``bounds_of_plan`` cuts 12 std beyond the
largest coordinate that data can have: noise gets there with probability below 2^-99 a coordinate
and client, the sampler's distance included (and data itself does not, provided a secret sample fits
the planned room, which fails with probability 2^-64).  By this much the outputs' distribution,
hence delta, can move.

Masks under the encryption are uniform modulo t over whole slots: a mask in a field alone would
carry into the next one.  Sums modulo t of masked slots and masks give back the slots above,
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import uniform_below
from securefed.encoding.fixed_point import MAX_BITS, MIN_BITS, from_ring, to_ring
from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.mechanisms import RoundPlan
from securefed.secagg.rlwe_parameters import MAX_CLIENTS, PLAIN_MODULUS

_NOISE_TAIL = 12.0  # std, as in RoundPlan.sum_bound
_FLOAT_SLACK = 2.0**-16  # far above L2Clip.float_slack for any plan that fits 32 bits


def _odd_root(number: int, degree: int) -> int:
    """The largest odd W with W^degree <= number."""
    root = 1 << (number.bit_length() // degree + 1)
    while True:  # Newton's method from above
        better = ((degree - 1) * root + number // root ** (degree - 1)) // degree
        if better >= root:
            return root - 1 + root % 2
        root = better


def bounds_of_plan(plan: RoundPlan) -> tuple[int, int]:
    """``sum_bound`` and ``value_bound`` of a round: what the sum and one client's value stay below.

    The second is max_examples * K + 1 for data and rounding plus 12 std of the client's own noise,
    within the ring.
    """
    data = plan.max_examples * plan.clip_units * (1.0 + _FLOAT_SLACK) + 1.0
    value = math.ceil(data + _NOISE_TAIL * plan.local_std)
    return plan.sum_bound, min(value, (1 << (plan.bits - 1)) - 1)


@dataclass(frozen=True, kw_only=True)
class SlotPacking:
    """How one vector lies in slots; made by :meth:`of`, which proves that it fits.

    Value i is field i // slots of slot i % slots; the last field is filled up with zeros.

    Attributes:
        length: d, values of a vector.
        bits: ring width, 20..32.
        clients: n, most summands.
        value_bound: where a client's values are cut.
        modulus: t.
        fields: k, values a slot.
        radix: W, odd.
    """

    length: int
    bits: int
    clients: int
    value_bound: int
    modulus: int
    fields: int
    radix: int

    @classmethod
    def of(
        cls,
        *,
        length: int,
        bits: int,
        clients: int,
        sum_bound: int,
        value_bound: int,
        certain: bool = False,
        modulus: int = PLAIN_MODULUS,
    ) -> Self:
        """The most fields that fit.

        Args:
            length: d >= 1.
            bits: ring width, 20..32.
            clients: n, 1..2^20 - 1.
            sum_bound: largest |coordinate| of a sum, as :func:`bounds_of_plan` gives it.
            value_bound: largest |coordinate| of one client, below 2^(bits-1).
            certain: hold clients * value_bound, not only ``sum_bound``.
            modulus: t, a prime, 2^16 < t < 2^60.

        Raises:
            OverflowBoundError: not even one field fits; names bound and room.
            ConfigError: an argument is out of range.
        """
        for name, value, least, most in (
            ("length", length, 1, 1 << 40),
            ("bits", bits, MIN_BITS, MAX_BITS),
            ("clients", clients, 1, MAX_CLIENTS),
            ("sum_bound", sum_bound, 1, 1 << 60),
            ("value_bound", value_bound, 1, (1 << (bits - 1)) - 1),
            ("modulus", modulus, 1 << 16, 1 << 60),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{name} = {value}: must be {least}..{most}")
        always = clients * value_bound
        bound = always if certain else min(always, sum_bound)
        if 2 * bound + 1 > modulus:
            raise OverflowBoundError(
                f"a field must hold sums of up to {bound} ({clients} clients, value_bound = "
                f"{value_bound}, sum_bound = {sum_bound}, certain = {certain}); a whole slot holds "
                f"(t - 1) / 2 = {(modulus - 1) // 2}"
            )
        fields = 1
        while _odd_root(modulus, fields + 1) >= 2 * bound + 1:
            fields += 1
        return cls(
            length=length,
            bits=bits,
            clients=clients,
            value_bound=value_bound,
            modulus=modulus,
            fields=fields,
            radix=_odd_root(modulus, fields),
        )

    def __post_init__(self) -> None:
        # A packing that was not made by of() must fit all the same.
        if self.radix % 2 == 0 or self.radix < 3 or self.radix**self.fields > self.modulus:
            raise OverflowBoundError(
                f"radix = {self.radix}, fields = {self.fields}: the radix must be odd and "
                f"radix^fields at most t = {self.modulus}"
            )

    @property
    def half(self) -> int:
        """H: a field holds sums of up to this."""
        return (self.radix - 1) // 2

    @property
    def overflow_impossible(self) -> bool:
        """Whether ``clients`` values of up to ``value_bound`` always fit a field."""
        return self.clients * self.value_bound <= self.half

    @property
    def slots(self) -> int:
        """Slots of a vector."""
        return -(-self.length // self.fields)

    def pack(self, ring: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """One client's contribution in slots.

        Args:
            ring: uint32[length]; bits above ``bits`` are ignored.

        Returns:
            uint64[slots], each in 0..t-1.

        Raises:
            ConfigError: another dtype or length.
        """
        if ring.shape != (self.length,):
            raise ConfigError(f"ring of shape {ring.shape}: must be ({self.length},)")
        packed = np.zeros(self.slots, dtype=np.int64)
        for field in reversed(range(self.fields)):
            packed *= self.radix
            values = from_ring(ring[field * self.slots : (field + 1) * self.slots], self.bits)
            np.clip(values, -self.value_bound, self.value_bound, out=values)
            packed[: values.size] += values
        packed[packed < 0] += self.modulus
        return packed.view(np.uint64)

    def unpack(self, slots: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The sum of packed vectors, from the sum of their slots modulo t.

        Args:
            slots: uint64[slots], each in 0..t-1.

        Returns:
            uint32[length], each in 0..2^bits - 1.

        Raises:
            ConfigError: another dtype or length, or a value that is not reduced.
        """
        _check_slots(slots, self.modulus)
        if slots.shape != (self.slots,):
            raise ConfigError(f"slots of shape {slots.shape}: must be ({self.slots},)")
        # Shifted by H in every field the digits are 0..W-1, and division finds them.
        radix, half = np.uint64(self.radix), np.int64(self.half)
        shift = (self.radix**self.fields - 1) // 2
        left = add_slots(slots, np.full_like(slots, shift), self.modulus)
        ring = np.empty(self.fields * self.slots, dtype=np.uint32)
        for field in range(self.fields):
            left, digit = np.divmod(left, radix)
            signed = digit.view(np.int64) - half
            ring[field * self.slots : (field + 1) * self.slots] = to_ring(signed)
        return ring[: self.length] & np.uint32((1 << self.bits) - 1)


def _check_slots(slots: NDArray[np.uint64], modulus: int) -> None:
    if slots.dtype != np.uint64 or slots.ndim != 1:
        raise ConfigError(f"slots: {slots.dtype} of shape {slots.shape}; must be uint64[slots]")
    if slots.size and int(slots.max()) >= modulus:
        raise ConfigError(f"slots: a value is not below t = {modulus}")


def add_slots(
    left: NDArray[np.uint64], right: NDArray[np.uint64], modulus: int
) -> NDArray[np.uint64]:
    """The sum modulo t of two slot vectors with values in 0..t-1.

    t <= 2^60, so a sum of two is below 2^61 and a uint64 holds it.  Where it is below t,
    subtracting t wraps around to more than 2^63, and the smaller of the two is the reduced one.
    """
    total = left + right
    reduced: NDArray[np.uint64] = np.minimum(total, total - np.uint64(modulus))
    return reduced


def mask_slots(
    slots: NDArray[np.uint64], masks: Iterable[tuple[bytes, bool]], modulus: int
) -> NDArray[np.uint64]:
    """Add or subtract keystreams of values uniform modulo t.

    Args:
        slots: uint64[slots], each in 0..t-1.
        masks: a key of 32 bytes, used for no other stream, and whether its stream is subtracted.
        modulus: t <= 2^60.

    Returns:
        uint64[slots], each in 0..t-1.

    Raises:
        ConfigError: slots or a key are not of that form.

    Guarantees:
        - Masks are exactly uniform modulo t if AES-256-CTR's words are uniform: words of 60 bits
          that are not below t are skipped (``crypto.prg.uniform_below``), so there is no bias.
        - Adding and subtracting under one key restores the slots.
    """
    _check_slots(slots, modulus)
    if not 2 <= modulus <= 1 << 60:
        raise ConfigError(f"modulus = {modulus}: must be 2..2^60")
    for key, subtract in masks:
        stream = uniform_below(key, modulus, slots.size)
        if subtract:
            # t - 0 = t is one step outside 0..t-1, and add_slots still reduces the sum.
            stream = np.uint64(modulus) - stream
        slots = add_slots(slots, stream, modulus)
    return slots
