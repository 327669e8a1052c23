"""Reads the complete metadata of a GGUF file: every key and value.

The daemon's Show cuts long arrays and strings, so its reply is not enough to make a tokenizer.
"""

from __future__ import annotations

import array
import os
import struct
import sys
from typing import Any, BinaryIO, Callable, Dict, List, Union

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# By the type's number in the file: its letter in struct, which array.array uses, too.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_CHUNK = 8 << 20
_DEPTH_MAX = 4

Value = Union[int, float, bool, str, List[Any]]


class InvalidGguf(ValueError):
    """The file does not begin with a valid GGUF header."""


class _Source:
    """The bytes of a header. From a file they are read as needed: `data` grows, and offsets stay valid."""

    def __init__(self, file: Union[BinaryIO, bytes]) -> None:
        # Bytes that are all there are not copied; they are also faster to cut.
        self.data: Union[bytes, bytearray] = file if isinstance(file, bytes) else bytearray()
        self.at = 0
        self._file = None if isinstance(file, bytes) else file
        self._left = os.fstat(self._file.fileno()).st_size if self._file else 0

    def need(self, size: int) -> int:
        """Makes sure that so many bytes were read, moves past them, and returns the offset of their start."""
        begin, end = self.at, self.at + size
        while len(self.data) < end:
            want = min(max(_CHUNK, end - len(self.data)), self._left)
            part = self._file.read(want) if self._file and want > 0 else b""
            if not part or isinstance(self.data, bytes):
                raise InvalidGguf("the file ends in its header")
            self._left -= len(part)
            self.data += part
        self.at = end
        return begin

    def number(self, letter: str) -> Any:
        layout = "<" + letter
        begin = self.need(struct.calcsize(layout))
        return struct.unpack_from(layout, self.data, begin)[0]

    def text(self) -> str:
        size = self.number("Q")
        begin = self.need(size)
        return self.data[begin : begin + size].decode("utf-8", "surrogateescape")


def _strings(source: _Source, count: int) -> List[str]:
    """Reads an array of strings. The same as text() for each, but faster: a vocabulary has up to a quarter of a
    million.
    """
    result: List[str] = []
    unpack = struct.Struct("<Q").unpack_from
    append = result.append
    data, at = source.data, source.at
    for _ in range(count):
        if at + 8 > len(data):
            source.at = at
            source.need(8)
        (size,) = unpack(data, at)
        at += 8
        if at + size > len(data):
            source.at = at
            source.need(size)
        append(str(data[at : at + size], "utf-8", "surrogateescape"))
        at += size
    source.at = at
    return result


def _array(source: _Source, depth: int) -> List[Any]:
    kind, count = source.number("I"), source.number("Q")
    if kind == _STRING:
        return _strings(source, count)
    if kind == _ARRAY:
        if depth >= _DEPTH_MAX:
            raise InvalidGguf("arrays of arrays of arrays")
        return [_array(source, depth + 1) for _ in range(count)]
    letter = _SCALARS.get(kind)
    if letter is None:
        raise InvalidGguf(f"a value of the type {kind}")
    size = struct.calcsize("<" + letter)
    begin = source.need(count * size)
    part = bytes(source.data[begin : begin + count * size])
    if letter == "?":
        return [byte != 0 for byte in part]
    numbers = array.array(letter, part)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _value(source: _Source) -> Value:
    kind = source.number("I")
    if kind == _STRING:
        return source.text()
    if kind == _ARRAY:
        return _array(source, 1)
    letter = _SCALARS.get(kind)
    if letter is None:
        raise InvalidGguf(f"a value of the type {kind}")
    value: Value = source.number(letter)
    return value


def read_metadata(
    file: Union[BinaryIO, bytes], check: Callable[[int], bool] = lambda tensors: True
) -> Dict[str, Value]:
    """All keys and values of a header, which is given as a file or as bytes. Arrays become lists. `check` is called
    first, with the number of tensors. InvalidGguf, OSError."""
    source = _Source(file)
    begin = source.need(4)
    if source.data[begin : begin + 4] != _MAGIC:
        raise InvalidGguf("it does not begin with GGUF")
    if source.number("I") not in _VERSIONS:
        raise InvalidGguf("a version that is not known")
    if not check(source.number("Q")):
        raise InvalidGguf("it has other tensors")
    metadata: Dict[str, Value] = {}
    for _ in range(source.number("Q")):
        key = source.text()
        metadata[key] = _value(source)
    return metadata
