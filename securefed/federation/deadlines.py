"""When a stage of a round closes: deadlines and over-selection, for clients that are late.

Sans-I/O and without a clock: whoever carries messages says what time it is.

**Over-selection.**  More clients are invited than are wanted, and a stage closes once enough have
answered.  That is the allowance for clients that fall silent: the floor of survivors follows from
the invited cohort and ``dropout_fraction``, and clients refuse to unmask below it, whoever closes
what when.  Noise is sized for the honest ones of the floor.  So over-selection costs noise: where
all are in time the sum carries more than was asked for (``remove_excess_noise`` takes it out).  A
client that is late with its masked input has charged itself and is in no sum; one that is late
before that has charged nothing.

**Who is late must not tell what it drew.**  A client that drew many examples takes longer.  Where
the sample is secret, clients therefore make their contributions first (``ClientRound.prepare``) and
join at a moment fixed beforehand; deadlines run from there.  The moment should leave time for the
largest draw: being too late for it shows.

Source: Bonawitz et al. 2019, "Towards Federated Learning at Scale" (1902.01046): more devices are
selected than are needed, and phases end at a goal count or a time-out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from securefed.config import share_of
from securefed.errors import ConfigError
from securefed.privacy.policy import PrivacyPolicy

Decision = Literal["wait", "close", "fail"]


@dataclass(frozen=True, kw_only=True)
class DeadlineRule:
    """How long a stage waits.

    Args:
        seconds: after these a stage closes as soon as its floor has answered, >= 0.
        patience: after these it fails without its floor, >= ``seconds``.
        enough: close early once this share of those asked has answered, in (0, 1]; never below the
            floor.  1 waits for all until the deadline.

    Raises:
        ConfigError: a field is out of range.
    """

    seconds: float
    patience: float
    enough: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ConfigError(f"seconds = {self.seconds}: must be finite and >= 0")
        if not (math.isfinite(self.patience) and self.patience >= self.seconds):
            raise ConfigError(
                f"patience = {self.patience}: must be finite and >= seconds = {self.seconds:g}"
            )
        if not 0 < self.enough <= 1:
            raise ConfigError(f"enough = {self.enough}: must be in (0, 1]")

    def check(self, policy: PrivacyPolicy, *, prepared: bool) -> None:
        """Refuse a deadline that would show a secret sample.

        Args:
            policy: that statements are about.  With ``mechanism = "local"`` it is not the round's
                own, which sums updates of whole clients and knows of no sample.
            prepared: clients make their contributions before the round begins.

        Raises:
            ConfigError: who is late would depend on how much it drew, or on what its update is.
        """
        why = "" if prepared else why_prepared(policy)
        if why:
            raise ConfigError(
                f"deadline with {why}; clients must prepare their contributions first (prepared = "
                "true)"
            )


def why_prepared(policy: PrivacyPolicy) -> str:
    """Why contributions must be made before a round with deadlines begins; empty where not."""
    if policy.unit != "client" and policy.sample_is_secret and policy.separation is None:
        return (
            f"unit = {policy.unit!r} and sample_is_secret = true: a client that drew much is late, "
            "and whoever sees that learns of its sample"
        )
    if policy.rounding == "conditional":
        return "rounding = 'conditional': how long rounding takes depends on the update"
    return ""


class StageDeadline:
    """One stage: who has answered so far, and whether to go on without the others.

    Args:
        rule: how long to wait.
        asked: clients that were asked, >= 1.
        floor: answers that the protocol needs in this stage, in 1..``asked``; for the stages up to
            the masked input the survivor floor of the *invited* cohort.
        began: when the stage began, by the caller's clock.

    Raises:
        ConfigError: ``floor`` is out of range.

    Guarantees:
        - ``close`` is decided only with ``floor`` answers or more.
        - Decisions depend on times and counts of answers alone, never on what is in them.

    Example:
        >>> rule = DeadlineRule(seconds=10, patience=60)
        >>> stage = StageDeadline(rule, asked=3, floor=2, began=100.0)
        >>> stage.answered(103.0), stage.answered(109.0)
        ('wait', 'wait')
        >>> stage.decision(110.0)
        'close'
    """

    def __init__(self, rule: DeadlineRule, *, asked: int, floor: int, began: float) -> None:
        if not 1 <= floor <= asked:
            raise ConfigError(f"floor = {floor}: must be in 1..{asked}, the clients asked")
        self._rule, self._asked, self._floor, self._began = rule, asked, floor, began
        self._enough = max(floor, math.ceil(rule.enough * asked - 1e-9))
        self._answers = 0

    def answered(self, now: float) -> Decision:
        """Another client's answer was taken."""
        self._answers += 1
        return self.decision(now)

    def decision(self, now: float) -> Decision:
        """Whether to wait, to close the stage, or to end the round without a result."""
        if self._answers >= self._enough:
            return "close"
        # Sums, as ``wake`` has them: their difference from ``began`` may round to less.
        if self._answers >= self._floor and now >= self._began + self._rule.seconds:
            return "close"
        return "fail" if now >= self._began + self._rule.patience else "wait"

    @property
    def wake(self) -> float:
        """When to ask for a decision again if nobody answers before."""
        rule = self._rule
        return self._began + (rule.seconds if self._answers >= self._floor else rule.patience)


def invitations(wanted: int, dropout_fraction: float) -> int:
    """The least cohort whose survivor floor is ``wanted`` clients.

    Args:
        wanted: clients that a sum is to hold, >= 2.
        dropout_fraction: share of the cohort that may be late or silent, in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> invitations(75, 0.25)
        99
    """
    if wanted < 2:
        raise ConfigError(f"wanted = {wanted}: must be >= 2")
    if not 0 <= dropout_fraction < 1:
        raise ConfigError(f"dropout_fraction = {dropout_fraction}: must be in [0, 1)")
    invited = wanted
    while invited - share_of(dropout_fraction, invited) < wanted:
        invited += 1
    return invited
