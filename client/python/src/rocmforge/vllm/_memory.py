"""Torch tensors anywhere in a model's memory, and what keeps that memory from being written to."""

from __future__ import annotations

import ctypes
from math import prod
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import _dtypes
from .._memory import Entry
from ..model import Model
from ..tensor import Tensor
from . import _header, _pieces
from ._build import NotPossible
from ._pieces import Resident
from ._record import written

# By torch's dtype, what the daemon calls it.
_TYPES: Dict[Any, str] = {
    getattr(torch, dtype.name): type_ for type_, dtype in _dtypes._DTYPES.items() if hasattr(torch, dtype.name)
}


def view(model: Model, name: str, offset: int, dtype: Any, shape: Sequence[int]) -> Any:
    """A tensor that is the model's memory at an offset in bytes, on the device where that is. ValueError: it does not
    end in the model's memory. UnsupportedDtype."""
    nbytes = prod(shape) * int(dtype.itemsize)
    if offset < 0 or offset + nbytes > model.nbytes:
        raise ValueError(f"{name} is not inside the memory of {model.name}")
    attachment = model._attachment
    type_ = _TYPES[dtype]
    entry = Entry(name, type_, "native", tuple(shape), offset, nbytes, attachment.address + offset, True)
    return Tensor(attachment, entry).torch()


def places(model: Model, sources: Mapping[str, Any], rank: int = 0, size: int = 1) -> Dict[str, Resident]:
    """Where the tensors of the files are, by name; `sources` have their whole shapes. `rank`, `size`: which part of a
    model of several processes this is. Tensors of which that cannot be told are left out."""
    found: Dict[str, Resident] = {}
    for name, whole in sources.items():
        tensor = model.get(name)
        if tensor is None or tensor.is_blocks:
            continue
        begin = _pieces.part_of(tuple(whole.shape), tensor.shape, rank, size)
        if begin is not None:
            found[name] = Resident(tensor.offset, tensor.shape, begin, getattr(torch, tensor.dtype))
    return found


def check_parts(model: Model, found: Mapping[str, Resident], sources: Mapping[str, Any], files: Sequence[str]) -> None:
    """Compares the first bytes of each tensor that is a part of one with the file: which part it is was told by its shape
    only. NotPossible: it is another part."""
    parts = {name: place for name, place in found.items() if tuple(sources[name].shape) != place.shape}
    if not parts:
        return
    for name, (file, offset) in _header.places(files, parts).items():
        place = parts[name]
        whole = tuple(sources[name].shape)
        dtype = sources[name].dtype
        size = int(dtype.itemsize)
        first = sum(at * stride for at, stride in zip(place.begin, _pieces.contiguous_strides(whole)))
        n = min(place.shape[-1], whole[-1] - place.begin[-1])
        if prod(whole) == 0 or any(at >= of for at, of in zip(place.begin, whole)):
            continue  # it is nothing but zeros
        with open(file, "rb") as opened:
            opened.seek(offset + first * size)
            expected = torch.frombuffer(bytearray(opened.read(n * size)), dtype=dtype).to(place.dtype)
        there = torch.frombuffer(bytearray(read(model, place.offset, expected.nbytes)), dtype=place.dtype)
        if not torch.equal(there.view(torch.uint8), expected.view(torch.uint8)):
            raise NotPossible(f"{name} is resident as another part than this rank's")


def read(model: Model, offset: int, nbytes: int) -> bytes:
    """Bytes of a model's memory, from the host or a GPU."""
    into = (ctypes.c_ubyte * nbytes)()
    model._attachment.read(offset, ctypes.addressof(into), nbytes)
    return bytes(into)


class WouldWrite(Exception):
    """The engine was about to write to shared memory."""


class ReadOnly(TorchDispatchMode):  # type: ignore[misc]
    """While this is in force, an operation of torch that would write to one of these models raises WouldWrite. Without
    it, such a write would end the process, or on some GPUs change the model for all."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        self._ranges: List[Tuple[int, int]] = [
            (model._attachment.address, model._attachment.address + model.nbytes) for model in models
        ]

    def has(self, tensor: Any) -> bool:
        """Whether a tensor is in the memory of one of the models."""
        if tensor.device.type == "meta" or tensor.numel() == 0:
            return False
        address = tensor.data_ptr()
        return any(begin <= address < end for begin, end in self._ranges)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for tensor in written(func, args, kwargs or {}):
                if self.has(tensor):
                    raise WouldWrite(f"{func} would write to shared memory")
        return func(*args, **(kwargs or {}))
