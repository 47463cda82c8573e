"""Whom a statement trusts and what it assumes of the parties, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from securefed.config import KeyHolder
from securefed.privacy.mechanisms import RoundPlan
from securefed.privacy.policy import CohortBounds, PrivacyPolicy

if TYPE_CHECKING:
    from securefed.privacy.accounting import Adversary

_ENFORCED: dict[KeyHolder | None, str] = {
    None: "clients refuse to unmask fewer",
    "decryptor": "the decryptor refuses to open fewer",
    "cohort": "a client that opens the sum refuses fewer",
}
_AGAINST_SERVER: dict[KeyHolder, list[str]] = {
    "decryptor": [
        "the decryptor does not help the server, which otherwise opens every contribution",
        "no client helps the server to depart from the protocol: with the round secret of one that "
        "does, it can have opened what is not the sum of enough contributions",
    ],
    "cohort": [
        "no client helps the server, which otherwise opens every contribution: each of them holds "
        "the key",
    ],
}
_RLWE = (
    "ciphertexts hide what is in them: ring learning with errors at 128 bits, against classical "
    "attacks, by the tables of HomomorphicEncryption.org 2018; recorded ciphertexts open to "
    "whoever breaks it later, or keeps a round's key"
)


def whom_to_trust(
    policy: PrivacyPolicy,
    bounds: CohortBounds,
    against: Adversary,
    *,
    plaintext: bool,
    key_holder: KeyHolder | None,
) -> str:
    """Who must do what for the statement to hold; arguments as of ``accounting.guarantee``."""
    server = (
        "the server is trusted with every single contribution"
        if plaintext
        else "the server is not trusted with single contributions"
    )
    if policy.mechanism == "central":
        return (
            f"{server}; it is trusted with each sum before noise: it adds the noise and lets "
            "nothing of the sum without it out"
        )
    if against == "server":
        if key_holder == "cohort":
            return f"{server}; no client helps it, for every client holds the key"
        corrupt = f"{server}; at most {bounds.corrupt} of {bounds.size} clients are corrupt"
        if key_holder == "decryptor":
            return (
                f"{corrupt}, and may tell it what they know while it follows the protocol; where "
                "it departs from it, no client helps it; the decryptor never does"
            )
        return corrupt
    # A corrupt client may leave its noise out, and all survivors' noise is counted here.
    clients = "every client" if against == "release" else "every other client"
    decryptor = ", the decryptor" if key_holder == "decryptor" else ""
    return f"{server}; it{decryptor} and {clients} follow the protocol and add their noise"


def assumed_of_parties(
    policy: PrivacyPolicy,
    plan: RoundPlan,
    bounds: CohortBounds,
    against: Adversary,
    *,
    honest: int,
    plaintext: bool,
    ring_sigma: int | None,
    key_holder: KeyHolder | None,
) -> list[str]:
    """What is assumed of clients, server and key holder; arguments as of ``accounting.guarantee``.

    ``bounds`` are the cohort's; ``honest`` is how many clients' noise the adversary does not know,
    in a sum of the fewest.
    """
    if policy.mechanism == "central":
        found = [
            "the server draws its noise as this code does, once for each sum",
            "clients sample and clip as this code does",
        ]
        if policy.separation is not None:
            found[1:] = [
                f"it keeps sums before noise in memory, {policy.bands - 1} at most, and shows them "
                "to nobody",
                "clients clip as this code does and keep to the batches that they made once, so "
                f"that {policy.separation} rounds lie between two uses of an example",
            ]
    else:
        enforced = "the server sees to it" if plaintext else _ENFORCED[key_holder]
        found = [
            f"at least {bounds.survivor_floor} of {bounds.size} clients are in every opened sum; "
            f"{enforced}",
            f"noise of {honest} of them is unknown to the adversary"
            + (", and of one more for each that is there more" if plan.removable_stds else ""),
            "honest clients sample, clip and noise as this code does, with generators the "
            "adversary cannot predict",
        ]
    if against == "fellow_client" and key_holder == "cohort":
        found.append(
            "this client holds the key, and gets no other client's ciphertexts: neither from the "
            "server nor from the network, which TLS is to keep from it"
        )
    if against != "server" or plaintext:
        return found
    found.append(
        "the secure aggregation hides single contributions (its own assumptions are in SECURITY.md)"
    )
    if key_holder is not None:
        found += [*_AGAINST_SERVER[key_holder], _RLWE]
    if plan.removable_stds:
        found.append(
            "a client reveals shares of those layers of noise only that the survivor list which it "
            "and enough others signed makes needless"
        )
    if ring_sigma is not None:
        found.append(
            "clients mask with some neighbours on a ring: the server is honest until the order of "
            "the ring is known, and the order does not favour the corrupt ones (it does with "
            f"probability at most 2^-{ring_sigma} a round)"
        )
    return found
