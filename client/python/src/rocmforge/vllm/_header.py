"""The tensors of a safetensors file by its header. The daemon checks the file itself; this is for what the engine asks."""

from __future__ import annotations

import json
import os
from typing import Dict, Tuple

_HEADER_MAX = 100_000_000

# What safetensors calls the types, and torch.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
          "F8_E5M2": "float8_e5m2"}  # fmt: skip


def read(path: str) -> Dict[str, Tuple[str, Tuple[int, ...]]]:
    """Name → type and shape, in the order of the header. OSError; ValueError: this is no safetensors file."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_HEADER_MAX, os.fstat(file.fileno()).st_size - 8):
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(size))
    try:
        return {
            name: (str(told["dtype"]), tuple(map(int, told["shape"])))
            for name, told in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{path} is no safetensors file") from None
