"""The parameters of a layout, as the wire has them."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union, cast

from ._files import NAME_MAX, Paths, first
from .replies import Group, Tp

# Which part of a model: (rank, size), or with the numbers of attention heads.
TpOption = Union[None, Tuple[int, int], Tp]

_CONFIG_MAX = 1 << 20


def groups(value: Optional[Sequence[Group]]) -> Optional[List[Group]]:
    return list(value) if value else None


def tp(path: Paths, value: TpOption) -> Optional[Tp]:
    """The numbers of heads come from config.json beside the files, if it is there and they are not given: the daemon
    may not be able to read it."""
    if value is None:
        return None
    part: Tp = {"rank": value[0], "size": value[1]} if isinstance(value, tuple) else value
    if part.get("heads") is None and part["size"] > 1:
        return cast(Tp, {**part, **_heads(path)})
    return part


def part_name(whole: Optional[str], part: Optional[Tp]) -> Optional[str]:
    """What a part of a model is called, if the daemon cannot derive it. None: the daemon can."""
    if whole is None or part is None or part["size"] < 2:
        return whole
    end = f".tp{part['rank']}of{part['size']}"
    return whole[: NAME_MAX - len(end)] + end


def _heads(path: Paths) -> Dict[str, int]:
    file = os.fspath(first(path))
    folder = file if os.path.isdir(file) else os.path.dirname(file)
    try:
        with open(os.path.join(folder, "config.json"), "rb") as stream:
            config: Any = json.loads(stream.read(_CONFIG_MAX))
    except (OSError, ValueError):
        return {}
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        config = {**config, **config["text_config"]}
    heads = config.get("num_attention_heads") if isinstance(config, dict) else None
    if not isinstance(heads, int):
        return {}
    kv_heads = config.get("num_key_value_heads")
    return {"heads": heads, "kvHeads": kv_heads if isinstance(kv_heads, int) else heads}
