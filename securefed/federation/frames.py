"""Messages over a local stream socket: a length, then that many bytes, and never more than agreed.

::

    u32 length, little-endian | length bytes

One request and one reply go over a connection.  Whoever reads says how long a frame may be, and
takes no memory for a longer one.
"""

from __future__ import annotations

import socket
from pathlib import Path

from securefed.errors import LocalProtocolError, RemoteProtocolError, WireError

MAX_FRAME = 1 << 28
"""Bytes of a frame at most: 256 MiB, an adapter of 64 million values."""

_LENGTH_BYTES = 4
_PIECE = 1 << 20


def send_frame(stream: socket.socket, message: bytes, *, limit: int = MAX_FRAME) -> None:
    """Send one frame.

    Raises:
        LocalProtocolError: the message is longer than ``limit``; nothing was sent.
        OSError: the connection is gone.
    """
    if len(message) > limit:
        raise LocalProtocolError(f"frame: {len(message)} bytes given, at most {limit} allowed")
    stream.sendall(len(message).to_bytes(_LENGTH_BYTES, "little") + message)


def receive_frame(stream: socket.socket, *, limit: int = MAX_FRAME) -> bytes:
    """Receive one frame.

    Raises:
        WireError: a longer one is announced, or the connection ends within it.
        OSError: the connection is gone, or its time-out has passed.

    Guarantees:
        - Memory grows with what has arrived, not with what was announced.
    """
    length = int.from_bytes(_exactly(stream, _LENGTH_BYTES), "little")
    if length > limit:
        raise WireError(f"frame: {length} bytes announced, at most {limit} allowed")
    return _exactly(stream, length)


def _exactly(stream: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = stream.recv(min(_PIECE, count - len(found)))
        if not piece:
            raise WireError(f"frame: {count} bytes needed, the connection ended after {len(found)}")
        found += piece
    return bytes(found)


def ask(path: Path, request: bytes, *, timeout: float, limit: int = MAX_FRAME) -> bytes:
    """Send a request to the process behind a Unix-domain socket and wait for its reply.

    Args:
        path: of the socket.
        request: one frame.
        timeout: seconds without a byte after which the reply is given up.
        limit: bytes of the reply at most.

    Raises:
        RemoteProtocolError: nobody listens there, or there is no whole reply in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(timeout)
        try:
            stream.connect(str(path))
            send_frame(stream, request, limit=limit)
            return receive_frame(stream, limit=limit)
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise RemoteProtocolError(f"agent at {path}: does not answer ({why})") from None
