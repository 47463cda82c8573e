"""Different models to different clients, so that all but the victim's updates are zero."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from securefed.attacks import views
from securefed.attacks.malicious.silence import silent_adapter
from securefed.auditing.games.parties import BARE, Parties, drive, given, holding
from securefed.auditing.games.results import GameResult, one_trial
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.signed import Signed

PASQUINI = "Pasquini et al. 2022 (2111.07380)"


class Credulous(PairwiseServer):
    """Passes keys on whoever signed them and for whatever round: only clients' checks are left."""

    def receive(self, client_id: str, message: bytes) -> None:
        """See :class:`PairwiseServer`; advertisements are not checked."""
        if self.stage != "advertise":
            super().receive(client_id, message)
            return
        signed = Signed.decode(message, limit=len(message))
        self._relay.add_advertisement(signed)
        self._seen.add(signed.sender)


def pasquini(parties: Parties, seed: int, *, weakened: bool) -> GameResult:
    """The victim trains on the true model, everybody else on an adapter of zeros.

    As it is, each client's session holds the hash of what it was given.  The check removed: a
    session whose context leaves the model out (the same 32 bytes for everybody).
    """
    model, victim = parties.bench.model, parties.victim
    updates = {victim: parties.bench.update([parties.texts[victim]])}
    honest = given(model)
    with holding(model, silent_adapter(model)):
        planted = given(model)
        for name in parties.names[1:]:
            updates[name] = parties.bench.update([parties.texts[name]])
    hashes = {name: honest if name == victim else planted for name in parties.names}
    if weakened:
        hashes = dict.fromkeys(parties.names, bytes(32))
    told = parties.session(policy=BARE)
    # All parties are told of the same attempt; each adds the hash that it made itself.
    sessions = {name: parties.told(told, hashes[name]) for name in parties.names}
    server = Credulous(sessions[victim].context)
    course = drive(
        server,
        {name: parties.client(name, sessions[name], updates[name]) for name in parties.names},
    )
    read = 0.0, 0.0
    if course.ended is None:
        total = sessions[victim].codec.decode(server.result.total)
        view = views.OpenedSum("server", server.result.survivors, total)
        read = parties.read(view, sessions[victim])
    return one_trial(
        "pasquini",
        source=PASQUINI,
        removed="the model's hash in the context",
        weakened=weakened,
        seed=seed,
        refusal=course.refused.get(victim),
        read=read,
        figures={
            "clients": float(len(parties.names)),
            "lora_norm_of_others": max(_lora_norm(parties, updates[n]) for n in parties.names[1:]),
        },
    )


def _lora_norm(parties: Parties, update: NDArray[np.float32]) -> float:
    """Norm of an update but for what travels whole, such as a head."""
    tensors = parties.bench.layout.unflatten(update.astype(np.float64))
    return math.sqrt(sum(float(t.square().sum()) for n, t in tensors.items() if ".lora_" in n))
