"""Finds out of which tensors of the files each parameter of a model is made, without any bytes: the engine's own code
loads the model, with tensors and parameters that have no memory, and what it copies is written down.

So nothing here knows an architecture: whatever the engine joins, cuts or permutes comes out as it does there. What is no
plain copy, for example a conversion or arithmetic, is found too, and such a parameter is not taken for a view.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ._pieces import Copy, Fill, Operation, Unknown


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Writes down what is done to parameters while this is in force. Parameters and sources have no memory ("meta").

    Attributes:
        operations: by the parameter's name, in the order in which they were done.
        computed: parameters that something else was done to, and what.
    """

    def __init__(self, parameters: Mapping[str, Any], sources: Mapping[str, Any]) -> None:
        super().__init__()
        self.operations: Dict[str, List[Operation]] = {name: [] for name in parameters}
        self.computed: Dict[str, str] = {}
        self._parameters = dict(parameters)
        self._names = {_storage(tensor): name for name, tensor in parameters.items()}
        self._sources = {_storage(tensor): (name, tensor) for name, tensor in sources.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            self._written(func, args, kwargs or {})
        return result

    def _written(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        for tensor in written(func, args, kwargs):
            if tensor.numel() == 0:
                continue
            if _storage(tensor) in self._sources:
                raise Unknown(f"{func} writes to a tensor of the files")
            name = self._names.get(_storage(tensor))
            if name is None:
                continue
            operation: Optional[Operation] = None
            if tensor.dtype == self._parameters[name].dtype:
                if func is torch.ops.aten.copy_.default:
                    operation = self._copy(tensor, args[1])
                elif func is torch.ops.aten.fill_.Scalar or func is torch.ops.aten.zero_.default:
                    value = args[1] if len(args) > 1 else 0
                    operation = Fill(int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), value)
            if operation is None:
                self.computed[name] = f"it is made by {func}"
            else:
                self.operations[name].append(operation)

    def _copy(self, tensor: Any, source: Any) -> Optional[Copy]:
        known = self._sources.get(_storage(source))
        if known is None or source.dtype != known[1].dtype or source.shape != tensor.shape:
            return None
        return Copy(
            int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), known[0],
            int(source.storage_offset()), tuple(source.stride()), tuple(known[1].shape),
        )  # fmt: skip

    def finish(self) -> None:
        """Call this at the end. Unknown: a parameter has got other memory meanwhile, so that what was done is not
        known."""
        for name, tensor in self._parameters.items():
            if self._names.get(_storage(tensor)) != name:
                raise Unknown(f"the memory of {name} was replaced")


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The tensors that an operation writes to, by its schema."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(tensor, torch.Tensor):
                yield tensor
