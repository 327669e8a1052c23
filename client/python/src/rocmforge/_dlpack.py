"""Makes DLPack capsules with ctypes: they give a tensor's memory to another library without a copy.

The structs are those of dlpack.h, version 1. `_exports` keeps each struct until its consumer calls the deleter. The
consumer may call it from any thread, with or without the interpreter's lock, because ctypes takes the lock. After the
interpreter's end the lock cannot be taken. So at exit the deleter of every struct that is still in use is set to NULL,
which the protocol allows, and these structs are never freed.
"""

from __future__ import annotations

import atexit
import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, addressof, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16
from ctypes import c_uint32, c_uint64, c_void_p, py_object
from typing import Any, Dict, Optional, Tuple

from ._dtypes import Dtype
from ._library import DIMS_MAX

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


_python = ctypes.PyDLL(None)
_new = _python.PyCapsule_New
_new.restype, _new.argtypes = py_object, [c_void_p, c_void_p, c_void_p]
# Takes the capsule's address: a destructor's capsule must not get a new reference.
_is_valid = _python.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = c_int, [c_void_p, c_char_p]
_pointer = _python.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, [c_void_p, c_char_p]
_keep = _python.Py_IncRef
_keep.restype, _keep.argtypes = None, [py_object]

# Each struct that is in use, by its address, and the object that keeps its memory.
_exports: Dict[int, Tuple[Any, Any]] = {}

# A capsule keeps only a pointer to its name, so the names must live here.
_NAME, _NAME_VERSIONED = b"dltensor", b"dltensor_versioned"
_name = ctypes.create_string_buffer(_NAME)
_name_versioned = ctypes.create_string_buffer(_NAME_VERSIONED)


def _delete(address: Optional[int], exports: Dict[int, Tuple[Any, Any]] = _exports) -> None:
    exports.pop(address or 0, None)


def _destroy(
    capsule: Optional[int],
    exports: Dict[int, Tuple[Any, Any]] = _exports,
    is_valid: Any = _is_valid,
    pointer: Any = _pointer,
    names: Tuple[bytes, bytes] = (_NAME, _NAME_VERSIONED),
) -> None:
    """Called for a capsule whose tensor was never taken. A consumer that takes the tensor renames the capsule."""
    for name in names:
        if is_valid(capsule, name):
            exports.pop(pointer(capsule, name), None)


_callback = CFUNCTYPE(None, c_void_p)
_delete_callback, _destroy_callback = _callback(_delete), _callback(_destroy)
_delete_pointer = ctypes.cast(_delete_callback, c_void_p).value
_destroy_pointer = ctypes.cast(_destroy_callback, c_void_p).value

# May be called as long as a struct is in use, even when this module is gone already.
for _immortal in (_delete_callback, _destroy_callback, _exports, _name, _name_versioned, _Managed, _ManagedVersioned):
    _keep(_immortal)


def _exit() -> None:
    for managed, _ in list(_exports.values()):
        managed.deleter = None
        _keep(managed)


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
    managed.deleter = _delete_pointer
    if versioned:
        managed.major, managed.minor, managed.flags = *VERSION, flags
    _exports[base] = (managed, keeps)
    try:
        return _new(base, ctypes.addressof(_name_versioned if versioned else _name), _destroy_pointer)
    except BaseException:
        _exports.pop(base, None)
        raise
