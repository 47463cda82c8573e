"""Conformance games: a hostile server against the protocol, and against it without one check.

Each game is played twice.  Against the protocol as it is, an honest client refuses by name, or what
the server gets is bounded by noise that an account charges.  Against the protocol with that check
removed, by a subclass or a session's parameters said in the game, the same server reads the
victim's text.  A game whose second half fails shows nothing about the first.

==================  ==============================================  ============================
game                the server                                      the check
==================  ==============================================  ============================
``planted-model``   hands out weights that imprint tokens           ``model.fingerprint``
``watched-token``   plants a question about one token               none; noise is left
``watched-rounds``  asks it of the same text in a hundred rounds    account
``pasquini``        gives all but the victim an adapter of zeros    the model's hash in the
                                                                    context
``small-cohort``    invites the victim with one client of its own   ``min_clients``
``sybils``          owns everybody but the victim                   none; noise is left
``same-victim``     opens sums that differ by one other client      account, noise
``random-cohorts``  solves random sums for single updates           account, noise
``retry``           opens a round, and again without the victim     account, noise
``two-lists``       opens the sum with and without the victim       one answer an attempt
==================  ==============================================  ============================

Games with whole rounds of messages replayed or forged, and with no model in them, are tests of
``secagg``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from securefed.auditing.games.cohorts import small_cohort, sybils
from securefed.auditing.games.lists import two_lists
from securefed.auditing.games.models import pasquini
from securefed.auditing.games.parties import Parties, Text
from securefed.auditing.games.planted import planted_model, watched_rounds, watched_token
from securefed.auditing.games.results import AS_IT_IS, GameResult, Refusal, together
from securefed.auditing.games.rounds import random_cohorts, retry, same_victim
from securefed.auditing.rounds import Bench
from securefed.errors import ConfigError

__all__ = ["AS_IT_IS", "GAMES", "PLANTED", "GameResult", "Refusal", "play", "together"]


PLANTED = frozenset({"planted-model", "watched-token", "watched-rounds"})
"""Games that plant a base model."""
_LEAST = 4


class Game(Protocol):
    """One trial of a game."""

    def __call__(self, parties: Parties, seed: int, *, weakened: bool) -> GameResult:
        """Play it as it is, or with the check removed."""
        ...


GAMES: Mapping[str, Game] = MappingProxyType(
    {
        "planted-model": planted_model,
        "watched-token": watched_token,
        "watched-rounds": watched_rounds,
        "pasquini": pasquini,
        "small-cohort": small_cohort,
        "sybils": sybils,
        "same-victim": same_victim,
        "random-cohorts": random_cohorts,
        "retry": retry,
        "two-lists": two_lists,
    }
)


def play(
    name: str,
    bench: Bench,
    seed: int,
    *,
    weakened: bool,
    texts: Sequence[Text] | None = None,
) -> GameResult:
    """Play one trial of a game.

    Args:
        name: one of ``GAMES``.
        bench: of four clients or more, and a model in a state in which one client's update tells
            its text (:func:`~securefed.attacks.inversion.capacity.predict` says ``"all"``), and the
            sum does not; for those in ``PLANTED`` one whose value layers have LoRA, B travelling
            and 0.  Its policy and aggregation are not used: games bring their own.
        seed: of texts, cohorts and planting.
        weakened: whether the game's check is removed.
        texts: public texts to deal, special tokens included, one a client and one more; random
            tokens where there are none.

    Raises:
        ConfigError: there is no such game, or the bench or the texts do not fit it.
    """
    if name not in GAMES:
        raise ConfigError(f"game = {name!r}; allowed: {', '.join(map(repr, GAMES))}")
    if len(bench.names) < _LEAST:
        raise ConfigError(f"bench: {len(bench.names)} clients; games need at least {_LEAST}")
    return GAMES[name](Parties(bench, seed, texts), seed, weakened=weakened)
