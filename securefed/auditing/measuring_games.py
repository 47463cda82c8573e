"""Games of a hostile server, played on a run's own model."""

from __future__ import annotations

from dataclasses import replace

from securefed.attacks.base import Limits
from securefed.auditing.cells import OFF, Cell, NotApplicable
from securefed.auditing.entries import Clock, Column, Finding, Measure
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.games import PLANTED, GameResult, play, together
from securefed.auditing.rounds import Bench
from securefed.errors import ConfigError
from securefed.evidence.results import Metric

AS_IT_IS: Column = ("game", "protocol")
WEAKENED: Column = ("game", OFF)
"""With the check removed that the game is about: there the server must read the victim's text."""

_CLIENTS = 4


def game(name: str) -> Measure:
    """Trials of one game."""

    def measure(run: AuditedRun, cell: Cell, limits: Limits, clock: Clock) -> Finding:
        bench, found = _bench(run, name), list[GameResult]()
        for seed in cell.seeds:
            if clock.over:
                break
            try:
                played = play(name, bench, seed, weakened=cell.defence == OFF, texts=run.texts)
            except ConfigError as error:
                raise NotApplicable(str(error)) from None
            found.append(played)
            clock.trial(len(found), len(cell.seeds))
        if not found:
            return Finding.none("out_of_time", "no trial fitted the time")
        result = together(found)
        low, high = result.interval
        several = result.trials > 1
        recovered = Metric(
            value=result.recovered,
            interval=(low, high) if several else None,
            prior=result.control,
            lift=result.recovered - result.control,
            lift_interval=(low - result.control, high - result.control) if several else None,
        )
        refusal = result.refused_by
        return Finding(
            metrics={
                "victim_tokens_read": recovered,
                "refused": Metric(value=result.refused / result.trials),
            },
            headline="victim_tokens_read",
            seeds=result.seeds,
            n=result.trials,
            reason="nobody refused" if refusal is None else f"refused: {refusal.error}",
        )

    return measure


def _bench(run: AuditedRun, name: str) -> Bench:
    """Rounds of the run's model in which an update tells its text; games bring their own policy.

    For planted models it is the run's own adapter: planting needs no more than it has.
    """
    if run.config.model.quantize != "none":
        raise NotApplicable("games are played on weights that are not quantised")
    own = run.setup(1, _CLIENTS)
    plain = replace(own, local_steps=1, learning_rate=1.0, optimizer="sgd", warm=0.02)
    if name in PLANTED:
        return run.fresh(replace(plain, sharing="ffa", turn=1, warm=0.0))
    longest = max(map(len, run.texts))
    return run.fresh(replace(plain, rank=2 * longest, sharing="ffa", turn=1))
