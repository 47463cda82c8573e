"""Runs the vectors of messages, graphs and rounds; each bad case must raise its error."""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import securefed.errors
from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import derive
from securefed.privacy.layers import layer_noise
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.graph import Graph, commitments_hash, graph_seed, nonce_commitment
from securefed.secagg.messages import Advertisement, Neighbourhood, Reveal
from securefed.secagg.noise_layers import LAYER_NOISE, chain, layers_commitment
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.parameters import PairwiseParameters
from securefed.secagg.signed import Signed

FOLDER = Path(__file__).parents[1] / "vectors"
FILES = sorted(FOLDER.glob("messages_*.json"))
LAYERED = ("layers_commitment", "layer_shares")
BAD = [path for path in FILES if "_bad_" in path.stem]


def contents(stem):
    return json.loads((FOLDER / f"{stem}.json").read_text(encoding="utf-8"))


def shown(value: bytes) -> str:
    return value.hex() if len(value) <= 64 else "sha256:" + hashlib.sha256(value).hexdigest()


def by_index(values):
    return {str(index): shown(value) for index, value in values.items()}


def edges(case):
    return {int(index): edge for index, edge in case["with_edge"].items()}


def fields(value):
    """What a message decodes to, as its vector shows it."""
    if isinstance(value, bytes):
        return shown(value)
    if isinstance(value, dict):
        return {str(index): fields(item) for index, item in value.items()}
    if isinstance(value, Neighbourhood):
        return fields(vars(value))
    if isinstance(value, list) and value and isinstance(value[0], Signed):
        return [[item.sender, shown(item.body)] for item in value]
    if isinstance(value, (list, int)):
        return value
    names = [field.name for field in dataclasses.fields(value)]
    shown_of = {name: fields(getattr(value, name)) for name in names}
    # What only rounds with layers of noise have is not in the vectors of others.
    return {name: item for name, item in shown_of.items() if item or name not in LAYERED}


# Decoder and encoder, with the bounds that a case states.
CODECS = {
    "messages.signed": (
        lambda data, case: Signed.decode(data, limit=case["limit"]),
        lambda value, case: value.encode(),
    ),
    "messages.advertisement": (
        lambda data, case: Advertisement.decode(data),
        lambda value, case: value.encode(),
    ),
    "messages.layered_advertisement": (
        lambda data, case: Advertisement.decode(data, noise_layers=case["noise_layers"]),
        lambda value, case: value.encode(),
    ),
    "messages.layered_shares": (
        lambda data, case: wire_messages.decode_shares(
            data, with_edge=edges(case), noise_layers=case["noise_layers"]
        ),
        lambda value, case: wire_messages.encode_shares(value),
    ),
    "messages.layered_delivery": (
        lambda data, case: wire_messages.decode_delivery(
            data, with_edge=edges(case), noise_layers=case["noise_layers"]
        ),
        lambda value, case: wire_messages.encode_delivery(value),
    ),
    "messages.layered_reveal": (
        lambda data, case: Reveal.decode(
            data, size=case["size"], limit=case["limit"], excess=case["excess"]
        ),
        lambda value, case: value.encode(),
    ),
    "messages.advertised": (
        lambda data, case: wire_messages.decode_advertised(data, size=case["size"]),
        lambda value, case: wire_messages.encode_advertised({s.sender: s.encode() for s in value}),
    ),
    "messages.commitments": (
        lambda data, case: wire_messages.decode_commitments(data),
        lambda value, case: wire_messages.encode_commitments(value),
    ),
    "messages.neighbourhood": (
        lambda data, case: Neighbourhood.decode(data, size=case["size"], degree=case["degree"]),
        lambda value, case: value.encode(size=case["size"]),
    ),
    "messages.shares": (
        lambda data, case: wire_messages.decode_shares(data, with_edge=edges(case)),
        lambda value, case: wire_messages.encode_shares(value),
    ),
    "messages.delivery": (
        lambda data, case: wire_messages.decode_delivery(data, with_edge=edges(case)),
        lambda value, case: wire_messages.encode_delivery(value),
    ),
    "messages.keyed_delivery": (
        lambda data, case: dict(
            zip(
                ("offer", "bundles"),
                wire_messages.decode_keyed_delivery(
                    data, offer_limit=case["offer_limit"], with_edge=edges(case)
                ),
                strict=True,
            )
        ),
        lambda value, case: wire_messages.encode_keyed_delivery(value["offer"], value["bundles"]),
    ),
    "messages.survivors": (
        lambda data, case: wire_messages.decode_survivors(data, size=case["size"]),
        lambda value, case: wire_messages.encode_survivors(value, size=case["size"]),
    ),
    "messages.confirmations": (
        lambda data, case: wire_messages.decode_confirmations(
            data, size=case["size"], limit=case["limit"]
        ),
        lambda value, case: wire_messages.encode_confirmations(value),
    ),
    "messages.reveal": (
        lambda data, case: Reveal.decode(data, size=case["size"], limit=case["limit"]),
        lambda value, case: value.encode(),
    ),
}


def codec_case(operation, case):
    decode, encode = CODECS[operation]
    message = bytes.fromhex(case["message"])
    value = decode(message, case)
    assert encode(value, case) == message
    return fields(value)


def graph_order(case):
    graph = Graph.from_seed(
        bytes.fromhex(case["seed"]),
        size=case["size"],
        degree=case["degree"],
        witnesses=case["witnesses"],
    )
    near = graph.neighbours(0)
    return {
        "order": graph._order.tolist(),
        "neighbours_of_0": near,
        "witnesses_of_0": sorted(graph.witnesses(0)),
        "0_gives_to": [other for other in near if graph.gives(0, other)],
    }


def graph_seeds(case):
    digest = bytes.fromhex(case["digest"])
    nonces = {int(index): bytes.fromhex(nonce) for index, nonce in case["nonces"].items()}
    committed = {i: nonce_commitment(nonce, digest, i) for i, nonce in nonces.items()}
    return {
        "commitments": by_index(committed),
        "commitments_hash": commitments_hash(committed).hex(),
        "seed": graph_seed(digest, {i: nonces[i] for i in case["revealed"]}).hex(),
    }


def graph_complete(case):
    graph, size = Graph.complete(case["size"]), case["size"]
    return [[i, j] for i in range(size) for j in range(size) if i != j and graph.gives(i, j)]


def supplied(supply: bytes):
    position = 0

    def random(count: int) -> bytes:
        nonlocal position
        position += count
        assert position <= len(supply)
        return supply[position - count : position]

    return random


def whole_round(case):
    """Runs real clients and a real server on what the vector fixes."""
    names = tuple(case["cohort"])
    identities = [
        IdentityKey.generate(lambda count, seed=seed: bytes.fromhex(seed))
        for seed in case["identity_seeds"]
    ]
    context = RoundContext(
        session=bytes.fromhex(case["session"]),
        round=1,
        cohort=names,
        roster={name: key.public for name, key in zip(names, identities, strict=True)},
        length=case["length"],
        bits=case["bits"],
        parameters=PairwiseParameters(**case["parameters"]),
        binding=bytes.fromhex(case["binding"]),
    )
    clients = {}
    for i, name in enumerate(names):
        vector = np.array(case["contributions"][i], dtype=np.uint32)
        clients[name] = PairwiseClient(
            context,
            name,
            identities[i],
            lambda vector=vector: vector,
            random=supplied(bytes.fromhex(case["random"][i])),
        )
    server, sent = PairwiseServer(context), {}
    inbox = {name: None for name in names}
    found = case["expected"]["edge"]
    edge = {"giver": found["giver"], "taker": found["taker"]}
    while (stage := server.stage) is not None:
        for name, reply in inbox.items():
            if stage == "masked_input" and names.index(name) == case["dropped"]:
                continue
            message = clients[name].start() if reply is None else clients[name].handle(reply)
            sent.setdefault(stage, {})[str(names.index(name))] = shown(message)
            server.receive(name, message)
            if stage == "share" and names.index(name) == edge["giver"]:
                peer = clients[name]._secrets.peers[edge["taker"]]
                edge["secret"] = peer.edge_secret.hex()
                seed_of_0 = clients[names[0]]._secrets.self_seed
            if stage == "masked_input" and name == names[0]:
                masked = server._sum.total.copy()
        inbox = dict(server.advance())
    pair = edge["giver"], edge["taker"]
    secret = bytes.fromhex(edge["secret"])
    edge["commitment"] = keys.edge_commitment(secret, context.digest, *pair).hex()
    edge["keystream_key"] = keys.pair_keystream_key(
        secret, context.digest, server._view, *sorted(pair)
    ).hex()
    own_key = keys.self_keystream_key(seed_of_0, context.digest, server._view, 0)
    del sent["share"]  # sealing is randomised
    return {
        "digest": context.digest.hex(),
        "view": server._view.hex(),
        "order": server._relay.graph._order.tolist(),
        "edge": edge,
        "self_keystream_key_of_0": own_key.hex(),
        "masked_input_of_0": (masked & np.uint32((1 << case["bits"]) - 1)).tolist(),
        "statement": server._statement.hex(),
        "messages": sent,
        "total": server.result.total.tolist(),
    }


def noise_layers(case):
    """Chain, keys and commitments, and what a layer draws under its key."""
    digest, index = bytes.fromhex(case["digest"]), case["index"]
    seeds = chain(bytes.fromhex(case["seed"]), digest, index, case["count"])
    where = digest + index.to_bytes(4, "big")
    keys_of = [derive(seed, label=LAYER_NOISE, context=where) for seed in seeds]
    left = [layers_commitment(s, digest, index, case["count"] - k) for k, s in enumerate(seeds)]
    return {
        "seeds": [seed.hex() for seed in seeds],
        "keys": [key.hex() for key in keys_of],
        "commitments": [value.hex() for value in left],
        "noise": layer_noise(case["stds"], keys_of, case["values"]).tolist(),
    }


OTHERS = {
    "noise_layers": noise_layers,
    "graph.order": graph_order,
    "graph.seed": graph_seeds,
    "graph.complete": graph_complete,
    "round": whole_round,
}


@pytest.mark.parametrize(
    "path", [path for path in FILES if path not in BAD], ids=lambda path: path.stem
)
def test_a_vector_gives_its_value(path):
    content = contents(path.stem)
    assert content["success"]
    for case in content["cases"]:
        operation = content["operation"]
        found = OTHERS[operation](case) if operation in OTHERS else codec_case(operation, case)
        assert found == case["expected"]


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_patched_message_is_refused(path):
    content = contents(path.stem)
    good = contents(path.stem.replace("_bad_", "_"))["cases"][0]
    assert not content["success"]
    for case in content["cases"]:
        message = bytes.fromhex(good["message"])
        for offset, removed, inserted in case["patch"]:
            message = message[:offset] + bytes.fromhex(inserted) + message[offset + removed :]
        assert message.hex() != good["message"]
        with pytest.raises(getattr(securefed.errors, case["error"])) as caught:
            CODECS[content["operation"]][0](message, good)
        assert type(caught.value).__name__ == case["error"], case["about"]


def test_every_message_type_has_good_and_bad_vectors():
    kinds = {operation.removeprefix("messages.") for operation in CODECS}
    assert {path.stem.removeprefix("messages_bad_") for path in BAD} == kinds
    assert {contents(path.stem)["operation"] for path in FILES} == CODECS.keys() | OTHERS.keys()


def test_the_vectors_on_disk_are_those_that_the_generator_makes():
    path = FOLDER / "make_message_vectors.py"
    spec = importlib.util.spec_from_file_location("make_message_vectors", path)
    oracle = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracle)
    made = oracle.build()
    assert {path.stem for path in FILES} == set(made)
    for path in FILES:
        assert path.read_text(encoding="utf-8") == oracle.encode(made[path.stem]), path.name
