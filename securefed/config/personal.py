"""The section of personal adapters: what each client trains for itself and never sends."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from securefed.config.base import NonNegative, Positive, Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class PersonalSection(Section):
    """An adapter of each client's own beside the shared one; nothing of it is sent.

    ``kind = "adapter"``: after the last round each client goes on from the shared adapter (with
    ``sharing = "fedsa"`` from its own B and the shared A) for ``steps`` AdamW steps on its own
    training data.  ``trains``: the factors that the run trains in any of its rounds, or ``all`` of
    the adapter.  ``pull`` adds (pull / 2) |v - w|^2 to the loss, w the shared adapter and v the
    personal one (the proximal term of Ditto, 2012.04221).  No noise is added, whatever
    ``privacy.mechanism``: who is handed a personal adapter is handed what it tells of the data.

    The adapter in use is (1 - a) w + a v (the interpolation of APFL, 2003.13461), coordinate by
    coordinate.  ``mix`` is that a, or ``choose``: the client cuts ``validation_fraction`` off its
    own training data (whole users where there are two), trains on the rest and takes the one of
    ``choices`` with the least validation loss, if that is lower than the shared adapter's by more
    than ``margin`` standard errors of the paired difference; else a = 0, the shared adapter.  With
    ``refit`` a client that takes a > 0 trains v again on all of its training data.

    ``measured``: whether held-out figures of the adapters in use are told besides those of the
    shared one.  They are made from training data without noise, so that no epsilon of the run
    covers their exact sum (``evaluation.figures``); histograms have an epsilon of their own.
    """

    kind: Literal["none", "adapter"] = "none"
    trains: Literal["shared", "all"] = "shared"
    steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 16
    learning_rate: Positive = 1e-3
    pull: NonNegative = 0.0
    mix: Literal["choose"] | Share = "choose"
    choices: list[Share] = Field(default=[0.0, 0.25, 0.5, 0.75, 1.0], min_length=1, max_length=64)
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    margin: NonNegative = 1.0
    refit: bool = True
    measured: bool = True

    @model_validator(mode="after")
    def _nothing_is_without_effect(self) -> Self:
        fields = type(self).model_fields
        given = {n for n, field in fields.items() if getattr(self, n) != field.default} - {"kind"}
        of_choosing = {"choices", "validation_fraction", "margin", "refit"}
        for wanted, unused, why in (
            (self.kind == "adapter", given, "kind = 'none'"),
            (self.mix == "choose", given & of_choosing, f"mix = {self.mix!r}"),
        ):
            if not wanted and unused:
                name = min(unused)
                raise ValueError(
                    f"{name} = {getattr(self, name)!r} with {why}: it has no effect there; leave "
                    "it out, or use "
                    + ("kind = 'adapter'" if self.kind == "none" else "mix = 'choose'")
                )
        if max(self.choices) == 0.0:
            raise ValueError("choices: at least one must be > 0, or nothing could be chosen")
        return self

    @property
    def told(self) -> bool:
        """Whether held-out figures of personal adapters are measured at the end of a run."""
        return self.kind != "none" and self.measured
