"""Agents as processes of their own, by the command line: what they keep outlives them."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from deployed import DirectCourier, policy_values, write_deployment
from deployment import Processes, logged, until
from safetensors.numpy import load_file

from securefed.config import load_config
from securefed.engines.deployed import config_digest
from securefed.engines.events import Silent
from securefed.engines.remote_federation import federate
from securefed.engines.verify import verify_run
from securefed.federation.frames import ask
from securefed.training.models import weights_fingerprint

pytestmark = pytest.mark.deployment

TRAINER = '''
import torch

class Pulled:
    """A step of the owner's own: what trains is drawn towards a value that its data decide."""

    def __init__(self, section):
        self.section = section

    def train(self, model, data, round):
        aim = 0.01 * float(data.input_ids.mean())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * (aim - parameter))
'''


def policy_of(world, name):
    config = load_config(world.run_file)
    runs = {
        "configurations": [config_digest(config)],
        "models": [weights_fingerprint(world.folder / "model")],
        "trainers": ["of_the_owner:Pulled"],
    }
    floors = {"units": ["client"], "exact_figures": False}
    path = world.folder / f"{name}.toml"
    values = policy_values(
        name, world.server.public.raw.hex(), runs=runs, floors=floors, budget={"unit": "client"}
    )
    path.write_text(tomli_w.dumps(values))
    path.chmod(0o600)
    return path


def start(world, name, processes):
    folder = world.folder
    path = folder / f"{name}-socket" / "agent.sock"
    processes.start(
        name, "securefed", "client",
        "--policy", policy_of(world, name),
        "--config", world.run_file,
        "--roster", folder / "roster.json",
        "--key", folder / f"{name}.pem",
        "--socket", path,
        "--accounts", folder / f"{name}-accounts",
        "--model", folder / "model",
        "--data", folder / "data",
        "--log", folder / f"{name}.log",
        "--offline",
    )  # fmt: skip
    until(path.exists, f"{name} listens", 180)
    return path


def test_a_factor_of_its_own_outlives_its_agent_and_its_adapter_is_made_when_it_ends(
    tmp_path, monkeypatch
):
    world = write_deployment(
        tmp_path,
        clients=3,
        lora={"sharing": "fedsa"},
        privacy={"unit": "client", "noise_multiplier": 0.8},
        training={"trainer": "of_the_owner:Pulled", "rounds": 3},
    )
    (tmp_path / "owners").mkdir()
    (tmp_path / "owners" / "of_the_owner.py").write_text(TRAINER)
    for name, key in world.identities.items():
        key.save(tmp_path / f"{name}.pem")
    with Processes(tmp_path / "processes") as processes:
        paths = [str(tmp_path / "owners"), processes.environment.get("PYTHONPATH", "")]
        processes.environment["PYTHONPATH"] = os.pathsep.join(paths)
        sockets = {name: start(world, name, processes) for name in world.identities}
        advertised = []

        def answering(name):
            return lambda request: ask(sockets[name], request, timeout=120.0)

        def between_rounds(node, what):
            if what == "advertise" and node == 102:
                advertised.append(what)
                if len(advertised) == 3:  # figures, which nobody sums; round 1; now round 2
                    processes.kill("site-2")
                    sockets["site-2"].unlink()
                    start(world, "site-2", processes)
            return False

        courier = DirectCourier(
            {100 + place: answering(name) for place, name in enumerate(sorted(sockets))},
            between_rounds,
        )
        result = federate(world.deployment, courier, observer=Silent())
        assert [event.survivors for event in result.events[1:]] == [3, 3, 3]
        assert verify_run(result.folder).finished
        own = {}
        for name in sorted(sockets):
            processes.started[name].send_signal(signal.SIGTERM)
            assert processes.started[name].wait(timeout=120) == 0
            assert logged(tmp_path / f"{name}.log", event="finished")
            (made,) = Path(tmp_path / f"{name}-accounts" / "runs" / "ended").glob("*/adapter")
            own[name] = load_file(made / "adapter_model.safetensors")
        factors = [key for key in own["site-0"] if "lora_B" in key]
        shared = [key for key in own["site-0"] if "lora_A" in key]
        for name in ("site-1", "site-2"):
            assert all(np.array_equal(own[name][key], own["site-0"][key]) for key in shared)
            assert not any(np.allclose(own[name][key], own["site-0"][key]) for key in factors)
        # each B begins at 0; site-2 went three tenths of the way in turn, one before it was killed
        monkeypatch.syspath_prepend(tmp_path / "owners")
        site = world.site("site-2", ("of_the_owner:Pulled",))
        aim = 0.01 * float(site._bench.clients["site-2"].train.input_ids.mean())
        for key in factors:
            assert np.allclose(own["site-2"][key], aim * (1 - 0.9**3), rtol=1e-4)
