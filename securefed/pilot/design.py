"""Which trials a pilot makes, from its file and its run file.  Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from securefed.config import PilotConfig, RunConfig, Scheme, parse_config
from securefed.engines.without_noise import without_noise
from securefed.pilot.records import Group

How = Literal["federated", "full", "pooled", "alone"]

BASE = "base"
FULL, POOLED, ALONE = "full fine-tuning", "pooled training", "clients alone"
NO_PROTECTION, CLIP, NOISE = "no protection", "clip alone", "clip and noise"
MASKS, ENCRYPTION = "masks alone", "encryption alone"

BEYOND = 100.0
"""How many times the run's clip the one of a trial without clipping is: there is always one, since
a sum's ring is sized by it."""

_NOT_PUBLIC = "data.public = false: no adapter is made there without noise"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A trial to be made.

    Attributes:
        number: its place in the pilot, from 1.
        name, group, seed: as the record has them.
        how: ``"federated"``: a run of its own.  The rest are baselines.
        changes: run-file paths and their values here; None for a key that is left out.
        why: what should be known of it.
        refused: why it is not made; empty where it is.
        noise_of_base: whether it takes the noise multiplier that the base run ended up with.
    """

    number: int
    name: str
    group: Group
    seed: int
    how: How = "federated"
    changes: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    refused: str = ""
    noise_of_base: bool = False

    @property
    def first(self) -> bool:
        """Whether it is the base run that all else is compared with, which is always made."""
        return self.number == 1

    @property
    def folder(self) -> str:
        """Where its run is kept, inside the pilot's folder."""
        return f"runs/{self.number:02d}-{re.sub(r'[^a-z0-9.]+', '-', self.name)}"

    def config(
        self, run: RunConfig, *, show_clients: bool, noise: float | None = None
    ) -> RunConfig:
        """The run file of this trial.

        Args:
            run: that of the pilot.
            show_clients: whether each client's own figures may be seen.
            noise: the base run's noise multiplier, where ``noise_of_base`` asks for it.

        Raises:
            ConfigError: such a run file does not validate.
        """
        values = run.model_dump(mode="json", exclude_none=True)
        changes = dict(self.changes)
        if self.noise_of_base:
            changes |= {"privacy.noise_multiplier": noise, "privacy.target_epsilon": None}
        for path, value in changes.items():
            section, _, key = path.partition(".")
            if value is None:
                values[section].pop(key, None)
            else:
                values[section][key] = value
        values["lora"]["seed"] = self.seed
        values["evaluation"]["show_clients"] = show_clients
        return parse_config(values)


def design(pilot: PilotConfig, run: RunConfig) -> list[Planned]:
    """All trials, in the order in which they are made.

    A star: each sweep moves one key away from the run file, the others stay.  All of it is made
    with the run file's own seed first, then with the next ones, so that what time does not reach
    for is a repetition.
    """
    found: list[Planned] = []
    for offset in range(pilot.seeds):
        seed = (run.lora.seed + offset) % 2**63
        for number, arm in enumerate(_arms(pilot, run), len(found) + 1):
            secret = not pilot.data.public and arm.group in ("baseline", "protection")
            found.append(
                Planned(
                    number=number,
                    name=arm.name,
                    group=arm.group,
                    seed=seed,
                    how=arm.how,
                    changes=arm.changes,
                    why=arm.why,
                    refused=_NOT_PUBLIC if secret else arm.refused,
                    noise_of_base=arm.noise_of_base,
                )
            )
    return found


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """A way to train, whatever the seed."""

    name: str
    group: Group
    how: How = "federated"
    changes: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    refused: str = ""
    noise_of_base: bool = False


def _arms(pilot: PilotConfig, run: RunConfig) -> Iterator[_Arm]:
    yield _Arm(name=BASE, group="base")
    yield from _baselines(pilot, run)
    if pilot.baselines.protections:
        yield from _protections(run)
    yield from _sweep(pilot, run)


def _baselines(pilot: PilotConfig, run: RunConfig) -> Iterator[_Arm]:
    asked = pilot.baselines
    if asked.local:
        yield _Arm(
            name=ALONE,
            group="baseline",
            how="alone",
            why="clip as in the run, no noise; nothing is sent" + _without_sums(run),
        )
    if asked.pooled:
        yield _Arm(
            name=POOLED,
            group="baseline",
            how="pooled",
            why="one party holds all data, trains the run's adapter on as many examples a round "
            "and clips nothing" + _without_sums(run),
        )
    if asked.full:
        yield _Arm(
            name=FULL,
            group="baseline",
            how="full",
            why="all parameters, in float32, no clip and no noise" + _without_sums(run),
        )


def _not_the_same(run: RunConfig) -> str:
    """Where training without noise cannot be that of the run in every respect."""
    left = []
    if run.privacy.mechanism == "local":
        left.append("local steps take batches of training.batch_size, where the run's draw samples")
    if run.privacy.sampling == "cyclic":
        left.append("examples are drawn, where the run's come in turn")
    return "".join(f"; {item}" for item in left)


def _without_sums(run: RunConfig) -> str:
    """The same, and what there is no place for where nothing is summed over clients."""
    dropped = {
        "sparsification": run.training.sparsify != "none",
        "control variates": run.training.control_weight is not None,
    }
    left = "".join(f"; without {what}" for what, given in dropped.items() if given)
    return _not_the_same(run) + left


def _protections(run: RunConfig) -> Iterator[_Arm]:
    """The run without any protection, then with one alone.

    All but ``CLIP`` and ``NOISE`` differ from ``NO_PROTECTION`` in how the sum is hidden alone.
    """
    bare = without_noise(run)
    clip = run.privacy.clip_norm
    if bare["privacy"]["unit"] == "client":
        # Without noise whole updates are cut at update_clip_norm; under local DP-SGD always.
        bound = run.privacy.update_clip_norm if run.privacy.mechanism == "local" else clip
        bare["privacy"]["update_clip_norm"] = bound
    clipped = _changes(run, bare | {"aggregation": _section(run, "plaintext")})
    bound_by = "update_clip_norm" if bare["privacy"]["unit"] == "client" else "clip_norm"
    bare["privacy"].pop("adaptive_clip", None)
    bare["privacy"][bound_by] = BEYOND * bare["privacy"][bound_by]
    other = _not_the_same(run).removeprefix("; ")
    unclipped = f"clip at {BEYOND:g} times the run's instead of none" + f"; {other}" * bool(other)
    # A ring that is narrow for the run's clip would be coarse for that one.
    alone = {"bits": "auto", "masked": False}
    for name, kind in ((NO_PROTECTION, "plaintext"), (MASKS, "pairwise"), (ENCRYPTION, "bfv")):
        yield _Arm(
            name=name,
            group="protection",
            changes=_changes(run, bare | {"aggregation": _section(run, kind) | alone}),
            why=unclipped,
        )
        if name == NO_PROTECTION:
            yield _Arm(name=CLIP, group="protection", changes=clipped, why=other)
            yield _noise(run)


_IN_THE_CLEAR = {
    "distributed": "with its own share of the noise alone",
    "central": "without noise, which is added to the sum",
    "local": "private by itself",
    "none": "without noise",
}


def _noise(run: RunConfig) -> _Arm:
    changes: dict[str, Any] = {"aggregation.kind": "plaintext"}
    changes |= {
        f"aggregation.{key}": None
        for key, given in (
            ("key_holder", run.aggregation.key_holder is not None),
            ("masked", run.aggregation.masked),
        )
        if given
    }
    why = f"each contribution reaches the server by itself, {_IN_THE_CLEAR[run.privacy.mechanism]}"
    if run.privacy.remove_excess_noise:
        changes["privacy.remove_excess_noise"] = None
        why += "; excess noise stays, since only masked rounds remove it"
    if run.budget.epsilon is not None:  # against the server, where nothing holds here
        changes["budget.epsilon"] = None
    none = run.privacy.mechanism == "none"
    return _Arm(
        name=NOISE,
        group="protection",
        changes=changes,
        why=why,
        refused="privacy.mechanism = 'none': the run has no noise" if none else "",
        noise_of_base=run.privacy.target_epsilon is not None,
    )


def _sweep(pilot: PilotConfig, run: RunConfig) -> Iterator[_Arm]:
    """Those that keep the adapter's shape first: they use the model that is loaded."""
    sweep = pilot.sweep
    swept: list[tuple[str, Any, dict[str, Any]]] = []
    swept += [
        ("bits", bits, {"aggregation.bits": bits})
        for bits in sweep.bits
        if bits != run.aggregation.bits
    ]
    swept += [
        ("epsilon", epsilon, _at_epsilon(run, epsilon))
        for epsilon in sweep.epsilon
        if epsilon != run.privacy.target_epsilon
    ]
    swept += [
        ("aggregation", kind, _changes(run, {"aggregation": _section(run, kind)}))
        for kind in sweep.aggregation
        if kind != run.aggregation.kind
    ]
    swept += [
        ("rank", rank, {"lora.rank": rank, "lora.alpha": run.lora.alpha * rank / run.lora.rank})
        for rank in sweep.rank
        if rank != run.lora.rank
    ]
    swept += [
        ("sharing", sharing, {"lora.sharing": sharing})
        for sharing in sweep.sharing
        if sharing != run.lora.sharing
    ]
    for key, value, changes in swept:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        yield _Arm(name=f"{key} = {shown}", group="sweep", changes=changes)


def _at_epsilon(run: RunConfig, epsilon: float) -> dict[str, Any]:
    changes: dict[str, Any] = {"privacy.target_epsilon": epsilon}
    if run.privacy.noise_multiplier is not None:
        changes["privacy.noise_multiplier"] = None
    if run.budget.epsilon is not None:  # the target is one
        changes["budget.epsilon"] = None
    return changes


def _section(run: RunConfig, kind: str) -> dict[str, Any]:
    """The aggregation section for another kind; what both have in common stays."""
    section = run.aggregation
    values: dict[str, Any] = {"kind": kind, "bits": section.bits}
    if kind in get_args(Scheme):
        values["key_holder"] = section.key_holder or "decryptor"
        if kind == "bfv" and section.masked:
            values["masked"] = True
    return values


def _changes(run: RunConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Paths whose values differ in the sections given; None where a key is left out."""
    before = run.model_dump(mode="json", exclude_none=True)
    found: dict[str, Any] = {}
    for name, section in values.items():
        for key in before[name] | section:
            default = type(getattr(run, name)).model_fields[key].default
            one, other = before[name].get(key, default), section.get(key, default)
            if one != other:
                found[f"{name}.{key}"] = section.get(key)
    return found
