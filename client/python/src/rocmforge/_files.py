"""Opens the files of a model's path: one file, all files of a split model, or those of a folder of safetensors files."""

from __future__ import annotations

import errno as errnos
import json
import os
import re
import stat
from contextlib import contextmanager, nullcontext
from typing import ContextManager, Iterator, List, Optional, Sequence, Set, Tuple, Union

from . import _library, errors

Path = Union[str, "os.PathLike[str]"]
# A model's file, the first file of a split model, or all its files.
Paths = Union[Path, Sequence[Path]]

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.(gguf|safetensors)\Z", re.ASCII)
_INDEX, _FILE = "model.safetensors.index.json", "model.safetensors"
_SHARDS_MAX = 4096
NAME_MAX = 127


def first(path: Paths) -> Path:
    """The path that a model gets its name from. ValueError: there is no path."""
    if isinstance(path, (str, os.PathLike)):
        return path
    if not path:
        raise ValueError("a model has at least one file")
    return path[0]


def shard_paths(path: Paths) -> List[str]:
    """The files of a model, in order. If the path is the first file of a split model, or any safetensors file of one: all
    its files. If it is a folder: those that its index names. Else the path itself, or the given paths; one that is given
    alone is taken as a path. Without the library, files of a split model are found by an index or by their names only.
    OSError: a file or the index cannot be read, or others are missing; ValueError: the index is wrong; AmbiguousFiles;
    IncompleteFiles.
    """
    if not isinstance(path, (str, os.PathLike)):
        paths = [os.fspath(one) for one in path]
        if len(paths) == 1:
            return shard_paths(paths[0])
        _check_given(paths)
        return paths
    text = os.fspath(path)
    found = _found(text)
    if found is not None:
        return found
    if os.path.isdir(text):
        return _folder_files(text)
    match = _SHARD.search(text)
    safetensors = text.lower().endswith(".safetensors")
    indexed = _indexed(text) if safetensors else None
    if indexed:
        return indexed
    later = match is not None and int(match[1]) != 1 and not (safetensors and int(match[1]) <= int(match[2]))
    if not match or later or not 1 <= int(match[2]) <= _SHARDS_MAX:
        return [text]
    stem = text[: match.start()]
    return [f"{stem}-{i:05}-of-{match[2]}.{match[3]}" for i in range(1, int(match[2]) + 1)]


def _found(path: str) -> Optional[List[str]]:
    """What the library finds, as rfctl does. None: there is no library, or one that is too old; or there is something
    else than a file, or a folder whose index is wrong.
    """
    try:
        find = getattr(_library.library(), "rf_model_files", None)
    except errors.LibraryNotFound:
        find = None
    if find is None:
        return None
    paths: List[str] = []
    result = -find(os.fsencode(path), _library.FileFunction(lambda _, file: paths.append(os.fsdecode(file))), None)
    if result in (errnos.EINVAL, errnos.EBADMSG):
        return None
    if result == errnos.ENOTUNIQ:
        raise errors.AmbiguousFiles("io.rocmforge.AmbiguousFiles", {"path": path, "files": paths})
    if result:
        raise OSError(result, os.strerror(result), paths[0] if paths else path)
    return paths


def _is_gguf(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def _check_given(paths: List[str]) -> None:
    """Whether paths that were named one by one are all files of their model. Files of a split GGUF model say themselves
    which ones they are, and the daemon refuses a part of them. IncompleteFiles."""
    known = {path: os.stat(path) for path in paths}
    identities = {(status.st_dev, status.st_ino) for status in known.values()}
    seen: Set[Tuple[int, int]] = set()
    for path, status in known.items():
        # A pipe would wait for a writer; opened() refuses it.
        if (status.st_dev, status.st_ino) in seen or not stat.S_ISREG(status.st_mode) or _is_gguf(path):
            continue
        try:
            found = shard_paths(path)
        except FileNotFoundError as error:  # another file of its model
            raise errors.IncompleteFiles(path, [str(error.filename)]) from None
        missing = []
        for one in found:
            try:
                other = os.stat(one)
            except FileNotFoundError:
                missing.append(one)
                continue
            seen.add((other.st_dev, other.st_ino))
            if (other.st_dev, other.st_ino) not in identities:
                missing.append(one)
        if missing:
            raise errors.IncompleteFiles(path, missing)


def _folder_name(folder: str) -> str:
    """In Hugging Face's cache the model's: ".../models--ORG--NAME/snapshots/REVISION"."""
    above, middle, revision = ("", "", *folder.split("/"))[-3:]
    if middle == "snapshots" and above.startswith("models--") and above != "models--":
        return above[len("models--") :].split("--")[-1] or revision
    return revision


def _folder_files(folder: str) -> List[str]:
    """The files that the index of a folder names; without an index, the one file."""
    index = os.path.join(folder, _INDEX)
    if not os.path.exists(index):
        file = os.path.join(folder, _FILE)
        return [file if os.path.exists(file) else folder]
    with open(index, encoding="utf-8") as text:
        try:
            names = sorted(set(json.load(text)["weight_map"].values()))
            plain = all(name not in ("", ".", "..") and "/" not in name and "\0" not in name for name in names)
        except (ValueError, TypeError, KeyError, AttributeError):
            plain, names = False, []
    if not plain or not 1 <= len(names) <= _SHARDS_MAX:
        raise ValueError(f"cannot open {folder}: its {_INDEX} is not valid")
    return [os.path.join(folder, name) for name in names]


def _indexed(path: str) -> Optional[List[str]]:
    """The files that the index beside a file names, if this file is one of them."""
    folder = os.path.dirname(path) or "."
    try:
        files = _folder_files(folder)
    except (OSError, ValueError):
        return None
    return files if os.path.join(folder, os.path.basename(path)) in files else None


def link_name(paths: Paths) -> Optional[str]:
    """The name for a model whose path is a symbolic link, or a folder: the name of the link, or of the folder. The daemon
    gets descriptors, so it cannot see these. None: the path is neither."""
    text = os.fspath(first(paths))
    if os.path.isdir(text):
        name = _folder_name(os.path.realpath(text))
    elif not os.path.islink(text):
        return None
    else:
        name = os.path.basename(text)
        if re.fullmatch(r"(?s)model(-.....-of-.....)?\.safetensors", name, re.IGNORECASE) and os.path.dirname(text):
            name = _folder_name(os.path.dirname(text))
        name = re.sub(r"(?s)(.)\.(gguf|safetensors)\Z", r"\1", name, flags=re.IGNORECASE)
    if name.startswith("-"):
        name = "_" + name[1:]  # no model's name looks like an option
    raw = os.fsencode(name)[:NAME_MAX]
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
