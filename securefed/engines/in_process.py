"""A whole cohort in one process: the same halves that run apart, with dropouts on request."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.errors import BudgetExceeded, ConfigError, ProtocolError, SecureFedError
from securefed.federation.client import ClientRound, Encode
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.federation.sliced_rounds import SlicedServerRound
from securefed.phases import Phase, unmeasured
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation
from securefed.secagg.aggregator import SESSION_BYTES, AggregationClient
from securefed.secagg.carriers import MaskRemoval, apply_masks
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encryption import DECRYPTOR


@dataclass
class Carried:
    """What went over the (in-process) wire in one round.

    Attributes:
        transcript: ``transcript[stage][client]``: the very bytes the server received.
        bytes_up: bytes each client sent.
        bytes_down: bytes each client was sent.
        refusals: clients that ended the round with an error, and its text.
        unanswered: those who were asked in some stage and whose message the server did not take.
        seconds: ``seconds[stage][client]``: how long it took to answer.
        taking: seconds that the server took, by stage, to take the answers.
    """

    transcript: dict[Stage, dict[str, bytes]] = field(default_factory=dict)
    bytes_up: dict[str, int] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)
    seconds: dict[Stage, dict[str, float]] = field(default_factory=dict)
    taking: dict[Stage, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A client's message in one stage, on its way to the server."""

    client: str
    message: bytes
    down: int

    @property
    def up(self) -> int:
        """Bytes of the message; ``down`` are those of what it answers."""
        return len(self.message)


class Timing(Protocol):
    """Decides which answers of a stage are in time."""

    def in_time(self, stage: Stage, answers: Iterable[Answer], asked: int) -> Iterable[Answer]:
        """Those that arrive before the stage closes."""
        ...


class Exchange(Protocol):
    """How the server's messages of one stage reach clients, and theirs come back."""

    def __call__(
        self, stage: Stage, inbox: Mapping[str, bytes | None], carried: Carried
    ) -> Iterable[Answer]:
        """Deliver what is in the inbox (None to a client that is to start); what they answer.

        Bytes, seconds and refusals are noted in ``carried``; who is silent is left out.
        """
        ...


def carry(
    server: ServerRound | SlicedServerRound,
    clients: Mapping[str, AggregationClient],
    *,
    drop: Mapping[str, Stage] | None = None,
    keep_transcript: bool = True,
    timing: Timing | None = None,
    client_work: Phase = unmeasured,
    server_work: Phase = unmeasured,
) -> Carried:
    """Carry one round's messages between a server and its clients in this process.

    Args:
        server: in its first stage.
        clients: not yet started; with a decryptor it is one of them, under ``"decryptor"``.
        drop: the stage from which on a client is silent.
        keep_transcript: keep every byte the server received.
        timing: whose answers are in time; all of them without it, one at a time.
        client_work: entered, with its name, while a client or the decryptor is at work.
        server_work: entered, with the stage, while the server is.

    Returns:
        What was carried; the result is in ``server``.

    Raises:
        ThresholdNotMet: too few clients were left; refusals are noted on the error.
    """
    silent_from = {name: STAGES.index(stage) for name, stage in (drop or {}).items()}

    def answers(
        stage: Stage, inbox: Mapping[str, bytes | None], carried: Carried
    ) -> Iterator[Answer]:
        seconds = carried.seconds.setdefault(stage, {})
        for name, reply in inbox.items():
            if silent_from.get(name, len(STAGES)) <= STAGES.index(stage):
                continue
            client, down = clients[name], 0 if reply is None else len(reply)
            carried.bytes_down[name] += down
            started = time.perf_counter()
            try:
                with client_work(name):
                    message = client.start() if reply is None else client.handle(reply)
            except (ProtocolError, BudgetExceeded) as error:
                carried.refusals[name] = str(error)
                continue
            seconds[name] = time.perf_counter() - started
            carried.bytes_up[name] += len(message)
            yield Answer(name, message, down)

    return carry_by(
        answers,
        server,
        clients,
        keep_transcript=keep_transcript,
        timing=timing,
        server_work=server_work,
    )


def carry_by(
    exchange: Exchange,
    server: ServerRound | SlicedServerRound,
    names: Iterable[str],
    *,
    keep_transcript: bool = True,
    timing: Timing | None = None,
    server_work: Phase = unmeasured,
) -> Carried:
    """Carry one round's messages between a server and clients, wherever these are.

    Args:
        exchange: reaches them.
        server: in its first stage.
        names: of the clients.
        keep_transcript: as of :func:`carry`.
        timing: as of :func:`carry`.
        server_work: as of :func:`carry`.

    Returns:
        What was carried; the result is in ``server``.

    Raises:
        ThresholdNotMet: too few clients were left; refusals are noted on the error.
    """
    inbox: Mapping[str, bytes | None] = dict.fromkeys(names)
    carried = Carried(bytes_up=dict.fromkeys(inbox, 0), bytes_down=dict.fromkeys(inbox, 0))
    try:
        while (stage := server.stage) is not None:
            received = carried.transcript.setdefault(stage, {})
            carried.seconds.setdefault(stage, {})
            taking = 0.0
            unanswered = set(inbox)
            coming = exchange(stage, inbox, carried)
            if timing is not None:
                coming = timing.in_time(stage, coming, len(inbox))
            for answer in coming:
                name, started = answer.client, time.perf_counter()
                if keep_transcript:
                    received[name] = answer.message  # received, even if it is then refused
                try:
                    with server_work(stage):
                        server.receive(name, answer.message)
                    taking += time.perf_counter() - started
                    unanswered.discard(name)
                except ProtocolError as error:
                    carried.refusals[name] = str(error)
            carried.taking[stage] = taking
            carried.unanswered |= unanswered
            with server_work(stage):
                inbox = server.advance()
    except SecureFedError as error:
        for name, why in carried.refusals.items():
            error.add_note(f"{name}: {why}")
        raise
    return carried


@dataclass(frozen=True)
class SecureRoundResult:
    """What one secure round gives.

    Attributes:
        sum: float64[d]: sum of the survivors' clipped contributions, plus noise.
        mean: float64[d]: ``sum`` over the number of survivors, or, for ``unit="example"`` and
            ``"user"``, over the expected batch (sampling probability times the survivors' rows).
        survivors: ids inside the sum, in the order of the cohort.
        bytes_up: bytes sent by each client, by id; a decryptor's are under ``"decryptor"``.
        bytes_down: bytes sent to each client, by id, and to a decryptor.
        transcript: ``transcript[stage][client id]``: every byte the server received; a client that
            was silent in a stage is absent there.
        resolution: size of one grid step in the units of the updates.
        unclipped_fraction: noised share of units within the clip, for ``PrivacyPolicy.after``; None
            without adaptive clipping.
    """

    sum: NDArray[np.float64]
    mean: NDArray[np.float64]
    survivors: tuple[Hashable, ...]
    bytes_up: dict[Hashable, int]
    bytes_down: dict[Hashable, int]
    transcript: dict[Stage, dict[Hashable, bytes]]
    resolution: float
    unclipped_fraction: float | None
    session: RoundSession = field(repr=False)

    @cached_property
    def guarantee(self) -> PrivacyGuarantee:
        """What holds against the server, over ``privacy.rounds`` rounds like this one."""
        return self.session.guarantee()

    @cached_property
    def guarantees(self) -> dict[Adversary, PrivacyGuarantee]:
        """What holds against each adversary."""
        return {who: self.session.guarantee(who) for who in ADVERSARIES}


def secure_round(
    updates: Mapping[Hashable, ArrayLike],
    *,
    privacy: PrivacyPolicy,
    aggregation: Aggregation | None = None,
    drop: Mapping[Hashable, Stage] | None = None,
    remove_masks: MaskRemoval = apply_masks,
) -> SecureRoundResult:
    """Run one whole round in this process: clip, rotate, quantise, noise, mask, sum, decode.

    Every client and the server are the same state machines that run apart in a deployment; the
    identities are made for this call.

    Args:
        updates: client id -> array.  For ``privacy.unit="client"`` one update, float[d]; for
            ``"example"`` float[n_i, d], one row an example: each client keeps each row with
            ``privacy.sampling_probability``, in secret, and clips it by itself.  For ``"user"``
            likewise with one row a user: all that one user contributes, as a mean over its records.
        privacy: what is protected and by how much.
        aggregation: ``PairwiseAggregation()`` by default.
        drop: client id -> the stage from which on it is silent: ``"advertise"``, ``"share"``,
            ``"masked_input"``, ``"consistency"`` or ``"unmask"``; the decryptor's id is
            ``"decryptor"``.
        remove_masks: on one core by default; ``engines.parallel.ParallelMasks()`` for all of them.

    Returns:
        The sum and all that describes it.

    Raises:
        ConfigError: an update is not finite or has the wrong shape, an id or stage is unknown, the
            cohort is too small; nothing was sent.
        OverflowBoundError: the sum might not fit the ring; nothing was sent.
        ThresholdNotMet: too few clients were left; nothing was opened.

    Example:
        >>> import numpy as np
        >>> from securefed import PairwiseAggregation, PrivacyPolicy, secure_round
        >>> updates = {f"site-{i}": np.full(8, 0.1, dtype=np.float32) for i in range(4)}
        >>> result = secure_round(
        ...     updates,
        ...     privacy=PrivacyPolicy(clip_norm=1.0, mechanism="none"),
        ...     aggregation=PairwiseAggregation(),
        ...     drop={"site-3": "masked_input"},
        ... )
        >>> result.survivors
        ('site-0', 'site-1', 'site-2')
        >>> bool(np.allclose(result.sum, 0.3, atol=1e-5))
        True
    """
    if privacy.mechanism == "local":
        raise ConfigError(
            "mechanism = 'local': noise is added in each client's training, which this function "
            "does not see; sum such updates with mechanism = 'none'"
        )
    if privacy.separation is not None:
        raise ConfigError(
            f"separation = {privacy.separation}: noise is correlated over the rounds of a run, and "
            "this function is one round"
        )
    ids = {str(key): key for key in updates}
    if len(ids) != len(updates):
        raise ConfigError("updates: two client ids have the same text")
    arrays = {str(key): checked_update(key, value, privacy.unit) for key, value in updates.items()}
    cohort = tuple(sorted(arrays))
    widths = {array.shape[-1] for array in arrays.values()}
    if len(widths) != 1:
        raise ConfigError(
            f"updates: lengths {sorted(widths)[:5]} differ; all must have the same dimension"
            if widths
            else "updates: no client at all; at least 2 are needed"
        )
    if privacy.unit != "client" and privacy.max_examples is None:
        privacy = replace(privacy, max_examples=max(1, *(len(a) for a in arrays.values())))
    identities = {name: IdentityKey.generate() for name in cohort}
    aggregation = PairwiseAggregation() if aggregation is None else aggregation
    roster = {name: key.public for name, key in identities.items()}
    decryptor = IdentityKey.generate()
    if aggregation.has_decryptor:
        if DECRYPTOR in ids:
            raise ConfigError(f"updates: no client may be called {DECRYPTOR!r}")
        roster[DECRYPTOR], ids[DECRYPTOR] = decryptor.public, DECRYPTOR
    dropped = checked_drop(drop or {}, ids)
    session = RoundSession(
        session=secrets.token_bytes(SESSION_BYTES),
        round=1,
        cohort=cohort,
        roster=roster,
        dimension=widths.pop(),
        policy=privacy,
        aggregation=aggregation,
        model=hashlib.sha256(b"securefed/1/vectors, no model").digest(),
    )
    for name, array in arrays.items():
        if privacy.unit != "client" and len(array) > session.plan.max_examples:
            raise ConfigError(
                f"updates[{name!r}]: {len(array)} {privacy.unit}s, max_examples = "
                f"{session.plan.max_examples}"
            )
    server = ServerRound(session, remove_masks=remove_masks)
    clients: dict[str, ClientRound | Decryptor] = {
        name: ClientRound(session, name, identities[name], _encode(arrays[name], privacy))
        for name in cohort
    }
    if aggregation.has_decryptor:
        clients[DECRYPTOR] = Decryptor(session.context, decryptor)
    carried = carry(server, clients, drop=dropped)
    total, rule = server.sum, privacy.adaptive_clip
    survivors = server.survivors
    if privacy.unit != "client":
        rows = sum(len(arrays[name]) for name in survivors)
        divisor = max(privacy.sampling_probability * rows, 1e-12)
    else:
        divisor = float(len(survivors))
    return SecureRoundResult(
        sum=total,
        mean=total / divisor,
        survivors=tuple(ids[name] for name in survivors),
        bytes_up={ids[name]: count for name, count in carried.bytes_up.items()},
        bytes_down={ids[name]: count for name, count in carried.bytes_down.items()},
        transcript={
            stage: {ids[name]: message for name, message in received.items()}
            for stage, received in carried.transcript.items()
        },
        resolution=session.plan.resolution,
        unclipped_fraction=None
        if rule is None or server.count is None
        else rule.fraction(server.count, divisor),
        session=session,
    )


def _encode(array: NDArray[np.floating], privacy: PrivacyPolicy) -> Encode:
    if privacy.unit != "client":
        return lambda codec, generator: codec.encode_examples(array, generator)
    return lambda codec, generator: codec.encode_update(array, generator)


def checked_update(key: Hashable, value: ArrayLike, unit: str) -> NDArray[np.floating]:
    """A finite float array with as many axes as ``unit`` asks for."""
    array = np.asarray(value)
    wanted = 1 if unit == "client" else 2
    if array.dtype.kind not in "fiu" or array.ndim != wanted or array.shape[-1] == 0:
        shape = "float[n, d]" if wanted == 2 else "float[d]"
        raise ConfigError(
            f"updates[{key!r}]: {array.dtype}{list(array.shape)}, must be {shape} with d >= 1 for "
            f"unit = {unit!r}"
        )
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ConfigError(f"updates[{key!r}]: holds NaN or infinity; every value must be finite")
    return array


def checked_drop(drop: Mapping[Hashable, Stage], ids: Mapping[str, Hashable]) -> dict[str, Stage]:
    """By id as text; refuses unknown ids and stages."""
    for key, stage in drop.items():
        if str(key) not in ids:
            raise ConfigError(f"drop: {key!r} is not a client of this round")
        if stage not in STAGES:
            raise ConfigError(f"drop[{key!r}] = {stage!r}: must be one of {STAGES}")
    return {str(key): stage for key, stage in drop.items()}
