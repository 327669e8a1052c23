"""Varlink over a Unix stream socket, with descriptors beside the messages, as docs/wire.md describes it.

Both clients use the framing and the checks in this file. `Connection` is for the blocking client.
"""

from __future__ import annotations

import array
import json
import os
import socket
import time
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

from .errors import INTERFACE, ConnectionLost, NoDaemon, ProtocolError, from_wire

Parameters = Dict[str, Any]

_CHUNK = 1 << 17
_REPLY_MAX = 64 << 20
_FDS_MAX = 253
_ANCILLARY = socket.CMSG_SPACE(_FDS_MAX * array.array("i").itemsize)
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


def connect_failure(path: str, error: OSError) -> NoDaemon:
    hint = ""
    if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
        hint = "; is rocmforged running?"
    elif isinstance(error, PermissionError):
        hint = "; its owner decides who may use it"
    return NoDaemon(f"cannot connect to {path}: {error.strerror or error}{hint}")


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


class Connection:
    """One connection, for one thread at a time. If an exception interrupts a call, also one from a signal, the
    connection is closed. Then the daemon cancels the work that only this client waited for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._reader = Reader()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        # A non-blocking Unix socket returns EAGAIN while too many connections wait for the daemon to accept them.
        end = time.monotonic() + CONNECT_TIMEOUT
        self._socket.setblocking(False)
        while True:
            try:
                self._socket.connect(self.path)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise connect_failure(self.path, TimeoutError(error.errno, "it does not take connections")) from None
                time.sleep(CONNECT_RETRY)
            except OSError as error:
                raise connect_failure(self.path, error) from None
        self._socket.setblocking(True)

    def __del__(self) -> None:
        # If a client is not closed nothing is lost, so a warning about an unclosed socket would not help.
        try:
            self.close()
        except AttributeError:  # it was not made to its end
            pass

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    def is_dead(self) -> bool:
        """Whether the daemon closed the connection. Between calls the daemon sends nothing, so any input means that it
        is gone.
        """
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def shutdown(self) -> None:
        """May be called from another thread. The running call then ends with ConnectionLost."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
        self._reader.close()

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
        done = False
        try:
            self._send(data, fds)
            while not done:
                text = self._message()
                try:
                    reply, continues = decode(text)
                except ProtocolError:
                    raise
                except Exception:
                    done = True  # an error of the daemon, which is the last reply
                    raise
                if continues and not more:
                    raise ProtocolError("the daemon sent several replies, and one was asked for")
                done = not continues
                yield reply, continues
        finally:
            if not done:
                self.close()

    def _send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            sent = 0
            if fds:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
                sent = self._socket.sendmsg([data], [rights], socket.MSG_NOSIGNAL)
            if sent < len(data):
                self._socket.sendall(data[sent:], socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon may have sent the reason before it closed the connection
        except OSError as error:
            raise ConnectionLost(f"sending to the daemon failed: {error.strerror or error}") from None

    def _message(self) -> bytes:
        while True:
            message = self._reader.next()
            if message:
                close_all(message[1])
                return message[0]
            try:
                alive = self._reader.receive(self._socket)
            except ConnectionResetError:
                alive = False
            except OSError as error:
                raise ConnectionLost(f"receiving from the daemon failed: {error.strerror or error}") from None
            if not alive:
                raise ConnectionLost("the daemon closed the connection")
