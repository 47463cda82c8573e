"""Every attack that can be asked for by name, and how it is measured on a run."""

from __future__ import annotations

from collections.abc import Callable

from securefed.attacks.adaptive.background import Background
from securefed.attacks.adaptive.likelihood import SparseBayes
from securefed.attacks.base import Attack
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.matching.attack import cosine, dlg, lamp, tag
from securefed.attacks.matching.hybrid import HybridMatching
from securefed.attacks.matching.priors import NGramPrior
from securefed.attacks.membership.alignment import GradientAlignment
from securefed.attacks.membership.base import MembershipAttack
from securefed.attacks.membership.lira import LikelihoodRatio
from securefed.attacks.membership.loss import LossThreshold, ReferenceLoss
from securefed.attacks.membership.rmia import RobustMembership
from securefed.auditing.cells import BOTH, MASKS, NOISE, OFF
from securefed.auditing.entries import Column, Cost, Entry
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.games import GAMES
from securefed.auditing.measuring_epsilon import FAULT, PROMISE, canaries
from securefed.auditing.measuring_games import AS_IT_IS, WEAKENED, game
from securefed.auditing.measuring_membership import on_releases, on_sums
from securefed.auditing.measuring_poisoning import COLUMNS, OBEDIENT, UNBOUNDED, backdoor
from securefed.auditing.measuring_texts import on_texts
from securefed.errors import ConfigError


def _sparse_bayes(run: AuditedRun) -> Attack:
    return SparseBayes(Background(run.background, run.vocabulary, run.special))


def _sparse_bayes_head(run: AuditedRun) -> Attack:
    background = Background(run.background, run.vocabulary, run.special)
    return SparseBayes(background, head=True)


def _lamp(run: AuditedRun) -> Attack:
    return lamp(NGramPrior(run.background, vocabulary=run.vocabulary, special=run.special))


def _texts(
    name: str, what: str, make: Callable[[AuditedRun], Attack], cost: Cost = "full"
) -> Entry:
    return Entry(name, "texts", what, cost, on_texts(make))


_SUMS: tuple[Column, ...] = (("sum", OFF), ("sum", MASKS), ("sum", BOTH))
_RELEASES: tuple[Column, ...] = (("released", OFF), ("released", NOISE))


def _of_sums(make: Callable[[], MembershipAttack], what: str, cost: Cost = "full") -> Entry:
    baseline = {"sum": ("sum", OFF)}
    name = f"{make().name}-on-sum"
    return Entry(name, "membership", what, cost, on_sums(make), _SUMS, _SUMS, baseline)


def _of_releases(
    make: Callable[[], MembershipAttack], what: str, *, shadows: bool = False
) -> Entry:
    measure = on_releases(make, shadows=shadows)
    baseline = {"released": ("released", OFF)}
    return Entry(
        make().name, "membership", what, "full", measure, (), _RELEASES, baseline, sized=False
    )


def _game(name: str) -> Entry:
    what = (GAMES[name].__doc__ or name).partition("\n")[0]
    columns = (WEAKENED, AS_IT_IS)
    return Entry(
        name, "game", what, "full", game(name), columns, columns, {"game": WEAKENED}, sized=False
    )


# In the order in which an audit takes them: what is quick and tells most comes first.
CATALOGUE: dict[str, Entry] = {
    each.name: each
    for each in (
        _texts(
            "span-inversion",
            "exact inversion: span test, sparse decoding and assembly",
            lambda run: SpanInversion(),
            "quick",
        ),
        Entry(
            "canary-epsilon",
            "epsilon",
            "lower bounds on epsilon by canaries, against what is promised",
            "quick",
            canaries,
            (FAULT, PROMISE),
            (FAULT, PROMISE),
            {"canaries": FAULT},
            sized=False,
        ),
        _of_sums(GradientAlignment, "does a sum point the way a record does?", "quick"),
        _texts(
            "span-test",
            "exact inversion by the span test alone",
            lambda run: SpanInversion(sparse=False),
        ),
        _texts(
            "span-inversion-forced",
            "exact inversion that guesses where it would say that it does not apply",
            lambda run: SpanInversion(forced=True),
        ),
        _texts("sparse-bayes", "likeliest tokens under estimated noise", _sparse_bayes, "quick"),
        _texts("sparse-bayes-head", "the same, with the head's gradient", _sparse_bayes_head),
        _texts(
            "hybrid",
            "exact inversion, ordered and completed by gradient matching",
            lambda run: HybridMatching(SpanInversion()),
        ),
        _texts("dlg", "gradient matching by L2 distance", lambda run: dlg()),
        _texts("cosine", "gradient matching by cosine", lambda run: cosine(), "quick"),
        _texts("tag", "gradient matching by L2 and L1 distance", lambda run: tag()),
        _texts(
            "lamp",
            "gradient matching with a prior of language and discrete moves",
            _lamp,
        ),
        _of_sums(
            lambda: GradientAlignment(whitened=True), "the same, by the likelihood ratio of a sum"
        ),
        _of_releases(LossThreshold, "loss under the released adapter"),
        _of_releases(ReferenceLoss, "loss less that before training"),
        _of_releases(LikelihoodRatio, "LiRA with shadow runs", shadows=True),
        _of_releases(RobustMembership, "RMIA with shadow runs", shadows=True),
        Entry(
            "backdoor",
            "poisoning",
            "one client of the cohort plants a trigger by replacing the model",
            "full",
            backdoor,
            (),
            COLUMNS,
            dict.fromkeys((OBEDIENT, UNBOUNDED), COLUMNS[0]),
            sized=False,
        ),
        *(_game(name) for name in GAMES),
    )
}


def entry(name: str) -> Entry:
    """The attack of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CATALOGUE:
        raise ConfigError(f"attack {name!r} is unknown; there are {', '.join(sorted(CATALOGUE))}")
    return CATALOGUE[name]
