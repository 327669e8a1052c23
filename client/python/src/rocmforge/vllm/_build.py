"""A model of vLLM whose parameters have no memory at first, and get it by other means than vLLM's loading."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import nn

# A parameter that no file has, for example one of ones, keeps the value that the model's code gave it, up to this size.
_INITIAL_MAX = 1 << 20

# The quantisation methods that neither write to the weights nor replace them after loading, on GPUs. Exact classes: what
# a derived class does is not known.
_LEAVES = {
    ("vllm.model_executor.layers.linear", "UnquantizedLinearMethod"),
    ("vllm.model_executor.layers.vocab_parallel_embedding", "UnquantizedEmbeddingMethod"),
}

# As in rocmforge.transformers: what is changed for all of the process belongs to one thread at a time.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class NotPossible(Exception):
    """A way to give the model its weights cannot be taken."""


class Bare:
    """A model whose parameters are on "meta", while its buffers are real.

    Attributes:
        model: of vLLM.
        initial: what the model's code gave to small parameters: by the parameter's identity, the parameter and its value.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.initial: Dict[int, Tuple[Any, Any]] = {}
        with _parameters_without_memory(self.initial):
            self.model = make()

    def parameters(self) -> Dict[str, Any]:
        """Each parameter once, by its first name."""
        return dict(self.model.named_parameters())

    def put(self, values: Mapping[str, Any]) -> None:
        """Gives parameters their memory: tensors by the names of parameters(). What a parameter says of itself, for
        example in which dimension it is cut, stays; but nothing can be loaded into it any more."""
        objects = {id(parameter): _with_memory(parameter, values[name]) for name, parameter in self.parameters().items()}
        for module in self.model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = objects[id(parameter)]

    def refuse_loading(self) -> None:
        """Makes the model refuse new weights, since its parameters cannot be written to. A model that has refused them
        computes as before."""
        self.model.load_weights = refuse
        for module in self.model.modules():
            if module._parameters:
                module.get_parameter = refuse  # which vLLM calls to write to one
        # Before vLLM reloads a model, it takes the parameters out of its modules. It asks each module first.
        try:
            from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
        except ImportError:
            return
        get_layerwise_info(self.model).can_load = refuse


@contextlib.contextmanager
def _parameters_without_memory(initial: Dict[int, Tuple[Any, Any]]) -> Iterator[None]:
    thread = threading.get_ident()
    with _lock:
        register = nn.Module.register_parameter

        def register_parameter(module: Any, name: str, parameter: Any) -> None:
            if parameter is not None and threading.get_ident() == thread and parameter.device.type != "meta":
                bare = _like(parameter, torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype,
                                                            device="meta"))  # fmt: skip
                if parameter.nbytes <= _INITIAL_MAX:
                    initial[id(bare)] = (bare, parameter.detach())
                parameter = bare
            register(module, name, parameter)

        nn.Module.register_parameter = register_parameter
        try:
            yield
        finally:
            nn.Module.register_parameter = register


def _like(parameter: Any, tensor: Any) -> Any:
    """A parameter of the same class with other memory. The attributes are the same dictionary, because vLLM sets some of
    them after it has registered the parameter."""
    other = torch.Tensor._make_subclass(type(parameter), tensor, False)
    other.__dict__ = parameter.__dict__
    return other


def _with_memory(parameter: Any, tensor: Any) -> Any:
    other = torch.Tensor._make_subclass(type(parameter), tensor, False)
    other.__dict__.update(parameter.__dict__)
    if hasattr(other, "_weight_loader"):  # vLLM's own classes of parameters
        other._weight_loader = refuse
    elif hasattr(other, "weight_loader"):
        other.weight_loader = refuse
    return other


def refuse(*_: Any, **__: Any) -> Any:
    """Takes the place of what would load weights into shared memory."""
    raise RuntimeError(
        "the weights of this model are shared with other processes (--load-format rocmforge), so new ones cannot be "
        "loaded into it: start the engine without it"
    )


# --- what the engine does after loading ---


def methods(model: Any) -> List[Tuple[str, Any]]:
    """The quantisation methods of a model, with the names of their modules."""
    found = []
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if hasattr(method, "process_weights_after_loading"):
            found.append((name, method))
    return found


def _leaves(method: Any) -> bool:
    return (type(method).__module__, type(method).__name__) in _LEAVES


def check_views(model: Any) -> None:
    """NotPossible: what vLLM does after loading is not known to leave the weights as they are."""
    for name, method in methods(model):
        if not _leaves(method):
            raise NotPossible(f"{type(method).__name__} of {name} may change the weights after loading")
    if callable(getattr(model, "process_weights_after_loading", None)):
        raise NotPossible(f"{type(model).__name__} may change the weights after loading")


def linear(method: Any) -> bool:
    """Whether it is the quantisation method of a linear layer."""
    from vllm.model_executor.layers.linear import LinearMethodBase

    return isinstance(method, LinearMethodBase)


def check_processed(model: Any, cpu: bool) -> None:
    """NotPossible: a quantisation method does not say that it takes weights that were processed before, and is none whose
    state can be published (_remembered.py)."""
    for name, method in methods(model):
        if not getattr(method, "supports_pre_processed_weights", False) and not linear(method):
            raise NotPossible(f"{type(method).__name__} of {name} does not take weights that were processed before")
        # Which of the two kernels experts use is found while they are packed, and that is left out.
        if cpu and "moe" in type(method).__name__.lower() and importlib.util.find_spec("zentorch"):
            raise NotPossible(f"{type(method).__name__} of {name} may use zentorch")


def compute_on_plain_weights(model: Any, config: Any) -> None:
    """On a CPU: makes layers without quantisation compute on their weights as they are. vLLM would pack them, which is a
    copy in each process. The compiled code is another one then, so its key in vLLM's cache has to differ."""
    for _, method in methods(model):
        if _leaves(method):
            method.process_weights_after_loading = _plain
    if isinstance(config.additional_config, dict):
        config.additional_config["rocmforge"] = "plain weights on the CPU"


def _plain(layer: Any) -> None:
    layer.cpu_linear = nn.functional.linear


class Registered:
    """What building a model adds to vLLM's configuration, so that another one can be built after it failed."""

    def __init__(self, config: Any) -> None:
        compilation = config.compilation_config
        self._lists = [getattr(compilation, name, None) for name in ("static_forward_context", "static_all_moe_layers")]
        self._before = [None if one is None else one.copy() for one in self._lists]
        self._config = config
        extra = config.additional_config
        self._extra: Optional[Dict[str, Any]] = dict(extra) if isinstance(extra, dict) else None

    def undo(self) -> None:
        for now, before in zip(self._lists, self._before):
            if now is not None and before is not None:
                now.clear()
                now.update(before) if isinstance(now, dict) else now.extend(before)
        if self._extra is not None:
            self._config.additional_config = dict(self._extra)
