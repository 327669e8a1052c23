"""Models on a GPU outlive the daemon, on tests/fake_hip; and clients attach to them before the driver has started."""
import contextlib
import os
import signal
import time

import pytest
from harness import (
    SANITIZERS, TIMEOUT, fake_gpu_folder, load, module_folder, names, tensor_model, wait_until, wire_error,
)  # fmt: skip
from restarts import bytes_of, daemon_pid, file_bytes, killed_under_load, library_reader, memory, restarted, soon_there
from rocmforge_wire import Closed

FAKE = fake_gpu_folder()
needs_fake = pytest.mark.skipif(not FAKE, reason="this build has no module for AMD GPUs (hipcc is not installed)")


@pytest.fixture
def fake(monkeypatch):
    """Sets the environment of fake GPUs; more of it by keywords."""

    def set_up(**more):
        environment = {"LD_LIBRARY_PATH": str(FAKE), "ROCMFORGE_MODULE_DIR": str(module_folder()), "FAKE_HIP_DEVICES": "2"}
        for name, value in {**environment, **more}.items():
            monkeypatch.setenv(name, value)
        return "--device", "hip"

    return set_up


@needs_fake
def test_gpu(held, fake, folder):
    """Nothing is uploaded again: the file is gone, and the bytes are there."""
    daemon = held(*fake(), "--export", "fd")
    path = tensor_model(folder / "m.gguf")
    expected = file_bytes(path)
    with daemon.client() as client:
        load(client, path, "m", device="hip:1")
        name = client.call("Show", name="m")["tensors"][0]["name"]
    path.unlink()
    for _ in range(3):
        before = daemon_pid(daemon)
        wait_until(lambda: len([fd for fd in daemon.fds() if "rocmforge" in fd]) >= 2)
        os.kill(before, signal.SIGKILL)
        restarted(daemon, before)
        (model,) = daemon.models()
        assert model["device"] == "hip:1" and model["state"] == "resident"
        assert daemon.rfctl("dump", "m", name, text=False).stdout == expected
    assert "model=m id=1 resident again on hip:1" in daemon.log


@needs_fake
def test_gpu_killed_under_load(held, fake, folder):
    """Nine descriptors: that of a GPU's memory has another name."""
    killed_under_load(held(*fake(), "--export", "fd", "--grace", "1"), folder, library_reader, 9)


@pytest.mark.alone
@needs_fake
def test_gpu_soon_there(held, fake, folder, small_model):
    """Long before its driver has started, and before the GPU is tried and its link measured."""
    slow = fake(FAKE_HIP_DEVICES="1", FAKE_HIP_SLOW="start=300000")
    soon_there(held(*slow, "--export", "fd", "--workers", "12"), small_model, 3, 0.1)


@pytest.fixture
def gpu_kept(store, start, fake, folder):
    """A store with a model on hip:1, and one on the host. start_again(**environment): the next daemon."""
    options = (*fake(), "--export", "fd", "--grace", "1")
    daemon = store.start(start, *options)
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m", device="hip:1")
        load(client, tensor_model(folder / "h.gguf", seed=2), "h", device="host")
        store.token = client.call("Attach", name="m")["token"]
        store.wait("d", 2)
    daemon.process.kill()
    daemon.process.wait()
    store.receive()

    # LeakSanitizer itself crashes in about one of forty such daemons ("Tracer caught signal 11").
    no_leaks = {"ASAN_OPTIONS": SANITIZERS["ASAN_OPTIONS"] + ":detect_leaks=0"}

    def start_again(*more, **environment):
        fake(**environment)
        return store.start(start, *options, *more, env=no_leaks)

    store.start_again = start_again
    return store


START = 1.5  # seconds
SLOW = {"FAKE_HIP_SLOW": f"start={START * 1e6:.0f}"}


@needs_fake
def test_gpu_attach_before_its_driver(gpu_kept, folder):
    """Attach, Reattach and Detach are answered, with what was known of the GPU; all else waits until it is there."""
    daemon = gpu_kept.start_again(**SLOW)
    began = time.monotonic()
    with daemon.client() as early, daemon.client() as late, daemon.client() as loads, daemon.client() as gone:
        late.send("Status")
        with open(tensor_model(folder / "n.gguf", seed=3), "rb") as file:  # descriptors wait with their call
            loads.send("Load", {"name": "n", "fds": [0]}, [file.fileno()])
        gone.send("Pin", {"name": "h"}, oneway=True)
        gone.close()
        reply = early.call("Attach", name="m")
        assert early.fds[reply["fd"]] >= 0 and reply["model"]["state"] == "resident"
        again = early.call("Reattach", name="m", token=gpu_kept.token)
        early.call("Detach", lease=reply["lease"])
        host, mapped = memory(early, "h")
        assert bytes_of(host, mapped) == file_bytes(folder / "h.gguf")
        with wire_error("ModelNotFound"):
            early.call("Attach", name="n")
        assert time.monotonic() - began < 0.9 * START and "resident again on hip" not in daemon.log
        assert late.reply()[0]["models"] and loads.reply()[0]["model"]["name"] == "n"
        assert time.monotonic() - began > 0.9 * START
        device = next(d for d in early.call("Devices")["devices"] if d["id"] == "hip:1")
        same = ("id", "kind", "name", "uuid", "pci", "total", "budget", "export", "state")
        assert {key: reply["device"][key] for key in same} == {key: device[key] for key in same}
        assert reply["device"]["used"] == device["used"] == reply["model"]["bytes"] and reply["device"]["link"] > 0
        assert "model=m id=1 resident again on hip:1" in daemon.log
        time.sleep(1.2)  # the time of grace is over, which began when the GPU was there
        with wire_error("ModelBusy") as parameters:
            early.call("Unload", name="m")
        assert [lease["lease"] for lease in parameters["leases"]] == [again["lease"]]
        assert early.call("Verify", name="m")["mismatches"] == []
        assert early.call("Show", name="h")["model"]["pinned"]
        early.call("Detach", lease=again["lease"])
        early.call("Unload", name="m")
    assert daemon.stop() == 0


@needs_fake
@pytest.mark.parametrize(
    "changes, why",
    [
        ({"FAKE_HIP_UUID": "beef"}, "its device is not there any more, or is another one"),
        ({"FAKE_HIP_DEVICES": "1"}, "its device is not there any more, or is another one"),
        ({"FAKE_HIP_NO_VMM": "1"}, "exports no descriptors now"),
        ({"FAKE_HIP_FAIL": "hipMemImportFromShareableHandle:3"}, "its memory: hipMemImportFromShareableHandle"),
    ],
)
def test_gpu_is_another_one_when_its_driver_is_there(gpu_kept, folder, changes, why):
    """Who has attached meanwhile is told by draining; the model goes, and its name is free."""
    export = ("--export", "auto") if "FAKE_HIP_NO_VMM" in changes else ()
    of_m = {name for name in gpu_kept.entries if name.split("-")[1] == key_of(gpu_kept, "a", "rocmforge-model")}
    daemon = gpu_kept.start_again(*export, **SLOW, **changes)
    with daemon.client() as client:
        reply = client.call("Attach", name="m")
        with daemon.client() as other:
            assert other.call("Attach", name="m")["model"]["id"] == reply["model"]["id"]
        status = client.call("Status")
        assert status["draining"] == ["m"]
        line = next(line for line in daemon.log.splitlines() if "was kept, but is not resident again: " in line)
        assert "model=m " in line and why in line
        assert {model["name"]: model["state"] for model in daemon.models()} == {"h": "resident", "m#1": "draining"}
        with wire_error("ModelNotFound"):
            client.call("Attach", name="m")
        load(client, folder / "m.gguf", "m", device="hip:0")
        client.call("Detach", lease=reply["lease"])
        wait_until(lambda: sorted(names(daemon)) == ["h", "m"])
        gpu_kept.receive()
        assert of_m <= gpu_kept.removed
    assert daemon.stop() == 0


def key_of(store, role, not_named):
    """The key of the model whose memory is no file in memory, but a GPU's."""
    for name in store.of(role):
        if not_named not in os.readlink(f"/proc/self/fd/{store.entries[name]}"):
            return name.split("-")[1]
    raise AssertionError(store.entries)


@needs_fake
def test_gpu_nobody_attached_before_it_was_another_one(gpu_kept):
    daemon = gpu_kept.start_again(**SLOW, FAKE_HIP_UUID="beef")
    wait_until(lambda: names(daemon) == ["h"])
    assert "model=m was kept, but is not resident again" in daemon.log
    with daemon.client() as client:
        used = {device["id"]: device["used"] for device in client.call("Devices")["devices"]}
    assert used["hip:0"] == used["hip:1"] == 0


@needs_fake
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ends_before_the_driver_is_there(gpu_kept, number):
    """The store has everything for the next one."""
    before = set(gpu_kept.entries)
    daemon = gpu_kept.start_again(**SLOW)
    with daemon.client() as client:
        client.call("Attach", name="m")
        client.send("Status")
        time.sleep(0.2)
        os.kill(daemon.pid, number)
        if number == signal.SIGTERM:
            with wire_error("ShuttingDown"):
                client.reply()
        assert daemon.process.wait(TIMEOUT) == (0 if number == signal.SIGTERM else -number)
    gpu_kept.receive()
    assert not gpu_kept.removed and set(gpu_kept.entries) == before
    assert sorted(names(gpu_kept.start_again())) == ["h", "m"]


@needs_fake
def test_no_gpu_is_there_at_all(gpu_kept):
    """Where GPUs were asked for, the daemon ends, and says why; the store has everything for the next one."""
    before = set(gpu_kept.entries)
    daemon = gpu_kept.start_again(**SLOW, FAKE_HIP_DEVICES="0")
    with daemon.client() as client, contextlib.suppress(Closed, OSError):
        client.call("Attach", name="m")
        client.call("Status")
    assert daemon.process.wait(TIMEOUT) == 1 and "no hip device" in daemon.log
    gpu_kept.receive()
    assert not gpu_kept.removed and set(gpu_kept.entries) == before


@needs_fake
def test_gpu_that_is_gone(store, start, fake, folder):
    options = (*fake(), "--export", "fd")
    daemon = store.start(start, *options)
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m", device="hip:1")
        store.wait("d", 1)
    daemon.process.kill()
    daemon.process.wait()
    store.receive()
    before = set(store.entries)
    fake(FAKE_HIP_DEVICES="1")
    daemon = store.start(start, *options)
    wait_until(lambda: daemon.models() == [])
    assert daemon.used() == 0
    store.receive()
    assert store.removed == before
    assert "its device is not there any more, or is another one" in daemon.log


@needs_fake
def test_handles_are_not_kept(store, start, fake, folder):
    """Memory behind an IPC handle ends with the process."""
    daemon = store.start(start, *fake(), "--export", "ipc")
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m")
        client.call("Pin", name="m")
    daemon.sync()
    store.receive()
    assert not store.entries
