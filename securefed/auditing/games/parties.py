"""The parties of a game: honest clients with texts, and a server that need not be honest.

A game is played with the real halves of the protocol (``ClientRound``, ``PairwiseServer``) on real
updates of a real model.  What a hostile server does differently is said by the game itself, and so
is a weakened protocol: as a subclass, or by parameters that a session is given.  The library has no
switch for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.attacks.base import AdversaryView, Attack, Guess, Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.scoring import score
from securefed.auditing.rounds import Bench
from securefed.config import Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import system_random
from securefed.errors import BudgetExceeded, ConfigError, ProtocolError, SecureFedError
from securefed.federation.client import ClientRound, Encode
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.lora.adapter import state_hash
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.secagg.aggregator import SESSION_BYTES, AggregationClient, AggregationServer

BARE = PrivacyPolicy(clip_norm=1.0, mechanism="none", dropout_fraction=0.4)
"""No noise: what secure aggregation protects by itself."""
NOISED = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, dropout_fraction=0.4)
"""Noise of the honest survivors of the clip's size."""

_TOKENS = 8
_SECONDS = 20.0

Text = tuple[int, ...]


class Parties:
    """The clients of one trial, each with a text of its own.

    Args:
        bench: its model and its clients' names; the first is the victim.
        seed: of the texts that are dealt.
        texts: public texts to deal, special tokens included; random tokens where there are none.

    Raises:
        ConfigError: there are fewer texts than clients, and one more for the control.
    """

    def __init__(self, bench: Bench, seed: int, texts: Sequence[Text] | None = None) -> None:
        self.bench, self.names, self.victim = bench, bench.names, bench.names[0]
        self._keys = {name: IdentityKey.generate() for name in self.names}
        # Not of the texts that are dealt: how long those are, nobody tells the server.
        longest = max(map(len, texts)) if texts else 0
        dealt = self._dealt(np.random.default_rng([seed, 2]), texts)
        self.texts = dict(zip(self.names, dealt[:-1], strict=True))
        self._unseen = dealt[-1]
        self._seed = seed
        self._longest = longest or max(map(len, dealt))

    def _dealt(self, rng: np.random.Generator, texts: Sequence[Text] | None) -> list[Text]:
        need = len(self.names) + 1
        if texts is not None:
            if len(texts) < need:
                raise ConfigError(f"texts: {len(texts)}; {need} are needed, one a client and one")
            return [texts[at] for at in rng.permutation(len(texts))[:need]]
        tokenizer = self.bench.tokenizer
        around = [int(token) for token in tokenizer("")["input_ids"]]
        head, tail = around[: len(around) // 2], around[len(around) // 2 :]
        plain = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        size = self.bench.setup.window_tokens or _TOKENS
        rows = rng.choice(plain, size=(need, size), replace=False).tolist()
        return [(*head, *row, *tail) for row in rows]

    def updates(self) -> dict[str, NDArray[np.float32]]:
        """Everybody's update, from the model as it is now."""
        return {name: self.bench.update([text]) for name, text in self.texts.items()}

    def session(
        self,
        *,
        policy: PrivacyPolicy = BARE,
        model: bytes = bytes(32),
        cohort: Sequence[str] | None = None,
        number: int = 1,
    ) -> RoundSession:
        """A new attempt, as a client describes it to itself.

        Args:
            policy: privacy settings.
            model: the hash that the client made of what it was given.
            cohort: who is invited; everybody by default.
            number: of the round.
        """
        return replace(
            self.bench.session(),
            session=system_random(SESSION_BYTES),
            round=number,
            cohort=tuple(sorted(self.names if cohort is None else cohort)),
            roster={name: key.public for name, key in self._keys.items()},
            policy=policy,
            aggregation=PairwiseAggregation(),
            model=model,
        )

    def told(self, session: RoundSession, model: bytes) -> RoundSession:
        """The same attempt, as described by a client that was given this model."""
        return replace(session, model=model)

    def identity(self, name: str) -> IdentityKey:
        """A client's long-term key."""
        return self._keys[name]

    def client(
        self,
        name: str,
        session: RoundSession,
        update: NDArray[np.float32],
        *,
        floors: ClientFloors | None = None,
        charge: Callable[[], None] | None = None,
    ) -> ClientRound:
        """An honest client with the update that it is to send."""
        return ClientRound(
            session, name, self._keys[name], encoding(update), floors=floors, charge=charge
        )

    def clients(
        self, session: RoundSession, updates: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, AggregationClient]:
        """Honest clients for all of a session's cohort."""
        return {name: self.client(name, session, updates[name]) for name in session.cohort}

    def opened(
        self, session: RoundSession, updates: Mapping[str, NDArray[np.float32]]
    ) -> ServerRound:
        """A round in which everybody is honest, carried to its sum.

        Raises:
            ThresholdNotMet: too few clients were left.
        """
        server = ServerRound(session)
        course = drive(server, self.clients(session, updates))
        if course.ended is not None:
            raise course.ended
        return server

    def guessed(self, view: AdversaryView, session: RoundSession, attack: Attack) -> Guess:
        """What an attack makes of a view; it is told that what is in the view is one client's."""
        return attack.run(
            view,
            self.bench.public(session),
            generator=torch.Generator().manual_seed(self._seed),
            limits=Limits(seconds=_SECONDS, max_tokens=self._longest + 2),
        )

    def scored(self, guess: Guess) -> tuple[float, float]:
        """The share of the victim's tokens that were guessed, and that of the unseen text's."""
        special = [int(token) for token in self.bench.tokenizer.all_special_ids]
        own = score(guess, [self.texts[self.victim]], special)
        return own.token_recall, score(guess, [self._unseen], special).token_recall

    def read(self, view: AdversaryView, session: RoundSession) -> tuple[float, float]:
        """What exact inversion reads from a view, scored."""
        return self.scored(self.guessed(view, session, SpanInversion()))


def encoding(update: NDArray[np.float32]) -> Encode:
    """Sends an update that is there already."""
    return lambda codec, noise: codec.encode_update(update, noise)


def given(model: nn.Module) -> bytes:
    """SHA-256 over everything that a client was given to train on.

    A run binds the hash of the base weights' files, of the adapter and of the run file; a bench has
    its model in memory, and takes all of its values.
    """
    values = {name: p.detach() for name, p in model.named_parameters(remove_duplicate=False)}
    return hashlib.sha256(b"securefed/1/model" + bytes.fromhex(state_hash(values))).digest()


@contextmanager
def holding(model: nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A model with other values in some parameters, which are put back afterwards."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {name: parameters[name].detach().clone() for name in values}
    try:
        _write(parameters, values)
        yield
    finally:
        _write(parameters, before)


def _write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


@dataclass
class Course:
    """How a round went.

    Attributes:
        sent: ``sent[stage][client]``: what clients sent.
        refused: by client, the error with which it left the round.
        turned_away: by client, why the server did not take its message.
        ended: why there is no sum; None where there is one.
    """

    sent: dict[Stage, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, SecureFedError] = field(default_factory=dict)
    turned_away: dict[str, ProtocolError] = field(default_factory=dict)
    ended: SecureFedError | None = None


def drive(
    server: AggregationServer | ServerRound,
    clients: Mapping[str, AggregationClient],
    *,
    replies: Mapping[str, bytes] | None = None,
    until: Stage | None = None,
    lost: Collection[str] = (),
) -> Course:
    """Carry messages between a server, honest or not, and clients, and keep their errors.

    Args:
        server: in its first stage, or in a later one with ``replies``.
        clients: by name.
        replies: what the server has already to say; clients start without it.
        until: stop once the server took this stage's messages, and has not answered them.
        lost: clients whose masked input the server throws away.
    """
    course = Course()
    inbox: Mapping[str, bytes | None] = dict.fromkeys(clients) if replies is None else replies
    while (stage := server.stage) is not None:
        sent = course.sent.setdefault(stage, {})
        for name, reply in inbox.items():
            try:
                message = clients[name].start() if reply is None else clients[name].handle(reply)
            except (ProtocolError, BudgetExceeded) as error:
                course.refused.setdefault(name, error)
                continue
            sent[name] = message
            if stage == "masked_input" and name in lost:
                continue
            try:
                server.receive(name, message)
            except ProtocolError as error:
                course.turned_away[name] = error
        if stage == until:
            break
        try:
            inbox = dict(server.advance())
        except SecureFedError as error:
            course.ended = error
            break
    return course
