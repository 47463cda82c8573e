"""Which rank each client of a run trains at, from public figures alone.  Needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from securefed.config import RankSection, RunConfig
from securefed.engines.naming import named_clients
from securefed.errors import ConfigError
from securefed.federation.slice_plans import LEAST_CONTRIBUTORS, standing_slices
from securefed.lora.tiers import RankTiers
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation, PlaintextAggregation


@dataclass(frozen=True)
class MixedRanks:
    """The ranks of a cohort, tiers that too few clients reach merged into the one below.

    Run by: every party for itself, before training.  Ranks and sizes are public, and follow from
    capability, never from data.

    Args:
        asked: id to rank that the client was given.
        tiers: ranks that stand.
        least_contributors: survivors below which a slice stays closed, >= 2.
    """

    asked: Mapping[str, int]
    tiers: RankTiers
    least_contributors: int

    @classmethod
    def of(
        cls,
        ranks: Mapping[str, int],
        *,
        corrupt_fraction: float,
        dropout_fraction: float,
        aggregation: Aggregation,
        least_contributors: int = LEAST_CONTRIBUTORS,
    ) -> MixedRanks:
        """From each client's rank to tiers that stand.

        Args:
            ranks: id to rank, >= 1, of the whole cohort.
            corrupt_fraction: of the whole cohort.
            dropout_fraction: likewise.
            aggregation: how sums are formed.
            least_contributors: as above.

        Raises:
            ConfigError: not even the slice that everyone holds has clients enough.
        """
        tiers = RankTiers(tuple(sorted(set(ranks.values()))))
        thresholds = PrivacyPolicy(
            clip_norm=1.0,
            mechanism="none",
            corrupt_fraction=corrupt_fraction,
            dropout_fraction=dropout_fraction,
        )
        standing = standing_slices(
            tiers.members(ranks),
            policy=thresholds,
            aggregation=aggregation,
            least_contributors=least_contributors,
        )
        return cls(dict(sorted(ranks.items())), tiers.merged(standing), least_contributors)

    @cached_property
    def tier_of(self) -> dict[str, int]:
        """Id to tier, 1..m: the client holds slices 1..tier."""
        return {name: self.tiers.tier(rank) for name, rank in self.asked.items()}

    @cached_property
    def rank_of(self) -> dict[str, int]:
        """Id to the rank that the client trains at."""
        return {name: self.tiers.ranks[tier - 1] for name, tier in self.tier_of.items()}

    def check_widths(self, widths: tuple[int, ...]) -> None:
        """Refuse lengths of slices that no adapter of these ranks has.

        Raises:
            ConfigError: there are more or fewer, or columns of B have unlike lengths.
        """
        ranks = (0, *self.tiers.ranks)
        steps = [ranks[i + 1] - ranks[i] for i in range(len(widths))] if len(widths) else []
        fits = len(widths) == len(self.tiers.ranks) and min(widths) >= 1
        if fits and len(widths) > 1:
            column, rest = divmod(widths[1], steps[1])
            # Slice 1 also holds what has no rank.
            fits = rest == 0 and widths[0] >= column * steps[0]
            fits = fits and all(w == column * s for w, s in zip(widths[1:], steps[1:], strict=True))
        if not fits:
            raise ConfigError(f"widths = {list(widths)}: no slices of ranks {self.tiers.ranks}")

    def told(self) -> str:
        """Who trains at which rank, and what was merged, in a line."""
        found = list(self.rank_of.values())
        counts = {rank: found.count(rank) for rank in self.tiers.ranks}
        parts = [f"{n} client{'s' * (n != 1)} at rank {rank}" for rank, n in counts.items()]
        line = f"ranks: {', '.join(parts)}"
        moved = sorted({rank for rank in self.asked.values() if rank > self.tiers.largest})
        if moved:
            count = sum(rank > self.tiers.largest for rank in self.asked.values())
            line += (
                f"; rank {' and '.join(map(str, moved))} merged into {self.tiers.largest}: only "
                f"{count} client{'s' * (count != 1)} would hold the columns beyond it, too few for "
                "a sum of their own"
            )
        return line


def mixed_ranks(config: RunConfig, clients: Collection[str]) -> MixedRanks | None:
    """What ``cohort.ranks`` means for these clients; None where all have ``lora.rank``.

    Raises:
        ConfigError: a table names nobody of the cohort, a client has no rank, or too few clients
            hold even the first slice.
    """
    tables = config.cohort.ranks
    return standing_ranks(config, _ranks_of(tables, clients)) if tables else None


def standing_ranks(config: RunConfig, ranks: Mapping[str, int]) -> MixedRanks:
    """What these ranks come to in a run: those that too few clients reach are merged.

    Args:
        config: the run file.
        ranks: id to rank, of the whole cohort; by tables of the run file, or by its plan.

    Raises:
        ConfigError: too few clients hold even the first slice.
    """
    bits = config.aggregation.bits
    plaintext = config.aggregation.kind == "plaintext"
    return MixedRanks.of(
        ranks,
        corrupt_fraction=config.privacy.corrupt_fraction,
        dropout_fraction=config.privacy.dropout_fraction,
        aggregation=PlaintextAggregation(bits=bits)
        if plaintext
        else PairwiseAggregation(bits=bits),
        least_contributors=least_contributors(config),
    )


def least_contributors(config: RunConfig) -> int:
    """Survivors below which a slice stays closed."""
    cohort = config.cohort
    return cohort.least_contributors or max(LEAST_CONTRIBUTORS, cohort.min_clients)


def rank_sections(ranks: Mapping[str, int]) -> list[RankSection]:
    """``cohort.ranks`` for ranks that were chosen client by client, as a plan chooses them."""
    return [
        RankSection(clients=sorted(n for n, own in ranks.items() if own == rank), rank=rank)
        for rank in sorted(set(ranks.values()))
    ]


def _ranks_of(sections: list[RankSection], clients: Collection[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for section in sections:
        for name in () if section.clients == "others" else section.clients:
            if name not in clients:
                raise ConfigError(
                    f"cohort.ranks: {name!r} is no client of this run; {named_clients(clients)}"
                )
            found[name] = section.rank
    others = [section.rank for section in sections if section.clients == "others"]
    missing = sorted(set(clients) - set(found))
    if missing and not others:
        raise ConfigError(
            f"cohort.ranks: {missing[0]!r} has none; name it, or give clients = 'others'"
        )
    return found | dict.fromkeys(missing, *others)
