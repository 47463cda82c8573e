"""A sliced round in one process: clients of unlike ranks, each slice summed among those it has."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from securefed.config import Stage
from securefed.crypto.identity import IdentityKey
from securefed.engines.in_process import carry, checked_drop, checked_update
from securefed.errors import ConfigError
from securefed.federation.slice_plans import LEAST_CONTRIBUTORS
from securefed.federation.sliced_rounds import SlicedClientRound, SlicedEncode, SlicedServerRound
from securefed.federation.slices import SlicedSession
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation
from securefed.secagg.aggregator import SESSION_BYTES
from securefed.secagg.carriers import MaskRemoval, apply_masks


@dataclass(frozen=True)
class SlicedRoundResult:
    """What one sliced round gives.  Slices are numbered from 1.

    Attributes:
        sums: by slice that was opened, float64[d_slice]: the survivors' sum, plus noise.
        means: by slice that was opened, its sum over the number (or public weight) of *its*
            survivors, or, for ``unit="example"`` and ``"user"``, over their expected batch.
        survivors: by slice that was opened: ids inside its sum, sorted.
        dropped: by slice that stays closed: why.
        bytes_up: bytes sent by each client, by id.
        bytes_down: bytes sent to each client, by id.
        transcript: ``transcript[stage][client id]``: every byte the server received.
    """

    sums: dict[int, NDArray[np.float64]]
    means: dict[int, NDArray[np.float64]]
    survivors: dict[int, tuple[Hashable, ...]]
    dropped: dict[int, str]
    bytes_up: dict[Hashable, int]
    bytes_down: dict[Hashable, int]
    transcript: dict[Stage, dict[Hashable, bytes]]
    session: SlicedSession = field(repr=False)

    def mean(self, tier: int) -> NDArray[np.float64]:
        """The mean update for a client of one tier: float64[d_1 + .. + d_tier].

        A slice that stays closed has zeros: nothing is known of it, and it does not move.
        """
        if not 1 <= tier <= len(self.session.widths):
            raise ConfigError(f"tier = {tier}: must be 1..{len(self.session.widths)}")
        parts = enumerate(self.session.widths[:tier], start=1)
        return np.concatenate([self.means.get(number, np.zeros(width)) for number, width in parts])

    @cached_property
    def guarantee(self) -> PrivacyGuarantee:
        """What holds against the server, over ``privacy.rounds`` rounds like this one."""
        return self.session.guarantee()

    @cached_property
    def guarantees(self) -> dict[Adversary, PrivacyGuarantee]:
        """What holds against each adversary."""
        return {who: self.session.guarantee(who) for who in ADVERSARIES}


def secure_sliced_round(
    updates: Mapping[Hashable, ArrayLike],
    *,
    widths: Sequence[int],
    privacy: PrivacyPolicy,
    aggregation: Aggregation | None = None,
    least_contributors: int = LEAST_CONTRIBUTORS,
    weights: Mapping[Hashable, float] | None = None,
    drop: Mapping[Hashable, Stage] | None = None,
    remove_masks: MaskRemoval = apply_masks,
) -> SlicedRoundResult:
    """Run one whole sliced round in this process.

    Args:
        updates: client id -> array as for ``secure_round``; its length is that of the slices that
            the client holds, w_1 + .. + w_k for one k.
        widths: w_1..w_m, the length of each slice.
        privacy: what is protected and by how much, of the whole vector.
        aggregation: ``PairwiseAggregation()`` by default.
        least_contributors: survivors below which a slice stays closed, >= 2.
        weights: for ``unit="client"``: each client's public weight, > 0, which its update was
            multiplied by already, before clipping; 1 for each without it.
        drop: client id -> the stage from which on it is silent, in all of its slices.
        remove_masks: on one core by default.

    Returns:
        The sums and all that describes them.

    Raises:
        ConfigError: an update is not finite, or its length is not that of slices 1..k; an id, stage
            or weight is missing, unknown or out of range; a slice has too few clients (merge its
            tier beforehand: ``standing_slices``); or the policy is not covered.  Nothing was sent.
        OverflowBoundError: a sum might not fit the ring; nothing was sent.
        ThresholdNotMet: too few clients were left in every slice; nothing was opened.

    Example:
        >>> import numpy as np
        >>> from securefed import PrivacyPolicy, secure_sliced_round
        >>> updates = {f"small-{i}": np.full(4, 0.1) for i in range(4)}
        >>> updates |= {f"large-{i}": np.full(6, 0.2) for i in range(4)}
        >>> result = secure_sliced_round(
        ...     updates, widths=(4, 2), privacy=PrivacyPolicy(clip_norm=1.0, mechanism="none")
        ... )
        >>> result.mean(2).round(3).tolist()
        [0.15, 0.15, 0.15, 0.15, 0.2, 0.2]
        >>> len(result.survivors[1]), len(result.survivors[2])
        (8, 4)
    """
    ids = {str(key): key for key in updates}
    if len(ids) != len(updates):
        raise ConfigError("updates: two client ids have the same text")
    arrays = {str(key): checked_update(key, value, privacy.unit) for key, value in updates.items()}
    dropped = checked_drop(drop or {}, ids)
    weighed = _weighed(weights, ids, privacy)
    lengths = {int(total): tier for tier, total in enumerate(np.cumsum(widths), start=1)}
    for name, array in arrays.items():
        if array.shape[-1] not in lengths:
            raise ConfigError(
                f"updates[{ids[name]!r}]: length {array.shape[-1]}, must be that of slices 1..k: "
                f"one of {sorted(lengths)}"
            )
    if privacy.unit != "client" and privacy.max_examples is None:
        privacy = replace(
            privacy, max_examples=max((len(a) for a in arrays.values()), default=1) or 1
        )
    identities = {name: IdentityKey.generate() for name in sorted(arrays)}
    session = SlicedSession(
        session=secrets.token_bytes(SESSION_BYTES),
        round=1,
        roster={name: key.public for name, key in identities.items()},
        tiers={name: lengths[array.shape[-1]] for name, array in arrays.items()},
        widths=tuple(int(width) for width in widths),
        policy=privacy,
        aggregation=PairwiseAggregation() if aggregation is None else aggregation,
        model=hashlib.sha256(b"securefed/1/vectors, no model").digest(),
        least_contributors=least_contributors,
    )
    for name, array in arrays.items():
        if privacy.unit != "client" and len(array) > (privacy.max_examples or 1):
            raise ConfigError(
                f"updates[{ids[name]!r}]: {len(array)} {privacy.unit}s, max_examples = "
                f"{privacy.max_examples}"
            )
    server = SlicedServerRound(session, remove_masks=remove_masks)
    clients = {
        name: SlicedClientRound(session, name, identities[name], _encode(array, privacy))
        for name, array in arrays.items()
    }
    carried = carry(server, clients, drop=dropped)
    sums, survivors = server.sums, server.survivors

    def divisor(number: int) -> float:
        if privacy.unit == "client":
            return float(sum(weighed[name] for name in survivors[number]))
        rows = sum(len(arrays[name]) for name in survivors[number])
        return max(privacy.sampling_probability * rows, 1e-12)

    return SlicedRoundResult(
        sums=sums,
        means={number: total / divisor(number) for number, total in sums.items()},
        survivors={n: tuple(ids[name] for name in names) for n, names in survivors.items()},
        dropped=dict(server.dropped),
        bytes_up={ids[name]: count for name, count in carried.bytes_up.items()},
        bytes_down={ids[name]: count for name, count in carried.bytes_down.items()},
        transcript={
            stage: {ids[name]: message for name, message in received.items()}
            for stage, received in carried.transcript.items()
        },
        session=session,
    )


def _encode(array: NDArray[np.floating], privacy: PrivacyPolicy) -> SlicedEncode:
    if privacy.unit != "client":
        return lambda codec, generator: codec.encode_examples(array, generator)
    return lambda codec, generator: codec.encode_update(array, generator)


def _weighed(
    weights: Mapping[Hashable, float] | None, ids: Mapping[str, Hashable], privacy: PrivacyPolicy
) -> dict[str, float]:
    """Each client's weight, by id as text."""
    if weights is None:
        return dict.fromkeys(ids, 1.0)
    if privacy.unit != "client":
        raise ConfigError(f"weights with unit = {privacy.unit!r}: allowed with unit = 'client'")
    if set(weights) != set(ids.values()):
        raise ConfigError("weights: must name exactly the clients of updates")
    for key, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"weights[{key!r}] = {weight}: must be finite, > 0")
    return {str(key): float(weight) for key, weight in weights.items()}
