"""The errors of this package: all errors that it raises itself are subclasses of Error.

Each error of the daemon has a class with the same name as on the wire (`ModelBusy`). `parameters` has the daemon's
parameters, and each parameter is also an attribute (`error.leases`).
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional, Type

from .replies import Lease

INTERFACE = "io.rocmforge"
VARLINK = "org.varlink.service"


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


class UnsupportedDtype(Error, TypeError):
    """NumPy, or a protocol, has no such element type."""


class WireError(Error):
    """An error that the daemon answered with. `error` is its full name, "io.rocmforge.ModelBusy"."""

    sentence = "the daemon answered with an error that is not known here"
    defaults: Dict[str, Any] = {}

    def __init__(self, error: str, parameters: Optional[Mapping[str, Any]] = None) -> None:
        self.error = error
        self.parameters: Dict[str, Any] = dict(parameters or {})
        for key, value in {**self.defaults, **self.parameters}.items():
            if key not in ("args", "error", "parameters"):
                setattr(self, key, value)
        super().__init__(self._message())

    def __reduce__(self) -> Any:
        return type(self), (self.error, self.parameters)

    def _detail(self) -> str:
        return ""

    def _message(self) -> str:
        try:
            detail = self._detail()
        except (AttributeError, KeyError, TypeError, ValueError):  # a daemon that says less
            detail = ""
        sentence = self.sentence if type(self) is not WireError else f"{self.sentence}: {self.error}"
        return f"{sentence}: {detail}" if detail else sentence


def _bytes(n: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n / 1e3:.1f} kB"


class ModelNotFound(WireError):
    """There is no model called `name`."""

    sentence = "no model of this name"
    name: str

    def _detail(self) -> str:
        return f"'{self.name}'"


class NameInUse(WireError):
    """Another model is called `name`."""

    sentence = "another model has this name"
    name: str

    def _detail(self) -> str:
        return f"'{self.name}'"


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
    reason: str
    offset: int

    def _detail(self) -> str:
        return f"{self.reason}, at byte {self.offset}"


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
    tensor: str
    type: str

    def _detail(self) -> str:
        return f"'{self.tensor}' is {self.type}"


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
    call: str
    code: int
    text: str

    def _detail(self) -> str:
        return f"{self.call}: {self.text} ({self.code})"


class FileError(WireError):
    """Reading the file failed: `call` with `code`: `text`."""

    sentence = "reading the file failed"
    call: str
    code: int
    text: str

    def _detail(self) -> str:
        return f"{self.call}: {self.text} ({self.code})"


class LimitExceeded(WireError):
    """The `limit` was reached; its value is `value`."""

    sentence = "a limit was reached"
    limit: str
    value: int

    def _detail(self) -> str:
        return f"{self.limit}: {self.value}"


class PermissionDenied(WireError, PermissionError):
    """Not allowed: `reason`."""

    sentence = "not allowed"
    reason: str

    def _detail(self) -> str:
        return self.reason


class Cancelled(WireError):
    """A client cancelled the load."""

    sentence = "cancelled"


class DeadlineExceeded(WireError, TimeoutError):
    """The deadline of the call has passed."""

    sentence = "the deadline has passed"


class LeaseNotFound(WireError):
    """This connection has no such `lease`."""

    sentence = "no such lease on this connection"
    lease: int

    def _detail(self) -> str:
        return str(self.lease)


class InvalidMessage(WireError):
    """The daemon could not read a message (`reason`), and closed the connection."""

    sentence = "not a valid message"
    reason: str

    def _detail(self) -> str:
        return self.reason


class ShuttingDown(WireError):
    """The daemon is shutting down."""

    sentence = "the daemon is going away"


class InterfaceNotFound(WireError):
    """The daemon has no such `interface`."""

    sentence = "no such interface"
    interface: str

    def _detail(self) -> str:
        return f"'{self.interface}'"


class MethodNotFound(WireError):
    """The daemon has no such `method`; it may be older than this package."""

    sentence = "no such method"
    method: str

    def _detail(self) -> str:
        return f"'{self.method}'"


class MethodNotImplemented(WireError):
    """The daemon does not implement the `method`."""

    sentence = "the method is not implemented"
    method: str

    def _detail(self) -> str:
        return f"'{self.method}'"


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
    ModelNotFound, NameInUse, ModelBusy, InvalidModel, FileChanged, UnsupportedType, DeviceNotFound,
    OutOfDeviceMemory, DeviceError, FileError, LimitExceeded, PermissionDenied, Cancelled, DeadlineExceeded,
    LeaseNotFound, InvalidMessage, ShuttingDown,
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
