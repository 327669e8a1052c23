"""The blocking client: every method of the daemon, and attaching."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NoReturn, Optional, Sequence
from typing import Tuple, Type, cast

from . import _calls, _progress
from ._calls import Forms
from ._files import Path, Paths, first, opened_or_not
from ._memory import Attachment
from ._progress import ProgressOption
from ._varlink import Connection, default_socket
from .errors import Closed, ConnectionLost, NoDaemon
from .model import Model
from .replies import Device, Event, LoadReply, Metric, ModelInfo, PlanReply, ShowReply, StatusReply, VerifyReply

if TYPE_CHECKING:
    from types import TracebackType


class Client:
    """A client of the daemon at a socket. Default: $ROCMFORGE_SOCKET, the system's socket, or the user's.

    Threads may share a client. Each call that can take long, and each attached model, has a connection of its own. So
    no thread waits for another thread's load, and Ctrl-C ends only the call that it interrupts. A forked process makes
    a new connection with its first call.

    Every method may raise the errors that the daemon answers with (`rocmforge.ModelNotFound`, ...), NoDaemon and
    ConnectionLost.
    """

    def __init__(self, socket: Optional[Path] = None) -> None:
        self.socket = os.fspath(socket) if socket is not None else default_socket()
        self._lock = threading.Lock()
        self._connection: Optional[Connection] = None
        self._pid = os.getpid()
        self._closed = False
        self._watcher: Optional[_Watcher] = None
        with self._shared():  # connect now, so that this fails if there is no daemon
            pass

    # --- its end ---

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Attached models stay attached until they are closed."""
        self._closed = True
        if self._watcher:
            self._watcher.stop()
            self._watcher = None
        if self._connection:
            self._connection.close()
            self._connection = None

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a client cannot be pickled: call rocmforge.connect() in the other process")

    def __repr__(self) -> str:
        return f"<Client of {self.socket}{', closed' if self._closed else ''}>"

    # --- calls ---

    def _check(self) -> None:
        if self._closed:
            raise Closed("the client was closed")

    @contextlib.contextmanager
    def _shared(self) -> Iterator[Connection]:
        """The connection for calls that are answered at once. Makes a new one if it broke, or if it belongs to the
        parent process.
        """
        self._check()
        if os.getpid() != self._pid:
            # The parent still uses the connection, and a thread that held the lock does not exist in this process.
            self._pid, self._lock, self._connection = os.getpid(), threading.Lock(), None
            self._watcher = None
        with self._lock:
            connection = self._connection
            if connection is None or connection.closed or connection.is_dead():
                if connection is not None:
                    connection.close()
                connection = self._connection = Connection(self.socket)
            yield connection

    def call(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> Dict[str, Any]:
        """Calls a method with one reply, by its name in io.rocmforge or by its full name in another interface. Returns
        the reply's parameters without change. Descriptors that come with the reply are closed."""
        with self._shared() as connection:
            return connection.call(method, parameters, fds)

    def call_more(
        self, method: str, parameters: Optional[Dict[str, Any]] = None, fds: Sequence[int] = ()
    ) -> Iterator[Dict[str, Any]]:
        """Calls a method with several replies, on a connection of its own, and yields them. If the caller stops before
        the last reply, the call ends."""
        self._check()
        connection = Connection(self.socket)
        try:
            for reply, _ in _with_files(connection, method, parameters, fds):
                yield reply
        finally:
            connection.close()

    def _waited(
        self, method: str, parameters: Dict[str, Any], fds: Sequence[int], progress: ProgressOption, what: str
    ) -> Dict[str, Any]:
        """Makes a call that may take long, and returns its last reply."""
        take = _progress.taker(progress, what)
        last: Dict[str, Any] = {}
        complete = False
        try:
            for last in self.call_more(method, parameters, fds):
                if take and last.get("progress"):
                    take(last["progress"])
            complete = True
        finally:
            _progress.finish(take, complete)
        return _calls.without_draining(last)

    # --- loading ---

    def load(
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
        """Loads a GGUF file. If it is resident already, or is being loaded, uses that model. For a split model give its
        first file ("-00001-of-00003.gguf"), or a list of all its files.

        Args:
            name: default: from the file's name. The returned model has the name that it got.
            form: "auto" (default: quantised tensors become f16), "native", "f32", "f16", "bf16".
            forms: other forms for tensors whose names match a pattern: {"*norm*": "f32"}. If several patterns match,
                the last one is used.
            device: "auto", "host", "cuda", "hip:0", ...
            dequant: where blocks are decoded: "auto", "cpu", "gpu".
            wait: return only when the model is resident. If this is interrupted and no other client waits, the load is
                cancelled.
            wait_for_memory: seconds that the load may wait if there is not enough memory.
            pin: never evict the model. private: only this user sees it; public: every user sees it. Default: users who
                may read the file see it.
            replace: take the name over from the model that has it. The old model is unloaded when no client is attached
                to it.
            ttl: seconds of idleness after which the model is unloaded.
            deadline: seconds after which the load is given up with DeadlineExceeded.
            progress: True: show it, with tqdm's bar if tqdm is installed; or a function that gets each Progress.
            trace: the reply has a trace, which shows when each worker did what.
            by_path: the daemon opens the path, with its own rights, instead of this process.

        Returns the model, and if this call began the load, its phases. OSError: the file cannot be opened.
        """
        options = (name, form, forms, device, dequant, wait, wait_for_memory, pin, private, public, replace, ttl, deadline, trace)
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.load(path, fds, *options)
            reply = self._waited("Load", parameters, fds or (), progress, f"loading {os.path.basename(first(path))}")
        return cast(LoadReply, reply)

    def plan(
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
        """Returns what load() would do, but loads nothing."""
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.plan(path, fds, name, form, forms, device, dequant, private, public, replace)
            return cast(PlanReply, self._waited("Plan", parameters, fds or (), None, ""))

    def unload(self, name: str, *, force: bool = False, deadline: Optional[float] = None) -> str:
        """Frees a model's memory. ModelBusy: a client is attached. With `force` the model then drains: no further
        client can attach, and the memory is freed when the last lease ends. Returns "unloaded" or "draining"."""
        parameters = {"name": name, "force": force or None, "deadline": _calls.seconds(deadline)}
        return str(self._waited("Unload", parameters, (), None, "")["state"])

    def cancel(self, name: str, *, deadline: Optional[float] = None) -> None:
        """Cancels a load that is running. Clients that wait for it get Cancelled."""
        self._waited("Cancel", {"name": name, "deadline": _calls.seconds(deadline)}, (), None, "")

    # --- keeping ---

    def pin(self, name: str) -> None:
        """Pins a model: it is not evicted, and not unloaded when it is idle."""
        self.call("Pin", {"name": name})

    def unpin(self, name: str) -> None:
        """Undoes pin()."""
        self.call("Unpin", {"name": name})

    def set_ttl(self, name: str, ttl: Optional[int]) -> None:
        """Sets the seconds of idleness after which a model is unloaded; None: never."""
        self.call("SetTtl", {"name": name, "ttl": ttl})

    # --- looking ---

    def list(self) -> List[ModelInfo]:
        """All models."""
        return cast("List[ModelInfo]", self.call("List")["models"])

    def show(self, name: str) -> ShowReply:
        """One model with its metadata, tensors and leases. Long values of the metadata are cut."""
        return cast(ShowReply, _calls.without_draining(self.call("Show", {"name": name})))

    def devices(self) -> List[Device]:
        """The memories that models can be resident in."""
        return cast("List[Device]", self.call("Devices")["devices"])

    def metrics(self) -> List[Metric]:
        """What the daemon has and what happened since it started, as Prometheus has it."""
        return cast("List[Metric]", self.call("Metrics")["metrics"])

    def status(self) -> StatusReply:
        """The daemon itself."""
        return cast(StatusReply, _calls.without_draining(self.call("Status")))

    def verify(
        self, name: str, *, deadline: Optional[float] = None, progress: ProgressOption = None
    ) -> VerifyReply:
        """Makes the daemon read the file again and compare it with the memory, bit for bit."""
        parameters = {"name": name, "deadline": _calls.seconds(deadline)}
        return cast(VerifyReply, self._waited("Verify", parameters, (), progress, f"verifying {name}"))

    def watch(self) -> Iterator[Event]:
        """Yields first each model in its present state, without an event, and then every change of state, without
        end.
        """
        for reply in self.call_more("Watch"):
            yield cast(Event, _calls.without_draining(reply))

    # --- attaching ---

    def attach(self, name: str, *, deadline: Optional[float] = None, progress: ProgressOption = None) -> Model:
        """Attaches to a model: its memory is mapped into this process, and nothing is copied. If the model is being
        loaded, waits for it, at most `deadline` seconds.

        ModelNotFound; ModelBusy: it is being unloaded; LibraryError: this process cannot map memory of its device.
        """
        parameters = {"name": name, "table": True, "deadline": _calls.seconds(deadline)}
        return self._leased("Attach", parameters, (), progress, f"waiting for {name}", None)

    def load_attach(
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
        """load() and attach() in one call, with the options of load(). Attaches to the loaded model, whatever its name
        is. The model cannot be evicted between the two."""
        options = (name, form, forms, device, dequant, True, wait_for_memory, pin, private, public, replace, ttl, deadline, False)
        with opened_or_not(path, by_path) as fds:
            parameters = {**_calls.load(path, fds, *options), "lease": True, "table": True}
            what = f"loading {os.path.basename(first(path))}"
            return self._leased("Load", parameters, fds or (), progress, what, os.path.abspath(first(path)))

    def _leased(
        self,
        method: str,
        parameters: Dict[str, Any],
        fds: Sequence[int],
        progress: ProgressOption,
        what: str,
        path: Optional[str],
    ) -> Model:
        # The wait is done here, where a signal ends it. The lease that it brings keeps the model until the library,
        # which is not to be interrupted, has one.
        take = _progress.taker(progress, what)
        self._check()
        with contextlib.closing(Connection(self.socket)) as connection:
            reply: Dict[str, Any] = {}
            try:
                for reply, _ in _with_files(connection, method, parameters, fds):
                    if take and reply.get("progress"):
                        take(reply["progress"])
            finally:
                _progress.finish(take, "lease" in reply)
            info = cast(ModelInfo, reply["model"])
            attachment = Attachment(self.socket, info["name"])
            connection.call("Detach", {"lease": reply["lease"]})
        if self._watcher:
            self._watcher.add(attachment)
        return Model(attachment, info, path)

    def on_draining(self, function: Optional[Callable[[str], object]]) -> None:
        """Sets a function that is called when an attached model should be closed, because it is unloaded by force or
        its device was lost. The function gets the model's name, and runs on a thread of its own. The user should then
        close the model and delete its arrays and tensors. This works for models that are attached from now on. None:
        the function is no longer called."""
        self._check()
        if self._watcher:
            self._watcher.stop()
        self._watcher = _Watcher(self.socket, function) if function else None


def _with_files(
    connection: Connection, method: str, parameters: Optional[Dict[str, Any]], fds: Sequence[int]
) -> Iterator[Tuple[Dict[str, Any], bool]]:
    """Makes a call with any number of files, and yields the replies."""
    for part in _calls.added(fds):
        connection.call("AddFiles", {"fds": list(range(len(part)))}, part)
    return connection.replies(method, parameters, fds[-_calls.FDS_MAX :])


# Does not wait for a user's function that does not return, especially not at the interpreter's end.
_JOIN_SECONDS = 2


class _Watcher:
    """A thread that watches all changes of state, and calls the user's function for attached models that should be
    closed.
    """

    def __init__(self, path: str, function: Callable[[str], object]) -> None:
        self._function = function
        self._attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._stopped = False
        self._connection = Connection(path)
        self._replies: Iterator[Tuple[Dict[str, Any], bool]] = self._connection.replies("Watch")
        next(self._replies)  # from here on nothing is missed
        self._thread = threading.Thread(target=self._run, name="rocmforge-watch", daemon=True)
        self._thread.start()
        _watchers.add(self)

    def add(self, attachment: Attachment) -> None:
        with self._lock:
            self._attachments.add(attachment)

    def stop(self) -> None:
        self._stopped = True
        with contextlib.suppress(OSError):
            self._connection.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        with contextlib.suppress(ConnectionLost, NoDaemon, OSError, ValueError):
            for reply, _ in self._replies:
                if self._stopped:
                    break
                if reply.get("event") == "draining":
                    self._tell(reply["model"]["name"], reply["model"]["id"])
        self._connection.close()

    def _tell(self, name: str, id_: int) -> None:
        with self._lock:
            ours = [a for a in self._attachments if a.id == id_ and not a.released]
        if ours and not self._stopped:
            try:
                self._function(name)
            except Exception:
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


_watchers: weakref.WeakSet[_Watcher] = weakref.WeakSet()


@atexit.register
def _exit() -> None:
    for watcher in list(_watchers):
        watcher.stop()


def connect(socket: Optional[Path] = None) -> Client:
    """A Client of the daemon at a socket. Default: the socket that librocmforge would use. NoDaemon."""
    return Client(socket)


def load(path: Paths, *, socket: Optional[Path] = None, **options: Any) -> LoadReply:
    """Client.load() with a new connection."""
    with connect(socket) as client:
        return client.load(path, **options)


def attach(
    name: str,
    *,
    deadline: Optional[float] = None,
    progress: ProgressOption = None,
    socket: Optional[Path] = None,
) -> Model:
    """Client.attach() with a new connection. The model stays attached when that connection is closed."""
    with connect(socket) as client:
        return client.attach(name, deadline=deadline, progress=progress)


def load_attach(path: Paths, *, socket: Optional[Path] = None, **options: Any) -> Model:
    """Client.load_attach() with a new connection. The model stays attached when that connection is closed."""
    with connect(socket) as client:
        return client.load_attach(path, **options)
