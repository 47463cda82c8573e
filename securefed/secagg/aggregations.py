"""How a sum is formed: what a cohort can choose from.

A choice says nothing of one cohort; what follows from it for one (thresholds, slots, ciphertexts)
is computed by every party for itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from securefed.config import KeyHolder, Scheme
from securefed.encoding.fixed_point import MAX_BITS, MIN_BITS
from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregator import SPARSE_REMOVAL
from securefed.secagg.encryption import RoundEncryption, check_arrangement
from securefed.secagg.parameters import MIN_ETA, MIN_SIGMA, PairwiseParameters
from securefed.secagg.slots import bounds_of_plan


def _check_bits(bits: int | str) -> None:
    if bits != "auto" and not (isinstance(bits, int) and MIN_BITS <= bits <= MAX_BITS):
        raise ConfigError(f"bits = {bits!r}: must be 'auto' or {MIN_BITS}..{MAX_BITS}")


@dataclass(frozen=True, kw_only=True)
class PairwiseAggregation:
    """Pairwise masking: the server sees only the sum.

    Degree and thresholds are derived from the cohort (``secagg/parameters.py``); more can be asked
    for, never less.

    Args:
        bits: ring width on the wire, 20..32, or ``"auto"``: the least that the bound allows.
        degree: neighbours of a client, at least as many as are derived; None for just those.
        sigma: the guarantees of a sparse graph fail with probability at most 2^-sigma, >= 40.
        eta: random dropouts end a sparse round with probability at most 2^-eta, >= 30.

    Raises:
        ConfigError: less is asked for than is allowed.
    """

    bits: int | Literal["auto"] = "auto"
    degree: int | None = None
    sigma: int = MIN_SIGMA
    eta: int = MIN_ETA

    def __post_init__(self) -> None:
        _check_bits(self.bits)
        for name, value, least in (
            ("sigma", self.sigma, MIN_SIGMA),
            ("eta", self.eta, MIN_ETA),
        ):
            if value < least:
                raise ConfigError(f"{name} = {value}: must be >= {least}")

    has_decryptor: ClassVar[bool] = False

    def parameters(self, bounds: CohortBounds) -> PairwiseParameters:
        """Degree and thresholds for one cohort.

        Raises:
            ConfigError: the cohort leaves no safe threshold, or ``degree`` is too small for it.
        """
        return PairwiseParameters.of(bounds, degree=self.degree, sigma=self.sigma, eta=self.eta)

    def ring_sigma(self, bounds: CohortBounds) -> int | None:
        """The security exponent where the cohort masks on a ring; None for a complete graph."""
        return self.sigma if self.parameters(bounds).sparse else None

    def ring_bits(
        self, policy: PrivacyPolicy, *, cohort_size: int, dimension: int
    ) -> int | Literal["auto"]:
        """The ring width that a round is planned for."""
        return self.bits

    def encryption(self, plan: RoundPlan, bounds: CohortBounds) -> None:
        """Nothing is encrypted."""

    @property
    def trusted_key_holder(self) -> None:
        """Nobody: masks hide contributions, no key."""


@dataclass(frozen=True, kw_only=True)
class HomomorphicAggregation:
    """Encryption: the server adds ciphertexts, and whoever holds the key opens their sum.

    What each arrangement protects against stands at the head of
    :mod:`securefed.secagg.encryption`.

    Args:
        scheme: ``"bfv"``: the very sums of the pairwise path.  ``"ckks"``: the same sums, six times
            the bytes; for those who ask.
        key_holder: ``"decryptor"``, a separate party, or ``"cohort"``: every client.
        masked: with a decryptor: pairwise and self masks beneath the encryption.
        bits: ring width, 20..32, or ``"auto"``: 20, which puts three values in a slot, where it
            costs less than 2 % of sensitivity and leaves the summed noise 1024 grid steps (its
            distance from a Gaussian costs delta); else as for pairwise masks.
        degree, sigma, eta: of the masking graph, as for :class:`PairwiseAggregation`.

    Raises:
        ConfigError: there is no such arrangement, or less is asked for than is allowed.
    """

    scheme: Scheme = "bfv"
    key_holder: KeyHolder = "decryptor"
    masked: bool = False
    bits: int | Literal["auto"] = "auto"
    degree: int | None = None
    sigma: int = MIN_SIGMA
    eta: int = MIN_ETA

    COARSEST: ClassVar[float] = 1.02
    """Largest sensitivity, over the clip, of a ring that is chosen for its width."""
    LEAST_NOISE: ClassVar[float] = 1024.0
    """Least std of the honest survivors' noise in such a ring, in grid steps."""

    def __post_init__(self) -> None:
        check_arrangement(self.scheme, self.key_holder, self.masked)
        self._masking()
        if self.degree is not None and not self.masked:
            raise ConfigError(f"degree = {self.degree} with masked = False: nothing is masked")

    @property
    def has_decryptor(self) -> bool:
        """Whether a separate party opens the sum."""
        return self.key_holder == "decryptor"

    def _masking(self) -> PairwiseAggregation:
        return PairwiseAggregation(
            bits=self.bits, degree=self.degree, sigma=self.sigma, eta=self.eta
        )

    def parameters(self, bounds: CohortBounds) -> PairwiseParameters:
        """Floor and quorum for one cohort; degree and threshold too where it masks.

        Raises:
            ConfigError: the cohort leaves no safe threshold; or every client can decrypt and some
                of them may help the server.
        """
        if self.masked:
            return self._masking().parameters(bounds)
        if self.key_holder == "cohort" and bounds.corrupt:
            raise ConfigError(
                f"key_holder = 'cohort' with {bounds.corrupt} corrupt clients of {bounds.size} "
                "(corrupt_fraction): one client that helps the server opens every contribution, so "
                "it must be 0; use key_holder = 'decryptor', with masked = True against clients "
                "that help a server to depart from the protocol"
            )
        return PairwiseParameters.of(bounds, degree=bounds.size - 1)

    def ring_sigma(self, bounds: CohortBounds) -> int | None:
        """The security exponent where the cohort masks on a ring; None where it does not."""
        return self._masking().ring_sigma(bounds) if self.masked else None

    def ring_bits(
        self, policy: PrivacyPolicy, *, cohort_size: int, dimension: int
    ) -> int | Literal["auto"]:
        """The ring width that a round is planned for."""
        if self.bits != "auto" or self.scheme != "bfv":
            return self.bits
        try:
            plan = plan_round(policy, cohort_size=cohort_size, dimension=dimension, bits=MIN_BITS)
        except OverflowBoundError:
            return "auto"
        fine = plan.honest_std == 0.0 or plan.honest_std >= self.LEAST_NOISE
        return MIN_BITS if fine and plan.sensitivity <= self.COARSEST * plan.clip_units else "auto"

    def encryption(self, plan: RoundPlan, bounds: CohortBounds) -> RoundEncryption:
        """Ciphertexts and slots for one round.

        Raises:
            ConfigError: the sum is opened by a party that must not see it without noise, or CKKS
                contributions carry none.
            OverflowBoundError: a sum might not fit.
        """
        if plan.server_std > 0.0 and not self.masked:
            raise ConfigError(
                "mechanism = 'central' without masks: whoever opens the sum would see it before "
                "the server adds noise; use masked = True, or mechanism = 'distributed'"
            )
        sum_bound, value_bound = bounds_of_plan(plan)
        return RoundEncryption(
            scheme=self.scheme,
            key_holder=self.key_holder,
            masked=self.masked,
            clients=bounds.size,
            length=plan.padded,
            bits=plan.bits,
            sum_bound=sum_bound,
            value_bound=value_bound,
            noise_std=plan.local_std,
        )

    @property
    def trusted_key_holder(self) -> KeyHolder | None:
        """Whose key alone opens a contribution; None where masks lie beneath the encryption."""
        return None if self.masked else self.key_holder


@dataclass(frozen=True)
class PlaintextAggregation:
    """No protection: every contribution reaches the server as it is.  A baseline."""

    bits: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _check_bits(self.bits)

    has_decryptor: ClassVar[bool] = False

    def parameters(self, bounds: CohortBounds) -> PairwiseParameters:
        """The survivor floor that a secure round would have; nothing else is used."""
        return PairwiseParameters.of(bounds)

    def ring_sigma(self, bounds: CohortBounds) -> int | None:
        """There is no masking graph."""
        return None

    def ring_bits(
        self, policy: PrivacyPolicy, *, cohort_size: int, dimension: int
    ) -> int | Literal["auto"]:
        """The ring width that a round is planned for."""
        return self.bits

    def encryption(self, plan: RoundPlan, bounds: CohortBounds) -> None:
        """Nothing is encrypted."""

    @property
    def trusted_key_holder(self) -> None:
        """Nobody: nothing hides contributions."""


Aggregation = PairwiseAggregation | HomomorphicAggregation | PlaintextAggregation


def check_removal(aggregation: Aggregation, bounds: CohortBounds) -> None:
    """Whether excess noise can be removed from sums that are formed so.

    Raises:
        ConfigError: says why not.
    """
    if isinstance(aggregation, PlaintextAggregation):
        raise ConfigError(
            "remove_excess_noise = True with aggregation = plaintext: seeds of noise are revealed "
            "in a masked round; use pairwise aggregation"
        )
    if isinstance(aggregation, HomomorphicAggregation) and not aggregation.masked:
        raise ConfigError(
            "remove_excess_noise = True with masked = False: seeds of noise are revealed in a "
            "masked round; use masked = True, or pairwise aggregation"
        )
    if aggregation.parameters(bounds).sparse:
        raise ConfigError(SPARSE_REMOVAL)
