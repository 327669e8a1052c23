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

import asyncio
import os
from typing import TYPE_CHECKING, Any, AsyncGenerator, Callable, Dict, Generator, List, Mapping
from typing import NoReturn, Optional, Sequence, Type, Union, cast

from . import _calls, _progress, _publish
from ._aio_link import Connection, Watcher, closing
from ._calls import LoadAttachOptions, LoadOptions, PlanOptions
from ._files import Path, Paths, first, opened_or_not
from ._memory import Attachment
from ._progress import ProgressOption
from ._publish import CreateOptions, Creation, Wanted
from ._varlink import default_socket
from .errors import Closed, ConnectionLost
from .model import Model
from .replies import Device, Event, LoadReply, Metric, ModelInfo, PlanReply, ShowReply, StatusReply, VerifyReply

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack  # in typing from Python 3.11 on


class Client:
    """A client of the daemon at a socket, for the tasks of one event loop. It has the methods of rocmforge.Client;
    their docstrings describe parameters, results and errors. Each call that can take long has a connection of its
    own."""

    def __init__(self, socket: Optional[Path] = None) -> None:
        self.socket = os.fspath(socket) if socket is not None else default_socket()
        self._lock = asyncio.Lock()
        self._connection: Optional[Connection] = None
        self._closed = False
        self._watch_lock = asyncio.Lock()  # of the two below
        self._on_draining: Optional[Callable[[str], object]] = None
        self._watcher: Optional[Watcher] = None

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
        """Closes the connection. A task that waits in a call on this connection gets Closed; a load() or another call
        with a connection of its own goes on. Attached models stay attached until they are closed."""
        self._closed = True
        if self._watcher:
            self._watcher.stop()
            self._watcher = None
        if self._connection:
            self._connection.close()
            self._connection = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a client cannot be pickled: call rocmforge.aio.connect() in the other process")

    # --- calls ---

    def _check(self) -> None:
        if self._closed:
            raise Closed("the client was closed")

    async def _shared(self) -> Connection:
        connection = self._connection
        if connection is None or connection.closed or connection.is_dead():
            if connection is not None:
                connection.close()
            connection = self._connection = await Connection.open(self.socket)
            if self._closed:
                connection.close()
                self._check()
        return connection

    async def call(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> Dict[str, Any]:
        async with self._lock:
            self._check()
            try:
                return await (await self._shared()).call(method, parameters, fds)
            except ConnectionLost:
                self._check()  # if another task closed the client, that is the reason
                raise

    async def call_more(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> AsyncGenerator[Dict[str, Any], None]:
        """Yields each reply. To stop before the last reply, close the generator with aclose(); this ends the call."""
        self._check()
        connection = await Connection.open(self.socket)
        try:
            async with closing(connection.with_files(method, parameters, fds)) as replies:
                async for reply in replies:
                    yield reply
        finally:
            connection.close()

    async def _waited(
        self, method: str, parameters: Dict[str, Any], fds: Sequence[int], progress: ProgressOption, what: str
    ) -> Dict[str, Any]:
        take = _progress.taker(progress, what)
        last: Dict[str, Any] = {}
        complete = False
        try:
            async with closing(self.call_more(method, parameters, fds)) as replies:
                async for last in replies:
                    if take and last.get("progress"):
                        take(last["progress"])
            complete = True
        finally:
            _progress.finish(take, complete)
        return _calls.without_draining(last)

    # --- loading ---

    async def load(
        self, path: Paths, *, progress: ProgressOption = None, by_path: bool = False, **options: Unpack[LoadOptions]
    ) -> LoadReply:
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.load(path, fds, **options)
            reply = await self._waited("Load", parameters, fds or (), progress, _calls.loading(path))
        return cast(LoadReply, reply)

    async def plan(self, path: Paths, *, by_path: bool = False, **options: Unpack[PlanOptions]) -> PlanReply:
        with opened_or_not(path, by_path) as fds:
            return cast(PlanReply, await self._waited("Plan", _calls.plan(path, fds, **options), fds or (), None, ""))

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
        """To stop, close the generator with aclose()."""
        async with closing(self.call_more("Watch")) as replies:
            async for reply in replies:
                yield cast(Event, _calls.without_draining(reply))

    # --- attaching ---

    async def attach(self, name: str, *, deadline: Optional[float] = None, progress: ProgressOption = None) -> Model:
        return await self._leased("Attach", _calls.attach(name, deadline), (), progress, f"waiting for {name}", None)

    async def load_attach(
        self,
        path: Paths,
        *,
        progress: ProgressOption = None,
        by_path: bool = False,
        **options: Unpack[LoadAttachOptions],
    ) -> Model:
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.load_attach(path, fds, **options)
            where = os.path.abspath(first(path))
            return await self._leased("Load", parameters, fds or (), progress, _calls.loading(path), where)

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
        watcher = await self._watching()
        connection = await Connection.open(self.socket)
        reply: Dict[str, Any] = {}
        try:
            try:
                async with closing(connection.with_files(method, parameters, fds)) as replies:
                    async for reply in replies:
                        if take and reply.get("progress"):
                            take(reply["progress"])
            finally:
                _progress.finish(take, "lease" in reply)
            info = cast(ModelInfo, reply["model"])
            loop = asyncio.get_running_loop()
            attachment = await loop.run_in_executor(None, Attachment, self.socket, _calls.certain(info))
            try:
                await connection.call("Detach", {"lease": reply["lease"]})
            except BaseException:
                attachment.release()
                raise
        finally:
            connection.close()
        if watcher:
            watcher.add(attachment)
        return Model(attachment, info, path)

    # --- publishing ---

    async def publish(
        self,
        name: str,
        tensors: Mapping[str, Any],
        *,
        metadata: Any = None,
        pin: bool = False,
        ttl: Optional[int] = None,
        progress: ProgressOption = None,
        **options: Unpack[CreateOptions],
    ) -> Model:
        """A thread waits, and copies the tensors. They must not change meanwhile."""
        work = _publish.Work(self.socket, name, options)
        return cast(Model, await self._worked(work, lambda: work.publish(tensors, metadata, pin, ttl, progress)))

    async def create(
        self,
        name: str,
        tensors: Optional[Wanted] = None,
        *,
        nbytes: Optional[int] = None,
        progress: ProgressOption = None,
        **options: Unpack[CreateOptions],
    ) -> Union[Creation, Model]:
        """A thread waits. The Creation's own calls block."""
        work = _publish.Work(self.socket, name, options)
        return await self._worked(work, lambda: work.create(_publish.wanted(tensors), nbytes, progress))

    async def _worked(self, work: _publish.Work, run: Callable[[], Union[Creation, Model]]) -> Union[Creation, Model]:
        self._check()
        watcher = await self._watching()
        try:
            made = await asyncio.get_running_loop().run_in_executor(None, run)
        except asyncio.CancelledError:
            work.abort()  # the thread ends soon; what it has of the daemon goes with its connection
            raise
        if watcher and isinstance(made, Model):
            watcher.add(made._attachment)
        return made

    async def on_draining(self, function: Optional[Callable[[str], object]]) -> None:
        """As in the blocking client, but the function is called by the event loop. It may be a coroutine function."""
        self._check()
        async with self._watch_lock:
            if self._watcher:
                self._watcher.stop()
            self._watcher, self._on_draining = None, function
        await self._watching()

    async def _watching(self) -> Optional[Watcher]:
        """What watches for models that are attached from now on. A new one if the old one's daemon is gone."""
        async with self._watch_lock:
            function = self._on_draining
            if function and not (self._watcher and self._watcher.works()):
                watcher = await Watcher.open(self.socket, function, self._watcher)
                if self._closed:
                    watcher.stop()
                    self._check()
                if self._watcher:
                    self._watcher.stop()
                self._watcher = watcher
            return self._watcher

    # --- parts of other calls ---

    async def add_files(self, fds: Sequence[int]) -> int:
        return int((await self.call("AddFiles", {"fds": list(range(len(fds)))}, fds))["files"])

    async def reattach(self, name: str, token: str) -> Dict[str, Any]:
        return await self.call("Reattach", {"name": name, "token": token})

    async def detach(self, lease: int) -> None:
        await self.call("Detach", {"lease": lease})


class _Connecting:
    """The result of connect(), for `await` or `async with`."""

    def __init__(self, socket: Optional[Path]) -> None:
        self._socket = socket
        self._client: Optional[Client] = None

    async def _open(self) -> Client:
        client = Client(self._socket)
        client._connection = await Connection.open(client.socket)
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
