"""The tensors of safetensors files, as torch's tensors without memory."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Sequence

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


# What the daemon converts to, and calls so.
_FORMS = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def form(sources: Mapping[str, Any], wanted: Any) -> Optional[str]:
    """The form in which the daemon is to have tensors of such files, so that they are of the wanted dtype: if all matrices
    are of one other. It rounds as torch does. None: as they are in the files."""
    dtypes = {tensor.dtype for tensor in sources.values() if tensor.dim() > 1 and tensor.dtype.is_floating_point}
    (dtype,) = dtypes if len(dtypes) == 1 else (None,)
    return _FORMS[wanted] if dtype != wanted and dtype in _FORMS and wanted in _FORMS else None
