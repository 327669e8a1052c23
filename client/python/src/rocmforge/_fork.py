"""What a forked process does to the objects of this package: a lock may be held by a thread that it does not have."""

from __future__ import annotations

import os
import weakref
from typing import Any

_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_in_child(owner: Any) -> None:
    """Has `owner.after_fork()` called in each process that is forked from this one, as long as the owner lives. The
    function makes the owner's locks anew. It runs before any other code of the child, and must not raise."""
    _owners.add(owner)


def _after_fork() -> None:
    for owner in list(_owners):
        owner.after_fork()


os.register_at_fork(after_in_child=_after_fork)
