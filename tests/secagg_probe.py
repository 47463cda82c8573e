"""For tests with hostile bytes: every decoder with valid messages, and the state of a party."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from secagg_rounds import Cohort, drive

from securefed.config import Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey
from securefed.encoding.wire import pack_ring, unpack_ring
from securefed.errors import RemoteProtocolError
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.carriers import RingSum
from securefed.secagg.client_secrets import ClientSecrets
from securefed.secagg.graph import Graph
from securefed.secagg.messages import Advertisement, Bundle, Neighbourhood, Reveal
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.relay import Relay
from securefed.secagg.signed import Signed, signing_input


@dataclass(frozen=True)
class Codec:
    """A decoder, the encoder that must undo it, and messages of an honest round."""

    name: str
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    samples: tuple[bytes, ...]


def allocation_bound(data: bytes) -> int:
    """Most that decoding ``data`` may have allocated at once, of any decoder, in bytes."""
    return (64 << 10) + 32 * len(data)


def body_of(message: bytes) -> bytes:
    return Signed.decode(message, limit=len(message)).body


def resigned(cohort: Cohort, context: RoundContext, name: str, stage: Stage, body: bytes) -> bytes:
    """What a corrupt client would send: any body under its own good signature."""
    index = context.index(name)
    signature = cohort.identities[name].sign(
        signing_input(context.digest, index, body), label=keys.stage_label(stage)
    )
    return Signed(index, body, signature).encode()


def dealing(client: PairwiseClient, bundle_for: Callable[..., Bundle]) -> None:
    """Let a corrupt client make its bundles: ``bundle_for(original, other, shares, *keys)``."""
    start = client.start

    def started() -> bytes:
        message = start()
        secrets = client._secrets
        secrets.bundle_for = partial(bundle_for, secrets.bundle_for)
        return message

    client.start = started


def codecs() -> tuple[Codec, ...]:
    """Every codec of messages.py and the ring's, for three cohorts.

    One complete, one sparse, and one complete whose noise has layers that can be removed.
    """
    complete = _recorded(Cohort(size=6, length=5, bits=27, seed=1))
    sparse = _recorded(Cohort(size=13, degree=6, length=5, bits=27, seed=1))
    layered = _recorded(Cohort(size=7, length=5, bits=27, seed=1, dropout=0.3, noise=50.0))
    found = [
        *_codecs_of("complete", *complete),
        *_codecs_of("sparse", *sparse),
        *_codecs_of("layered", *layered),
    ]
    merged: dict[str, Codec] = {}
    for codec in found:
        if codec.samples:
            merged.setdefault(codec.name, codec)
    return tuple(merged.values())


_Recorded = tuple[Cohort, PairwiseServer, dict[Stage, list[bytes]], dict[Stage, list[bytes]]]


def _recorded(cohort: Cohort) -> _Recorded:
    """A round in which one client is lost before its input; what went up and what came down."""
    up: dict[Stage, list[bytes]] = {}
    down: dict[Stage, list[bytes]] = {}

    def keep(log: dict[Stage, list[bytes]], stage: Stage, name: str, message: bytes) -> bytes:
        log.setdefault(stage, []).append(message)
        return message

    outcome = drive(
        cohort,
        drop={cohort.names[1]: "masked_input"},
        meddle_up=partial(keep, up),
        meddle_down=partial(keep, down),
    )
    return cohort, outcome.server, up, down


def _codecs_of(
    kind: str,
    cohort: Cohort,
    server: PairwiseServer,
    up: dict[Stage, list[bytes]],
    down: dict[Stage, list[bytes]],
) -> Iterator[Codec]:
    size, degree = cohort.size, server._context.parameters.degree
    witnesses = server._context.parameters.witnesses
    graph = server._relay.graph
    around = graph.neighbours(0)
    gives = {other: graph.gives(0, other) for other in around}
    given = {other: graph.gives(other, 0) for other in around}
    first = {stage: [body_of(sent[0])] for stage, sent in up.items()}
    received = {stage: sent[0] for stage, sent in down.items()}
    layers = len(server._context.noise_layers)
    of_kind = f"{kind} " if layers else ""
    yield Codec(
        "signed",
        partial(Signed.decode, limit=Advertisement.SIZE),
        lambda value: value.encode(),
        tuple(sent[0] for stage, sent in up.items() if stage not in ("share",)),
    )
    yield Codec(
        f"{of_kind}advertisement",
        partial(Advertisement.decode, noise_layers=layers),
        lambda value: value.encode(),
        tuple(first["advertise"]),
    )
    yield Codec(
        f"{kind} shares",
        partial(wire_messages.decode_shares, with_edge=gives, noise_layers=layers),
        wire_messages.encode_shares,
        tuple(first["share"]),
    )
    yield Codec(
        f"{kind} delivery",
        partial(wire_messages.decode_delivery, with_edge=given, noise_layers=layers),
        wire_messages.encode_delivery,
        (received["masked_input"], wire_messages.encode_delivery({})),
    )
    bundles = wire_messages.decode_delivery(
        received["masked_input"], with_edge=given, noise_layers=layers
    )
    yield Codec(
        f"{of_kind}keyed delivery",
        partial(
            wire_messages.decode_keyed_delivery,
            offer_limit=100,
            with_edge=given,
            noise_layers=layers,
        ),
        lambda value: wire_messages.encode_keyed_delivery(*value),
        (wire_messages.encode_keyed_delivery(bytes(range(100)), bundles),),
    )
    yield Codec(
        f"{kind} survivors",
        partial(wire_messages.decode_survivors, size=size),
        partial(wire_messages.encode_survivors, size=size),
        (received["consistency"],),
    )
    yield Codec(
        f"{kind} confirmations",
        partial(wire_messages.decode_confirmations, size=size, limit=witnesses + 1),
        wire_messages.encode_confirmations,
        (received["unmask"],),
    )
    yield Codec(
        f"{kind} reveal",
        partial(Reveal.decode, size=size, limit=degree + 1, excess=layers > 1),
        lambda value: value.encode(),
        tuple(body_of(sent) for sent in up["unmask"][:3]),
    )
    yield Codec(
        "ring",
        partial(unpack_ring, count=cohort.length, bits=cohort.bits),
        partial(pack_ring, bits=cohort.bits),
        (first["masked_input"][0][32:],),
    )
    if kind != "sparse":
        yield Codec(
            f"{of_kind}advertised",
            partial(wire_messages.decode_advertised, size=size, noise_layers=layers),
            lambda value: wire_messages.encode_advertised({s.sender: s.encode() for s in value}),
            (received["share"],),
        )
    else:
        yield Codec(
            "commitments",
            wire_messages.decode_commitments,
            wire_messages.encode_commitments,
            (received["graph"],),
        )
        withheld = Neighbourhood.decode(received["share"], size=size, degree=degree)
        nonces = dict(withheld.nonces)
        fewer = Neighbourhood(
            {i: nonce for i, nonce in nonces.items() if i != 5}, {5: bytes(32)}, []
        )
        yield Codec(
            "neighbourhood",
            partial(Neighbourhood.decode, size=size, degree=degree),
            lambda value: value.encode(size=size),
            (received["share"], fewer.encode(size=size)),
        )


def check_decoder(codec: Codec, data: bytes) -> bool:
    """Decode; whether it was accepted.  Only a RemoteProtocolError refuses; encodings are unique.

    Raises:
        AssertionError: the decoded value has another encoding than ``data``.
    """
    try:
        value = codec.decode(data)
    except RemoteProtocolError:  # WireError is one
        return False
    again = codec.encode(value)
    if again != data:
        raise AssertionError(f"{codec.name}: {data.hex()} encodes again as {again.hex()}")
    return True


def frozen(value: Any) -> Any:
    """A deep, comparable picture of a party's state."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    if isinstance(value, RoundContext):
        return value.digest
    if isinstance(value, (HybridPrivateKey, IdentityKey)):
        return value.public.raw
    if isinstance(value, (PairwiseClient, PairwiseServer, ClientSecrets, Relay, RingSum, Graph)):
        return {key: frozen(item) for key, item in vars(value).items()}
    if dataclasses.is_dataclass(value):
        return [frozen(getattr(value, item.name)) for item in dataclasses.fields(value)]
    if slots := getattr(type(value), "__slots__", ()):
        return [frozen(getattr(value, name)) for name in slots]
    if isinstance(value, set):
        return set(value)
    return value


def twin(client: PairwiseClient) -> PairwiseClient:
    """A second client in the same state, which the first does not share containers with."""
    made = _apart(client)
    made._secrets = None if client._secrets is None else _apart(client._secrets)
    return made


def _apart(holder: Any) -> Any:
    made = object.__new__(type(holder))
    for name, value in vars(holder).items():
        setattr(made, name, value.copy() if isinstance(value, (dict, list)) else value)
    return made
