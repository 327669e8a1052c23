"""Where tensors of this process go in a model's memory: what publish() is given, and which bytes it copies to where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from . import _dtypes
from .errors import UnsupportedDtype
from .replies import NewTensor
from .tensor import Tensor

if TYPE_CHECKING:
    import numpy as _np

_ALIGNMENT = 256  # of what begins in the memory


class _Given(NamedTuple):
    """A tensor of this process."""

    type: str
    shape: Tuple[int, ...]
    strides: Optional[Tuple[int, ...]]  # in elements; None: its elements lie one behind the other
    device: str  # "cpu", or torch's name of a GPU
    address: int
    nbytes: int  # from its first to its last byte
    alignment: int  # of its address: bytes of an element
    dense: bool  # no byte from the first to the last is not its own
    owner: Any  # what keeps the bytes
    contiguous: Callable[[], Any]  # a copy without strides


TYPES = {dtype.name: name for name, dtype in _dtypes.all_types().items()}


def _type(dtype: str, what: str) -> str:
    try:
        return TYPES[dtype]
    except KeyError:
        raise UnsupportedDtype(f"{what} has elements of {dtype}, which no model can have") from None


def plain_strides(shape: Sequence[int]) -> Tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _measured(
    type_: str, shape: Tuple[int, ...], strides: Tuple[int, ...], itemsize: int, device: str, address: int, owner: Any,
    contiguous: Callable[[], Any],
) -> _Given:  # fmt: skip
    elements = 1
    for n in shape:
        elements *= n
    plain = plain_strides(shape)
    has_strides = elements > 0 and any(n > 1 and a != b for n, a, b in zip(shape, strides, plain))
    reach = 1 + sum((n - 1) * step for n, step in zip(shape, strides)) if has_strides else elements
    return _Given(
        type_, shape, strides if has_strides else None, device, address, reach * itemsize, itemsize,
        reach == elements, owner, contiguous,
    )  # fmt: skip


def _of_torch(name: str, tensor: Any) -> _Given:
    import torch

    tensor = tensor.detach()
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise TypeError(f"'{name}' has no plain memory: it is {tensor.layout} on {tensor.device}")
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    type_ = _type(str(tensor.dtype).rpartition(".")[2], f"'{name}'")
    device = "cpu" if tensor.device.type == "cpu" else str(tensor.device)
    return _measured(
        type_, tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size(), device, tensor.data_ptr(), tensor,
        lambda: _of_torch(name, tensor.contiguous()),
    )  # fmt: skip


def _of_numpy(name: str, array: _np.ndarray[Any, Any]) -> _Given:
    import numpy

    itemsize = array.dtype.itemsize
    if array.dtype.byteorder == ">" or any(step < 0 or step % itemsize for step in array.strides):
        array = numpy.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return _measured(
        _type(array.dtype.name, f"'{name}'"), array.shape, tuple(step // itemsize for step in array.strides), itemsize,
        "cpu", array.__array_interface__["data"][0], array, lambda: _of_numpy(name, numpy.array(array, order="C")),
    )  # fmt: skip


def _of_model(tensor: Tensor) -> _Given:
    """A tensor of an attached model, with blocks too."""
    type_ = tensor.type if tensor.form == "native" else tensor.form
    device = "cpu" if tensor.device == "cpu" else tensor.device.replace("rocm", "cuda")
    alignment = 1 if tensor.is_blocks else _dtypes.all_types()[type_].itemsize
    view = tensor._attachment.view()
    return _Given(
        type_, tensor.logical_shape, tensor.strides, device, tensor.data_ptr, tensor.nbytes, alignment, True, view,
        lambda: _of_model(tensor),
    )  # fmt: skip


def _given(name: str, value: Any) -> _Given:
    if isinstance(value, Tensor):
        return _of_model(value)
    if type(value).__module__.partition(".")[0] == "torch" or hasattr(value, "untyped_storage"):
        return _of_torch(name, value)
    import numpy

    if isinstance(value, numpy.ndarray) or hasattr(value, "__array_interface__"):
        return _of_numpy(name, numpy.asarray(value))
    raise TypeError(f"'{name}' is a {type(value).__name__}, and no tensor")


class Piece(NamedTuple):
    """Bytes that go to one place. Several tensors may have them."""

    device: str
    address: int
    nbytes: int
    offset: int
    owners: List[Any]


class Layout(NamedTuple):
    tensors: List[NewTensor]
    pieces: List[Piece]
    nbytes: int
    device: str  # where the bytes are now: "cpu", or the one GPU


def _joined(given: List[_Given]) -> List[List[int]]:
    """Groups of tensors that have bytes in common, by their numbers; each group in the order of its addresses."""
    order = sorted((g.device, g.address, -g.nbytes, i) for i, g in enumerate(given) if g.nbytes)
    groups: List[List[int]] = []
    device, end = "", 0
    for where, address, _, i in order:
        if groups and where == device and address < end:
            groups[-1].append(i)
            end = max(end, address + given[i].nbytes)
        else:
            groups.append([i])
            device, end = where, address + given[i].nbytes
    return groups


def lay_out(tensors: Mapping[str, Any]) -> Layout:
    """Where each tensor goes. Tensors that share bytes here share them there. TypeError, UnsupportedDtype."""
    names = list(tensors)
    given = [_given(name, tensors[name]) for name in names]
    for group in _joined(given):
        if len(group) == 1 and not given[group[0]].dense:
            given[group[0]] = given[group[0]].contiguous()
    offsets = [0] * len(given)
    pieces: List[Piece] = []
    at = 0
    for group in sorted(_joined(given), key=min):  # the first tensor comes first in the memory
        begin = min(given[i].address for i in group)
        end = max(given[i].address + given[i].nbytes for i in group)
        at = (at + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT + begin % max(given[i].alignment for i in group)
        for i in group:
            offsets[i] = at + given[i].address - begin
        pieces.append(Piece(given[group[0]].device, begin, end - begin, at, [given[i].owner for i in group]))
        at += end - begin
    entries: List[NewTensor] = []
    for name, tensor, offset in zip(names, given, offsets):
        entry: NewTensor = {"name": name, "type": tensor.type, "shape": list(tensor.shape), "offset": offset}
        if tensor.strides is not None:
            entry["strides"] = list(tensor.strides)
        entries.append(entry)
    devices = {piece.device for piece in pieces}
    return Layout(entries, pieces, at, devices.pop() if len(devices) == 1 else "cpu")
