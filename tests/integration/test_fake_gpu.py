"""The GPU module end to end, on the fake HIP runtime: the real daemon, the real client library in another process, and
memory that goes between them by descriptor or by IPC handle. It proves the logic, not the hardware."""
import os
import shutil
import struct
import subprocess
import time

import make_model
import pytest
from harness import (
    EXPORTS,
    MIB,
    TIMEOUT,
    USER,
    build_folder,
    fake_gpu_folder,
    module_folder,
    sparse_model,
    states,
    wait_until,
    wire_error,
)

FAKE = fake_gpu_folder()
MODULES = module_folder()

pytestmark = pytest.mark.skipif(not FAKE, reason="this build has no module for AMD GPUs (hipcc is not installed)")


both_exports = pytest.mark.parametrize("export", EXPORTS, indirect=True)


@pytest.fixture
def export(request):
    """How the daemon exports memory of GPUs."""
    return EXPORTS[getattr(request, "param", "fd")]


@pytest.fixture
def fake_gpu(start, monkeypatch, export):
    """Starts a daemon with two fake GPUs; environment variables set the fake up."""

    def start_fake(*options, env=None, **settings):
        environment = {"LD_LIBRARY_PATH": str(FAKE), "ROCMFORGE_MODULE_DIR": str(MODULES), "FAKE_HIP_DEVICES": "2"}
        for name, value in {**environment, **settings}.items():
            monkeypatch.setenv(name, value)
        return start("--device", "hip", "--export", export.kind, *options, env=env)

    return start_fake


@both_exports
def test_devices(fake_gpu, export):
    daemon = fake_gpu()
    with daemon.client() as client:
        devices = client.call("Devices")["devices"]
    assert [device["id"] for device in devices] == ["hip:0", "hip:1", "host"]
    assert [device["export"] for device in devices] == [export.kind, export.kind, "memfd"]
    header, *rows = daemon.rfctl("devices").stdout.splitlines()
    column = header.index("EXPORT")
    assert [row[column:].split()[0] for row in rows] == [export.kind, export.kind, "memfd"]


@pytest.mark.parametrize("without", ["NO_VMM", "NO_READ_ONLY"])
def test_descriptors_that_do_not_work(start, monkeypatch, small_model, folder, without):
    """Handles are exported instead, and why is told; unless nothing but descriptors will do."""
    for name, value in {"LD_LIBRARY_PATH": FAKE, "ROCMFORGE_MODULE_DIR": MODULES, f"FAKE_HIP_{without}": "1"}.items():
        monkeypatch.setenv(name, str(value))
    daemon = start("--device", "hip")
    call = {"NO_VMM": "hipMemGetAllocationGranularity", "NO_READ_ONLY": "hipMemSetAccess"}[without]
    why = f"{call}: not supported (801)"
    assert f"device=hip:0 exports memory by IPC handle, because descriptors do not work: {why}" in daemon.log
    with daemon.client() as client:
        assert client.call("Load", path=str(small_model), name="m")["model"]["device"] == "hip:0"
        assert client.call("Attach", name="m")["device"]["export"] == "ipc"
        tensor = client.call("Show", name="m")["tensors"][0]
    assert len(daemon.rfctl("dump", "m", tensor["name"], text=False).stdout) == tensor["size"]
    refused = start("--device", "hip", "--export", "fd", socket=folder / "other", ready=False)
    assert refused.process.wait(TIMEOUT) == 1
    assert f"no hip device: {why}" in refused.log


def test_a_device_that_wants_larger_granules(fake_gpu, small_model):
    """The model takes a multiple of them, and is read by a process that computes the same."""
    daemon = fake_gpu(FAKE_HIP_GRANULARITY=str(16 * MIB))
    with daemon.client() as client:
        model = client.call("Load", path=str(small_model), name="m", device="hip:0")["model"]
        assert model["bytes"] > 0 and model["bytes"] % (16 * MIB) == 0
        assert client.call("Devices")["devices"][0]["used"] == model["bytes"]
        client.call("Load", path=str(small_model), name="host", device="host")
        tensor = client.call("Show", name="m")["tensors"][-1]["name"]
    dumped = [daemon.rfctl("dump", name, tensor, text=False).stdout for name in ("m", "host")]
    assert dumped[0] == dumped[1]


def test_descriptors_are_what_is_taken(start, monkeypatch):
    for name, value in {"LD_LIBRARY_PATH": FAKE, "ROCMFORGE_MODULE_DIR": MODULES}.items():
        monkeypatch.setenv(name, str(value))
    daemon = start("--device", "hip")
    with daemon.client() as client:
        assert client.call("Devices")["devices"][0]["export"] == "fd"
    assert "by IPC handle" not in daemon.log


def test_module_folder_that_is_not_there(fake_gpu, tmp_path):
    """The module is in the second folder. Not finding it in the first is no fault of the device."""
    daemon = fake_gpu(ROCMFORGE_MODULE_DIR=f"{tmp_path}/nowhere:{MODULES}")
    with daemon.client() as client:
        assert [device["id"] for device in client.call("Devices")["devices"]] == ["hip:0", "hip:1", "host"]
    assert "device=hip:0" in daemon.log
    assert "cannot be used" not in daemon.log and "cannot open" not in daemon.log


@pytest.mark.parametrize("form", ["native", "f32", "f16", "bf16", "auto"])
@pytest.mark.parametrize("dequant", ["cpu", "gpu"])
@both_exports
def test_load_and_read_elsewhere(fake_gpu, small_model, form, dequant):
    """What another process reads in place is what the host device has for the same file."""
    daemon = fake_gpu()
    with daemon.client() as client:
        on_gpu = client.call("Load", path=str(small_model), name="gpu", form=form, device="hip:0", dequant=dequant)
        assert on_gpu["model"]["device"] == "hip:0"
        client.call("Load", path=str(small_model), name="host", form=form, device="host")
        assert client.call("Verify", name="gpu")["mismatches"] == []
        tensors = client.call("Show", name="gpu")["tensors"]
    for tensor in tensors:
        dumped = [daemon.rfctl("dump", name, tensor["name"], text=False).stdout for name in ("gpu", "host")]
        assert dumped[0] == dumped[1]
        assert len(dumped[0]) == tensor["size"]


@both_exports
def test_attach_gives_a_descriptor_or_a_handle(fake_gpu, small_model, export):
    with fake_gpu().client() as client:
        client.call("Load", path=str(small_model), name="small", device="hip:1")
        reply = client.call("Attach", name="small")
        assert reply["device"]["id"] == "hip:1"
        if export.kind == "fd":
            assert reply["fd"] == 0 and reply.get("handle") is None
        else:
            assert reply["handle"] and reply.get("fd") is None
        with wire_error("ModelBusy"):
            client.call("Unload", name="small")
        client.call("Detach", lease=reply["lease"])
        client.call("Unload", name="small")
        assert all(device["used"] == 0 for device in client.call("Devices")["devices"])


def test_two_gpus_have_budgets_of_their_own(fake_gpu, small_model):
    with fake_gpu().client() as client:
        first = client.call("Load", path=str(small_model), name="first", device="hip:0")["model"]
        second = client.call("Load", path=str(small_model), name="second", device="hip:1")["model"]
        assert first["id"] != second["id"]
        used = {device["id"]: device["used"] for device in client.call("Devices")["devices"]}
    assert used == {"hip:0": first["bytes"], "hip:1": second["bytes"], "host": 0}


def copy_for_all(folder):
    """What users need of a build that may stand in somebody's home, where they cannot come. Returns rfctl."""
    for where, pattern in (FAKE, "*.so*"), (MODULES, "*.so"), (build_folder() / "client", "*.so*"):
        for path in where.glob(pattern):
            if path.is_file():
                shutil.copy(path, folder)
    return shutil.copy(build_folder() / "client" / "rfctl" / "rfctl", folder)


@both_exports
def test_reading_as_another_user(monkeypatch, start_for_all, folder, small_model, export):
    """Memory of a daemon that is one user's is opened by a process of another's."""
    program = copy_for_all(folder)
    for name in "LD_LIBRARY_PATH", "ROCMFORGE_MODULE_DIR":
        monkeypatch.setenv(name, str(folder))
    daemon = start_for_all("--device", "hip", "--export", export.kind)
    for name, device in {"m": "hip", "host": "host"}.items():
        daemon.rfctl("load", small_model, "--name", name, "--device", device, "--public")
    with daemon.client() as client:
        tensor = client.call("Show", name="m")["tensors"][0]["name"]
    rfctl = [program, "--socket", daemon.socket]
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    dumped = [
        subprocess.run([*user, *rfctl, "dump", name, tensor], check=True, capture_output=True, timeout=TIMEOUT).stdout
        for name in ("m", "host")
    ]
    assert dumped[0] == dumped[1]


@pytest.mark.parametrize("form", ["native", "f32"])
def test_slow_files_are_read_with_fewer_calls(fake_gpu, slow_read, gated_model, form):
    """Where it is each call that takes the time, as in a network, small parts would cost too many of them."""
    slow = {**slow_read, "SLOW_READ_LEAST": "65536"}
    daemon = fake_gpu("--workers", "1", env=slow, FAKE_HIP_DEVICES="1")
    with daemon.client() as client:
        before = daemon.reads()
        client.call("Load", path=str(gated_model), form=form)
        assert daemon.reads() < before + 100  # of 256 parts
        assert client.call("Verify", name="gated")["mismatches"] == []


def test_a_slow_driver_holds_up_nobody_else(fake_gpu, small_model):
    """Devices and Plan ask the driver, and wait. Other clients are answered meanwhile."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_SLOW="info=1500000")
    with daemon.client() as client, daemon.client() as other:
        for method, parameters in (("Devices", {}), ("Plan", {"path": str(small_model)})):
            began = time.monotonic()
            client.send(method, parameters)
            slowest = 0
            while time.monotonic() - began < 1:
                asked = time.monotonic()
                other.call("Status")
                slowest = max(slowest, time.monotonic() - asked)
            client.reply()
            assert time.monotonic() - began >= 1.5, "the driver was not asked"
            assert slowest < 0.5


@both_exports
def test_end_while_slots_are_filled_for_nothing(fake_gpu, part_gate, gated_model, export):
    """The driver refuses the memory when slots are on their way already; and before they are back, the daemon ends."""
    daemon = fake_gpu(env=part_gate.env, FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=export.refuses(1))
    part_gate.close()
    with daemon.client() as client:
        client.send("Load", {"path": str(gated_model), "name": "m"})
        wait_until(lambda: [model["state"] for model in daemon.models()] == ["unloading"])
        daemon.process.terminate()
        wait_until(lambda: not daemon.socket.exists())
        part_gate.open()
    assert daemon.process.wait(TIMEOUT) == 0


@both_exports
def test_idle_models_go_when_the_driver_refuses(fake_gpu, small_model, export):
    """Though it said that it has the memory: it is in pieces, perhaps."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=export.refuses(2))
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        client.call("Load", path=str(small_model), name="again", form="f32")
        assert states(daemon) == {"again": "resident"}
        assert client.call("Verify", name="again")["mismatches"] == []
        client.call("Unload", name="again")
        assert all(device["used"] == 0 for device in client.call("Devices")["devices"])


@pytest.mark.parametrize("pinned", [True, False])
@both_exports
def test_driver_refuses_whoever_goes(fake_gpu, small_model, pinned, export):
    """It is tried again only after something was freed."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=export.refuses(2, "+"))
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small", pin=pinned)
        with wire_error("OutOfDeviceMemory") as parameters:
            client.call("Load", path=str(small_model), name="again", form="f32")
        assert parameters["evictable"] == 0
        assert parameters["needed"] > 0 and parameters["available"] > 0
        assert states(daemon) == ({"small": "resident"} if pinned else {})


@both_exports
def test_others_take_of_the_device(fake_gpu, models):
    """What other processes have of a device is told, and an idle model goes where the budget would do."""
    a, b, c = models(3, 44 * MIB)
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_MEMORY="200000000", FAKE_HIP_TAKEN="60000000")
    with daemon.client() as client:
        device = client.call("Devices")["devices"][0]
        assert device["others"] >= 60_000_000 and device["used"] == 0
        assert device["available"] == device["total"] - device["others"] < device["budget"]
        client.call("Load", path=str(a), name="a")
        device = client.call("Devices")["devices"][0]
        assert device["available"] == device["total"] - device["others"] - device["used"]
        plan = client.call("Plan", path=str(b))
        assert plan["fits"] and plan["evicts"] == ["a"] and plan["available"] == device["available"] < plan["bytes"]
        client.call("Load", path=str(b), name="b")
        assert states(daemon) == {"b": "resident"}
        client.call("Pin", name="b")
        plan = client.call("Plan", path=str(c))
        assert (plan["fits"], plan["evicts"], plan["error"]) == (False, [], "io.rocmforge.OutOfDeviceMemory")
        with wire_error("OutOfDeviceMemory") as parameters:
            client.call("Load", path=str(c), name="c")
        assert parameters == {
            "device": "hip:0", "needed": plan["bytes"], "available": plan["available"], "evictable": 0
        }


@both_exports
def test_lost_device_is_told_to_those_attached(fake_gpu, small_model, gated_model, export):
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=export.fails(3))
    with daemon.client() as client, daemon.client() as loader:
        client.call("Load", path=str(small_model), name="small")
        lease = client.call("Attach", name="small")["lease"]
        with wire_error("DeviceError"):
            loader.call("Load", path=str(gated_model), name="large")
        assert client.call("List")["draining"] == ["small"]
        with wire_error("DeviceError") as parameters:
            loader.call("Attach", name="small")
        assert parameters["text"] == "hip:0 was lost"
        client.call("Detach", lease=lease)
        client.call("Unload", name="small")


def lose_device(loader, path):
    """By a load of this file, which is not the first one: for a daemon with FAKE_HIP_FAIL=LOST."""
    with wire_error("DeviceError"):
        loader.call("Load", path=str(path), name="loses", device="hip:0", form="native")


LOST = EXPORTS["fd"].fails(3)  # the first is made at the start


def test_lost_and_told_to_go(fake_gpu, small_model, gated_model):
    """Whoever asks for it learns that it is lost, not that it is busy."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=LOST)
    with daemon.client() as client, daemon.client() as other:
        client.call("Load", path=str(small_model), name="small")
        lease = client.call("Attach", name="small")["lease"]
        lose_device(other, gated_model)
        assert other.call("Unload", name="small", force=True) == {"state": "draining"}
        for method in ("Attach", "Verify"):
            with wire_error("DeviceError") as parameters:
                other.call(method, name="small")
            assert parameters["text"] == "hip:0 was lost"
        client.call("Detach", lease=lease)
        wait_until(lambda: daemon.models() == [])


def test_lost_and_its_name_wanted(fake_gpu, small_model, gated_model):
    """As long as nobody wants its name it is there to be seen; then it goes, pinned or not, and the load goes on."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=LOST)
    with daemon.client() as client, daemon.client() as holder:
        client.call("Load", path=str(small_model), name="small", pin=True)
        lease = holder.call("Attach", name="small")["lease"]
        lose_device(client, gated_model)
        assert states(daemon) == {"small": "failed"}
        with wire_error("ModelBusy") as error:
            client.call("Load", path=str(small_model), name="small")
        assert (error["state"], len(error["leases"])) == ("failed", 1)
        with wire_error("NameInUse"):
            client.call("Load", path=str(gated_model), name="small")
        assert states(daemon) == {"small": "failed"}, "it is leased"
        holder.call("Detach", lease=lease)
        model = client.call("Load", path=str(small_model), name="small")["model"]
        assert (model["state"], model["device"]) == ("resident", "host")
        assert states(daemon) == {"small": "resident"}


def test_lost_and_its_file_wanted(fake_gpu, small_model, gated_model):
    """By another name."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=LOST)
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        lose_device(client, gated_model)
        client.call("Load", path=str(small_model), name="form", form="f32")
        assert states(daemon) == {"small": "failed", "form": "resident"}, "that is another model"
        client.call("Load", path=str(small_model), name="again")
        wait_until(lambda: states(daemon) == {"form": "resident", "again": "resident"})


def test_lost_and_its_name_wanted_for_another(fake_gpu, small_model, gated_model, models):
    """For a model that is there, as a further name."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=LOST)
    (there,) = models(1)
    with daemon.client() as client:
        first = client.call("Load", path=str(there), name="there", device="host")["model"]
        client.call("Load", path=str(small_model), name="small")
        lose_device(client, gated_model)
        assert states(daemon) == {"there": "resident", "small": "failed"}
        assert client.call("Plan", path=str(there), name="small")["error"] is None
        again = client.call("Load", path=str(there), name="small")["model"]
        assert (again["id"], again["aliases"]) == (first["id"], ["small"])
        wait_until(lambda: states(daemon) == {"there": "resident"})


def test_lost_and_idle(fake_gpu, small_model, gated_model):
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=LOST)
    with daemon.client() as client, daemon.client() as holder:
        client.call("Load", path=str(small_model), name="small")
        holder.call("Attach", name="small")
        client.call("SetTtl", name="small", ttl=0)
        lose_device(client, gated_model)
        assert states(daemon) == {"small": "failed"}
        holder.close()
        wait_until(lambda: daemon.models() == [])


def test_lost_with_time_to_live(fake_gpu, small_model, gated_model):
    """That of a model which nobody uses when its device is lost."""
    daemon = fake_gpu(FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=LOST)
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small", ttl=3600)
        lose_device(client, gated_model)
        assert states(daemon) == {"small": "failed"}
        client.call("SetTtl", name="small", ttl=0)
        wait_until(lambda: daemon.models() == [])


def test_lost_and_the_host_short_of_memory(fake_gpu, small_model, gated_model, model_folder):
    """What its header takes there goes for another model."""
    daemon = fake_gpu("--budget", "256Mi", FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL=LOST)
    path = model_folder / "lost-talkative.gguf"
    types = make_model.load_types()
    tensors = [make_model.Tensor("t", types["i8"], (4096,))]
    text = make_model.string("a") + struct.pack("<I", make_model.STRING) + make_model.string("x" * (64 * MIB))
    make_model.write_model(path, tensors, (1, text), 1)
    fits = sparse_model(model_folder / "fits-then.gguf", 240 * MIB)
    with daemon.client() as client:
        client.call("Load", path=str(path), name="talkative", device="hip")
        lose_device(client, small_model)
        assert client.call("Devices")["devices"][-1]["used"] > 63 * MIB
        assert client.call("Plan", path=str(fits))["evicts"] == ["talkative"]
        assert client.call("Load", path=str(fits), name="fits")["model"]["state"] == "resident"
        assert states(daemon) == {"fits": "resident"}
        client.call("Unload", name="fits")
        assert daemon.used() == 0


def test_slow_copies_can_be_cancelled(fake_gpu, model_folder):
    path = model_folder / "slow.gguf"
    types = make_model.load_types()
    if not path.exists():
        tensors = make_model.sized_tensors(20, 64 << 20, [types["f16"]])
        make_model.write_model(path, tensors, make_model.metadata(4, 256, 256, 4, 100), 3)
    daemon = fake_gpu(FAKE_HIP_SLOW="copy=100000")
    with daemon.client() as loader, daemon.client() as client:
        loader.send("Load", {"path": str(path), "name": "slow"})
        wait_until(lambda: any(model["state"] == "filling" for model in daemon.models()))
        client.call("Cancel", name="slow")
        with wire_error("Cancelled"):
            loader.reply()
        assert client.call("List") == {"models": []}
        assert all(device["used"] == 0 for device in client.call("Devices")["devices"])


@both_exports
def test_example_reads_in_place(fake_gpu, small_model):
    daemon = fake_gpu()
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small", form="f32", device="hip:0")
    result = subprocess.run(
        [build_folder() / "docs" / "read_tensor", "small"],
        env={**os.environ, "ROCMFORGE_SOCKET": str(daemon.socket)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "hip:0" in result.stdout


def memory_of(daemon, bytes_):
    """Where in the daemon's memory these bytes stand; each place is its address."""
    found = []
    with open(f"/proc/{daemon.pid}/maps", encoding="ascii") as maps, open(f"/proc/{daemon.pid}/mem", "rb") as memory:
        for line in maps:
            place, rights, *_ = line.split()
            begin, end = (int(number, 16) for number in place.split("-"))
            if "r" not in rights or end - begin > 256 * MIB:
                continue
            try:
                memory.seek(begin)
                data = memory.read(end - begin)
            except (OSError, ValueError, OverflowError):
                continue
            at = data.find(bytes_)
            while at >= 0:
                found.append(begin + at)
                at = data.find(bytes_, at + 1)
    return found


@pytest.mark.parametrize("where", ["tensor", "padding", "between", "end"])
def test_verify_finds_a_changed_byte(fake_gpu, folder, where):
    """Of the tensors, of the zeros behind their rows, of those that align the next tensor, and of those at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to write to another process's memory")
    types = make_model.load_types()
    tensors = [make_model.Tensor(name, types["q4_0"], (96, 7)) for name in ("first", "last")]
    path = folder / "m.gguf"
    make_model.write_model(path, tensors, make_model.metadata(1, 256, 256, 4, 100), 1)
    daemon = fake_gpu()
    with daemon.client() as client:
        client.call("Load", path=str(path), name="m", form="native", device="hip:0")
        first, last = client.call("Show", name="m")["tensors"]
        assert first["padding"] > 0 and first["offset"] + first["size"] + first["padding"] < last["offset"]
        assert client.call("Verify", name="m")["mismatches"] == []
        # The bytes of the first tensor, with the zeros behind it, stand nowhere but in the model's memory.
        data = path.read_bytes()
        size = tensors[0].size
        begin = len(data) - 2 * (size + -size % make_model.ALIGNMENT)
        places = memory_of(daemon, data[begin : begin + size] + bytes(first["padding"] + 1))
        assert places
        name, offset = {
            "tensor": ("first", 5),
            "padding": ("first", first["size"]),
            "between": ("first", last["offset"] - first["offset"] - 1),
            "end": ("last", last["size"] + 1000),
        }[where]
        at = offset if name == "first" else last["offset"] - first["offset"] + offset
        with open(f"/proc/{daemon.pid}/mem", "r+b") as memory:
            for place in places:
                memory.seek(place + at)
                old = memory.read(1)
                memory.seek(place + at)
                memory.write(bytes([old[0] ^ 1]))
        assert client.call("Verify", name="m")["mismatches"] == [{"tensor": name, "offset": offset}]
        if where != "tensor":
            os.utime(path)  # the file is the same: it is not what differs
            assert client.call("Verify", name="m")["mismatches"] == [{"tensor": name, "offset": offset}]
            assert not client.call("Show", name="m")["model"]["changed"]
