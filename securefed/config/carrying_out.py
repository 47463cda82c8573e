"""What a run that carries out a plan asks of the rest of its run file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from securefed.config.ranks import why_not_mixed

if TYPE_CHECKING:
    from securefed.config.run import RunConfig

RANKS_IN_ALL_ROUNDS = (
    "with unlike ranks every client takes part in every round: a slice needs survivors enough in "
    "each round's own cohort, and rounds of some clients only are not planned slice by slice"
)
"""Why a plan varies ranks or participation, and not both."""


def why_not_carried_out(config: RunConfig) -> str | None:
    """Why a run file's plan cannot be carried out, or None.

    A plan has a client take part in some rounds only.  What counts on everybody in every round is
    refused.
    """
    asked, training, privacy = config.cohort.schedule, config.training, config.privacy
    steps_differ = len(asked.local_steps) > 1
    if training.normalize_steps:
        if not (asked.carry_out and steps_differ):
            return (
                "training.normalize_steps without a plan that gives clients unlike steps: nothing "
                "would be normalised; give cohort.schedule.carry_out = true and several "
                "cohort.schedule.local_steps, or leave it out"
            )
        if training.trainer is not None:
            return (
                f"training.normalize_steps with training.trainer = {training.trainer!r}: how many "
                "steps a trainer of your own takes is not known; leave one of them out"
            )
    if not asked.carry_out:
        return None
    if not config.cohort.profiles:
        return (
            "cohort.schedule.carry_out = true without cohort.profiles: there is nothing to plan "
            "from; give a table [[cohort.profiles]] with memory_gib, upload_mbit, download_mbit"
        )
    if config.aggregation.kind not in ("pairwise", "plaintext"):
        return (
            f"cohort.schedule.carry_out with aggregation.kind = {config.aggregation.kind!r}: a "
            "plan needs the cost model of 'pairwise' rounds"
        )
    if config.cohort.ranks:
        return (
            "cohort.ranks with cohort.schedule.carry_out: who has which rank would be said twice; "
            "leave one of them out"
        )
    if asked.ranks_differ:
        if asked.periods != [1]:
            return (
                f"cohort.schedule.rank_tiers = {asked.rank_tiers} and periods = {asked.periods} "
                f"with carry_out: {RANKS_IN_ALL_ROUNDS}; use periods = [1], or leave out rank_tiers"
            )
        mixed = why_not_mixed(
            asked.rank_tiers,
            named="cohort.schedule.rank_tiers",
            lora=config.lora,
            training=training,
            privacy=privacy,
            kind=config.aggregation.kind,
        )
        if mixed is not None:
            return mixed
    if privacy.sampling == "cyclic":
        return (
            "cohort.schedule.carry_out with privacy.sampling = 'cyclic': noise correlated over "
            "rounds needs the same cohort in all of them; use 'poisson'"
        )
    if training.control_weight is not None:
        return (
            "training.control_weight with cohort.schedule.carry_out: a client's control is of the "
            "last round that it took part in, with as many steps as everybody; leave one of them "
            "out"
        )
    if config.lora.sharing == "rolora" and any(period % 2 == 0 for period in asked.periods):
        return (
            f"cohort.schedule.periods = {asked.periods} with lora.sharing = 'rolora': A and B "
            "travel in turn, and a client of every second round would only ever train one of them; "
            "use odd periods"
        )
    return None
