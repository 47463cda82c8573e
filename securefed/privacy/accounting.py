"""From what was done to what it guarantees: the statement, in words and with its assumptions.

The numbers come from :mod:`securefed.privacy.pld` (discrete Gaussian and Gaussian noise) and
:mod:`securefed.privacy.rdp` (Skellam noise).
"""

from __future__ import annotations

import decimal
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from securefed.config import KeyHolder
from securefed.errors import ConfigError
from securefed.privacy.correlated_release import correlated_epsilon
from securefed.privacy.mechanisms import RoundPlan
from securefed.privacy.pld import distributed_epsilon, gaussian_epsilon
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.rdp import skellam_epsilon
from securefed.privacy.trust import assumed_of_parties, whom_to_trust

Adversary = Literal["server", "release", "fellow_client"]
ADVERSARIES: tuple[Adversary, ...] = ("server", "release", "fellow_client")

# A bound that is printed must not become smaller by being rounded.
_ROUNDED_UP = decimal.Context(prec=3, rounding=decimal.ROUND_CEILING)

_VIEW: dict[Adversary, str] = {
    "server": "the server, together with as many clients as Trust below says may be corrupt",
    "release": "whoever sees only the sums or adapters that are released",
    "fellow_client": "one other client, who sees each released sum and knows its own noise",
}


@dataclass(frozen=True, kw_only=True)
class PrivacyGuarantee:
    """An (epsilon, delta) statement with all that it rests on.  ``str()`` says it in words.

    Attributes:
        against: who the adversary is.
        unit: what one unit is, and ``adjacency``: which two data sets are compared.
        epsilon: upper bound; ``math.inf`` means that nothing is guaranteed.
        delta: the probability that goes with it.
        rounds: how many rounds (charged attempts) are composed.
        accountant, mechanism, sampling, trust: how the number came about, and who is trusted.
        assumptions: what must hold for the statement to hold.
    """

    against: Adversary
    unit: str
    adjacency: str
    epsilon: float
    delta: float
    rounds: int
    accountant: str
    mechanism: str
    sampling: str
    trust: str
    assumptions: tuple[str, ...]

    @property
    def protected(self) -> bool:
        """Whether anything at all is guaranteed."""
        return math.isfinite(self.epsilon)

    def __str__(self) -> str:
        if not self.protected:
            head = f"NO differential privacy against {_VIEW[self.against]}."
        else:
            head = (
                f"({epsilon_text(self.epsilon)}, {self.delta:g})-differential privacy for "
                f"{self.unit}, "
                f"against {_VIEW[self.against]}, over {self.rounds} round(s)."
            )
        lines = [
            head,
            f"Adjacency: {self.adjacency}.",
            f"Mechanism: {self.mechanism}. Sampling: {self.sampling}.",
            f"Accountant: {self.accountant}.",
            f"Trust: {self.trust}.",
            "Assumptions: " + "; ".join(self.assumptions) + ".",
        ]
        return "\n".join(lines)

    def to_record(self) -> dict[str, Any]:
        """JSON types only; an infinite epsilon becomes the string ``"unprotected"``."""
        record = asdict(self)
        record["assumptions"] = list(self.assumptions)
        if not self.protected:
            record["epsilon"] = "unprotected"
        return record


def epsilon_text(epsilon: float | None) -> str:
    """Epsilon for people: three significant digits, rounded up, zeros too (2.90, 1240).

    ``UNPROTECTED`` where nothing holds.
    """
    if epsilon is None or not math.isfinite(epsilon):
        return "UNPROTECTED"
    rounded = _ROUNDED_UP.create_decimal(repr(float(epsilon)))
    if not rounded:
        return "0"
    return f"{rounded.quantize(decimal.Decimal(1).scaleb(rounded.adjusted() - 2)):f}"


_UNIT_WORDS = {
    "example": "one example (a row of one client's data; not a document and not a person)",
    "user": (
        "one user: all of one client's data under one user key, drawn and clipped as one (the same "
        "person at two clients, or under two keys, is one user at each; who is only spoken of in "
        "another user's data is no user)"
    ),
    "client": "one client's whole contribution",
}
_NOISE_WORDS = {"discrete_gaussian": "discrete Gaussian", "skellam": "Skellam"}
_DEPENDS_ON_NO_OTHER = (
    "(training fills its micro-batches up to one shape and compares gradients to the bit before "
    "the first round)"
)
_INDEPENDENT = {
    "example": f"an example's vector depends on no other example {_DEPENDS_ON_NO_OTHER}",
    "user": (
        f"a user's vector depends on no other user {_DEPENDS_ON_NO_OTHER}; all of a user's records "
        "stand under one key"
    ),
}
_SHOWN = (
    "none credited, q = 1: sample_is_secret = false, so response times, seconds or batch sizes may "
    "show the sample, and with it who is in time for a sum"
)
_BY_INDEX = "what is shown of a sample follows from which units were drawn, not from what they hold"
_SHOWN_BY_INDEX = {
    "example": _BY_INDEX,
    # A drawn user takes time for each of its examples.
    "user": f"{_BY_INDEX}, but for how many examples a user has, which is public then",
    "client": _BY_INDEX,
}
_ADJACENCY = {
    "example": "zero-out of one example: its contribution is replaced by 0; how many examples a "
    "client holds is public",
    "user": "zero-out of one user: its contribution, from all of its records at one client, is "
    "replaced by 0; how many users a client holds is public",
    "client": "zero-out of one client: its update is replaced by 0; who takes part is public",
}
_ADJACENCY_OF_DRAWN_CLIENTS = (
    "zero-out of one client: its update is replaced by 0; who is enrolled is public, who was drawn "
    "is not"
)


def _unprotected(policy: PrivacyPolicy, against: Adversary, rounds: int) -> PrivacyGuarantee:
    return PrivacyGuarantee(
        against=against,
        unit=_UNIT_WORDS[policy.unit],
        adjacency=_ADJACENCY[policy.unit],
        epsilon=math.inf,
        delta=policy.delta,
        rounds=rounds,
        accountant="none",
        mechanism="none: sums carry no noise",
        sampling="not credited",
        trust="everyone who sees a sum is trusted with all that it shows",
        assumptions=("UNPROTECTED: this is a baseline",),
    )


def _local(policy: PrivacyPolicy, against: Adversary, rounds: int) -> PrivacyGuarantee:
    q = policy.credited_probability
    epsilon = gaussian_epsilon(
        policy.noise_multiplier, q, rounds * policy.local_steps, policy.delta
    )
    return PrivacyGuarantee(
        against=against,
        unit=_UNIT_WORDS[policy.unit],
        adjacency=_ADJACENCY[policy.unit],
        epsilon=epsilon,
        delta=policy.delta,
        rounds=rounds,
        accountant="Gaussian privacy loss distribution (dp_accounting, pessimistic)",
        mechanism=(
            f"local DP-SGD (Opacus), {policy.local_steps} step(s) a round, "
            f"noise_multiplier {policy.noise_multiplier:g} at each client"
        ),
        sampling=(
            f"Poisson, q = {q:.3g} a step, drawn in secret by each client"
            if policy.sample_is_secret
            else _SHOWN
        ),
        trust="no other party is trusted: each client's update is private by itself",
        assumptions=(
            "floating-point Gaussian noise behaves as an exact Gaussian (attacks on its low bits "
            "are not covered)",
            "each client samples, clips and noises as this code does",
            _INDEPENDENT[policy.unit],
            "a client's sampled batch sizes and timings are not seen"
            if policy.sample_is_secret
            else _SHOWN_BY_INDEX[policy.unit],
        ),
    )


def accounted_adversary(policy: PrivacyPolicy) -> Adversary:
    """Whom budgets and targets speak of: the server; the release where the server is trusted."""
    return "release" if policy.mechanism == "central" else "server"


def unknown_noises(bounds: CohortBounds, against: Adversary) -> int:
    """Clients whose noise this adversary does not know, in a sum of the fewest survivors."""
    return {
        "server": bounds.honest_floor,
        "release": bounds.survivor_floor,
        "fellow_client": bounds.survivor_floor - 1,
    }[against]


def sampling_against(policy: PrivacyPolicy, against: Adversary) -> tuple[float, str]:
    """Q that this adversary does not see through, and how it comes about."""
    if policy.separation is not None:
        return 1.0, (
            f"none, and none credited: each client's examples are divided into {policy.separation} "
            f"batches that come in turn, so that an example takes part in every "
            f"{policy.separation}th round"
        )
    if policy.unit == "client" and against != "release":
        return 1.0, "none credited: this adversary knows who takes part"
    if not policy.sample_is_secret:
        return 1.0, _SHOWN
    q = policy.sampling_probability
    if q == 1.0:
        return 1.0, "none credited (q = 1)"
    own = f"each client, of its {policy.unit}s"
    who = "a trusted sampler" if policy.unit == "client" else own
    return q, f"Poisson, q = {q:.3g} a round, drawn in secret by {who}"


_REDRAWN = (
    "an update is rounded again until it is no longer than the sensitivity (conditional rounding): "
    "how long a client takes for that depends on its update and is not seen"
)


def _mechanism(policy: PrivacyPolicy, bounds: CohortBounds) -> str:
    z, rule = policy.noise_multiplier, policy.adaptive_clip
    scale = f"noise_multiplier {z:g} over clip_norm {policy.clip_norm:g}"
    if rule is not None:
        scale = (
            f"noise_multiplier {z:g} over the bound of a unit's vector and bit together (adaptive "
            f"clipping between clip_norm {rule.min_clip_norm:g} and {rule.max_clip_norm:g}, "
            f"towards quantile {rule.target_quantile:g}: each unit's bit, within the clip or not, "
            "is summed and noised with its vector and paid for in this epsilon; z_Delta = "
            f"{rule.update_noise(z):.4g}, sigma_b = {rule.count_noise(z):.4g}),"
        )
    if policy.mechanism == "central":
        kind = "central discrete Gaussian"
        if policy.separation is not None:
            kind += (
                f" with {policy.bands} bands of correlation over rounds (DP-FTRL; there is no "
                "distributed form of it)"
            )
        return f"{kind}, {scale.removesuffix(',')}, added to the sum by the server"
    if policy.remove_excess_noise:
        honest = (
            "from the honest survivors, however many: noise beyond that is removed once the "
            "survivors are known, and is not counted"
        )
    else:
        honest = f"from {bounds.honest_floor} honest survivors"
    return f"distributed {_NOISE_WORDS[policy.noise]}, {scale} {honest}"


def _accountant(policy: PrivacyPolicy) -> str:
    if policy.noise == "skellam":
        ideal = "Renyi divergence of Skellam noise, the general bound for Poisson samples"
        added = ["the distance of the sampler from Skellam noise"]
    else:
        ideal = "Gaussian privacy loss distribution (dp_accounting, pessimistic)"
        added = ["the distance of the noise from a rounded Gaussian"]
    if policy.separation is not None:
        ideal = (
            "one Gaussian mechanism over all rounds, by its privacy loss distribution "
            "(dp_accounting, pessimistic), the matrix's exact sensitivity for participations "
            f"{policy.separation} rounds apart,"
        )
    if policy.rounding == "unconditional":
        added.append("the failure of the rounding bound")
    return f"{ideal} plus {' and '.join(added)}, in delta"


def guarantee(
    policy: PrivacyPolicy,
    plan: RoundPlan,
    *,
    cohort_size: int,
    against: Adversary = "server",
    rounds: int | None = None,
    plaintext: bool = False,
    ring_sigma: int | None = None,
    key_holder: KeyHolder | None = None,
) -> PrivacyGuarantee:
    """The statement for one adversary.

    Args:
        policy: the privacy settings of every round.
        plan: scale, ring and sensitivity that follow from them.
        cohort_size: n, clients invited to every round.
        against: ``"server"``: noise of the honest survivors only.  ``"release"``: noise of all
            survivors.  ``"fellow_client"``: all survivors but that client.  With ``"central"``
            noise, all of it is the server's: nothing holds against the server.
        rounds: attempts charged; default ``policy.rounds``.  With a ``policy.separation`` all
            rounds so far, those that a client missed too: the schedule moves on in them.  So too
            where a sampling of clients is credited: those for which a client was not drawn count.
        plaintext: sums are formed without masking; then nothing holds against the server.
        ring_sigma: security exponent of a sparse masking graph; None for a complete one.
        key_holder: whose key alone opens a contribution; None where nobody's does, in masked
            rounds too.

    Guarantees:
        - For ``unit="client"`` no amplification is credited against the server or a fellow client,
          who know who takes part.
        - With ``sample_is_secret=False`` none is credited against anybody.  Against the release
          neither: a client that took long because it drew much may miss the sum, so even a sum
          tells of the sample.  Given the sample, the mechanism is that of q = 1.

    Raises:
        ConfigError: ``against`` is not one of the three adversaries.
    """
    if against not in ADVERSARIES:
        raise ConfigError(f"against = {against!r}: must be one of {ADVERSARIES}")
    count = policy.rounds if rounds is None else rounds
    if policy.mechanism == "none":
        return _unprotected(policy, against, count)
    if policy.mechanism == "local":
        return _local(policy, against, count)
    bounds = CohortBounds.of(policy, cohort_size)
    central = policy.mechanism == "central"
    # In a sum of the fewest survivors; the plan looks at all larger ones.
    honest = unknown_noises(bounds, against)
    q, sampling = sampling_against(policy, against)
    if against == "server" and (plaintext or central):
        epsilon = math.inf
    elif policy.strategy is not None:
        epsilon = correlated_epsilon(plan, policy.strategy, rounds=count, delta=policy.delta)
    else:
        epsilon_of = skellam_epsilon if policy.noise == "skellam" else distributed_epsilon
        epsilon = epsilon_of(
            replace(plan, local_std=plan.server_std) if central else plan,
            honest=1 if central else honest,
            sampling_probability=q,
            rounds=count,
            delta=policy.delta,
        )
    assumptions = assumed_of_parties(
        policy,
        plan,
        bounds,
        against,
        honest=honest,
        plaintext=plaintext,
        ring_sigma=ring_sigma,
        key_holder=key_holder,
    )
    if policy.unit != "client":
        assumptions.append(_INDEPENDENT[policy.unit])
    if not policy.sample_is_secret:
        assumptions.append(_SHOWN_BY_INDEX[policy.unit])
    adjacency = _ADJACENCY[policy.unit]
    if q < 1.0 and policy.unit != "client":
        assumptions.append(
            "sampled batch sizes, per-client seconds and response times are not seen"
        )
    elif q < 1.0:
        adjacency = _ADJACENCY_OF_DRAWN_CLIENTS
        assumptions.append("who was drawn for a round, and how many, is not seen")
    if policy.rounding == "conditional":
        assumptions.append(_REDRAWN)
    if plaintext:
        assumptions.append("UNPROTECTED against the server: contributions reach it unmasked")
    return PrivacyGuarantee(
        against=against,
        unit=_UNIT_WORDS[policy.unit],
        adjacency=adjacency,
        epsilon=epsilon,
        delta=policy.delta,
        rounds=count,
        accountant=_accountant(policy),
        mechanism=_mechanism(policy, bounds),
        sampling=sampling,
        trust=whom_to_trust(policy, bounds, against, plaintext=plaintext, key_holder=key_holder),
        assumptions=tuple(assumptions),
    )
