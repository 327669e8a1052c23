"""What names weights that an engine has processed: two processes with the same key would make the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from typing import Any, List, Mapping, Optional, Sequence

_NAME_MAX = 127


def files_identity(paths: Sequence[str]) -> List[List[int]]:
    """What tells files from all others, also after one was replaced or written to. The contents are not read: another
    copy of the same file counts as another file. OSError."""
    return [
        [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        for status in map(os.stat, paths)
    ]


def key(parts: Mapping[str, Any]) -> str:
    """64 hexadecimal digits that differ if any part differs. TypeError: a part cannot be written as JSON, so it is not
    known that equal parts give equal text."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def plain(value: Any) -> Any:
    """The value with all that JSON does not have as text, for key(). An object whose text has its address gives another
    key in each process: then nothing is shared, but nothing is wrong either."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(one) for one in value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return f"{type(value).__name__} {value}"


def name(model: str, digits: str) -> str:
    """The name of published weights: what the user calls the model, and the beginning of the key."""
    return _name(model, f"vllm-{digits[:16]}")


def names(model: str, files: Sequence[str], layout: Mapping[str, Any]) -> List[Optional[str]]:
    """The names of a model that is loaded for vLLM, from the simplest to one that no other model has. None: the daemon
    names it after the file or its folder."""
    digits = key({"files": files_identity(files), "layout": layout})
    _, size = layout.get("tp", (0, 1))
    simple = [None, _name(model, "vllm")] if size == 1 else [None]
    return [*simple, name(model, digits)]


def _name(model: str, end: str) -> str:
    last = os.path.basename(os.path.normpath(model)) or "model"
    text = re.sub(r"[^A-Za-z0-9._:@+-]", "_", last).lstrip("-") or "model"
    return f"{text[: _NAME_MAX - len(end) - 1]}.{end}"
