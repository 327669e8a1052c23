"""What vLLM's configuration says of the weights: on which device they are, and what makes them differ."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import vllm
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

from ..client import Client
from . import _keys, _processed

# Parts of vLLM's configuration that may change what it does to the weights.
_CONFIGS = ("parallel_config", "kernel_config", "attention_config", "compilation_config", "offload_config", "lora_config",
            "scheduler_config", "speculative_config")  # fmt: skip

# What the hash of the model's own settings leaves out, or left out in some version, and sizes weights or buffers, or
# decides which of them there are.
_UNHASHED = ("max_model_len", "multimodal_config", "pooler_config", "convert", "runner", "config_format")

# Environment variables that vLLM counts among what makes compiled code differ: on which processors it runs, which does
# not change the weights.
_NO_FACTORS = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU")


def tensor_parallel() -> Tuple[int, int]:
    """Which part of the weights this process has, and of how many."""
    return int(get_tensor_model_parallel_rank()), int(get_tensor_model_parallel_world_size())


def _ranks() -> Dict[str, List[int]]:
    """Of each kind of parallelism that this version of vLLM has."""
    import vllm.distributed as distributed

    ranks = {"tensor": list(tensor_parallel())}
    for kind in ("pp", "dp", "ep", "pcp", "dcp"):
        try:
            group = getattr(distributed, f"get_{kind}_group")()
            ranks[kind] = [int(group.rank_in_group), int(group.world_size)]
        except (AttributeError, AssertionError):  # this version does not have it, or this engine
            continue
    return ranks


def target_device(config: Any) -> Any:
    """Where the weights are wanted."""
    device = torch.device(config.load_config.device or config.device_config.device)
    if device.type != "cpu" and device.index is None:
        device = torch.device(device.type, torch.accelerator.current_device_index())
    return device


def daemon_device(client: Client, device: Any) -> Optional[str]:
    """What the daemon calls a device of torch. None: the daemon does not have it."""
    if device.type == "cpu":
        return "host"
    properties = torch.cuda.get_device_properties(device)
    uuid = str(getattr(properties, "uuid", "")).lower().replace("gpu-", "")
    pci = tuple(getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
    text = "{:04x}:{:02x}:{:02x}.0".format(*map(int, pci)) if None not in pci else None  # type: ignore[arg-type]
    for one in client.devices():
        if one["kind"] == "host":
            continue
        if uuid and str(one.get("uuid") or "").lower().replace("gpu-", "") == uuid:
            return str(one["id"])
        if text and str(one.get("pci") or "").lower() == text:
            return str(one["id"])
    return None


def key(config: Any, model_config: Any, device: Any, files: Sequence[str], prefix: str) -> str:
    """What names this engine's processed weights: all that is known to make them differ."""
    hashes = {}
    for name in _CONFIGS:
        part = getattr(config, name, None)
        hashes[name] = part.compute_hash() if part is not None else None
    hf = model_config.hf_config
    named = "cpu" if device.type == "cpu" else str(torch.cuda.get_device_properties(device).name)
    factors: Dict[str, Any] = getattr(vllm.envs, "compile_factors", dict)()
    factors = {name: value for name, value in factors.items() if name not in _NO_FACTORS}
    parts = {
        "format": _processed.VERSION,
        "engine": ["vllm", str(vllm.__version__), str(torch.__version__)],
        "files": _keys.files_identity(files),
        "names": [os.path.basename(file) for file in files],
        "architecture": list(getattr(hf, "architectures", None) or []),
        "config": hf.to_dict() if hasattr(hf, "to_dict") else str(hf),
        "dtype": model_config.dtype,
        "quantization": [model_config.quantization, getattr(model_config, "quantization_config", None)],
        "kv": config.cache_config.cache_dtype,
        "settings": model_config.compute_hash(),
        "unhashed": {name: getattr(model_config, name, None) for name in _UNHASHED},
        "kinds": [getattr(model_config, name, None) for name in ("model_impl", "runner_type", "convert_type")],
        "ranks": _ranks(),
        "device": [device.type, named, torch.cuda.get_device_capability(device) if named != "cpu" else _cpu()],
        "prefix": prefix,
        "hashes": hashes,
        "environment": factors,
    }  # fmt: skip
    return _keys.key(_keys.plain(parts))


def _cpu() -> List[str]:
    """Weights that were packed for one processor are wrong on another."""
    return [torch.backends.cpu.get_cpu_capability()]
