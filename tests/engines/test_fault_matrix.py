"""Faults in real runs: agents that are processes, Flower's own grid and messages between.

Each test is a row of the table that is printed at the end (``tests/fault_matrix.py``).  Whatever
goes wrong, what ``check_kept`` looks at must hold: budgets, adapter, ledger and verdict.
"""

import secrets
import threading
import time
from contextlib import ExitStack

import pytest
from deployment import until
from fault_runs import (
    FAULTY,
    GRID,
    MOMENTS,
    SERVER,
    STAGES,
    Federated,
    goes_on,
    in_ledger,
    run_as_a_process,
    server_is_killed,
)
from forked import limit_files

from securefed.engines.flower import packed, unpacked
from securefed.errors import RemoteProtocolError
from securefed.federation.invitations import answered

pytestmark = pytest.mark.deployment


@pytest.fixture
def federated(tmp_path):
    with ExitStack() as held:
        yield lambda **more: Federated(tmp_path, held, **more)


def with_it(stage):
    """How many are in the sum if site-2's reply to a stage, and all after it, are missing."""
    return 4 if STAGES.index(stage) > STAGES.index("masked_input") else 3


@pytest.mark.parametrize("stage", STAGES)
def test_an_agent_that_is_killed_in_a_stage_is_back_in_the_next_round(federated, fault, stage):
    row = fault(
        f"agent killed in `{stage}`, started again",
        where=GRID,
        expected=f"{with_it(stage)} of 4 in the sum, then 4 of 4",
    )
    run, killed = federated(), []

    def at(found, number, answer):
        if (found, number) == (stage, 1) and not killed:
            run.agents.kill(FAULTY)
            killed.append(answer())  # Flower's error message: nobody answers on the socket
            run.agents.start(FAULTY)
            return killed[0]
        return answer()

    run.at = at
    run.go()
    assert killed[0].has_error()
    assert run.survivors() == [with_it(stage), 4]
    row.seen = run.kept()


def test_an_agent_that_is_killed_for_good_right_after_its_masked_input_left(federated, fault):
    row = fault(
        "agent killed when its masked input has left, for good",
        where=GRID,
        expected="4 of 4 in the sum, then 3 of 4",
    )
    run = federated()

    def at(stage, number, answer):
        reply = answer()
        if (stage, number) == ("masked_input", 1):
            run.agents.kill(FAULTY)
        return reply

    run.at = at
    run.go()
    assert run.survivors() == [4, 3]
    row.seen = run.kept()


def paused_at_the_masked_input(run, took, seconds):
    """The agent stands still for so many seconds of round 1, with the request on its socket."""

    def at(stage, number, answer):
        if (stage, number) != ("masked_input", 1):
            return answer()
        run.agents.pause(FAULTY)
        waker = threading.Timer(seconds, run.agents.go_on, [FAULTY])
        waker.start()
        begun = time.monotonic()
        reply = answer()
        took.append(time.monotonic() - begun)
        waker.join()
        return reply

    return at


def test_a_client_that_is_slow_and_in_time(federated, fault):
    row = fault(
        "agent stands still (SIGSTOP) for 5 s of a stage of 120 s", where=GRID,
        expected="4 of 4 in both sums",
    )  # fmt: skip
    run, took = federated(), []
    run.at = paused_at_the_masked_input(run, took, 5.0)
    run.go()
    assert took[0] > 4.5
    assert run.survivors() == [4, 4]
    row.seen = run.kept()


def test_a_client_that_is_too_slow(federated, fault):
    row = fault(
        "agent stands still (SIGSTOP) for 25 s, a stage takes 20 s", where=GRID,
        expected="3 of 4 in the sum, then 4 of 4; it charged itself for what came too late",
    )  # fmt: skip
    run, took = federated(seconds=20.0), []
    run.at = paused_at_the_masked_input(run, took, 25.0)
    run.go()
    assert took[0] > 19.0
    assert run.survivors() == [3, 4]
    charged = [line["round"] for line in run.agents.said(FAULTY) if line["event"] == "charged"]
    assert charged == [1, 2]
    row.seen = run.kept()


@pytest.mark.parametrize("stage", ["advertise", "masked_input", "unmask"])
def test_a_client_that_is_silent_in_a_stage(federated, fault, stage):
    row = fault(
        f"node takes the message of `{stage}` and never replies", where=GRID,
        expected=f"{with_it(stage)} of 4 in the sum, then 4 of 4",
    )  # fmt: skip
    run = federated(seconds=20.0)
    run.at = lambda found, number, answer: None if (found, number) == (stage, 1) else answer()
    run.go()
    assert run.survivors() == [with_it(stage), 4]
    row.seen = run.kept()


def test_messages_that_come_twice(federated, fault):
    row = fault(
        "every message of a round delivered twice", where=GRID,
        expected="4 of 4 in both sums; each round charged once",
    )  # fmt: skip
    run, twice = federated(), []

    def at(stage, number, answer):
        first = answer()
        if number == 1 and stage in STAGES:
            twice.append(stage)
            answer()
        return first

    run.at = at
    run.go()
    assert twice == STAGES
    assert run.survivors() == [4, 4]
    charged = [line["round"] for line in run.agents.said(FAULTY) if line["event"] == "charged"]
    assert charged == [1, 2]
    row.seen = run.kept()


def test_old_messages_that_come_before_the_right_ones(federated, fault):
    row = fault(
        "before each message of round 2, one of round 1 and one of an earlier stage again",
        where=GRID,
        expected="4 of 4 in both sums; the old ones refused, each round charged once",
    )
    run, kept, old = federated(), {}, []

    def at(stage, number, answer):
        if stage not in STAGES or not number:
            return answer()
        kept[number, stage] = answer.request
        if number == 2:
            before = STAGES[: STAGES.index(stage)]
            for request in [kept[1, stage], *(kept[2, each] for each in before)]:
                old.append(unpacked(answer(request).content))
        return answer()

    run.at = at
    run.go()
    assert len(old) == 5 + 0 + 1 + 2 + 3 + 4
    for reply in old:
        with pytest.raises(RemoteProtocolError):
            answered(reply)
    assert run.survivors() == [4, 4]
    row.seen = run.kept()


def test_replies_in_the_wrong_order(federated, fault):
    row = fault(
        "reply of `share` handed over in place of that of `masked_input`", where=GRID,
        expected="3 of 4 in the sum, then 4 of 4; it charged itself",
    )  # fmt: skip
    run, kept = federated(), {}

    def at(stage, number, answer):
        reply = answer()
        if number == 1 and stage == "share":
            kept[stage] = unpacked(reply.content)
        if number == 1 and stage == "masked_input":
            reply.content = packed(kept["share"])
        return reply

    run.at = at
    run.go()
    assert run.survivors() == [3, 4]
    row.seen = run.kept()


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_answers_with_garbage(federated, fault, stage):
    row = fault(
        f"4,000 random bytes in place of the reply of `{stage}`", where=GRID,
        expected=f"{with_it(stage)} of 4 in the sum, then 4 of 4",
    )  # fmt: skip
    run = federated()

    def at(found, number, answer):
        reply = answer()
        if (found, number) == (stage, 1):
            reply.content = packed(secrets.token_bytes(4000))
        return reply

    run.at = at
    run.go()
    assert run.survivors() == [with_it(stage), 4]
    row.seen = run.kept()


def test_an_agent_whose_disk_is_full(federated, fault):
    row = fault(
        "no file at the agent can grow, accounts and log, in `masked_input` (RLIMIT_FSIZE)",
        where=GRID,
        expected="nothing leaves uncharged: 3 of 4 in the sum; then room again, and 4 of 4",
    )
    run = federated()

    def at(stage, number, answer):
        if (stage, number) != ("masked_input", 1):
            return answer()
        run.agents.limit_files(FAULTY, 10)
        reply = answer()
        run.agents.limit_files(FAULTY, None)
        return reply

    run.at = at
    run.go()
    assert run.agents.alive(FAULTY)
    assert run.survivors() == [3, 4]
    assert sorted(name for _, name in run.sent).count(FAULTY) == 1  # of round 2
    assert any(line["event"] == "log not writable" for line in run.agents.said(FAULTY))
    row.seen = run.kept()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_server_that_is_killed_goes_on_from_checkpoint_and_ledger(federated, fault, moment):
    row = fault(
        f"server killed (SIGKILL) in round 1, {moment}; `resume`", where=SERVER,
        expected="both rounds applied once; what was charged before stays charged",
    )  # fmt: skip
    run = federated()
    server_is_killed(run, lambda: MOMENTS[moment](run), moment)
    goes_on(run)
    row.seen = run.kept()


def test_a_server_whose_disk_is_full(federated, fault):
    row = fault(
        "the ledger at the server cannot grow from round 1 on (RLIMIT_FSIZE); room; `resume`",
        where=SERVER,
        expected="the run stops by itself with nothing used that is not on record, then goes on",
    )
    run = federated()
    server = run_as_a_process(run)
    until(lambda: MOMENTS["after `advertise`"](run) or not server.is_alive(), "round 1", 300)
    limit_files(server.pid, run.ledger.stat().st_size)
    server.join(300)
    assert server.exitcode == 1
    assert "LedgerError" in (run.world.folder / "server.out").read_text()
    assert not in_ledger(run, "round_applied")
    goes_on(run)
    row.seen = run.kept()
