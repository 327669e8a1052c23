"""A tensor of an attached model: describes its bytes in the model's memory, and makes arrays of them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Dict, NoReturn, Optional, Tuple

from . import _devices, _dlpack, _dtypes
from ._memory import Attachment, Entry, View, host_buffer
from .errors import Error

if TYPE_CHECKING:
    import numpy as _np
    import torch as _torch

    _Exporter = object
else:
    try:
        from ._exporter import Exporter as _Exporter  # before Python 3.12, where pip could compile it
    except ImportError:
        _Exporter = object

_FORMATS = {"float64": "d", "float32": "f", "int64": "q", "int32": "i", "int16": "h", "int8": "b", "uint8": "B",
            "uint64": "Q", "uint32": "I", "uint16": "H", "bool": "?"}  # fmt: skip
_PYBUF_WRITABLE, _PYBUF_FORMAT = 1, 4


class Tensor(_Exporter):
    """A tensor in a model's memory. It has no memory of its own, and cannot be used after its model is closed.

    Attributes:
        name: as in the file.
        shape: of its array, slowest dimension first. For blocks: rows, and the bytes of a row.
        logical_shape: shape in elements, also if the elements are in blocks.
        dtype: the array's element type: "float32", "float16", "bfloat16", "int8", ..., and "uint8" for blocks.
        type: in the file, as ggml names it: "q4_K".
        form: form of the bytes: "f32", "f16", "bf16", or "native": as in the file.
        nbytes, offset: in the model's memory.
        is_view: its bytes are also those of other tensors of the model.
        strides: elements from one to the next in each dimension; None: they lie one behind the other. Only tensors of
            published models have strides. nbytes are then all bytes from the first to the last element.
        device: "cpu"; or "cuda:0", "rocm:0", as this process counts.

    You can pass it to NumPy, PyTorch and other libraries directly. On the host it has the array interface and the buffer
    protocol (before Python 3.12, where pip found a compiler); on GPUs it has the CUDA array interface; DLPack works everywhere. Their result
    is a view: nothing is copied, and the memory stays as long as the view exists. If the CUDA array interface was asked
    for once, the Tensor itself counts as a view from then on.
    """

    __slots__ = ("_attachment", "_entry", "_dtype", "_view", "shape")

    def __init__(self, attachment: Attachment, entry: Entry) -> None:
        self._attachment = attachment
        self._entry = entry
        self._view: Optional[View] = None  # what keeps the memory for those who have the CUDA array interface
        self._dtype, self.shape = _dtypes.array_type(entry.form, entry.type, entry.shape, entry.nbytes)

    @property
    def name(self) -> str:
        return self._entry.name

    @property
    def type(self) -> str:
        return self._entry.type

    @property
    def form(self) -> str:
        return self._entry.form

    @property
    def nbytes(self) -> int:
        return self._entry.nbytes

    @property
    def offset(self) -> int:
        return self._entry.offset

    @property
    def is_view(self) -> bool:
        return self._entry.is_view

    @property
    def strides(self) -> Optional[Tuple[int, ...]]:
        return self._entry.strides

    @property
    def dtype(self) -> str:
        return self._dtype.name

    @property
    def logical_shape(self) -> Tuple[int, ...]:
        return self._entry.shape

    @property
    def is_blocks(self) -> bool:
        """Whether the bytes are blocks of `type`, which must be decoded before use."""
        return self._dtype is _dtypes.BLOCKS

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def device(self) -> str:
        kind, number = self.__dlpack_device__()
        return {_dlpack.CPU: "cpu", _dlpack.CUDA: f"cuda:{number}", _dlpack.ROCM: f"rocm:{number}"}[kind]

    @property
    def data_ptr(self) -> int:
        """The address of the bytes; on a GPU, the device pointer. Valid while the model is attached; it does not keep
        the memory.
        """
        self._attachment.usable()
        return self._entry.address

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        of = f" of {self.type} blocks" if self.is_blocks else ""
        return f"<Tensor {self.name!r} {self.dtype}{of} {list(self.shape)} on {self._attachment.device}>"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"a tensor of an attached model cannot be pickled: call rocmforge.attach({self._attachment.name!r}) in the "
            "other process, which shares the memory"
        )

    # --- copies ---

    def __bytes__(self) -> bytes:
        return self.read()

    def read(self) -> bytes:
        """A copy of the bytes, from the host or a GPU."""
        if self.nbytes == 0:
            self._attachment.usable()
            return b""
        if self._attachment.on_host:
            return self.buffer().tobytes()
        return bytes(self._copy())

    def _copy(self) -> Any:
        """A ctypes array with a copy of the bytes. It has one byte if the tensor has none."""
        copy = (ctypes.c_ubyte * max(self.nbytes, 1))()
        if self.nbytes:
            self._attachment.read(self.offset, ctypes.addressof(copy), self.nbytes)
        return copy

    # --- views ---

    def buffer(self) -> memoryview:
        """A read-only memoryview of the bytes on the host, without a copy. Error: the tensor is on a GPU."""
        self._host_only("a buffer")
        return host_buffer(self._attachment.view(), self._entry.address, self.nbytes)

    def _host_only(self, what: str) -> None:
        if not self._attachment.on_host:
            raise Error(f"'{self.name}' is on {self._attachment.device}, where there is no {what}: use torch(), or read()")

    def __buffer__(self, flags: int) -> memoryview:
        if flags & _PYBUF_WRITABLE:
            raise BufferError("the memory is shared, and sealed against writing")
        try:
            buffer = self.buffer()
            if not flags & _PYBUF_FORMAT or self.nbytes == 0:
                return buffer
            if self.strides is not None:
                strided: Any = self.numpy()
                return memoryview(strided)
            kind: Any = _FORMATS.get(self.dtype)
            if kind:
                typed: memoryview = buffer.cast(kind, self.shape) if self.shape else buffer.cast(kind)
                return typed
            if self.dtype == "float16":  # memoryview.cast() does not know it
                array: Any = self.numpy()
                return memoryview(array)
        except ImportError:
            pass
        except Error as error:
            raise BufferError(str(error)) from None
        raise BufferError(f"buffers have no {self.dtype}: take buffer(), which is bytes")

    def __release_buffer__(self, buffer: memoryview) -> None:
        """Does nothing. But only where there is this method NumPy keeps the buffer, and so the memory."""

    @property
    def __array_interface__(self) -> Dict[str, Any]:
        if not self._attachment.on_host or self._dtype.typestr is None:
            raise AttributeError("__array_interface__")
        # The data is a buffer and not an address: an array keeps the buffer, and so the memory.
        interface: Dict[str, Any] = {"version": 3, "shape": self.shape, "typestr": self._dtype.typestr}
        return {**interface, "data": self.buffer(), "strides": self._byte_strides()}

    def _byte_strides(self) -> Optional[Tuple[int, ...]]:
        if self.strides is None:
            return None
        return tuple(step * self._dtype.itemsize for step in self.strides)

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> _np.ndarray[Any, Any]:
        """What NumPy asks for. With `copy` False: ValueError if another dtype would take a copy."""
        if dtype is None or dtype == _dtypes.numpy_dtype(self._dtype):
            return self.numpy(copy=bool(copy))
        if copy is False:
            raise ValueError(f"'{self.name}' is {self.dtype}: no array of {dtype} without a copy")
        return self.numpy().astype(dtype)

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        # It claims to be writable, because PyTorch refuses read-only memory. It must not be written to.
        if self._attachment.on_host or self._dtype.typestr is None:
            raise AttributeError("__cuda_array_interface__")
        # The protocol passes an address. Who takes it keeps the object that it came from, which is this one.
        if self._view is None:
            self._view = self._attachment.view()
        self._attachment.usable()
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self._dtype.typestr,
            "data": (self._entry.address if self.nbytes else 0, False),
            "strides": self._byte_strides(),
            "stream": None,
        }

    def numpy(self, copy: bool = False) -> _np.ndarray[Any, Any]:
        """A read-only array that is a view of the memory. With `copy`: an array with a copy, also of a GPU's memory.

        UnsupportedDtype: for example, NumPy has no bfloat16 without ml_dtypes. Error: the tensor is on a GPU, and
        `copy` is false.
        """
        import numpy

        dtype = _dtypes.numpy_dtype(self._dtype)
        if copy and self.strides is not None:
            return numpy.ndarray(self.shape, dtype, memoryview(self._copy()), 0, self._byte_strides()).copy()
        if copy:
            array = numpy.empty(self.shape, dtype)
            if self.nbytes:
                self._attachment.read(self.offset, array.ctypes.data, self.nbytes)
            return array
        self._host_only("NumPy array without a copy")
        if self.nbytes == 0:
            self._attachment.usable()
            return numpy.empty(self.shape, dtype)
        if self.strides is not None:
            return numpy.ndarray(self.shape, dtype, numpy.frombuffer(self.buffer(), numpy.uint8), 0, self._byte_strides())
        return numpy.frombuffer(self.buffer(), dtype).reshape(self.shape)

    def torch(self, copy: bool = False) -> _torch.Tensor:
        """A torch.Tensor that is a view of the memory, on the same device. With `copy`: a copy on that device.

        Do not write to the view: PyTorch has no read-only tensors. On the host the memory is sealed, so a write ends
        the process. On a GPU a write changes the model for all processes.
        """
        import torch.utils.dlpack

        dtype = _dtypes.torch_dtype(self._dtype)
        tensor: _torch.Tensor
        if self._dtype.itemsize > 1:
            tensor = torch.utils.dlpack.from_dlpack(self)
        else:  # as bytes, because older PyTorch takes no float8 by DLPack
            tensor = torch.utils.dlpack.from_dlpack(self._capsule(_dtypes.BLOCKS, False)).view(dtype)
        return tensor.clone() if copy else tensor

    def __dlpack_device__(self) -> Tuple[int, int]:
        """The device's type and number in DLPack: (1, 0) for the host."""
        attachment = self._attachment
        if attachment.on_host:
            return _dlpack.CPU, 0
        kind = _dlpack.CUDA if attachment.kind == "cuda" else _dlpack.ROCM
        return kind, _devices.ordinal(attachment.kind, attachment.pci, attachment.address)

    def __dlpack__(
        self,
        *,
        stream: Optional[Any] = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """A capsule that is a view of the memory. With `copy`, or if the host is requested for a tensor on a GPU: a
        capsule of a copy on the host.

        With a max_version of (1, 0) or more the capsule is versioned, and says that the memory is read-only. No stream
        needs to be waited for, because the memory was complete before the model could be attached. BufferError: this
        function makes no copy on a GPU or on another device.
        """
        versioned = max_version is not None and max_version[0] >= 1
        device = self.__dlpack_device__()
        wanted = tuple(int(part) for part in dl_device) if dl_device is not None else device
        if copy or wanted != device:
            return self._dlpack_copy(wanted, copy, versioned)
        return self._capsule(self._dtype, versioned)

    def _capsule(self, dtype: _dtypes.Dtype, versioned: bool) -> Any:
        """A capsule that is a view, as elements of this type, which has the size of the tensor's."""
        view, device = self._attachment.view(), self.__dlpack_device__()
        return _dlpack.capsule(
            view, self._entry.address, dtype, self.shape, device, versioned, _dlpack.READ_ONLY, self.strides
        )

    def _dlpack_copy(self, wanted: Tuple[int, ...], copy: Optional[bool], versioned: bool) -> Any:
        if wanted[0] != _dlpack.CPU or copy is False:
            raise BufferError(f"'{self.name}' is on {self.device}, and can be copied to the host only")
        own = self._copy()
        host = (_dlpack.CPU, 0)
        return _dlpack.capsule(
            own, ctypes.addressof(own), self._dtype, self.shape, host, versioned, _dlpack.COPIED, self.strides
        )
