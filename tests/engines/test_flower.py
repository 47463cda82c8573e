"""Rounds over Flower: its own grid, messages and ClientApp, and agents behind real sockets."""

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from deployed import write_deployment
from flower_grid import Grid
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from recorded_agents import listening, one_round, quiet, recorded_agents, total
from recorded_site import session_of

from securefed.engines.flower import GridCourier, client_app, packed, server_app
from securefed.engines.in_process import carry
from securefed.engines.verify import verify_run
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound

DIMENSION = 40


@pytest.fixture
def recorded(tmp_path):
    """Four agents with recorded vectors, on a grid; noise off."""
    with recorded_agents(tmp_path, 4, DIMENSION) as world:
        yield world


def over_flower(recorded, dropped=lambda node, message: False, seconds=30.0):
    world, charged = Grid(client_app, recorded.sockets), []

    def drops(greeted):
        names = {node: client for client, node in greeted.nodes.items()}
        world.dropped = lambda node, message: dropped(names[node], message.metadata.group_id)

    with world.running() as grid:
        courier = GridCourier(grid, stage_seconds=seconds, wait_seconds=5.0, poll_seconds=0.01)
        half, carried = one_round(
            courier,
            recorded.server,
            recorded.roster,
            DIMENSION,
            charge=charged.append,
            then=drops,
        )
    return half, carried, charged


def in_process(recorded, drop):
    vectors, clients = recorded.vectors, recorded.roster.clients
    session = session_of(secrets.token_bytes(16), vectors, clients, DIMENSION)
    half = ServerRound(session)
    clients = {
        name: ClientRound(session, name, recorded.keys[name], lambda codec, g, v=vector: v)
        for name, vector in vectors.items()
    }
    carry(half, clients, drop=drop)
    return half


def test_integer_sums_over_flower_equal_those_in_process_to_the_bit(recorded):
    half, carried, charged = over_flower(recorded)
    expected = in_process(recorded, {})
    vectors = recorded.vectors
    plain = np.sum([v.astype(np.uint64) for v in vectors.values()], axis=0)
    assert np.array_equal(total(half), total(expected))
    assert np.array_equal(total(half), (plain & (2**32 - 1)).astype(np.uint32) & mask(half))
    assert half.survivors == expected.survivors == tuple(sorted(vectors))
    assert charged == sorted(vectors)
    assert not carried.refusals


def mask(half):
    return np.uint32((1 << half._session.plan.bits) - 1)


def test_a_node_that_falls_silent_is_a_dropout_and_the_sum_is_the_others(recorded):
    def silent(name, stage):
        return name == "site-2" and stage == "masked_input"

    half, carried, charged = over_flower(recorded, silent, seconds=3.0)
    expected = in_process(recorded, {"site-2": "masked_input"})
    assert np.array_equal(total(half), total(expected))
    assert half.survivors == ("site-0", "site-1", "site-3")
    assert "site-2" in charged
    assert "site-2" in carried.unanswered


def test_an_agent_that_is_gone_is_an_error_message_and_a_dropout(recorded):
    gone = recorded.sockets[1]

    def goes(name, stage):
        if name == "site-1" and stage == "share":
            gone.unlink()
        return False

    half, carried, charged = over_flower(recorded, goes)
    assert half.survivors == ("site-0", "site-2", "site-3")
    assert "site-1" not in charged
    assert "site-1" in carried.unanswered


class Inflated:
    """A grid that puts replies together from objects of their node's, as the one over HTTP does."""

    def __init__(self, grid, hostile, objects):
        self._grid, self._hostile, self._objects = grid, hostile, objects
        self.sent = {}

    def push_messages(self, messages):
        found = self._grid.push_messages(messages)
        self.sent = {each.metadata.dst_node_id: each.metadata.message_id for each in messages}
        return found

    def pull_messages(self, message_ids):
        return [self._inflated(each) for each in self._grid.pull_messages(message_ids)]

    def _inflated(self, reply):
        if reply.metadata.src_node_id != self._hostile:
            return reply
        return inflate_object_from_contents("reply", self._objects(self.sent, reply))


def of_another_node(sent, reply):
    """The SuperLink saw whose it is; the object says that it is the other node's."""
    (victim,) = sent.keys() - {reply.metadata.src_node_id}
    reply.metadata.__dict__["_src_node_id"] = victim
    reply.metadata.__dict__["_reply_to_message_id"] = sent[victim]
    return objects_of(reply)


def of_no_kind(sent, reply):
    objects = objects_of(reply)
    return objects | {"reply": objects["reply"].replace(b"Message", b"Massage", 1)}


def of_another_kind(sent, reply):
    return {"reply": ConfigRecord({"no": "message"}).deflate()}


def of_content_alone(sent, reply):
    return {"reply": RecordDict().deflate()}


def objects_of(reply):
    found, waiting = {"reply": reply.deflate()}, [reply]
    while waiting:
        for key, child in (waiting.pop().children or {}).items():
            found[key] = child.deflate()
            waiting.append(child)
    return found


@pytest.mark.parametrize(
    "objects", [of_another_node, of_no_kind, of_another_kind, of_content_alone]
)
def test_a_node_has_no_part_in_what_others_are_heard_to_say(tmp_path, objects):
    app = ClientApp()

    @app.train("relay")
    def relay(message, context):
        return Message(packed(b"of %d" % context.node_id), reply_to=message)

    world = Grid(app, [tmp_path / "a", tmp_path / "b"])
    hostile, honest = world.sockets
    begun = time.monotonic()

    def slowly(node, message, answer):
        if node == honest:  # the other is first
            time.sleep(1.0)
        return answer(message)

    world.deliver = slowly
    with world.running() as grid:
        courier = GridCourier(
            Inflated(grid, hostile, objects), stage_seconds=30.0, wait_seconds=5.0
        )
        replies = courier.exchange({hostile: b"?", honest: b"?"}, what="hello")
    assert replies[honest] == b"of %d" % honest
    assert replies.keys() <= {hostile, honest}
    assert time.monotonic() - begun < 20.0  # nobody was waited for in vain


def test_the_whole_server_app_trains_a_tiny_model_over_flower(tmp_path, monkeypatch):
    world = write_deployment(tmp_path, clients=3, training={"rounds": 1})
    with ExitStack() as held:
        sockets = []
        for name in world.identities:
            path = tmp_path / f"s-{name}" / "agent.sock"
            held.enter_context(listening(path, world.agent(name), quiet(tmp_path / f"{name}.log")))
            sockets.append(path)
        grid = Grid(client_app, sockets)
        with grid.running() as running:
            from flwr.app import Context, RecordDict

            names = ("run_file", "roster", "key", "out", "model")
            places = {name: getattr(world.deployment, name) for name in names}
            (tmp_path / "deployment.toml").write_text(tomli_w.dumps(places | {"log": "server.log"}))
            monkeypatch.setenv("SECUREFED_DEPLOYMENT", str(tmp_path / "deployment.toml"))
            config = {"stage-seconds": 60.0, "wait-seconds": 5.0, "offline": True}
            server_app(running, Context(1, 0, {}, RecordDict(), config))
    verdict = verify_run(Path(world.deployment.out))
    assert verdict.finished
    events = [json.loads(x)["event"] for x in (tmp_path / "server.log").read_text().splitlines()]
    assert (events[0], events[-1], events.count("round")) == ("started", "finished", 2)


def test_a_client_app_loads_neither_model_nor_training():
    program = (
        "import sys; import securefed.engines.flower as f; assert f.client_app; "
        "print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"},
    )
    loaded = set(done.stdout.split())
    assert "flwr" in loaded
    assert not loaded & {"torch", "peft", "transformers", "opacus", "safetensors", "tenseal"}
