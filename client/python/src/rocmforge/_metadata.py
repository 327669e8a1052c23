"""Reads the complete metadata of an attached model from the header, which the daemon provides. If the daemon or the
library is too old for this, reads the file, whose path the daemon tells."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Optional

from . import _files, _gguf
from ._memory import Attachment
from .errors import Error
from .replies import ModelInfo


class MetadataUnavailable(Error):
    """The complete metadata is only in the model's file, and this process cannot read the file, or it is another file
    now.
    """


def read(attachment: Attachment, info: ModelInfo, path: Optional[str]) -> Dict[str, Any]:
    """The complete metadata. `path`: the file's path, if the caller knows it better than the daemon.
    MetadataUnavailable.
    """
    header = attachment.header()
    if header is None:
        return _from_file(info, path or info["path"])
    if header[8:9] == b"{":  # safetensors: a length of 8 bytes, and JSON
        return _of_json(header, info)
    try:
        return _gguf.read_metadata(header)
    except _gguf.InvalidGguf as error:
        raise MetadataUnavailable(f"the header of '{info['name']}' is wrong: {error}") from None


def published(attachment: Attachment, info: ModelInfo) -> Any:
    """What the publisher of a model gave as its metadata; None: nothing. MetadataUnavailable."""
    header = attachment.header()
    text = _of_json(header, info).get("metadata") if header is not None else None
    try:
        return json.loads(text) if text is not None else None
    except ValueError:  # it is no JSON
        return text


def _of_json(header: bytes, info: ModelInfo) -> Dict[str, Any]:
    """The strings of __metadata__."""
    try:
        return dict(json.loads(header[8:]).get("__metadata__") or {})
    except (ValueError, AttributeError, TypeError):
        raise MetadataUnavailable(f"the header of '{info['name']}' is wrong") from None


def _from_file(info: ModelInfo, path: Optional[str]) -> Dict[str, Any]:
    if not path:
        raise MetadataUnavailable(f"where the file of '{info['name']}' is, the daemon cannot tell")
    shards = _files.shard_paths(path)
    try:
        size = sum(os.stat(shard).st_size for shard in shards)
        if size != info["size"]:
            raise MetadataUnavailable(f"the file of '{info['name']}' is another one now: {path}")
        with open(path, "rb") as file:
            whole = len(shards) == 1
            return _gguf.read_metadata(file, lambda tensors: not whole or tensors == info["tensors"])
    except (OSError, _gguf.InvalidGguf) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MetadataUnavailable(f"the metadata of '{info['name']}' cannot be read from {path}: {reason}") from None
