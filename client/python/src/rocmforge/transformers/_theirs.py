"""For architectures without a table here: the configuration, names and conversions that transformers has.

They take the gguf package, and make most parameters anew.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Tuple

from ..model import Model
from ._build import CannotBuild


def _path(resident: Model) -> str:
    path = resident.path
    if not path or not os.path.exists(path):
        raise CannotBuild("transformers reads the configuration from the file, which is not there; give config=")
    return path


def config(resident: Model) -> Any:
    """The configuration that transformers makes of the file. CannotBuild."""
    from transformers import AutoConfig

    path = _path(resident)
    try:
        return AutoConfig.from_pretrained(os.path.dirname(path), gguf_file=os.path.basename(path))
    except (ValueError, KeyError, OSError) as error:
        raise CannotBuild(f"transformers makes no configuration of the file: {error}") from error


def tensors(resident: Model, model: Any, config: Any, architecture: str) -> Dict[str, Tuple[Any, bool, str]]:
    """By parameter: a tensor, whether it is a view of resident memory, and the name in the file."""
    try:
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
    except ImportError as error:
        raise CannotBuild(f"this transformers has no names for '{architecture}' models: {error}") from error
    import torch

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    try:
        names = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError as error:
        raise CannotBuild(f"transformers has no names for '{architecture}' models") from error
    parsed: Dict[str, Any] = {"tensors": {}}
    device = None  # where the model is
    result: Dict[str, Tuple[Any, bool, str]] = {}
    for name, tensor in resident.items():
        if tensor.is_blocks:
            raise CannotBuild(f"'{name}' is resident as {tensor.type} blocks: load the model with form='f32'")
        view = tensor.torch()
        device = view.device
        # The conversions are written for float32 in NumPy, which has no bfloat16 and no GPUs.
        weights = view.cpu().float().numpy()
        done = processor.process(weights=weights, name=name, tensor_key_mapping=names, parsed_parameters=parsed)
        if done.name not in names:
            continue
        same = done.weights is weights
        made = view if same else torch.from_numpy(done.weights.copy()).to(view.device)
        result[names[done.name]] = (made, same, name)
    result.update({name: (made.to(device), False, name) for name, made in parsed["tensors"].items()})
    return result
