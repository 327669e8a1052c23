"""Puts parameters into a model of transformers: views of resident memory, or what has to be made of it."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

from ..errors import Error
from ..model import Model
from . import _names


class CannotBuild(Error):
    """No model of transformers can be made of this resident model."""


@dataclass
class Report:
    """Which parameters are views of the shared memory, and which had to be made. Bytes; names are transformers'."""

    view_bytes: int = 0
    made_bytes: int = 0
    views: List[str] = field(default_factory=list)
    made: Dict[str, str] = field(default_factory=dict)  # and why
    unused: List[str] = field(default_factory=list)  # tensors of the file that no parameter is made of

    @property
    def share(self) -> float:
        """Which part of the bytes are views, from 0 to 1."""
        return self.view_bytes / max(self.view_bytes + self.made_bytes, 1)

    def __str__(self) -> str:
        return (
            f"{len(self.views)} parameters of {self.view_bytes / 1e6:.1f} MB are views, "
            f"{len(self.made)} of {self.made_bytes / 1e6:.1f} MB were made ({100 * self.share:.2f} % views)"
        )


# What is changed for all of the process while a model is constructed belongs to one thread at a time, from before it is
# looked at until it is as it was. A fork waits for this, so that no child is left with what was changed.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@contextlib.contextmanager
def parameters_without_memory(dtype: Any) -> Iterator[None]:
    """Modules that this thread makes meanwhile have parameters of this type on "meta", and buffers as usual."""
    import torch
    from torch import nn

    thread = threading.get_ident()
    with _lock:
        register, default = nn.Module.register_parameter, torch.get_default_dtype()

        def register_parameter(module: Any, name: str, parameter: Any) -> None:
            if parameter is not None and threading.get_ident() == thread:
                parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
            register(module, name, parameter)

        try:
            torch.set_default_dtype(dtype)
            nn.Module.register_parameter = register_parameter
            yield
        finally:
            torch.set_default_dtype(default)
            nn.Module.register_parameter = register


def _permuted(tensor: Any, heads: int) -> Any:
    """Rows in the order of transformers: the halves of each head, and not the pairs."""
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, half, 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _operate(tensor: Any, operation: str, config: Any) -> Any:
    if operation == _names.MINUS_ONE:
        return tensor.float() - 1
    heads = config.num_attention_heads
    if operation == _names.ROWS_K:
        heads = getattr(config, "num_key_value_heads", None) or heads
    return _permuted(tensor, heads)


class Builder:
    """Fills a model, and reports."""

    def __init__(self, resident: Model, model: Any, config: Any, dtype: Any) -> None:
        self._resident, self._model, self._config, self._dtype = resident, model, config, dtype
        self._used: Set[str] = set()
        self.report = Report()
        self.device: Any = None

    def fill(self, find: Callable[[str], Optional[_names.Recipe]]) -> None:
        """Sets each parameter that the file has something for. CannotBuild."""
        for name, parameter in list(self._model.named_parameters()):
            recipe = find(name)
            if recipe is None:
                continue
            sources = {recipe.tensor, recipe.other or recipe.tensor}
            if all(source in self._resident for source in sources):
                self._set(name, parameter, *self._made(recipe))
                self._used |= sources
        self._finish()

    def _made(self, recipe: _names.Recipe) -> Tuple[Any, str]:
        tensor = self._tensor(recipe.tensor)
        if recipe.expert is not None:
            tensor = tensor[recipe.expert]
        if recipe.operation == _names.MERGED:
            import torch

            return torch.cat([tensor, self._tensor(recipe.other)], dim=1), recipe.operation
        if recipe.operation in _names.PERMUTED and self._resident_permuted(recipe.tensor):
            return tensor, ""
        if recipe.operation != _names.VIEW:
            return _operate(tensor, recipe.operation, self._config), recipe.operation
        return tensor, ""

    def _resident_permuted(self, name: str) -> bool:
        """Whether the daemon has brought the rows of this tensor into transformers' order already."""
        info = self._resident.model_info
        for group in info.get("groups") or []:
            if name in group["members"]:
                return bool(group.get("heads"))
        return info.get("layout") == "hf"

    def _tensor(self, name: str) -> Any:
        source = self._resident[name]
        if source.is_blocks:
            raise CannotBuild(
                f"'{name}' is resident as {source.type} blocks: load the model with form='f32', 'f16' or 'bf16'"
            )
        return source.torch()

    def _set(self, name: str, parameter: Any, tensor: Any, why: str) -> None:
        from torch import nn

        if tuple(tensor.shape) != tuple(parameter.shape):
            raise CannotBuild(f"'{name}' has the shape {list(parameter.shape)}, and the file's has {list(tensor.shape)}")
        if tensor.dtype != self._dtype:
            tensor, why = tensor.to(self._dtype), why or f"{tensor.dtype} is wanted as {self._dtype}".replace("torch.", "")
        path, _, leaf = name.rpartition(".")
        module = self._model.get_submodule(path)
        module._parameters[leaf] = nn.Parameter(tensor.contiguous(), requires_grad=False)
        self.device = tensor.device
        size = tensor.numel() * tensor.element_size()
        if why:
            self.report.made[name] = why
            self.report.made_bytes += size
        else:
            self.report.views.append(name)
            self.report.view_bytes += size

    def fill_from(self, tensors: Dict[str, Tuple[Any, bool, str]]) -> None:
        """The same from tensors by transformers' names, of which each is a view or not, and where it is from."""
        for name, parameter in list(self._model.named_parameters()):
            if name in tensors:
                tensor, is_view, source = tensors[name]
                self._set(name, parameter, tensor, "" if is_view else "made by transformers")
                self._used.add(source)
        self._finish()

    def _finish(self) -> None:
        """CannotBuild: a parameter was not set, nor is it one of those that are the same as another."""
        self._model.tie_weights()
        left = [name for name, parameter in self._model.named_parameters() if parameter.is_meta]
        if left:
            raise CannotBuild(f"the file has nothing for {_names.unknown(left)}")
        if self.device is not None:
            for module in self._model.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None:
                        module._buffers[name] = buffer.to(self.device)
        self.report.unused = [
            name for name, tensor in self._resident.items() if name not in self._used and not tensor.is_view
        ]
