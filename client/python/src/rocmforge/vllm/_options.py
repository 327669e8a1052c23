"""The options of the loader, from vLLM's --model-loader-extra-config."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

# The ways to give a model its weights, in the order in which they are tried: views of a model that is resident in the
# engine's layout; views of what another process published after the engine's own processing; a copy, by the engine's own
# code, of what is resident. The engine's own loading is what remains.
VIEW, ADOPT, COPY = "view", "adopt", "copy"
WAYS = (VIEW, ADOPT, COPY)


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        ways: the ways that may be taken.
        socket: where the daemon is; None: where librocmforge would find it.
        load: whether the daemon may load a model that is not resident.
        publish: whether what the engine has processed is published, if nothing was found to adopt.
        cpu_prepack: whether the engine may pack the weights of linear layers for the CPU, which copies them.
        deadline: seconds that a load may take.
    """

    ways: Tuple[str, ...] = WAYS
    socket: Optional[str] = None
    load: bool = True
    publish: bool = True
    cpu_prepack: bool = False
    deadline: Optional[float] = None

    def may(self, way: str) -> bool:
        return way in self.ways


_KINDS: Dict[str, Tuple[type, ...]] = {
    "ways": (list, tuple),
    "socket": (str,),
    "load": (bool,),
    "publish": (bool,),
    "cpu_prepack": (bool,),
    "deadline": (int, float),
}


def read(extra: Optional[Mapping[str, Any]]) -> Options:
    """The options in a mapping. ValueError: one does not exist, or its value is wrong."""
    values = dict(extra or {})
    for name, value in values.items():
        kinds = _KINDS.get(name)
        if kinds is None:
            raise ValueError(f"rocmforge has no option '{name}' in model_loader_extra_config; it has {', '.join(_KINDS)}")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"the value of '{name}' in model_loader_extra_config is of the wrong type: {value!r}")
    if "ways" in values:
        wrong = [way for way in values["ways"] if way not in WAYS]
        if wrong:
            raise ValueError(f"there is no way {wrong[0]!r}: the ways are {', '.join(WAYS)}")
        values["ways"] = tuple(values["ways"])
    if "deadline" in values and not values["deadline"] > 0:
        raise ValueError(f"the deadline is not a valid number of seconds: {values['deadline']}")
    return Options(**values)


def strict() -> bool:
    """Whether the engine is to end rather than to load the weights by itself."""
    return os.environ.get("ROCMFORGE_STRICT", "") not in ("", "0")
