"""How a run forms its sums: from the run file to an aggregation, and in words."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import replace

from securefed.config import AggregationSection, RunConfig, share_of
from securefed.encoding.fixed_point import MAX_BITS
from securefed.encoding.wire import packed_size
from securefed.errors import ConfigError
from securefed.federation.slice_plans import SlicePlans
from securefed.lora.tiers import RankTiers
from securefed.privacy.accounting import accounted_adversary, guarantee
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import (
    Aggregation,
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
)
from securefed.secagg.encryption import DECRYPTOR


def check_key_holder(config: RunConfig, clients: Collection[str]) -> None:
    """Whether such a cohort can have the key holder that the run file names.

    Raises:
        ConfigError: every client would hold the key and one of them may be corrupt, a client has
            the decryptor's name, or clients have a higher floor than the decryptor.
    """
    holder, size = config.aggregation.key_holder, len(clients)
    privacy, least = config.privacy, config.cohort.min_clients
    floor = size - share_of(privacy.dropout_fraction, size)
    if holder == "decryptor" and not config.aggregation.masked and least > floor:
        raise ConfigError(
            f"cohort.min_clients = {least}: with privacy.dropout_fraction = "
            f"{privacy.dropout_fraction:g} the decryptor opens sums of {floor} of {size} clients "
            "on, and a client cannot refuse once it has sent its contribution; lower one or the "
            "other, or use aggregation.masked = true"
        )
    if holder == "decryptor" and DECRYPTOR in clients:
        raise ConfigError(
            f"data.source {config.data.source}: no client may be called {DECRYPTOR!r} with "
            f"aggregation.key_holder = {DECRYPTOR!r}"
        )
    if holder == "cohort":
        corrupt = share_of(privacy.corrupt_fraction, size)
        HomomorphicAggregation(key_holder=holder).parameters(
            CohortBounds(size=size, corrupt=corrupt, survivor_floor=floor)
        )


def aggregation_of(
    section: AggregationSection, policy: PrivacyPolicy, *, cohort_size: int, dimension: int
) -> Aggregation:
    """What the run file asks for, its ring chosen once for the whole run.

    Args:
        section: of the run file.
        policy: for which the ring of a BFV run is chosen.  With a target it must not depend on the
            noise that was found: a resumed run does not search again.
        cohort_size: n.
        dimension: d.
    """
    bits = section.bits
    if section.kind == "pairwise":
        return PairwiseAggregation(bits=bits)
    if section.kind == "plaintext":
        return PlaintextAggregation(bits=bits)
    found = HomomorphicAggregation(
        scheme=section.kind,
        key_holder=section.key_holder or "decryptor",
        masked=section.masked,
        bits=bits,
    )
    if found.scheme == "bfv" and bits == "auto":
        bits = found.ring_bits(policy, cohort_size=cohort_size, dimension=dimension)
        fits = bits != "auto" and _holds(policy, bits, cohort_size, dimension)
        # The widest ring costs nothing: slots are as wide as the bound on the sum, not the ring.
        return replace(found, bits=bits if fits else MAX_BITS)
    return found


def _holds(policy: PrivacyPolicy, bits: int, cohort_size: int, dimension: int) -> bool:
    """Whether noise on a narrow ring's grid is fine enough for anything to be stated of a run."""
    if policy.mechanism == "none":
        return True
    plan = plan_round(policy, cohort_size=cohort_size, dimension=dimension, bits=bits)
    against = accounted_adversary(policy)
    return guarantee(policy, plan, cohort_size=cohort_size, against=against).protected


def figures_aggregation(section: AggregationSection, aggregation: Aggregation) -> Aggregation:
    """The same arrangement for sums of held-out figures.

    They carry no noise, and CKKS is refused for such sums, so BFV sums them under the same key
    holder.  They are short, so they have the widest ring, unless the run file names one; under
    masks the one that it asks for, not a plan's narrow one.
    """
    if not isinstance(aggregation, HomomorphicAggregation):
        return replace(aggregation, bits=section.bits)
    bits = MAX_BITS if section.bits == "auto" else section.bits
    return replace(aggregation, scheme="bfv", bits=bits)


def contribution_bytes(aggregation: Aggregation, plan: RoundPlan, bounds: CohortBounds) -> int:
    """Bytes of one client's contribution to a round, signatures and headers left out."""
    encryption = aggregation.encryption(plan, bounds)
    return packed_size(plan.padded, plan.bits) if encryption is None else encryption.input_bytes


def told(aggregation: Aggregation, plan: RoundPlan, bounds: CohortBounds) -> str:
    """The arrangement, what it costs and what it protects against, in a line."""
    size = contribution_bytes(aggregation, plan, bounds)
    encryption = aggregation.encryption(plan, bounds)
    count = 0 if encryption is None else encryption.count
    parts = f" in {count} ciphertext{'s' * (count > 1)}" if count else ""
    return (
        f"aggregation: {_name(aggregation)}; a contribution is {size:,} bytes{parts}, "
        f"{size / plan.dimension:.1f} a value; {_protection(aggregation, bounds)}"
    )


def told_of_slices(plans: SlicePlans, tiers: RankTiers) -> str:
    """The arrangement of a round of slices, and what a contribution costs at each rank."""
    sizes = list(
        itertools.accumulate(
            contribution_bytes(plans.aggregation_of(number), one.plan, one.bounds)
            for number, one in enumerate(plans.slices, start=1)
        )
    )
    shown = ", ".join(
        f"{size:,} bytes at rank {rank}" for size, rank in zip(sizes, tiers.ranks, strict=True)
    )
    return (
        f"aggregation: {_name(plans.aggregation)} in {len(sizes)} slices; a contribution is "
        f"{shown}; {_protection(plans.aggregation, plans.slices[0].bounds)}"
    )


def _name(aggregation: Aggregation) -> str:
    if isinstance(aggregation, PairwiseAggregation):
        return "pairwise masks"
    if isinstance(aggregation, PlaintextAggregation):
        return "plaintext, UNPROTECTED against the server"
    scheme = aggregation.scheme.upper()
    if aggregation.masked:
        return f"pairwise masks beneath {scheme} encryption, opened by a decryptor"
    if aggregation.key_holder == "cohort":
        return f"{scheme} encryption, every client holds the key"
    return f"{scheme} encryption, opened by a decryptor"


def _protection(aggregation: Aggregation, bounds: CohortBounds) -> str:
    some = f" together with up to {bounds.corrupt} of {bounds.size} clients"
    colluding = some if bounds.corrupt else ", as long as no client helps"
    if isinstance(aggregation, PlaintextAggregation):
        return "nothing is protected: every contribution reaches the server as it is"
    if isinstance(aggregation, PairwiseAggregation):
        return f"protects against the server{colluding}"
    if aggregation.masked:
        return f"protects against server and decryptor{colluding}"
    if aggregation.key_holder == "cohort":
        return (
            "protects against a server that no client helps: one client that does opens every "
            "contribution"
        )
    return (
        "protects against a server that the decryptor does not help, and that no client helps to "
        "depart from the protocol"
    )
