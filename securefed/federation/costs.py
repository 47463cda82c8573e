"""What a pairwise round costs: bytes exactly as they are sent, seconds from measured unit costs.

Symbols: n clients invited, p_s of them present in stage s, d values of b bits; k, t, w, q from
:class:`~securefed.secagg.parameters.PairwiseParameters`.  Whoever is there in stage s has
k (p_s - 1) / (n - 1) neighbours there on average, since the ring's order is uniform; bytes and
seconds are means over the clients present.

What grows with n for one client: the nonce list (16 bytes and a hash a client, stage ``share``),
the survivor bitmap (a bit a client, stage ``consistency``).  The roster grows too, but is held
before the round and not counted here: reading it and hashing it into the context takes about 4
microseconds a client.  All else grows with k, which is about log n, or with q and t, which are
proportional to k; sharing a secret takes k t steps.

Rounds that remove excess noise are not covered: a client's bundles then hold a share more for each
client that may be missing, and both sides draw those layers: ``tests/bench/bench_excess_noise.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from securefed.config import STAGES, Stage, share_of
from securefed.crypto.identity import SIGNATURE_BYTES
from securefed.crypto.shamir import SHARE_BYTES
from securefed.encoding.wire import MAX_RING_BITS, packed_size
from securefed.errors import ConfigError
from securefed.privacy.policy import CohortBounds
from securefed.secagg.graph import HASH_BYTES, NONCE_BYTES
from securefed.secagg.messages import EDGE_WRAP_BYTES, ENVELOPE_BYTES, Advertisement
from securefed.secagg.parameters import SPARSE_FROM, PairwiseParameters

_HEADER = 6
_COUNT = 4  # also an index, and the length of a blob
_SIGNED = _HEADER + _COUNT + (_COUNT + SIGNATURE_BYTES) + _COUNT
_BUNDLE = ENVELOPE_BYTES + 1 + _COUNT + SIGNATURE_BYTES
_EDGE = EDGE_WRAP_BYTES + HASH_BYTES


@dataclass(frozen=True, kw_only=True)
class CohortPlan:
    """A round in outline: how many clients, of what, and how many are lost on the way.

    Args:
        clients: n, clients invited, >= 2.
        values: d, ring elements in a contribution, >= 1.
        bits: b, ring width, 20..32.
        drop: share of the clients still there that falls silent before each stage, the first
            included, in [0, 1); ``floor(drop * present)`` of them each time.
        corrupt: share of the cohort that may collude with the server, in [0, 1).
        seed: of contributions and of who is lost, where the round is run.

    Raises:
        ConfigError: a field is out of range.
    """

    clients: int
    values: int = 1_000
    bits: int = MAX_RING_BITS
    drop: float = 0.05
    corrupt: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("drop", self.drop), ("corrupt", self.corrupt)):
            if not 0 <= value < 1:
                raise ConfigError(f"{name} = {value}: must be in [0, 1)")
        for name, count, least in (
            ("clients", self.clients, 2),
            ("values", self.values, 1),
            ("seed", self.seed, 0),
        ):
            if count < least:
                raise ConfigError(f"{name} = {count}: must be >= {least}")
        packed_size(self.values, self.bits)

    @cached_property
    def present(self) -> dict[Stage, int]:
        """How many clients answer in each stage of the round."""
        left, found = self.clients, {}
        for stage in STAGES:
            if stage == "graph" and self.clients < SPARSE_FROM:
                continue
            left -= share_of(self.drop, left)
            found[stage] = left
        return found

    @cached_property
    def parameters(self) -> PairwiseParameters:
        """Degree and thresholds, for a survivor floor of those who are still there at the end.

        Raises:
            ConfigError: no degree and thresholds allow for the loss.
        """
        return PairwiseParameters.of(
            CohortBounds(
                size=self.clients,
                corrupt=share_of(self.corrupt, self.clients),
                survivor_floor=self.present["unmask"],
            )
        )

    def neighbours(self, stage: Stage) -> float:
        """Mean number of a client's neighbours that are there in ``stage``."""
        degree = self.parameters.degree
        return degree * (self.present[stage] - 1) / (self.clients - 1)


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """CPU seconds of the steps that rounds are made of, on one core.

    Attributes:
        keygen: a hybrid key pair from a seed.
        sign: a short message, framed.
        verify: a framed message, taken apart.
        sign_bundle: what covers a bundle, and its signature.
        verify_bundle: likewise.
        parse: an advertisement, and its two hybrid keys.
        seal: 66 bytes to a hybrid key, under a bound info.
        open: likewise.
        derive: a key or a commitment.
        write_bundle: to bytes.
        read_bundle: from bytes.
        draw: a coefficient of a polynomial.
        share_step: a coefficient at a point.
        weight_step: a pair of holders, for Lagrange's weights.
        read_share: a share in a reconstruction.
        keystream: a mask, whatever its length; ``keystream_value``: each value of it.
        pack_value: a value to the wire; ``unpack_value``: a value from it, added.
        nonce: a client in the nonce list, as its reader.
        place: a client in the ring's order.
        listed: a client in the survivor list, as its reader.
        write_signature: one in a list of confirmations; ``read_signature``: likewise.
        write_reveal: a share revealed; ``read_reveal``: likewise.
        hash: a byte of a message, hashed by who signs or checks it.
        copy: a byte copied into a message.
    """

    keygen: float
    sign: float
    verify: float
    sign_bundle: float
    verify_bundle: float
    parse: float
    seal: float
    open: float
    derive: float
    write_bundle: float
    read_bundle: float
    draw: float
    share_step: float
    weight_step: float
    read_share: float
    keystream: float
    keystream_value: float
    pack_value: float
    unpack_value: float
    nonce: float
    place: float
    listed: float
    write_signature: float
    read_signature: float
    write_reveal: float
    read_reveal: float
    hash: float
    copy: float


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage costs.

    Attributes:
        bytes_up: sent by a client, on average.
        bytes_down: the message that it answers, on average.
        client_seconds: CPU seconds of a client, on average.
        server_seconds: CPU seconds of the server: encoding what the clients answer, taking their
            answers, and ending the stage.
    """

    bytes_up: float
    bytes_down: float
    client_seconds: float = 0.0
    server_seconds: float = 0.0


@dataclass(frozen=True)
class RoundCost:
    """What a round costs: stage by stage, and a client that stays to the end."""

    plan: CohortPlan
    stages: dict[Stage, StageCost]

    @property
    def bytes_up(self) -> float:
        """Bytes a client sends."""
        return sum(stage.bytes_up for stage in self.stages.values())

    @property
    def bytes_down(self) -> float:
        """Bytes a client is sent."""
        return sum(stage.bytes_down for stage in self.stages.values())

    @property
    def client_seconds(self) -> float:
        """CPU seconds of a client."""
        return sum(stage.client_seconds for stage in self.stages.values())

    @property
    def server_seconds(self) -> float:
        """CPU seconds of the server."""
        return sum(stage.server_seconds for stage in self.stages.values())

    @property
    def server_bytes(self) -> float:
        """Bytes that the server takes in and sends, to those who answer."""
        return sum(
            self.plan.present[name] * (stage.bytes_up + stage.bytes_down)
            for name, stage in self.stages.items()
        )

    def linear(self, units: UnitCosts) -> tuple[float, float]:
        """Seconds and received bytes of a client that are proportional to the cohort's size.

        Nonce list, ring and survivor bitmap.  In a complete graph all else is linear too.
        """
        plan = self.plan
        seconds, size = plan.clients * units.listed, 2.0 * ((plan.clients + 7) // 8)
        if plan.parameters.sparse:
            revealed = plan.present["graph"]
            withheld = plan.present["advertise"] - revealed
            seconds += revealed * units.nonce + plan.clients * units.place
            size += NONCE_BYTES * revealed + (_COUNT + HASH_BYTES) * withheld
        return seconds, size


def predict(plan: CohortPlan, units: UnitCosts) -> RoundCost:
    """Bytes and seconds of a round.

    Raises:
        ConfigError: no degree and thresholds allow for the loss.
    """
    sizes = message_bytes(plan)
    client, server = _client_seconds(plan, units), _server_seconds(plan, units)
    return RoundCost(
        plan,
        {
            stage: StageCost(
                bytes_up=up,
                bytes_down=down,
                client_seconds=client[stage],
                server_seconds=server[stage],
            )
            for stage, (up, down) in sizes.items()
        },
    )


def message_bytes(plan: CohortPlan) -> dict[Stage, tuple[float, float]]:
    """By stage: mean bytes of a client's message, and of the server's that it answers.

    Exact where nobody is lost.  Identities are Ed25519.
    """
    p, parameters, n = plan.present, plan.parameters, plan.clients
    bitmap = (n + 7) // 8
    invited = plan.neighbours("graph" if parameters.sparse else "advertise")
    sharing = plan.neighbours("share")
    advert = _COUNT + _SIGNED + Advertisement.SIZE
    # One end of each edge gives its secret: half of a client's edges, on average.
    bundle = _COUNT + _BUNDLE + _EDGE / 2
    keys = (
        _HEADER + bitmap + NONCE_BYTES * p["graph"]
        + _COUNT + (_COUNT + HASH_BYTES) * (p["advertise"] - p["graph"])
        + _COUNT + advert * invited
        if parameters.sparse
        else _HEADER + _COUNT + advert * p["advertise"]
    )  # fmt: skip
    found: dict[Stage, tuple[float, float]] = {"advertise": (_SIGNED + Advertisement.SIZE, 0)}
    if parameters.sparse:
        found["graph"] = (_SIGNED + NONCE_BYTES + HASH_BYTES, _HEADER + HASH_BYTES)
    found["share"] = (_SIGNED + _COUNT + bundle * invited, keys)
    found["masked_input"] = (
        _SIGNED + HASH_BYTES + packed_size(plan.values, plan.bits),
        _HEADER + _COUNT + bundle * sharing,
    )
    found["consistency"] = (_SIGNED + SIGNATURE_BYTES, _HEADER + bitmap)
    found["unmask"] = (
        _SIGNED + 2 * _COUNT + (_COUNT + SHARE_BYTES) * (sharing + 1),
        _HEADER + _COUNT + (2 * _COUNT + SIGNATURE_BYTES) * parameters.quorum,
    )
    return found


def _client_seconds(plan: CohortPlan, u: UnitCosts) -> dict[Stage, float]:
    p, parameters = plan.present, plan.parameters
    t, d = parameters.threshold, plan.values
    invited = plan.neighbours("graph" if parameters.sparse else "advertise")
    sharing = plan.neighbours("share")
    mask = u.derive + u.keystream + d * u.keystream_value
    found: dict[Stage, float] = {"advertise": 2 * u.keygen + 3 * u.derive + u.sign}
    if parameters.sparse:
        found["graph"] = u.sign
    found["share"] = (
        (p["graph"] * u.nonce + plan.clients * u.place if parameters.sparse else 0.0)
        + invited * (u.verify + u.parse + u.seal + u.sign_bundle + u.write_bundle)
        + invited / 2 * (u.seal + 2 * u.derive)
        + 2 * t * (u.draw + (invited + 1) * u.share_step)
        + u.sign
    )
    found["masked_input"] = (
        sharing * (u.verify_bundle + u.open + u.read_bundle + mask)
        + sharing / 2 * (u.open + u.derive)
        + mask
        + d * u.pack_value
        + u.sign
    )
    found["consistency"] = plan.clients * u.listed + 2 * u.sign
    found["unmask"] = (
        parameters.quorum * (u.verify + u.read_signature) + sharing * u.write_reveal + u.sign
    )
    sizes = message_bytes(plan)
    return {
        stage: seconds + sizes[stage][0] * u.hash + sizes[stage][1] * u.copy
        for stage, seconds in found.items()
    }


def _server_seconds(plan: CohortPlan, u: UnitCosts) -> dict[Stage, float]:
    p, parameters, sizes = plan.present, plan.parameters, message_bytes(plan)
    t, d = parameters.threshold, plan.values
    invited = plan.neighbours("graph" if parameters.sparse else "advertise")
    sharing = plan.neighbours("share")
    mask = u.derive + u.keystream + d * u.keystream_value
    lost = p["share"] - p["masked_input"]
    each: dict[Stage, float] = {"advertise": u.verify + u.parse}
    if parameters.sparse:
        each["graph"] = u.verify + u.derive + 2 * u.nonce + u.place
    each["share"] = u.verify + invited * (u.read_bundle + u.verify_bundle)
    each["masked_input"] = u.verify + sharing * u.write_bundle + d * u.unpack_value
    each["consistency"] = 2 * u.verify + u.listed
    each["unmask"] = (
        u.verify + parameters.quorum * u.write_signature + (sharing + 1) * u.read_reveal
    )
    found = {
        stage: p[stage] * (seconds + sizes[stage][0] * u.hash + sizes[stage][1] * u.copy)
        for stage, seconds in each.items()
    }
    holders = p["share"] if parameters.sparse else 1  # a complete graph has one set of holders
    edge = (u.open + u.derive) / 2 + u.derive + mask
    found["unmask"] += (
        holders * t * t * u.weight_step
        + p["share"] * (t * u.read_share + u.derive)
        + p["masked_input"] * mask
        + lost * (u.keygen + plan.neighbours("masked_input") * edge)
    )
    return found
