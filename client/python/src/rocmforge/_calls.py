"""The parameters of the wire's methods, for the blocking client and for the asyncio client."""

from __future__ import annotations

import math
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from ._files import Paths, first, link_name
from .replies import FormRule

# Forms by patterns of names. If several patterns match, the last one is used.
Forms = Union[None, Mapping[str, str], Sequence[FormRule]]


def seconds(value: Optional[float]) -> Optional[float]:
    """Checks a deadline. ValueError: it is not valid."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"the deadline is not a valid number of seconds: {value}")
    return value


def load(
    path: Paths,
    fds: Optional[List[int]],
    name: Optional[str],
    form: Optional[str],
    forms: Forms,
    device: Optional[str],
    dequant: Optional[str],
    wait: bool,
    wait_for_memory: Optional[float],
    pin: bool,
    private: bool,
    public: bool,
    replace: bool,
    ttl: Optional[int],
    deadline: Optional[float],
    trace: bool,
) -> Dict[str, Any]:
    """The parameters of Load. Without descriptors, the daemon opens the path itself."""
    return {
        **_file(path, fds),
        "name": name or (link_name(path) if fds is not None else None),
        "form": form,
        "forms": rules(forms),
        "device": device,
        "dequant": dequant,
        "wait": None if wait else False,
        "waitForMemory": wait_for_memory,
        "pin": pin or None,
        "private": private or None,
        "public": public or None,
        "replace": replace or None,
        "ttl": ttl,
        "deadline": seconds(deadline),
        "trace": trace or None,
    }


def plan(
    path: Paths,
    fds: Optional[List[int]],
    name: Optional[str],
    form: Optional[str],
    forms: Forms,
    device: Optional[str],
    dequant: Optional[str],
    private: bool,
    public: bool,
    replace: bool,
) -> Dict[str, Any]:
    """The parameters of Plan."""
    return {
        **_file(path, fds),
        "name": name or (link_name(path) if fds is not None else None),
        "form": form,
        "forms": rules(forms),
        "device": device,
        "dequant": dequant,
        "private": private or None,
        "public": public or None,
        "replace": replace or None,
    }


def rules(forms: Forms) -> Optional[List[FormRule]]:
    """The wire's list of rules."""
    if not forms:
        return None
    if isinstance(forms, Mapping):
        return [{"match": match, "form": form} for match, form in forms.items()]
    return list(forms)


# The most descriptors in one message.
FDS_MAX = 253


def _file(path: Paths, fds: Optional[List[int]]) -> Dict[str, Any]:
    if fds is None:
        return {"path": os.path.abspath(os.fspath(first(path)))}
    # AddFiles brings the descriptors before the last FDS_MAX.
    return {"fds": list(range(min(len(fds), FDS_MAX))), "added": max(len(fds) - FDS_MAX, 0) or None}


def added(fds: Sequence[int]) -> List[Sequence[int]]:
    """The descriptors for each call of AddFiles. The call itself then brings the last FDS_MAX descriptors."""
    before = len(fds) - FDS_MAX
    return [fds[begin : min(begin + FDS_MAX, before)] for begin in range(0, before, FDS_MAX)]


def without_draining(reply: Mapping[str, Any]) -> Dict[str, Any]:
    """A reply without the field that every reply may have about draining models. on_draining() reports it."""
    return {key: value for key, value in reply.items() if key != "draining"}
