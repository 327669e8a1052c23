"""Torch tensors anywhere in a model's memory, and what keeps that memory from being written to."""

from __future__ import annotations

from math import prod
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import _dtypes
from .._memory import Entry
from ..model import Model
from ..tensor import Tensor
from . import _pieces
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
