"""Element types: the names of a tensor's form and type in NumPy, PyTorch and DLPack."""

from __future__ import annotations

from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from .errors import UnsupportedDtype

# Of DLPack.
_INT, _UINT, _FLOAT, _BFLOAT, _COMPLEX, _BOOL = 0, 1, 2, 4, 5, 6


class Dtype(NamedTuple):
    name: str  # as NumPy or ml_dtypes, and PyTorch, call it
    itemsize: int
    code: int  # DLPack's type code
    typestr: Optional[str]  # of the array interface; None: it has none


# By the daemon's name of the form, or for native tensors by the type in the file.
_DTYPES: Dict[str, Dtype] = {
    "f64": Dtype("float64", 8, _FLOAT, "<f8"),
    "f32": Dtype("float32", 4, _FLOAT, "<f4"),
    "f16": Dtype("float16", 2, _FLOAT, "<f2"),
    "bf16": Dtype("bfloat16", 2, _BFLOAT, None),
    "i64": Dtype("int64", 8, _INT, "<i8"),
    "i32": Dtype("int32", 4, _INT, "<i4"),
    "i16": Dtype("int16", 2, _INT, "<i2"),
    "i8": Dtype("int8", 1, _INT, "|i1"),
    # Of safetensors files only.
    "u64": Dtype("uint64", 8, _UINT, "<u8"),
    "u32": Dtype("uint32", 4, _UINT, "<u4"),
    "u16": Dtype("uint16", 2, _UINT, "<u2"),
    "u8": Dtype("uint8", 1, _UINT, "|u1"),
    "bool": Dtype("bool", 1, _BOOL, "|b1"),
    "c64": Dtype("complex64", 8, _COMPLEX, "<c8"),
    "f8_e4m3": Dtype("float8_e4m3fn", 1, 10, None),
    "f8_e4m3fnuz": Dtype("float8_e4m3fnuz", 1, 11, None),
    "f8_e5m2": Dtype("float8_e5m2", 1, 12, None),
    "f8_e5m2fnuz": Dtype("float8_e5m2fnuz", 1, 13, None),
    "f8_e8m0": Dtype("float8_e8m0fnu", 1, 14, None),
}
BLOCKS = Dtype("uint8", 1, _UINT, "|u1")


def all_types() -> Mapping[str, Dtype]:
    """Every type whose elements are numbers of their own, by the daemon's name of it."""
    return _DTYPES


def array_type(form: str, type_: str, shape: Tuple[int, ...], nbytes: int) -> Tuple[Dtype, Tuple[int, ...]]:
    """The element type and the shape of an array of a tensor's bytes. For blocks: uint8, and the last dimension is the
    bytes of a row. If the type has no known rows, all bytes are in one dimension."""
    dtype = _DTYPES.get(type_ if form == "native" else form)
    if dtype is not None:
        return dtype, shape
    rows = 1
    for n in shape[:-1]:
        rows *= n
    if not shape or rows == 0 or nbytes % rows:
        return BLOCKS, (nbytes,)
    return BLOCKS, (*shape[:-1], nbytes // rows)


def numpy_dtype(dtype: Dtype) -> Any:
    """NumPy's dtype. UnsupportedDtype: the type needs ml_dtypes, which is not installed."""
    import numpy

    if dtype.typestr is not None:
        return numpy.dtype(dtype.typestr)
    try:
        import ml_dtypes
    except ImportError:
        raise UnsupportedDtype(
            f"NumPy has no {dtype.name}: install ml_dtypes, use .torch(), or load the model with form='f32' or 'f16'"
        ) from None
    return numpy.dtype(getattr(ml_dtypes, dtype.name))


def torch_dtype(dtype: Dtype) -> Any:
    """PyTorch's dtype. UnsupportedDtype: this PyTorch has no such type."""
    import torch

    try:
        return getattr(torch, dtype.name)
    except AttributeError:
        raise UnsupportedDtype(f"this PyTorch has no {dtype.name}") from None
