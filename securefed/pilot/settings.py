"""What a trial's settings say, where the reading of its figures depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from securefed.config.pilot import PilotConfig
from securefed.errors import ConfigError
from securefed.pilot.records import PilotRecord


def pilot_config(record: PilotRecord) -> PilotConfig:
    """The pilot file that a record was made by.

    Raises:
        ConfigError: what the record holds is no pilot file of this version.
    """
    try:
        return PilotConfig.model_validate(dict(record.config))
    except ValidationError as error:
        named = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
        )
        raise ConfigError(f"the pilot's record holds no valid pilot file: {named}") from None


def setting(record: PilotRecord, varied: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """A value of the run file as a trial ran with it.

    Args:
        record: the pilot.
        varied: what the trial changed, by path; None for a key that it left out.
        path: ``"section.key"``.
        default: where neither holds one.
    """
    if path in varied:
        return default if varied[path] is None else varied[path]
    found: Any = record.run
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return default
        found = found[part]
    return found


def masked(record: PilotRecord, varied: Mapping[str, Any]) -> bool:
    """Whether the trial's contributions carry pairwise masks."""
    return setting(record, varied, "aggregation.kind", "pairwise") == "pairwise" or bool(
        setting(record, varied, "aggregation.masked", False)
    )
