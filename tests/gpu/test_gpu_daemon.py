"""Daemon, rfctl and a GPU, or what stands in for one."""
import contextlib
import hashlib
import json
import random
import re
import signal
import struct
import subprocess
import sys
import time

import make_model
import pytest
from conftest import FAKE, write_model
from harness import ROOT, Daemon, build_folder, wait_until, wire_error
from rocmforge_wire import WireError


def devices(daemon):
    with daemon.client() as client:
        return {device["id"]: device for device in client.call("Devices")["devices"]}


def load(daemon, path, name, **parameters):
    with daemon.client(timeout=120) as client:
        return client.call("Load", path=str(path), name=name, **parameters)["model"]


def unload(daemon, *names):
    with daemon.client() as client:
        for name in names:
            client.call("Unload", name=name)


def digests(daemon, name):
    """What a client finds in memory, tensor by tensor; some of them where each process has to start a GPU's runtime."""
    with daemon.client() as client:
        tensors = client.call("Show", name=name)["tensors"]
    if not FAKE:
        tensors = tensors[:: max(1, len(tensors) // 6)]
    found = {}
    for tensor in tensors:
        out = daemon.rfctl("dump", name, tensor["name"], text=False).stdout
        assert len(out) == tensor["size"]
        found[tensor["name"]] = hashlib.sha256(out).hexdigest()
    return found


def test_gpu_is_what_auto_means(start, small_model, kind):
    daemon = start()
    gpu = devices(daemon)[f"{kind}:0"]
    assert gpu["state"] == "ready" and gpu["link"] > 0 and gpu["total"] > 0
    assert gpu["pci"]
    assert re.fullmatch(r"GPU-[0-9a-f]{16}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", gpu["uuid"])
    assert load(daemon, small_model, "small")["device"].startswith(kind)
    assert load(daemon, small_model, "host", device="host", form="f32")["device"] == "host"
    unload(daemon, "small", "host")


def write_shared(path):
    """Tensors of 2, 1 and 2 MB, q4_0; the second has two names, which stand at the same bytes."""
    type_ = make_model.load_types()["q4_0"]
    columns = [1 << 22, 1 << 21, 1 << 21, 1 << 22]
    sizes = [make_model.row_bytes(type_, n) for n in columns]
    offsets = [0, sizes[0], sizes[0], sizes[0] + sizes[1]]
    infos = b""
    for i, (n, offset) in enumerate(zip(columns, offsets)):
        infos += make_model.string(f"t{i}") + struct.pack("<IQIQ", 1, n, type_.id, offset)
    header = b"GGUF" + struct.pack("<IQQ", 3, 4, 0) + infos
    rng = random.Random(7)
    with open(path, "wb") as out:
        out.write(header + bytes(-len(header) % make_model.ALIGNMENT))
        make_model.write_blocks(out, offsets[3] + sizes[3], type_, make_model.pattern(type_, rng), rng)


@pytest.mark.parametrize("form", ["auto", "native"])
def test_tensors_that_share_bytes(start, folder, form, kind):
    write_shared(folder / "shared.gguf")
    daemon = start("--staging", "12Mi")
    load(daemon, folder / "shared.gguf", "shared", form=form, device=kind)
    with daemon.client(timeout=120) as client:
        assert client.call("Verify", name="shared")["mismatches"] == []
    unload(daemon, "shared")


@pytest.mark.parametrize("form", ["auto", "native", "f32", "bf16"])
def test_every_type(start, every_type, form, kind):
    """The GPU's decoding, the CPU's on its way to the GPU, and the host's: the same bytes for a client."""
    daemon = start()
    load(daemon, every_type, "gpu", form=form, device=kind, dequant="gpu")
    with daemon.client(timeout=120) as client:
        assert client.call("Verify", name="gpu")["mismatches"] == []
    found = digests(daemon, "gpu")
    unload(daemon, "gpu")
    load(daemon, every_type, "cpu", form=form, device=kind, dequant="cpu")
    assert digests(daemon, "cpu") == found
    unload(daemon, "cpu")
    load(daemon, every_type, "host", form=form, device="host")
    assert digests(daemon, "host") == found
    unload(daemon, "host")
    assert all(device["used"] == 0 for device in devices(daemon).values())


@pytest.mark.parametrize("streams", [1, 2, 4, 8])
def test_streams(start, large_model, streams):
    daemon = start("--streams", str(streams), "--workers", "4", FAKE_HIP_SLOW="copy=300,kernel=300,clear=5000")
    load(daemon, large_model, "m")
    with daemon.client(timeout=120) as client:
        assert client.call("Verify", name="m")["mismatches"] == []


def test_two_loads_at_once(start, large_model, every_type):
    daemon = start("--workers", "4")
    with daemon.client(timeout=120) as one, daemon.client(timeout=120) as other:
        one.send("Load", {"path": str(large_model), "name": "one"})
        other.send("Load", {"path": str(every_type), "name": "other"})
        assert [client.reply()[0]["model"]["state"] for client in (one, other)] == ["resident", "resident"]
        assert one.call("Verify", name="one")["mismatches"] == []
        assert one.call("Verify", name="other")["mismatches"] == []


def test_cancel(start, large_model, kind):
    daemon = start(FAKE_HIP_SLOW="copy=20000,kernel=20000")
    for delay in (0, 0.005, 0.02, 0.05):
        with daemon.client(timeout=60) as loader, daemon.client() as client:
            loader.send("Load", {"path": str(large_model), "name": "m"})
            time.sleep(delay)
            with contextlib.suppress(WireError):
                client.call("Cancel", name="m")
            try:
                loader.reply()
                unload(daemon, "m")
            except WireError as error:
                assert error.name in ("Cancelled", "ModelNotFound")
        wait_until(lambda: devices(daemon)[f"{kind}:0"]["used"] == 0)
    load(daemon, large_model, "m")
    with daemon.client(timeout=60) as client:
        assert client.call("Verify", name="m")["mismatches"] == []


HOLDER = """
import sys
sys.path.insert(0, sys.argv[2])
from rocmforge_wire import Client
client = Client(sys.argv[1])
client.call("Attach", name="m")
print("attached", flush=True)
sys.stdin.read()
"""


def holder(daemon):
    """A process with a lease, and nothing else."""
    command = [sys.executable, "-c", HOLDER, str(daemon.socket), str(ROOT / "tests" / "lib")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "attached\n"
    return process


def reader(daemon):
    """One that has opened the handle: it writes a tensor to a pipe that nobody empties."""
    with daemon.client() as client:
        tensor = max(client.call("Show", name="m")["tensors"], key=lambda tensor: tensor["size"])
    assert tensor["size"] > 128 << 10
    command = [build_folder() / "client" / "rfctl" / "rfctl", "--socket", daemon.socket, "dump", "m", tensor["name"]]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert len(process.stdout.read(1)) == 1
    return process


@pytest.mark.parametrize("who", [holder, reader])
def test_client_killed(start, small_model, kind, who):
    daemon = start()
    load(daemon, small_model, "m")
    with who(daemon) as process, daemon.client() as client:
        with wire_error("ModelBusy"):
            client.call("Unload", name="m")
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: client.call("List")["models"][0]["leases"] == 0)
        client.call("Unload", name="m")
    assert devices(daemon)[f"{kind}:0"]["used"] == 0


def test_daemon_killed(start, small_model):
    """Clients see the connection close; the next daemon starts on the same socket."""
    daemon = start()
    load(daemon, small_model, "m")
    with holder(daemon) as process:
        daemon.process.kill()
        daemon.process.wait()
        process.stdin.close()
        assert process.wait(30) == 0
    again = start()
    load(again, small_model, "m")
    assert digests(again, "m")


def test_eight_clients(start, small_model):
    daemon = start()
    load(daemon, small_model, "m")
    expected = digests(daemon, "m")
    tensor = next(iter(expected))
    command = [str(daemon.rfctl("version").args[0]), "--socket", str(daemon.socket), "dump", "m", tensor]
    dumps = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(8)]
    for dump in dumps:
        out, _ = dump.communicate(timeout=60)
        assert dump.returncode == 0 and hashlib.sha256(out).hexdigest() == expected[tensor]
    with daemon.client() as client:
        wait_until(lambda: client.call("List")["models"][0]["leases"] == 0)


def test_again_and_again(start, small_model, kind):
    daemon = start()
    load(daemon, small_model, "m")
    unload(daemon, "m")
    fds = daemon.fds()
    for _ in range(200):
        load(daemon, small_model, "m")
        unload(daemon, "m")
    assert devices(daemon)[f"{kind}:0"]["used"] == 0
    wait_until(lambda: len(daemon.fds()) <= len(fds))


def test_client_without_the_module(start, small_model, folder, monkeypatch):
    daemon = start()
    load(daemon, small_model, "m")
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(folder))
    with daemon.client() as client:
        tensor = client.call("Show", name="m")["tensors"][0]["name"]
    done = daemon.rfctl("dump", "m", tensor, check=False)
    assert done.returncode != 0 and "no module" in done.stderr


@pytest.mark.fake
def test_client_that_does_not_see_the_device(start, small_model, monkeypatch):
    daemon = start(FAKE_HIP_DEVICES=2)
    load(daemon, small_model, "m", device="hip:1")
    with daemon.client() as client:
        tensor = client.call("Show", name="m")["tensors"][0]["name"]
    monkeypatch.setenv("FAKE_HIP_DEVICES", "1")
    done = daemon.rfctl("dump", "m", tensor, check=False)
    assert done.returncode != 0 and "does not see" in done.stderr


@pytest.mark.fake
def test_no_device(start, small_model, folder):
    daemon = start(FAKE_HIP_DEVICES=0)
    assert list(devices(daemon)) == ["host"]
    assert load(daemon, small_model, "m")["device"] == "host"
    refused = Daemon(folder, "--device", "hip", socket=folder / "other", env={"FAKE_HIP_DEVICES": "0"})
    assert refused.process.wait(30) != 0
    assert "no hip device" in refused.log and "no device" in refused.log


@pytest.mark.fake
@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("texts", ["names", "sentences"])
def test_no_device_in_words_of_our_own(start, count, texts):
    """Runtimes say it in different words, or count none and call it a success."""
    daemon = start(FAKE_HIP_DEVICES=count, FAKE_HIP_TEXTS=texts)
    why = "no AMD GPU that ROCm can use, or no right to open /dev/kfd (100)"
    assert f"no hip device: hipGetDeviceCount: no device: {why}" in daemon.log


@pytest.mark.fake
def test_device_without_a_name(start):
    daemon = start(FAKE_HIP_DEVICES=2, FAKE_HIP_NAMELESS=1)
    assert [devices(daemon)[f"hip:{i}"]["name"] for i in (0, 1)] == ["gfx90a at 0000:01:00.0", "gfx90a at 0000:02:00.0"]
    assert "gfx90a at 0000:01:00.0" in daemon.rfctl("devices").stdout


@pytest.mark.fake
def test_kernels_for_another_device(start, small_model):
    """Decoded on the CPU instead, and that is said."""
    daemon = start(FAKE_HIP_NO_BINARY=1)
    assert "device=hip:0 has no kernels, so the CPU dequantises for it: hipModuleLoadData" in daemon.log
    assert "hipModuleLoadData" in devices(daemon)["hip:0"]["noKernels"]
    assert "no kernels" in daemon.rfctl("devices").stdout
    out = daemon.rfctl("load", small_model, "--name", "m", "--dequant", "gpu").stdout
    assert "dequantised by the CPU: hip:0 has no kernels for it" in out
    with daemon.client() as client:
        assert client.call("Verify", name="m")["mismatches"] == []


@pytest.mark.fake
def test_kernels_that_the_driver_refuses(start, small_model):
    daemon = start(FAKE_HIP_FAIL="hipModuleLoadData:1:222")
    assert devices(daemon)["hip:0"]["noKernels"].endswith("(222)")
    load(daemon, small_model, "m")


@pytest.mark.fake
def test_a_device_that_does_not_answer(start, small_model, monkeypatch):
    """The other one is used, and why there is only one can be read."""
    monkeypatch.setenv("FAKE_HIP_DEVICES", "2")
    daemon = start(FAKE_HIP_FAIL="hipDeviceGetUuid:1:999")
    assert set(devices(daemon)) == {"hip:1", "host"}
    assert "a hip device cannot be used: hipDeviceGetUuid" in daemon.log


NO_EXPORT = "hipIpcGetMemHandle: invalid argument (1)"


@pytest.mark.fake
def test_a_device_whose_memory_cannot_be_exported(start, small_model, folder):
    """No client could open what is in it, and each load would fail at its end."""
    daemon = start("--export", "ipc", FAKE_HIP_FAIL="hipIpcGetMemHandle:1+:1")
    assert set(devices(daemon)) == {"host"}
    assert f"warning: no hip device: {NO_EXPORT}" in daemon.log, "for there is one"
    assert load(daemon, small_model, "m")["device"] == "host"
    options = ["--device", "hip", "--export", "ipc"]
    refused = Daemon(folder, *options, socket=folder / "other", env={"FAKE_HIP_FAIL": "hipIpcGetMemHandle:1+:1"})
    assert refused.process.wait(30) != 0
    assert f"no hip device: {NO_EXPORT}" in refused.log


@pytest.mark.fake
def test_the_other_device_whose_memory_can(start, small_model, monkeypatch):
    monkeypatch.setenv("FAKE_HIP_DEVICES", "2")
    daemon = start("--export", "ipc", FAKE_HIP_FAIL="hipIpcGetMemHandle:1:1")
    assert set(devices(daemon)) == {"hip:1", "host"}
    assert f"a hip device cannot be used: {NO_EXPORT}" in daemon.log
    assert load(daemon, small_model, "m")["device"] == "hip:1"


@pytest.mark.fake
@pytest.mark.parametrize("leak", [False, True])
def test_exported_memory_that_does_not_come_back(start, small_model, leak):
    """The device is used: memory that is lost is lost with each load, and what is said at the start is why."""
    daemon = start(**({"FAKE_HIP_LEAK": "1"} if leak else {}))
    assert ("device=hip:0: memory that was exported does not come back" in daemon.log) == leak
    assert load(daemon, small_model, "m")["device"] == "hip:0"


@pytest.mark.fake
def test_trace_on_a_slow_device(start, large_model, folder):
    """What is on a row of the trace follows one another; and all rows together last no longer than the load."""
    daemon = start("--streams", "2", FAKE_HIP_SLOW="kernel=30000")
    trace = folder / "trace.json"
    out = daemon.rfctl("--json", "load", large_model, "--name", "m", "--trace", trace).stdout
    phases = json.loads(out.strip().splitlines()[-1])["phases"]
    assert phases["kernel"] <= phases["total"] and phases["copy"] <= phases["total"]
    rows = {}
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event["ph"] == "X":
            rows.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    for spans in rows.values():
        spans.sort()
        assert all(end <= begin + 1 for (_, end), (begin, _) in zip(spans, spans[1:]))
    # A model that is there already has a trace too, an empty one.
    daemon.rfctl("load", large_model, "--name", "m", "--trace", trace)
    assert json.loads(trace.read_text())["traceEvents"] == []


@pytest.mark.fake
def test_model_goes_where_most_is_free(start, model_folder, small_model, monkeypatch):
    monkeypatch.setenv("FAKE_HIP_DEVICES", "2")
    daemon = start()
    other = write_model(model_folder / "other.gguf", 3, 1 << 20, ("q4_0",))
    first = load(daemon, small_model, "first")["device"]
    second = load(daemon, other, "second")["device"]
    assert {first, second} == {"hip:0", "hip:1"}
    assert load(daemon, small_model, "third", form="f32", device="hip:1")["device"] == "hip:1"
    for name in ("first", "second", "third"):
        with daemon.client() as client:
            assert client.call("Verify", name=name)["mismatches"] == []
        assert digests(daemon, name)


@pytest.mark.fake
@pytest.mark.parametrize("fault, code", [("kernel:5:700", 700), ("hipStreamWaitEvent:1:719", 719)])
def test_device_is_lost(start, large_model, small_model, fault, code):
    """Its models have failed, and the daemon lives."""
    daemon = start("--streams", "2", FAKE_HIP_FAIL=fault)
    if devices(daemon)["hip:0"]["state"] == "ready":
        with wire_error("DeviceError") as parameters:
            load(daemon, large_model, "m", device="hip")
        assert parameters["code"] == code and parameters["call"] and parameters["text"]
    wait_until(lambda: devices(daemon)["hip:0"]["state"] == "failed")
    assert load(daemon, small_model, "host")["device"] == "host"
    with pytest.raises(WireError):
        load(daemon, small_model, "again", device="hip:0", form="f32")


@pytest.mark.fake
def test_error_that_is_no_loss(start, large_model, small_model):
    daemon = start(FAKE_HIP_FAIL="hipModuleLaunchKernel:3:1")
    with wire_error("DeviceError") as parameters:
        load(daemon, large_model, "m")
    assert parameters == {"call": "hipModuleLaunchKernel", "code": 1, "text": "invalid argument"}
    assert devices(daemon)["hip:0"]["state"] == "ready"
    assert load(daemon, small_model, "m")["device"] == "hip:0"


@pytest.mark.fake
def test_out_of_memory(start, large_model, small_model):
    """By the ledger, and by the driver, which knows of others."""
    daemon = start(FAKE_HIP_MEMORY=300 << 20)
    with wire_error("OutOfDeviceMemory") as parameters:
        load(daemon, large_model, "m", device="hip:0", form="f32")
    assert parameters["needed"] > parameters["available"] > 0
    assert load(daemon, small_model, "small", device="hip:0")["device"] == "hip:0"


def test_phases(start, large_model):
    daemon = start()
    out = daemon.rfctl("--json", "load", large_model, "--name", "m").stdout
    last = json.loads(out.strip().splitlines()[-1])
    phases = last.get("phases") or last
    assert phases["copy"] > 0 and phases["kernel"] > 0 and phases["read"] > 0 and phases["total"] > 0


if FAKE:
    # Whichever of a load's calls fails, the daemon lives and nothing leaks.
    @pytest.mark.fake
    @pytest.mark.parametrize("call", ["hipModuleLaunchKernel", "hipEventRecord", "hipMemsetAsync", "hipStreamWaitEvent", "hipMemExportToShareableHandle"])
    def test_any_call_fails_later(start, large_model, small_model, call):
        daemon = start(FAKE_HIP_FAIL=f"{call}:40:999" if "Async" in call or "Event" in call else f"{call}:2:999")
        with contextlib.suppress(WireError):
            load(daemon, large_model, "m", device="hip")
            unload(daemon, "m")
        wait_until(lambda: devices(daemon)["hip:0"]["used"] == 0)
        assert load(daemon, small_model, "small")["state"] == "resident"
