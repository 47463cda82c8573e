"""What a run has shown one adversary, as an event that any accountant can price.

A statement of this package is epsilon of an ideal mechanism, with what the real one differs from it
added to delta (:mod:`securefed.privacy.additions`).  A release names both: the ideal mechanism of
all rounds together as a ``dp_accounting`` event, and the distance in total variation between whole
real and whole ideal runs.  If the event is (epsilon, delta')-private, the run is

    (epsilon, delta' + (1 + e^epsilon) distance)-differentially private.

Which event stands for which rounds:

=========================  ========================================================================
rounds                     event
=========================  ========================================================================
independent noise          the Gaussian that a round is close to, sampled at the q that this
                           adversary does not see through, composed with itself
slices side by side        one Gaussian a round, of all slices together
                           (:mod:`securefed.privacy.slices`)
unlike cohorts             the least noise of any kind in every round
                           (:mod:`securefed.privacy.unlike_rounds`): an upper bound, not the
                           mechanism of any one round
noise correlated over      one Gaussian for all rounds, of the sensitivity over all of them
rounds
local DP-SGD               the sampled Gaussian of each local step
Skellam noise              ``UnsupportedDpEvent``: the library has no class for it; what it follows
                           from stands in ``privacy`` of the same record
no noise, or all of it     ``NonPrivateDpEvent``
the adversary's own
=========================  ========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dp_accounting import dp_event

from securefed.errors import UnsupportedEvent
from securefed.privacy.accounting import Adversary, sampling_against, unknown_noises
from securefed.privacy.correlated_release import correlated_gaussian
from securefed.privacy.dp_events import decode_event, encode_event
from securefed.privacy.mechanisms import RoundPlan
from securefed.privacy.pld import effective_gaussian
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.slices import SliceTerms, sliced_gaussian
from securefed.privacy.unlike_rounds import RoundKind, unlike_gaussian

NEIGHBOURS = "ADD_OR_REMOVE_ONE"
"""The relation that the event is accounted under, by ``dp_accounting``'s name.  Zero-out of a unit
in a (sampled) Gaussian mechanism is dominated by both of its directions."""


@dataclass(frozen=True)
class Release:
    """All rounds of a run, as one adversary sees them.

    Attributes:
        event: the ideal mechanism.
        distance: eta >= 0 of all rounds together, in total variation.
        delta: of the statement, additions included.
        rounds: charged attempts.
    """

    event: dp_event.DpEvent
    distance: float
    delta: float
    rounds: int

    def to_record(self) -> dict[str, Any]:
        """JSON values, without loss."""
        return {
            "dp_event": encode_event(self.event),
            "neighbours": NEIGHBOURS,
            "distance": self.distance,
            "delta": self.delta,
            "rounds": self.rounds,
        }

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Release:
        """The inverse of :meth:`to_record`.

        Raises:
            UnsupportedEvent: it is no such record.
        """
        try:
            if record["neighbours"] != NEIGHBOURS:
                raise UnsupportedEvent(
                    f"neighbours = {record['neighbours']!r}: must be {NEIGHBOURS!r}"
                )
            return cls(
                event=decode_event(record["dp_event"]),
                distance=float(record["distance"]),
                delta=float(record["delta"]),
                rounds=int(record["rounds"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UnsupportedEvent(f"release: lacks what it must hold ({error!r})") from None


def release_of(
    policy: PrivacyPolicy,
    plan: RoundPlan,
    *,
    cohort_size: int,
    against: Adversary,
    rounds: int,
    plaintext: bool = False,
) -> Release:
    """The release that :func:`securefed.privacy.accounting.guarantee` states epsilon of.

    Arguments as there.

    Raises:
        UnsupportedEvent: the noise is too coarse for any event.
    """
    if policy.mechanism == "local":
        q = policy.credited_probability
        event = _repeated(_gaussian(policy.noise_multiplier, q), rounds * policy.local_steps)
        return Release(event, 0.0, policy.delta, rounds)
    central = policy.mechanism == "central"
    without = _without_event(policy, against, rounds, plaintext=plaintext)
    if without is not None:
        return without
    if policy.strategy is not None:
        if rounds == 0:
            return Release(dp_event.NoOpDpEvent(), 0.0, policy.delta, 0)
        z, eta = correlated_gaussian(plan, policy.strategy, rounds=rounds)
        return Release(dp_event.GaussianDpEvent(z), rounds * eta, policy.delta, rounds)
    honest = 1 if central else unknown_noises(CohortBounds.of(policy, cohort_size), against)
    z, eta = effective_gaussian(
        replace(plan, local_std=plan.server_std) if central else plan, honest
    )
    return _composed(policy, against, z, eta, rounds)


def sliced_release(
    slices: Sequence[SliceTerms], *, against: Adversary, rounds: int, plaintext: bool
) -> Release:
    """The release that :func:`securefed.privacy.slices.sliced_guarantee` is about."""
    policy = slices[0].policy
    without = _without_event(policy, against, rounds, plaintext=plaintext)
    if without is not None:
        return without
    honest = [unknown_noises(one.bounds, against) for one in slices]
    z, eta = sliced_gaussian([one.plan for one in slices], honest)
    return _composed(policy, against, z, eta, rounds)


def unlike_release(
    kinds: Sequence[RoundKind], *, against: Adversary, rounds: int, plaintext: bool
) -> Release:
    """The release that :func:`securefed.privacy.unlike_rounds.unlike_guarantee` is about."""
    first = kinds[0]
    policy = first.policy
    if policy.mechanism == "local":
        return release_of(
            policy, first.plan, cohort_size=first.members, against=against, rounds=rounds
        )
    without = _without_event(policy, against, rounds, plaintext=plaintext)
    if without is not None:
        return without
    z, eta = unlike_gaussian(kinds, against)
    return _composed(policy, against, z, eta, rounds)


def _without_event(
    policy: PrivacyPolicy, against: Adversary, rounds: int, *, plaintext: bool
) -> Release | None:
    """The release where nothing is guaranteed, or no class of event fits; None elsewhere."""
    trusted = plaintext or policy.mechanism == "central"
    if policy.mechanism == "none" or (against == "server" and trusted):
        return Release(dp_event.NonPrivateDpEvent(), 0.0, policy.delta, rounds)
    if policy.noise == "skellam":
        return Release(dp_event.UnsupportedDpEvent(), 0.0, policy.delta, rounds)
    return None


def _composed(
    policy: PrivacyPolicy, against: Adversary, z: float, eta: float, rounds: int
) -> Release:
    q = sampling_against(policy, against)[0]
    return Release(_repeated(_gaussian(z, q), rounds), rounds * eta, policy.delta, rounds)


def _gaussian(z: float, q: float) -> dp_event.DpEvent:
    event = dp_event.GaussianDpEvent(z)
    return event if q == 1.0 else dp_event.PoissonSampledDpEvent(q, event)


def _repeated(event: dp_event.DpEvent, count: int) -> dp_event.DpEvent:
    return dp_event.SelfComposedDpEvent(event, count) if count else dp_event.NoOpDpEvent()
