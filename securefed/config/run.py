"""The other sections of the run file, and the whole of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from securefed.config.base import Positive, Section
from securefed.config.carrying_out import why_not_carried_out
from securefed.config.data import DataSection
from securefed.config.evaluation import EvaluationSection
from securefed.config.lora import LoraSection, why_not_shared
from securefed.config.personal import PersonalSection
from securefed.config.privacy import PrivacySection
from securefed.config.ranks import RankSection, why_not_mixed
from securefed.config.training import TrainingSection, why_not_combined

Stage = Literal["advertise", "graph", "share", "masked_input", "consistency", "unmask"]
# "graph" is there in sparse rounds (200 clients and more) only.
STAGES: tuple[Stage, ...] = get_args(Stage)

AggregationKind = Literal["pairwise", "bfv", "ckks", "plaintext"]
Scheme = Literal["bfv", "ckks"]
KeyHolder = Literal["cohort", "decryptor"]


def why_no_arrangement(scheme: str, key_holder: str, masked: bool) -> str:
    """Why contributions are not encrypted in this way; empty where they can be."""
    if scheme not in get_args(Scheme):
        return f"scheme = {scheme!r}: must be one of {get_args(Scheme)}"
    if key_holder not in get_args(KeyHolder):
        return f"key_holder = {key_holder!r}: must be one of {get_args(KeyHolder)}"
    if masked and key_holder == "cohort":
        return (
            "masked = True with key_holder = 'cohort': a masked round has one decryptor, which may "
            "be run by a member of the cohort; use key_holder = 'decryptor'"
        )
    if masked and scheme == "ckks":
        return "masked = True with scheme = 'ckks': masks are modulo t; use 'bfv'"
    return ""


class ModelSection(Section):
    """Which language model is adapted.

    ``source`` is a folder, a hub name, or ``builtin:smollm2-135m-instruct`` /
    ``builtin:minilm-l6-v2``.  ``fingerprint`` pins the weights: the SHA-256 that
    ``securefed.training.models.weights_fingerprint`` gives; without it the fingerprint that is
    found is recorded and bound into every round.  ``quantize`` keeps the frozen weights of the
    model's body in 8 or 4 bits, for machines of little memory.
    """

    source: str = "builtin:smollm2-135m-instruct"
    task: Literal["causal-lm", "sequence-classification"] = "causal-lm"
    labels: Annotated[int, Field(ge=2, le=10_000)] | None = None
    revision: str | None = None
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["none", "int8", "int4"] = "none"

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        if self.task == "sequence-classification" and self.labels is None:
            raise ValueError(
                "labels is missing: with task = 'sequence-classification' it must be the number of "
                "classes"
            )
        if self.task != "sequence-classification" and self.labels is not None:
            raise ValueError(
                f"labels = {self.labels} with task = {self.task!r}: only a classifier has them; "
                "leave it out, or use task = 'sequence-classification'"
            )
        return self


class AggregationSection(Section):
    """How the sum is formed, and what hides a single contribution.

    ``kind``: ``pairwise``: masks that cancel in the sum, against the server and as many clients as
    may be corrupt.  ``bfv``: encryption; the server adds ciphertexts, and whoever holds the key
    opens their sum, which is the very sum of masks.  ``ckks``: the same at six times the bytes,
    for those who ask, with ``privacy.mechanism = "distributed"`` only.  ``plaintext`` is an
    insecure baseline: nothing is protected against the server, and every output says so.

    ``key_holder``, for ``bfv`` and ``ckks``: who can decrypt.  ``decryptor`` (where none is given):
    a separate party, which opens one sum a round once it has checked that it is one of enough
    clients; against a server that it does not help, and that no client helps to depart from the
    protocol.  ``cohort``: every client; against a server that no client helps, so
    ``privacy.corrupt_fraction`` must leave no client corrupt.  ``masked``, for ``bfv`` with a
    decryptor: masks beneath the encryption, against server and decryptor together with as many
    clients as may be corrupt; then a member of the cohort may run the decryptor.
    """

    kind: AggregationKind = "pairwise"
    key_holder: KeyHolder | None = None
    masked: bool = False
    bits: Literal["auto"] | Annotated[int, Field(ge=20, le=32)] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _key_has_a_holder(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("kind") not in get_args(Scheme):
            return values
        return (
            values if values.get("key_holder") is not None else values | {"key_holder": "decryptor"}
        )

    @model_validator(mode="after")
    def _arrangement_exists(self) -> Self:
        if self.key_holder is None and not self.masked:
            return self
        given = f"key_holder = {self.key_holder!r}" if self.key_holder else "masked = True"
        if self.kind not in get_args(Scheme):
            raise ValueError(
                f"{given} with kind = {self.kind!r}: is about encryption; leave it out, or use "
                "kind = 'bfv' or 'ckks'"
            )
        refused = why_no_arrangement(self.kind, self.key_holder or "", self.masked)
        if refused:
            raise ValueError(refused)
        return self

    @property
    def encrypted(self) -> bool:
        """Whether contributions are encrypted."""
        return self.key_holder is not None


class SimulatedDropout(Section):
    """A client that falls silent from ``stage`` on, in one round of a simulation."""

    round: Annotated[int, Field(ge=1)]
    client: str
    stage: Stage


class ProfileSection(Section):
    """What some clients' machines and links can do; nothing of their data.

    ``clients`` names them (``"others"``: all that no other profile names).  ``slowdown`` is how
    many times slower they train than the machine that plans.  ``availability`` is the share of
    rounds for which they can be had.
    """

    clients: Literal["others"] | Annotated[list[str], Field(min_length=1)] = "others"
    memory_gib: Positive
    slowdown: Positive = 1.0
    upload_mbit: Positive
    download_mbit: Positive
    availability: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class ScheduleSection(Section):
    """What a planner may choose for each client from its profile, and whether a run does so.

    ``rank_tiers`` are public, up to ``lora.rank``.  ``local_steps`` (up to
    ``training.local_steps``) may differ with ``privacy.unit = "client"`` only.  ``periods``: a
    client may take part in every such round.  ``least_work`` is the share of the run file's
    examples that each client trains on at least, over all rounds.  ``seconds_per_token`` is that
    of the machine that plans; it is measured if it is not given.

    ``carry_out``: the run makes the plan before its first round, records it and keeps to it.
    Rounds are then of the clients whose turn it is, timed on a virtual clock by the profiles.  With
    several ``rank_tiers`` the plan's ranks are the run's, as if ``cohort.ranks`` gave them, and
    ``periods`` must be [1].

    ``deadline``: virtual seconds after which a stage of a round closes as soon as enough clients
    have answered (the floor that ``privacy.dropout_fraction`` leaves); ``"plan"``: a little more
    than the plan's longest stage.  Without it every stage waits for everybody.  ``patience``: when
    a stage fails without its floor (10 times the deadline if it is not given).  ``enough``: the
    share of answers that closes a stage at once, never below the floor.
    """

    rank_tiers: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    local_steps: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    periods: list[Annotated[int, Field(ge=1)]] = Field(default=[1])
    least_work: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    seconds_per_token: Positive | None = None
    carry_out: bool = False
    deadline: Literal["plan"] | Positive | None = None
    patience: Positive | None = None
    enough: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @property
    def ranks_differ(self) -> bool:
        """Whether a run may give its clients unlike ranks by its plan."""
        return self.carry_out and len(self.rank_tiers) > 1

    @model_validator(mode="after")
    def _deadline_is_kept(self) -> Self:
        if self.deadline is not None and not self.carry_out:
            raise ValueError(
                f"deadline = {self.deadline!r} with carry_out = false: no round is timed; give "
                "carry_out = true, or leave it out"
            )
        if self.deadline is None and (self.patience is not None or self.enough != 1.0):
            raise ValueError(
                f"patience = {self.patience}, enough = {self.enough:g} without deadline: no stage "
                "is closed early; give deadline, or leave them out"
            )
        if isinstance(self.deadline, float) and (self.patience or self.deadline) < self.deadline:
            raise ValueError(f"patience = {self.patience}: must be >= deadline = {self.deadline:g}")
        return self


class CohortSection(Section):
    """Who takes part.  ``min_clients`` is each client's own floor.

    ``ranks``: clients of unlike LoRA rank, each client in one table (none: ``lora.rank`` for all);
    with ``lora.sharing = "ffa"``.  The columns of B are cut into slices at these ranks, each summed
    by itself among the clients that hold it, and what all slices show is one release of one vector,
    clipped as a whole.  ``least_contributors`` (``min_clients``, and 3 at least, where it is not
    given): a slice that fewer survive in stays closed for that round; a rank that too few clients
    reach is merged, before the run, into the one below.

    ``profiles`` and ``schedule`` are for ``securefed plan``, and for a run that carries a plan out.
    """

    min_clients: Annotated[int, Field(ge=2)] = 3
    ranks: list[RankSection] = Field(default=[])
    least_contributors: Annotated[int, Field(ge=2)] | None = None
    simulated_dropouts: list[SimulatedDropout] = Field(default=[])
    profiles: list[ProfileSection] = Field(default=[])
    schedule: ScheduleSection = ScheduleSection()

    @model_validator(mode="after")
    def _each_client_has_one_rank(self) -> Self:
        if self.least_contributors is not None and not (self.ranks or self.schedule.ranks_differ):
            raise ValueError(
                f"least_contributors = {self.least_contributors} without ranks: it is of slices; "
                "leave it out (min_clients is for whole sums)"
            )
        if (self.least_contributors or self.min_clients) < self.min_clients:
            raise ValueError(
                f"least_contributors = {self.least_contributors} with min_clients = "
                f"{self.min_clients}: a client takes part in no smaller sum; it must be >= "
                "min_clients"
            )
        if sum(section.clients == "others" for section in self.ranks) > 1:
            raise ValueError("ranks: two tables have clients = 'others'; one at most can")
        named = [
            n for section in self.ranks if section.clients != "others" for n in section.clients
        ]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"ranks: {twice[0]!r} is named twice; a client has one rank")
        return self


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
    personal: PersonalSection = PersonalSection()
    budget: BudgetSection = BudgetSection()
    output: OutputSection = OutputSection()

    @model_validator(mode="after")
    def _sections_fit_each_other(self) -> Self:
        if self.privacy.target_epsilon is not None and (
            self.aggregation.kind == "plaintext" and self.privacy.mechanism == "distributed"
        ):
            raise ValueError(
                "privacy.target_epsilon cannot be met with aggregation.kind = 'plaintext': nothing "
                "holds against a server that gets contributions in the clear; use 'pairwise' or "
                "'bfv', or privacy.mechanism = 'central'"
            )
        refused = self._why_not_summed()
        if refused:
            raise ValueError(refused)
        if self.privacy.mechanism == "none" and self.budget.epsilon is not None:
            raise ValueError(
                f"budget.epsilon = {self.budget.epsilon:g} with privacy.mechanism = 'none': no "
                "epsilon is stated there; leave it out"
            )
        if (why := why_not_shared(self.lora, self.privacy)) is not None:
            raise ValueError(why)
        if (why := why_not_combined(self.training, self.privacy, self.lora)) is not None:
            raise ValueError(why)
        mixed = why_not_mixed(
            [section.rank for section in self.cohort.ranks],
            named="cohort.ranks",
            lora=self.lora,
            training=self.training,
            privacy=self.privacy,
            kind=self.aggregation.kind,
        )
        if mixed is not None:
            raise ValueError(mixed)
        if (why := why_not_carried_out(self)) is not None:
            raise ValueError(why)
        if (why := self._why_not_scored()) is not None:
            raise ValueError(why)
        unit = self.privacy.unit
        if unit != "client" and self.training.trainer is not None:
            raise ValueError(
                f"training.trainer = {self.training.trainer!r} cannot be used with privacy.unit = "
                f"{unit!r}: DP-SGD (distributed or local) clips each {unit}'s own gradient, and a "
                "trainer of your own takes steps on several at once, so that only the client's "
                "whole update can be clipped; use privacy.unit = 'client', or leave "
                "training.trainer out"
            )
        if unit != "client" and self.cohort.schedule.local_steps:
            raise ValueError(
                f"cohort.schedule.local_steps with privacy.unit = {unit!r}: sampling probability "
                "and steps are the same for every client there; leave it out (rank, micro-batch "
                "and participation may differ)"
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
                    f"cohort.simulated_dropouts names round {drop.round}: must be 1.."
                    f"{self.training.rounds}, for training.rounds = {self.training.rounds}"
                )
        return self

    def _why_not_scored(self) -> str | None:
        """Why examples cannot be weighed, or conversations not be read, for this task."""
        labels, weights = self.model.labels, self.training.class_weights
        if self.data.messages_field is not None and self.model.task != "causal-lm":
            return (
                f"data.messages_field = {self.data.messages_field!r} with model.task = "
                f"{self.model.task!r}: conversations are for 'causal-lm'; use data.text_field"
            )
        if weights is not None and len(weights) != (labels or 0):
            return (
                f"training.class_weights has {len(weights)} weights with model.labels = {labels}: "
                "there must be one for each class of a classifier"
            )
        if weights is not None and self.training.trainer is not None:
            return (
                f"training.class_weights with training.trainer = {self.training.trainer!r}: a "
                "trainer of your own computes its own loss; leave one of them out"
            )
        return None

    def _why_not_summed(self) -> str:
        """Why contributions of this privacy are not summed in this way; empty where they are."""
        section, mechanism = self.aggregation, self.privacy.mechanism
        masked = section.kind == "pairwise" or section.masked
        if self.privacy.remove_excess_noise and not masked:
            return (
                f"privacy.remove_excess_noise with aggregation.kind = {section.kind!r}: seeds of "
                "noise are revealed in a masked round; use 'pairwise', or 'bfv' with masked = true"
            )
        if section.encrypted and mechanism == "central" and not masked:
            return (
                "privacy.mechanism = 'central' with aggregation.masked = false: whoever opens the "
                "sum would see it before the server adds noise; use masked = true, or "
                "privacy.mechanism = 'distributed'"
            )
        if section.kind == "ckks" and mechanism != "distributed":
            return (
                f"aggregation.kind = 'ckks' with privacy.mechanism = {mechanism!r}: sums without "
                "distributed noise are not released from CKKS (Li and Micciancio, eprint "
                "2020/1533); use 'bfv'"
            )
        return ""
