"""How contributions are encrypted in a round: scheme, who can decrypt, and that sums fit.

Three arrangements.  None hides more than its adversary allows, so each names it:

===================  ======================================  =======================================
key_holder, masked   who can decrypt                         what it protects against
===================  ======================================  =======================================
cohort, no           every client                            a server that no client helps: one that
                                                             does opens every contribution
decryptor, no        a separate party, once, after it        a server that the decryptor does not
                     checked that what it is given is the    help, and no client helps to depart
                     sum of what enough clients sent         from the protocol
decryptor, yes       the same party; what it opens still     server, decryptor and up to ``corrupt``
                     carries masks, which the server alone   clients together, as pairwise masking
                     can remove                              does
===================  ======================================  =======================================

Without masks a contribution is safe from whoever lacks the key, and from nobody else.  With them,
server and decryptor together see what the server of a pairwise round sees, and no more.  So a
consortium without a third party lets one of its members be the decryptor of masked rounds; it then
counts as a corrupt client.  (A
server that departs from the protocol can have a ciphertext of its own making opened there, once a
round, and learn the key from it.  It then is such a pair.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from securefed.config import KeyHolder, Scheme, why_no_arrangement
from securefed.encoding.fixed_point import to_ring
from securefed.encoding.wire import Writer
from securefed.errors import ConfigError
from securefed.secagg.ciphertexts import ciphertext_size
from securefed.secagg.rlwe_parameters import BfvParameters, CkksParameters
from securefed.secagg.slots import SlotPacking

DECRYPTOR = "decryptor"
"""The name of the separate party among those that messages go to; no client may have it."""


def check_arrangement(scheme: str, key_holder: str, masked: bool) -> None:
    """Whether there is such an arrangement.

    Raises:
        ConfigError: names what does not go together.
    """
    refused = why_no_arrangement(scheme, key_holder, masked)
    if refused:
        raise ConfigError(refused)


@dataclass(frozen=True, kw_only=True)
class RoundEncryption:
    """What is agreed about encryption in one round; part of its context.

    Args:
        scheme: ``"bfv"``: exact sums, several values a slot.  ``"ckks"``: one value a slot.
        key_holder: who can decrypt, by the table of the module docstring.
        masked: whether contributions carry pairwise and self masks modulo t beneath it.
        clients: n, most summands.
        length: d, values of a contribution.
        bits: ring width, 20..32.
        sum_bound, value_bound: what a sum and one contribution stay below
            (``slots.bounds_of_plan``).
        noise_std: std in grid units of the privacy noise in each contribution.

    Raises:
        ConfigError: no such arrangement, a value out of range, or CKKS without noise.
        OverflowBoundError: a sum might not fit; names the bound.
    """

    scheme: Scheme
    key_holder: KeyHolder
    masked: bool
    clients: int
    length: int
    bits: int
    sum_bound: int
    value_bound: int
    noise_std: float

    def __post_init__(self) -> None:
        check_arrangement(self.scheme, self.key_holder, self.masked)
        if self.scheme == "ckks" and not self.noise_std > 0.0:
            raise ConfigError(
                "scheme = 'ckks' with contributions that carry no noise: such sums are not "
                "released from CKKS (Li and Micciancio, eprint 2020/1533); use 'bfv', or "
                "mechanism = 'distributed'"
            )
        self.count  # noqa: B018  # proves that slots and check slots fit

    @cached_property
    def parameters(self) -> BfvParameters | CkksParameters:
        """Ring and moduli, proven for ``clients`` summands."""
        if self.scheme == "bfv":
            return BfvParameters.of(self.clients)
        return CkksParameters(clients=self.clients, sum_bound=self.sum_bound)

    @cached_property
    def packing(self) -> SlotPacking | None:
        """How values lie in slots; None for CKKS, where each has its own."""
        if self.scheme != "bfv":
            return None
        return SlotPacking.of(
            length=self.length,
            bits=self.bits,
            clients=self.clients,
            sum_bound=self.sum_bound,
            value_bound=self.value_bound,
        )

    @property
    def slots(self) -> int:
        """Data slots of a contribution."""
        return self.length if self.packing is None else self.packing.slots

    @property
    def count(self) -> int:
        """Ciphertexts of a contribution."""
        return self.parameters.ciphertexts(self.slots)

    @property
    def input_bytes(self) -> int:
        """Bytes of a contribution's ciphertexts."""
        return self.count * ciphertext_size(self.parameters)

    def to_ring(self, sums: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Integer sums as ring elements, as every other path gives them."""
        return to_ring(sums) & np.uint32((1 << self.bits) - 1)

    def write(self, writer: Writer) -> None:
        """Append what the round's digest covers."""
        writer.u8(get_args(Scheme).index(self.scheme))
        writer.u8(get_args(KeyHolder).index(self.key_holder))
        writer.u8(int(self.masked))
        for name in ("clients", "length", "bits"):
            writer.u32(getattr(self, name), field=name)
        for name in ("sum_bound", "value_bound"):
            writer.u64(getattr(self, name), field=name)
        parameters = self.parameters
        writer.u32(parameters.degree, field="degree")
        for prime in parameters.key_primes:
            writer.u64(prime, field="prime")
        writer.fixed(struct.pack("<d", self.noise_std), 8)
        if isinstance(parameters, CkksParameters):
            writer.u32(parameters.scale_bits, field="scale_bits")
        if self.packing is not None:
            writer.u64(self.packing.modulus, field="t")
            writer.u32(self.packing.fields, field="fields")
