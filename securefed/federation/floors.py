"""What a client asks of a round, whatever the server proposes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from securefed.config import KeyHolder, Mechanism, Unit
from securefed.encoding.fixed_point import MAX_BITS, MIN_BITS
from securefed.errors import ConfigError, LocalProtocolError
from securefed.federation.session import RoundSession


@dataclass(frozen=True, kw_only=True)
class ClientFloors:
    """A client's own policy: it takes part in no round that protects it less.

    Set by the client's owner and never taken from the server.  How much a client spends over many
    rounds is limited by its account (``open_account``), not here.

    Args:
        min_clients: least cohort and least number of survivors, >= 2.
        min_threshold: least threshold of secret sharing, >= 2.
        min_noise_multiplier: least noise std of the honest survivors over clip_norm, >= 0; of one
            round's noise: where noise is correlated over rounds, only an account bounds epsilon.
            With mechanism ``"local"`` the std of this client's own noise in each of its steps.
        max_clip_norm: largest clip of one unit's vector, > 0; with adaptive clipping the largest
            that the rule can lead to in any later round.
        max_delta: largest delta of the statement, > 0.
        min_corrupt_fraction: least share of the cohort that noise and thresholds are sized
            against, in [0, 1).
        max_dropout_fraction: largest share of the cohort that may be missing from an opened sum,
            in [0, 1].
        min_bits: least width of the ring, 20..32: a narrow one makes noise and values coarse.
        mechanisms: those that are accepted; ``"none"`` only where it is listed.
        units: those that are accepted; an owner who wants all records of a person at this client
            protected as one leaves ``"example"`` out.
        key_holders: who may hold the key of rounds that rest on encryption alone; none of them
            where it is empty.  Rounds with masks beneath the encryption rest on the masks, and are
            taken as pairwise ones are.
        allow_plaintext: whether contributions may reach the server unmasked.
        allow_ring: whether clients may mask with some neighbours on a ring, which assumes a server
            that is honest at set-up (SECURITY.md, G1).
        allow_conditional_rounding: whether rounding may take a time that depends on the update; for
            a client that calls ``prepare`` and starts at a fixed time, or whose time is not seen.

    Raises:
        ConfigError: a floor is out of its range; the message names it.
    """

    min_clients: int = 2
    min_threshold: int = 2
    min_noise_multiplier: float = 0.0
    max_clip_norm: float = math.inf
    max_delta: float = 1.0
    min_corrupt_fraction: float = 0.0
    max_dropout_fraction: float = 1.0
    min_bits: int = MIN_BITS
    mechanisms: tuple[Mechanism, ...] = ("distributed",)
    units: tuple[Unit, ...] = get_args(Unit)
    key_holders: tuple[KeyHolder, ...] = ()
    allow_plaintext: bool = False
    allow_ring: bool = False
    allow_conditional_rounding: bool = False

    def __post_init__(self) -> None:
        known, units = set(get_args(Mechanism)), set(get_args(Unit))
        holders = set(get_args(KeyHolder))
        for field, fits, allowed in (
            ("min_clients", self.min_clients >= 2, ">= 2"),
            ("min_threshold", self.min_threshold >= 2, ">= 2"),
            ("min_noise_multiplier", self.min_noise_multiplier >= 0, ">= 0"),
            ("max_clip_norm", self.max_clip_norm > 0, "> 0"),
            ("max_delta", self.max_delta > 0, "> 0"),
            ("min_corrupt_fraction", 0 <= self.min_corrupt_fraction < 1, "in [0, 1)"),
            ("max_dropout_fraction", 0 <= self.max_dropout_fraction <= 1, "in [0, 1]"),
            ("min_bits", MIN_BITS <= self.min_bits <= MAX_BITS, f"in {MIN_BITS}..{MAX_BITS}"),
            (
                "mechanisms",
                bool(self.mechanisms) and set(self.mechanisms) <= known,
                f"some of {sorted(known)}",
            ),
            ("units", bool(self.units) and set(self.units) <= units, f"some of {sorted(units)}"),
            ("key_holders", set(self.key_holders) <= holders, f"some of {sorted(holders)}, or ()"),
        ):
            if not fits:  # a NaN fits nothing
                raise ConfigError(f"{field} = {getattr(self, field)!r}: must be {allowed}")

    def check(self, session: RoundSession) -> None:
        """Refuse a round below a floor, before anything of it is computed or sent.

        Run by: client.

        Raises:
            LocalProtocolError: names the field, its value in this round and the floor.
        """
        policy = session.promised
        if len(session.cohort) < self.min_clients:
            raise LocalProtocolError(
                f"cohort of {len(session.cohort)} clients: this client takes part from "
                f"{self.min_clients} on (min_clients)"
            )
        if session.plaintext and not self.allow_plaintext:
            raise LocalProtocolError(
                "aggregation = plaintext: this client takes part in masked or encrypted rounds "
                "only (allow_plaintext)"
            )
        holder = session.aggregation.trusted_key_holder
        if holder is not None and holder not in self.key_holders:
            raise LocalProtocolError(
                f"key_holder = {holder!r} with masked = False: without masks this client takes "
                f"part with one of {self.key_holders} (key_holders)"
            )
        if policy.rounding == "conditional" and not self.allow_conditional_rounding:
            raise LocalProtocolError(
                "rounding = 'conditional': how long it takes depends on the update "
                "(allow_conditional_rounding)"
            )
        parameters = session.context.parameters
        if parameters.sparse and not self.allow_ring:
            raise LocalProtocolError(
                f"degree = {parameters.degree} of {parameters.size} clients: this client masks "
                "with all others only (allow_ring)"
            )
        if policy.mechanism not in self.mechanisms:
            raise LocalProtocolError(
                f"mechanism = {policy.mechanism!r}: this client takes part with one of "
                f"{self.mechanisms} (mechanisms)"
            )
        if policy.unit not in self.units:
            raise LocalProtocolError(
                f"unit = {policy.unit!r}: this client takes part with one of {self.units} (units)"
            )
        at_least = (
            ("threshold", session.context.parameters.threshold, self.min_threshold),
            ("noise_multiplier", policy.noise_multiplier, self.min_noise_multiplier),
            ("corrupt_fraction", policy.corrupt_fraction, self.min_corrupt_fraction),
            ("bits", session.plan.bits, self.min_bits),
        )
        for name, found, least in at_least:
            if found < least:
                raise LocalProtocolError(
                    f"{name} = {found}: this client takes part from {least} on (min_{name})"
                )
        at_most = (
            ("clip_norm", policy.largest_clip_norm, self.max_clip_norm),
            ("dropout_fraction", policy.dropout_fraction, self.max_dropout_fraction),
            ("delta", policy.delta, self.max_delta),
        )
        for name, found, most in at_most:
            if found > most:
                raise LocalProtocolError(
                    f"{name} = {found}: this client takes part up to {most} (max_{name})"
                )
