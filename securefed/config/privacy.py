"""The ``privacy`` section of the run file."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from securefed.config.base import Fraction, NonNegative, Positive, Section

Unit = Literal["example", "user", "client"]
Mechanism = Literal["distributed", "central", "local", "none"]
Noise = Literal["discrete_gaussian", "skellam"]
Rounding = Literal["unconditional", "conditional"]
Sampling = Literal["poisson", "cyclic"]


class AdaptiveClipSection(Section):
    """A clip that follows the units' norms (1905.03871); ``privacy.clip_norm`` is the first one.

    ``target_quantile`` of the units are to lie within the clip.  Each unit's bit travels beside its
    vector with ``count_weight``, in the same noised sum, and every party moves the clip itself by
    the noised fraction, between ``min_clip_norm`` and ``max_clip_norm`` (by default a thousandth
    and a thousandfold of ``privacy.clip_norm``).
    """

    target_quantile: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    learning_rate: Annotated[float, Field(ge=1e-3, le=2.0)] = 0.2
    count_weight: Annotated[float, Field(ge=1e-3, le=2.0)] = 0.2
    min_clip_norm: Positive | None = None
    max_clip_norm: Positive | None = None


DEFAULT_NOISE = {"noise_multiplier": 0.6}


def why_not_conditional(unit: Unit, sample_is_secret: bool) -> str:
    """Why rounding that depends on the result's length is refused; empty where it is not."""
    if unit != "client":
        return (
            f"unit = {unit!r}: whether a sum is rounded again would depend on its other units, and "
            "no bound on one of them would hold; unit must be 'client'"
        )
    if not sample_is_secret:
        return (
            "sample_is_secret = false: response times are shown, and how often an update is "
            "rounded again depends on what it holds; sample_is_secret must be true"
        )
    return ""


class PrivacySection(Section):
    """What is protected, by how much, and against whom.

    ``mechanism``: ``distributed``: each client adds its share of the noise before masking.
    ``central``: a server that is trusted with the sum adds the noise.  ``local``: each client's
    training is private by itself.  ``none``: an unprotected baseline.

    ``noise_multiplier`` is the standard deviation of the honest survivors' summed noise divided
    by ``clip_norm`` (0.6 where neither it nor ``target_epsilon`` is given).  ``target_epsilon`` is
    turned into the least noise that keeps all of the run's rounds within it, against the server;
    with ``central``, against the release.  ``corrupt_fraction`` and ``dropout_fraction`` are shares
    of the cohort: noise is sized for the clients that are neither.  ``sample_is_secret = false`` is
    for a deployment that shows response times, per-client seconds or batch sizes: no amplification
    by sampling is credited then.  ``rounding = "conditional"``, for ``unit = "client"``: an update
    is rounded to the grid again until it is no longer than the sensitivity, which then always holds
    and is smaller.  ``remove_excess_noise``: clients add noise in layers, and those that the number
    of survivors makes needless are removed from the sum; for distributed discrete Gaussian noise,
    masking with everyone (below 200 clients).

    ``expected_batch`` counts examples, or users for ``unit = "user"``: a user's contribution is the
    mean over its examples.

    ``sampling = "cyclic"`` (with ``central`` noise and ``unit = "example"``) samples nothing: each
    client's examples are divided into batches that come in turn, of ``expected_batch`` examples or
    a little less over all clients, and the noise of a round is correlated with that of the
    ``noise_bands - 1`` before it, so that most of it cancels over rounds.  ``noise_bands`` is at
    most the number of batches; 1 is independent noise; without it, the number up to 64 with the
    least error is taken.  Such a run cannot be resumed.

    With a table ``adaptive_clip`` the clip adapts from round to round at the same epsilon;
    ``noise_multiplier`` is then over the bound of a unit's vector and bit together.  Not with
    ``sampling = "cyclic"``.
    """

    unit: Unit = "example"
    mechanism: Mechanism = "distributed"
    noise: Noise = "discrete_gaussian"
    rounding: Rounding = "unconditional"
    clip_norm: Positive = 0.5
    adaptive_clip: AdaptiveClipSection | None = None
    noise_multiplier: NonNegative | None = None
    target_epsilon: Positive | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    expected_batch: Positive = 128.0
    update_clip_norm: Positive = 10.0
    sampling: Sampling = "poisson"
    noise_bands: Annotated[int, Field(ge=1, le=1024)] | None = None
    sample_is_secret: bool = True
    remove_excess_noise: bool = False
    corrupt_fraction: Fraction = 0.1
    dropout_fraction: Fraction = 0.25

    @model_validator(mode="before")
    @classmethod
    def _noise_has_a_default(cls, values: Any) -> Any:
        given = isinstance(values, dict) and {"noise_multiplier", "target_epsilon"} & set(values)
        return values if given or not isinstance(values, dict) else values | DEFAULT_NOISE

    @model_validator(mode="after")
    def _clip_can_adapt(self) -> Self:
        adaptive = self.adaptive_clip
        if adaptive is None:
            return self
        if self.mechanism == "local":
            raise ValueError(
                "adaptive_clip with mechanism = 'local': each client's own training clips there, "
                "and nothing of it is counted; leave it out"
            )
        if self.sampling == "cyclic":
            raise ValueError(
                "adaptive_clip with sampling = 'cyclic': noise correlated over rounds needs "
                "one clip for all of them; leave it out"
            )
        least, most = adaptive.min_clip_norm or 0.0, adaptive.max_clip_norm or math.inf
        if not least <= self.clip_norm <= most:
            raise ValueError(
                f"clip_norm = {self.clip_norm:g}: must be in [{least:g}, {most:g}], between "
                "adaptive_clip.min_clip_norm and adaptive_clip.max_clip_norm"
            )
        return self

    @model_validator(mode="after")
    def _mechanism_has_noise(self) -> Self:
        if self.noise == "skellam" and self.mechanism != "distributed":
            raise ValueError(
                f"noise = 'skellam' with mechanism = {self.mechanism!r}: Skellam noise is for sums "
                "of many clients' noise, mechanism = 'distributed'"
            )
        if self.rounding == "conditional":
            refused = why_not_conditional(self.unit, self.sample_is_secret)
            if refused:
                raise ValueError(f"rounding = 'conditional' with {refused}")
        if self.remove_excess_noise and (
            self.mechanism != "distributed" or self.noise != "discrete_gaussian"
        ):
            raise ValueError(
                f"remove_excess_noise = true with mechanism = {self.mechanism!r} and noise = "
                f"{self.noise!r}: layers are of 'distributed' noise that is 'discrete_gaussian'"
            )
        if self.sampling == "cyclic" and (self.mechanism, self.unit) != ("central", "example"):
            raise ValueError(
                f"sampling = 'cyclic' with mechanism = {self.mechanism!r}, unit = {self.unit!r}: "
                "noise correlated over rounds is there for mechanism = 'central', unit = 'example' "
                "only; there is no distributed form of it"
            )
        if self.noise_bands is not None and self.sampling != "cyclic":
            raise ValueError(
                f"noise_bands = {self.noise_bands} with sampling = {self.sampling!r}: noise is "
                "correlated over rounds with sampling = 'cyclic' only; leave it out"
            )
        if self.mechanism == "none":
            if self.target_epsilon is not None:
                raise ValueError(
                    f"target_epsilon = {self.target_epsilon:g} with mechanism = 'none': no epsilon "
                    "is reached there; leave it out, or use 'distributed'"
                )
            return self
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            raise ValueError(
                f"noise_multiplier = {self.noise_multiplier:g} and target_epsilon = "
                f"{self.target_epsilon:g} are both given; give one of them"
            )
        if self.noise_multiplier == 0.0:
            raise ValueError(
                f"noise_multiplier = 0 with mechanism = {self.mechanism!r} protects nothing; give "
                "a value > 0, or mechanism = 'none' for an unprotected baseline"
            )
        if self.mechanism == "local" and self.unit == "client":
            raise ValueError(
                "mechanism = 'local' is DP-SGD within a client: unit must be 'example' or 'user'"
            )
        return self

    @property
    def resumable(self) -> bool:
        """Whether a run that was stopped can go on.

        Noise correlated over rounds needs the earlier sums without noise, which are in the memory
        of the process alone.
        """
        return self.sampling != "cyclic"
