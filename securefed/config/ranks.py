"""The tables that give clients unlike ranks, and what cannot be had beside them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field

from securefed.config.base import Section
from securefed.config.lora import LoraSection
from securefed.config.privacy import PrivacySection
from securefed.config.training import TrainingSection


class RankSection(Section):
    """The rank of some clients' adapters.

    ``clients`` names them (``"others"``: all that no other table names).  ``rank`` is public: it
    follows from what a device can do (memory, computing, bandwidth) and never from data, or it
    would tell of the data outside of any noise.  It is at most ``lora.rank``; ``lora.alpha`` is of
    that rank, and of a lower one in proportion, so that a column of B has one scale for all.
    """

    clients: Literal["others"] | Annotated[list[str], Field(min_length=1)]
    rank: Annotated[int, Field(ge=1, le=1024)]


def why_not_mixed(
    ranks: Collection[int],
    *,
    named: str,
    lora: LoraSection,
    training: TrainingSection,
    privacy: PrivacySection,
    kind: str,
) -> str | None:
    """Why clients of these ranks cannot be had in such a run, or None.

    Args:
        ranks: those that clients may have; empty: one rank for all, and nothing is refused.
        named: the field that gives them.
        lora: section of the run file.
        training: likewise.
        privacy: likewise.
        kind: ``aggregation.kind``.
    """
    if not ranks:
        return None
    found = max(ranks)
    if "lora" not in lora.kinds:
        return f"{named} with lora.kind = {lora.kind!r}: ranks are of 'lora' alone"
    if found > lora.rank:
        return (
            f"{named}: the largest is {found}, and lora.rank = {lora.rank}: it is of the "
            "strongest clients, and lora.alpha of that rank; none may be larger"
        )
    refused: tuple[tuple[str, Any, bool, str], ...] = (
        (
            "lora.sharing",
            lora.sharing,
            lora.sharing == "ffa",
            "slices of B mean the same for all only over one A that is frozen; use 'ffa'",
        ),
        (
            "aggregation.kind",
            kind,
            kind in ("pairwise", "plaintext"),
            "sums are formed slice by slice with masks; use 'pairwise'",
        ),
        (
            "privacy.mechanism",
            privacy.mechanism,
            privacy.mechanism in ("distributed", "none"),
            "local DP-SGD trains and noises all columns of B, those beyond a client's rank too; "
            "use 'distributed'"
            if privacy.mechanism == "local"
            else "each slice's noise is sized for its own honest survivors and added by them; use "
            "'distributed'",
        ),
        (
            "privacy.noise",
            privacy.noise,
            privacy.noise == "discrete_gaussian",
            "slices are accounted for as one Gaussian release; use 'discrete_gaussian'",
        ),
        (
            "privacy.rounding",
            privacy.rounding,
            privacy.rounding == "unconditional",
            "it holds each slice to a bound of its own, which does not bound them together; use "
            "'unconditional'",
        ),
        (
            "privacy.adaptive_clip",
            "given",
            privacy.adaptive_clip is None,
            "a unit's bit would travel in one slice, and the clip would hang on that slice being "
            "opened; leave it out",
        ),
        (
            "privacy.remove_excess_noise",
            privacy.remove_excess_noise,
            not privacy.remove_excess_noise,
            "slices have survivors, and so layers of noise, of their own; use false",
        ),
        (
            "training.control_weight",
            training.control_weight,
            training.control_weight is None,
            "a control is as long as the whole vector, and a client holds a part; leave it out",
        ),
        (
            "training.sparsify",
            training.sparsify,
            training.sparsify == "none",
            "what a round keeps is drawn from the whole vector, and a client holds a part; use "
            "'none'",
        ),
        (
            "training.trainer",
            training.trainer,
            training.trainer is None,
            "here one model of the largest rank serves all clients, and a trainer of your own "
            "would see all of it; leave it out",
        ),
    )
    for field, value, fits, why in refused:
        if not fits:
            shown = value if value == "given" else f"= {value!r}"
            return f"{named} with {field} {shown}: {why}"
    return None
