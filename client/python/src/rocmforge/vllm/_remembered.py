"""What vLLM's processing of weights leaves outside of parameters and buffers, in linear layers whose quantisation method does
not say that it takes weights which were processed before. It is published with the weights, and set in the layers of models
that adopt them, where the processing itself is left out then.

Only plain values can be published: numbers, text, types of torch, and which of an object's own methods an attribute is. If
processing makes anything else, for example an object of a library, nothing is published. To be sure that nothing was
missed, each such layer computes on one small input before its state is published, and after it was adopted: the two
results have to be the same.
"""

from __future__ import annotations

import types
from typing import Any, Dict, Iterator, List, Mapping, Tuple

import torch

from ._build import NotPossible, linear, methods

# What layers and methods hold of these parts of vLLM is looked at, too.
_PARTS = ("vllm.model_executor.kernels.", "vllm.model_executor.layers.quantization.")
_DEPTH_MAX = 4

# Of nn.Module; what is in the first two is published by itself.
_NOT_STATE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "quant_method"}

# Values of the result of the small input that are published, for each layer, and by how much they may differ: kernels may
# add up in another order.
_PROBED = 16
_DIFFERENCE_MAX = 0.01

_MISSING = object()


def needed(model: Any) -> List[Tuple[str, Any, Any]]:
    """The layers whose state has to be published: name, layer, method."""
    modules = dict(model.named_modules())
    return [(name, modules[name], method) for name, method in methods(model)
            if linear(method) and not getattr(method, "supports_pre_processed_weights", False)]  # fmt: skip


def _objects(layer: Any, method: Any) -> Iterator[Tuple[str, Any]]:
    """The layer, its method, and what the two hold of vLLM's: each once, by the path of attributes to it."""
    seen = set()
    waiting: List[Tuple[str, Any, int]] = [("", layer, 0), ("quant_method", method, 0)]
    while waiting:
        path, one, depth = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield path, one
        if depth == _DEPTH_MAX:
            continue
        for name, value in _attributes(one).items():
            module = f"{type(value).__module__}."
            if module.startswith(_PARTS) and hasattr(value, "__dict__") and not isinstance(value, (type, torch.Tensor)):
                waiting.append((f"{path}.{name}" if path else name, value, depth + 1))


def _attributes(one: Any) -> Dict[str, Any]:
    return {name: value for name, value in vars(one).items() if name not in _NOT_STATE and not name.endswith("_hooks")}


def _kept(value: Any) -> Any:
    """For comparing later, when what is in a container may have changed."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value), list(value)
    return (dict, dict(value)) if isinstance(value, dict) else value


def _same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    if isinstance(before, types.MethodType) and isinstance(now, types.MethodType):
        return before.__self__ is now.__self__ and before.__func__ is now.__func__
    if type(before) is not type(now) or isinstance(before, torch.Tensor):
        return False
    if isinstance(before, (tuple, list)):
        return len(before) == len(now) and all(map(_same, before, now))
    if isinstance(before, dict):
        return before.keys() == now.keys() and all(_same(before[key], now[key]) for key in before)
    return isinstance(before, (bool, int, float, str, type(None), torch.dtype)) and bool(before == now)


class Watch:
    """Of a model that was made and has no weights yet, to find out later what loading and processing have changed."""

    def __init__(self, model: Any) -> None:
        self._layers = needed(model)
        self._before = {
            name: {path: (one, {key: _kept(value) for key, value in _attributes(one).items()})
                   for path, one in _objects(layer, method)}
            for name, layer, method in self._layers
        }  # fmt: skip

    def changes(self) -> Dict[str, Any]:
        """For adopt(), as JSON. NotPossible: there is something else than plain values."""
        return {name: self._of_layer(name, layer, method) for name, layer, method in self._layers}

    def _of_layer(self, name: str, layer: Any, method: Any) -> Dict[str, Any]:
        before, told = self._before[name], {}
        for path, one in _objects(layer, method):
            if path not in before or before[path][0] is not one:
                raise NotPossible(f"processing has made {path} of {name}, a {type(one).__name__}")
            old, now = before[path][1], _attributes(one)
            changed = [key for key in {**old, **now} if not _same(old.get(key, _MISSING), _kept(now.get(key, _MISSING)))]
            if changed:
                told[path] = {key: _plain(one, now.get(key, _MISSING), f"{key} of {name}") for key in changed}
        none = [key for key, parameter in layer._parameters.items() if parameter is None]
        return {"state": told, "none": none, "parameters": _of_parameters(layer)}


def _of_parameters(layer: Any) -> Dict[str, Dict[str, Any]]:
    """What parameters say of themselves."""
    return {
        name: {key: value for key, value in vars(parameter).items() if isinstance(value, (bool, int, float, str))}
        for name, parameter in layer._parameters.items()
        if parameter is not None and vars(parameter)
    }


def _plain(owner: Any, value: Any, what: str) -> List[Any]:
    if value is _MISSING:
        return ["missing"]
    if isinstance(value, types.MethodType) and value.__self__ is owner:
        return ["method", value.__name__]
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).rpartition(".")[2]]
    if value is None or isinstance(value, (bool, int, float, str)):
        return ["value", value]
    raise NotPossible(f"processing has made {what}, a {type(value).__name__}")


def _value(owner: Any, told: List[Any]) -> Any:
    kind, value = told
    if kind == "method":
        return getattr(owner, value)
    return getattr(torch, value) if kind == "dtype" else value


def adopt(model: Any, changes: Mapping[str, Any]) -> None:
    """Sets what was published in a model whose parameters were adopted, and has its processing left out. NotPossible: the
    two do not fit."""
    layers = needed(model)
    if {name for name, _, _ in layers} != set(changes):
        raise NotPossible("its layers are others than those of the model that was published")
    for name, layer, method in layers:
        told = changes[name]
        objects = dict(_objects(layer, method))
        if not set(told["state"]) <= set(objects):
            raise NotPossible(f"{name} does not have the parts of the layer that was published")
        for path, attributes in told["state"].items():
            for key, one in attributes.items():
                if one[0] == "missing":
                    vars(objects[path]).pop(key, None)
                else:
                    setattr(objects[path], key, _value(objects[path], one))
        for key in told["none"]:
            layer._parameters[key] = None
        for key, attributes in told["parameters"].items():
            vars(layer._parameters[key]).update(attributes)
        method.process_weights_after_loading = _nothing
        method.supports_pre_processed_weights = True


def _nothing(_: Any) -> None:
    pass


# --- the small input ---


def probe(model: Any, names: Any, dtype: Any, device: Any) -> Dict[str, List[float]]:
    """What the layers with these names make of a small input: by name, some values, as JSON."""
    modules = dict(model.named_modules())
    return {name: _result(modules[name], dtype, device) for name in names}


def _result(layer: Any, dtype: Any, device: Any) -> List[float]:
    n = int(layer.input_size_per_partition)
    row = torch.arange(n, device=device, dtype=torch.float32)
    rows = torch.stack([torch.sin(row * 0.7), torch.cos(row * 1.3)]).to(dtype)
    with torch.inference_mode():
        result = layer.quant_method.apply(layer, rows, None).float().flatten()
    step = max(1, result.numel() // _PROBED)
    return [float(value) for value in result[::step][:_PROBED].tolist()]


def check(model: Any, probes: Mapping[str, List[float]], dtype: Any, device: Any) -> None:
    """NotPossible: a layer computes something else than the one that was published."""
    for name, result in probe(model, probes, dtype, device).items():
        expected = probes[name]
        most = _DIFFERENCE_MAX * max([abs(value) for value in expected], default=0)
        if len(result) != len(expected) or not all(abs(a - b) <= most for a, b in zip(result, expected)):
            raise NotPossible(f"{name} computes something else than the layer that was published")
