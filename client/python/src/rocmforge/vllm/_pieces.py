"""What parameters are made of, and whether what they are made of is resident in one piece. Without torch.

A tensor that has to be looked at has shape, stride(), dtype with an itemsize, and numel().
"""

from __future__ import annotations

from math import prod
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

# Kernels may read several elements at once, so a parameter begins at a multiple of this many bytes.
ALIGNMENT = 16


class Copy(NamedTuple):
    """Elements of a parameter that are a copy of elements of a tensor of the files. Offsets and strides in elements."""

    offset: int
    shape: Tuple[int, ...]
    stride: Tuple[int, ...]
    source: str
    source_offset: int
    source_stride: Tuple[int, ...]
    source_shape: Tuple[int, ...]  # of the whole tensor


class Fill(NamedTuple):
    """Elements of a parameter that all have one value: the rows behind a vocabulary that is no multiple of 64."""

    offset: int
    shape: Tuple[int, ...]
    stride: Tuple[int, ...]
    value: Any


Operation = Union[Copy, Fill]


class Resident(NamedTuple):
    """A tensor of the files, or a part of one, in the memory of a model.

    Attributes:
        offset: in bytes.
        shape: of the part that is resident. Rows behind the end of the whole tensor are zeros.
        begin: the index in the whole tensor where the part begins, for each dimension.
        dtype: torch's.
    """

    offset: int
    shape: Tuple[int, ...]
    begin: Tuple[int, ...]
    dtype: Any


class Unknown(Exception):
    """What the engine does to the weights while it loads them is not known."""


def contiguous_strides(shape: Sequence[int]) -> Tuple[int, ...]:
    strides: List[int] = []
    stride = 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return tuple(reversed(strides))


def _box(copy: Copy) -> Optional[Tuple[Tuple[int, ...], Tuple[int, ...]]]:
    """The part of the source as a box: where it begins, and its size, in each dimension of the whole tensor. None: it
    is no box, or its dimensions are in another order."""
    whole = copy.source_shape
    sizes = [1] * len(whole)
    strides = contiguous_strides(whole)
    last = -1
    for size, stride in zip(copy.shape, copy.source_stride):
        if size == 1:
            continue
        index = next((i for i, n in enumerate(whole) if n > 1 and strides[i] == stride), -1)
        if index <= last:
            return None
        sizes[index], last = size, index
    begin, rest = [], copy.source_offset
    for i, size in enumerate(whole):
        index = rest // strides[i] if size > 1 else 0
        rest -= index * strides[i]
        if index + sizes[i] > size:
            return None
        begin.append(index)
    return (tuple(begin), tuple(sizes)) if rest == 0 else None


def _box_inside(copy: Copy, resident: Resident) -> Optional[Tuple[Tuple[int, ...], Tuple[int, ...]]]:
    """The same in the part that is resident. None: it is not in there."""
    box = _box(copy)
    if box is None or len(resident.shape) != len(copy.source_shape):
        return None
    begin = tuple(index - start for index, start in zip(box[0], resident.begin))
    if any(at < 0 or at + size > n for at, size, n in zip(begin, box[1], resident.shape)):
        return None
    return begin, box[1]


def _run(copy: Copy, resident: Resident) -> Optional[int]:
    """The offset in bytes at which the source of a copy is resident. None: it is not in one piece."""
    box = _box_inside(copy, resident)
    if box is None:
        return None
    begin, sizes = box
    first = next((i for i, size in enumerate(sizes) if size > 1), len(sizes))
    if sizes[first + 1 :] != resident.shape[first + 1 :]:
        return None
    elements = sum(at * stride for at, stride in zip(begin, contiguous_strides(resident.shape)))
    return resident.offset + elements * int(resident.dtype.itemsize)


def _zeros(whole: Sequence[int], resident: Resident) -> Tuple[int, int]:
    """Where the zeros behind the end of the whole tensor are resident, in bytes: from and to."""
    if not whole:
        return 0, 0
    row = prod(resident.shape[1:]) * int(resident.dtype.itemsize)
    real = min(max(whole[0] - resident.begin[0], 0), resident.shape[0])
    return resident.offset + real * row, resident.offset + resident.shape[0] * row


def part_of(whole: Sequence[int], part: Sequence[int], rank: int, size: int) -> Optional[Tuple[int, ...]]:
    """Where the part of a tensor begins that a process of several has. If there are fewer parts than processes, those
    with neighbouring ranks have the same. None: it cannot be told."""
    if len(whole) != len(part):
        return None
    begin = [0] * len(whole)
    cut = [i for i in range(len(whole)) if whole[i] != part[i]]
    if not cut:
        return tuple(begin)
    (dimension, *others) = cut
    if others or part[dimension] == 0:
        return None
    parts = -(-whole[dimension] // part[dimension])
    # The last ranks may have nothing but zeros, so that there are more parts than rows tell of.
    if part[dimension] * size >= whole[dimension] and (dimension == 0 and parts * part[dimension] != whole[dimension]):
        parts = size
    if parts > size or size % parts:
        return None
    begin[dimension] = rank // (size // parts) * part[dimension]
    return tuple(begin)


def _is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    return all(n == 1 or one == other for n, one, other in zip(shape, stride, contiguous_strides(shape)))


def place(
    parameter: Any, operations: Sequence[Operation], residents: Mapping[str, Resident]
) -> Tuple[Optional[int], str]:
    """The offset in bytes at which a parameter is resident as a whole, in one piece and as the engine has it. None: it
    is not, and why."""
    runs: List[Tuple[int, int, Optional[int]]] = []  # offset and number of elements, and where they are; None: zeros
    zeros: List[Tuple[int, int]] = []
    size = int(parameter.dtype.itemsize)
    for operation in operations:
        if isinstance(operation, Fill):
            if operation.value != 0 or not _is_contiguous(operation.shape, operation.stride):
                return None, "rows are added to it"
            runs.append((operation.offset, prod(operation.shape), None))
            continue
        resident = residents.get(operation.source)
        if resident is None:
            return None, f"{operation.source} is not resident"
        if resident.dtype != parameter.dtype:
            return None, f"{operation.source} is resident as {resident.dtype}, and it is {parameter.dtype}"
        offset = _run(operation, resident)
        if offset is None or not _is_contiguous(operation.shape, operation.stride):
            return None, f"of {operation.source} it has a part that is in several pieces"
        runs.append((operation.offset, prod(operation.shape), offset))
        zeros.append(_zeros(operation.source_shape, resident))
    if not _is_contiguous(parameter.shape, parameter.stride()):
        return None, "it is in several pieces"
    runs.sort(key=lambda run: run[0])
    begin = runs[0][2] if runs else None
    if begin is None:
        return None, "nothing is loaded into its beginning"
    at = 0
    for where, elements, offset in runs:
        if where != at:
            return None, "it has parts that nothing is loaded into, or that are loaded twice"
        if offset is None and not any(a <= begin + at * size and begin + (at + elements) * size <= b for a, b in zeros):
            return None, "rows are added to it"
        if offset is not None and offset != begin + at * size:
            return None, "its parts are no neighbours in the resident model"
        at += elements
    if at != parameter.numel():
        return None, "it has parts that nothing is loaded into"
    if begin % ALIGNMENT:
        return None, f"it does not begin at a multiple of {ALIGNMENT} bytes"
    return begin, ""


def replay(
    parameter: Any,
    operations: Sequence[Operation],
    residents: Mapping[str, Resident],
    tensors: Mapping[str, Any],
    dtypes: Mapping[str, Any],
) -> None:
    """Does to a parameter with memory what was written down. `tensors`: the resident ones, as torch has them. `dtypes`:
    those of the files. Unknown: a part is not resident; or the daemon has converted it to a type that the parameter has
    not, which may have lost something."""
    for operation in operations:
        part = parameter.as_strided(operation.shape, operation.stride, operation.offset)
        if isinstance(operation, Fill):
            part.fill_(operation.value)
            continue
        resident = residents.get(operation.source)
        box = _box_inside(operation, resident) if resident is not None else None
        if box is None:
            raise Unknown(f"a part of {operation.source} is not resident")
        dtype = tensors[operation.source].dtype
        if dtype not in (dtypes[operation.source], parameter.dtype):
            raise Unknown(f"{operation.source} is resident as {dtype}, and it is {parameter.dtype}")
        index = tuple(slice(at, at + size) for at, size in zip(*box))
        part.copy_(tensors[operation.source][index].reshape(operation.shape))
