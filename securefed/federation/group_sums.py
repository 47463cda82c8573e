"""One round of several secure sums, each over a group of the cohort, to be combined robustly.

The cohort is divided into g groups, each of which runs a secure sum of its own (a
:class:`~securefed.federation.session.RoundSession`, carried by ``ServerRound`` and ``ClientRound``
as any other).  The server sees g sums where it saw one, and combines their means by a rule that a
minority of wrong groups cannot carry away (:mod:`securefed.federation.robust_mean`).

*What it is for.*  A client's clip is its own: the server sees masked ring vectors, and nothing
proves that one is short.  In one sum, one client that skips the clip moves the mean to wherever the
ring reaches.  In g sums it moves one.

*What it costs.*  Every sum hides a client among its group alone, and carries the whole noise of a
cohort of that size: for one ``noise_multiplier`` z the variance of the sum over all groups is g
times that of a single sum, that of each group's mean g^2 times.

*What is promised of privacy.*  A client is in one group, its data moves that group's sum and no
other, and the division does not depend on data.  So a round is a parallel composition: its
statement is that of one group, a cohort of n / g clients with the same z.  Corrupt clients are
counted whole: as many of them as may be in the cohort may be in one group (``policy_of_members``),
and a group is refused unless two honest clients remain in whatever is opened.  Privacy does not
rest on the division's being random: a server that chooses the session's name until two clients meet
gains nothing against this statement.  Over rounds, groups change, and more combinations of the same
clients are opened than of a fixed cohort: without noise (``mechanism = "none"``) that tells more
with every round.

*What robustness rests on.*  The session's name is drawn after the cohort is fixed, so that corrupt
clients do not choose their group; with k of them at most k groups are wrong wherever they fall.

Sources: parallel composition is that of McSherry 2009, "Privacy Integrated Queries", theorem 4.
Secure sums over random groups, combined robustly: Velicheti, Xia and Koyejo 2021, "Secure
Byzantine-Robust Distributed Learning via Clustering" (2110.02940), algorithm 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import rfc8785

from securefed.crypto.identity import IdentityPublicKey
from securefed.errors import ConfigError, OverflowBoundError
from securefed.federation.session import RoundSession
from securefed.federation.slice_plans import for_members
from securefed.privacy.accounting import Adversary, PrivacyGuarantee
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.unlike_rounds import policy_of_members
from securefed.secagg.aggregations import Aggregation, HomomorphicAggregation, PlaintextAggregation
from securefed.secagg.aggregator import SESSION_BYTES


@dataclass(frozen=True, kw_only=True)
class GroupedSession:
    """A grouped round's public description.  Every party builds it for itself.

    Args:
        session: 16 fresh random bytes naming this attempt; the division follows from them.
        round: number of the round, in 1..2^32 - 1.
        cohort: ids of the invited clients, sorted, without repeats.
        roster: identity keys; the client's own copy, not one the server sent.
        groups: g >= 2, sums in the round; divides the size of the cohort.
        dimension: d, length of an update.
        policy: privacy settings; ``noise_multiplier`` is that of every group by itself, fractions
            are of the whole cohort.
        aggregation: how each sum is formed; not encrypted.
        model: SHA-256 (32 bytes) over what is trained.

    Raises:
        ConfigError: these do not fit each other, or a group is too small for its threshold, its
            survivor floor or two honest survivors; the message names the group.
        OverflowBoundError: a group's sum might not fit the ring.

    Guarantees:
        - Every client is in one group, and every group is a round with the floors, thresholds and
          noise of a cohort of its size, all corrupt clients of the whole cohort among them.
        - Every group's digest covers the whole division: clients that were told of different ones
          are in no sum together.
    """

    session: bytes
    round: int
    cohort: tuple[str, ...]
    roster: Mapping[str, IdentityPublicKey]
    groups: int
    dimension: int
    policy: PrivacyPolicy
    aggregation: Aggregation
    model: bytes

    def __post_init__(self) -> None:
        size = len(self.cohort)
        if list(self.cohort) != sorted(set(self.cohort)):
            # Here and not in the groups' own rounds: a client named twice could be in two of them.
            raise ConfigError("cohort: client ids must be sorted and without repeats")
        if not 1 <= self.round < 2**32:
            raise ConfigError(f"round = {self.round}: must be in 1..2^32 - 1")
        if self.groups < 2 or size % self.groups:
            raise ConfigError(
                f"groups = {self.groups}: must be >= 2 and divide the cohort of {size} clients"
            )
        if len(self.session) != SESSION_BYTES:
            raise ConfigError(f"session of {len(self.session)} bytes: must be {SESSION_BYTES}")
        if isinstance(self.aggregation, HomomorphicAggregation):
            raise ConfigError("aggregation: grouped sums are there for 'pairwise' rounds only")
        for name in ("separation", "adaptive_clip"):
            if getattr(self.policy, name) is not None:
                raise ConfigError(
                    f"{name} = {getattr(self.policy, name)}: must be None with groups, whose sums "
                    "are combined robustly and not added"
                )
        _ = self.sessions

    @cached_property
    def members(self) -> tuple[tuple[str, ...], ...]:
        """Each group's clients, sorted: every client in one of them."""
        order = sorted(self.cohort, key=self._place)
        return tuple(tuple(sorted(order[i :: self.groups])) for i in range(self.groups))

    def _place(self, client: str) -> bytes:
        tag = b"securefed/1/division" + self.session + self.round.to_bytes(4, "little")
        return hashlib.sha256(tag + client.encode()).digest()

    def group_of(self, client: str) -> int:
        """The number of a client's group, 0-based.

        Raises:
            ConfigError: it is not in the cohort.
        """
        for number, members in enumerate(self.members):
            if client in members:
                return number
        raise ConfigError(f"client {client!r}: not in this cohort")

    @cached_property
    def sessions(self) -> tuple[RoundSession, ...]:
        """The groups' own rounds."""
        agreed = rfc8785.dumps(
            {
                "groups": [list(members) for members in self.members],
                "model": self.model.hex(),
                "policy": asdict(self.policy),
            }
        )
        whole = hashlib.sha256(b"securefed/1/grouped session" + self.session + agreed).digest()
        made = []
        for number, members in enumerate(self.members):
            own = hashlib.sha256(b"securefed/1/group" + number.to_bytes(4, "little") + whole)
            try:
                one = RoundSession(
                    session=own.digest()[:SESSION_BYTES],
                    round=self.round,
                    cohort=members,
                    roster=self.roster,
                    dimension=self.dimension,
                    policy=policy_of_members(self.policy, len(members), len(self.cohort)),
                    aggregation=for_members(self.aggregation, len(members)),
                    model=own.digest(),
                )
                _ = one.context
            except (ConfigError, OverflowBoundError) as error:
                raise type(error)(
                    f"group {number} of {len(members)} clients: {error}; use fewer groups"
                ) from error
            made.append(one)
        return tuple(made)

    @property
    def plaintext(self) -> bool:
        """Whether contributions reach the server unmasked."""
        return isinstance(self.aggregation, PlaintextAggregation)

    def guarantee(
        self, against: Adversary = "server", *, rounds: int | None = None
    ) -> PrivacyGuarantee:
        """What holds against one adversary over ``rounds`` rounds (default ``policy.rounds``).

        That of any one group: all are of one size, and plan and policy follow from the size alone.
        """
        return self.sessions[0].guarantee(against, rounds=rounds)

    def priced(self) -> dict[str, object]:
        """All figures that the accounted epsilon follows from, as JSON values."""
        return self.sessions[0].priced() | {"groups": self.groups}

    def event(self) -> dict[str, object]:
        """What a client charges to its account for this attempt, once: it is in one group."""
        return self.priced() | {"round": self.round, "session": self.session.hex()}
