"""systemd's watchdog is fed while drivers answer, and systemd waits longer while the daemon ends and makes progress."""
import os
import socket
import time

import pytest
from harness import fake_gpu_folder, module_folder, states, wait_until

WATCHDOG = 1  # seconds
FAKE = fake_gpu_folder()


@pytest.fixture
def notify(folder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        yield listener


def said(listener, seconds):
    """Messages that come in so many seconds, and what was on its way before."""
    end = time.monotonic() + seconds
    messages = []
    while (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            messages.append(listener.recv(4096).decode())
        except TimeoutError:
            break
    return messages


def environment(folder, **more):
    return {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(WATCHDOG * 1000000), **more}


@pytest.fixture
def start_fake(start, folder):
    if not FAKE:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")

    def start_one(**settings):
        env = {"LD_LIBRARY_PATH": str(FAKE), "ROCMFORGE_MODULE_DIR": str(module_folder()), "FAKE_HIP_DEVICES": "1"}
        return start("--device", "hip", env=environment(folder, **env, **settings), ready=False)

    return start_one


def hangs(daemon, notify):
    """It says so once, and the watchdog is fed no more; until the driver answers."""
    wait_until(lambda: "has not answered for" in daemon.log)
    said(notify, 0.01)
    assert "WATCHDOG=1" not in said(notify, WATCHDOG)
    assert daemon.log.count("has not answered for") == 1
    wait_until(lambda: "WATCHDOG=1" in said(notify, WATCHDOG))


def test_a_driver_that_does_not_answer(start_fake, notify):
    """It is asked how much memory is free; others are answered meanwhile."""
    daemon = start_fake(FAKE_HIP_SLOW=f"info={WATCHDOG * 4}000000").wait_ready()
    with daemon.client() as client:
        client.send("Devices")
        hangs(daemon, notify)
        client.reply()


def test_copies_that_do_not_end(start_fake, notify, small_model):
    daemon = start_fake(FAKE_HIP_SLOW=f"copy={WATCHDOG * 4}000000").wait_ready()
    with daemon.client() as client:
        client.send("Load", {"path": str(small_model), "name": "m"})
        hangs(daemon, notify)
        client.reply()
    assert states(daemon) == {"m": "resident"}


def test_a_file_that_is_slow_is_nobodys_fault(start, gate, notify, folder, gated_model):
    """Whoever may load a model may have such a file: the daemon, and the models of others, stay."""
    gate.close()
    daemon = start(env={**gate.env, **environment(folder)})
    with daemon.client() as client:
        client.send("Load", {"path": str(gated_model), "name": "m"})
        wait_until(lambda: states(daemon).get("m") == "filling")
        said(notify, 0.01)
        assert said(notify, 3 * WATCHDOG).count("WATCHDOG=1") >= 3
        gate.open()
        client.reply()


def test_systemd_waits_while_there_is_progress(start, gate, notify, folder, gated_model, small_model):
    """A verification and a load end; then a worker waits for its file, and nothing more is asked for."""
    gate.close()
    daemon = start(env={**gate.env, "NOTIFY_SOCKET": str(folder / "notify")})
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        client.send("Load", {"path": str(gated_model), "name": "m"})
        wait_until(lambda: states(daemon).get("m") == "filling")
        said(notify, 0.01)
        daemon.process.terminate()
        told = said(notify, 3)
        assert told.pop(0) == "STOPPING=1\nSTATUS=Stopping"
        assert set(told) <= {"EXTEND_TIMEOUT_USEC=30000000"} and len(told) <= 1
        gate.open()
    assert daemon.process.wait(60) == 0


def test_nothing_is_asked_for_where_it_ends_at_once(start, notify, folder):
    daemon = start(env={"NOTIFY_SOCKET": str(folder / "notify")})
    said(notify, 0.1)
    daemon.process.terminate()
    assert daemon.process.wait(60) == 0
    assert said(notify, 0.1) == ["STOPPING=1\nSTATUS=Stopping"]
    assert os.path.exists(folder)
