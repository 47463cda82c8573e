"""What came of a game: who refused, and how much of the victim's text the server read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType

import numpy as np

from securefed.attacks.results import Interval, bootstrap, clopper_pearson
from securefed.errors import ConfigError, SecureFedError

AS_IT_IS = "as it is"
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Refusal:
    """An honest party's error, which ended the attack for it.

    Attributes:
        error: name of the error's class.
        message: its text: the field, its value and what is allowed.
    """

    error: str
    message: str

    @classmethod
    def of(cls, error: SecureFedError | None) -> Refusal | None:
        """None for None."""
        return None if error is None else cls(type(error).__name__, str(error))


@dataclass(frozen=True, kw_only=True)
class GameResult:
    """One way to lie, played a number of times against one protocol.

    Attributes:
        game: its name.
        source: the publication that the attack is from.
        protocol: ``"as it is"``, or ``"check removed: "`` and which.
        refused_by: the first trial's refusal by an honest client; None where nobody refused.
        refused: how many trials were refused.
        recovered: mean over the trials of the share of the victim's tokens that the server read
            from what was opened to it, in [0, 1]; 0 where nothing was opened.
        interval: of that mean, 95 %: Clopper and Pearson where each trial is 0 or 1, else a
            bootstrap over trials; of one trial it is that trial's value.
        control: the same share for a text that nobody trained on.
        trials: how many.
        seeds: of the trials.
        figures: means over the trials of what else was measured, by name.
    """

    game: str
    source: str
    protocol: str
    refused_by: Refusal | None
    refused: int
    recovered: float
    interval: Interval
    control: float
    trials: int
    seeds: tuple[int, ...]
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def as_json(self) -> dict[str, object]:
        """Figures and error texts, no token; a figure that is infinite becomes None."""
        finite = {k: v if math.isfinite(v) else None for k, v in self.figures.items()}
        return asdict(replace(self, figures={})) | {"figures": finite}


def one_trial(
    game: str,
    *,
    source: str,
    removed: str,
    weakened: bool,
    seed: int,
    refusal: SecureFedError | None,
    read: tuple[float, float],
    figures: Mapping[str, float],
) -> GameResult:
    """The result of a single trial.

    Args:
        game: its name.
        source: of the attack.
        removed: the check that is removed where the protocol is weakened.
        weakened: whether it is.
        seed: of the trial.
        refusal: an honest client's error.
        read: the share of the victim's tokens that were read, and that of the control's.
        figures: what else was measured.
    """
    recovered, control = read
    return GameResult(
        game=game,
        source=source,
        protocol=f"check removed: {removed}" if weakened else AS_IT_IS,
        refused_by=Refusal.of(refusal),
        refused=int(refusal is not None),
        recovered=recovered,
        interval=(recovered, recovered),
        control=control,
        trials=1,
        seeds=(seed,),
        figures=figures,
    )


def together(results: Sequence[GameResult]) -> GameResult:
    """Trials of one game against one protocol, as one result.

    Raises:
        ConfigError: there is none, or they are of different games or protocols.
    """
    kinds = {(result.game, result.protocol) for result in results}
    if len(kinds) != 1:
        raise ConfigError(f"results: of {len(kinds)} games or protocols; one is allowed")
    values = np.array([result.recovered for result in results])
    if len(values) == 1:
        interval = results[0].interval
    elif np.isin(values, (0.0, 1.0)).all():
        interval = clopper_pearson(int(values.sum()), len(values), _CONFIDENCE)
    else:
        interval = bootstrap(values, _CONFIDENCE, 0)
    refusals = [result.refused_by for result in results if result.refused_by is not None]
    first = results[0]
    return GameResult(
        game=first.game,
        source=first.source,
        protocol=first.protocol,
        refused_by=refusals[0] if refusals else None,
        refused=sum(result.refused for result in results),
        recovered=float(values.mean()),
        interval=interval,
        control=float(np.mean([result.control for result in results])),
        trials=sum(result.trials for result in results),
        seeds=tuple(seed for result in results for seed in result.seeds),
        figures={
            name: float(np.mean([result.figures[name] for result in results]))
            for name in first.figures
        },
    )
