"""Faults between processes: SuperLink, SuperNodes, ServerApp and agents over TLS.

Each test puts rows into the table of faults, see ``tests/fault_matrix.py``.
"""

import subprocess
import time
from pathlib import Path

import pytest
from deployment import NAMES, Machines, Processes, until

from securefed.engines.verify import verify_run

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
    process.kill()
    until(lambda: machines.server_app() is None, "the end of the ServerApp")

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
    alive = all(machines.processes.started[f"{name}-supernode"].poll() is None for name in NAMES)
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
        lambda: (
            machines.ended() or (machines.server_app() is None and time.monotonic() > begun + 5)
        ),
        "the end of the orphaned ServerApp, or of the run",
        600,
    )
    survived = machines.ended()
    if not survived:
        machines.run("again", stage_seconds=STAGE, resume=True)
        machines.wait_for_the_end()
    row.seen = machines.kept()
    row.seen += (
        "; the ServerApp outlived it and ended the run"
        if survived
        else "; the ServerApp gave up, `resume=true` went on"
    )


def other_clock(folder):
    """Makes the words under which a program's clock of day is so many hours off."""
    source, library = Path(__file__).parents[1] / "other_clock.c", folder / "other_clock.so"
    words = ["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"]
    subprocess.run(words, check=True)
    return lambda hours: (
        "env", f"LD_PRELOAD={library}", f"CLOCK_OFFSET_SECONDS={3600 * hours}",
    )  # fmt: skip


def test_clocks_that_are_hours_off(tmp_path, fault):
    with Processes(tmp_path / "processes") as processes:
        clocks_that_are_hours_off(Machines(tmp_path, processes, tls=True, rounds=1), fault)


def clocks_that_are_hours_off(machines, fault):
    agents = fault(
        "agents' clocks 26 h ahead and 26 h behind", where=WHERE,
        expected="3 of 3 in the sum: a round asks no clock of day",
    )  # fmt: skip
    nodes = {
        "late": (26, "beyond the certificate's end", "certificate has expired"),
        "early": (-2, "before the certificate's beginning", "certificate is not yet valid"),
        "ahead": (2, "within the certificate's time", "status 401 from the SuperLink"),
    }
    rows = {
        name: fault(
            f"a registered SuperNode's clock {hours:+} h, {what}", where=WHERE,
            expected=f"not taken in: {why}",
        )
        for name, (hours, what, why) in nodes.items()
    }  # fmt: skip
    off_by = other_clock(machines.folder)
    skewed = {"site-1": off_by(26), "site-2": off_by(-26)}
    machines.up(agents=skewed)
    for name, (hours, _, why) in nodes.items():
        machines.register(name)
        machines.start_node(name, agent="site-0", under=off_by(hours))
        code = machines.processes.started[f"{name}-supernode"].wait(300)
        if name == "ahead":
            assert '/v1/fleet/activate-node HTTP/1.1" 401' in machines.said("superlink")
        else:
            assert why in machines.said(f"{name}-supernode")
        rows[name].seen = f"the SuperNode ended with {code}: {why}"
    machines.run(stage_seconds=STAGE)
    machines.wait_for_the_end()
    agents.seen = machines.kept()
    years = {name: machines.log(name).read_text()[:40] for name in NAMES}
    assert len(set(years.values())) == 3


def test_a_node_that_is_unregistered_and_a_key_that_is_revoked(machines, fault):
    node = fault(
        "`flwr supernode unregister` of one node in round 1", where=WHERE,
        expected="refused from then on; 2 of 3 in both sums",
    )  # fmt: skip
    key = fault(
        "then its client's key revoked in the roster, the others' agents started with that one",
        where=WHERE,
        expected="a new run has two clients; the revoked one, on a node that is registered, is "
        "not taken in",
    )
    machines.up()
    machines.run(stage_seconds=STAGE)
    until(lambda: machines.invited("site-2", 1), "round 1", 600)
    machines.flwr("supernode", "unregister", machines.node_ids["site-2"], "dep")
    gone = machines.processes.started["site-2-supernode"]
    until(lambda: gone.poll() is not None, "the end of the unregistered SuperNode", 300)
    machines.wait_for_the_end()
    node.seen = machines.kept() + f"; its SuperNode ended with {gone.returncode}"
    assert all("site-2" not in each for each in machines.survivors())

    machines.revoke("site-2")
    for name in ("site-0", "site-1"):
        machines.processes.kill(name)
        machines.start_agent(name)
    until(lambda: all(machines.times_up(name) == 2 for name in ("site-0", "site-1")), "agents", 300)
    machines.node_key("site-2").rename(machines.folder / "old-node-key")  # the node gets a new one
    machines.register("site-2")
    machines.start_node("site-2")
    until(lambda: machines.flwr("supernode", "list", "dep").count("online") == 3, "nodes", 300)
    first = machines.run_folder.rename(machines.folder / "first")
    machines.run("second", stage_seconds=STAGE)
    machines.wait_for_the_end()
    assert "'site-2'" in machines.said("second")
    assert [sorted(each) for each in machines.survivors()] == [["site-0", "site-1"]] * 2
    key.seen = machines.kept(names=["site-0", "site-1"])
    assert verify_run(first, machines.folder / "first.public.json").anchored
