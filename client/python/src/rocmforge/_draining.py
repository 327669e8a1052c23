"""Tells a client's user which attached models should be closed, because somebody wants their memory back."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
import weakref
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Set, Tuple

from . import _fork
from ._memory import Attachment
from ._varlink import Connection
from .errors import Error

# Does not wait for a user's function that does not return, especially not at the interpreter's end.
_JOIN_SECONDS = 2
# After a daemon has ended, the next one is waited for so long; and the pauses between two tries.
PATIENCE = 300.0
FIRST_PAUSE = 0.01
LAST_PAUSE = 1.0
# States, and events, of a model whose memory somebody wants back, or whose device was lost.
_DRAINS = ("draining", "failed")
# After these a model does not drain any more.
_ENDS = ("unloaded", "evicted", "cancelled")


class Drains:
    """What the events of Watch say of the models that a client is attached to. Each model is told of once. An event may
    come before the thread that attached has said so; it is kept, and told then. The next daemon has models under the
    same ids, so one such object serves several watchers, one after the other. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()
        self._untold: Set[int] = set()  # ids of models that drain, and that nobody here is attached to as far as known
        self._told: Set[int] = set()
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
            self._told.add(attachment.id)
            return True

    def take(self, event: Mapping[str, Any]) -> Optional[str]:
        """Takes a reply of Watch. Returns the name of a model that is to be told of now."""
        kind = event.get("event")
        if kind in _DRAINS:
            return self._drains(event["model"])
        if kind in _ENDS:
            with self._lock:
                self._untold.discard(event["model"]["id"])
                self._told.discard(event["model"]["id"])
        return None

    def catch_up(self, models: Iterable[Mapping[str, Any]]) -> List[str]:
        """Takes what List says, when events may have been missed. Returns the names of models that are to be told of
        now."""
        names = [self._drains(model) for model in models if model.get("state") in _DRAINS]
        return [name for name in names if name is not None]

    def _drains(self, model: Mapping[str, Any]) -> Optional[str]:
        id_, name = model["id"], str(model["name"]).partition("#")[0]
        with self._lock:
            if id_ in self._told:
                return None
            for attachment in self._attachments:
                # A daemon that did not get the models of the one before gives their numbers to others.
                if attachment.id == id_ and not attachment.released and (attachment.name == name or attachment.leased()):
                    self._told.add(id_)
                    return name
            self._untold.add(id_)
            return None


class Watcher:
    """A thread that watches all changes of state, and calls the user's function for attached models that should be
    closed. When the daemon has ended, it watches the next one.

    before: one whose models this one watches from now on.
    """

    def __init__(self, path: str, function: Callable[[str], object], before: Optional[Watcher] = None) -> None:
        self._path = path
        self._function = function
        self._drains: Drains = before._drains if before else Drains()
        self._stopped = threading.Event()
        self._pid = os.getpid()
        self._watch()
        try:
            # What the one before may have missed.
            missed = self._missed() if before else []
            self._thread = threading.Thread(target=self._run, args=(missed,), name="rocmforge-watch", daemon=True)
            self._thread.start()
        except BaseException:
            self._connection.close()
            raise
        _watchers.add(self)

    def _watch(self) -> None:
        connection = Connection(self._path)
        replies: Iterator[Tuple[Dict[str, Any], bool]] = connection.replies("Watch")
        try:
            next(replies)  # from here on nothing is missed
        except BaseException:
            connection.close()
            raise
        self._connection, self._replies = connection, replies

    def _missed(self) -> List[str]:
        """Names of models that have begun to drain before the daemon was watched."""
        connection = Connection(self._path)
        try:
            return self._drains.catch_up(connection.call("List").get("models", ()))
        finally:
            connection.close()

    def works(self) -> bool:
        """False: it belongs to a parent process, or its daemon is gone. Then a new one is needed: this one would only
        watch the next daemon a little later."""
        ours = self._pid == os.getpid() and not self._stopped.is_set()
        connection = self._connection
        return ours and self._thread.is_alive() and not connection.closed and not connection.is_at_end()

    def add(self, attachment: Attachment) -> None:
        if self._drains.add(attachment):
            # On a thread of its own, as always.
            threading.Thread(target=self._tell, args=(attachment.name,), name="rocmforge-drains", daemon=True).start()

    def stop(self) -> None:
        if self._pid != os.getpid():
            return  # the thread and the connection are the parent's
        self._stopped.set()
        self._connection.shutdown()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_SECONDS)

    def _run(self, names: List[str]) -> None:
        while True:
            for name in names:
                self._tell(name)
            with contextlib.suppress(Error, OSError, ValueError):  # the daemon ends, or stop() was called
                for reply, _ in self._replies:
                    if self._stopped.is_set():
                        break
                    told = self._drains.take(reply)
                    if told is not None:
                        self._tell(told)
            self._connection.close()
            next_names = self._next()
            if next_names is None:
                return
            names = next_names

    def _next(self) -> Optional[List[str]]:
        """Watches the next daemon. Returns the names of models that drain there already. None: there was none for a
        long time, or stop() was called."""
        end, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
        while not self._stopped.wait(pause) and time.monotonic() < end:
            pause = min(2 * pause, LAST_PAUSE)
            with contextlib.suppress(Error, OSError, ValueError):
                self._watch()
                if self._stopped.is_set():  # stop() may have shut down only the connection before
                    break
                return self._missed()
        self._connection.close()
        return None

    def _tell(self, name: str) -> None:
        if not self._stopped.is_set():
            try:
                self._function(name)
            except Exception:
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))


_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()


@atexit.register
def _exit() -> None:
    for watcher in list(_watchers):
        watcher.stop()
