"""The same client for asyncio.

    async with rocmforge.aio.connect() as rf:
        await rf.load("m.gguf", name="m")
        with await rf.attach("m") as m:
            m.numpy("output_norm.weight")

If a task that waits for a load is cancelled, the load is cancelled too, unless others wait for it. Models and tensors
are the same classes as in the blocking client. Their calls block; attaching and closing take well under a millisecond
on the host.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket as sockets
from typing import TYPE_CHECKING, Any, AsyncGenerator, Dict, Generator, List, NoReturn, Optional, Sequence, Tuple, Type
from typing import cast

from . import _calls, _progress
from ._calls import Forms
from ._files import Path, Paths, first, opened_or_not
from ._memory import Attachment
from ._progress import ProgressOption
from ._varlink import CONNECT_RETRY, CONNECT_TIMEOUT, Reader, close_all, connect_failure, decode, default_socket, encode
from .errors import Closed, ConnectionLost, ProtocolError
from .model import Model
from .replies import Device, Event, LoadReply, Metric, ModelInfo, PlanReply, ShowReply, StatusReply, VerifyReply

if TYPE_CHECKING:
    from types import TracebackType


class _Connection:
    """One connection, for one task at a time. If a call is interrupted, the connection is closed."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._socket = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM | sockets.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    @classmethod
    async def open(cls, path: str) -> _Connection:
        self = cls()
        try:
            end = asyncio.get_running_loop().time() + CONNECT_TIMEOUT
            while True:
                try:
                    self._socket.connect(path)
                    return self
                except BlockingIOError as error:
                    if asyncio.get_running_loop().time() >= end:
                        late = TimeoutError(error.errno, "it does not take connections")
                        raise connect_failure(path, late) from None
                    await asyncio.sleep(CONNECT_RETRY)
                except OSError as error:
                    raise connect_failure(path, error) from None
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
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
            self._socket.recv(1, sockets.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def close(self) -> None:
        self._socket.close()
        self._reader.close()

    async def _ready(self, write: bool) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        fd = self._socket.fileno()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        (loop.add_writer if write else loop.add_reader)(fd, wake)
        try:
            await future
        finally:
            (loop.remove_writer if write else loop.remove_reader)(fd)

    async def call(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> Dict[str, Any]:
        replies = self.replies(method, parameters, fds, more=False)
        try:
            async for reply, _ in replies:
                return reply
        finally:
            await replies.aclose()
        raise ProtocolError("the daemon sent no reply")

    async def add_files(self, fds: Sequence[int]) -> None:
        """Sends the descriptors that do not fit into the message of the call."""
        for part in _calls.added(fds):
            await self.call("AddFiles", {"fds": list(range(len(part)))}, part)

    async def replies(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = (), more: bool = True
    ) -> AsyncGenerator[Tuple[Dict[str, Any], bool], None]:
        data = encode(method, parameters, more)
        done = False
        try:
            await self._send(data, fds)
            while not done:
                text = await self._message()
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

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        rights = [(sockets.SOL_SOCKET, sockets.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while data:
            try:
                data = data[self._socket.sendmsg([data], rights, sockets.MSG_NOSIGNAL) :]
                rights = []
            except BlockingIOError:
                await self._ready(write=True)
            except (BrokenPipeError, ConnectionResetError):
                return  # the daemon may have sent the reason before it closed the connection
            except OSError as error:
                raise ConnectionLost(f"sending to the daemon failed: {error.strerror or error}") from None

    async def _message(self) -> bytes:
        while True:
            message = self._reader.next()
            if message:
                close_all(message[1])
                return message[0]
            try:
                alive = self._reader.receive(self._socket)
            except BlockingIOError:
                await self._ready(write=False)
                continue
            except ConnectionResetError:
                alive = False
            except OSError as error:
                raise ConnectionLost(f"receiving from the daemon failed: {error.strerror or error}") from None
            if not alive:
                raise ConnectionLost("the daemon closed the connection")


class Client:
    """A client of the daemon at a socket, for the tasks of one event loop. It has the methods of rocmforge.Client;
    their docstrings describe parameters, results and errors. Each call that can take long has a connection of its
    own."""

    def __init__(self, socket: Optional[Path] = None) -> None:
        self.socket = os.fspath(socket) if socket is not None else default_socket()
        self._lock = asyncio.Lock()
        self._connection: Optional[_Connection] = None
        self._closed = False

    # --- its end ---

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Attached models stay attached until they are closed."""
        self._closed = True
        if self._connection:
            self._connection.close()
            self._connection = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a client cannot be pickled: call rocmforge.aio.connect() in the other process")

    # --- calls ---

    def _check(self) -> None:
        if self._closed:
            raise Closed("the client was closed")

    async def _shared(self) -> _Connection:
        connection = self._connection
        if connection is None or connection.closed or connection.is_dead():
            if connection is not None:
                connection.close()
            connection = self._connection = await _Connection.open(self.socket)
        return connection

    async def call(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> Dict[str, Any]:
        self._check()
        async with self._lock:
            return await (await self._shared()).call(method, parameters, fds)

    async def call_more(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> AsyncGenerator[Dict[str, Any], None]:
        """Yields each reply. To stop before the last reply, close the generator with aclose(); this ends the call."""
        self._check()
        connection = await _Connection.open(self.socket)
        try:
            await connection.add_files(fds)
            async for reply, _ in connection.replies(method, parameters, fds[-_calls.FDS_MAX :]):
                yield reply
        finally:
            connection.close()

    async def _waited(
        self, method: str, parameters: Dict[str, Any], fds: Sequence[int], progress: ProgressOption, what: str
    ) -> Dict[str, Any]:
        take = _progress.taker(progress, what)
        last: Dict[str, Any] = {}
        complete = False
        replies = self.call_more(method, parameters, fds)
        try:
            async for last in replies:
                if take and last.get("progress"):
                    take(last["progress"])
            complete = True
        finally:
            await replies.aclose()
            _progress.finish(take, complete)
        return _calls.without_draining(last)

    # --- loading ---

    async def load(
        self,
        path: Paths,
        *,
        name: Optional[str] = None,
        form: Optional[str] = None,
        forms: Forms = None,
        device: Optional[str] = None,
        dequant: Optional[str] = None,
        wait: bool = True,
        wait_for_memory: Optional[float] = None,
        pin: bool = False,
        private: bool = False,
        public: bool = False,
        replace: bool = False,
        ttl: Optional[int] = None,
        deadline: Optional[float] = None,
        progress: ProgressOption = None,
        trace: bool = False,
        by_path: bool = False,
    ) -> LoadReply:
        options = (name, form, forms, device, dequant, wait, wait_for_memory, pin, private, public, replace, ttl, deadline, trace)
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.load(path, fds, *options)
            reply = await self._waited("Load", parameters, fds or (), progress, f"loading {os.path.basename(first(path))}")
        return cast(LoadReply, reply)

    async def plan(
        self,
        path: Paths,
        *,
        name: Optional[str] = None,
        form: Optional[str] = None,
        forms: Forms = None,
        device: Optional[str] = None,
        dequant: Optional[str] = None,
        private: bool = False,
        public: bool = False,
        replace: bool = False,
        by_path: bool = False,
    ) -> PlanReply:
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.plan(path, fds, name, form, forms, device, dequant, private, public, replace)
            return cast(PlanReply, await self._waited("Plan", parameters, fds or (), None, ""))

    async def unload(self, name: str, *, force: bool = False, deadline: Optional[float] = None) -> str:
        parameters = {"name": name, "force": force or None, "deadline": _calls.seconds(deadline)}
        return str((await self._waited("Unload", parameters, (), None, ""))["state"])

    async def cancel(self, name: str, *, deadline: Optional[float] = None) -> None:
        await self._waited("Cancel", {"name": name, "deadline": _calls.seconds(deadline)}, (), None, "")

    # --- keeping ---

    async def pin(self, name: str) -> None:
        await self.call("Pin", {"name": name})

    async def unpin(self, name: str) -> None:
        await self.call("Unpin", {"name": name})

    async def set_ttl(self, name: str, ttl: Optional[int]) -> None:
        await self.call("SetTtl", {"name": name, "ttl": ttl})

    # --- looking ---

    async def list(self) -> List[ModelInfo]:
        return cast("List[ModelInfo]", (await self.call("List"))["models"])

    async def show(self, name: str) -> ShowReply:
        return cast(ShowReply, _calls.without_draining(await self.call("Show", {"name": name})))

    async def devices(self) -> List[Device]:
        return cast("List[Device]", (await self.call("Devices"))["devices"])

    async def metrics(self) -> List[Metric]:
        return cast("List[Metric]", (await self.call("Metrics"))["metrics"])

    async def status(self) -> StatusReply:
        return cast(StatusReply, _calls.without_draining(await self.call("Status")))

    async def verify(
        self, name: str, *, deadline: Optional[float] = None, progress: ProgressOption = None
    ) -> VerifyReply:
        parameters = {"name": name, "deadline": _calls.seconds(deadline)}
        return cast(VerifyReply, await self._waited("Verify", parameters, (), progress, f"verifying {name}"))

    async def watch(self) -> AsyncGenerator[Event, None]:
        """Yields first each model in its present state, without an event, and then every change of state, without end.
        To stop, close the generator with aclose()."""
        replies = self.call_more("Watch")
        try:
            async for reply in replies:
                yield cast(Event, _calls.without_draining(reply))
        finally:
            await replies.aclose()

    # --- attaching ---

    async def attach(self, name: str, *, deadline: Optional[float] = None, progress: ProgressOption = None) -> Model:
        parameters = {"name": name, "table": True, "deadline": _calls.seconds(deadline)}
        return await self._leased("Attach", parameters, (), progress, f"waiting for {name}", None)

    async def load_attach(
        self,
        path: Paths,
        *,
        name: Optional[str] = None,
        form: Optional[str] = None,
        forms: Forms = None,
        device: Optional[str] = None,
        dequant: Optional[str] = None,
        wait_for_memory: Optional[float] = None,
        pin: bool = False,
        private: bool = False,
        public: bool = False,
        replace: bool = False,
        ttl: Optional[int] = None,
        deadline: Optional[float] = None,
        progress: ProgressOption = None,
        by_path: bool = False,
    ) -> Model:
        options = (name, form, forms, device, dequant, True, wait_for_memory, pin, private, public, replace, ttl, deadline, False)
        with opened_or_not(path, by_path) as fds:
            parameters = {**_calls.load(path, fds, *options), "lease": True, "table": True}
            what = f"loading {os.path.basename(first(path))}"
            return await self._leased("Load", parameters, fds or (), progress, what, os.path.abspath(first(path)))

    async def _leased(
        self,
        method: str,
        parameters: Dict[str, Any],
        fds: Sequence[int],
        progress: ProgressOption,
        what: str,
        path: Optional[str],
    ) -> Model:
        take = _progress.taker(progress, what)
        self._check()
        connection = await _Connection.open(self.socket)
        reply: Dict[str, Any] = {}
        try:
            await connection.add_files(fds)
            async for reply, _ in connection.replies(method, parameters, fds[-_calls.FDS_MAX :]):
                if take and reply.get("progress"):
                    take(reply["progress"])
            info = cast(ModelInfo, reply["model"])
            loop = asyncio.get_running_loop()
            attachment = await loop.run_in_executor(None, Attachment, self.socket, info["name"])
            await connection.call("Detach", {"lease": reply["lease"]})
        finally:
            _progress.finish(take, "lease" in reply)
            connection.close()
        return Model(attachment, info, path)


class _Connecting:
    """The result of connect(), for `await` or `async with`."""

    def __init__(self, socket: Optional[Path]) -> None:
        self._socket = socket
        self._client: Optional[Client] = None

    async def _open(self) -> Client:
        client = Client(self._socket)
        client._connection = await _Connection.open(client.socket)
        return client

    def __await__(self) -> Generator[Any, None, Client]:
        return self._open().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._open()
        return self._client

    async def __aexit__(self, *_: object) -> None:
        if self._client:
            self._client.close()


def connect(socket: Optional[Path] = None) -> _Connecting:
    """A Client of the daemon at a socket: `async with connect() as rf`, or `rf = await connect()`. NoDaemon."""
    return _Connecting(socket)
