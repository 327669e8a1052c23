"""A call of a GPU's driver does not return: that GPU is lost, and all else goes on. On a stand-in for the runtime."""
import os
import signal
import time

import pytest
from harness import MIB, fake_gpu_folder, load_fd, module_folder, states, tensor_model, wait_until
from rocmforge_wire import WireError

FAKE = fake_gpu_folder()
TIMEOUT = 1
PATIENCE = 5  # of the daemon that ends

pytestmark = pytest.mark.skipif(not FAKE, reason="this build has no module for AMD GPUs (hipcc is not installed)")


class Hang:
    def __init__(self, path):
        self.path = path

    def begin(self, call, device=0):
        part = self.path.with_suffix(".part")
        part.write_text(f"{call} {device}")
        os.replace(part, self.path)

    def end(self):
        self.path.unlink(missing_ok=True)


@pytest.fixture
def hang(folder, start):
    hang = Hang(folder / "hang")
    yield hang
    hang.end()


@pytest.fixture
def two(request, start, folder, hang):
    """A daemon with two GPUs, ended at last although one of them may hang."""
    env = {"LD_LIBRARY_PATH": str(FAKE), "ROCMFORGE_MODULE_DIR": str(module_folder()), "FAKE_HIP_DEVICES": "2",
           "FAKE_HIP_HANG": str(hang.path)}
    daemon = start("--device", "hip", "--workers", "2", "--device-timeout", str(TIMEOUT), "--keep-freed", str(getattr(request, "param", 0)),
                   env=env)
    yield daemon
    if daemon.process.poll() is None:
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: daemon.process.poll() is not None)
        assert daemon.process.returncode == 1
    assert "Sanitizer" not in daemon.log, daemon.log


@pytest.fixture
def path(folder):
    return tensor_model(folder / "m.gguf", 4 * MIB)


def devices(client):
    return {device["id"]: device["state"] for device in client.call("Devices")["devices"]}


CALLS = ["hipMemcpyAsync", "hipEventRecord", "hipEventQuery", "hipMemCreate", "hipMemExportToShareableHandle",
         "hipMemGetInfo"]


@pytest.mark.parametrize("call", CALLS)
def test_load(two, hang, path, call):
    with two.client() as client, two.client() as other, two.client() as third:
        lease = load_fd(client, path, name="there", device="hip:0", lease=True) and client.call("Attach", name="there")["lease"]
        load_fd(other, path, name="host", device="host", form="f32")
        hang.begin(call, 0)
        with open(path, "rb") as file:
            other.send("Load", {"fds": [0], "name": "m", "device": "hip:0", "form": "f32"}, fds=[file.fileno()])
        third.send("Devices")
        with pytest.raises(WireError, match="DeviceError"):
            other.reply()
        third.reply()
        assert devices(third) == {"hip:0": "failed", "hip:1": "ready", "host": "ready"}
        assert "its driver has not answered for" in two.log
        status = client.call("Status")
        assert status["draining"] == ["there"]
        client.call("Detach", lease=lease)
        for device in ("hip:1", "host", "auto"):
            load_fd(third, path, name=f"on-{device.replace(':', '')}", device=device, form="f32")
        assert third.call("Verify", name="on-hip1")["mismatches"] == []
    began = time.monotonic()
    two.process.send_signal(signal.SIGTERM)
    wait_until(lambda: two.process.poll() is not None)
    assert time.monotonic() - began < PATIENCE + 3


def test_verify(two, hang, path):
    with two.client() as client, two.client() as other:
        load_fd(client, path, name="m", device="hip:0")
        hang.begin("hipMemcpyAsync", 0)
        client.send("Verify", {"name": "m"})
        with pytest.raises(WireError, match="DeviceError"):
            client.reply()
        assert devices(other)["hip:0"] == "failed"
        load_fd(other, path, name="n", device="hip:1")


def test_unload(two, hang, path):
    """The memory is not given back, and others do not notice."""
    with two.client() as client, two.client() as other:
        load_fd(client, path, name="m", device="hip:0")
        load_fd(client, path, name="n", device="hip:0", form="f32")
        hang.begin("hipMemUnmap", 0)
        client.send("Unload", {"name": "m"})
        wait_until(lambda: devices(other)["hip:0"] == "failed")
        load_fd(other, path, name="o", device="hip:1")
        assert states(two)["n"] == "failed"
        other.call("Unload", name="n")
        assert states(two) == {"m": "unloading", "o": "resident"}


@pytest.mark.parametrize("two", [1], indirect=True)
def test_memory_that_is_kept(two, hang, path):
    """Memory of an unloaded model goes back to the driver later: nobody waits for that."""
    with two.client() as client, two.client() as other:
        load_fd(client, path, name="m", device="hip:0")
        hang.begin("hipMemUnmap", 0)
        client.call("Unload", name="m")
        assert states(two) == {}
        wait_until(lambda: devices(other)["hip:0"] == "failed")
        load_fd(other, path, name="o", device="hip:1")
        assert states(two) == {"o": "resident"}
