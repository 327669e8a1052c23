"""The blocking client: every method of the daemon, and attaching."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, NoReturn, Optional, Sequence
from typing import Tuple, Type, Union, cast

from . import _calls, _fork, _progress, _publish
from ._calls import LoadAttachOptions, LoadOptions, PlanOptions
from ._draining import Watcher
from ._files import Path, Paths, first, opened_or_not
from ._memory import Attachment
from ._progress import ProgressOption
from ._publish import CreateOptions, Creation, PublishOptions, Wanted
from ._varlink import FDS_MAX, Connection, default_socket
from .errors import Closed, ConnectionLost
from .model import Model
from .replies import Device, Event, LoadReply, Metric, ModelInfo, PlanReply, ShowReply, StatusReply, VerifyReply

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack  # in typing from Python 3.11 on


# How long close() waits for a call of another thread, which ends at once but while it connects.
_CLOSE_SECONDS = 1


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
        self._lock = threading.Lock()  # of the connection; held during a call
        self._connection: Optional[Connection] = None
        self._closed = False
        self._watch_lock = threading.Lock()  # of the two below
        self._on_draining: Optional[Callable[[str], object]] = None
        self._watcher: Optional[Watcher] = None
        _fork.renew_in_child(self)
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
        """Closes the connection. A call that another thread waits in on this connection raises Closed; a load() or
        another call with a connection of its own goes on. Attached models stay attached until they are closed."""
        self._closed = True
        with self._watch_lock:
            watcher, self._watcher, self._on_draining = self._watcher, None, None
        if watcher:
            watcher.stop()
        connection = self._connection
        if connection:
            connection.shutdown()
        # Who has the lock for longer closes the connection afterwards, see _shared().
        if self._lock.acquire(timeout=_CLOSE_SECONDS):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def after_fork(self) -> None:
        """In a forked process: the connection and the watcher are the parent's."""
        self._lock, self._watch_lock = threading.Lock(), threading.Lock()
        self._connection = self._watcher = None

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
        """The connection for calls that are answered at once. Makes a new one if it broke."""
        with self._lock:
            self._check()
            try:
                if self._connection is None or self._connection.closed or self._connection.is_dead():
                    self._drop()
                    self._connection = Connection(self.socket)
                yield self._connection
            except ConnectionLost:
                self._check()  # if another thread closed the client, that is the reason
                raise
            finally:
                if self._closed:
                    self._drop()

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
        self, path: Paths, *, progress: ProgressOption = None, by_path: bool = False, **options: Unpack[LoadOptions]
    ) -> LoadReply:
        """Loads a GGUF or safetensors file. If it is resident already, or is being loaded, uses that model. For a split
        model give its first file ("-00001-of-00003.gguf"), or a list of all its files. A folder of safetensors files:
        those that its index names.

        Args:
            name: default: from the file's name. The returned model has the name that it got.
            form: "auto" (default: quantised tensors become f16), "native", "f32", "f16", "bf16".
            forms: other forms for tensors whose names match a pattern: {"*norm*": "f32"}. If several patterns match,
                the last one is used.
            layout: "vllm": tensors that vLLM fuses stand as neighbours, and the model has the fused tensors, too; "hf": of
                a GGUF file of Llama, the rows of q and k are in transformers' order. Default: as in the file.
            groups: further groups of neighbours: a list of rocmforge.Group.
            tp: (rank, size): loads only this part of a model that `size` processes share. Its default name ends with
                ".tp0of2", for example.
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
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.load(path, fds, **options)
            reply = self._waited("Load", parameters, fds or (), progress, _calls.loading(path))
        return cast(LoadReply, reply)

    def plan(self, path: Paths, *, by_path: bool = False, **options: Unpack[PlanOptions]) -> PlanReply:
        """Returns what load() would do with these options, but loads nothing."""
        with opened_or_not(path, by_path) as fds:
            return cast(PlanReply, self._waited("Plan", _calls.plan(path, fds, **options), fds or (), None, ""))

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
        """Yields first one reply with `models`: all models in their present state. Then yields every change of state as
        it happens, with `event` and `model`, without end."""
        for reply in self.call_more("Watch"):
            yield cast(Event, _calls.without_draining(reply))

    # --- attaching ---

    def attach(self, name: str, *, deadline: Optional[float] = None, progress: ProgressOption = None) -> Model:
        """Attaches to a model: its memory is mapped into this process, and nothing is copied. If the model is being
        loaded, waits for it, at most `deadline` seconds.

        ModelNotFound; ModelBusy: it is being unloaded; LibraryError: this process cannot map memory of its device.
        """
        return self._leased("Attach", _calls.attach(name, deadline), (), progress, f"waiting for {name}", None)

    def load_attach(
        self,
        path: Paths,
        *,
        progress: ProgressOption = None,
        by_path: bool = False,
        **options: Unpack[LoadAttachOptions],
    ) -> Model:
        """load() and attach() in one call, with the options of load() but `wait` and `trace`. Attaches to the loaded
        model, whatever its name is. The model cannot be evicted between the two."""
        with opened_or_not(path, by_path) as fds:
            parameters = _calls.load_attach(path, fds, **options)
            where = os.path.abspath(first(path))
            return self._leased("Load", parameters, fds or (), progress, _calls.loading(path), where)

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
        watcher = self._watching()
        with contextlib.closing(Connection(self.socket)) as connection:
            reply: Dict[str, Any] = {}
            try:
                for reply, _ in _with_files(connection, method, parameters, fds):
                    if take and reply.get("progress"):
                        take(reply["progress"])
            finally:
                _progress.finish(take, "lease" in reply)
            info = cast(ModelInfo, reply["model"])
            attachment = Attachment(self.socket, _calls.certain(info))
            try:
                connection.call("Detach", {"lease": reply["lease"]})
            except BaseException:
                attachment.release()
                raise
        if watcher:
            watcher.add(attachment)
        return Model(attachment, info, path)

    # --- publishing ---

    def publish(
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
        """Makes a model of tensors of this process, and attaches to it: a state_dict, or another mapping of names to
        NumPy arrays, PyTorch tensors or tensors of attached models. Their bytes are copied once; from then on this is a
        model like any other, for every process. Tensors that share bytes here, as tied weights do, share them there, and
        strides stay.

        Args:
            key: says what the tensors hold: whatever would make their bytes differ has to be in it. If there is a model
                with this key already, nothing is copied, and that model is attached to. If another process is making
                it, waits for it. So many processes can call this, and one of them does the work: see create(), to do
                the work only then.
            metadata: whatever else to say of the model, a str, or what JSON can say; at most 1 MiB. Model.published has
                it, and Model.metadata().
            any_publisher: a model with this key counts also if another user published it, whom the daemon does not
                trust. Default: this user's, root's, and those of the daemon's own user.
            device: default: where the tensors are.
            wait: False: ModelBusy, if another process is making a model with this key.
            private: only this user sees the model; public: every user sees it. Default: this user, root and the
                daemon's own user.
            wait_for_memory, pin, ttl, replace, deadline, progress: as in load().

        TypeError: something is no tensor with memory of its own. UnsupportedDtype.
        """
        self._check()
        watcher = self._watching()
        work = _publish.Work(self.socket, name, options)
        model = work.publish(tensors, metadata, pin, ttl, progress)
        if watcher:
            watcher.add(model._attachment)
        return model

    def create(
        self,
        name: str,
        tensors: Optional[Wanted] = None,
        *,
        nbytes: Optional[int] = None,
        progress: ProgressOption = None,
        **options: Unpack[CreateOptions],
    ) -> Union[Creation, Model]:
        """Takes memory for a model that this process then fills and publishes: the lower layer of publish(). If there is
        a model with this `key`, or another process makes one meanwhile, returns that Model, attached. So:

            made = rf.create("m", {"a": ("float32", (2, 3))}, key=key)
            if isinstance(made, rocmforge.Creation):
                with made:
                    made.array("a")[:] = compute()
                    made = made.publish()

        Args:
            tensors: a mapping of names to pairs of a type ("float16", or "q4_K") and a shape; or a list of
                rocmforge.NewTensor, which may have strides and offsets. None: publish() is told them.
            nbytes: of the memory. Default: as many as the tensors need.

        The other options are those of publish(); the daemon chooses the device unless it is given.
        """
        self._check()
        watcher = self._watching()
        made = _publish.Work(self.socket, name, options).create(_publish.wanted(tensors), nbytes, progress)
        if watcher and isinstance(made, Model):
            watcher.add(made._attachment)
        return made

    def on_draining(self, function: Optional[Callable[[str], object]]) -> None:
        """Sets a function that is called when an attached model should be closed, because it is unloaded by force or
        its device was lost. The function gets the model's name, and runs on a thread of its own. The user should then
        close the model and delete its arrays and tensors. This works for models that are attached from now on, and goes
        on when the daemon is started anew. None: the function is no longer called."""
        self._check()
        with self._watch_lock:
            old, self._watcher, self._on_draining = self._watcher, None, function
        if old:
            old.stop()
        self._watching()

    def _watching(self) -> Optional[Watcher]:
        """What watches for models that are attached from now on. A new one if the old one's daemon is gone, or if it is
        the parent process's."""
        with self._watch_lock:
            function = self._on_draining
            before = self._watcher
            if function and not (before and before.works()):
                self._watcher = Watcher(self.socket, function, before)
                if before:
                    before.stop()
            return self._watcher

    # --- parts of other calls ---

    def add_files(self, fds: Sequence[int]) -> int:
        """Brings descriptors of files for the next call("Load") or call("Plan") of this client that has fds. Returns how
        many there are by now. load() and plan() do this themselves."""
        return int(self.call("AddFiles", {"fds": list(range(len(fds)))}, fds)["files"])

    def reattach(self, name: str, token: str) -> Dict[str, Any]:
        """Takes a lease again on a model whose memory is still mapped, after the connection or the daemon has ended:
        for who called Attach by call(), whose reply has the token. A Model has reconnect(). The reply has "lease" and
        "model". ModelNotFound, if there is no such model any more."""
        return self.call("Reattach", {"name": name, "token": token})

    def detach(self, lease: int) -> None:
        """Ends a lease that call("Attach") or call("Load") of this client took. LeaseNotFound. A Model ends its own."""
        self.call("Detach", {"lease": lease})


def _with_files(
    connection: Connection, method: str, parameters: Optional[Dict[str, Any]], fds: Sequence[int]
) -> Iterator[Tuple[Dict[str, Any], bool]]:
    """Makes a call with any number of files, and yields the replies."""
    for part in _calls.added(fds):
        connection.call("AddFiles", {"fds": list(range(len(part)))}, part)
    return connection.replies(method, parameters, fds[-FDS_MAX:])


def connect(socket: Optional[Path] = None) -> Client:
    """A Client of the daemon at a socket. Default: the socket that librocmforge would use. NoDaemon."""
    return Client(socket)


def load(
    path: Paths,
    *,
    progress: ProgressOption = None,
    by_path: bool = False,
    socket: Optional[Path] = None,
    **options: Unpack[LoadOptions],
) -> LoadReply:
    """Client.load() with a new connection."""
    with connect(socket) as client:
        return client.load(path, progress=progress, by_path=by_path, **options)


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


def publish(
    name: str,
    tensors: Mapping[str, Any],
    *,
    metadata: Any = None,
    progress: ProgressOption = None,
    socket: Optional[Path] = None,
    **options: Unpack[PublishOptions],
) -> Model:
    """Client.publish() with a new connection. The model stays attached when that connection is closed."""
    with connect(socket) as client:
        return client.publish(name, tensors, metadata=metadata, progress=progress, **options)


def load_attach(
    path: Paths,
    *,
    progress: ProgressOption = None,
    by_path: bool = False,
    socket: Optional[Path] = None,
    **options: Unpack[LoadAttachOptions],
) -> Model:
    """Client.load_attach() with a new connection. The model stays attached when that connection is closed."""
    with connect(socket) as client:
        return client.load_attach(path, progress=progress, by_path=by_path, **options)
