"""Several hosts, and disks that are full: what needs root.  Run with ``-m namespaces``."""

import contextlib
import shutil
import subprocess
from contextlib import ExitStack, contextmanager

import pytest
from deployment import NAMES, Machines, Processes, until
from fault_runs import (
    FAULTY,
    GRID,
    MOMENTS,
    Federated,
    goes_on,
    in_ledger,
    run_as_a_process,
)
from fault_runs import SERVER as SERVED
from hosts import SERVER, Hosts

pytestmark = pytest.mark.namespaces

STAGE = 150.0


def test_a_link_that_is_cut_in_a_round_and_mended_for_the_next(tmp_path, fault):
    row = fault(
        "link to one host cut in round 1 of 3 (`ip link set down`), mended later in it",
        where="four network namespaces, TLS, registered nodes",
        expected="2 of 3 in the sum; back in the first round that begins after its SuperNode was "
        "heard again; nothing listens anywhere but where configured",
    )
    with Hosts(NAMES) as hosts, Processes(tmp_path / "processes") as processes:
        machines = Machines(
            tmp_path,
            processes,
            tls=True,
            server=hosts.addresses[SERVER],
            under={host: hosts.under(host) for host in (SERVER, *NAMES)},
            rounds=3,
        )
        assert all(hosts.reaches(name, SERVER) for name in NAMES)
        machines.up()
        machines.run(stage_seconds=STAGE)
        until(lambda: machines.invited("site-2", 1), "round 1", 600)
        listening = {host: hosts.listeners(host) for host in (SERVER, *NAMES)}
        hosts.set_link("site-2", "down")
        assert not hosts.reaches("site-2", SERVER)
        until(lambda: "round 1: consistency" in machines.said("run"), "the stage after it", 900)
        hosts.set_link("site-2", "up")
        machines.wait_for_the_end()
        at_the_end = {host: hosts.listeners(host) for host in (SERVER, *NAMES)}
    configured = {SERVER: {f"{machines.server}:{machines.port}"}} | {
        name: {f"127.0.0.1:{machines.ports[name]}"} for name in NAMES
    }
    assert listening == at_the_end == configured
    first, *_, last = machines.survivors()
    # The round between begins while Flower may still take the node for gone.
    assert (sorted(first), sorted(last)) == (NAMES[:2], NAMES)
    row.seen = machines.kept()


@contextmanager
def small_disk(folder, size="256k"):
    """A file system of that size at a folder."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Write into a file until the disk is full; its path."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))
    assert shutil.disk_usage(folder).free == 0
    return path


def test_an_agent_whose_disk_has_no_space_left(tmp_path, fault):
    row = fault(
        "no space left at the agent (tmpfs), where its accounts lie, in `masked_input`", where=GRID,
        expected="nothing leaves uncharged: 3 of 4 in the sum; then room again, and 4 of 4",
    )  # fmt: skip
    with ExitStack() as held:
        disk = held.enter_context(small_disk(tmp_path / "disk"))
        run = Federated(tmp_path / "world", held, accounts={FAULTY: disk / "accounts"})

        def at(stage, number, answer):
            if (stage, number) != ("masked_input", 1):
                return answer()
            filler = fill(disk)
            reply = answer()
            filler.unlink()
            return reply

        run.at = at
        run.go()
        assert run.survivors() == [3, 4]
        row.seen = run.kept()


def test_a_server_whose_disk_has_no_space_left(tmp_path, fault):
    row = fault(
        "no space left at the server (tmpfs) from round 1 on; room; `resume`", where=SERVED,
        expected="the run stops by itself with nothing used that is not on record, then goes on",
    )  # fmt: skip
    with ExitStack() as held:
        disk = held.enter_context(small_disk(tmp_path / "disk", "8m"))
        run = Federated(tmp_path / "world", held)
        changed = {"out": str(disk / "run")}
        run.world.deployment = run.world.deployment.model_copy(update=changed)
        server = run_as_a_process(run)
        until(lambda: MOMENTS["after `advertise`"](run) or not server.is_alive(), "round 1", 300)
        filler = fill(disk)
        server.join(300)
        assert server.exitcode == 1
        assert "No space left" in (run.world.folder / "server.out").read_text()
        assert not in_ledger(run, "round_applied")
        filler.unlink()
        goes_on(run)
        row.seen = run.kept()
