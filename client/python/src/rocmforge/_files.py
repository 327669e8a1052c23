"""Opens the files of a model's path: one file, or all files of a split model."""

from __future__ import annotations

import os
import re
import stat
from contextlib import contextmanager, nullcontext
from typing import ContextManager, Iterator, List, Optional, Sequence, Union

Path = Union[str, "os.PathLike[str]"]
# A model's file, the first file of a split model, or all its files.
Paths = Union[Path, Sequence[Path]]

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf\Z", re.ASCII)
_SHARDS_MAX = 4096
_NAME_MAX = 127


def first(path: Paths) -> Path:
    """The path that a model gets its name from. ValueError: there is no path."""
    if isinstance(path, (str, os.PathLike)):
        return path
    if not path:
        raise ValueError("a model has at least one file")
    return path[0]


def shard_paths(path: Paths) -> List[str]:
    """The files of a model, in order. If the path is the first file of a split model: all its files. Else the path
    itself, or the given paths.
    """
    if not isinstance(path, (str, os.PathLike)):
        return [os.fspath(one) for one in path]
    text = os.fspath(path)
    match = _SHARD.search(text)
    if not match or int(match[1]) != 1 or not 1 <= int(match[2]) <= _SHARDS_MAX:
        return [text]
    stem = text[: match.start()]
    return [f"{stem}-{i:05}-of-{match[2]}.gguf" for i in range(1, int(match[2]) + 1)]


def link_name(paths: Paths) -> Optional[str]:
    """The name for a model whose path is a symbolic link: the name of the link. The daemon gets a descriptor, so it
    cannot see the link. None: the path is not a link."""
    text = os.fspath(first(paths))
    if not os.path.islink(text):
        return None
    name = os.path.basename(text)
    if name.lower().endswith(".gguf"):
        name = name[:-5]
    if name.startswith("-"):
        name = "_" + name[1:]  # no model's name looks like an option
    raw = os.fsencode(name)[:_NAME_MAX]
    allowed = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:@+"
    return bytes(c if c in allowed else ord("_") for c in raw).decode() or "model"


@contextmanager
def opened(path: Paths) -> Iterator[List[int]]:
    """Descriptors of the files, open until the end of the `with`. OSError; ValueError: one of them is not a regular
    file.
    """
    fds: List[int] = []
    try:
        for name in shard_paths(path):
            # Without O_NONBLOCK, opening a pipe that has no writer would wait for ever.
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            fds.append(fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError(f"cannot open {name}: it is no regular file")
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def opened_or_not(path: Paths, by_path: bool) -> ContextManager[Optional[List[int]]]:
    """Like opened(). Gives None if the daemon should open the path itself."""
    return nullcontext(None) if by_path else opened(path)
