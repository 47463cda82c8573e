"""Captures of what each adversary sees, from one real round with a victim in it."""

from __future__ import annotations

from collections.abc import Sequence

from securefed.attacks import views
from securefed.attacks.base import AdversaryView
from securefed.auditing.rounds import Bench
from securefed.errors import ConfigError
from securefed.federation.session import RoundSession

ALL_COLLUDE = " with all others"
EXPOSURES = (
    "plain",
    "other",
    "masked",
    "sum",
    f"masked{ALL_COLLUDE}",
    f"sum{ALL_COLLUDE}",
)
"""``plain``: the victim's update without protection; ``other``: another client's, the control that
must score like the prior; ``masked``, ``sum``; and these two where all others collude."""


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
        others: the same of every other client, in the order of ``bench.names``.
        exposure: one of ``EXPOSURES``.

    Raises:
        ConfigError: the exposure is unknown, or its view cannot be had of such a round.
    """
    if exposure not in EXPOSURES:
        raise ConfigError(f"exposure = {exposure!r}; allowed: {', '.join(map(repr, EXPOSURES))}")
    victim = bench.names[0]
    sent = {victim: bench.update(own)}
    sent |= {name: bench.update(texts) for name, texts in zip(bench.names[1:], others, strict=True)}
    colluders = bench.colluding(session, sent) if exposure.endswith(ALL_COLLUDE) else {}
    server, transcript = bench.run(session, sent, colluders)
    learned = [client.learned for client in colluders.values()]
    if exposure == "plain":
        return views.plain_update(session, transcript, victim)
    if exposure == "other":
        return views.plain_update(session, transcript, bench.names[1])
    if exposure.startswith("masked"):
        share = views.masked_share(session, transcript, victim)
        return share.with_colluders(learned, session) if learned else share
    opened = views.opened_sum(server)
    return opened.with_colluders(learned, session) if learned else opened
