"""Rounds through Flower's simulation engine: its own nodes, workers and messages."""

import builtins
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from recorded_agents import one_round, recorded_agents, total
from tiny import write_run
from typer.testing import CliRunner

from securefed.cli.commands import app
from securefed.engines.flower_simulation import simulate
from securefed.engines.verify import verified_run, verify_run
from securefed.errors import ConfigError

DIMENSION = 40
CONNECT = "import sys, ray; ray.init(address=sys.argv[1]); print('connected')"


def connected(address, **environment):
    """Whether another process of this user may use that Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, address],
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode == 0 and "connected" in done.stdout


@pytest.mark.slow
def test_sums_in_simulation_equal_plain_sums_to_the_bit_and_strangers_are_refused(tmp_path):
    found = []

    def serve(courier):
        import ray

        half, carried = one_round(courier, world.server, world.roster, DIMENSION)
        address = ray.get_runtime_context().gcs_address
        token = os.environ["RAY_AUTH_TOKEN"]
        found.append((half, carried))
        found.append(connected(address))
        found.append(connected(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token))

    with recorded_agents(tmp_path, 4, DIMENSION) as world, tempfile.TemporaryDirectory() as short:
        simulate(serve, world.sockets, folder=Path(short), workers=2, stage_seconds=120.0)
    (half, carried), stranger, owner = found
    plain = np.sum([v.astype(np.uint64) for v in world.vectors.values()], axis=0)
    assert np.array_equal(total(half), plain & (2**half._session.plan.bits - 1))
    assert half.survivors == tuple(sorted(world.vectors))
    assert not carried.refusals
    assert not stranger
    assert owner


@pytest.mark.slow
def test_what_the_server_raises_in_simulation_is_raised(tmp_path):
    def serve(courier):
        raise ConfigError("no such run file")

    with (
        recorded_agents(tmp_path, 3, DIMENSION) as world,
        tempfile.TemporaryDirectory() as short,
        pytest.raises(ConfigError, match="no such run file"),
    ):
        simulate(serve, world.sockets, folder=Path(short), workers=1, stage_seconds=60.0)


@pytest.mark.slow
def test_a_run_through_flowers_simulation_verifies(tmp_path):
    run_file = write_run(tmp_path, training={"rounds": 2}, budget={"epsilon": 1e4})
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["flower", "simulate", str(run_file), "--out", str(out), "--offline"]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    parties = tmp_path / "out.parties"
    verdict = verify_run(out, parties / "roster.public.json")
    assert verdict.finished
    assert verdict.anchored
    assert verified_run(out).history.applied == 2
    for path in (parties, *parties.glob("site-*/accounts"), *parties.glob("*/identity.pem")):
        assert not path.stat().st_mode & 0o077


def test_without_ray_simulation_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [*os.environ]:
        if name.startswith(("RAY_", "FLWR_")):
            monkeypatch.setenv(name, os.environ[name])  # put back afterwards
    with pytest.raises(ConfigError, match=r"securefed\[simulation\]"):
        simulate(lambda courier: None, [], folder=tmp_path, workers=1, stage_seconds=1.0)


def test_simulation_takes_no_folder_of_another_run(tmp_path):
    run_file = write_run(tmp_path)
    (tmp_path / "out.parties").mkdir()
    done = CliRunner().invoke(
        app, ["flower", "simulate", str(run_file), "--out", str(tmp_path / "out")]
    )
    with pytest.raises(ConfigError, match=r"out\.parties: is there already"):
        raise done.exception
