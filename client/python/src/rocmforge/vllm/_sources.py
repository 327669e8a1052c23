"""The tensors of safetensors files, as torch's tensors without memory."""

from __future__ import annotations

from typing import Any, Dict, Sequence

import torch

from . import _header
from ._build import NotPossible


def of(files: Sequence[str]) -> Dict[str, Any]:
    """By name, in the order of the files. OSError; ValueError: one is no safetensors file; NotPossible: torch does not
    have a type."""
    sources: Dict[str, Any] = {}
    for file in files:
        for name, (type_, shape) in _header.read(file).items():
            dtype = getattr(torch, _header.DTYPES.get(type_, ""), None)
            if dtype is None:
                raise NotPossible(f"{name} is of the type {type_}")
            sources[name] = torch.empty(shape, dtype=dtype, device="meta")
    return sources
