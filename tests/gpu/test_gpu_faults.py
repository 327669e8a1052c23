"""Calls of the GPU's runtime that fail, each in its turn, under the real daemon and under its clients."""
import contextlib
import os
import subprocess

import pytest
from conftest import FAKE, MODULES
from harness import EXPORTS, wait_until, wire_error
from rocmforge_wire import WireError
from test_gpu_daemon import devices, load, unload

pytestmark = pytest.mark.fake

# Of a load, its verification and its unloading. What else the module calls it calls when it starts, or ends.
CALLS_OF_ANY_LOAD = {
    *("hipSetDevice", "hipMemsetAsync", "hipMemcpyAsync", "hipStreamWaitEvent", "hipEventCreateWithFlags"),
    *("hipEventDestroy", "hipEventRecord", "hipEventQuery", "hipEventSynchronize", "hipEventElapsedTime"),
    "hipModuleLaunchKernel",
}
# And those that depend on how memory is exported.
CALLS_OF_A_LOAD = {
    "ipc": {*CALLS_OF_ANY_LOAD, "hipMalloc", "hipFree", "hipIpcGetMemHandle"},
    "fd": {
        *CALLS_OF_ANY_LOAD,
        *("hipMemCreate", "hipMemAddressReserve", "hipMemMap", "hipMemSetAccess", "hipMemExportToShareableHandle"),
        *("hipMemUnmap", "hipMemAddressFree", "hipMemRelease"),
    },
}


def calls_of(module):
    """All calls of the runtime that a module can make."""
    if not FAKE:
        return []
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", MODULES / module], check=True, capture_output=True, text=True
    ).stdout.split()
    return sorted({symbol.partition("@")[0] for symbol in symbols if symbol.startswith("hip")} - {"hipGetErrorString"})


class Fault:
    """What a process that was started with FAKE_HIP_FAIL=self.setting is made to fail with."""

    def __init__(self, path):
        self.path = path
        self.setting = f"@{path}"

    def set(self, spec):
        new = self.path.with_suffix(".new")
        new.write_text(spec)
        os.replace(new, self.path)

    def fired(self):
        return not self.path.exists()

    def off(self):
        self.path.unlink(missing_ok=True)


@pytest.fixture
def fault(folder):
    return Fault(folder / "fault")


def cycle(daemon, path):
    """All that is done with a model. Returns the error, or None."""
    found = None
    with daemon.client(timeout=60) as client:
        try:
            client.call("Load", path=str(path), name="m", device="hip:0")
            client.call("Attach", name="m")
            assert client.call("Verify", name="m")["mismatches"] == []
        except WireError as error:
            found = error
    with daemon.client() as client, contextlib.suppress(WireError):
        wait_until(lambda: all(model["leases"] == 0 for model in client.call("List")["models"]))
        client.call("Unload", name="m")
    wait_until(lambda: daemon.used() == 0)
    return found


@pytest.mark.parametrize("export", EXPORTS)
def test_each_call_of_a_load_fails(start, small_model, fault, export):
    """An error that names the call, or none; nothing is left, and the device is well."""
    daemon = start("--workers", "2", "--staging", "1Mi", "--keep-freed", "0", "--export", export, FAKE_HIP_FAIL=fault.setting)
    made = {}
    for call in calls_of("device-hip.so"):
        for n in range(1, 1000):
            fault.set(f"{call}:{n}:1")
            error = cycle(daemon, small_model)
            if not fault.fired():
                fault.off()
                assert error is None
                break
            assert error is None or (error.name, error.parameters["call"]) == ("DeviceError", call), error
            assert devices(daemon)["hip:0"]["state"] == "ready"
            made[call] = n
    assert set(made) >= CALLS_OF_A_LOAD[export], made
    assert cycle(daemon, small_model) is None


def assert_failed(daemon, path):
    wait_until(lambda: devices(daemon)["hip:0"]["state"] == "failed")
    with pytest.raises(WireError):
        load(daemon, path, "again", device="hip:0", form="f32")
    assert load(daemon, path, "host")["device"] == "host"
    unload(daemon, "host")


@pytest.mark.parametrize("export, call", [(export, call) for export in EXPORTS for call in sorted(CALLS_OF_A_LOAD[export])])
def test_call_of_a_load_loses_the_device(start, small_model, fault, export, call):
    daemon = start("--workers", "2", "--staging", "1Mi", "--keep-freed", "0", "--export", export, FAKE_HIP_FAIL=fault.setting)
    fault.set(f"{call}:1:719")
    cycle(daemon, small_model)
    assert fault.fired()
    cycle(daemon, small_model)
    assert_failed(daemon, small_model)


@pytest.mark.parametrize("n", [1, 7, 20, 35, 50])
def test_nothing_works_any_more(start, small_model, fault, n):
    """Whatever code says so."""
    daemon = start("--workers", "2", "--staging", "1Mi", "--keep-freed", "0", FAKE_HIP_FAIL=fault.setting)
    fault.set(f"*:{n}+:999")
    cycle(daemon, small_model)
    assert fault.fired()
    cycle(daemon, small_model)
    assert_failed(daemon, small_model)


@pytest.mark.parametrize("call", calls_of("device-hip.so"))
@pytest.mark.parametrize("code", [999, 719])
def test_first_call_fails(start, small_model, call, code):
    """When the daemon starts, then, for most."""
    daemon = start("--staging", "1Mi", FAKE_HIP_FAIL=f"{call}:1:{code}")
    with contextlib.suppress(WireError):
        load(daemon, small_model, "m")
        unload(daemon, "m")
    wait_until(lambda: daemon.used() == 0)
    assert load(daemon, small_model, "host", device="host")["device"] == "host"


def test_device_without_a_name_or_an_architecture(start):
    (call,) = [call for call in calls_of("device-hip.so") if call.startswith("hipGetDeviceProperties")]
    daemon = start(FAKE_HIP_NAMELESS=1, FAKE_HIP_FAIL=f"{call}:1:1")
    assert devices(daemon)["hip:0"]["name"] == "AMD GPU at 0000:01:00.0"


def client_calls_that_fail(daemon, fault, code):
    """Makes each call of a client fail, once at each time that it is made. Returns those that are made."""
    made = set()
    with daemon.client() as client:
        tensor = client.call("Show", name="m")["tensors"][0]["name"]
    expected = daemon.rfctl("dump", "m", tensor, text=False).stdout
    for call in calls_of("import-hip.so"):
        for n in range(1, 100):
            fault.set(f"{call}:{n}:{code}")
            done = daemon.rfctl("dump", "m", tensor, check=False, text=False)
            if not fault.fired():
                fault.off()
                break
            made.add(call)
            assert done.returncode in (0, 1), done.stderr
            if done.returncode == 0:
                assert done.stdout == expected
            else:
                assert f"{call}: ".encode() in done.stderr and f"({code})".encode() in done.stderr
    return made


@pytest.mark.parametrize("code", [999, 719, 2])
def test_each_call_of_a_client_fails(start, small_model, monkeypatch, fault, code):
    """What it reads is right, or the call is named; and its lease is given back."""
    made = set()
    for export in EXPORTS:
        daemon = start("--export", export, FAKE_HIP_DEVICES=2)
        load(daemon, small_model, "m", device="hip:1")
        with monkeypatch.context() as patch:
            patch.setenv("FAKE_HIP_DEVICES", "2")
            patch.setenv("FAKE_HIP_FAIL", fault.setting)
            made |= client_calls_that_fail(daemon, fault, code)
        with daemon.client() as client:
            wait_until(lambda: client.call("List")["models"][0]["leases"] == 0)
            client.call("Unload", name="m")
        daemon.stop()
    assert made == set(calls_of("import-hip.so"))


def test_kernels_that_are_not_there_one_by_one(start, small_model):
    daemon = start(FAKE_HIP_FAIL="hipModuleGetFunction:1+:209")
    assert_without_kernels(daemon, small_model, "hipModuleGetFunction")


@pytest.mark.parametrize("code", [98, 209])
def test_kernels_that_cannot_be_launched(start, small_model, code):
    daemon = start(FAKE_HIP_FAIL=f"hipModuleLaunchKernel:1+:{code}")
    assert_without_kernels(daemon, small_model, "hipModuleLaunchKernel")


def assert_without_kernels(daemon, path, call):
    assert f"device=hip:0 has no kernels, so the CPU dequantises for it: {call}: " in daemon.log
    assert devices(daemon)["hip:0"]["noKernels"].startswith(f"{call}: ")
    out = daemon.rfctl("load", path, "--name", "m", "--dequant", "gpu").stdout
    assert "dequantised by the CPU: hip:0 has no kernels for it" in out
    with daemon.client() as client:
        assert client.call("Verify", name="m")["mismatches"] == []
    unload(daemon, "m")


def test_a_launch_that_loses_the_device(start, small_model):
    """The trial of the kernels, when the daemon starts, is no reason to do without them then."""
    daemon = start(FAKE_HIP_FAIL="kernel:1:700")
    assert set(devices(daemon)) == {"host"}
    assert "illegal address (700)" in daemon.log
    with wire_error("DeviceNotFound"):
        load(daemon, small_model, "m", device="hip")
