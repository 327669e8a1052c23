"""Where the whole metadata of an attached model comes from.

`read` is the one place that knows: today the file, whose path the daemon tells. Once librocmforge gives the header that
the daemon read (rf_model_metadata_*), it is to be taken from there, and no file is needed any more.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional

from . import _files, _gguf
from .errors import Error
from .replies import ModelInfo


class MetadataUnavailable(Error):
    """The model's file, where the metadata stands in full, cannot be read by this process, or is another one now."""


def read(info: ModelInfo, path: Optional[str]) -> Dict[str, Any]:
    """All of it. `path`: of the file, where the caller knows better than the daemon. MetadataUnavailable."""
    path = path or info["path"]
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
