"""Faults between processes: SuperLink, SuperNodes, ServerApp and agents over TLS.

Each test puts rows into the table of faults, see ``tests/fault_matrix.py``.
"""

import signal
import time

import pytest
from deployment import NAMES, Machines, Processes, logged, until

pytestmark = pytest.mark.deployment

WHERE = "processes over TLS, registered nodes"
STAGE = 240.0  # seconds; a loaded machine takes 20 and more for what a quiet one does in 6


@pytest.fixture
def machines(tmp_path):
    with Processes(tmp_path / "processes") as processes:
        yield Machines(tmp_path, processes, tls=True)


def running(machines):
    """The lines of ``flwr list`` of runs that Flower takes for running."""
    return [line for line in machines.flwr("list", "dep").splitlines() if " running " in line]


def test_a_serverapp_and_then_the_superlink_are_killed_and_the_run_goes_on(machines, fault):
    app = fault(
        "ServerApp killed (SIGKILL) in round 1, `flwr run` with `resume=true`", where=WHERE,
        expected="both rounds applied once; the killed attempt stays charged",
    )  # fmt: skip
    link = fault(
        "then SuperLink killed with its ServerApp in round 2, started again with the same "
        "`--database`, `resume=true`", where=WHERE,
        expected="nodes come back by themselves; Flower gives the old run up and does not restart "
        "it; the new one goes on after round 1",
    )  # fmt: skip
    database = ("--database", machines.folder / "state.db")
    machines.up(*database)
    machines.run(stage_seconds=STAGE)
    until(lambda: machines.charged("site-1", 1), "round 1", 600)
    process = machines.server_app()
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()

    machines.run("again", stage_seconds=STAGE, resume=True)
    until(lambda: machines.charged("site-1", 2), "round 2", 600)
    assert "resuming after round 0" in machines.said("again")
    machines.processes.kill("superlink")
    machines.start_superlink(*database)
    left = running(machines)  # Flower's book says so still

    machines.run("once more", stage_seconds=STAGE, resume=True)
    machines.wait_for_the_end()
    assert "resuming after round 1" in machines.said("once more")
    until(lambda: not running(machines), "the end of the old runs", 300)
    alive = all(
        machines.processes.started[f"{name}-supernode"].poll() is None for name in NAMES
    )
    assert alive
    app.seen = link.seen = machines.kept()
    link.seen += f"; {len(left)} runs were still taken for running after the restart, none later"


def test_a_superlink_that_crashes_alone_and_is_there_again_at_once(machines, fault):
    row = fault(
        "SuperLink's process alone killed in round 1 and started again with the same `--database`",
        where=WHERE,
        expected="whether or not the orphaned ServerApp survives it, nothing is counted twice",
    )
    database = ("--database", machines.folder / "state.db")
    machines.up(*database)
    machines.run(stage_seconds=STAGE)
    until(lambda: machines.charged("site-1", 1), "round 1", 600)
    link = machines.processes.started["superlink"]
    link.kill()
    link.wait()
    machines.start_superlink(*database)
    begun = time.monotonic()
    until(
        lambda: machines.ended() or (machines.server_app() is None and time.monotonic() > begun + 5),
        "the end of the orphaned ServerApp, or of the run",
        600,
    )
    survived = machines.ended()
    if not survived:
        machines.run("again", stage_seconds=STAGE, resume=True)
        machines.wait_for_the_end()
    row.seen = machines.kept()
    row.seen += (
        "; the ServerApp outlived it and ended the run" if survived else "; the ServerApp gave up, "
        "`resume=true` went on"
    )
