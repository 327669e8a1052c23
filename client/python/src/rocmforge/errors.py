"""The errors of this package: subclasses of Error.

Arguments that are wrong before the daemon is asked raise what Python has for them: TypeError, ValueError, KeyError. A
file that cannot be opened raises OSError.

Each error of the daemon has a class with the same name as on the wire (`ModelBusy`). `parameters` has the daemon's
parameters, and each parameter is also an attribute (`error.leases`).
"""

from __future__ import annotations

import errno as errnos
import os
from typing import Any, Dict, List, Mapping, Optional, Type

from .replies import Lease

INTERFACE = "io.rocmforge"
VARLINK = "org.varlink.service"

# What a failing connect() says if no daemon can be reached.
NO_DAEMON = (errnos.ENOENT, errnos.ECONNREFUSED, errnos.EACCES, errnos.ETIMEDOUT)


class Error(Exception):
    """The base class of all errors of this package."""


class NoDaemon(Error, ConnectionError):
    """No daemon listens at the socket, or the socket cannot be reached."""


class ConnectionLost(Error, ConnectionError):
    """The daemon has ended, or closed the connection. The client makes a new connection with its next call."""


class ProtocolError(Error):
    """The daemon sent a message that is not valid."""


class LibraryError(Error):
    """A function of librocmforge failed. `errno` is the reason: EBUSY, ENOTSUP, ENODEV, EIO, ..."""

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message or os.strerror(errno))
        self.errno = errno

    def __reduce__(self) -> Any:
        return type(self), (self.errno, str(self))


class LibraryNotFound(Error, ImportError):
    """librocmforge.so.0 is not installed, and ROCMFORGE_LIBRARY does not name it."""


class Closed(Error, ValueError):
    """The client or the model was closed."""


class InUse(Error, BufferError):
    """The model cannot be closed: `views` arrays, tensors or buffers still refer to its memory."""

    def __init__(self, name: str, views: int) -> None:
        super().__init__(
            f"'{name}' cannot be closed: {views} view{'s' if views != 1 else ''} of its memory "
            "are still there; delete them, or let them keep it with close(force=True)"
        )
        self.name = name
        self.views = views

    def __reduce__(self) -> Any:
        return type(self), (self.name, self.views)


class IncompleteFiles(Error, ValueError):
    """The files that were named are only a part of a model of safetensors files; `missing` are its others."""

    def __init__(self, path: str, missing: List[str]) -> None:
        super().__init__(
            f"cannot open {path}: these files are a part of a model; name all its files, or only one; not named: "
            + ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        )
        self.path = path
        self.missing = missing

    def __reduce__(self) -> Any:
        return type(self), (self.path, self.missing)


class UnsupportedDtype(Error, TypeError):
    """NumPy, or a protocol, has no such element type."""


class WireError(Error):
    """An error that the daemon answered with. `error` is its full name, "io.rocmforge.ModelBusy"."""

    sentence = "the daemon answered with an error that is not known here"
    detail = ""  # goes behind the sentence, with the parameters in place of {name}
    defaults: Dict[str, Any] = {}

    def __init__(self, error: str, parameters: Optional[Mapping[str, Any]] = None) -> None:
        self.error = error
        self.parameters: Dict[str, Any] = dict(parameters or {})
        for key, value in {**self.defaults, **self.parameters}.items():
            if not key.startswith("_") and not hasattr(self, key):  # what exceptions have of their own stays
                setattr(self, key, value)
        super().__init__(self._message())

    def __reduce__(self) -> Any:
        return type(self), (self.error, self.parameters)

    def _detail(self) -> str:
        return type(self).detail.format_map(vars(self))

    def _message(self) -> str:
        try:
            detail = self._detail()
        except (AttributeError, KeyError, TypeError, ValueError):  # a daemon that says less
            detail = ""
        sentence = type(self).sentence if type(self) is not WireError else f"{WireError.sentence}: {self.error}"
        return f"{sentence}: {detail}" if detail else sentence


def _bytes(n: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n / 1e3:.1f} kB"


class ModelNotFound(WireError):
    """There is no model called `name`."""

    sentence = "no model of this name"
    detail = "'{name}'"
    name: str


class NameInUse(WireError):
    """Another model is called `name`."""

    sentence = "another model has this name"
    detail = "'{name}'"
    name: str


class ModelBusy(WireError):
    """Model `name` is leased (`leases` lists the leases), or its `state` does not allow the call."""

    sentence = "the model is in use"
    defaults = {"leases": []}
    name: str
    state: str
    leases: List[Lease]

    def _detail(self) -> str:
        holders = ", ".join(str(lease["pid"]) for lease in self.leases[:8])
        more = f" and others, {len(self.leases)} leases in all" if len(self.leases) > 8 else ""
        return f"'{self.name}' is {self.state}" + (f", held by process {holders}{more}" if holders else "")


class InvalidModel(WireError):
    """The file is not a model that can be loaded: `reason`, at byte `offset`."""

    sentence = "the file is not a valid model"
    detail = "{reason}, at byte {offset}"
    reason: str
    offset: int


class FileChanged(WireError):
    """The file at `path` changed. `when` is "while-read"; or "since-loaded", from Verify."""

    sentence = "the file changed"
    defaults = {"path": None, "when": None}
    path: Optional[str]
    when: Optional[str]

    def _message(self) -> str:
        times = {"while-read": " while it was read", "since-loaded": " since the model was loaded"}
        when = times.get(self.when, "") if isinstance(self.when, str) else ""
        return f"{self.sentence}{when}" + (f": {self.path}" if self.path else "")


class UnsupportedType(WireError):
    """The `type` of `tensor` cannot be decoded. It can be loaded with form="native"."""

    sentence = "the tensor's type cannot be decoded; load it as native"
    detail = "'{tensor}' is {type}"
    tensor: str
    type: str


class InvalidLayout(WireError):
    """The layout does not fit the model. `tensor` and `group`: which one, or None."""

    sentence = "the layout does not fit the model"
    defaults = {"tensor": None, "group": None}
    reason: str
    tensor: Optional[str]
    group: Optional[str]

    def _detail(self) -> str:
        where = [f"'{self.tensor}'"] if self.tensor else []
        where += [f"group '{self.group}'"] if self.group else []
        return ": ".join([self.reason, *where])


class NoFile(WireError):
    """Model `name` was published: there is no file to compare it with."""

    sentence = "the model was published: there is no file to compare it with"
    detail = "'{name}'"
    name: str


class CreationNotFound(WireError):
    """The connection has no `creation` with this number: it has ended, or Publish of it is under way."""

    sentence = "no such creation on this connection"
    detail = "{creation}"
    creation: int


class InvalidManifest(WireError):
    """The list of tensors, or the metadata, is not valid. `tensor`: which one, by its place in the list; or None."""

    sentence = "the list of tensors, or the metadata, is not valid"
    defaults = {"tensor": None}
    reason: str
    tensor: Optional[int]

    def _detail(self) -> str:
        return self.reason if self.tensor is None else f"tensor {self.tensor}: {self.reason}"


class StillWritable(WireError):
    """A process has the memory of the creation still mapped for writing. The `call` failed with `code`, `text`."""

    sentence = "the memory is still mapped for writing"
    detail = "{call}: {text}"
    call: str
    code: int
    text: str


class DeviceNotFound(WireError):
    """There is no such `device`. `reason`: why, if the name alone does not explain it; else None."""

    sentence = "no such device"
    defaults = {"reason": None}
    device: str
    reason: Optional[str]

    def _detail(self) -> str:
        return f"'{self.device}', {self.reason}" if self.reason else f"'{self.device}'"


class OutOfDeviceMemory(WireError):
    """The load needs `needed` bytes. `device` has `available` bytes, and idle models that can be evicted have
    `evictable` bytes.
    """

    sentence = "not enough device memory"
    device: str
    needed: int
    available: int
    evictable: int

    def _detail(self) -> str:
        return (
            f"{_bytes(self.needed)} needed, {_bytes(self.available)} available, "
            f"{_bytes(self.evictable)} evictable, on '{self.device}'"
        )


class DeviceError(WireError):
    """A `call` to the device, or to the system, failed with `code`: `text`."""

    sentence = "a call to the device failed"
    detail = "{call}: {text} ({code})"
    call: str
    code: int
    text: str


class FileError(WireError):
    """Reading the file failed: `call` with `code`: `text`."""

    sentence = "reading the file failed"
    detail = "{call}: {text} ({code})"
    call: str
    code: int
    text: str


class AmbiguousFiles(WireError):
    """The file at `path` is one of several of a split model, and `files`, beside it, may be the same one of them."""

    sentence = "several files may be the same one of this split model; name all its files"
    path: str
    files: List[str]

    def _detail(self) -> str:
        return ", ".join(self.files)


class LimitExceeded(WireError):
    """The `limit` was reached; its value is `value`."""

    sentence = "a limit was reached"
    detail = "{limit}: {value}"
    limit: str
    value: int


class PermissionDenied(WireError, PermissionError):
    """Not allowed: `reason`."""

    sentence = "not allowed"
    detail = "{reason}"
    reason: str


class Cancelled(WireError):
    """A client cancelled the load."""

    sentence = "cancelled"


class DeadlineExceeded(WireError, TimeoutError):
    """The deadline of the call has passed."""

    sentence = "the deadline has passed"


class LeaseNotFound(WireError):
    """This connection has no such `lease`."""

    sentence = "no such lease on this connection"
    detail = "{lease}"
    lease: int


class InvalidMessage(WireError):
    """The daemon could not read a message (`reason`), and closed the connection."""

    sentence = "not a valid message"
    detail = "{reason}"
    reason: str


class ShuttingDown(WireError):
    """The daemon is shutting down."""

    sentence = "the daemon is going away"


class InterfaceNotFound(WireError):
    """The daemon has no such `interface`."""

    sentence = "no such interface"
    detail = "'{interface}'"
    interface: str


class MethodNotFound(WireError):
    """The daemon has no such `method`; it may be older than this package."""

    sentence = "no such method"
    detail = "'{method}'"
    method: str


class MethodNotImplemented(WireError):
    """The daemon does not implement the `method`."""

    sentence = "the method is not implemented"
    detail = "'{method}'"
    method: str


class InvalidParameter(WireError, ValueError):
    """The `parameter` is missing or wrong."""

    sentence = "a parameter is missing or wrong"
    parameter: str

    def _detail(self) -> str:
        letters = ", which has letters, digits and . _ - : @ +, at most 127, not beginning with -"
        return f"'{self.parameter}'{letters if self.parameter == 'name' else ''}"


class ExpectedMore(WireError):
    """The method must be called with call_more(), because it has several replies."""

    sentence = "the method is to be called with `more`"


_OURS: List[Type[WireError]] = [
    ModelNotFound, NameInUse, ModelBusy, InvalidModel, FileChanged, UnsupportedType, InvalidLayout, DeviceNotFound,
    OutOfDeviceMemory, DeviceError, FileError, AmbiguousFiles, LimitExceeded, PermissionDenied, Cancelled, DeadlineExceeded,
    LeaseNotFound, InvalidMessage, ShuttingDown, NoFile, CreationNotFound, InvalidManifest, StillWritable,
]  # fmt: skip
_VARLINKS: List[Type[WireError]] = [
    InterfaceNotFound, MethodNotFound, MethodNotImplemented, InvalidParameter, ExpectedMore,
]  # fmt: skip

BY_NAME: Dict[str, Type[WireError]] = {
    **{f"{INTERFACE}.{error.__name__}": error for error in _OURS},
    **{f"{VARLINK}.{error.__name__}": error for error in _VARLINKS},
}


def from_wire(error: str, parameters: Optional[Mapping[str, Any]]) -> WireError:
    """The exception for an error's full name."""
    return BY_NAME.get(error, WireError)(error, parameters)
