"""The run file: TOML sections as frozen, validated models.

Every section refuses keys that it does not know.  A validation error is reported as one
:class:`~securefed.errors.ConfigError` that names each field, its value and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from securefed.errors import ConfigError

Stage = Literal["advertise", "graph", "share", "masked_input", "consistency", "unmask"]
# "graph" is there in sparse rounds (200 clients and more) only.
STAGES: tuple[Stage, ...] = get_args(Stage)
Unit = Literal["example", "user", "client"]
Mechanism = Literal["distributed", "central", "local", "none"]
Noise = Literal["discrete_gaussian", "skellam"]
Rounding = Literal["unconditional", "conditional"]
Sampling = Literal["poisson", "cyclic"]

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class ModelSection(Section):
    """Which language model is adapted.

    ``source`` is a folder, a hub name, or ``builtin:smollm2-135m-instruct`` /
    ``builtin:minilm-l6-v2``.  ``fingerprint`` pins the weights: the SHA-256 that
    ``securefed.training.models.weights_fingerprint`` gives; without it the fingerprint that is
    found is recorded and bound into every round.
    """

    source: str = "builtin:smollm2-135m-instruct"
    task: Literal["causal-lm", "sequence-classification"] = "causal-lm"
    labels: Annotated[int, Field(ge=2, le=10_000)] | None = None
    revision: str | None = None
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        if (self.task == "sequence-classification") != (self.labels is not None):
            raise ValueError("labels must be given exactly when task = 'sequence-classification'")
        return self


class DataSection(Section):
    """Each client's own data, and how it is cut into examples.

    ``source`` is a folder (one file or one sub-folder a client), or a built-in corpus.
    For causal language modelling an example is one non-overlapping window of ``window_tokens``
    tokens; for classification it is one record, cut off at ``window_tokens``.

    ``user_field`` names the field of a JSONL or CSV record that says whose record it is (a
    patient, a sender); it goes with ``privacy.unit = "user"``.  Without it each document is a user
    of its own there.  A user is held out whole or not at all.
    """

    source: str = "builtin:state-of-the-union"
    format: Literal["auto", "jsonl", "csv", "text"] = "auto"
    text_field: str = "text"
    label_field: str = "label"
    user_field: Annotated[str, Field(min_length=1)] | None = None
    window_tokens: Annotated[int, Field(ge=4, le=8192)] = 32
    clients: Literal["all", "default"] | Annotated[list[str], Field(min_length=1)] = "all"
    min_examples: Annotated[int, Field(ge=1)] = 1
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1


class LoraSection(Section):
    """The low-rank adapter.  ``ffa``: A is made once and frozen, only B travels (2403.12313)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 4
    alpha: Positive = 8.0
    target_modules: Annotated[list[str], Field(min_length=1)] = ["v_proj"]
    modules_to_save: list[str] = []
    sharing: Literal["ffa"] = "ffa"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 20260101


class TrainingSection(Section):
    """How clients compute an update and how the server applies the sum.

    ``batch_size`` and ``local_steps`` are for updates made of several local steps
    (``unit = "client"``, ``mechanism = "local"`` and ``"none"``); under distributed DP-SGD a round
    is one step and ``privacy.expected_batch`` says how large it is.  ``examples_per_user`` bounds
    how many of a drawn user's examples a step computes (all of them without it); which ones is
    drawn anew, in secret, for every step.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    local_steps: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 16
    local_learning_rate: Positive = 1e-3
    micro_batch: Annotated[int, Field(ge=1)] = 16
    examples_per_user: Annotated[int, Field(ge=1)] | None = None
    server_optimizer: Literal["adam", "sgd"] = "adam"
    server_learning_rate: Positive = 1e-2
    trainer: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="a LocalTrainer of your own, as module:Class; refused under distributed DP-SGD",
    )
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None


class AdaptiveClipSection(Section):
    """A clip that follows the units' norms (1905.03871); ``privacy.clip_norm`` is the first one.

    ``target_quantile`` of the units are to lie within the clip.  Each unit's bit travels beside its
    vector with ``count_weight``, in the same noised sum, and every party moves the clip itself by
    the noised fraction, between ``min_clip_norm`` and ``max_clip_norm`` (by default a thousandth
    and a thousandfold of ``privacy.clip_norm``).
    """

    target_quantile: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    learning_rate: Annotated[float, Field(ge=1e-3, le=2.0)] = 0.2
    count_weight: Annotated[float, Field(ge=1e-3, le=2.0)] = 0.2
    min_clip_norm: Positive | None = None
    max_clip_norm: Positive | None = None


DEFAULT_NOISE = {"noise_multiplier": 0.6}


def why_not_conditional(unit: Unit, sample_is_secret: bool) -> str:
    """Why rounding that depends on the result's length is refused; empty where it is not."""
    if unit != "client":
        return (
            f"unit = {unit!r}: whether a sum is rounded again would depend on its other units, and "
            "no bound on one of them would hold; unit must be 'client'"
        )
    if not sample_is_secret:
        return (
            "sample_is_secret = false: response times are shown, and how often an update is "
            "rounded again depends on what it holds; sample_is_secret must be true"
        )
    return ""


class PrivacySection(Section):
    """What is protected, by how much, and against whom.

    ``mechanism``: ``distributed``: each client adds its share of the noise before masking.
    ``central``: a server that is trusted with the sum adds the noise.  ``local``: each client's
    training is private by itself.  ``none``: an unprotected baseline.

    ``noise_multiplier`` is the standard deviation of the honest survivors' summed noise divided
    by ``clip_norm`` (0.6 where neither it nor ``target_epsilon`` is given).  ``target_epsilon`` is
    turned into the least noise that keeps all of the run's rounds within it, against the server;
    with ``central``, against the release.  ``corrupt_fraction`` and ``dropout_fraction`` are shares
    of the cohort: noise is sized for the clients that are neither.  ``sample_is_secret = false`` is
    for a deployment that shows response times, per-client seconds or batch sizes: no amplification
    by sampling is credited then.  ``rounding = "conditional"``, for ``unit = "client"``: an update
    is rounded to the grid again until it is no longer than the sensitivity, which then always holds
    and is smaller.  ``remove_excess_noise``: clients add noise in layers, and those that the number
    of survivors makes needless are removed from the sum; for distributed discrete Gaussian noise,
    masking with everyone (below 200 clients).

    ``expected_batch`` counts examples, or users for ``unit = "user"``: a user's contribution is the
    mean over its examples.

    ``sampling = "cyclic"`` (with ``central`` noise and ``unit = "example"``) samples nothing: each
    client's examples are divided into batches that come in turn, of ``expected_batch`` examples or
    a little less over all clients, and the noise of a round is correlated with that of the
    ``noise_bands - 1`` before it, so that most of it cancels over rounds.  ``noise_bands`` is at
    most the number of batches; 1 is independent noise; without it, the number up to 64 with the
    least error is taken.  Such a run cannot be resumed.

    With a table ``adaptive_clip`` the clip adapts from round to round at the same epsilon;
    ``noise_multiplier`` is then over the bound of a unit's vector and bit together.  Not with
    ``sampling = "cyclic"``.
    """

    unit: Unit = "example"
    mechanism: Mechanism = "distributed"
    noise: Noise = "discrete_gaussian"
    rounding: Rounding = "unconditional"
    clip_norm: Positive = 0.5
    adaptive_clip: AdaptiveClipSection | None = None
    noise_multiplier: NonNegative | None = None
    target_epsilon: Positive | None = None
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    expected_batch: Positive = 128.0
    update_clip_norm: Positive = 10.0
    sampling: Sampling = "poisson"
    noise_bands: Annotated[int, Field(ge=1, le=1024)] | None = None
    sample_is_secret: bool = True
    remove_excess_noise: bool = False
    corrupt_fraction: Fraction = 0.1
    dropout_fraction: Fraction = 0.25

    @model_validator(mode="before")
    @classmethod
    def _noise_has_a_default(cls, values: Any) -> Any:
        given = isinstance(values, dict) and {"noise_multiplier", "target_epsilon"} & set(values)
        return values if given or not isinstance(values, dict) else values | DEFAULT_NOISE

    @model_validator(mode="after")
    def _clip_can_adapt(self) -> Self:
        adaptive = self.adaptive_clip
        if adaptive is None:
            return self
        if self.mechanism == "local":
            raise ValueError(
                "adaptive_clip with mechanism = 'local': each client's own training clips there, "
                "and nothing of it is counted; must be left out"
            )
        if self.sampling == "cyclic":
            raise ValueError(
                "adaptive_clip with sampling = 'cyclic': noise correlated over rounds needs "
                "one clip for all of them; must be left out"
            )
        least, most = adaptive.min_clip_norm or 0.0, adaptive.max_clip_norm or math.inf
        if not least <= self.clip_norm <= most:
            raise ValueError(
                f"clip_norm = {self.clip_norm:g}: must be in [{least:g}, {most:g}], between "
                "adaptive_clip.min_clip_norm and adaptive_clip.max_clip_norm"
            )
        return self

    @model_validator(mode="after")
    def _mechanism_has_noise(self) -> Self:
        if self.noise == "skellam" and self.mechanism != "distributed":
            raise ValueError(
                f"noise = 'skellam' with mechanism = {self.mechanism!r}: Skellam noise is for sums "
                "of many clients' noise, mechanism = 'distributed'"
            )
        if self.rounding == "conditional":
            refused = why_not_conditional(self.unit, self.sample_is_secret)
            if refused:
                raise ValueError(f"rounding = 'conditional' with {refused}")
        if self.remove_excess_noise and (
            self.mechanism != "distributed" or self.noise != "discrete_gaussian"
        ):
            raise ValueError(
                f"remove_excess_noise = true with mechanism = {self.mechanism!r} and noise = "
                f"{self.noise!r}: layers are of 'distributed' noise that is 'discrete_gaussian'"
            )
        if self.sampling == "cyclic" and (self.mechanism, self.unit) != ("central", "example"):
            raise ValueError(
                f"sampling = 'cyclic' with mechanism = {self.mechanism!r}, unit = {self.unit!r}: "
                "noise correlated over rounds is there for mechanism = 'central', unit = 'example' "
                "only; there is no distributed form of it"
            )
        if self.noise_bands is not None and self.sampling != "cyclic":
            raise ValueError(
                f"noise_bands = {self.noise_bands} with sampling = {self.sampling!r}: noise is "
                "correlated over rounds with sampling = 'cyclic' only"
            )
        if self.mechanism == "none":
            if self.target_epsilon is not None:
                raise ValueError("target_epsilon with mechanism = 'none': no epsilon is reached")
            return self
        if self.noise_multiplier is not None and self.target_epsilon is not None:
            raise ValueError("noise_multiplier and target_epsilon are both given; give one of them")
        if self.noise_multiplier == 0.0:
            raise ValueError(
                f"noise_multiplier = 0 with mechanism = {self.mechanism!r} protects nothing; give "
                "a value > 0, or mechanism = 'none' for an unprotected baseline"
            )
        if self.mechanism == "local" and self.unit == "client":
            raise ValueError(
                "mechanism = 'local' is DP-SGD within a client: unit must be 'example' or 'user'"
            )
        return self

    @property
    def resumable(self) -> bool:
        """Whether a run that was stopped can go on.

        Noise correlated over rounds needs the earlier sums without noise, which are in the memory
        of the process alone.
        """
        return self.sampling != "cyclic"


class AggregationSection(Section):
    """How the sum is formed.  ``plaintext`` is an insecure baseline and every output says so."""

    kind: Literal["pairwise", "plaintext"] = "pairwise"
    bits: Literal["auto"] | Annotated[int, Field(ge=20, le=32)] = "auto"


class SimulatedDropout(Section):
    """A client that falls silent from ``stage`` on, in one round of a simulation."""

    round: Annotated[int, Field(ge=1)]
    client: str
    stage: Stage


class CohortSection(Section):
    """Who takes part.  ``min_clients`` is each client's own floor."""

    min_clients: Annotated[int, Field(ge=2)] = 3
    simulated_dropouts: list[SimulatedDropout] = []


class EvaluationSection(Section):
    """Held-out figures; they travel through the same secure sum, outside the guarantee.

    ``every``: a round count between evaluations (0: only before the first and after the last
    round).  ``max_windows`` bounds each client's held-out examples, of ``window_tokens`` tokens
    each (default: ``data.window_tokens``).  ``show_clients`` lets a simulation, which owns every
    client, print the worst one.
    """

    every: Annotated[int, Field(ge=0)] = 0
    max_windows: Annotated[int, Field(ge=1)] = 64
    window_tokens: Annotated[int, Field(ge=4, le=8192)] | None = None
    show_clients: bool = False


class BudgetSection(Section):
    """The run stops before a round that would exceed ``epsilon`` against the server.

    With ``privacy.mechanism = "central"``, where nothing holds against the server: against the
    release.
    """

    epsilon: Positive | None = None


class OutputSection(Section):
    """What a run is called and whether it draws a picture."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")] = "run"
    picture: bool = True


class RunConfig(Section):
    """A whole run file."""

    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    aggregation: AggregationSection = AggregationSection()
    cohort: CohortSection = CohortSection()
    evaluation: EvaluationSection = EvaluationSection()
    budget: BudgetSection = BudgetSection()
    output: OutputSection = OutputSection()

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Self:
        if self.privacy.target_epsilon is not None and (
            self.aggregation.kind == "plaintext" and self.privacy.mechanism == "distributed"
        ):
            raise ValueError(
                "privacy.target_epsilon cannot be met with aggregation.kind = 'plaintext': nothing "
                "holds against a server that gets contributions in the clear; use 'pairwise', or "
                "privacy.mechanism = 'central'"
            )
        if self.privacy.remove_excess_noise and self.aggregation.kind == "plaintext":
            raise ValueError(
                "privacy.remove_excess_noise needs aggregation.kind = 'pairwise': seeds of noise "
                "are revealed in a masked round"
            )
        unit = self.privacy.unit
        if unit != "client" and self.training.trainer is not None:
            raise ValueError(
                f"training.trainer cannot be used with privacy.unit = {unit!r}: the guarantee of "
                f"(distributed) DP-SGD needs each {unit}'s own clipped gradient, which a trainer "
                "of your own does not show, and a client that keeps state across rounds (optimiser "
                "moments, error feedback, control variates) would carry what was drawn once into "
                "rounds for which it was not drawn, which sampling is credited for; use "
                "privacy.unit = 'client'"
            )
        for field, value in (
            ("data.user_field", self.data.user_field),
            ("training.examples_per_user", self.training.examples_per_user),
        ):
            if value is not None and unit != "user":
                raise ValueError(
                    f"{field} = {value!r} with privacy.unit = {unit!r}: it would look as if users "
                    "were protected as one; use privacy.unit = 'user', or leave it out"
                )
        for drop in self.cohort.simulated_dropouts:
            if drop.round > self.training.rounds:
                raise ValueError(
                    f"cohort.simulated_dropouts names round {drop.round}, but training.rounds = "
                    f"{self.training.rounds}"
                )
        return self


def _meant(where: tuple[int | str, ...]) -> str:
    """The keys that are allowed at an unknown key's place, the likeliest one first."""
    fields: Any = RunConfig.model_fields
    for part in where[:-1]:
        annotation = fields[part].annotation if part in fields else None
        # A table that may be left out is annotated as itself or None.
        kinds = [k for k in (annotation, *get_args(annotation)) if isinstance(k, type)]
        section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if section is None:
            return ""
        fields = section.model_fields
    close = difflib.get_close_matches(str(where[-1]), fields, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (allowed: {', '.join(fields)})"


def _complaints(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "run file"
        value = item["input"]
        shown = "" if isinstance(value, (dict, BaseModel)) else f" (value: {value!r})"
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: no such key{_meant(item['loc'])}")
        else:
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return "; ".join(lines)


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Validate a mapping of sections.

    Raises:
        ConfigError: names every field that is unknown or out of range, its value and what is
            allowed.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_complaints(error)) from None


def load_config(path: Path) -> RunConfig:
    """Read a run file.

    Relative folders in ``model.source`` and ``data.source`` are taken from the run file's folder.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not validate.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"run file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"run file {path}: is not UTF-8 at byte {error.start}") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"run file {path} is not TOML: {error}") from None
    for section in ("model", "data"):
        table = values.get(section)
        if isinstance(table, dict) and isinstance(table.get("source"), str):
            beside = path.parent / table["source"]
            if beside.is_dir():
                table["source"] = str(beside.resolve())
    return parse_config(values)


def dump_config(config: RunConfig) -> str:
    """The fully resolved run file as TOML; ``load_config`` of it gives an equal object."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def first_difference(one: RunConfig, other: RunConfig) -> str:
    """The first key whose values differ, with both, in words; empty where none does."""
    for section in RunConfig.model_fields:
        ours, theirs = (getattr(config, section) for config in (one, other))
        for key in type(ours).model_fields:
            mine, yours = getattr(ours, key), getattr(theirs, key)
            if mine != yours:
                return f"{section}.{key} is {_shown(mine)}, not {_shown(yours)}"
    return ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def run_file_schema() -> str:
    """The JSON Schema of the run file, as text; ``securefed/schemas/run.json`` is this."""
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "urn:securefed:schema:run-1"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def share_of(fraction: float, count: int) -> int:
    """``floor(fraction * count)``, unharmed by the last bit of the product."""
    return math.floor(fraction * count + 1e-9)
