"""The tensors of a safetensors file by its header. The daemon checks the file itself; this is for what the engine asks."""

from __future__ import annotations

import json
import os
from typing import Container, Dict, Sequence, Tuple

_HEADER_MAX = 100_000_000

# What safetensors calls the types, and torch.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn",
          "F8_E5M2": "float8_e5m2"}  # fmt: skip


def read(path: str) -> Dict[str, Tuple[str, Tuple[int, ...]]]:
    """Name → type and shape, in the order of the header. OSError; ValueError: this is no safetensors file."""
    return {name: (type_, shape) for name, (type_, shape, _) in _tensors(path).items()}


def places(paths: Sequence[str], names: Container[str]) -> Dict[str, Tuple[str, int]]:
    """Name → file and offset there in bytes, of the tensors with these names. As read()."""
    return {
        name: (path, offset) for path in paths for name, (_, _, offset) in _tensors(path).items() if name in names
    }


def _tensors(path: str) -> Dict[str, Tuple[str, Tuple[int, ...], int]]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(_HEADER_MAX, os.fstat(file.fileno()).st_size - 8):
            raise ValueError(f"{path} is no safetensors file")
        header = json.loads(file.read(size))
    try:
        return {
            name: (str(told["dtype"]), tuple(map(int, told["shape"])), 8 + size + int(told["data_offsets"][0]))
            for name, told in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ValueError(f"{path} is no safetensors file") from None
