"""The section of held-out figures, and how they reach whoever runs the cohort."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from securefed.config.base import Positive, Section


class HistogramSection(Section):
    """Noised histograms over clients in place of sums of held-out figures.

    Each client adds 1 to one of ``bins`` public bins: accuracy in [0, 1] in equal ones, perplexity
    between ``perplexity_range`` in equal ones of its logarithm, what lies beyond in the outermost.
    ``noise_multiplier`` is the std of the honest survivors' summed noise over 1, which is what one
    client changes.  Every histogram spends privacy of the unit "one client", by an account and a
    statement of its own beside the run's, with ``privacy.delta``.  ``epsilon`` bounds what all of a
    run's histograms may spend against the server: those in between are left out first.
    """

    bins: Annotated[int, Field(ge=2, le=64)] = 10
    noise_multiplier: Positive
    perplexity_range: tuple[
        Annotated[float, Field(ge=1.0, le=1e8)], Annotated[float, Field(gt=1.0, le=1e8)]
    ] = (1.0, 1000.0)
    epsilon: Positive | None = None

    @model_validator(mode="after")
    def _range_is_one(self) -> Self:
        low, high = self.perplexity_range
        if low >= high:
            raise ValueError(f"perplexity_range = {[low, high]}: must be two numbers, low < high")
        return self


class EvaluationSection(Section):
    """Held-out figures, measured by each client on its own held-out part.

    ``every``: a round count between evaluations (0: only before the first and after the last
    round).  ``max_windows`` bounds each client's held-out examples, of ``window_tokens`` tokens
    each (default: ``data.window_tokens``).

    ``figures``: ``sum``: the exact sum over the clients that answered, through the same secure sum
    without noise, outside the guarantee.  Two such sums over cohorts that differ by one client show
    its figure.  ``histogram``: ``histogram`` says it; no exact figure of anybody leaves.

    ``show_clients`` lets a simulation, which owns every client, print the worst one and the spread;
    with ``sum`` only.
    """

    every: Annotated[int, Field(ge=0)] = 0
    max_windows: Annotated[int, Field(ge=1)] = 64
    window_tokens: Annotated[int, Field(ge=4, le=8192)] | None = None
    show_clients: bool = False
    figures: Literal["sum", "histogram"] = "sum"
    histogram: HistogramSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_metric_of_one_s_own(cls, values: object) -> object:
        if isinstance(values, Mapping) and {"metric", "metrics"} & set(values):
            raise ValueError(
                "metric: a run sums loss and hits alone, whose bounds are known; a metric of your "
                "own is measured where the documents are, after the run: securefed evaluate RUN "
                "--data FOLDER --metric module:function"
            )
        return values

    @model_validator(mode="after")
    def _figures_are_one_way(self) -> Self:
        if self.figures == "histogram" and self.histogram is None:
            raise ValueError(
                "figures = 'histogram': evaluation.histogram is missing; it must name at least its "
                "noise_multiplier"
            )
        if self.figures == "sum" and self.histogram is not None:
            raise ValueError(
                "histogram with figures = 'sum': it has no effect there; leave it out, or use "
                "figures = 'histogram'"
            )
        if self.figures == "histogram" and self.show_clients:
            raise ValueError(
                "show_clients = true with figures = 'histogram': it would show exact figures of "
                "single clients beside noised ones; use figures = 'sum', in a simulation"
            )
        return self
