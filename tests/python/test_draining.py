"""on_draining(): told of each model that should be given back, and of no other."""
import asyncio
import contextlib
import os
import signal
import threading
import time

import pytest
import rocmforge
import rocmforge.aio
from harness import TIMEOUT, daemon_program, hold_program, wait_until
from rocmforge import _draining as draining_module
from rocmforge import client as client_module


class Heard:
    """A function for on_draining()."""

    def __init__(self):
        self.names, self.event = [], threading.Event()

    def __call__(self, name):
        self.names.append(name)
        self.event.set()

    def wait(self):
        assert self.event.wait(TIMEOUT)
        return self.names


def test_on_draining(rf, small):
    heard = Heard()
    rf.on_draining(heard)
    first, second = rf.load_attach(small, name="m"), rf.attach("m")
    assert rf.unload("m", force=True) == "draining"
    assert heard.wait() == ["m"]
    first.close()
    second.close()
    wait_until(lambda: rf.list() == [])
    rf.load(small, name="other")
    rf.on_draining(None)
    with rf.attach("other") as other:
        rf.unload("other", force=True)
        assert other.name == "other"
    assert heard.names == ["m"]


def test_draining_of_others_is_not_told(daemon, rf, small):
    told = []
    rf.on_draining(told.append)
    with rocmforge.connect(daemon.socket) as other:
        model = other.load_attach(small, name="m")
        rf.unload("m", force=True)
        model.close()
    wait_until(lambda: rf.list() == [])
    assert told == []


def test_a_daemon_that_was_started_anew_is_watched(start, small):
    first, heard = start(), Heard()
    with rocmforge.connect(first.socket) as rf:
        rf.on_draining(heard)
        first.stop()
        start()
        with rf.load_attach(small, name="m"):
            rf.unload("m", force=True)
            assert heard.wait() == ["m"]


@pytest.fixture
def held(start):
    """A daemon under rocmforge-hold, and a function that kills it and waits for the next one."""
    daemon = start(program=[hold_program(), "--", daemon_program()])

    def pid():
        with contextlib.suppress(rocmforge.Error, OSError), rocmforge.connect(daemon.socket) as rf:
            return rf.status()["pid"]

    def kill(models=1):
        before = pid()
        wait_until(lambda: sum(fd.startswith("/memfd:rocmforge-model") for fd in daemon.fds()) == models)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: pid() not in (None, before))

    daemon.kill = kill
    return daemon


@pytest.mark.parametrize("times", [1, 2])
def test_a_model_of_before_a_restart(held, small, times):
    """Without another attach: the next daemon is watched by itself."""
    heard = Heard()
    with rocmforge.connect(held.socket) as rf, rocmforge.connect(held.socket) as other:
        rf.on_draining(heard)
        with rf.load_attach(small, name="m") as model:
            for _ in range(times):
                held.kill()
                model.reconnect()
            other.unload("m", force=True)
            assert heard.wait() == ["m"]
            rf.load(small, name="n")
            rf.attach("n").close()
        assert heard.names == ["m"]  # once
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "rocmforge-watch"])


def test_a_model_of_before_a_restart_after_another_attach(held, small):
    """The attach comes first, and makes another watcher."""
    heard = Heard()
    with rocmforge.connect(held.socket) as rf, rocmforge.connect(held.socket) as other:
        rf.on_draining(heard)
        with rf.load_attach(small, name="m") as model:
            held.kill()
            rf._watcher._stopped.set()  # it does not come to it
            model.reconnect()
            with rf.load_attach(small, name="n", form="f32"):
                other.unload("m", force=True)
                assert heard.wait() == ["m"]


def test_one_that_drains_before_the_next_daemon_is_watched(held, small, monkeypatch):
    heard, unloaded = Heard(), threading.Event()
    watch = draining_module.Watcher._watch

    def late(self):
        assert unloaded.wait(TIMEOUT)
        watch(self)

    with rocmforge.connect(held.socket) as rf, rocmforge.connect(held.socket) as other:
        rf.on_draining(heard)
        with rf.load_attach(small, name="m") as model:
            monkeypatch.setattr(draining_module.Watcher, "_watch", late)
            held.kill()
            model.reconnect()
            other.unload("m", force=True)
            unloaded.set()
            assert heard.wait() == ["m"]


def test_asyncio_a_model_of_before_a_restart(held, small):
    async def main():
        async with rocmforge.aio.connect(held.socket) as rf:
            heard = asyncio.Event()
            await rf.on_draining(lambda name: heard.set())
            with await rf.load_attach(small, name="m") as model:
                await asyncio.to_thread(held.kill)
                model.reconnect()
                with rocmforge.connect(held.socket) as other:
                    other.unload("m", force=True)
                await asyncio.wait_for(heard.wait(), TIMEOUT)

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_an_event_that_comes_while_attaching(daemon, rf, small, monkeypatch):
    """The model drains when the lease is granted already, and the client does not know of it yet."""
    heard, attach = Heard(), client_module.Attachment
    rf.on_draining(heard)

    def late(socket, name):
        attachment = attach(socket, name)
        with rocmforge.connect(daemon.socket) as other:
            other.unload("m", force=True)
        time.sleep(0.2)
        return attachment

    monkeypatch.setattr(client_module, "Attachment", late)
    with rf.load_attach(small, name="m"):
        assert heard.wait() == ["m"]


def test_a_forked_child_leaves_the_parents_watcher_alone(rf, small):
    heard = Heard()
    rf.on_draining(heard)
    pid = os.fork()
    if pid == 0:
        try:
            rf.close()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    with rf.load_attach(small, name="m"):
        rf.unload("m", force=True)
        assert heard.wait() == ["m"]


def test_a_forked_child_is_told_itself(daemon, rf, small):
    heard = Heard()
    rf.on_draining(heard)
    rf.load(small, name="m")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with rf.attach("m"):
                os.write(writer, b"x")
                status = 0 if heard.event.wait(TIMEOUT) else 2
        finally:
            os._exit(status)
    os.read(reader, 1)
    rf.unload("m", force=True)
    assert os.waitpid(pid, 0)[1] == 0
    assert heard.names == []
    os.close(reader)
    os.close(writer)


def test_asyncio(start, small):
    async def main():
        first = start()
        async with rocmforge.aio.connect(first.socket) as rf:
            told, heard = [], asyncio.Event()

            async def draining(name):
                told.append(name)
                heard.set()

            await rf.on_draining(draining)
            await rf.load(small, name="other")
            with await rf.attach("other"), await rf.load_attach(small, name="m"):
                assert await rf.unload("other") == "named"  # it has another name
                assert await rf.unload("m", force=True) == "draining"
                await asyncio.wait_for(heard.wait(), TIMEOUT)
            assert told == ["m"]
            first.stop()
            start()
            heard.clear()
            await rf.on_draining(lambda name: draining(name))
            with await rf.load_attach(small, name="again"):
                await rf.unload("again", force=True)
                await asyncio.wait_for(heard.wait(), TIMEOUT)
            assert told == ["m", "again"]
            await rf.on_draining(None)
            with await rf.load_attach(small, name="last"):
                await rf.unload("last", force=True)
                await rf.status()
            assert told == ["m", "again"]

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_asyncio_an_event_that_comes_while_attaching(daemon, small, monkeypatch):
    attach = rocmforge.aio.Attachment

    def late(socket, name):
        attachment = attach(socket, name)
        with rocmforge.connect(daemon.socket) as other:
            other.unload("m", force=True)
        time.sleep(0.2)
        return attachment

    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            heard = asyncio.Event()
            await rf.on_draining(lambda name: heard.set())
            monkeypatch.setattr(rocmforge.aio, "Attachment", late)
            with await rf.load_attach(small, name="m"):
                await asyncio.wait_for(heard.wait(), TIMEOUT)

    asyncio.run(asyncio.wait_for(main(), TIMEOUT))
