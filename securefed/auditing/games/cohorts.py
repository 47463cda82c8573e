"""Cohorts of the server's own making: too small, or full of its own clients."""

from __future__ import annotations

from securefed.attacks import views
from securefed.attacks.collusion import ColludingClient
from securefed.auditing.games.parties import BARE, NOISED, Parties, drive, encoding
from securefed.auditing.games.results import GameResult, one_trial
from securefed.errors import LocalProtocolError
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.pld import gaussian_epsilon
from securefed.secagg.aggregator import AggregationClient

BOENISCH = "Boenisch et al. 2023 (2301.04017)"


def small_cohort(parties: Parties, seed: int, *, weakened: bool) -> GameResult:
    """The victim is invited with one client, which is the server's.

    As it is, the victim's owner set ``min_clients`` to the size of the roster.  The check removed:
    a client without floors, which takes part wherever the protocol itself allows it.
    """
    cohort = parties.names[:2]
    session = parties.session(policy=BARE, cohort=cohort)
    floors = ClientFloors(min_clients=len(parties.names), mechanisms=("none",))
    refusal, read = None, (0.0, 0.0)
    try:
        read = _without_own(parties, session, None if weakened else floors)
    except LocalProtocolError as error:
        refusal = error
    return one_trial(
        "small-cohort",
        source=BOENISCH,
        removed="min_clients",
        weakened=weakened,
        seed=seed,
        refusal=refusal,
        read=read,
        figures={"clients": float(len(cohort)), "min_clients": float(floors.min_clients)},
    )


def sybils(parties: Parties, seed: int, *, weakened: bool) -> GameResult:
    """Everybody but the victim is the server's: it subtracts what they sent, noise included.

    Nobody refuses, as the roster says that they are clients: what is left to protect the victim is
    its own share of the noise.  That is less than the statement speaks of, which assumes at most
    floor(corrupt_fraction * n) Sybils.  The check removed: no noise.
    """
    session = parties.session(policy=BARE if weakened else NOISED)
    read = _without_own(parties, session, None)
    figures = {"clients": float(len(parties.names)), "sybils": float(len(parties.names) - 1)}
    if not weakened:
        policy, plan = session.policy, session.plan
        assumed = session.context.parameters
        own = policy.noise_multiplier * plan.local_std / plan.honest_std
        figures |= {
            "sybils_assumed": float(assumed.corrupt),
            "epsilon_claimed": session.guarantee().epsilon,
            "noise_multiplier_claimed": policy.noise_multiplier,
            "noise_multiplier_of_own_share": own,
            "epsilon_of_own_share": gaussian_epsilon(own, 1.0, 1, policy.delta),
        }
    return one_trial(
        "sybils",
        source=BOENISCH,
        removed="noise",
        weakened=weakened,
        seed=seed,
        refusal=None,
        read=read,
        figures=figures,
    )


def _without_own(
    parties: Parties, session: RoundSession, floors: ClientFloors | None
) -> tuple[float, float]:
    """A round in which all but the victim are the server's, and what is read from the sum."""
    updates, victim = parties.updates(), parties.victim
    own = {
        name: ColludingClient(session, name, parties.identity(name), encoding(updates[name]))
        for name in session.cohort
        if name != victim
    }
    clients: dict[str, AggregationClient] = dict(own)
    clients[victim] = parties.client(victim, session, updates[victim], floors=floors)
    server = ServerRound(session)
    course = drive(server, clients)
    if course.ended is not None:
        raise course.ended
    learned = [client.learned for client in own.values()]
    return parties.read(views.opened_sum(server).with_colluders(learned, session), session)
