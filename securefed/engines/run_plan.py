"""The plan that one run carries out: fixed before its first round, on record, public.  No torch.

A plan follows from what owners state of their machines, from public sizes and from speeds that were
measured on made-up examples (:mod:`.planning`).  Speeds differ from one measurement to the next, so
a run makes its plan once and its ledger's first record holds it with all that it follows from; a
resumed run takes it from there, and an auditor plans again from the same figures.  Nothing in it
depends on a client's data or on a sample that was drawn.

**Unlike steps.**  Without ``training.normalize_steps`` the sum is of plain clipped updates, and its
mean leans to those who take more steps: FedAvg's objective inconsistency (Wang et al. 2020,
2007.07481, theorem 1): with K_i plain local SGD steps it converges to a stationary point of the
clients' losses weighed by K_i as well.  With it a client passes on (mean K / K_i) Delta_i, by
numbers that are all public, before the clip: FedNova's update for plain SGD of one step size
(section 4), where tau_eff is the mean K of the round's members.  With AdamW it is a heuristic.
With unlike ranks tau_eff is one for all slices, so that they move by one step size: each by mean K
times the mean of Delta_i / K_i over those that hold it.  The factor is of the whole vector, which
is clipped as one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import rfc8785

from securefed.config import RunConfig, Stage
from securefed.config.carrying_out import RANKS_IN_ALL_ROUNDS
from securefed.engines.mixed_ranks import MixedRanks, standing_ranks
from securefed.engines.profiles import profiles_of, sections_of
from securefed.engines.virtual_time import VirtualRound, modelled_seconds
from securefed.errors import ConfigError
from securefed.federation.capability import Assignment, CapabilityProfile, Workload
from securefed.federation.costs import UnitCosts
from securefed.federation.deadlines import DeadlineRule, why_prepared
from securefed.federation.scheduling import Rules, Schedule, schedule
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.parameters import PairwiseParameters

_MARGIN = 1.05
"""``deadline = "plan"``: so much above the longest stage; sizes of messages are means there."""
_PATIENCE = 10.0


@dataclass(frozen=True)
class RunPlan:
    """Who does what, and how often, in one run.

    Args:
        schedule: the plan.
        workload: sizes and speeds that it was made from.
        profiles: of each client.
        rules: what could be chosen.
        config: of the run.

    Raises:
        ConfigError: a rank is none that the run file leaves open, ranks and participation both
            differ, or too few clients hold even the first slice.
    """

    schedule: Schedule
    workload: Workload
    profiles: dict[str, CapabilityProfile]
    rules: Rules
    config: RunConfig

    def __post_init__(self) -> None:
        config = self.config
        allowed = config.cohort.schedule.rank_tiers or [config.lora.rank]
        for name, rank in self._ranks.items():
            if rank not in allowed:
                raise ConfigError(
                    f"plan: {name} has rank {rank}, by the run file (cohort.schedule.rank_tiers, "
                    f"else lora.rank) one of {allowed}"
                )
        if self.ranks is not None and self.skips:
            raise ConfigError(f"plan: unlike ranks and unlike participation: {RANKS_IN_ALL_ROUNDS}")

    @property
    def _ranks(self) -> dict[str, int]:
        return {name: client.assignment.rank for name, client in self.schedule.clients.items()}

    @cached_property
    def ranks(self) -> MixedRanks | None:
        """The ranks that stand in this run; None where everybody has ``lora.rank``."""
        planned = self._ranks
        if set(planned.values()) == {self.config.lora.rank}:
            return None
        return standing_ranks(self.config, planned)

    def given(self, name: str) -> Assignment:
        """What one client does, at the rank that stands."""
        planned = self.schedule.clients[name].assignment
        if self.ranks is None:
            return planned
        tiers = self.ranks.tiers.ranks
        return replace(
            planned, rank=self.ranks.rank_of[name], tiers=tiers if len(tiers) > 1 else ()
        )

    def check_widths(self, widths: Sequence[int]) -> None:
        """Refuse slices of other lengths than the plan was made for.

        Args:
            widths: d_1..d_m, of each slice.

        Raises:
            ConfigError: names the rank, and both lengths.
        """
        tiers = () if self.ranks is None else self.ranks.tiers.ranks
        for rank, length in zip(tiers, itertools.accumulate(widths), strict=True):
            planned = self.workload.travelling.get(rank)
            if planned != length:
                raise ConfigError(f"plan: {planned} values travel at rank {rank}, here {length}")

    def members(self, number: int) -> tuple[str, ...]:
        """The cohort of round ``number``, from 1, sorted."""
        return self.schedule.participants(number)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many clients rounds have: the first is that of everybody, then each other once."""
        cycle = self.config.training.rounds
        periods = {client.assignment.period for client in self.schedule.clients.values()}
        if len(periods) <= 2:
            cycle = min(cycle, max(periods))
        sizes = (len(self.members(number)) for number in range(1, cycle + 1))
        return tuple(dict.fromkeys((len(self.profiles), *sizes)))

    @property
    def skips(self) -> bool:
        """Whether any client takes part in some rounds only."""
        return any(client.assignment.period > 1 for client in self.schedule.clients.values())

    @property
    def bits(self) -> int:
        """The ring of all rounds."""
        return next(iter(self.schedule.clients.values())).assignment.bits

    def scale(self, name: str, number: int, weights: Mapping[str, float]) -> float:
        """What a client multiplies its update by before the clip: mean K / K_i, or 1.

        Args:
            name: the client.
            number: the round that it takes part in.
            weights: public weight of each client; the mean is over the round's members by these.
        """
        if not self.config.training.normalize_steps:
            return 1.0
        members = self.members(number)
        total = sum(weights[one] for one in members)
        mean = sum(weights[one] * self.given(one).local_steps for one in members) / total
        return mean / self.given(name).local_steps

    # -- time ------------------------------------------------------------------------------

    def deadline(self, number: int, policy: PrivacyPolicy) -> DeadlineRule | None:
        """When the stages of round ``number`` close; None where they wait for everybody.

        Args:
            number: of the round.
            policy: what statements are about.
        """
        asked = self.config.cohort.schedule
        if asked.deadline is None:
            return None
        seconds = asked.deadline
        if not isinstance(seconds, float):
            seconds = _MARGIN * self._longest_stage(number, prepared=bool(why_prepared(policy)))
        rule = DeadlineRule(
            seconds=seconds,
            patience=_PATIENCE * seconds if asked.patience is None else asked.patience,
            enough=asked.enough,
        )
        rule.check(policy, prepared=self.prepared(policy))
        return rule

    def check_deadlines(self, policy: PrivacyPolicy) -> None:
        """Refuse deadlines that no round can keep, before the first one.

        Raises:
            ConfigError: ``patience`` is below the deadline that the plan gives.
        """
        periods = (client.assignment.period for client in self.schedule.clients.values())
        for number in range(1, 1 + max(periods)):
            self.deadline(number, policy)

    def prepared(self, policy: PrivacyPolicy) -> bool:
        """Whether contributions are made before a round begins, so that nobody sees how long."""
        return self.config.cohort.schedule.deadline is not None and bool(why_prepared(policy))

    def timing(
        self, number: int, policy: PrivacyPolicy, parameters: PairwiseParameters
    ) -> VirtualRound:
        """The clock of round ``number``.

        Args:
            number: of the round.
            policy: what statements are about.
            parameters: of the round's own cohort.
        """
        members = {name: (self.profiles[name], self.given(name)) for name in self.members(number)}
        prepared = self.prepared(policy)
        return VirtualRound(
            modelled_seconds(self.workload, members, prepared=prepared),
            parameters,
            self.deadline(number, policy),
        )

    def _longest_stage(self, number: int, *, prepared: bool) -> float:
        longest = 0.0
        for name in self.members(number):
            stages = self.workload.stages(self.profiles[name], self.given(name))
            spent: dict[Stage, float] = {stage: sum(p.values()) for stage, p in stages.items()}
            if prepared:
                made = stages["masked_input"]["training"] + stages["masked_input"]["encoding"]
                spent["masked_input"] -= made
                spent["advertise"] += made
            longest = max(longest, *spent.values())
        return longest

    # -- on record -------------------------------------------------------------------------

    def to_record(self) -> dict[str, Any]:
        """The plan and what it follows from, as JSON values."""
        record: dict[str, Any] = _plain(
            {
                "clients": {name: asdict(self.given(name)) for name in self.schedule.clients},
                "rules": asdict(self.rules),
                "profiles": {name: asdict(profile) for name, profile in self.profiles.items()},
                "workload": self.workload.to_record(),
            }
        )
        return record

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the record: bound into every round, so that all parties go by one plan."""
        return hashlib.sha256(b"securefed/1/plan" + rfc8785.dumps(self.to_record())).digest()

    @classmethod
    def of_record(cls, record: Mapping[str, Any], config: RunConfig) -> RunPlan:
        """The plan that a run's first record holds, made again from what it follows from.

        Raises:
            ConfigError: it is not the plan that follows from the figures beside it, or these are
                not the run file's.
        """
        try:
            workload, profiles = _workload(record["workload"]), record["profiles"]
            found = {name: CapabilityProfile(**one) for name, one in sorted(profiles.items())}
            rules = _rules(record["rules"])
            clients = {name: _assignment(one) for name, one in record["clients"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"plan: lacks what it must hold ({error!r})") from None
        _check_figures(workload, found, rules, config)
        plan = cls(schedule(found, workload, rules), workload, found, rules, config)
        for name in sorted({*clients, *plan.schedule.clients}):
            own = plan.given(name) if name in plan.schedule.clients else None
            if clients.get(name) != own:
                raise ConfigError(f"plan: {name} = {clients.get(name)}, planned again {own}")
        return plan


def _check_figures(
    workload: Workload, profiles: Mapping[str, CapabilityProfile], rules: Rules, config: RunConfig
) -> None:
    """Compare what a recorded plan follows from with the run file."""
    asked, uniform = config.cohort.schedule, rules.uniform
    one_step = config.privacy.unit != "client" and config.privacy.mechanism != "local"
    steps = 1 if one_step else config.training.local_steps
    stated = profiles_of(
        sections_of(config.cohort.profiles, sorted(profiles)), workload.seconds_per_token
    )
    differing = [name for name in profiles if profiles[name] != stated[name]]
    if differing:
        raise ConfigError(
            f"plan: profile of {differing[0]} = {profiles[differing[0]]}, by the run file "
            f"{stated[differing[0]]}"
        )
    for field, value, expected in (
        ("seconds_per_token", workload.seconds_per_token, asked.seconds_per_token),
        ("corrupt", workload.corrupt, config.privacy.corrupt_fraction),
        ("tokens", workload.tokens, config.data.window_tokens),
        ("filled", workload.filled, one_step),
        ("rank", uniform.rank, config.lora.rank),
        ("ranks", list(rules.ranks), asked.rank_tiers or [config.lora.rank]),
        ("local_steps", uniform.local_steps, steps),
        ("steps", list(rules.steps), asked.local_steps or [steps]),
        ("periods", list(rules.periods), asked.periods),
        ("least_work", rules.least_work, asked.least_work),
        ("bits", uniform.bits, _one_width(config)),
    ):
        if expected is not None and value != expected:
            raise ConfigError(f"plan: {field} = {value}, by the run file {expected}")
    if rules.least_cohort < config.cohort.min_clients:
        raise ConfigError(
            f"plan: least_cohort = {rules.least_cohort}, cohort.min_clients = "
            f"{config.cohort.min_clients}"
        )


def _one_width(config: RunConfig) -> int | None:
    bits = config.aggregation.bits
    return bits if isinstance(bits, int) else None


def _workload(record: Mapping[str, Any]) -> Workload:
    units = record["units"]
    return Workload(
        **{
            **record,
            "travelling": {int(rank): int(d) for rank, d in record["travelling"].items()},
            "units": None if units is None else UnitCosts(**units),
        }
    )


def _rules(record: Mapping[str, Any]) -> Rules:
    lists = {name: tuple(record[name]) for name in ("ranks", "steps", "bits", "periods")}
    return Rules(**{**record, **lists, "uniform": _assignment(record["uniform"])})


def _assignment(record: Mapping[str, Any]) -> Assignment:
    known = {field.name for field in fields(Assignment)}
    if set(record) != known:
        raise ConfigError(f"plan: an assignment names {sorted(record)}, must be {sorted(known)}")
    return Assignment(**{**record, "tiers": tuple(record["tiers"])})


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
