"""librocmforge through ctypes: the functions of client/rocmforge.h that this package needs, and those of client/dlpack.h.

The library checks the files that the daemon passes, maps the memory of the host or a GPU, and unmaps it when the device
has finished with it. Python is not suited for this. All other calls go over the wire from Python, where a signal can
interrupt them.
"""

from __future__ import annotations

import ctypes
import errno as errnos
import os
import threading
from ctypes import POINTER, Structure, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any, Dict, Optional

from . import errors

SONAME = "librocmforge.so.0"
DIMS_MAX = 8  # RF_DIMS_MAX
TENSOR_VIEW = 1  # RF_TENSOR_VIEW


class CTensor(Structure):
    """rf_tensor."""

    _fields_ = [
        ("name", c_char_p),
        ("type", c_char_p),
        ("type_id", c_uint32),
        ("form", c_char_p),
        ("n_dims", c_uint32),
        ("shape", c_uint64 * DIMS_MAX),
        ("offset", c_uint64),
        ("bytes", c_uint64),
        ("data", c_void_p),
        ("padding", c_uint64),
        ("flags", c_uint64),
        ("strides", POINTER(c_uint64)),
        ("reserved", c_void_p * 1),
    ]


_FUNCTIONS: Dict[str, Any] = {
    "rf_version": (c_char_p,),
    "rf_connect": (c_int, c_char_p, POINTER(c_void_p)),
    "rf_close": (None, c_void_p),
    "rf_client_fd": (c_int, c_void_p),
    "rf_error_message": (c_char_p, c_void_p),
    "rf_error_name": (c_char_p, c_void_p),
    "rf_error_parameters": (c_char_p, c_void_p),
    "rf_attach": (c_int, c_void_p, c_char_p, POINTER(c_void_p)),
    "rf_detach": (c_int, c_void_p),
    "rf_model_name": (c_char_p, c_void_p),
    "rf_model_id": (c_uint64, c_void_p),
    "rf_model_device": (c_char_p, c_void_p),
    "rf_model_device_kind": (c_char_p, c_void_p),
    "rf_model_device_uuid": (c_char_p, c_void_p),
    "rf_model_device_pci": (c_char_p, c_void_p),
    "rf_model_data": (c_void_p, c_void_p),
    "rf_model_bytes": (c_uint64, c_void_p),
    "rf_model_read": (c_int, c_void_p, c_uint64, c_void_p, c_size_t),
    "rf_model_tensors": (c_size_t, c_void_p),
    "rf_model_tensor": (c_int, c_void_p, c_size_t, POINTER(CTensor)),
    "rf_model_find": (c_int, c_void_p, c_char_p, POINTER(CTensor)),
    "rf_dlpack_python": (None, c_void_p),
}

FileFunction = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)  # rf_file_fn

# Functions that an older library lacks. The package works without them.
_OPTIONAL: Dict[str, Any] = {
    "rf_model_files": (c_int, c_char_p, FileFunction, c_void_p),
    "rf_model_header": (c_void_p, c_void_p, POINTER(c_size_t)),
    "rf_reconnect": (c_int, c_void_p, ctypes.c_double),
    "rf_model_leased": (c_int, c_void_p),
    "rf_creation_of": (c_int, c_void_p, c_char_p, c_int, POINTER(c_void_p)),
    "rf_creation_data": (c_void_p, c_void_p),
    "rf_creation_forget": (None, c_void_p),
}

_lock = threading.Lock()
_library: Optional[ctypes.CDLL] = None


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _open() -> ctypes.CDLL:
    path = os.environ.get("ROCMFORGE_LIBRARY") or SONAME
    if os.path.isdir(path):  # a build folder, or the one in it that has the library
        found = [p for p in (os.path.join(path, SONAME), os.path.join(path, "client", SONAME)) if os.path.exists(p)]
        if not found:
            raise errors.LibraryNotFound(f"ROCMFORGE_LIBRARY names {path}, where there is no {SONAME}")
        path = found[0]
    try:
        library = ctypes.CDLL(path)
        for name, (result, *arguments) in {**_FUNCTIONS, **_OPTIONAL}.items():
            function = getattr(library, name, None) if name in _OPTIONAL else getattr(library, name)
            if function is not None:
                function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise errors.LibraryNotFound(
            f"{SONAME} cannot be loaded: {error}; install rocmforge, or set ROCMFORGE_LIBRARY to the file or its folder"
        ) from None
    return library


def library() -> ctypes.CDLL:
    """The library, which is loaded once. LibraryNotFound."""
    global _library
    if _library is None:
        with _lock:
            if _library is None:
                _library = _open()
    return _library


def text(value: Optional[bytes]) -> str:
    """Decodes a string of the library. A name in a file may not be UTF-8; encoding the result gives the same bytes
    again.
    """
    return (value or b"").decode("utf-8", "surrogateescape")


def failure(client: Optional[c_void_p], result: int) -> errors.Error:
    """The exception for a negative result of a function of this client. If the client is None: of rf_connect()."""
    lib = library()
    name = lib.rf_error_name(client) if client else None
    message = text(lib.rf_error_message(client))
    if name:
        import json

        parameters = lib.rf_error_parameters(client)
        return errors.from_wire(text(name), json.loads(parameters) if parameters else None)
    if not client:
        return errors.NoDaemon(message) if -result in errors.NO_DAEMON else errors.LibraryError(-result, message)
    if result in (-errnos.ECONNRESET, -errnos.ETIMEDOUT):
        return errors.ConnectionLost(message)
    if result == -errnos.EPROTO:
        return errors.ProtocolError(message)
    return errors.LibraryError(-result, message)
