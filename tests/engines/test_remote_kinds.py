"""Kinds of run between machines: each against the same run in one process, with noise known."""

import hashlib
import inspect
import json

import numpy as np
import own_trainers
import pytest
from deployed import CLOCK, DirectCourier, write_deployment
from safetensors.numpy import load_file

from securefed import Federation
from securefed.config import load_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines import trainers, workbench
from securefed.engines.deployed import local_config
from securefed.engines.events import Silent
from securefed.engines.remote_federation import federate
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, ThresholdNotMet
from securefed.evidence.ledger import read_ledger

LOCAL = {
    "privacy": {"mechanism": "local", "noise_multiplier": 0.8, "sample_is_secret": False},
    "training": {"local_steps": 2, "local_learning_rate": 0.01, "server_learning_rate": 1.0},
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
    return {100 + i: world.agent(name, **sections).handle for i, name in enumerate(names)}


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


def adapter_of(result):
    return load_file(result.folder / "adapter" / "adapter_model.safetensors")


def check_alike(one, other):
    """The adapters are one, but for where the grid of the sums rounds."""
    first, second = adapter_of(one), adapter_of(other)
    assert sorted(first) == sorted(second)
    moved = max(float(np.abs(value).max()) for name, value in first.items() if "lora_B" in name)
    apart = max(float(np.abs(first[name] - second[name]).max()) for name in first)
    assert moved > 1e-3
    assert apart < 1e-3 * moved


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


STEPS = {"local_steps": 2, "server_learning_rate": 1.0, "local_learning_rate": 0.01}


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
