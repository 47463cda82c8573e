"""Kinds of run between machines: each against the same run in one process, with noise known."""

import hashlib
import inspect
import json
from pathlib import Path

import numpy as np
import own_trainers
import pytest
from deployed import CLOCK, DirectCourier, write_deployment
from safetensors.numpy import load, load_file

from securefed import Federation
from securefed.agent.kept import KeptStates
from securefed.config import load_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines import trainers, workbench
from securefed.engines.deployed import local_config
from securefed.engines.events import Silent
from securefed.engines.remote_federation import federate
from securefed.engines.run_folder import RunFolder
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, ThresholdNotMet
from securefed.evidence.ledger import read_ledger

LOCAL = {
    "privacy": {"mechanism": "local", "noise_multiplier": 0.8, "sample_is_secret": False},
    "training": {
        "local_steps": 2,
        "local_learning_rate": 0.01,
        "server_learning_rate": 1.0,
        "server_optimizer": "sgd",
    },
}
# Sums without noise, which alone can be compared; owners of real data leave "none" out.
QUIET = {"unit": "client", "mechanism": "none", "noise_multiplier": None}
QUIET_OWNERS = {
    "floors": {
        "units": ["client"],
        "mechanisms": ["none"],
        "min_noise_multiplier": 0.0,
        "max_clip_norm": 10.0,
    },
    "budget": {"unit": "client"},
}
CLIENTS = {"privacy": {"unit": "client", "mechanism": "distributed", "noise_multiplier": 0.8}}
OF_CLIENTS = {
    "floors": {"units": ["client"], "exact_figures": False},
    "budget": {"unit": "client"},
}
# Sums without noise, which alone can be compared; owners of real data leave "none" out.
QUIET = {"unit": "client", "mechanism": "none", "noise_multiplier": None}
QUIET_OWNERS = {
    "floors": {
        "units": ["client"],
        "mechanisms": ["none"],
        "min_noise_multiplier": 0.0,
        "max_clip_norm": 10.0,
    },
    "budget": {"unit": "client"},
}
LOCAL_FLOORS = {"mechanisms": ["local"], "exact_figures": False}


class Told(Silent):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


class Counted(NoiseGenerator):
    """Streams that come again: the n-th one made has a key that follows from n."""

    made = 0

    def __new__(cls):
        Counted.made += 1
        return NoiseGenerator.from_key(hashlib.sha256(b"%d" % Counted.made).digest())


def agents_of(world, **sections):
    names = sorted(world.identities)
    world.started = [world.agent(name, **sections) for name in names]
    return {100 + i: agent.handle for i, agent in enumerate(world.started)}


def close(world):
    """As the end of the agents' processes does."""
    for agent in world.started:
        agent._spending.close()
        agent._runs.close()


def between_machines(world, courier=None, **sections):
    courier = DirectCourier(agents_of(world, **sections)) if courier is None else courier
    return federate(world.deployment, courier, observer=Silent(), clock=lambda: CLOCK)


def in_one_process(world):
    """The same run file and clients, in one process."""
    config = local_config(
        load_config(world.run_file),
        model=str(world.folder / "model"),
        data=str(world.folder / "data"),
    )
    values = config.model_dump(mode="json", exclude_none=True)
    values["data"]["clients"] = sorted(world.identities)
    own = type(config).model_validate(values)
    return Federation(own, cache=world.folder / "cache", offline=True).run(world.folder / "own")


def check_alike(one, other):
    """The adapters are one, but for where the grid of the sums rounds."""
    first, second = (
        load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (one, other)
    )
    begun = load_file(RunFolder(one.folder).initial)
    begun = {name.replace(".default", ""): value for name, value in begun.items()}
    assert sorted(first) == sorted(second) == sorted(begun)
    moved = max(float(np.abs(first[name] - begun[name]).max()) for name in first)
    apart = max(float(np.abs(first[name] - second[name]).max()) for name in first)
    assert moved > 1e-3
    assert apart < 2e-4 * moved


def test_local_noise_between_machines_gives_the_adapter_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(trainers, "NoiseGenerator", Counted)
    world = write_deployment(tmp_path, clients=3, **LOCAL)
    Counted.made = 0
    remote = between_machines(world, floors=LOCAL_FLOORS)
    Counted.made = 0
    check_alike(remote, in_one_process(world))
    verdict = verify_run(remote.folder)
    assert verdict.finished
    assert verdict.incomplete == []
    said = [json.loads(line) for line in world.logs["site-0"].getvalue().splitlines()]
    spent = [line["epsilon_in_all"] for line in said if line["event"] == "charged"]
    assert len(spent) == 2
    assert 0 < spent[0] < spent[1] < 1e5
    assert spent[1] == pytest.approx(remote.guarantees["server"].epsilon)


def test_a_run_with_local_noise_ends_without_spending_where_an_owner_wants_more_of_it(tmp_path):
    world = write_deployment(tmp_path, clients=3, **LOCAL)
    with pytest.raises(ThresholdNotMet):
        between_machines(world, floors=LOCAL_FLOORS | {"min_noise_multiplier": 0.9})
    total = world.folder / "accounts" / "site-1" / "total.jsonl"
    assert [record.kind for record in read_ledger(total)] == ["genesis"]


KEEPING = {
    "fedsa": {"lora": {"sharing": "fedsa"}},
    "scaffold": {
        "training": {"control_weight": 0.5, "local_optimizer": "sgd", "local_learning_rate": 0.5}
    },
    "error feedback": {
        "training": {"sparsify": "random", "keep_fraction": 0.5, "error_feedback": True}
    },
}
STEPS = {
    "local_steps": 2,
    "server_learning_rate": 1.0,
    "server_optimizer": "sgd",
    "local_learning_rate": 0.01,
}


def test_whole_clients_and_local_steps_give_the_adapter_of_one_process(tmp_path):
    world = write_deployment(tmp_path, clients=3, privacy=QUIET, training=STEPS)
    check_alike(between_machines(world, **QUIET_OWNERS), in_one_process(world))


def test_a_whole_clients_noise_is_charged_by_its_owner(tmp_path):
    world = write_deployment(tmp_path, clients=3, training=STEPS | {"rounds": 1}, **CLIENTS)
    result = between_machines(world, **OF_CLIENTS)
    verdict = verify_run(result.folder)
    assert verdict.finished
    assert verdict.incomplete == []
    said = [json.loads(line) for line in world.logs["site-0"].getvalue().splitlines()]
    spent = [line["epsilon_in_all"] for line in said if line["event"] == "charged"]
    assert spent == [pytest.approx(result.guarantees["server"].epsilon)]


def test_a_trainer_of_the_owners_own_runs_at_the_owners_place_alone(tmp_path, monkeypatch):
    named = "own_trainers:Quiet"
    world = write_deployment(
        tmp_path, clients=3, privacy=QUIET, training=STEPS | {"trainer": named}
    )
    own_trainers.Quiet.made.clear()
    courier = DirectCourier(agents_of(world, runs={"trainers": [named]}, **QUIET_OWNERS))
    with monkeypatch.context() as at_the_server:
        at_the_server.setattr(workbench, "load_trainer", at_owners(workbench.load_trainer))
        remote = between_machines(world, courier)
    called = [each.calls for each in own_trainers.Quiet.made if each.calls]
    assert sorted(called) == [[1]] * 3 + [[2]] * 3
    check_alike(remote, in_one_process(world))


def at_owners(load):
    """The server, which comes before the first round, has no use for the class."""

    def checked(*arguments):
        callers = {frame.function for frame in inspect.stack()}
        assert "federate" not in callers or "handle" in callers
        return load(*arguments)

    return checked


def test_a_trainer_that_the_owner_does_not_name_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\nclass Trainer: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    named = "planted:Trainer"
    world = write_deployment(
        tmp_path, clients=3, privacy=QUIET, training=STEPS | {"trainer": named}
    )
    for allowed in ((), ("planted:Other", "own_trainers:Quiet")):
        with pytest.raises(ConfigError, match=r"planted:Trainer.*runs\.trainers.*not imported"):
            world.site("site-0", allowed)
    with pytest.raises(SystemExit, match="imported"):  # the file would have run
        world.site("site-0", (named,))


def keeping(folder, kind, **sections):
    training = STEPS | {"rounds": 3} | KEEPING[kind].get("training", {})
    given = {"privacy": QUIET} | KEEPING[kind] | {"training": training} | sections
    return write_deployment(folder, clients=3, **given)


def kept_of(world, name):
    """What lies on an owner's disk: after the last sum, and what was made in an attempt."""
    (path,) = (world.folder / "accounts" / name / "runs" / "kept").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    ledger = read_ledger(RunFolder(Path(world.deployment.out)).ledger)[0].hash
    return KeptStates(path.parent, name)._read(ledger)


@pytest.mark.parametrize("kind", KEEPING)
def test_what_clients_keep_and_the_adapter_are_those_of_one_process(tmp_path, kind):
    world = keeping(tmp_path, kind)
    remote, own = between_machines(world, **QUIET_OWNERS), in_one_process(world)
    check_alike(remote, own)
    assert verify_run(remote.folder).finished
    assert not (remote.folder / "personal").exists() or not any(
        path.is_file() for path in (remote.folder / "personal").rglob("*")
    )  # nothing of it is at the server
    for name in world.identities:
        _, last = kept_of(world, name)
        assert last.round == 3
        here = {key.partition("/")[2]: value for key, value in load(last.state).items()}
        there = {
            key: value
            for path in (own.folder / "personal" / name).glob("*-3.safetensors")
            for key, value in load_file(path).items()
        }
        assert sorted(here) == sorted(there) != []
        for key, value in there.items():
            size = float(np.abs(value).max())
            assert size > 0
            assert float(np.abs(here[key] - value).max()) < 1e-2 * size


def test_it_survives_restarts_of_agents_and_server_and_a_failed_attempt(tmp_path):
    """In round 2 too few are heard of after they sent; server and agents end; all begin anew."""
    world, rounds = keeping(tmp_path, "scaffold"), []
    courier = DirectCourier(agents_of(world, **QUIET_OWNERS))

    def cut(node, what):
        rounds.append(what) if what == "advertise" and node == 100 else None
        # figures before, round 1, figures after it or round 2
        return len(rounds) == 3 and what == "consistency" and node != 100

    courier.lost = cut
    with pytest.raises(ThresholdNotMet):
        between_machines(world, courier)
    before = {name: kept_of(world, name) for name in world.identities}
    for settled, attempt in before.values():
        assert (settled.round, attempt.round) == (1, 2)
    close(world)
    world.deployment = world.deployment.model_copy(update={"resume": True})
    resumed = DirectCourier(agents_of(world, **QUIET_OWNERS))
    remote = between_machines(world, resumed)
    for name in world.identities:
        settled, attempt = kept_of(world, name)
        assert (settled.round, attempt.round) == (2, 3)
        assert settled.session != before[name][1].session  # that attempt was never summed
    close(world)
    check_alike(remote, in_one_process(world))


def test_a_kept_state_that_was_lost_or_is_an_older_copy_is_noticed(tmp_path):
    world = keeping(tmp_path, "error feedback")
    courier, rounds, copies = DirectCourier(agents_of(world, **QUIET_OWNERS)), [], {}
    folder = world.folder / "accounts" / "site-1" / "runs" / "kept"

    def restored(node, what):
        if what == "advertise" and node == 100:
            rounds.append(what)
            if len(rounds) == 3:  # round 2
                copies.update({path: path.read_bytes() for path in folder.iterdir()})
            if len(rounds) == 4:  # round 3
                for path, content in copies.items():
                    path.write_bytes(content)
        return False

    courier.lost = restored
    with pytest.raises(ThresholdNotMet):
        between_machines(world, courier)
    said = [json.loads(line) for line in world.logs["site-1"].getvalue().splitlines()]
    assert any("is an older copy" in line.get("why", "") for line in said)


def test_a_factor_of_its_own_under_local_noise_comes_of_charged_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(trainers, "NoiseGenerator", Counted)
    world = write_deployment(tmp_path, clients=3, lora={"sharing": "fedsa"}, **LOCAL)
    Counted.made = 0
    remote = between_machines(world, floors=LOCAL_FLOORS)
    Counted.made = 0
    check_alike(remote, in_one_process(world))
    for name in world.identities:
        settled, attempt = kept_of(world, name)
        charged = {
            record.body["session"]
            for path in (world.folder / "accounts" / name).glob("*.jsonl")
            for record in read_ledger(path)
            if record.kind == "charge"
        }
        assert {settled.session, attempt.session} == charged


COUNTED = {"figures": "histogram", "histogram": {"noise_multiplier": 2.0}}
PERSONAL = {"kind": "adapter", "steps": 4, "batch_size": 4, "measured": False}


@pytest.mark.parametrize(
    "sections",
    [{"lora": {"sharing": "fedsa"}}, {"personal": PERSONAL}],
    ids=["own factor", "own adapter"],
)
def test_an_adapter_of_the_clients_own_is_made_at_its_agent_and_is_that_of_one_process(
    tmp_path, sections
):
    world = write_deployment(tmp_path, clients=3, privacy=QUIET, training=STEPS, **sections)
    courier = DirectCourier(agents_of(world, **QUIET_OWNERS))
    remote, own = between_machines(world, courier), in_one_process(world)
    assert courier.stages[-1] == "ending"
    assert not any((remote.folder / "personal").glob("**/adapter_model.safetensors"))
    seen = set()
    for name, agent in zip(sorted(world.identities), world.started, strict=True):
        ended = world.folder / "accounts" / name / "runs" / "ended"
        assert not any(path.is_dir() for path in ended.iterdir())  # nothing waits for it
        agent.finish()
        (made,) = (path for path in ended.iterdir() if path.is_dir())
        agent.finish()  # it is made once
        here = load_file(made / "adapter" / "adapter_model.safetensors")
        there = load_file(own.folder / "personal" / name / "adapter" / "adapter_model.safetensors")
        assert sorted(here) == sorted(there)
        for key, value in there.items():
            assert np.allclose(here[key], value, rtol=0, atol=1e-4)
        size = [hashlib.sha256(value.tobytes()).hexdigest() for value in here.values()]
        seen.add(tuple(size))
    assert len(seen) == 3  # each has its own
    said = [json.loads(line)["event"] for line in world.logs["site-0"].getvalue().splitlines()]
    assert [event for event in said if "finish" in event] == ["finishing", "finished"]


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"aggregation": {"kind": "bfv"}}, r"aggregation\.kind = 'bfv' \(no agent holds the key"),
        ({"cohort": {"ranks": [{"clients": "others", "rank": 1}]}}, r"cohort\.ranks"),
        ({"personal": {"kind": "adapter"}}, r"personal\.measured \(.* by delay"),
        ({"evaluation": COUNTED}, r"evaluation\.figures = 'histogram'"),
        ({"evaluation": {"show_clients": True}}, r"evaluation\.show_clients"),
        (
            {"privacy": {"mechanism": "central", "sampling": "cyclic"}},
            r"privacy\.sampling = 'cyclic'",
        ),
    ],
)
def test_what_only_a_simulation_carries_out_is_refused_with_the_reason(tmp_path, sections, named):
    world = write_deployment(tmp_path, clients=3, **sections)
    with pytest.raises(ConfigError, match=named):
        federate(world.deployment, DirectCourier({}))
    with pytest.raises(ConfigError, match=named):
        world.site("site-0")


def test_who_missed_the_end_of_a_run_is_handed_the_adapter_when_it_is_resumed(tmp_path):
    world = write_deployment(
        tmp_path, clients=3, privacy=QUIET, training=STEPS, lora={"sharing": "fedsa"}
    )
    courier = DirectCourier(agents_of(world, **QUIET_OWNERS))
    courier.lost = lambda node, what: what == "ending" and node == 102
    first = between_machines(world, courier)
    folders = {n: world.folder / "accounts" / n / "runs" / "ended" for n in world.identities}
    taken = {name: sorted(folder.iterdir()) for name, folder in folders.items()}
    assert [len(taken[name]) for name in sorted(taken)] == [1, 1, 0]
    content = taken["site-0"][0].read_bytes()
    courier.lost = lambda node, what: False
    world.deployment = world.deployment.model_copy(update={"resume": True})
    assert between_machines(world, courier).rounds == first.rounds
    assert [len(list(folders[name].iterdir())) for name in sorted(folders)] == [1, 1, 1]
    assert taken["site-0"][0].read_bytes() == content
    assert verify_run(first.folder).finished
