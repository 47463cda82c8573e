"""A SuperLink, three SuperNodes and three agents, each a process of its own."""

import pytest
from deployment import Machines, Processes, listens_on, until

from securefed.engines.verify import verified_run, verify_run

pytestmark = pytest.mark.deployment


def train_and_kill_one(machines: Machines) -> None:
    """Start the run; kill one agent as soon as it is in the first round; wait for the end."""
    machines.run()
    until(lambda: machines.invited("site-2", 1), "round 1", 400)
    machines.processes.kill("site-2")
    machines.wait_for_the_end()


def check_finished(machines: Machines) -> None:
    verdict = verify_run(machines.run_folder, machines.folder / "roster.public.json")
    assert verdict.finished
    assert verdict.anchored
    assert verdict.incomplete == []  # two of three clients have signed each head
    run = verified_run(machines.run_folder)
    assert run.history.applied == 2
    assert all(each == frozenset({"site-0", "site-1"}) for each in run.history.survivors.values())


def test_three_agents_train_while_one_is_killed(tmp_path):
    with Processes(tmp_path / "processes") as processes:
        machines = Machines(tmp_path, processes, tls=False)
        machines.up()
        train_and_kill_one(machines)
    check_finished(machines)


def test_the_same_over_tls_with_registered_nodes_alone(tmp_path):
    with Processes(tmp_path / "processes") as processes:
        machines = Machines(tmp_path, processes, tls=True)
        machines.up()
        machines.start_node("stranger", agent="site-0")
        stranger = processes.started["stranger-supernode"]
        until(lambda: stranger.poll() is not None, "refusal of the unregistered node")
        assert stranger.returncode != 0
        assert "Exit Code: 305" in processes.output("stranger-supernode")
        assert "No SuperNode found with the given public key" in processes.output("superlink")
        train_and_kill_one(machines)
        for name, process in processes.started.items():
            if process.poll() is None:
                assert listens_on(process) <= {"127.0.0.1"}, name
                assert listens_on(process) or "site" in name or name == "run"
    check_finished(machines)
