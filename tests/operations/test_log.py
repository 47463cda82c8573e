import json
import resource
from contextlib import contextmanager

import pytest
from deployed import CLOCK
from owners import Owner

from securefed.errors import ConfigError, RemoteProtocolError
from securefed.operations.log import Log, appended


@contextmanager
def no_file_grows():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_log_is_its_owners_alone(tmp_path):
    path = tmp_path / "agent.log"
    with appended(path) as stream:
        stream.write("a line\n")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644 .*chmod 600"), appended(path):
        pass


def test_a_log_that_cannot_be_written_for_a_while_ends_nothing_and_says_so_later(tmp_path):
    path = tmp_path / "agent.log"
    with appended(path) as stream:
        log = Log(stream, lambda: CLOCK)
        log.write("before")
        with no_file_grows():
            log.write("in between", number=1)
            log.write("in between", number=2)
        log.write("after")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["before", "after"]
    assert {"event": "log not writable", "lines": 2}.items() <= lines[-2].items()


def test_a_log_on_a_disk_that_stays_full_is_closed_without_ado(tmp_path):
    with no_file_grows(), appended(tmp_path / "agent.log") as stream:
        Log(stream, lambda: CLOCK).write("a line")
    assert (tmp_path / "agent.log").read_text() == ""


def test_an_agent_refuses_and_lives_while_its_log_is_full(tmp_path):
    owner = Owner(tmp_path)
    owner.agent._log = Log(open("/dev/full", "a", buffering=1), lambda: CLOCK)
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match="refused: WireError"):
            owner.asked(b"SFED" + bytes(40))
