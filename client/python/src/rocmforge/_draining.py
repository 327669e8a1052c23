"""Tells a client's user which attached models should be closed, because somebody wants their memory back."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from typing import Any, Callable, Iterator, Mapping, Optional, Set, Tuple

from . import _fork
from ._memory import Attachment
from ._varlink import Connection
from .errors import Error

# Does not wait for a user's function that does not return, especially not at the interpreter's end.
_JOIN_SECONDS = 2
# After these a model does not drain any more.
_ENDS = ("unloaded", "evicted", "failed", "cancelled")


class Drains:
    """What the events of Watch say of the models that a client is attached to. An event may come before the thread that
    attached has said so; it is kept, and told then. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
        self._untold: Set[int] = set()  # ids of models that drain, and that nobody here is attached to as far as known
        _fork.renew_in_child(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def add(self, attachment: Attachment) -> bool:
        """From now on events of its model are told. True: it drains already, and this is to be told now."""
        with self._lock:
            self._attachments.add(attachment)
            if attachment.id not in self._untold:
                return False
            self._untold.remove(attachment.id)
            return True

    def take(self, event: Mapping[str, Any]) -> Optional[str]:
        """Takes a reply of Watch. Returns the name of a model that is to be told of now."""
        kind = event.get("event")
        if kind == "draining":
            model = event["model"]
            with self._lock:
                if any(a.id == model["id"] and not a.released for a in self._attachments):
                    return str(model["name"])
                self._untold.add(model["id"])
        elif kind in _ENDS:
            with self._lock:
                self._untold.discard(event["model"]["id"])
        return None


class Watcher:
    """A thread that watches all changes of state, and calls the user's function for attached models that should be
    closed.
    """

    def __init__(self, path: str, function: Callable[[str], object]) -> None:
        self._function = function
        self._drains = Drains()
        self._stopped = False
        self._pid = os.getpid()
        self._connection = Connection(path)
        self._replies: Iterator[Tuple[Mapping[str, Any], bool]] = self._connection.replies("Watch")
        try:
            next(self._replies)  # from here on nothing is missed
            self._thread = threading.Thread(target=self._run, name="rocmforge-watch", daemon=True)
            self._thread.start()
        except BaseException:
            self._connection.close()
            raise
        _watchers.add(self)

    def works(self) -> bool:
        """False: it belongs to a parent process, or its daemon is gone. Then a new one is needed."""
        ours = self._pid == os.getpid() and not self._stopped
        return ours and self._thread.is_alive() and not self._connection.is_at_end()

    def add(self, attachment: Attachment) -> None:
        if self._drains.add(attachment):
            # On a thread of its own, as always.
            threading.Thread(target=self._tell, args=(attachment.name,), name="rocmforge-drains", daemon=True).start()

    def stop(self) -> None:
        if self._pid != os.getpid():
            return  # the thread and the connection are the parent's
        self._stopped = True
        self._connection.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        with contextlib.suppress(Error, OSError, ValueError):  # the daemon ends, or stop() was called
            for reply, _ in self._replies:
                if self._stopped:
                    break
                name = self._drains.take(reply)
                if name is not None:
                    self._tell(name)
        self._connection.close()

    def _tell(self, name: str) -> None:
        if not self._stopped:
            try:
                self._function(name)
            except Exception:
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()


@atexit.register
def _exit() -> None:
    for watcher in list(_watchers):
        watcher.stop()
