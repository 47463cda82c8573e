"""Run file and pilot file: TOML as frozen, validated models.  Each refuses unknown keys."""

from securefed.config.base import share_of
from securefed.config.data import DataSection
from securefed.config.evaluation import EvaluationSection, HistogramSection
from securefed.config.files import (
    dump_config,
    dump_pilot,
    first_difference,
    load_config,
    load_pilot,
    parse_config,
    run_file_schema,
)
from securefed.config.lora import SHARING_MODES, LoraSection
from securefed.config.personal import PersonalSection
from securefed.config.pilot import PilotConfig
from securefed.config.privacy import (
    Mechanism,
    Noise,
    PrivacySection,
    Rounding,
    Unit,
    why_not_conditional,
)
from securefed.config.ranks import RankSection
from securefed.config.run import (
    STAGES,
    AggregationKind,
    AggregationSection,
    KeyHolder,
    ModelSection,
    ProfileSection,
    RunConfig,
    Scheme,
    Stage,
    why_no_arrangement,
)
from securefed.config.training import ServerRule, TrainingSection

__all__ = [
    "SHARING_MODES",
    "STAGES",
    "AggregationKind",
    "AggregationSection",
    "DataSection",
    "EvaluationSection",
    "HistogramSection",
    "KeyHolder",
    "LoraSection",
    "Mechanism",
    "ModelSection",
    "Noise",
    "PersonalSection",
    "PilotConfig",
    "PrivacySection",
    "ProfileSection",
    "RankSection",
    "Rounding",
    "RunConfig",
    "Scheme",
    "ServerRule",
    "Stage",
    "TrainingSection",
    "Unit",
    "dump_config",
    "dump_pilot",
    "first_difference",
    "load_config",
    "load_pilot",
    "parse_config",
    "run_file_schema",
    "share_of",
    "why_no_arrangement",
    "why_not_conditional",
]
