"""Publishing: a model that this process makes itself, in memory that the daemon gives it."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, NoReturn, Optional, Sequence
from typing import Tuple, Type, TypedDict, Union, cast

from . import _calls, _dtypes, _progress, _publish_gpu, _publish_layout
from ._memory import Attachment
from ._progress import ProgressOption
from ._varlink import Connection, close_all
from .errors import Closed, Error, InUse
from .model import Model
from .replies import Device, ModelInfo, NewTensor

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as _np
    import torch as _torch

_STEP = 16 << 20  # bytes that are copied at once; between two steps a signal is handled
_MESSAGE = 32 << 10  # a text that is longer goes in a file in memory


class CreateOptions(TypedDict, total=False):
    """The options of create() and publish(). publish() says what each means."""

    key: Optional[str]
    any_publisher: bool
    device: Optional[str]
    wait: bool
    wait_for_memory: Optional[float]
    private: bool
    public: bool
    replace: bool
    deadline: Optional[float]


class PublishOptions(CreateOptions, total=False):
    """The options of publish()."""

    pin: bool
    ttl: Optional[int]


# --- texts for the daemon ---


class _Texts:
    """Long texts of a message, in sealed files in memory whose descriptors go beside it."""

    def __init__(self) -> None:
        self.fds: List[int] = []

    def __enter__(self) -> _Texts:
        return self

    def __exit__(self, *_: object) -> None:
        close_all(self.fds)
        self.fds = []

    def add(self, text: str) -> int:
        """The index of the descriptor."""
        fd = os.memfd_create("rocmforge-text", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.fds.append(fd)
        data = memoryview(text.encode())
        while data:
            data = data[os.write(fd, data) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        return len(self.fds) - 1


def _metadata_text(metadata: Any) -> Optional[str]:
    if metadata is None or isinstance(metadata, str):
        return metadata
    return json.dumps(metadata, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


# --- a creation ---


class Creation:
    """Memory for a model that this process makes, until it is published; from create().

    With `with`, it ends without a model if it was not published:

        with rf.create("m", {"a": ("float32", (2, 3))}) as creation:
            creation.array("a")[:] = 1
            model = creation.publish()

    Attributes:
        name: of the model.
        device: where the memory is, "host" or "cuda:0", by the daemon's numbers.
        nbytes: of the memory.
    """

    def __init__(self, connection: Connection, reply: Mapping[str, Any], fds: List[int], socket: str) -> None:
        self._connection = connection
        self._socket = socket
        self._fd = -1
        self._map: Optional[mmap.mmap] = None
        self._mapped: Optional[_publish_gpu.Mapped] = None  # of a GPU
        self._reply = {key: value for key, value in reply.items() if key != "draining"}
        self._pid = os.getpid()
        self._id = int(reply["creation"])
        info = cast(ModelInfo, reply["model"])
        self.model_info = info
        self.name = info["name"]
        self.nbytes = info["bytes"]
        self._device = cast(Device, reply["device"])
        self.device = info["device"]
        self._tensors: Dict[str, Tuple[NewTensor, int]] = {}
        if reply.get("fd") is not None:
            self._fd = fds.pop(int(reply["fd"]))
        close_all(fds)

    def _told(self, tensors: Sequence[NewTensor], offsets: Sequence[int]) -> None:
        self._tensors = {tensor["name"]: (tensor, offset) for tensor, offset in zip(tensors, offsets)}

    def __enter__(self) -> Creation:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            self.close()
        except AttributeError:  # it was not made to its end
            pass

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a creation cannot be pickled")

    def close(self) -> None:
        """Ends the creation. Unless it was published, its memory is freed. Arrays of it stay valid."""
        self._connection.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._map = None
        mapped, self._mapped = self._mapped, None
        if mapped:
            mapped.close()

    @property
    def closed(self) -> bool:
        return self._connection.closed

    def _check(self) -> None:
        if self.closed:
            raise Closed(f"the creation of '{self.name}' has ended")

    # --- its memory ---

    def fileno(self) -> int:
        """The descriptor of host memory, which can be written to with os.pwrite() until the creation is published: the
        fastest way. It belongs to the creation."""
        self._check()
        if self._fd < 0 or self._device["kind"] != "host":
            raise Error(f"the memory is on {self.device}, where nothing is written by a descriptor")
        return self._fd

    def buffer(self) -> memoryview:
        """All of the memory on the host, to write to."""
        fd = self.fileno()
        if self._map is None:
            self._map = mmap.mmap(fd, self.nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        return memoryview(self._map)

    def offset(self, name: str) -> int:
        """Where a tensor begins in the memory. KeyError."""
        return self._tensors[name][1]

    def array(self, name: str) -> _np.ndarray[Any, Any]:
        """A tensor on the host as an array to write to. Delete it before publish(). KeyError, UnsupportedDtype."""
        import numpy

        tensor, offset = self._tensors[name]
        dtype = _dtypes.numpy_dtype(_dtypes.all_types()[tensor["type"]])
        strides = tensor.get("strides")
        steps = [step * dtype.itemsize for step in strides] if strides is not None else None
        if 0 in tensor["shape"]:
            return numpy.empty(tensor["shape"], dtype)
        # Of an array of bytes, and not of the buffer: NumPy would not keep that, and the memory could be unmapped.
        return numpy.ndarray(tensor["shape"], dtype, numpy.frombuffer(self.buffer(), numpy.uint8), offset, steps)

    def _write(self, piece: _publish_layout.Piece) -> None:
        """Copies bytes into the memory."""
        if self._device["kind"] == "host" and piece.device == "cpu":
            if piece.nbytes:
                data = memoryview((ctypes.c_ubyte * piece.nbytes).from_address(piece.address)).cast("B")
                self._write_bytes(data, piece.offset)
            return
        _publish_gpu.write(self, piece)

    def _gpu(self) -> _publish_gpu.Mapped:
        if self._mapped is None:
            self._check()
            self._mapped = _publish_gpu.Mapped(self._socket, self._reply, self._fd)
        return self._mapped

    def data_ptr(self) -> int:
        """The device pointer of memory on a GPU, for the program's own kernels. They have to be done before publish()."""
        return self._gpu().address

    def torch(self, name: str) -> _torch.Tensor:
        """A tensor as a torch.Tensor to write to, on the device where the memory is. Delete it before publish().
        KeyError, UnsupportedDtype."""
        import torch

        tensor, offset = self._tensors[name]
        kind = _dtypes.all_types()[tensor["type"]]
        dtype = _dtypes.torch_dtype(kind)
        shape, strides = tensor["shape"], tensor.get("strides") or _publish_layout.plain_strides(tensor["shape"])
        reach = 0 if 0 in shape else 1 + sum((n - 1) * step for n, step in zip(shape, strides))
        if reach == 0:
            return torch.empty(shape, dtype=dtype)
        nbytes = reach * kind.itemsize
        if self._device["kind"] == "host":
            raw = torch.frombuffer(self.buffer()[offset : offset + nbytes], dtype=torch.uint8)
        else:
            mapped = self._gpu()
            raw = _publish_gpu.bytes_of(mapped.torch_device, mapped.address + offset, nbytes, mapped)
        return raw.view(dtype).as_strided(shape, strides)

    def _write_bytes(self, data: memoryview, offset: int) -> None:
        while data:
            n = os.pwrite(self._fd, data[:_STEP], offset)
            data, offset = data[n:], offset + n

    def _unmap(self) -> None:
        """Gives up what would keep the memory writable."""
        mapped, self._mapped = self._mapped, None
        if mapped:
            _publish_gpu.finish(mapped)
            mapped.close()
        if self._map is not None:
            try:
                self._map.close()
            except BufferError:
                raise InUse(self.name, 1) from None
            self._map = None

    # --- its end ---

    def publish(
        self,
        metadata: Any = None,
        *,
        tensors: Optional[Sequence[NewTensor]] = None,
        pin: bool = False,
        ttl: Optional[int] = None,
    ) -> Model:
        """Seals the memory, and attaches to the model that it is from now on. The creation has ended then.

        Args:
            metadata: what to say of the model: a str, or anything that JSON can say; at most 1 MiB.
            tensors: if create() was told none: what the memory holds, with offsets.
            pin, ttl: as in load().

        InUse: arrays or buffers of the memory are still there. StillWritable: another process has it mapped.
        """
        self._check()
        self._unmap()
        parameters: Dict[str, Any] = {"creation": self._id, "lease": True, "table": True, "pin": pin or None, "ttl": ttl}
        text = _metadata_text(metadata)
        with _Texts() as texts:
            if text is not None:
                _put(parameters, "metadata", text, texts)
            if tensors is not None:
                _put_tensors(parameters, tensors, texts)
            reply = self._connection.call("Publish", parameters, texts.fds)
        try:
            return _adopted(self._connection, self._socket, reply)
        finally:
            self.close()


def _put(parameters: Dict[str, Any], key: str, text: str, texts: _Texts) -> None:
    if len(text) < _MESSAGE:
        parameters[key] = text
    else:
        parameters[key + "File"] = texts.add(text)


def _put_tensors(parameters: Dict[str, Any], tensors: Iterable[NewTensor], texts: _Texts) -> None:
    """The list goes in a file, because a message has few values."""
    parameters["tensorsFile"] = texts.add(json.dumps(list(tensors), ensure_ascii=False, separators=(",", ":")))


def _adopted(connection: Connection, socket: str, reply: Mapping[str, Any]) -> Model:
    """Attaches to the model that a reply has a lease on, and gives the lease back."""
    info = cast(ModelInfo, reply["model"])
    attachment = Attachment(socket, _calls.certain(info))
    try:
        connection.call("Detach", {"lease": reply["lease"]})
    except BaseException:
        attachment.release()
        raise
    return Model(attachment, info)


# A tensor for create(): its type, as the array's dtype or the daemon calls it, and its shape.
Wanted = Union[Mapping[str, Tuple[str, Sequence[int]]], Sequence[NewTensor]]


def _wanted(tensors: Wanted) -> List[NewTensor]:
    if not isinstance(tensors, Mapping):
        return list(tensors)
    wanted: List[NewTensor] = []
    for name, (type_, shape) in tensors.items():
        wanted.append({"name": name, "type": _publish_layout.TYPES.get(type_, type_), "shape": list(shape)})
    return wanted


class Work:
    """One create() or publish(), on a connection of its own. abort() may be called from another thread."""

    def __init__(self, socket: str, name: str, options: CreateOptions) -> None:
        self._socket = socket
        self._name = name
        self._options = options
        self._connection: Optional[Connection] = None
        self._aborted = False

    def abort(self) -> None:
        self._aborted = True
        if self._connection:
            self._connection.shutdown()

    def _parameters(
        self,
        key: Optional[str] = None,
        any_publisher: bool = False,
        device: Optional[str] = None,
        wait: bool = True,
        wait_for_memory: Optional[float] = None,
        private: bool = False,
        public: bool = False,
        replace: bool = False,
        deadline: Optional[float] = None,
    ) -> Dict[str, Any]:
        return {
            "name": self._name,
            "key": key,
            "anyPublisher": any_publisher or None,
            "device": device,
            "wait": None if wait else False,
            "waitForMemory": wait_for_memory,
            "private": private or None,
            "public": public or None,
            "replace": replace or None,
            "deadline": _calls.seconds(deadline),
            "table": True,
        }

    def create(
        self, tensors: Optional[Sequence[NewTensor]], nbytes: Optional[int], progress: ProgressOption = None
    ) -> Union[Creation, Model]:
        parameters = {**self._parameters(**self._options), "bytes": nbytes}
        take = _progress.taker(progress, f"waiting for {self._name}")
        connection = self._connection = Connection(self._socket)
        connection.keep_fds = True
        reply: Dict[str, Any] = {}
        try:
            if self._aborted:
                raise Closed("this was cancelled")
            with _Texts() as texts:
                if tensors is not None:
                    _put_tensors(parameters, tensors, texts)
                for reply, _ in connection.replies("Create", parameters, texts.fds):
                    if take and reply.get("progress"):
                        take(reply["progress"])
            if reply.get("creation") is not None:
                creation = Creation(connection, reply, connection.take_fds(), self._socket)
                creation._told(tensors or [], reply["offsets"])
                return creation
            model = _adopted(connection, self._socket, reply)
            connection.close()
            return model
        except BaseException:
            connection.close()
            raise
        finally:
            _progress.finish(take, bool(reply) and not reply.get("progress"))
            connection.keep_fds = False
            close_all(connection.take_fds())

    def publish(
        self,
        tensors: Mapping[str, Any],
        metadata: Any,
        pin: bool,
        ttl: Optional[int],
        progress: ProgressOption,
    ) -> Model:
        text = _metadata_text(metadata)
        layout = _publish_layout.lay_out(tensors)
        if self._options.get("device") is None:
            self._options = {**self._options, "device": _place(self._socket, layout.device)}
        creation = self.create(layout.tensors, max(layout.nbytes, 1), progress)
        if isinstance(creation, Model):
            return creation
        with creation:
            for device in {piece.device for piece in layout.pieces} - {"cpu"}:
                _publish_gpu.wait(device)  # whatever stream the program makes its tensors on
            for piece in layout.pieces:
                creation._write(piece)
            return creation.publish(text, pin=pin, ttl=ttl)


def _place(socket: str, device: str) -> str:
    """The daemon's name of the device where the tensors are: "host", or a GPU."""
    if device == "cpu":
        return "host"
    return _publish_gpu.place(socket, device)


def wanted(tensors: Optional[Wanted]) -> Optional[List[NewTensor]]:
    return None if tensors is None else _wanted(tensors)
