"""Weights as they are after the engine's own processing: what is published of a model, and how another model gets it."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from torch import nn

from ..model import Model
from ._build import Bare, NotPossible, refuse
from ._options import ADOPT
from ._report import Report

# Smaller parameters get memory of their own: engines write to scales and the like while they run.
_SHARED_MIN = 4096

# Of what is published beside the tensors.
VERSION = 3


def made(model: Any) -> Dict[str, str]:
    """Of a model that was made, before anything is loaded into it: each parameter and buffer, with its type and shape. What
    was published fits only a model that was made alike."""
    told = {name: "buffer " + _form(one) for name, one in model.named_buffers(remove_duplicate=False)}
    told.update({name: "parameter " + _form(one) for name, one in model.named_parameters(remove_duplicate=False)})
    return told


def _form(tensor: Any) -> str:
    dtype = str(tensor.dtype).rpartition(".")[2]
    return dtype if nn.parameter.is_lazy(tensor) else f"{dtype} {list(tensor.shape)}"


def _check_made(theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """NotPossible: the model that was published was made otherwise, for example without its part for images."""
    differ = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if differ:
        name = differ[0]
        raise NotPossible(
            f"the model that was published is another one: {name} is {theirs.get(name, 'not there')}, and here "
            f"{ours.get(name, 'not there')} ({len(differ)} tensors differ)"
        )


def export(model: Any) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """The tensors of a model that was loaded and processed, and what else has to be known, without made(): for publish().
    NotPossible: a tensor has no memory."""
    tensors: Dict[str, Any] = {}
    first: Dict[int, str] = {}
    aliases: Dict[str, str] = {}
    buffers: List[str] = []
    empty: Dict[str, List[Any]] = {}
    host: List[str] = []
    parameters = list(model.named_parameters(remove_duplicate=False))
    names = {name for name, _ in parameters}
    rest = [(name, one) for name, one in model.named_buffers(remove_duplicate=False) if name not in names]
    for name, tensor in [*parameters, *rest]:
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        if tensor.is_meta:
            raise NotPossible(f"{name} has no memory")
        if name not in names:
            buffers.append(name)
        if tensor.device.type == "cpu":
            host.append(name)
        if tensor.numel() == 0:
            empty[name] = [str(tensor.dtype).rpartition(".")[2], list(tensor.shape)]
        else:
            tensors[name] = tensor.detach()
    told = {"version": VERSION, "aliases": aliases, "buffers": buffers, "empty": empty, "host": host,
            "flags": _flags(model)}  # fmt: skip
    return tensors, told


def _flags(model: Any) -> Dict[str, bool]:
    """What loading sets in models that draft tokens for others."""
    try:
        from vllm.model_executor.model_loader.weight_cache.utils import export_model_attrs
    except ImportError:
        return {}
    return dict(export_model_attrs(model))


def adopt(bare: Bare, resident: Model, told: Mapping[str, Any], device: Any) -> Report:
    """Gives a model what was published of another one. Its parameters are views; buffers, and what is small, are copies.
    NotPossible: the two do not fit."""
    if told.get("version") != VERSION:
        raise NotPossible("it was published by another version of rocmforge")
    _check_made(told["made"], made(bare.model))
    report = Report(ADOPT, resident.name)
    modules = dict(bare.model.named_modules(remove_duplicate=False))
    buffers, host = set(told["buffers"]), set(told["host"])
    values: Dict[str, Any] = {}
    for name in [*resident, *told["empty"]]:
        where = torch.device("cpu") if name in host else device
        value = _value(resident, name, name in buffers, told["empty"].get(name), where)
        if name not in buffers:
            value = nn.Parameter(value, requires_grad=False)
            value.weight_loader = refuse
        values[name] = value
        if name in resident and value.data_ptr() == resident[name].data_ptr:
            report.shared_bytes += value.nbytes
        else:
            report.copied_bytes += value.nbytes
    for name, value in values.items():
        _put(modules, name, value, name in buffers)
    for name, other in told["aliases"].items():
        _put(modules, name, values[other], other in buffers)
    for name, flag in told["flags"].items():
        setattr(bare.model, name, flag)
    _put_scales_back(bare.model)
    return report


def _put_scales_back(model: Any) -> None:
    """Not every method for the scales of a cache of keys and values knows that they were processed before: some take them
    once more from where loading puts them."""
    for module in model.modules():
        for name in ("q", "k", "v"):
            scale, processed = module._parameters.get(f"{name}_scale"), module._buffers.get(f"_{name}_scale")
            if scale is not None and scale.is_meta and processed is not None:
                module._parameters[f"{name}_scale"] = nn.Parameter(processed.clone(), requires_grad=False)


def _value(resident: Model, name: str, is_buffer: bool, empty: Optional[List[Any]], device: Any) -> Any:
    if empty is not None:
        return torch.empty(empty[1], dtype=getattr(torch, empty[0]), device=device)
    tensor = resident[name].torch()
    if is_buffer or tensor.nbytes < _SHARED_MIN or tensor.device != device:
        return tensor.to(device, copy=True)
    return tensor


def _put(modules: Mapping[str, Any], name: str, value: Any, is_buffer: bool) -> None:
    parent, _, leaf = name.rpartition(".")
    module = modules.get(parent)
    if module is None:
        raise NotPossible(f"the model has no {parent}")
    persistent = leaf not in module._non_persistent_buffers_set
    module._parameters.pop(leaf, None)
    module._buffers.pop(leaf, None)
    if is_buffer:
        module.register_buffer(leaf, value, persistent)
    else:
        module.register_parameter(leaf, value)


def drop_the_rest(model: Any) -> None:
    """Removes parameters that still have no memory: the model that was published had them too when it was made, and
    processing has removed them."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.is_meta:
                del module._parameters[name]
