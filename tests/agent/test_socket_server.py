import os
import socket
import stat
import threading
import time
from contextlib import contextmanager

import pytest
from deployed import CLOCK
from other_users import open_folder

from securefed.agent import socket_server
from securefed.agent.relay_user import RelayUser
from securefed.agent.socket_server import SocketServer
from securefed.errors import ConfigError, RemoteProtocolError, WireError
from securefed.federation.frames import ask, receive_frame, send_frame
from securefed.operations.log import Log, appended


@contextmanager
def serving(path, handle=bytes.upper, **options):
    with appended(path.parent.parent / "log") as stream:
        stop, failed = threading.Event(), []
        server = SocketServer(path, handle, Log(stream, lambda: CLOCK), **options)

        def serve():
            try:
                server.serve(stop.is_set)
            except ConfigError as error:
                failed.append(error)

        log = path.parent.parent / "log"
        before = log.read_text().count('"listening"')
        thread = threading.Thread(target=serve)
        thread.start()
        while log.read_text().count('"listening"') == before and thread.is_alive():
            time.sleep(0.01)
        try:
            yield failed
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "own" / "agent.sock"


@pytest.fixture
def passed():
    with open_folder() as folder:
        yield folder


def test_a_request_gets_its_reply_again_and_again(path):
    with serving(path):
        for _ in range(3):
            assert ask(path, b"abc", timeout=5) == b"ABC"
        large = bytes(3_000_000)
        assert ask(path, large, timeout=20) == large
        assert ask(path, b"", timeout=5) == b""


def test_only_its_owner_can_reach_it(path):
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


def test_a_folder_that_is_open_to_others_is_refused(path):
    path.parent.mkdir(mode=0o755)
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="chmod 700"), serving(path):
        pass


def test_a_peer_of_another_user_is_turned_away(path, monkeypatch):
    seen = []
    monkeypatch.setattr(socket_server, "_peer", lambda stream: os.getuid() + 1)
    with (
        serving(path, lambda request: seen.append(request) or b"x"),
        pytest.raises(RemoteProtocolError),
    ):
        ask(path, b"abc", timeout=5)
    assert seen == []
    assert "another user" in (path.parent.parent / "log").read_text()


def relaying(uid):
    return RelayUser("relay", uid, os.getgid(), frozenset({os.getgid()}))


def test_with_a_user_who_relays_its_group_comes_to_the_socket_and_no_further(passed):
    path = passed / "own" / "agent.sock"
    with serving(path, relay=relaying(os.getuid())):
        assert ask(path, b"abc", timeout=5) == b"ABC"
        found = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)]
        assert found == [0o660, 0o710]
        assert {each.stat().st_gid for each in (path, path.parent)} == {os.getgid()}
        assert stat.S_IMODE((path.parent / "agent.sock.lock").stat().st_mode) == 0o600


def test_with_a_user_who_relays_the_agents_own_is_turned_away(passed):
    path, seen = passed / "own" / "agent.sock", []
    with (
        serving(path, seen.append, relay=relaying(os.getuid() + 1)),
        pytest.raises(RemoteProtocolError),
    ):
        ask(path, b"abc", timeout=5)
    assert seen == []
    assert "another user than relay (--relay-user)" in (passed / "log").read_text()


def test_the_peers_user_is_read_from_the_kernel():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert socket_server._peer(one) == os.getuid()


def test_what_a_killed_agent_left_is_replaced(path):
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.is_socket()
    with serving(path):
        assert ask(path, b"abc", timeout=5) == b"ABC"


def test_a_second_agent_is_refused_and_the_first_goes_on(path):
    with serving(path):
        with serving(path) as failed:
            time.sleep(0.2)
        assert "another agent listens there" in str(failed[0])
        assert ask(path, b"abc", timeout=5) == b"ABC"


def test_a_file_in_its_place_is_left_alone(path):
    path.parent.mkdir(mode=0o700)
    path.write_text("mine")
    with serving(path) as failed:
        time.sleep(0.1)
    assert "something else than a socket" in str(failed[0])
    assert path.read_text() == "mine"


def test_a_path_that_the_kernel_would_cut_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="107 bytes"):
        SocketServer(tmp_path / ("x" * 120), bytes, None)


def test_peers_that_say_too_much_or_stop_halfway_do_not_stop_it(path):
    with serving(path, limit=100, patience=0.3):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(path))
            stream.sendall((101).to_bytes(4, "little"))
            with pytest.raises((WireError, OSError)):
                receive_frame(stream)
        for sent in (b"", b"\x05\0", b"\x05\0\0\0ab"):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(path))
                stream.sendall(sent)
        silent = socket.socket(socket.AF_UNIX)
        silent.connect(str(path))
        assert ask(path, b"abc", timeout=5) == b"ABC"
        silent.close()
    log = (path.parent.parent / "log").read_text()
    assert "101 bytes announced" in log
    assert "the connection ended after 2" in log


def test_nobody_there_is_an_error_that_names_the_path(path):
    with pytest.raises(RemoteProtocolError, match=r"agent\.sock"):
        ask(path, b"abc", timeout=1)


def test_a_frame_beyond_the_limit_is_not_sent():
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        with pytest.raises(Exception, match="at most 3"):
            send_frame(one, b"abcd", limit=3)
        one.sendall(b"")
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
