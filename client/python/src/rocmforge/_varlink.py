"""Varlink over a Unix stream socket, with descriptors beside the messages, as docs/wire.md describes it.

Both clients use the framing and the checks in this file. `Connection` is for the blocking client; that of asyncio is in
`aio`.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import time
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .errors import INTERFACE, NO_DAEMON, ConnectionLost, NoDaemon, ProtocolError, WireError, from_wire

Parameters = Dict[str, Any]

_CHUNK = 1 << 17
_REPLY_MAX = 64 << 20
FDS_MAX = 253  # in one message
_ANCILLARY = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
CONNECT_TIMEOUT = 5.0
CONNECT_RETRY = 0.01
_SYSTEM = "/run/rocmforge/io.rocmforge"


def default_socket() -> str:
    """The daemon's socket: ROCMFORGE_SOCKET if it is set, else the system's socket or the user's."""
    path = os.environ.get("ROCMFORGE_SOCKET")
    if path:
        return path
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not os.path.exists(_SYSTEM) and runtime:
        return runtime + "/rocmforge/io.rocmforge"
    return _SYSTEM


def connect_failure(path: str, error: OSError) -> OSError:
    """The exception for a connect() that failed: NoDaemon, or the error itself if it does not say that no daemon can be
    reached."""
    if error.errno not in NO_DAEMON:
        return error
    hint = ""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        hint = "; is rocmforged running?"
    elif isinstance(error, PermissionError):
        hint = "; its owner decides who may use it"
    return NoDaemon(f"cannot connect to {path}: {error.strerror or error}{hint}")


def check_fds(fds: Sequence[int]) -> None:
    """ValueError: one of them is not open, or they are more than a message carries."""
    if len(fds) > FDS_MAX:
        raise ValueError(f"{len(fds)} descriptors, and a message carries at most {FDS_MAX}")
    for fd in fds:
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as error:
            raise ValueError(f"the descriptor {fd} cannot be sent: {error.strerror}") from None


def encode(method: str, parameters: Optional[Mapping[str, Any]], more: bool) -> bytes:
    """Encodes a call for the wire. Parameters that are None are left out, which means the same."""
    call: Parameters = {"method": method if "." in method else f"{INTERFACE}.{method}"}
    if parameters:
        call["parameters"] = {key: value for key, value in parameters.items() if value is not None}
    if more:
        call["more"] = True
    try:
        return json.dumps(call, separators=(",", ":"), allow_nan=False).encode() + b"\0"
    except UnicodeEncodeError as error:
        raise ValueError(f"this cannot be sent to the daemon: {error}") from None


def decode(text: bytes) -> Tuple[Parameters, bool]:
    """Decodes a reply: its parameters, and whether more replies follow. Raises the error that the daemon answered
    with.
    """
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("the daemon sent a reply that is not JSON") from None
    if not isinstance(reply, dict):
        raise ProtocolError("the daemon sent a reply that is not a JSON object")
    parameters, error = reply.get("parameters"), reply.get("error")
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict) or not (error is None or isinstance(error, str)):
        raise ProtocolError("the daemon sent a reply with a field of the wrong type")
    if error is not None:
        raise from_wire(error, parameters)
    return parameters, bool(reply.get("continues"))


class Reader:
    """Collects bytes and descriptors, and returns complete messages. Owns the descriptors until the caller takes
    them.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._count = 0  # bytes of the messages before
        self._fds: List[Tuple[int, int]] = []  # with the number of the byte that ended their recvmsg()

    def receive(self, sock: socket.socket) -> bool:
        """One recvmsg(). False: the daemon closed the connection."""
        data, ancillary, flags, _ = sock.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, part in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(part[: len(part) - len(part) % fds.itemsize])
        self._buffer += data
        self._fds += [(self._count + len(self._buffer), fd) for fd in fds]
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError("descriptors beside a reply were lost: too many files are open")
        if len(self._buffer) > _REPLY_MAX:
            raise ProtocolError("the daemon sent a reply that is too long")
        return bool(data)

    def next(self) -> Optional[Tuple[bytes, List[int]]]:
        """The next complete message and its descriptors, which the caller then owns; None: the message is not complete
        yet.
        """
        end = self._buffer.find(0, self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            return None
        text = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        self._count += end + 1
        fds = [fd for at, fd in self._fds if at <= self._count]
        self._fds = [(at, fd) for at, fd in self._fds if at > self._count]
        return text, fds

    def close(self) -> None:
        fds, self._fds = self._fds, []
        close_all(fd for _, fd in fds)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


class Exchange:
    """One call on a connection: what its replies so far say of its end."""

    def __init__(self, more: bool) -> None:
        self._more = more
        self.done = False

    def take(self, text: bytes) -> Tuple[Parameters, bool]:
        """Decodes a reply: its parameters, and whether more follow. Raises the error that the daemon answered with."""
        try:
            reply, continues = decode(text)
        except WireError:
            self.done = True  # an error is the last reply
            raise
        if continues and not self._more:
            raise ProtocolError("the daemon sent several replies, and one was asked for")
        self.done = not continues
        return reply, continues


class Link:
    """A connection's socket, and the steps that the blocking client and the asyncio client do with it. For one thread
    or task at a time; shutdown() may be called from another thread. A forked process cannot use its parent's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._pid = os.getpid()
        self._end = time.monotonic() + CONNECT_TIMEOUT
        self._reader = Reader()
        self.keep_fds = False  # of the descriptors that come beside replies: take_fds() gives them; else they are closed
        self._kept: List[int] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def __del__(self) -> None:
        # If a client is not closed nothing is lost, so a warning about an unclosed socket would not help.
        try:
            self.close()
        except AttributeError:  # it was not made to its end
            pass

    def _connect(self) -> bool:
        """Tries to connect. False: too many connections wait for the daemon to accept them; the next try is due after
        CONNECT_RETRY. NoDaemon, OSError."""
        try:
            self._socket.connect(self.path)
            return True
        except BlockingIOError as error:
            if time.monotonic() < self._end:
                return False
            raise connect_failure(self.path, TimeoutError(errno.ETIMEDOUT, "it does not take connections")) from error
        except OSError as error:
            raise connect_failure(self.path, error) from None

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def is_dead(self) -> bool:
        """Whether the daemon closed the connection. Between calls the daemon sends nothing, so any input means that it
        is gone.
        """
        return self._peek() is not None

    def is_at_end(self) -> bool:
        """Whether the daemon closed the connection, and everything that it sent before was read."""
        return self._peek() == b""

    def _peek(self) -> Optional[bytes]:
        """What comes next; b"": the end; None: nothing yet."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def shutdown(self) -> None:
        """A call that another thread has running ends with ConnectionLost. Does nothing to the connection of a parent
        process."""
        if os.getpid() == self._pid:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended already
                pass

    def close(self) -> None:
        self._socket.close()
        self._reader.close()
        close_all(self.take_fds())

    def _push(self, data: bytes, fds: Sequence[int]) -> bytes:
        """Sends descriptors and as much of the data as the socket takes at once. Returns the rest. ConnectionLost; and
        BlockingIOError, if the socket does not block."""
        self._is_ours()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            return data[self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            raise
        except (BrokenPipeError, ConnectionResetError):
            return b""  # the daemon may have sent the reason before it closed the connection
        except OSError as error:
            raise ConnectionLost(f"sending to the daemon failed: {error.strerror or error}") from None

    def _fetch(self) -> Optional[bytes]:
        """The next message, whose descriptors are closed, or kept. Receives once if it is not there yet. None: it is not complete
        even then. ConnectionLost; and BlockingIOError, if the socket does not block."""
        message = self._reader.next()
        if message is None:
            self._receive()
            message = self._reader.next()
        if message is None:
            return None
        if self.keep_fds:
            self._kept += message[1]
        else:
            close_all(message[1])
        return message[0]

    def take_fds(self) -> List[int]:
        """The descriptors that came since keep_fds was set, which the caller then owns."""
        fds, self._kept = self._kept, []
        return fds

    def _receive(self) -> None:
        self._is_ours()
        try:
            alive = self._reader.receive(self._socket)
        except BlockingIOError:
            raise
        except ConnectionResetError:
            alive = False
        except OSError as error:
            raise ConnectionLost(f"receiving from the daemon failed: {error.strerror or error}") from None
        if not alive:
            raise ConnectionLost("the daemon closed the connection")

    def _is_ours(self) -> None:
        if os.getpid() != self._pid:
            raise ConnectionLost("this process was forked, and the connection is its parent's")


class Connection(Link):
    """A connection whose calls block. If an exception interrupts a call, also one from a signal, the connection is
    closed. Then the daemon cancels the work that only this client waited for."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        try:
            # A blocking connect() would wait without an end while the daemon accepts nobody.
            while not self._connect():
                time.sleep(CONNECT_RETRY)
            self._socket.setblocking(True)
        except BaseException:
            self.close()
            raise

    def call(self, method: str, parameters: Optional[Mapping[str, Any]] = None, fds: Sequence[int] = ()) -> Parameters:
        """One call with one reply. Descriptors that come with the reply are closed."""
        for reply, _ in self.replies(method, parameters, fds, more=False):
            return reply
        raise ProtocolError("the daemon sent no reply")

    def replies(
        self, method: str, parameters: Optional[Mapping[str, Any]] = None, fds: Sequence[int] = (), more: bool = True
    ) -> Iterator[Tuple[Parameters, bool]]:
        """Yields each reply, and whether more follow. If the caller stops before the last reply, the connection is
        closed.
        """
        data = encode(method, parameters, more)
        check_fds(fds)
        exchange = Exchange(more)
        try:
            while data:
                data, fds = self._push(data, fds), ()
            while not exchange.done:
                text = self._fetch()
                if text is not None:
                    yield exchange.take(text)
        finally:
            if not exchange.done:
                self.close()
