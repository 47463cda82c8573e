"""Captures of what each adversary sees, from one real round with a victim in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.attacks import views
from securefed.attacks.base import AdversaryView
from securefed.auditing.rounds import Bench
from securefed.errors import ConfigError
from securefed.federation.session import RoundSession
from securefed.lora.adapter import adapter_state

ALL_COLLUDE = " with all others"
ROUNDS = 4
"""Rounds of ``"rounds"``."""
EXPOSURES = (
    "plain",
    "other",
    "masked",
    "sum",
    f"masked{ALL_COLLUDE}",
    f"sum{ALL_COLLUDE}",
    "encrypted",
    "rounds",
    "released",
)
"""``plain``: the victim's update without protection; ``other``: another client's, the control that
must score like the prior; ``masked``, ``sum``; and these two where all others collude;
``encrypted``; ``rounds``: sums of several rounds, the model moving on by each mean, in which the
victim trains on the same texts and the others on new ones; ``released``: the adapter after one
round."""


def companions(exposure: str, clients: int) -> int:
    """How many other clients' texts an exposure needs, over all of its rounds."""
    return (clients - 1) * (ROUNDS if exposure == "rounds" else 1)


def expose(
    bench: Bench,
    session: RoundSession,
    own: Sequence[Sequence[int]],
    others: Sequence[Sequence[Sequence[int]]],
    exposure: str,
) -> AdversaryView:
    """Run one round and capture what the adversary sees of it.

    Args:
        bench: its first client is the victim.
        session: of the bench, not yet run.
        own: token ids of the victim's texts.
        others: the same of every other client, in the order of ``bench.names``, round by round.
        exposure: one of ``EXPOSURES``.

    Raises:
        ConfigError: the exposure is unknown, or its view cannot be had of such a round.
    """
    if exposure not in EXPOSURES:
        raise ConfigError(f"exposure = {exposure!r}; allowed: {', '.join(map(repr, EXPOSURES))}")
    victim, apart = bench.names[0], len(bench.names) - 1
    if len(others) != companions(exposure, len(bench.names)):
        raise ConfigError(
            f"others: texts of {len(others)}; exposure = {exposure!r} needs those of "
            f"{companions(exposure, len(bench.names))}"
        )
    if exposure == "rounds":
        sums = []
        with bench.restored():
            for start in range(0, len(others), apart):
                sent = _sent(bench, own, others[start : start + apart])
                server, _ = bench.run(session if start == 0 else bench.session(), sent)
                sums.append(views.opened_sum(server))
                bench.move(server.sum / len(server.survivors))
        return views.sums_over_rounds(sums)
    sent = _sent(bench, own, others)
    colluders = bench.colluding(session, sent) if exposure.endswith(ALL_COLLUDE) else {}
    server, transcript = bench.run(session, sent, colluders)
    learned = [client.learned for client in colluders.values()]
    if exposure == "plain":
        return views.plain_update(session, transcript, victim)
    if exposure == "other":
        return views.plain_update(session, transcript, bench.names[1])
    if exposure == "encrypted":
        return views.encrypted_share(session, transcript, victim)
    if exposure == "released":
        with bench.restored():
            bench.move(server.sum / len(server.survivors))
            state = adapter_state(bench.model)
        return views.released_adapter(state, clients=len(server.survivors))
    if exposure.startswith("masked"):
        share = views.masked_share(session, transcript, victim)
        return share.with_colluders(learned, session) if learned else share
    opened = views.opened_sum(server)
    return opened.with_colluders(learned, session) if learned else opened


def _sent(
    bench: Bench, own: Sequence[Sequence[int]], others: Sequence[Sequence[Sequence[int]]]
) -> dict[str, NDArray[np.float32]]:
    dealt = zip(bench.names, [own, *others], strict=True)
    return {name: bench.update(texts) for name, texts in dealt}
