"""The pilot file: which trials answer the question whether to go on, and at whose prices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from securefed.config.base import NonNegative, Positive, Section
from securefed.config.lora import Sharing

Rank = Annotated[int, Field(ge=1, le=1024)]
Bits = Annotated[int, Field(ge=20, le=32)]


class PilotDataSection(Section):
    """Whether anybody may see the pilot's data.

    ``public``: trials without noise, full fine-tuning, pooled training and each client's own
    figures are all allowed, and nothing is charged.  Otherwise only trials with noise are run, and
    each is charged to ``budget.epsilon`` before it begins.
    """

    public: bool = False


class PilotBudgetSection(Section):
    """What all trials on private data may spend together.

    It is against the adversary that runs account for.  Trials are added up by basic composition:
    epsilons and deltas are summed, those of noised histograms of held-out figures too.
    """

    epsilon: Positive | None = None


class SweepSection(Section):
    """Values to try besides the run file's own, one key at a time.

    ``rank``: of the adapter, its alpha in proportion.  ``sharing``: what travels.  ``bits``: of the
    ring.  ``epsilon``: as ``privacy.target_epsilon``.  ``aggregation``: how the sum is hidden.
    """

    rank: list[Rank] = Field(default=[])
    sharing: list[Sharing] = Field(default=[])
    bits: list[Bits] = Field(default=[])
    epsilon: list[Positive] = Field(default=[])
    aggregation: list[Literal["pairwise", "bfv", "ckks"]] = Field(default=[])

    @model_validator(mode="after")
    def _no_value_twice(self) -> Self:
        for key in type(self).model_fields:
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} = {values}: each value may be named once")
        return self


class BaselineSection(Section):
    """What the run is compared with, on the same data, clients and rounds; public data only.

    ``full``: all parameters of the model are trained and sent, without protection, with
    ``full_learning_rates`` tried in turn and the best kept, by the held-out figure: in its favour.
    ``pooled``: one party holds all data.  ``local``: each client trains alone.
    ``protections``: the run without any protection, then with each one alone.
    """

    full: bool = True
    full_learning_rates: list[Positive] = Field(default=[1e-4], min_length=1)
    pooled: bool = True
    local: bool = True
    protections: bool = True


class PriceSection(Section):
    """The user's own prices.

    ``per_gb`` is of 10^9 bytes, sent or received by a client.  ``per_device_hour`` is of an hour of
    a client's CPU time, ``per_server_hour`` of the server's.
    """

    currency: Annotated[str, Field(min_length=1, max_length=8)] = "EUR"
    per_gb: NonNegative = 0.0
    per_device_hour: NonNegative = 0.0
    per_server_hour: NonNegative = 0.0


class ProjectionSection(Section):
    """What the figures are projected to: ``clients`` clients over ``rounds`` rounds."""

    clients: Annotated[int, Field(ge=2, le=10**7)] = 1000
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 100


class DecisionSection(Section):
    """What the customer asks for before it goes on.  What is not given is not asked.

    ``least_improvement``: of the held-out figure over the untrained model, relative for perplexity
    (0.1: it falls by a tenth) and in points of a share for accuracy (0.1: ten points).
    ``share_of_full``: of what full fine-tuning gains.  ``beats_local``: better than clients alone;
    where it is not given it is asked on public data only, since clients alone are not tried on
    other data.  ``epsilon``: at most.  The rest are upper bounds for one client and round, and for
    the whole projection in the customer's currency.  ``decides`` names the role that decides.
    """

    least_improvement: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    share_of_full: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    beats_local: bool | None = None
    epsilon: Positive | None = None
    megabytes_per_round: Positive | None = None
    client_seconds_per_round: Positive | None = None
    memory_gib: Positive | None = None
    cost: Positive | None = None
    decides: Annotated[str, Field(min_length=1, max_length=200)] = "the data-protection officer"


class PilotConfig(Section):
    """A whole pilot file.

    ``run`` is the run file that is asked about, beside this file.  ``minutes`` bounds the trials:
    one that would not end in time, by those before it, is left out and named.  ``seeds`` repeats
    every trial with other seeds of the adapter; a single one shows no spread, and the page says so.
    ``language`` is that of the page.
    """

    run: Path
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")] = "pilot"
    minutes: Positive = 30.0
    seeds: Annotated[int, Field(ge=1, le=20)] = 1
    language: Literal["en", "ja"] = "en"
    data: PilotDataSection = PilotDataSection()
    budget: PilotBudgetSection = PilotBudgetSection()
    sweep: SweepSection = SweepSection()
    baselines: BaselineSection = BaselineSection()
    prices: PriceSection = PriceSection()
    projection: ProjectionSection = ProjectionSection()
    decision: DecisionSection = DecisionSection()

    @property
    def asks_to_beat_local(self) -> bool:
        """Whether a trial must be better than each client alone."""
        asked = self.decision.beats_local
        return self.data.public and self.baselines.local if asked is None else asked

    @model_validator(mode="after")
    def _data_is_public_or_paid_for(self) -> Self:
        if self.data.public == (self.budget.epsilon is not None):
            raise ValueError(
                f"budget.epsilon = {self.budget.epsilon} with data.public = "
                f"{str(self.data.public).lower()}: "
                + (
                    "nothing is charged on public data; leave it out"
                    if self.data.public
                    else "every trial is charged to it, so give it, unless data.public = true "
                    "says that anybody may see the data"
                )
            )
        return self
