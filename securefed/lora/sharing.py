"""Which adapter parameters travel to the server, which stay at a client, and which are frozen.

An update of LoRA is ``W + s B A``, A of shape ``[r, in]`` and B of shape ``[out, r]``.  Under a
secure sum the server learns a sum of vectors and nothing else, so a mode is usable only if what it
does is a function of that sum.  Methods that need each client's own update are refused with the
reason (:data:`REFUSED_MODES`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from securefed.config import SHARING_MODES
from securefed.errors import ConfigError

Factor = Literal["A", "B", "core", "whole"]
"""``core`` is the R of Fed-SB; ``whole`` is what is trained in full, such as a head."""

_INSERTED = "inserted_"


def is_inserted(name: str) -> bool:
    """Whether a parameter is of a module that was put in beside LoRA (``lora.inserted``)."""
    return any(part.startswith(_INSERTED) for part in name.split("."))


def factor_of(name: str) -> Factor | None:
    """What a parameter of an adapted model is to its adapter; None for the base model's own."""
    if ".modules_to_save." in name or is_inserted(name):
        return "whole"
    if ".lora_B." in name:
        return "B"
    if ".lora_A." in name:
        return "core" if name.endswith(".core.weight") else "A"
    return None


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter name of a PEFT model belongs to the adapter, not to the base model."""
    return factor_of(name) is not None


class SharingMode:
    """What travels in which round.  Everything else of the adapter is frozen.

    In each round the server steps on the mean of what travels, by its optimiser: with ``sgd`` and
    learning rate 1 the new value is exactly that mean.  What is trained in full (``whole``: a head,
    an inserted module) travels in every round of every mode, and its mean is exact.

    Attributes:
        name: in the run file.
        turns: the factors that travel in round 1, 2, ...; then again from the first.
        kept: factors that each client trains too and keeps.  They never travel.
        refactored: whether the server writes A and B of the sum anew between rounds.
        exact: whether the mean of what travels is the mean of the clients' effective weights
            ``B A`` (``B R A``): then noise on it is not multiplied by noise either.
        approximated: in words, what is not exact; empty where nothing is.
    """

    name: ClassVar[str]
    turns: ClassVar[tuple[frozenset[Factor], ...]]
    kept: ClassVar[frozenset[Factor]] = frozenset()
    refactored: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    approximated: ClassVar[str] = ""

    @classmethod
    def turn(cls, number: int) -> int:
        """Which of the turns round ``number`` >= 1 is, from 0."""
        return (number - 1) % len(cls.turns)


class FFA(SharingMode):
    """FFA-LoRA: B travels, A is frozen and the same for all.

    mean(B_i) A = mean(B_i A).

    Source: Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning"
    (2403.12313), section 3.
    """

    name = "ffa"
    turns = (frozenset({"B", "whole"}),)


class RoLoRA(SharingMode):
    """RoLoRA: B travels in odd rounds and A in even ones, the other frozen and the same for all.

    Within a round the mean is exact: mean(B_i) A = mean(B_i A), B mean(A_i) = mean(B A_i).  B comes
    first because the gradient of A is zero where B = 0.  (That alternation is the paper's; that B
    has the odd rounds was found in others' code, not in the paper's own text.)

    Source: Chen et al. 2025, "Robust Federated Finetuning of LLMs via Alternating Optimization of
    LoRA" (2502.01755).
    """

    name = "rolora"
    turns = (frozenset({"B", "whole"}), frozenset({"A", "whole"}))


class FedSA(SharingMode):
    """FedSA-LoRA: clients train A and B; A travels, each client keeps its own B.

    B is a personal part: client i goes on with B_i mean(A), and there is no common B.  It is state
    of one client from round to round, made from its data without noise.  So the mode is refused
    where one *example* or *user* is protected by noise in the sum: its B would change the gradients
    of all its other examples, and the sum would move by more than one clip norm.

    Source: Guo et al. 2025, "Selective Aggregation for Low-Rank Adaptation in Federated Learning"
    (FedSA-LoRA, ICLR 2025).
    """

    name = "fedsa"
    turns = (frozenset({"A", "whole"}),)
    kept = frozenset({"B"})
    exact = False
    approximated = (
        "the mean of A is exact, but no common update is formed: client i goes on with "
        "B_i mean(A), where the mean of the effective weights is mean(B_j A_j)"
    )


class FedIT(SharingMode):
    """FedIT: A and B both travel, each is averaged by itself.

    mean(B_i) mean(A_i) is not mean(B_i A_i), and noise on A is multiplied by noise on B.

    Source: Zhang et al. 2023, "Towards Building the Federated GPT: Federated Instruction Tuning"
    (2305.05644).
    """

    name = "fedit"
    turns = (frozenset({"A", "B", "whole"}),)
    exact = False
    approximated = "mean(B) mean(A) stands for mean(B A), and noise on A is multiplied by that on B"


class FedSB(SharingMode):
    """Fed-SB: R of shape ``[r, r]`` between a frozen B and a frozen A travels.

    B mean(R_i) A = mean(B R_i A), whatever the number of clients, and r^2 values a layer.

    LoRA-SB makes A, B and R from the singular vectors of a first full fine-tuning step's gradient.
    That depends on the data and would have to be charged.  Here A and B are the singular vectors of
    the frozen base weight that belong to its largest singular values, as in LoRA-XS, and R = 0:
    public, and the adapter changes nothing at first.

    Source: Singhal et al. 2025, "Fed-SB" (2502.15436); Ponkshe et al. 2024, LoRA-SB (2411.19557);
    Balazy et al. 2024, LoRA-XS (2405.17604).
    """

    name = "fedsb"
    turns = (frozenset({"core", "whole"}),)


class FedSVD(SharingMode):
    """FedSVD: rounds as in FFA-LoRA, and the server re-factors B A after each.

    With B A = U S V^T the new B is U S and the new A is V^T, which clients get and check by the
    hash of the adapter.  The product does not change, and what is computed from opened sums costs
    no privacy.  A's rows stay orthonormal.

    The rows of B A lie in the span of A's rows, so the new A has that span too: where A's rows are
    orthonormal from the start, as here, re-factoring is a rotation inside it.  It changes what an
    optimiser does that works coordinate by coordinate, and nothing else (a test shows both).

    Source: Lee et al. 2025, "FedSVD: Adaptive Orthogonalization for Private Federated Learning with
    LoRA" (2505.12805).
    """

    name = "fedsvd"
    turns = (frozenset({"B", "whole"}),)
    refactored = True


MODES: dict[str, type[SharingMode]] = {
    mode.name: mode for mode in (FFA, RoLoRA, FedSA, FedIT, FedSB, FedSVD)
}


def sharing_mode(name: str) -> type[SharingMode]:
    """The mode of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in MODES:
        raise ConfigError(
            f"lora.sharing = {name!r}; allowed: {', '.join(map(repr, SHARING_MODES))}"
        )
    return MODES[name]


@dataclass(frozen=True)
class Division:
    """A model's adapter in one round.

    Attributes:
        travelling: parameters whose change is sent, sorted by name.
        kept: parameters that a client trains and keeps, sorted by name.
        frozen: the adapter's others.
    """

    travelling: dict[str, nn.Parameter]
    kept: dict[str, nn.Parameter]
    frozen: dict[str, nn.Parameter]


def divide(model: nn.Module, mode: type[SharingMode], number: int) -> Division:
    """Choose what travels in round ``number``, and let nothing train but that and what is kept.

    This sets ``requires_grad`` itself because loading an adapter with ``is_trainable=True`` thaws
    all of it.

    Raises:
        ConfigError: the model lacks a factor that the mode shares, or a parameter that trains has
            another name too: of one that must stay, or of one that trains as well.

    Guarantees:
        - Afterwards exactly ``travelling`` and ``kept`` have ``requires_grad``.
    """
    wanted = mode.turns[mode.turn(number)]
    # A tied weight appears under each of its names, or a frozen twin would escape the check below.
    every = dict(sorted(model.named_parameters(remove_duplicate=False)))
    factors = {name: factor_of(name) for name in every}
    has = set(factors.values()) - {None}
    missing = sorted((wanted | mode.kept) - {"whole"} - has)
    if missing and has != {"whole"}:  # inserted modules alone travel whole
        raise ConfigError(
            f"model: no parameter is a {' or '.join(missing)} of LoRA (lora_A, lora_B); it has no "
            f"LoRA adapter that could train under lora.sharing = {mode.name!r}"
        )
    division = Division(
        travelling={name: p for name, p in every.items() if factors[name] in wanted},
        kept={name: p for name, p in every.items() if factors[name] in mode.kept},
        frozen={
            name: p
            for name, p in every.items()
            if factors[name] is not None and factors[name] not in wanted | mode.kept
        },
    )
    trained = division.travelling | division.kept
    _check_one_name(trained)
    for parameter in every.values():
        parameter.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    thawed = sorted(n for n, p in every.items() if p.requires_grad and n not in trained)
    if thawed:
        for parameter in trained.values():
            parameter.requires_grad_(False)
        raise ConfigError(
            f"model: {', '.join(thawed)} shares its storage with a parameter that travels, and "
            f"must stay frozen under lora.sharing = {mode.name!r}"
        )
    return division


def _check_one_name(trained: Mapping[str, nn.Parameter]) -> None:
    """Its change would be sent, clipped and noised once for each name, and one of them kept."""
    first: dict[nn.Parameter, str] = {}
    for name, parameter in trained.items():
        if first.setdefault(parameter, name) != name:
            raise ConfigError(
                f"model: {first[parameter]} and {name} are one parameter, of a layer that is used "
                "under two names; what trains must have one"
            )


def travelling_parameters(
    model: nn.Module, sharing: str, number: int = 1
) -> dict[str, nn.Parameter]:
    """The parameters that travel in round ``number``, as :func:`divide` chooses them.

    Args:
        model: a PEFT model with a LoRA adapter.
        sharing: one of :data:`securefed.config.SHARING_MODES`.
        number: of the round, >= 1.

    Returns:
        Name to parameter, sorted by name.

    Raises:
        ConfigError: ``sharing`` is unknown, or as :func:`divide`.
    """
    return divide(model, sharing_mode(sharing), number).travelling
