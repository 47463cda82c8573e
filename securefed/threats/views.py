"""What each actor sees, in the words of threat models, and which attacks that allows.

An attack is tried on an exposure (``securefed attack --list``).  It is evidence about an actor only
if the actor sees what the exposure shows: an attack on less would make the defence look better than
it is, one on more would refute what nobody claims.  Baselines, with the defence off, are exempt.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

View = Literal[
    "individual-updates",
    "masked-updates",
    "ciphertexts",
    "padded-checks",
    "round-key",
    "opened-sums",
    "aggregate",
    "global-model",
    "released-adapter",
    "personal-adapters",
    "query-only",
    "public-keys",
    "metadata",
    "timing",
    "held-out-figures",
    "histograms",
    "own-data",
    "own-secrets",
    "secrets-of-colluding-clients",
    "recorded-traffic",
    "run-folder",
    "ledger",
    "logs",
    "plan",
    "pilot-page",
    "attack-results",
]
"""``aggregate`` and ``opened-sums`` are the sums that rounds open; ``global-model`` the adapter
after every round, from which sums follow; ``recorded-traffic`` whatever passes between machines."""

Role = Literal[
    "server",
    "client",
    "decryptor",
    "collusion",
    "network",
    "model-user",
    "analyst",
    "owner",
]
Corruption = Literal["honest-but-curious", "malicious", "external"]


@dataclass(frozen=True)
class Needs:
    """What an actor must see, or be, for an exposure to be its own.

    Attributes:
        any_of: one of these views suffices; empty: none is needed.
        all_of: each of these is needed besides.
        malicious: whether the actor must depart from the protocol.
    """

    any_of: frozenset[View] = frozenset()
    all_of: frozenset[View] = frozenset()
    malicious: bool = False


_SUM: frozenset[View] = frozenset({"aggregate", "opened-sums", "global-model"})
_COLLUDING: frozenset[View] = frozenset({"secrets-of-colluding-clients"})
_IN_CLEAR = Needs(frozenset({"individual-updates"}))
_OWN = Needs(frozenset({"own-data"}), malicious=True)

EXPOSURES: dict[str, Needs] = {
    "control": _IN_CLEAR,
    "plain": _IN_CLEAR,
    "other": _IN_CLEAR,
    "masked": Needs(frozenset({"masked-updates"})),
    "masked with all others": Needs(frozenset({"masked-updates"}), _COLLUDING),
    "encrypted": Needs(frozenset({"ciphertexts"})),
    "sum": Needs(_SUM),
    "sum with all others": Needs(_SUM, _COLLUDING),
    "rounds": Needs(_SUM),
    "released": Needs(frozenset({"released-adapter", "global-model"})),
    "canaries": Needs(_SUM | {"released-adapter"}),
    "game": Needs(malicious=True),
    "training": _OWN,
    "training unbounded": _OWN,
}
"""By exposure; a test holds the names to those of the catalogue of attacks."""


def why_not_seen(exposure: str, view: Collection[View], corruption: Corruption) -> str:
    """Why an attack on an exposure says nothing about an actor; empty where it does.

    Args:
        exposure: what the attack was tried on.
        view: what the actor sees.
        corruption: of the actor.
    """
    if exposure not in EXPOSURES:
        allowed = ", ".join(map(repr, EXPOSURES))
        return f"exposure = {exposure!r}: no attack is tried on it; allowed: {allowed}"
    needs = EXPOSURES[exposure]
    seen = frozenset(view)
    if needs.any_of and not needs.any_of & seen:
        return f"exposure = {exposure!r}: the actor sees none of {sorted(needs.any_of)}"
    if not needs.all_of <= seen:
        return f"exposure = {exposure!r}: the actor does not see {sorted(needs.all_of - seen)}"
    if needs.malicious and corruption != "malicious":
        return f"exposure = {exposure!r}: the actor is {corruption}, and this is of malicious ones"
    return ""
