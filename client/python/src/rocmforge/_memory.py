"""A model's memory in this process, and the objects that refer to it.

An Attachment is one connection of librocmforge with one lease. The lease ends when the model is closed and no View is
left, or when no object refers to the Attachment any more. Arrays, tensors and buffers of other libraries hold a View.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import threading
import time
import weakref
from ctypes import byref, c_void_p
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

from . import _fork, _library, errors

if TYPE_CHECKING:
    from ._leases import Keeper

# The limit for calls that the daemon answers at once. Without a limit a destructor could wait for ever.
_ANSWER_SECONDS = 60

# How often a model that is used looks whether its connection has ended.
_LOOK_SECONDS = 1.0

# Of rf_reconnect(): no daemon is there, or it has gone again.
_MAY_COME = (-errno.ENOENT, -errno.ECONNREFUSED, -errno.ECONNRESET, -errno.ETIMEDOUT)

# All of this process, and what watches their connections if somebody has asked for that: see _leases.
attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
keeper: Optional[Keeper] = None

_exiting = False


def exiting() -> bool:
    """Whether the interpreter is ending. Then nothing is unmapped any more, because another destructor may still read
    the memory. The kernel frees everything when the process ends."""
    return _exiting is not False  # None: this module is gone already


def _exit() -> None:
    global _exiting
    _exiting = True


atexit.register(_exit)


class Entry(NamedTuple):
    """A tensor as the library describes it."""

    name: str
    type: str
    form: str
    shape: Tuple[int, ...]
    offset: int
    nbytes: int
    address: int
    is_view: bool = False  # of other tensors' bytes
    strides: Optional[Tuple[int, ...]] = None  # in elements; None: they lie one behind the other


def _entry(tensor: _library.CTensor) -> Entry:
    return Entry(
        _library.text(tensor.name),
        _library.text(tensor.type),
        _library.text(tensor.form),
        tuple(tensor.shape[: tensor.n_dims]),
        tensor.offset,
        tensor.bytes,
        tensor.data or 0,
        bool(tensor.flags & _library.TENSOR_VIEW),
        tuple(tensor.strides[: tensor.n_dims]) if tensor.strides else None,
    )


class _Hold:
    """An open Attachment and its views refer to this. When it goes, the attachment is closed and has no view any more."""

    __slots__ = ("_attachment",)

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = weakref.ref(attachment)

    def __del__(self) -> None:
        attachment = self._attachment()
        if attachment is not None:  # else it has released itself
            attachment.release()


class View:
    """As long as this object lives, the memory is in use. It is removed from `views` by a function in C. A __del__() of
    its own would be called so often that it would get most signals, and a KeyboardInterrupt that is raised in it is
    lost."""

    __slots__ = ("attachment", "_hold", "__weakref__")

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self._hold = attachment.hold
        attachment.views[weakref.ref(self, attachment.views.pop)] = None


class Attachment:
    """Attaches to a resident model. If this raises an Error, nothing is left of it."""

    def __init__(self, path: str, name: str) -> None:
        self.pid = os.getpid()
        self.views: Dict[weakref.ref[View], None] = {}  # a dictionary's operations are atomic
        self.hold: Optional[_Hold] = _Hold(self)  # None: it is closed
        self.closing = False
        self._lock = threading.RLock()
        self._looked = time.monotonic()
        self._client = c_void_p()
        self._model = c_void_p()
        _fork.renew_in_child(self)
        self._lib = _library.library()
        try:
            self._attach(path, name)
        except BaseException:
            self.release()  # not only when the exception, which refers to this, is gone
            raise

    def _attach(self, path: str, name: str) -> None:
        lib = self._lib
        result = lib.rf_connect(os.fsencode(path), byref(self._client))
        if result < 0:
            raise _library.failure(None, result)
        # The library still owns the descriptor: detach() takes it from the object without closing it.
        sock = socket.socket(fileno=lib.rf_client_fd(self._client))
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _ANSWER_SECONDS, 0))
        finally:
            sock.detach()
        self._check(lib.rf_attach(self._client, name.encode("utf-8", "surrogateescape"), byref(self._model)))
        model = self._model
        self.name = _library.text(lib.rf_model_name(model))
        self.id = int(lib.rf_model_id(model))
        self.device = _library.text(lib.rf_model_device(model))
        self.kind = _library.text(lib.rf_model_device_kind(model))
        self.uuid = _library.text(lib.rf_model_device_uuid(model)) or None
        self.pci = _library.text(lib.rf_model_device_pci(model)) or None
        self.address = int(lib.rf_model_data(model) or 0)
        self.nbytes = int(lib.rf_model_bytes(model))
        attachments.add(self)
        if keeper:
            keeper.add(self)

    def after_fork(self) -> None:
        self._lock = threading.RLock()

    def __del__(self) -> None:
        self.release()

    def _check(self, result: int) -> None:
        if result < 0:
            raise _library.failure(self._client, result)

    @property
    def on_host(self) -> bool:
        return self.kind == "host"

    @property
    def released(self) -> bool:
        return not self._model

    def usable(self) -> None:
        """Raises an error if the memory is gone, or if it is a GPU's memory and this process was forked."""
        if self.closing or not self._model:
            raise errors.Closed(f"the model '{getattr(self, 'name', '')}' was closed")
        if not self.on_host and os.getpid() != self.pid:
            raise errors.Error(
                "a GPU's memory that the parent attached to cannot be used in a process forked from it: "
                f"call rocmforge.attach({self.name!r}) in the child"
            )
        now = time.monotonic()
        if now > self._looked + _LOOK_SECONDS:
            self._looked = now
            with contextlib.suppress(errors.Error):
                self.try_again()

    # --- its lease ---

    def fd(self) -> int:
        """The socket of its connection; -1: it has none."""
        with self._lock:
            return int(self._lib.rf_client_fd(self._client)) if self._client else -1

    def leased(self) -> bool:
        """Whether this process has a lease, as far as is known."""
        with self._lock:
            if not self._model or os.getpid() != self.pid or self._ended():
                return False
            function = getattr(self._lib, "rf_model_leased", None)
            return bool(function(self._model)) if function else True

    def _ended(self) -> bool:
        """Whether the connection has. With the lock."""
        fd = self.fd()
        if fd < 0:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLRDHUP)
        return bool(poll.poll(0))

    def try_again(self) -> bool:
        """If the connection has ended, connects again and takes the lease again. False: no daemon can be reached now.
        ModelNotFound: the daemon does not have the model any more."""
        with self._lock:
            if not self._model or os.getpid() != self.pid:
                raise errors.Closed(f"the model '{self.name}' was closed, or belongs to the parent process")
            if self.leased():
                return True
            function = getattr(self._lib, "rf_reconnect", None)
            if function is None:
                raise errors.LibraryError(errno.ENOSYS, "the library is too old to connect again")
            result = function(self._client, 0.0) if self._ended() else -errno.ESTALE
            if result == -errno.ESTALE:
                raise errors.from_wire(f"{errors.INTERFACE}.ModelNotFound", {"name": self.name})
            if result in _MAY_COME:
                return False
            self._check(result)
            return True

    def view(self) -> View:
        # No view may be made after close() looked at the views and before it frees the memory.
        with self._lock:
            self.usable()
            return View(self)

    def read(self, offset: int, address: int, nbytes: int) -> None:
        """Copies bytes of the memory, wherever it is, to an address in this process."""
        with self._turn():
            self._check(self._lib.rf_model_read(self._model, offset, address, nbytes))

    def entries(self) -> List[Entry]:
        """All tensors, in the order of the file."""
        entries = []
        tensor = _library.CTensor()
        with self._turn():
            for index in range(self._lib.rf_model_tensors(self._model)):
                self._check(self._lib.rf_model_tensor(self._model, index, byref(tensor)))
                entries.append(_entry(tensor))
        return entries

    def find(self, name: str) -> Optional[Entry]:
        tensor = _library.CTensor()
        with self._turn():
            if self._lib.rf_model_find(self._model, name.encode("utf-8", "surrogateescape"), byref(tensor)) < 0:
                return None
            return _entry(tensor)

    def header(self) -> Optional[bytes]:
        """A copy of the file's header: metadata and tensor infos. None: the daemon or the library is too old to provide
        it.
        """
        function = getattr(self._lib, "rf_model_header", None)
        if function is None:
            return None
        size = ctypes.c_size_t(0)
        with self._turn():
            address = function(self._model, byref(size))
            return ctypes.string_at(address, size.value) if address else None

    def count(self) -> int:
        with self._turn():
            return int(self._lib.rf_model_tensors(self._model))

    def _turn(self) -> _Turn:
        return _Turn(self)

    def close(self, force: bool) -> bool:
        """Closes the model: no new views can be made. If there are no views the lease ends now; with `force`, it ends
        with the last view. Without `force`, if there are views, does nothing and returns False."""
        with self._lock:
            if self.views and not force:
                return False
            self.closing = True
            self.hold = None
            if not self.views:
                self.release()
            return True

    def release(self, exiting: Any = exiting) -> None:
        """Detaches and closes the connection, once. Never raises, because a destructor may call it. If the daemon is
        gone, the lease has ended already."""
        try:
            if exiting() or not self._client:
                return
            with self._lock:
                if keeper:
                    keeper.remove(self._lib.rf_client_fd(self._client))
                client, model = self._client, self._model
                self._client, self._model = c_void_p(), c_void_p()
            if model:
                self._lib.rf_detach(model)
            if client:
                self._lib.rf_close(client)
        except AttributeError:  # it was not made to its end
            return


class _Turn:
    """Gives the model to one thread. Until the end of the `with` it is not released, not even by a destructor that runs
    meanwhile.
    """

    __slots__ = ("_view", "_lock")

    def __init__(self, attachment: Attachment) -> None:
        self._view: Optional[View] = attachment.view()
        self._lock = attachment._lock

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *_: object) -> None:
        self._lock.__exit__(None, None, None)
        self._view = None


def host_buffer(view: Optional[View], address: int, nbytes: int) -> memoryview:
    """A read-only buffer of the bytes at an address of this process. The buffer keeps the view alive."""
    if nbytes == 0:
        return memoryview(b"")
    array = (ctypes.c_ubyte * nbytes).from_address(address)
    array._view = view  # type: ignore[attr-defined]
    return memoryview(array).cast("B").toreadonly()
