"""Makes DLPack capsules with ctypes: they give a tensor's memory to another library without a copy.

The structs are those of dlpack.h, version 1. Each holds a reference to itself, in its `context`, until its consumer calls
the deleter. The deleter and the capsule's destructor are functions of the library, and give up that reference. They are
not written in Python, because they may be called while an exception is pending. The consumer may call the deleter from
any thread, with or without the interpreter's lock. After the interpreter's end the lock cannot be taken. So from its
exit on they do nothing, and structs that are still in use are never freed.
"""

from __future__ import annotations

import atexit
import ctypes
from ctypes import POINTER, Structure, addressof, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint32
from ctypes import c_uint64, c_void_p, py_object
from typing import Any, Optional, Tuple

from ._dtypes import Dtype
from ._library import DIMS_MAX, library

VERSION = (1, 0)

CPU, CUDA, ROCM = 1, 2, 10
READ_ONLY, COPIED = 1, 2


class _Device(Structure):
    _fields_ = [("device_type", c_int32), ("device_id", c_int32)]


class _DataType(Structure):
    _fields_ = [("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16)]


class _Tensor(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("device", _Device),
        ("ndim", c_int32),
        ("dtype", _DataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Managed(Structure):
    """DLManagedTensor. The dimensions after it are our addition."""

    _fields_ = [
        ("tensor", _Tensor),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("shape", c_int64 * DIMS_MAX),
        ("strides", c_int64 * DIMS_MAX),
    ]


class _ManagedVersioned(Structure):
    """DLManagedTensorVersioned. The dimensions after it are our addition."""

    _fields_ = [
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
        ("shape", c_int64 * DIMS_MAX),
        ("strides", c_int64 * DIMS_MAX),
    ]


_NAMES = ("PyGILState_Ensure", "PyGILState_Release", "Py_IncRef", "Py_DecRef", "PyCapsule_New", "PyCapsule_IsValid",
          "PyCapsule_GetPointer")  # fmt: skip


class _Python(Structure):
    """struct rf_python of client/dlpack.h: what the library calls."""

    _fields_ = [(name, c_void_p) for name in _NAMES]


_python = ctypes.PyDLL(None)
_functions = _Python(*(ctypes.cast(getattr(_python, name), c_void_p) for name in _NAMES))
_keep = _python.Py_IncRef
_keep.restype, _keep.argtypes = None, [py_object]

# In use as long as a struct or a capsule is, even when this module is gone already.
for _immortal in (_functions, _Managed, _ManagedVersioned):
    _keep(_immortal)

_new: Any = None  # rf_dlpack_capsule(), once the library has _functions
_exiting = False


def _ready() -> Any:
    """rf_dlpack_capsule(). LibraryNotFound."""
    global _new
    if _exiting:
        raise BufferError("the interpreter is ending")
    if _new is None:
        lib = library()
        lib.rf_dlpack_python(addressof(_functions))
        new = ctypes.PyDLL(None, handle=lib._handle).rf_dlpack_capsule
        new.restype, new.argtypes = py_object, [py_object, c_void_p, c_int]
        _new = new
    return _new


def _exit() -> None:
    global _exiting
    _exiting = True
    if _new is not None:
        library().rf_dlpack_python(None)


atexit.register(_exit)


def capsule(
    keeps: Any,
    address: int,
    dtype: Dtype,
    shape: Tuple[int, ...],
    device: Tuple[int, int],
    versioned: bool,
    flags: int,
    strides: Optional[Tuple[int, ...]] = None,
) -> Any:
    """A PyCapsule "dltensor", or "dltensor_versioned" with flags, of elements at an address: contiguous ones, unless there
    are strides. `keeps` is kept alive until the consumer has finished."""
    new = _ready()
    managed: Any = _ManagedVersioned() if versioned else _Managed()
    stride = 1
    for i in range(len(shape) - 1, -1, -1):
        managed.shape[i], managed.strides[i] = shape[i], stride
        stride *= shape[i]
    for i, step in enumerate(strides or ()):
        managed.strides[i] = step
    tensor = managed.tensor
    tensor.data = address or None
    tensor.device.device_type, tensor.device.device_id = device
    tensor.ndim = len(shape)
    tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = dtype.code, 8 * dtype.itemsize, 1
    base = addressof(managed)
    kind = type(managed)
    tensor.shape = ctypes.cast(base + kind.shape.offset, POINTER(c_int64))
    tensor.strides = ctypes.cast(base + kind.strides.offset, POINTER(c_int64))
    if versioned:
        managed.major, managed.minor, managed.flags = *VERSION, flags
    managed.keeps = keeps
    return new(managed, base, versioned)
