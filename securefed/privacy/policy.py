"""What a cohort agrees to protect, and what that asks of its size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

from securefed.config import Mechanism, Noise, Rounding, Unit, share_of, why_not_conditional
from securefed.errors import ConfigError
from securefed.privacy.adaptive_clip import AdaptiveClip
from securefed.privacy.correlated import BandedToeplitz, banded_square_root

MAX_COUNT = 2**31
"""Bound on rounds, steps and rows: far above use, and exact in every encoding."""


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{field} = {value!r}: must be {allowed}")


@dataclass(frozen=True, kw_only=True)
class PrivacyPolicy:
    """The privacy settings of a round, the same for every party of it.

    Args:
        clip_norm: L2 bound C on one unit's contribution to a round, in [1e-100, 1e100]: scaling
            to grid units is then exact to the last bits, far from float64's ends.  Under adaptive
            clipping the bound of this round.
        adaptive_clip: the rule by which the clip of the next round follows from this one's sum;
            None for the same clip in all rounds.
        noise_multiplier: std of the *honest survivors'* summed noise over ``clip_norm`` (of the
            server's noise with ``"central"``, before it is correlated over rounds); > 0 unless
            ``mechanism`` is ``"none"``.  Under adaptive clipping over the bound of a unit's vector
            and bit together (``L2Clip.unit_bound``).
        delta: target delta of the (epsilon, delta) statement over all ``rounds``, in (0, 1).
        unit: ``"client"``: one update is one unit.  ``"example"``: one row is one unit.
            ``"user"``: all of a client's data under one user key is one unit, and gives one row.
        mechanism: ``"distributed"``: each client adds its share of the noise before masking.
            ``"central"``: a server that is trusted with the sum adds all of the noise to it;
            nothing holds against that server.  ``"local"``: each client's training is
            differentially private by itself (DP-SGD).  ``"none"``: no noise; every output names it
            as unprotected.
        noise: ``"discrete_gaussian"``, accounted for as tightly as a Gaussian.  ``"skellam"``, for
            ``"distributed"`` only: sums are exactly Skellam, accounting is by Renyi divergence and
            looser where sampling is rare.
        rounding: ``"unconditional"``: the sensitivity holds but for a probability that delta
            covers.  ``"conditional"``, for ``"client"`` only: an update is rounded again until it
            is short enough, so that a smaller sensitivity holds always.
        sampling_probability: q in (0, 1].  For ``"example"`` and ``"user"`` each client keeps each
            row independently with probability q, in secret, every round.  For ``"client"`` it says
            how the cohort itself was drawn, and is credited against the release only.
        separation: B >= 1, for ``"central"`` noise and ``"example"`` only: nothing is sampled; each
            client's rows are divided into B batches that come in turn
            (:mod:`securefed.privacy.cyclic`), and what is passed on as a client's rows of a round
            is its batch.  None for the sample above.
        bands: b in 1..B, with ``separation``: how many rounds' sums the server's noise is
            correlated over (:mod:`securefed.privacy.correlated`); 1 is independent noise.
        sample_is_secret: whether nobody but its drawer learns of a sample, not by response times,
            per-client seconds or batch sizes either.  False where a deployment shows any of these:
            every statement then counts with q = 1.
        rounds: how many rounds with these settings are composed, >= 1.
        corrupt_fraction: gamma, share of the cohort that may collude with the server.
        dropout_fraction: delta of the protocol papers, share of the cohort that may fall silent.
        max_examples: for ``unit="example"`` and ``"user"``, how many rows (units) one client's sum
            may hold; sizes the ring.  The default is the largest client's row count.
        local_steps: for ``mechanism="local"``, DP-SGD steps per round, >= 1.
        remove_excess_noise: whether clients add their noise in layers, of which those that the
            number of survivors makes needless are removed from the sum
            (:mod:`securefed.privacy.layers`); with ``mechanism="distributed"`` only.

    Raises:
        ConfigError: names the field, the value and what is allowed.
    """

    clip_norm: float
    noise_multiplier: float = 0.0
    delta: float = 1e-5
    unit: Unit = "client"
    mechanism: Mechanism = "distributed"
    noise: Noise = "discrete_gaussian"
    rounding: Rounding = "unconditional"
    sampling_probability: float = 1.0
    separation: int | None = None
    bands: int = 1
    sample_is_secret: bool = True
    rounds: int = 1
    corrupt_fraction: float = 0.1
    dropout_fraction: float = 0.25
    max_examples: int | None = None
    local_steps: int = 1
    remove_excess_noise: bool = False
    adaptive_clip: AdaptiveClip | None = None

    def __post_init__(self) -> None:
        finite = math.isfinite
        _require(
            1e-100 <= self.clip_norm <= 1e100, "clip_norm", self.clip_norm, "in [1e-100, 1e100]"
        )
        _require(
            finite(self.noise_multiplier) and self.noise_multiplier >= 0,
            "noise_multiplier",
            self.noise_multiplier,
            "finite, >= 0",
        )
        _require(0 < self.delta < 1, "delta", self.delta, "in (0, 1)")
        _require(self.unit in get_args(Unit), "unit", self.unit, f"one of {get_args(Unit)}")
        _require(
            self.mechanism in get_args(Mechanism),
            "mechanism",
            self.mechanism,
            f"one of {get_args(Mechanism)}",
        )
        _require(self.noise in get_args(Noise), "noise", self.noise, f"one of {get_args(Noise)}")
        _require(
            self.noise == "discrete_gaussian" or self.mechanism == "distributed",
            "noise",
            self.noise,
            f"'discrete_gaussian' with mechanism = {self.mechanism!r}",
        )
        _require(
            self.rounding in get_args(Rounding),
            "rounding",
            self.rounding,
            f"one of {get_args(Rounding)}",
        )
        _require(
            0 < self.sampling_probability <= 1,
            "sampling_probability",
            self.sampling_probability,
            "in (0, 1]",
        )
        for name in ("sample_is_secret", "remove_excess_noise"):
            _require(
                isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False"
            )
        for name in ("rounds", "local_steps"):
            value = getattr(self, name)
            _require(
                isinstance(value, int) and 1 <= value <= MAX_COUNT,
                name,
                value,
                f"an int in 1..{MAX_COUNT}",
            )
        _require(
            0 <= self.corrupt_fraction < 1, "corrupt_fraction", self.corrupt_fraction, "in [0, 1)"
        )
        _require(
            0 <= self.dropout_fraction < 1, "dropout_fraction", self.dropout_fraction, "in [0, 1)"
        )
        _require(
            self.max_examples is None
            or (isinstance(self.max_examples, int) and 1 <= self.max_examples <= MAX_COUNT),
            "max_examples",
            self.max_examples,
            f"an int in 1..{MAX_COUNT}",
        )
        refused = why_not_conditional(self.unit, self.sample_is_secret)
        _require(
            self.rounding == "unconditional" or not refused,
            "rounding",
            self.rounding,
            f"'unconditional' with {refused}",
        )
        if self.mechanism == "none":
            _require(
                self.noise_multiplier == 0,
                "noise_multiplier",
                self.noise_multiplier,
                "0 when mechanism = 'none'",
            )
        else:
            _require(
                self.noise_multiplier > 0,
                "noise_multiplier",
                self.noise_multiplier,
                f"> 0 with mechanism = {self.mechanism!r}; a baseline without noise is "
                "mechanism = 'none'",
            )
        if self.remove_excess_noise:
            _require(
                self.mechanism == "distributed",
                "mechanism",
                self.mechanism,
                "'distributed' with remove_excess_noise = True: no other adds noise in shares",
            )
            _require(
                self.noise == "discrete_gaussian",
                "noise",
                self.noise,
                "'discrete_gaussian' with remove_excess_noise = True",
            )
        if self.separation is not None:
            _require(
                (self.mechanism, self.unit) == ("central", "example"),
                "separation",
                self.separation,
                f"None with mechanism = {self.mechanism!r}, unit = {self.unit!r}; noise correlated "
                "over rounds is there for 'central' noise and 'example' only",
            )
            _require(
                self.sampling_probability == 1,
                "sampling_probability",
                self.sampling_probability,
                "1 with a separation: nothing is sampled",
            )
            banded_square_root(self.bands, self.separation)  # checks both
        else:
            _require(self.bands == 1, "bands", self.bands, "1 without a separation")
        if self.mechanism == "local":
            _require(
                self.unit != "client",
                "unit",
                self.unit,
                "'example' or 'user' with mechanism = 'local'",
            )

        rule = self.adaptive_clip
        if rule is not None:
            _require(
                self.separation is None,
                "adaptive_clip",
                rule,
                "None with a separation: correlated noise needs one clip for all rounds",
            )
            _require(
                self.mechanism != "local", "adaptive_clip", rule, "None with mechanism 'local'"
            )
            _require(
                rule.min_clip_norm <= self.clip_norm <= rule.max_clip_norm,
                "clip_norm",
                self.clip_norm,
                f"in [min_clip_norm, max_clip_norm] = [{rule.min_clip_norm:g}, "
                f"{rule.max_clip_norm:g}] of adaptive_clip",
            )

    @property
    def count_weight(self) -> float:
        """Weight of a unit's bit beside its vector; 0 without adaptive clipping."""
        return 0.0 if self.adaptive_clip is None else self.adaptive_clip.count_weight

    @property
    def largest_clip_norm(self) -> float:
        """The largest clip of this and all later rounds."""
        return self.clip_norm if self.adaptive_clip is None else self.adaptive_clip.max_clip_norm

    def after(self, unclipped_fraction: float | None) -> PrivacyPolicy:
        """The policy of the next round.

        Run by: every party for itself, from the fraction that it was shown.  Who was shown another
        one has another clip and so another digest: it is in no sum with the rest.

        Args:
            unclipped_fraction: noised share of units within the clip, in [-1, 2], as a round's
                record holds it; None exactly where clipping is not adaptive.

        Raises:
            ConfigError: the fraction is outside that.
        """
        if self.adaptive_clip is None:
            _require(
                unclipped_fraction is None,
                "unclipped_fraction",
                unclipped_fraction,
                "None without adaptive_clip",
            )
            return self
        if unclipped_fraction is None:
            raise ConfigError("unclipped_fraction = None: must be in [-1, 2] with adaptive_clip")
        clip_norm = self.adaptive_clip.next_clip_norm(self.clip_norm, unclipped_fraction)
        return replace(self, clip_norm=clip_norm)

    def without_noise(self, clip_norm: float) -> PrivacyPolicy:
        """The same cohort's thresholds for a sum of whole vectors that carries no noise."""
        return PrivacyPolicy(
            clip_norm=clip_norm,
            mechanism="none",
            delta=self.delta,
            sample_is_secret=self.sample_is_secret,
            rounds=self.rounds,
            corrupt_fraction=self.corrupt_fraction,
            dropout_fraction=self.dropout_fraction,
        )

    @property
    def strategy(self) -> BandedToeplitz | None:
        """How the server's noise is correlated over rounds; None where each round is by itself."""
        if self.separation is None:
            return None
        return banded_square_root(self.bands, self.separation)

    @property
    def expected_share(self) -> float:
        """The share of all units that is expected in a round."""
        return self.sampling_probability if self.separation is None else 1.0 / self.separation

    @property
    def credited_probability(self) -> float:
        """Q as accounting may use it: 1 where the sample is not secret."""
        return self.sampling_probability if self.sample_is_secret else 1.0


@dataclass(frozen=True)
class CohortBounds:
    """How many clients of a cohort must be there, and how many of those are honest.

    With n clients invited, at most ``corrupt = floor(gamma n)`` collude and clients refuse to
    unmask below ``survivor_floor = ceil((1 - delta) n)`` survivors, so at least
    ``honest_floor = survivor_floor - corrupt`` of those inside the sum are honest.  Noise is sized
    for ``honest_floor``: a corrupt client can leave its share out.
    """

    size: int
    corrupt: int
    survivor_floor: int

    @property
    def honest_floor(self) -> int:
        """Honest clients inside any sum that is opened."""
        return self.survivor_floor - self.corrupt

    @property
    def most_missing(self) -> int:
        """Most clients of the cohort that may be missing from a sum that is opened."""
        return self.size - self.survivor_floor

    @classmethod
    def of(cls, policy: PrivacyPolicy, size: int) -> CohortBounds:
        """Bounds for ``size`` invited clients.

        Raises:
            ConfigError: fewer than two clients, or no two honest clients could be sure to remain
                (a sum with one honest client is that client's update to the others).
        """
        if size < 2:
            raise ConfigError(f"cohort of {size} clients: a sum needs at least 2")
        corrupt = share_of(policy.corrupt_fraction, size)
        floor = size - share_of(policy.dropout_fraction, size)
        bounds = cls(size=size, corrupt=corrupt, survivor_floor=floor)
        if bounds.honest_floor < 2:
            raise ConfigError(
                f"cohort of {size} clients with corrupt_fraction = {policy.corrupt_fraction} and "
                f"dropout_fraction = {policy.dropout_fraction} leaves {bounds.honest_floor} honest "
                "clients in the sum: at least 2 are needed; have more clients, or lower one of the "
                "fractions to what you fear"
            )
        return bounds
