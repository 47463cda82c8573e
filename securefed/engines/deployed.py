"""What a run between machines asks of its run file, and how each machine reads that file.

All parties have the same run file, by its digest.  Where model and data lie differs from machine to
machine, so that is each party's own affair: ``model.source`` and ``data.source`` of the common file
are names, and each party says what they stand for on its machine.
"""

from __future__ import annotations

import hashlib
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
        ConfigError: names each setting.
    """
    refused = {
        "aggregation.kind": config.aggregation.encrypted,
        "privacy.sampling = 'cyclic'": config.privacy.sampling == "cyclic",
        "cohort.ranks": bool(config.cohort.ranks),
        "cohort.schedule.carry_out": config.cohort.schedule.carry_out,
        "cohort.simulated_dropouts": bool(config.cohort.simulated_dropouts),
        "personal.kind": config.personal.kind != "none",
        "evaluation.figures": config.evaluation.figures != "sum",
        "evaluation.show_clients": config.evaluation.show_clients,
    }
    found = [name for name, is_so in refused.items() if is_so]
    if found:
        raise ConfigError(
            f"{', '.join(found)}: set in this run file, and carried out in a simulation only; a "
            "run between machines has one sum of 'pairwise' (or 'plaintext') contributions a "
            "round, one rank, and clients that keep nothing from round to round"
        )


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
