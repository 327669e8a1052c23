"""The parameters of the wire's methods, for the blocking client and for the asyncio client."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, TypedDict, Union

from . import _layout
from ._files import Paths, first, link_name
from ._layout import TpOption
from ._varlink import FDS_MAX
from .replies import FormRule, Group, ModelInfo

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing from Python 3.11 on

# Forms by patterns of names. If several patterns match, the last one is used.
Forms = Union[None, Mapping[str, str], Sequence[FormRule]]


def seconds(value: Optional[float]) -> Optional[float]:
    """Checks a deadline. ValueError: it is not valid."""
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"the deadline is not a valid number of seconds: {value}")
    return value


class PlanOptions(TypedDict, total=False):
    """The options of plan(), which load() takes, too. load() says what each means."""

    name: Optional[str]
    form: Optional[str]
    forms: Forms
    layout: Optional[str]
    groups: Optional[Sequence[Group]]
    tp: TpOption
    device: Optional[str]
    dequant: Optional[str]
    private: bool
    public: bool
    replace: bool


class LoadAttachOptions(PlanOptions, total=False):
    """The options of load_attach(), which load() takes, too."""

    wait_for_memory: Optional[float]
    pin: bool
    ttl: Optional[int]
    deadline: Optional[float]


class LoadOptions(LoadAttachOptions, total=False):
    """The options of load()."""

    wait: bool
    trace: bool


def plan(
    path: Paths,
    fds: Optional[List[int]],
    *,
    name: Optional[str] = None,
    form: Optional[str] = None,
    forms: Forms = None,
    layout: Optional[str] = None,
    groups: Optional[Sequence[Group]] = None,
    tp: TpOption = None,
    device: Optional[str] = None,
    dequant: Optional[str] = None,
    private: bool = False,
    public: bool = False,
    replace: bool = False,
) -> Dict[str, Any]:
    """The parameters of Plan. Without descriptors, the daemon opens the path itself."""
    part = _layout.tp(path, tp)
    return {
        **_file(path, fds),
        "name": name or (_layout.part_name(link_name(path), part) if fds is not None else None),
        "form": form,
        "forms": rules(forms),
        "layout": layout,
        "groups": _layout.groups(groups),
        "tp": part,
        "device": device,
        "dequant": dequant,
        "private": private or None,
        "public": public or None,
        "replace": replace or None,
    }


def _load(
    path: Paths,
    fds: Optional[List[int]],
    *,
    wait_for_memory: Optional[float] = None,
    pin: bool = False,
    ttl: Optional[int] = None,
    deadline: Optional[float] = None,
    **options: Unpack[PlanOptions],
) -> Dict[str, Any]:
    return {
        **plan(path, fds, **options),
        "waitForMemory": wait_for_memory,
        "pin": pin or None,
        "ttl": ttl,
        "deadline": seconds(deadline),
    }


def load(
    path: Paths,
    fds: Optional[List[int]],
    *,
    wait: bool = True,
    trace: bool = False,
    **options: Unpack[LoadAttachOptions],
) -> Dict[str, Any]:
    """The parameters of Load."""
    return {**_load(path, fds, **options), "wait": None if wait else False, "trace": trace or None}


def load_attach(path: Paths, fds: Optional[List[int]], **options: Unpack[LoadAttachOptions]) -> Dict[str, Any]:
    """The parameters of a Load that grants a lease."""
    return {**_load(path, fds, **options), "lease": True, "table": True}


def attach(name: str, deadline: Optional[float]) -> Dict[str, Any]:
    """The parameters of Attach."""
    return {"name": name, "table": True, "deadline": seconds(deadline)}


def loading(path: Paths) -> str:
    """What a bar of progress is called."""
    return f"loading {os.path.basename(os.fspath(first(path)))}"


def certain(model: ModelInfo) -> str:
    """What names this model and no other, also if another one has taken its name by now."""
    return f"{model['name'].partition('#')[0]}#{model['id']}"


def rules(forms: Forms) -> Optional[List[FormRule]]:
    """The wire's list of rules."""
    if not forms:
        return None
    if isinstance(forms, Mapping):
        return [{"match": match, "form": form} for match, form in forms.items()]
    return list(forms)


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
