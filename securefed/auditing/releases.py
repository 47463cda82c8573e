"""Releases of real rounds with canaries in them, and the scores that an adversary gives them.

Every round is one of ``ClientRound`` and ``ServerRound``: clip, rotate, quantise, noise, mask,
drop, sum, decode.  No client holds anybody's data; canaries are all that is sent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from securefed.auditing.canaries import directions, scores
from securefed.config import Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator, RandomBytes, system_random
from securefed.engines.in_process import carry
from securefed.errors import ConfigError
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import Adversary, PrivacyGuarantee
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation, PlaintextAggregation
from securefed.secagg.aggregator import SESSION_BYTES, AggregationClient
from securefed.secagg.decryptor import Decryptor
from securefed.secagg.encryption import DECRYPTOR


@dataclass(frozen=True)
class Sources:
    """Where all randomness of a round comes from; the operating system unless a test says so.

    Args:
        noise: makes a generator of rounding and noise.
        random: of session names and round secrets.
        identity: makes a long-term key.
    """

    noise: Callable[[], NoiseGenerator] = NoiseGenerator
    random: RandomBytes = system_random
    identity: Callable[[], IdentityKey] = IdentityKey.generate


class HonestClients:
    """Clients that do what they should; planted faults are subclasses."""

    def generators(self, sources: Sources, names: Sequence[str]) -> dict[str, NoiseGenerator]:
        """Each client's own generator of rounding and noise in one round."""
        return {name: sources.noise() for name in names}

    def contribute(
        self,
        codec: UpdateCodec,
        generator: NoiseGenerator,
        rows: NDArray[np.float64],
        place: int,
    ) -> NDArray[np.uint32]:
        """One client's encoded contribution.

        Args:
            codec: of the round.
            generator: of this client.
            rows: float64[k, d], this client's units.
            place: of this client in the cohort, from 0.

        Returns:
            uint32[plan.padded].
        """
        if codec.policy.unit == "client":
            return codec.encode_update(rows.sum(axis=0), generator)
        return codec.encode_examples(rows, generator)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which rounds canaries are put in, and who looks.

    Args:
        policy: of the rounds; with ``"distributed"`` or ``"central"`` noise, or none.
        clients: n of a round, >= 2.
        adversary: whose view is scored; it has as many colluding clients as its statement allows.
        dimension: d of an update, >= ``canaries``.  What is promised is computed for the same
            number, on which it depends by less than a percent.
        canaries: k of a release, >= 1: one a client for ``unit = "client"``; else at most
            ``max_examples`` a client.  1 is the classical audit of many runs; many are an audit in
            one run.  None: as many as fit into a quarter of the dimension.
        aggregation: how sums are formed where the policy is in force.
        masked: carry rounds under ``aggregation``.  Without, they are carried in plaintext with the
            same plan: masks and ciphertexts leave each sum as it is, bit for bit.
        dropouts: clients that fall silent before they contribute; None for as many as may, which is
            where an adversary learns most.
        scale: norm of a canary before clipping, over the clip, >= 1; what is above 1 is for the
            clipping to cut off.
        composed: rounds that a canary is in before it is scored, >= 1.
        behaviour: of the clients.
        sources: of all randomness.

    Raises:
        ConfigError: an argument is outside that, or the policy cannot be audited so.
    """

    policy: PrivacyPolicy
    clients: int
    adversary: Adversary
    dimension: int = 2048
    canaries: int | None = None
    aggregation: Aggregation = field(default_factory=PairwiseAggregation)
    masked: bool = False
    dropouts: int | None = None
    scale: float = 10.0
    composed: int = 1
    behaviour: HonestClients = field(default_factory=HonestClients)
    sources: Sources = field(default_factory=Sources)

    def __post_init__(self) -> None:
        check_audited(self.policy, self.composed)
        most = CohortBounds.of(self.policy, self.clients).most_missing
        if not 0 <= self.missing <= most:
            raise ConfigError(
                f"dropouts = {self.dropouts}: must be in 0..{most}, or no sum is opened"
            )
        if not self.scale >= 1.0:
            raise ConfigError(f"scale = {self.scale}: must be >= 1")
        if self.policy.remove_excess_noise and self.colluders and self.missing < most:
            raise ConfigError(
                f"dropouts = {self.dropouts}, adversary = {self.adversary!r}, remove_excess_noise "
                "= True: what colluding clients know of layers that are removed is not covered; "
                f"dropouts must be {most}, where none is, or adversary 'release'"
            )
        if not 1 <= self.count <= min(self.most_canaries, self.dimension):
            raise ConfigError(
                f"canaries = {self.canaries}: must be in 1..{self.most_canaries} for "
                f"{self.carriers} clients that can hold one (unit = {self.policy.unit!r}), and at "
                f"most {self.dimension}, the dimension"
            )

    @property
    def count(self) -> int:
        """Canaries of a release."""
        if self.canaries is None:
            return min(self.most_canaries, max(1, self.dimension // 4))
        return self.canaries

    @property
    def missing(self) -> int:
        """Clients that fall silent."""
        most = CohortBounds.of(self.policy, self.clients).most_missing
        return most if self.dropouts is None else self.dropouts

    @property
    def colluders(self) -> int:
        """Clients of a round that tell the adversary what they sent."""
        bounds = CohortBounds.of(self.policy, self.clients)
        return {"server": bounds.corrupt, "release": 0, "fellow_client": 1}[self.adversary]

    @property
    def carriers(self) -> int:
        """Clients of a round that can hold a canary."""
        return self.clients - self.missing - self.colluders

    @property
    def as_stated(self) -> bool:
        """Whether rounds are carried under ``aggregation``; those that remove noise must be."""
        return self.masked or self.policy.remove_excess_noise

    @property
    def most_canaries(self) -> int:
        """Most canaries that a release has room for."""
        each = 1 if self.policy.unit == "client" else self.policy.max_examples or 1
        return each * self.carriers


def check_audited(policy: PrivacyPolicy, composed: int) -> None:
    """Refuse a policy that promises something of more, or of less, than rounds.

    Raises:
        ConfigError: says why.
    """
    if policy.mechanism == "local":
        raise ConfigError(
            "mechanism = 'local': its noise is in each client's training, which an audit of rounds "
            "does not run"
        )
    if policy.separation is not None:
        raise ConfigError(
            f"separation = {policy.separation}: noise correlated over rounds is not audited; what "
            "is audited has independent noise in each round"
        )
    if policy.unit == "client" and policy.sampling_probability < 1.0:
        raise ConfigError(
            f"sampling_probability = {policy.sampling_probability:g}, unit = 'client': drawing "
            "clients is not part of a round; audit rounds of those who were drawn, with "
            "sampling_probability = 1"
        )
    if composed < 1 or (policy.adaptive_clip is not None and composed > 1):
        raise ConfigError(
            f"composed = {composed}: must be >= 1, and 1 with adaptive_clip, whose rounds differ"
        )


class Releases:
    """Rounds of one setting, each with fresh canaries, coins and noise.

    Args:
        setting: of all rounds.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.names = tuple(f"site-{i:05d}" for i in range(setting.clients))
        sources = setting.sources
        self._keys = {name: sources.identity() for name in self.names}
        self._decryptor = sources.identity()
        roster = {name: key.public for name, key in self._keys.items()}
        if setting.aggregation.has_decryptor:
            roster[DECRYPTOR] = self._decryptor.public
        # Carriers come first, then those that fall silent, then those that collude.
        self._silent: dict[str, Stage] = dict.fromkeys(
            self.names[setting.carriers : setting.carriers + setting.missing], "masked_input"
        )
        self._colluders = self.names[setting.carriers + setting.missing :]
        self._session = partial(
            RoundSession,
            cohort=self.names,
            roster=roster,
            dimension=setting.dimension,
            policy=setting.policy,
            model=hashlib.sha256(b"securefed/1/audit of epsilon").digest(),
        )
        self.stated = self._next(1, setting.aggregation)
        bits = setting.aggregation.ring_bits(
            setting.policy, cohort_size=setting.clients, dimension=setting.dimension
        )
        self._carried: Aggregation = (
            setting.aggregation if setting.as_stated else PlaintextAggregation(bits=bits)
        )

    @property
    def statement(self) -> PrivacyGuarantee:
        """What is promised against this adversary over ``composed`` rounds: the accountant's."""
        setting = self.setting
        return self.stated.guarantee(setting.adversary, rounds=setting.composed)

    def observe(self, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Toss a coin for each of k canaries, put those that are in into rounds, and score all.

        Args:
            rng: of canaries and coins; noise has its own source.

        Returns:
            bool[k]: which are in; float64[k]: scores, in units of the clip, over all rounds.
        """
        setting = self.setting
        chosen = directions(setting.count, setting.dimension, rng)
        inside = rng.random(setting.count) < 0.5
        sent = inside[:, None] * chosen * (setting.scale * setting.policy.clip_norm)
        # A unit that is out is a row of zeros: that is the neighbour which statements speak of.
        # All clients hold equally many, or streams from one seed would not be in step.
        each = math.ceil(setting.count / setting.carriers)
        rows = {name: np.zeros((each, setting.dimension)) for name in self.names}
        for number, row in enumerate(sent):
            rows[self.names[number % setting.carriers]][number // setting.carriers] = row
        found = np.zeros(setting.count)
        for number in range(1, setting.composed + 1):
            released, known = self.release(rows, number)
            found += scores(released, chosen, setting.policy.clip_norm, known)
        return inside, found

    def release(
        self, rows: Mapping[str, NDArray[np.float64]], number: int = 1
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """Carry one round.

        Args:
            rows: float64[k_i, d], the units of each client.
            number: of the round.

        Returns:
            float64[d], the released sum, and float64[d] of each colluding client.
        """
        setting, sources = self.setting, self.setting.sources
        session = self._next(number, self._carried)
        noise = setting.behaviour.generators(sources, self.names)
        known: dict[str, NDArray[np.uint32]] = {}

        def encode(name: str, codec: UpdateCodec, generator: NoiseGenerator) -> NDArray[np.uint32]:
            made = setting.behaviour.contribute(
                codec, generator, rows[name], self.names.index(name)
            )
            if name in self._colluders:
                known[name] = made
            return made

        clients: dict[str, AggregationClient] = {
            name: ClientRound(
                session,
                name,
                self._keys[name],
                partial(encode, name),
                generator=noise[name],
                random=sources.random,
            )
            for name in self.names
        }
        if self._carried.has_decryptor:
            clients[DECRYPTOR] = Decryptor(session.context, self._decryptor)
        server = ServerRound(session, generator=sources.noise())
        carry(server, clients, drop=self._silent, keep_transcript=False)
        return server.sum, [session.codec.decode(made) for made in known.values()]

    def _next(self, number: int, aggregation: Aggregation) -> RoundSession:
        return self._session(
            session=self.setting.sources.random(SESSION_BYTES),
            round=number,
            aggregation=aggregation,
        )
