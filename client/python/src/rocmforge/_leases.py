"""Takes the leases of attached models again after the daemon was started anew: on a thread, for who asks for it."""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from typing import Dict, Set

from . import _fork, _memory
from ._memory import Attachment
from .errors import Error

# For so long after a connection has ended, the next daemon is waited for; and the pauses between two tries.
_PATIENCE = 300.0
_FIRST_PAUSE = 0.01
_LAST_PAUSE = 1.0
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class _Lost:
    """A model whose connection has ended."""

    def __init__(self, attachment: weakref.ref[Attachment]) -> None:
        self.attachment = attachment
        self.pause = _FIRST_PAUSE
        self.due = time.monotonic()
        self.until = self.due + _PATIENCE


class Keeper:
    """Watches the connections of attachments. They are weakly referenced."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        # By descriptor. Other threads, and destructors, only set and remove single entries.
        self._watched: Dict[int, weakref.ref[Attachment]] = {}
        self._lost: Set[_Lost] = set()  # of the thread
        self._thread = threading.Thread(target=self._run, name="rocmforge-leases", daemon=True)
        self._thread.start()

    def add(self, attachment: Attachment) -> None:
        """Watches its present connection. Tells at once of one that has ended already."""
        fd = attachment.fd()
        if fd >= 0:
            self._watched[fd] = weakref.ref(attachment)
            try:
                self._epoll.register(fd, _ENDED | select.EPOLLONESHOT)
            except FileExistsError:
                self._epoll.modify(fd, _ENDED | select.EPOLLONESHOT)

    def remove(self, fd: int) -> None:
        """Before the descriptor is closed. Never raises, as a destructor may call it."""
        if self._watched.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass

    def close_in_child(self) -> None:
        self._epoll.close()

    def _run(self) -> None:
        while True:
            due = min((lost.due for lost in self._lost), default=None)
            timeout = None if due is None else max(0.0, due - time.monotonic())
            for fd, _ in self._epoll.poll(timeout):
                reference = self._watched.get(fd)
                if reference is not None:
                    self._lost.add(_Lost(reference))
            for lost in [lost for lost in self._lost if lost.due <= time.monotonic()]:
                if self._ends(lost):
                    self._lost.discard(lost)

    def _ends(self, lost: _Lost) -> bool:
        """One try. True: there is nothing more to do."""
        attachment = lost.attachment()
        if attachment is None or attachment.released or time.monotonic() > lost.until:
            return True
        try:
            before = attachment.fd()
            if not attachment.try_again():
                lost.due = time.monotonic() + lost.pause
                lost.pause = min(lost.pause * 2, _LAST_PAUSE)
                return False
            self.remove(before)
            self.add(attachment)
        except (Error, OSError, ValueError):
            pass  # the daemon does not have the model any more, or the attachment was closed meanwhile
        return True


_lock = threading.Lock()


def keep_leases() -> None:
    """From now on, whenever the daemon is started anew, a thread of this process takes the leases of its attached models
    again at once. Without it that is done when a model is used again, or by Model.reconnect(). For programs that compute
    for a long time with arrays and tensors that they have made before. A forked process has to call it itself."""
    with _lock:
        keeper = _memory.keeper
        if keeper is None:
            keeper = _memory.keeper = Keeper()
        for attachment in list(_memory.attachments):
            if attachment.pid == os.getpid() and not attachment.released:
                keeper.add(attachment)


class _Fork:
    def after_fork(self) -> None:
        """The thread is the parent's."""
        global _lock
        _lock = threading.Lock()
        keeper, _memory.keeper = _memory.keeper, None
        if keeper:
            keeper.close_in_child()


_owner = _Fork()
_fork.renew_in_child(_owner)
