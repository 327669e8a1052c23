"""The daemon is killed: the next one has the models, and who was attached has a lease again."""
import contextlib
import gc
import os
import signal
import socket
import struct
import threading
import time

import pytest
import rocmforge
from harness import daemon_program, hold_program, wait_until

NAME = "blk.0.attn_v.weight"


@pytest.fixture
def held(start):
    """Starts a daemon under rocmforge-hold. The process is the holder."""
    return lambda *options: start(*options, program=[hold_program(), "--", daemon_program()])


def pid_of(rf):
    with contextlib.suppress(rocmforge.Error, OSError):
        return rf.status()["pid"]


def kill(daemon, rf, models=1):
    """Kills the daemon once its models are kept, and waits for the next one."""
    before = rf.status()["pid"]
    wait_until(lambda: sum(fd.startswith("/memfd:rocmforge-model") for fd in daemon.fds()) == models)
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pid_of(rf) not in (None, before))


def leases(rf):
    return [model["leases"] for model in rf.list()]


def patience(model):
    """How many seconds the library waits for an answer."""
    with socket.socket(fileno=os.dup(model._attachment.fd())) as sock:
        return struct.unpack("ll", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))[0]


def test_reconnect(held, small):
    daemon = held("--grace", "1")
    with rocmforge.connect(daemon.socket) as rf, rf.load_attach(small, name="m", form="f32") as model:
        array = model.numpy(NAME)
        expected = array.copy()
        assert model.leased
        model.reconnect(0)  # nothing to do
        for _ in range(3):
            kill(daemon, rf)
            assert leases(rf) == [0] and not model.leased
            assert (array == expected).all()
            model.reconnect()
            assert leases(rf) == [1] and model.leased
            assert patience(model) == 60  # a destructor does not wait for ever
        time.sleep(1.2)  # the time of grace is over: only the lease keeps it
        with pytest.raises(rocmforge.ModelBusy):
            rf.unload("m")
        assert (model.numpy(NAME) == expected).all()
        del array
        model.close()
        assert leases(rf) == [0]


def test_a_model_that_is_used_has_its_lease_again(held, small):
    daemon = held()
    with rocmforge.connect(daemon.socket) as rf, rf.load_attach(small, name="m", form="f32") as model:
        kill(daemon, rf)
        time.sleep(1.1)
        assert leases(rf) == [0]
        model.numpy(NAME)
        assert leases(rf) == [1] and model.leased


def test_no_daemon_comes(start, small):
    daemon = start()
    with rocmforge.connect(daemon.socket) as rf, rf.load_attach(small, name="m", form="f32") as model:
        daemon.process.kill()
        daemon.process.wait()
        began = time.monotonic()
        with pytest.raises(rocmforge.NoDaemon):
            model.reconnect(0.3)
        assert 0.3 <= time.monotonic() - began < 20
        with pytest.raises(ValueError, match="seconds"):
            model.reconnect(-1)
        array = model.numpy(NAME)
        start()
        for _ in range(2):  # it does not have the model
            with pytest.raises(rocmforge.ModelNotFound, match="'m'"):
                model.reconnect()
        assert not model.leased and array.any() and model.numpy(NAME).any()
    with pytest.raises(rocmforge.Closed):
        model.reconnect()


def test_keep_leases(held, small, every_type):
    daemon = held()
    with rocmforge.connect(daemon.socket) as rf:
        first = rf.load_attach(small, name="first", form="f32")
        rocmforge.keep_leases()
        rocmforge.keep_leases()
        second = rf.load_attach(every_type, name="second", form="f32")
        array = first.numpy(NAME)
        expected = array.copy()
        for _ in range(3):
            kill(daemon, rf, 2)
            wait_until(lambda: leases(rf) == [1, 1])
            assert (array == expected).all()
        assert sum(thread.name == "rocmforge-leases" for thread in threading.enumerate()) == 1
        second.close()
        assert leases(rf) == [1, 0]
        kill(daemon, rf, 2)
        wait_until(lambda: leases(rf) == [1, 0])
        first.close(force=True)
        del first, array
        gc.collect()
        assert leases(rf) == [0, 0]


def test_keep_leases_waits_for_the_daemon(start, held, small):
    """One that comes later, and does not have the model: it is not asked again and again."""
    daemon = start()
    with rocmforge.connect(daemon.socket) as rf:
        rocmforge.keep_leases()
        model = rf.load_attach(small, name="m", form="f32")
        daemon.process.kill()
        daemon.process.wait()
        time.sleep(0.2)
        start()
        wait_until(lambda: model._attachment.fd() >= 0 and not model._attachment._ended())
        assert not model.leased
        model.close()


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of fork() with threads
import rocmforge
rocmforge.keep_leases()
model = rocmforge.attach("m")
pid = os.fork()
if pid == 0:
    name = sorted(model)[0]
    assert bytes(model[name].buffer()) and not model.leased
    rocmforge.keep_leases()
    with rocmforge.attach("m") as own:
        assert own.leased
    model.close()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert model.leased
model.close()
"""


def test_in_a_forked_process(rf, small, run_python):
    rf.load(small, name="m")
    assert run_python(FORKED) == ""
    assert leases(rf) == [0]
