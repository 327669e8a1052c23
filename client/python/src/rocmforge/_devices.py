"""Finds the number of a model's GPU, as this process counts its GPUs."""

from __future__ import annotations

import ctypes
import re
from typing import Dict, Optional, Tuple

from .errors import Error

# CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL of the CUDA driver.
_ORDINAL = 9

_found: Dict[Tuple[str, Optional[str]], int] = {}


def ordinal(kind: str, pci: Optional[str], address: int) -> int:
    """The number of the device that has this memory. Error: the number cannot be found."""
    key = (kind, pci)
    if key not in _found or pci is None:
        number = _cuda(address) if kind == "cuda" else _hip(pci)
        if number is None:
            raise Error(f"which of this process's {kind} devices is the one at {pci} cannot be told")
        _found[key] = number
    return _found[key]


def _cuda(address: int) -> Optional[int]:
    driver = ctypes.CDLL("libcuda.so.1")
    number = ctypes.c_int(-1)
    result = driver.cuPointerGetAttribute(ctypes.byref(number), _ORDINAL, ctypes.c_uint64(address))
    return number.value if result == 0 and number.value >= 0 else None


def _hip(pci: Optional[str]) -> Optional[int]:
    path = _mapped(r"libamdhip64\.so")
    if not path or not pci:
        return None
    runtime = ctypes.CDLL(path)
    count = ctypes.c_int(0)
    if runtime.hipGetDeviceCount(ctypes.byref(count)) != 0:
        return None
    text = ctypes.create_string_buffer(32)
    for number in range(count.value):
        same = runtime.hipDeviceGetPCIBusId(text, len(text), number) == 0
        if same and text.value.decode("ascii", "replace").lower() == pci.lower():
            return number
    return None


def _mapped(name: str) -> Optional[str]:
    """The path of a library that this process has loaded. The number in its file name differs between versions of
    ROCm.
    """
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").split(None, 5)[5:]
            if path and re.search(rf"/{name}[^/]*\Z", path[0]):
                return path[0]
    return None
