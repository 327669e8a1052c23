"""What the client for asyncio stands on: connections for tasks, and a task that watches."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from typing import Any, AsyncGenerator, AsyncIterator, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

from . import _calls
from ._draining import FIRST_PAUSE, LAST_PAUSE, PATIENCE, Drains
from ._memory import Attachment
from ._varlink import CONNECT_RETRY, FDS_MAX, Exchange, Link, check_fds, encode
from .errors import ConnectionLost, Error, ProtocolError

_T = TypeVar("_T")
Replies = AsyncGenerator[Tuple[Dict[str, Any], bool], None]  # the replies of Watch


@contextlib.asynccontextmanager
async def closing(generator: AsyncGenerator[_T, None]) -> AsyncIterator[AsyncGenerator[_T, None]]:
    """contextlib.aclosing(), which Python 3.9 lacks: the generator ends here, and not whenever it is collected."""
    try:
        yield generator
    finally:
        await generator.aclose()


class Connection(Link):
    """A connection for one task at a time. If a call is interrupted, the connection is closed."""

    def __init__(self, path: str) -> None:
        self._end_wait: Optional[Callable[[], None]] = None  # while a task waits for the socket
        super().__init__(path)

    @classmethod
    async def open(cls, path: str) -> Connection:
        self = cls(path)
        try:
            while not self._connect():
                await asyncio.sleep(CONNECT_RETRY)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        # The loop must not keep a descriptor that is closed: the task would wait for ever.
        if self._end_wait:
            self._end_wait()
        super().close()

    async def _ready(self, write: bool) -> None:
        """Waits until the socket can be read from, or written to. ConnectionLost: it was closed meanwhile."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        fd = self._socket.fileno()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        def end() -> None:
            self._end_wait = None
            if not loop.is_closed():
                (loop.remove_writer if write else loop.remove_reader)(fd)
                wake()

        (loop.add_writer if write else loop.add_reader)(fd, wake)
        self._end_wait = end
        try:
            await future
        finally:
            if self._end_wait is end:
                end()
        if self.closed:
            raise ConnectionLost("the connection was closed")

    async def call(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> Dict[str, Any]:
        async with closing(self.replies(method, parameters, fds, more=False)) as replies:
            async for reply, _ in replies:
                return reply
        raise ProtocolError("the daemon sent no reply")

    async def with_files(
        self, method: str, parameters: Optional[Dict[str, Any]], fds: Sequence[int]
    ) -> AsyncGenerator[Dict[str, Any], None]:
        """Makes a call with any number of files, and yields the replies."""
        for part in _calls.added(fds):
            await self.call("AddFiles", {"fds": list(range(len(part)))}, part)
        async with closing(self.replies(method, parameters, fds[-FDS_MAX:])) as replies:
            async for reply, _ in replies:
                yield reply

    async def replies(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = (), more: bool = True
    ) -> Replies:
        data = encode(method, parameters, more)
        check_fds(fds)
        exchange = Exchange(more)
        try:
            while data:
                try:
                    data, fds = self._push(data, fds), ()
                except BlockingIOError:
                    await self._ready(write=True)
            while not exchange.done:
                try:
                    text = self._fetch()
                except BlockingIOError:
                    await self._ready(write=False)
                else:
                    if text is not None:
                        yield exchange.take(text)
        finally:
            if not exchange.done:
                self.close()


class Watcher:
    """A task that watches all changes of state, and calls the user's function for attached models that should be
    closed. When the daemon has ended, it watches the next one.

    before: one whose models this one watches from now on."""

    def __init__(self, path: str, function: Callable[[str], object], before: Optional[Watcher]) -> None:
        self._path = path
        self._function = function
        self._drains: Drains = before._drains if before else Drains()
        self._stopped = False
        self._connection: Optional[Connection] = None
        self._task: Optional[asyncio.Task[None]] = None
        self._told: List[asyncio.Task[None]] = []

    @classmethod
    async def open(
        cls, path: str, function: Callable[[str], object], before: Optional[Watcher] = None
    ) -> Watcher:
        self = cls(path, function, before)
        events = await self._watch()
        try:
            if before:
                await self._tell_missed()
        except BaseException:
            self.stop()
            raise
        self._task = asyncio.create_task(self._run(events))
        return self

    async def _watch(self) -> Replies:
        connection = self._connection = await Connection.open(self._path)
        events = connection.replies("Watch")
        try:
            await events.__anext__()  # from here on nothing is missed
        except BaseException:
            connection.close()
            raise
        return events

    async def _tell_missed(self) -> None:
        """Tells of models that have begun to drain before the daemon was watched."""
        connection = await Connection.open(self._path)
        try:
            for name in self._drains.catch_up((await connection.call("List")).get("models", ())):
                self._tell(name)
        finally:
            connection.close()

    def works(self) -> bool:
        """False: its daemon is gone. Then a new one is needed: this one would only watch the next daemon a little
        later."""
        connection = self._connection
        runs = self._task is not None and not self._task.done() and not self._stopped
        return runs and connection is not None and not connection.closed and not connection.is_at_end()

    def add(self, attachment: Attachment) -> None:
        if self._drains.add(attachment):
            self._tell(attachment.name)

    def stop(self) -> None:
        self._stopped = True
        if self._task:
            self._task.cancel()
        if self._connection:
            self._connection.close()

    async def _run(self, events: Optional[Replies]) -> None:
        while events is not None:
            with contextlib.suppress(Error):  # the daemon ends
                async with closing(events):
                    async for event, _ in events:
                        name = self._drains.take(event)
                        if name is not None:
                            self._tell(name)
            events = await self._next()

    async def _next(self) -> Optional[Replies]:
        """Watches the next daemon. None: there was none for a long time."""
        end, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
        while not self._stopped and time.monotonic() < end:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
            with contextlib.suppress(Error, OSError):
                events = await self._watch()
                await self._tell_missed()
                return events
        return None

    def _tell(self, name: str) -> None:
        self._told = [task for task in self._told if not task.done()]
        self._told.append(asyncio.create_task(self._call(name)))  # the loop keeps no task itself

    async def _call(self, name: str) -> None:
        try:
            result = self._function(name)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            loop = asyncio.get_running_loop()
            loop.call_exception_handler({"message": "the function of on_draining() failed", "exception": error})
