"""The run file: TOML sections as frozen, validated models.  Every section refuses unknown keys."""

from securefed.config.base import share_of
from securefed.config.files import (
    dump_config,
    first_difference,
    load_config,
    parse_config,
    run_file_schema,
)
from securefed.config.privacy import (
    Mechanism,
    Noise,
    PrivacySection,
    Rounding,
    Unit,
    why_not_conditional,
)
from securefed.config.run import (
    STAGES,
    DataSection,
    LoraSection,
    ModelSection,
    RunConfig,
    Stage,
    TrainingSection,
)

__all__ = [
    "STAGES",
    "DataSection",
    "LoraSection",
    "Mechanism",
    "ModelSection",
    "Noise",
    "PrivacySection",
    "Rounding",
    "RunConfig",
    "Stage",
    "TrainingSection",
    "Unit",
    "dump_config",
    "first_difference",
    "load_config",
    "parse_config",
    "run_file_schema",
    "share_of",
    "why_not_conditional",
]
