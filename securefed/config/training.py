"""The ``training`` section of the run file."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from securefed.config.base import Fraction, NonNegative, Positive, Section
from securefed.config.lora import LoraSection
from securefed.config.privacy import PrivacySection

ServerRule = Literal["adam", "sgd", "yogi", "adagrad"]
ClientWeights = Literal["uniform", "examples"]
LocalOptimizer = Literal["adamw", "sgd"]

_COMPARED = (
    "compares single clients' updates, and a secure sum shows none; clipping bounds what one "
    "client can do to the sum"
)
_BY_LOSS = (
    "weighs a client by its own loss, which is private and would be shown by its weight; give "
    "client_weights = 'examples', or bound drift with proximal_mu"
)
_OWN_ENTRIES = (
    "keeps entries that depend on each client's data: they would have to be named in the clear, "
    "and a secure sum adds like entries only; use 'random', the same for all"
)
# A step of SmolLM2-135M on windows of 128 takes 198 MiB an example; its gradient takes 0.7 MiB
# at rank 8 on q_proj and v_proj, and 5.6 MiB at rank 64.
_NOT_A_BOUND = (
    "clips by norms found from sums that cancel, which float32 may give as zero where they are 30 "
    "clip norms, and adds all examples in one product, which rounds one beside the others; and "
    "gradients of LoRA, which it saves, are 0.4 % of a step's memory at rank 8 and 3 % at rank 64; "
    "use 'per_example', with memory_gib where memory is short"
)
REFUSED: dict[str, dict[str, str]] = {
    "server_optimizer": dict.fromkeys(("krum", "median", "trimmed_mean"), _COMPARED),
    "client_weights": {"fedadp": _COMPARED, "loss": _BY_LOSS, "qfedavg": _BY_LOSS},
    "sparsify": dict.fromkeys(("top_k", "threshold"), _OWN_ENTRIES),
    "clipping": {"ghost": _NOT_A_BOUND},
}
"""Published ways that show single updates or private figures, or bound nothing, and why not."""


class TrainingSection(Section):
    """How clients compute an update and how the server applies the sum.

    ``batch_size`` and ``local_steps`` are for updates made of several local steps
    (``unit = "client"``, ``mechanism = "local"`` and ``"none"``); under distributed DP-SGD a round
    is one step and ``privacy.expected_batch`` says how large it is.  ``examples_per_user`` bounds
    how many of a drawn user's examples a step computes (all of them without it); which ones is
    drawn anew, in secret, for every step.

    ``micro_batch`` is the most examples that are computed at a time.  ``memory_gib``, in GiB of
    2^30 bytes, is the most memory that a client's process may take on a CPU, or torch on its GPU:
    fewer at a time are computed where they would not fit, and a model of which not one example
    fits is refused.  It follows from model, shapes and window length alone
    (:mod:`securefed.training.memory`), never from what was drawn.

    ``server_optimizer`` (2003.00295) steps on the noised sum: ``sgd`` (FedAvg at learning rate 1,
    FedAvgM with ``server_momentum``), ``adam``, ``yogi`` or ``adagrad``.  ``server_betas`` are of
    ``adam`` (0.9 and 0.999 where they are not given) and ``yogi`` (0.9 and 0.99);
    ``server_epsilon``, the paper's tau, of both (1e-8; 1e-3) and of ``adagrad`` (1e-3).

    ``client_weights = "examples"``: a client's update counts in proportion to its number of
    examples, no client more than ``max_weight_ratio`` times the smallest one.  It multiplies its
    update before it is clipped, and the sum is divided by the survivors' public weights.  For
    updates of whole clients (``unit = "client"``, and ``mechanism = "local"`` with examples);
    under distributed DP-SGD every example counts the same already.

    Local steps (``unit = "client"``, or ``mechanism = "local"``) on unlike data: ``proximal_mu``
    pulls them back to the round's adapter (FedProx, 1812.06127).  ``control_weight``, for
    ``unit = "client"`` and ``local_optimizer = "sgd"``: SCAFFOLD (1910.06378); each client's
    control travels behind its update, with this relative weight, clipped and summed as one vector
    of twice the length, and each client keeps its own from round to round.

    ``sparsify = "random"``: a round's vector is cut to ``keep_fraction`` of its coordinates before
    it is clipped, the same for all clients, by ``lora.seed`` and the number of the round.  With
    ``error_feedback`` a client adds later what was cut off; refused where it would carry an
    example into rounds for which it was not drawn.

    ``class_weights``, one for each class of a classifier: an example's loss is multiplied by that
    of its label before its gradient is clipped, so that the clip bounds it as before, and epsilon
    does not depend on them.  A weight that makes gradients longer than the clip is cut back by it;
    held-out figures are not weighed.

    ``normalize_steps``, where a plan gives clients unlike steps: a client's update is divided by
    its own number of steps and multiplied by the mean of the round's (both public), before the
    clip: FedNova (2007.07481) for plain SGD steps of one size.  Without it the mean is of plain
    updates, and leans to the clients that take more steps.
    """

    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    local_steps: Annotated[int, Field(ge=1)] = 4
    batch_size: Annotated[int, Field(ge=1)] = 16
    local_optimizer: LocalOptimizer = "adamw"
    local_learning_rate: Positive = 1e-3
    proximal_mu: NonNegative = 0.0
    control_weight: Annotated[float, Field(ge=0.01, le=100.0)] | None = None
    micro_batch: Annotated[int, Field(ge=1)] = 16
    memory_gib: Positive | None = None
    clipping: Literal["per_example"] = "per_example"
    examples_per_user: Annotated[int, Field(ge=1)] | None = None
    class_weights: Annotated[list[Positive], Field(min_length=2)] | None = None
    server_optimizer: ServerRule = "adam"
    server_learning_rate: Positive = 1e-2
    server_momentum: Fraction = 0.0
    server_betas: tuple[Fraction, Fraction] | None = None
    server_epsilon: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    client_weights: ClientWeights = "uniform"
    max_weight_ratio: Annotated[float, Field(ge=1.0, le=1e6)] = 10.0
    normalize_steps: bool = False
    sparsify: Literal["none", "random"] = "none"
    keep_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    error_feedback: bool = False
    trainer: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="a LocalTrainer of your own, as module:Class; refused under distributed DP-SGD",
    )
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None

    @field_validator(*REFUSED, mode="before")
    @classmethod
    def _is_not_refused(cls, value: object, info: ValidationInfo) -> object:
        why = REFUSED[info.field_name or ""].get(value) if isinstance(value, str) else None
        if why is not None:
            kinds = get_args(cls.model_fields[info.field_name or ""].annotation)
            raise ValueError(
                f"{value!r} is refused: it {why}; allowed: {', '.join(map(repr, kinds))}"
            )
        return value

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> Self:
        for field, given, rules in (
            ("server_momentum", self.server_momentum or None, ("sgd",)),
            ("server_betas", self.server_betas, ("adam", "yogi")),
            ("server_epsilon", self.server_epsilon, ("adam", "yogi", "adagrad")),
        ):
            if given is not None and self.server_optimizer not in rules:
                raise ValueError(
                    f"{field} with server_optimizer = {self.server_optimizer!r}: it is of "
                    f"{' and '.join(map(repr, rules))} alone; leave it out"
                )
        if (self.sparsify == "random") != (self.keep_fraction is not None):
            raise ValueError(
                "sparsify = 'random' without keep_fraction: it must be given, > 0 and < 1"
                if self.keep_fraction is None
                else f"keep_fraction = {self.keep_fraction:g} with sparsify = {self.sparsify!r}: "
                "it is of 'random' alone; leave it out"
            )
        if self.error_feedback and self.sparsify == "none":
            raise ValueError(
                "error_feedback = true with sparsify = 'none': nothing is cut off; leave it out, "
                "or use sparsify = 'random'"
            )
        if self.proximal_mu and self.local_steps == 1:
            raise ValueError(
                f"proximal_mu = {self.proximal_mu:g} with local_steps = 1: the only step is taken "
                "where the pull is zero; use local_steps >= 2"
            )
        if self.control_weight is not None:
            for field, value, wanted in (
                ("local_optimizer", self.local_optimizer, "sgd"),
                ("proximal_mu", self.proximal_mu, 0.0),
                ("sparsify", self.sparsify, "none"),
            ):
                if value != wanted:
                    raise ValueError(
                        f"control_weight with {field} = {value!r}: controls are mean gradients of "
                        f"plain local steps, sent whole; use {field} = {wanted!r}"
                    )
        named = {
            "local_optimizer": self.local_optimizer != "adamw",
            "proximal_mu": self.proximal_mu > 0.0,
            "control_weight": self.control_weight is not None,
            "memory_gib": self.memory_gib is not None,
        }
        for field, given in named.items():
            if given and self.trainer is not None:
                raise ValueError(
                    f"{field} with trainer = {self.trainer!r}: it is of the built-in local steps; "
                    "a trainer of your own takes its own"
                )
        return self


def why_not_combined(
    training: TrainingSection, privacy: PrivacySection, lora: LoraSection
) -> str | None:
    """Why a way to train or to combine cannot be had under these privacy settings, or None.

    State that a client keeps from round to round is made from its data.  With ``unit = "client"``
    the unit is all that a client ever sends, so each round moves by C at most, whatever the state.
    With ``mechanism = "local"`` what is carried over comes out of DP-SGD and is noised already.
    Under distributed DP-SGD an example that was drawn once would be in the state, and so in later
    rounds for which it was not drawn: sampling is credited for just that, and the clip of each
    example by itself would bound only what it adds in its own round.
    """
    unit, mechanism = privacy.unit, privacy.mechanism
    one_step = unit != "client" and mechanism != "local"
    setting = f"privacy.unit = {unit!r}, privacy.mechanism = {mechanism!r}"
    if training.client_weights != "uniform":
        if unit == "user":
            return (
                f"training.client_weights = 'examples' with {setting}: how many examples a client "
                "holds is not public there, only how many users; use 'uniform'"
            )
        if one_step:
            return (
                f"training.client_weights = 'examples' with {setting}: the sum is over examples, "
                "so a client counts by how many it has already; use 'uniform'"
            )
    for field, given in (
        ("control_weight", training.control_weight is not None),
        ("error_feedback", training.error_feedback),
    ):
        if given and one_step:
            return (
                f"training.{field} with {setting}: a client would carry what was drawn once into "
                "rounds for which it was not drawn, which sampling is credited for; use "
                "privacy.unit = 'client'"
            )
        if given and lora.sharing in ("rolora", "fedsvd"):
            return (
                f"training.{field} with lora.sharing = {lora.sharing!r}: what a client carries "
                "over is of coordinates (or of a basis) that the next round does not have; use "
                "'ffa', 'fedit' or 'fedsb'"
            )
    if training.control_weight is not None and lora.sharing == "fedsa":
        return (
            "training.control_weight with lora.sharing = 'fedsa': each client's gradients of A are "
            "taken at a B of its own that moves; use 'ffa', 'fedit' or 'fedsb'"
        )
    if training.control_weight is not None and unit != "client":
        return (
            f"training.control_weight with {setting}: local DP-SGD takes Adam steps, and controls "
            "are mean gradients of plain ones; use privacy.unit = 'client'"
        )
    for field, given in (
        ("proximal_mu", training.proximal_mu > 0.0),
        ("local_optimizer", training.local_optimizer != "adamw"),
    ):
        if given and one_step:
            return (
                f"training.{field} with {setting}: a round is one step of distributed DP-SGD, and "
                "there are no local steps; leave it out"
            )
    if training.local_optimizer != "adamw" and mechanism == "local":
        return (
            f"training.local_optimizer with {setting}: local DP-SGD takes Adam steps; leave it out"
        )
    if training.sparsify != "none" and privacy.sampling == "cyclic":
        return (
            "training.sparsify = 'random' with privacy.sampling = 'cyclic': noise that is to "
            "cancel between rounds must meet the same coordinates in them; use 'none'"
        )
    return None
