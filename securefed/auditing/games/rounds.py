"""Sums of several rounds with the same victim in them, which differ in who else is inside.

None of the sums is refused by itself: each is one that the protocol opens.  What clients have
against several of them is noise that is drawn anew, and an account that charges every attempt, a
retry too, before a masked input leaves, and ends at its owner's limit.  In the games updates do not
change from round to round, as where a model has nearly converged.  With the account removed a game
is played with the policy ``without``: no noise by default.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from securefed.attacks import views
from securefed.attacks.malicious.disaggregation import disaggregated, weights
from securefed.auditing.games.parties import BARE, NOISED, Parties, drive
from securefed.auditing.games.results import GameResult, one_trial
from securefed.errors import BudgetExceeded, ConfigError, SecureFedError
from securefed.evidence.budget import ClientBudget
from securefed.federation.account import open_account
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregator import AggregationClient

SO = "So et al. 2023 (2106.03328)"
_MOST_ROUNDS = 60


@dataclass(frozen=True)
class Attempt:
    """One round that the server asks for.

    Attributes:
        cohort: whom it invites.
        lost: whose masked input it says that it never got.
    """

    cohort: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the sum."""
        return tuple(name for name in self.cohort if name not in self.lost)


def retry(
    parties: Parties, seed: int, *, weakened: bool, without: PrivacyPolicy = BARE
) -> GameResult:
    """A round is opened, said to have failed, and tried again without the victim.

    As it is, every client's account has a limit of one round; without a limit the retry is charged
    and carries fresh noise.  The checks removed: no account and no noise.
    """
    attempts = [Attempt(parties.names), Attempt(parties.names, (parties.victim,))]
    return _played("retry", parties, seed, attempts, parties.names, weakened, without)


def same_victim(
    parties: Parties, seed: int, *, weakened: bool, without: PrivacyPolicy = BARE
) -> GameResult:
    """The victim is in every sum, and each time the server loses the input of another client.

    With n clients, n sums: s of all, and s_k without the k-th other client; the victim's update is
    sum_k s_k - (n - 2) s.  As it is, the victim's account has a limit of one round.
    """
    others = parties.names[1:]
    attempts = [Attempt(parties.names), *(Attempt(parties.names, (name,)) for name in others)]
    return _played("same-victim", parties, seed, attempts, [parties.victim], weakened, without)


def random_cohorts(
    parties: Parties, seed: int, *, weakened: bool, without: PrivacyPolicy = BARE
) -> GameResult:
    """Cohorts of all but one client, at random, until the victim's update follows from the sums.

    As it is, the victim's account has a limit of one round.
    """
    rng = np.random.default_rng([seed, 3])
    attempts: list[Attempt] = []
    while not attempts or parties.victim not in weights([each.survivors for each in attempts]):
        if len(attempts) == _MOST_ROUNDS:
            raise ConfigError(f"seed = {seed}: {_MOST_ROUNDS} random cohorts determine nothing")
        left_out = parties.names[int(rng.integers(len(parties.names)))]
        attempts.append(Attempt(tuple(name for name in parties.names if name != left_out)))
    return _played("random-cohorts", parties, seed, attempts, [parties.victim], weakened, without)


Charges = Callable[[str, RoundSession], Callable[[], None] | None]
"""What charges a client for a round, by the client's name; None for one without an account."""


@contextmanager
def accounts(careful: Collection[str]) -> Iterator[Charges]:
    """Accounts of these clients that allow one round each, of the kind that comes first."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opened: dict[str, ClientBudget] = {}

        def charge_of(name: str, session: RoundSession) -> Callable[[], None] | None:
            if name not in careful:
                return None
            if name not in opened:
                path = Path(folder) / f"{len(opened)}.jsonl"
                limit = session.guarantee(rounds=1).epsilon
                opened[name] = open_account(path, session, name, limit=limit)
                stack.callback(opened[name].close)
            return lambda: opened[name].charge(session.event())

        yield charge_of


def charged_round(
    parties: Parties,
    session: RoundSession,
    updates: Mapping[str, NDArray[np.float32]],
    charge_of: Charges,
    lost: Collection[str] = (),
) -> tuple[views.OpenedSum | None, SecureFedError | None]:
    """The sum of a round, or None where a client refused to be charged, and its refusal.

    Args:
        parties: of the game.
        session: of the round.
        updates: of its cohort.
        charge_of: of :func:`accounts`.
        lost: clients whose masked input the server throws away.
    """
    clients: dict[str, AggregationClient] = {
        name: parties.client(name, session, updates[name], charge=charge_of(name, session))
        for name in session.cohort
    }
    server = ServerRound(session)
    course = drive(server, clients, lost=lost)
    broke = [error for error in course.refused.values() if isinstance(error, BudgetExceeded)]
    if broke or course.ended is not None:
        return None, broke[0] if broke else course.ended
    return views.opened_sum(server), None


def _played(
    game: str,
    parties: Parties,
    seed: int,
    attempts: Sequence[Attempt],
    careful: Collection[str],
    weakened: bool,
    without: PrivacyPolicy,
) -> GameResult:
    """Ask for these sums, and solve for the victim's update.

    ``careful`` clients have an account that allows one round.
    """
    policy = without if weakened else NOISED
    noised = policy.mechanism != "none"
    updates, opened = parties.updates(), list[views.OpenedSum]()
    refusal: SecureFedError | None = None
    session = parties.session(policy=policy)
    with accounts(() if weakened else careful) as charge_of:
        for number, attempt in enumerate(attempts, start=1):
            session = parties.session(policy=policy, cohort=attempt.cohort, number=number)
            found, refusal = charged_round(parties, session, updates, charge_of, attempt.lost)
            if found is None:
                break
            opened.append(found)
    read = 0.0, 0.0
    solved = disaggregated(views.sums_over_rounds(opened))
    if parties.victim in solved:
        read = parties.read(solved[parties.victim], session)
    figures = {
        "clients": float(len(parties.names)),
        "sums_wanted": float(len(attempts)),
        "sums_opened": float(len(opened)),
    }
    if noised:
        weight = weights([attempt.survivors for attempt in attempts])[parties.victim]
        figures |= {
            "epsilon_of_one": session.guarantee(rounds=1).epsilon,
            "epsilon_of_all": session.guarantee(rounds=len(attempts)).epsilon,
            # What would be left in the estimate had all sums been opened.
            "noise_multiplier_of_estimate": policy.noise_multiplier * float(np.linalg.norm(weight)),
        }
    return one_trial(
        game,
        source=SO,
        removed="account" if noised else "account and noise",
        weakened=weakened,
        seed=seed,
        refusal=refusal,
        read=read,
        figures=figures,
    )
