"""The section of the adapter: what is built, and what of it travels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from securefed.config.base import Positive, Section
from securefed.config.privacy import PrivacySection

AdapterKind = Literal["lora", "ia3", "prompt", "bottleneck"]
Sharing = Literal["ffa", "rolora", "fedsa", "fedit", "fedsb", "fedsvd"]
SHARING_MODES: tuple[Sharing, ...] = get_args(Sharing)

REFUSED_MODES: dict[str, str] = {
    "flora": "it stacks the clients' own A and B, so the server must hold each of them",
    "flexlora": "it multiplies each client's own B and A before it adds them up",
    "fedex-lora": "its residual is mean(B A) - mean(B) mean(A), and mean(B A) needs each client's "
    "own B and A (or a sum of full-size products, which undoes the saving)",
    "hetlora": "it weighs each client's update by that update's own norm",
    "top-k": "which entries a client keeps depends on its data and would travel in the clear, or "
    "the sum holds the union of them",
}
"""Methods that need individual updates, and why a secure sum cannot give them that."""


class LoraSection(Section):
    """The adapter, and what of it travels (``securefed.lora.sharing`` says it exactly).

    ``kind``: ``"lora"``, or one or several of ``"lora"``, ``"ia3"`` (2205.05638; by default on the
    outputs of ``k_proj`` and ``v_proj`` and the input of ``down_proj``), ``"prompt"`` (2104.08691;
    causal language models) and ``"bottleneck"`` (1902.00751; by default behind ``o_proj`` and
    ``down_proj``).  Modules beside LoRA travel whole in every round of every mode; without LoRA
    nothing else does, and ``sharing`` is left out.

    ``sharing``: ``ffa``: B travels, A is made once and frozen (2403.12313).  ``rolora``: B in odd
    rounds, A in even ones (2502.01755).  ``fedsa``: A travels, every client keeps a B of its own.
    ``fedit``: both, each averaged by itself, which is inexact (2305.05644).  ``fedsb``: an r x r
    matrix between a frozen B and A (2502.15436).  ``fedsvd``: as ``ffa``, and the server re-factors
    B A between rounds (2505.12805).  ``modules_to_save`` travel in every round of every mode.
    """

    kind: AdapterKind | Annotated[list[AdapterKind], Field(min_length=1)] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 4
    alpha: Positive = 8.0
    target_modules: list[str] = Field(default=["v_proj"], min_length=1)
    modules_to_save: list[str] = Field(default=[])
    sharing: Sharing = "ffa"
    ia3_modules: list[str] | None = None
    ia3_feedforward_modules: list[str] | None = None
    prompt_tokens: Annotated[int, Field(ge=1, le=1024)] | None = None
    bottleneck_modules: Annotated[list[str], Field(min_length=1)] | None = None
    bottleneck_width: Annotated[int, Field(ge=1, le=4096)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 20260101

    @field_validator("sharing", mode="before")
    @classmethod
    def _can_be_summed(cls, value: Any) -> Any:
        for name, why in REFUSED_MODES.items():
            if isinstance(value, str) and _plain(value) == _plain(name):
                raise ValueError(
                    f"{value!r} needs individual updates, which a secure sum does not open: {why}; "
                    f"allowed: {', '.join(map(repr, SHARING_MODES))}"
                )
        return value

    @property
    def kinds(self) -> tuple[AdapterKind, ...]:
        """``kind`` as a list always."""
        return (self.kind,) if isinstance(self.kind, str) else tuple(self.kind)

    @model_validator(mode="after")
    def _kinds_fit(self) -> Self:
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"kind = {list(self.kinds)}: each may be named once")
        if "lora" not in self.kinds and (self.sharing != "ffa" or self.modules_to_save):
            raise ValueError(
                f"kind = {self.kind!r} without 'lora': lora.sharing divides LoRA's factors, and "
                "lora.modules_to_save goes with its layers; leave both out, or add 'lora'"
            )
        for field in type(self).model_fields:
            kind = field.partition("_")[0]
            if (
                kind in get_args(AdapterKind)
                and kind not in self.kinds
                and getattr(self, field) is not None
            ):
                raise ValueError(
                    f"{field} = {getattr(self, field)!r} with kind = {self.kind!r}: it is of "
                    f"{kind!r} alone; add that to kind, or leave it out"
                )
        return self


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def why_not_shared(lora: LoraSection, privacy: PrivacySection) -> str | None:
    """Why ``lora.sharing`` cannot be had under these privacy settings, or None.

    ``fedsa``: client i's B is made from its examples without noise and kept.  With neighbours that
    differ in one example of client i, in a later round the gradients of *all* its examples differ,
    since they are taken at another B: the clipped sum moves by up to 2 C a drawn example, not by C.
    Under ``unit = "client"`` all of a client's vector is the unit, whatever its state.  Under
    ``mechanism = "local"`` B itself comes out of DP-SGD, clipped and noised with A.
    """
    if lora.sharing == "fedsa" and privacy.unit != "client" and privacy.mechanism != "local":
        return (
            f"lora.sharing = 'fedsa' with privacy.unit = {privacy.unit!r}, privacy.mechanism = "
            f"{privacy.mechanism!r}: each client keeps a B made from its data, so that what was "
            "drawn once moves all its later gradients, and clipping each "
            f"{privacy.unit} by itself bounds nothing; use privacy.unit = 'client', or mechanism = "
            "'local'"
        )
    if lora.sharing in ("rolora", "fedsvd") and privacy.sampling == "cyclic":
        return (
            f"lora.sharing = {lora.sharing!r} with privacy.sampling = 'cyclic': noise that is to "
            "cancel between rounds must meet the same coordinates in them, and what travels (or "
            "its basis) changes from round to round; use 'ffa', 'fedit' or 'fedsb'"
        )
    return None
