"""Where an agent listens: a Unix-domain socket that one user alone can reach.

That user is the agent's own: the socket has mode 0600 in a folder of mode 0700.  Or it is another
one, who relays: mode 0660 in a folder of mode 0710, both of that user's group.  A peer of any other
user is turned away all the same (``SO_PEERCRED``, Linux).  Requests are answered one at a time, in
the order in which they come, each on a connection of its own.  Nothing else is listened on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from securefed.agent.relay_user import RelayUser, check_passable
from securefed.errors import ConfigError, LocalProtocolError, WireError
from securefed.federation.frames import MAX_FRAME, receive_frame, send_frame
from securefed.operations.log import Log
from securefed.operations.private_folder import give_group, passable_folder, private_folder

_BACKLOG = 8
_LOOK_UP_SECONDS = 0.5
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7)
_LONGEST_PATH = 107  # sun_path of Linux, without its closing zero


class SocketServer:
    """Answers requests on a socket.

    Args:
        path: of the socket; its folder is made if it is missing.
        handle: from a request to its reply.
        log: told of peers that are turned away.
        relay: who is answered, and nobody else; None for the user of this process.
        patience: seconds without a byte after which a peer is given up.
        limit: bytes of a frame at most.

    Raises:
        ConfigError: the folder is open to others, or closed to ``relay``; something else lies at
            ``path``, or another agent listens there.
    """

    def __init__(
        self,
        path: Path,
        handle: Callable[[bytes], bytes],
        log: Log,
        *,
        relay: RelayUser | None = None,
        patience: float = 60.0,
        limit: int = MAX_FRAME,
    ) -> None:
        self._path, self._handle, self._log, self._relay = path, handle, log, relay
        self._patience, self._limit = patience, limit
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise ConfigError(f"socket {path}: longer than {_LONGEST_PATH} bytes")
        if relay is None:
            private_folder(path.parent, "socket folder")
        else:
            passable_folder(path.parent, "socket folder", relay.gid)
            check_passable(path.parent, relay)

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Answer until ``stopped`` says so; it is asked twice a second and after each request."""
        with self._listening() as listener:
            self._log.write("listening", socket=str(self._path))
            while not stopped():
                try:
                    stream, _ = listener.accept()
                except TimeoutError:
                    continue
                with stream:
                    self._answer(stream)

    def _answer(self, stream: socket.socket) -> None:
        stream.settimeout(self._patience)
        allowed = os.getuid() if self._relay is None else self._relay.uid
        if (uid := _peer(stream)) != allowed:
            whose = "the agent's" if self._relay is None else f"{self._relay.name} (--relay-user)"
            self._log.write("turned away", uid=uid, why=f"another user than {whose}")
            return
        try:
            request = receive_frame(stream, limit=self._limit)
        except (OSError, WireError) as error:
            self._log.write("turned away", uid=uid, why=str(error))
            return
        reply = self._handle(request)
        try:
            send_frame(stream, reply, limit=self._limit)
        except OSError as error:
            self._log.write("unheard", why=error.strerror or type(error).__name__)
        except LocalProtocolError as error:  # longer than a frame may be
            self._log.write("unheard", why=str(error))

    @contextlib.contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        """The socket; a lock beside it says whether its agent is alive."""
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"socket {self._path}: another agent listens there") from None
            self._remove_stale()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                before = os.umask(0o177)  # from the first moment on, nobody else connects
                try:
                    listener.bind(str(self._path))
                except OSError as error:
                    raise ConfigError(
                        f"socket {self._path}: cannot be made ({error.strerror})"
                    ) from None
                finally:
                    os.umask(before)
                if self._relay is not None:
                    give_group(self._path, "socket", self._relay.gid)
                    self._path.chmod(0o660)
                listener.listen(_BACKLOG)
                listener.settimeout(_LOOK_UP_SECONDS)
                try:
                    yield listener
                finally:
                    self._path.unlink(missing_ok=True)
        finally:
            os.close(lock)

    def _remove_stale(self) -> None:
        """Remove what an agent that was killed left behind, and nothing else."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigError(f"socket {self._path}: something else than a socket lies there")
        self._path.unlink()


def _peer(stream: socket.socket) -> int:
    """The user at the other end."""
    raw = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid
