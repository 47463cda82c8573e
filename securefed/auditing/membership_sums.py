"""Opened sums of real rounds, each over another half of some records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.membership.base import MembershipAttack, MembershipQuestion, Records
from securefed.attacks.membership_results import MembershipTrial
from securefed.attacks.views import opened_sum, sums_over_rounds
from securefed.auditing.membership import membership_trial
from securefed.auditing.rounds import Bench, examples
from securefed.errors import ConfigError


def summed(
    bench: Bench,
    texts: Sequence[Sequence[int]],
    inside: NDArray[np.bool_],
    *,
    rounds: int,
    generator: torch.Generator,
) -> tuple[AdversaryView, PublicKnowledge]:
    """What the server sees of rounds in which each client trains on some of the members.

    All rounds start from the bench's adapter, with the same records at the same clients: where
    there is noise, it is fresh in each of them.

    Args:
        bench: of n clients with ``setup.batch`` records each.
        texts: token ids of the candidates, special ones included.
        inside: bool[len(texts)], n times ``setup.batch`` of them.
        rounds: >= 1; one gives an ``OpenedSum``.
        generator: deals members to clients.

    Raises:
        ConfigError: another number of members, or no round.
    """
    size, wanted = bench.setup.batch, bench.setup.batch * bench.setup.clients
    members = np.flatnonzero(inside)
    if len(members) != wanted or rounds < 1:
        raise ConfigError(
            f"inside: {len(members)} members, rounds = {rounds}; allowed: {wanted} and >= 1"
        )
    dealt = members[torch.randperm(wanted, generator=generator).numpy()].reshape(-1, size)
    sent = {
        name: bench.update([texts[row] for row in rows])
        for name, rows in zip(bench.names, dealt, strict=True)
    }
    sums = []
    for _ in range(rounds):
        session = bench.session()
        server, _ = bench.run(session, sent)
        sums.append(opened_sum(server))
    view = sums[0] if rounds == 1 else sums_over_rounds(sums)
    return view, bench.public(session)


def sum_trials(
    attacks: Sequence[MembershipAttack],
    bench: Bench,
    texts: Sequence[Sequence[int]],
    population: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    rounds: int = 1,
) -> dict[str, list[MembershipTrial]]:
    """Try attacks on sums over random halves of the records.

    Args:
        attacks: that are tried; none that needs shadow runs.
        bench: of the rounds.
        texts: token ids of the candidates, twice as many as a round trains on.
        population: the same of the attacker's own records.
        seeds: one a trial: which half, who holds what, and the attack's random choices.
        rounds: in each trial, >= 1.

    Returns:
        By attack, a trial a seed.

    Raises:
        ConfigError: another number of texts, or no seed.
    """
    wanted = 2 * bench.setup.batch * bench.setup.clients
    if len(texts) != wanted or not seeds:
        raise ConfigError(
            f"texts: {len(texts)}, seeds: {len(seeds)}; allowed: {wanted}, and at least one seed"
        )
    task, records = bench.setup.task, None
    found: dict[str, list[MembershipTrial]] = {attack.name: [] for attack in attacks}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        inside = np.zeros(wanted, dtype=np.bool_)
        inside[torch.randperm(wanted, generator=generator).numpy()[: wanted // 2]] = True
        view, public = summed(bench, texts, inside, rounds=rounds, generator=generator)
        if records is None:  # the rounds differ in their session alone, which no attack reads
            records = Records(
                public=public,
                candidates=examples(texts, task, 1),
                population=examples(population, task, 1),
            )
        question = MembershipQuestion(view, records)
        for attack in attacks:
            found[attack.name].append(membership_trial(attack, question, inside, seed))
    return found
