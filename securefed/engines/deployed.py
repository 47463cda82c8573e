"""What a run between machines asks of its run file, and how each machine reads that file.

All parties have the same run file, by its digest.  Where model and data lie differs from machine to
machine, so that is each party's own affair: ``model.source`` and ``data.source`` of the common file
are names, and each party says what they stand for on its machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from securefed.config import RunConfig, dump_config, parse_config
from securefed.errors import ConfigError


def config_digest(config: RunConfig) -> str:
    """SHA-256 of the resolved run file, hexadecimal: what ledgers and policies name it by."""
    return hashlib.sha256(dump_config(config).encode()).hexdigest()


def check_deployable(config: RunConfig) -> None:
    """Refuse what only a simulation does so far.

    Raises:
        ConfigError: names each setting, and why.
    """
    found = [f"{name} ({why})" for name, is_so, why in _refused(config) if is_so]
    if found:
        raise ConfigError(
            f"{'; '.join(found)}: set in this run file, and carried out in a simulation only"
        )


def _refused(config: RunConfig) -> Iterator[tuple[str, bool, str]]:
    """Setting, whether it is made, and why it is not carried out between machines."""
    privacy, cohort, evaluation = config.privacy, config.cohort, config.evaluation
    yield (
        f"aggregation.kind = {config.aggregation.kind!r}",
        config.aggregation.encrypted,
        "no agent holds the key and checks what it opens; use 'pairwise'",
    )
    yield (
        "privacy.sampling = 'cyclic'",
        privacy.sampling == "cyclic",
        "sums without noise would be in the memory of one server process, and a run that it loses "
        "could not go on; use 'poisson'",
    )
    yield (
        "cohort.ranks",
        bool(cohort.ranks),
        "the slices follow from the ranks of all who are there, and an agent builds its adapter "
        "before it hears of them; give one lora.rank",
    )
    yield (
        "cohort.schedule.carry_out",
        cohort.schedule.carry_out,
        "a plan times rounds on a virtual clock; real ones end after the app's stage-seconds",
    )
    yield (
        "cohort.simulated_dropouts",
        bool(cohort.simulated_dropouts),
        "real clients fall silent by themselves",
    )
    yield (
        "personal.measured",
        config.personal.told,
        "figures of adapters that are made without noise, in the time that the server waits, would "
        "tell of training data by value and by delay; use personal.measured = false",
    )
    yield (
        f"evaluation.figures = {evaluation.figures!r}",
        evaluation.figures != "sum",
        "their noise is for whole clients and has an account of its own, and an owner's budget is "
        "of one unit; use 'sum', which each owner may refuse",
    )
    yield (
        "evaluation.show_clients",
        evaluation.show_clients,
        "no server sees single clients' figures",
    )


def leaves_adapters(config: RunConfig) -> bool:
    """Whether clients have an adapter of their own once a run is over."""
    return config.lora.sharing == "fedsa" or config.personal.kind != "none"


def local_config(
    config: RunConfig,
    *,
    model: str | None = None,
    data: str | None = None,
    client: str | None = None,
) -> RunConfig:
    """The run file as one machine reads it.

    Args:
        config: the common one.
        model: what ``model.source`` stands for here; the same without it.
        data: what ``data.source`` stands for here; the same without it.
        client: the one client whose data are here.

    Raises:
        ConfigError: the result does not validate.
    """
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    if model is not None:
        values["model"]["source"] = model
    if data is not None:
        values["data"]["source"] = data
    if client is not None:
        values["data"]["clients"] = [client]
    return parse_config(values)


def common_config(config: RunConfig) -> RunConfig:
    """The run file that all parties share: folders of one machine are cut down to their names.

    Raises:
        ConfigError: only a simulation carries it out.
    """
    check_deployable(config)

    def named(source: str) -> str:
        return source if source.startswith("builtin:") else PurePath(source).name

    return local_config(config, model=named(config.model.source), data=named(config.data.source))
