"""What each adversary sees, captured from the objects of a real round.

=========================  ======================================================================
view                       what it holds
=========================  ======================================================================
:class:`PlainUpdate`       one client's contribution as the server got it without protection
:class:`MaskedShare`       one client's masked input; with colluders, what is left of it without
                           the masks that they share with this client
:class:`EncryptedShare`    one client's ciphertexts
:class:`OpenedSum`         the sum that a round opened to the server, and whose it is; with
                           colluders, without what they put in themselves
:class:`SumsOverRounds`    several of these, one a round
:class:`ReleasedAdapter`   the adapter that a run gives to the world
=========================  ======================================================================

A capture takes what a round really carried (the server's bytes, the server itself); it is never
given an update that did not come this way.  What the rounds agreed on beforehand is public and not
repeated in a view.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.collusion import Learned
from securefed.config import Stage
from securefed.crypto.prg import add_keystreams
from securefed.encoding.wire import unpack_ring
from securefed.errors import ConfigError
from securefed.federation.session import RoundSession
from securefed.secagg.carriers import check_masked
from securefed.secagg.key_offer import agreed
from securefed.secagg.plaintext import read_contribution
from securefed.secagg.signed import Signed

Transcript = Mapping[Stage, Mapping[str, bytes]]
"""``transcript[stage][client]``: every byte that the server received in one round."""

_VIEW_BYTES = 32


class Opened(Protocol):
    """A round that ended well: ``ServerRound``, or what ``secure_round`` returns."""

    @property
    def sum(self) -> NDArray[np.float64]:
        """float64[d]."""
        ...

    @property
    def survivors(self) -> Sequence[object]:
        """Whose contributions are inside."""
        ...


class _RingView(AdversaryView):
    """One vector of ring elements, that of a single client or taken for it."""

    @abstractmethod
    def ring(self, session: RoundSession) -> NDArray[np.uint32]:
        """uint32[plan.padded], values below 2^bits."""

    @property
    def contributions(self) -> int:
        """One."""
        return 1

    def reading(self, public: PublicKnowledge) -> NDArray[np.float64]:
        """The ring vector, decoded as if nothing hid it."""
        return public.session.codec.decode(self.ring(public.session))


@dataclass(frozen=True, eq=False)
class PlainUpdate(_RingView):
    """One client's contribution, unprotected.

    Attributes:
        client: whose.
        message: the bytes that the server received.
        values: uint32[plan.padded], what they say.
    """

    adversary: str
    client: str
    message: bytes = field(repr=False)
    values: NDArray[np.uint32] = field(repr=False)

    def ring(self, session: RoundSession) -> NDArray[np.uint32]:
        """What the client sent."""
        return self.values


@dataclass(frozen=True, eq=False)
class MaskedShare(_RingView):
    """One client's masked input.

    Attributes:
        client: whose.
        message: the bytes that the server received.
        values: uint32[plan.padded]: what they say, without the masks that colluders know.
        colluders: clients that work with the server.
    """

    adversary: str
    client: str
    message: bytes = field(repr=False)
    values: NDArray[np.uint32] = field(repr=False)
    colluders: tuple[str, ...] = ()

    def ring(self, session: RoundSession) -> NDArray[np.uint32]:
        """What the client sent, masks and all."""
        return self.values

    def with_colluders(self, learned: Iterable[Learned], session: RoundSession) -> MaskedShare:
        """The same share, seen by the server together with some of its neighbours.

        Args:
            learned: what each of them kept of this very round.
            session: the round.
        """
        values, names = self.values.copy(), list(self.colluders)
        for each in learned:
            if each.client in (self.client, *names):
                raise ConfigError(f"learned: {each.client!r} is the victim, or named twice")
            key, subtracted = each.masks[self.client]
            # The two ends of an edge apply the same keystream with opposite signs, so that what the
            # colluder applies takes away what the victim applied.
            add_keystreams(values, [(key, subtracted)])
            names.append(each.client)
        values &= np.uint32((1 << session.plan.bits) - 1)
        return replace(
            self, adversary=_with(self.adversary, names), values=values, colluders=tuple(names)
        )


@dataclass(frozen=True, eq=False)
class EncryptedShare(_RingView):
    """One client's encrypted contribution.

    Attributes:
        client: whose.
        message: the bytes that the server received.
        ciphertexts: those among them that are ciphertexts.
    """

    adversary: str
    client: str
    message: bytes = field(repr=False)
    ciphertexts: bytes = field(repr=False)

    def ring(self, session: RoundSession) -> NDArray[np.uint32]:
        """The ciphertexts' bytes, four to a value, as many as fill a contribution."""
        words = np.frombuffer(self.ciphertexts[: len(self.ciphertexts) // 4 * 4], dtype="<u4")
        values = np.resize(words, session.plan.padded).astype(np.uint32)
        return values & np.uint32((1 << session.plan.bits) - 1)


@dataclass(frozen=True, eq=False)
class OpenedSum(AdversaryView):
    """The sum that a round opened.

    Attributes:
        clients: whose contributions are inside ``total``, sorted by name.
        total: float64[d].
        colluders: clients that work with the server; what they put in is not inside any more.
    """

    adversary: str
    clients: tuple[str, ...]
    total: NDArray[np.float64] = field(repr=False)
    colluders: tuple[str, ...] = ()

    @property
    def contributions(self) -> int:
        """How many clients are inside."""
        return len(self.clients)

    def reading(self, public: PublicKnowledge) -> NDArray[np.float64]:
        """The sum."""
        return self.total

    def with_colluders(self, learned: Iterable[Learned], session: RoundSession) -> OpenedSum:
        """The same sum without what colluding clients sent themselves, noise included.

        Args:
            learned: what each of them kept of this very round.
            session: the round.

        Raises:
            ConfigError: one of them is not inside the sum, or nobody else is.
        """
        own = list(learned)
        names = tuple(each.client for each in own)
        if len(set(names)) < len(names) or not set(names) < set(self.clients):
            raise ConfigError(
                f"learned: of {', '.join(names)}; allowed are clients of the sum, each once, and "
                "not all of them"
            )
        total = self.total.copy()
        for each in own:
            # Decoding is linear as long as the sum stays within the ring, as it was planned to.
            total -= session.codec.decode(each.contribution)
        return replace(
            self,
            adversary=_with(self.adversary, [*self.colluders, *names]),
            clients=tuple(name for name in self.clients if name not in names),
            total=total,
            colluders=(*self.colluders, *names),
        )


@dataclass(frozen=True, eq=False)
class SumsOverRounds(AdversaryView):
    """Opened sums of several rounds.

    Attributes:
        sums: one a round, in order; all over the same layout.
    """

    adversary: str
    sums: tuple[OpenedSum, ...]

    def __post_init__(self) -> None:
        if not self.sums:
            raise ConfigError("sums: no round; at least one is needed")

    @property
    def contributions(self) -> int:
        """Most clients that are inside one of the sums."""
        return max(each.contributions for each in self.sums)

    def reading(self, public: PublicKnowledge) -> NDArray[np.float64]:
        """Their mean: what stays the same from round to round stays, and noise averages out."""
        found: NDArray[np.float64] = np.mean([each.reading(public) for each in self.sums], axis=0)
        return found


@dataclass(frozen=True, eq=False)
class ReleasedAdapter(AdversaryView):
    """The adapter that a run gives away.

    Attributes:
        state: every tensor of it, by name (``adapter_state``).
        clients: how many clients it was trained with, which is public.
    """

    adversary: str
    state: Mapping[str, torch.Tensor] = field(repr=False)
    clients: int

    @property
    def contributions(self) -> int:
        """Everybody's."""
        return self.clients

    def reading(self, public: PublicKnowledge) -> NDArray[np.float64]:
        """How far it is from the adapter in ``public.model``, the one that the run began with."""
        before = dict(public.model.named_parameters(remove_duplicate=False))
        moved = {name: self.state[name] - before[name].detach() for name in public.layout.names}
        return public.layout.flatten(moved).astype(np.float64)


def _with(adversary: str, colluders: Iterable[str]) -> str:
    return f"{adversary.partition(' with ')[0]} with {', '.join(colluders)}"


# -- captures ------------------------------------------------------------------------------


def plain_update(session: RoundSession, transcript: Transcript, client: str) -> PlainUpdate:
    """What the server of an unprotected round sees of one client.

    Raises:
        ConfigError: the round was protected, or the client sent nothing.
        RemoteProtocolError: the bytes are no contribution of this client to this round.
    """
    if not session.plaintext:
        raise ConfigError("session: its contributions are not in the clear; take masked_share")
    message = _sent(transcript, client)
    values = read_contribution(session.context, client, message)
    return PlainUpdate("server", client, message, values)


def masked_share(session: RoundSession, transcript: Transcript, client: str) -> MaskedShare:
    """What the server of a pairwise round sees of one client's contribution, before the sum.

    Raises:
        ConfigError: the round has no masked ring vectors, or the client sent nothing.
        LocalProtocolError: contributions are encrypted without masks.
    """
    context = session.context
    if session.plaintext or context.encryption is not None:
        raise ConfigError("session: its contributions are not masked ring vectors")
    check_masked(context)
    message = _sent(transcript, client)
    body = Signed.decode(message, limit=len(message)).body
    values = unpack_ring(body[_VIEW_BYTES:], context.length, context.bits)
    return MaskedShare("server", client, message, values)


def encrypted_share(session: RoundSession, transcript: Transcript, client: str) -> EncryptedShare:
    """What the server of an encrypted round sees of one client's contribution.

    Raises:
        LocalProtocolError: nothing is encrypted in this round.
        ConfigError: the client sent nothing.
    """
    size = agreed(session.context).input_bytes
    message = _sent(transcript, client)
    body = Signed.decode(message, limit=len(message)).body
    return EncryptedShare("server", client, message, body[-size:])


def opened_sum(opened: Opened) -> OpenedSum:
    """What the server of any round sees in the end."""
    clients = tuple(sorted(str(name) for name in opened.survivors))
    return OpenedSum("server", clients, np.array(opened.sum, dtype=np.float64))


def sums_over_rounds(rounds: Iterable[OpenedSum]) -> SumsOverRounds:
    """What the server sees over several rounds."""
    return SumsOverRounds("server", tuple(rounds))


def released_adapter(state: Mapping[str, torch.Tensor], *, clients: int) -> ReleasedAdapter:
    """What whoever gets the finished adapter sees.

    Args:
        state: as ``adapter_state`` gives it at the end of a run.
        clients: of that run.
    """
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    return ReleasedAdapter("recipient of the adapter", MappingProxyType(copies), clients)


def _sent(transcript: Transcript, client: str) -> bytes:
    sent = transcript.get("masked_input", {})
    if client not in sent:
        raise ConfigError(
            f"transcript: no contribution of {client!r}; there are those of "
            f"{', '.join(sorted(map(str, sent))) or 'nobody'}"
        )
    return sent[client]
