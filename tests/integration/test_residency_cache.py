"""Host memory as the second tier: what a GPU has no room for, on tests/fake_hip and the module as it is built."""
import os
import signal
import time
from pathlib import Path

import make_model
import pytest
from harness import (
    MIB,
    USER,
    Gate,
    client_of,
    daemon_program,
    fake_gpu_folder,
    load,
    load_fd,
    module_folder,
    states,
    tensor_model,
    wait_until,
    wire_error,
)
from rocmforge_wire import WireError

SIZE = 8 * MIB  # of a model on the device
DEVICE = 512 * MIB


@pytest.fixture(params=["", "pinned"])
def start_gpu(start, request):
    """start_gpu(*options, FAKE_HIP_...=...): a daemon with a GPU of which three models fill the budget; and once more
    with --host-cache-pinned."""
    fake = fake_gpu_folder()
    if not fake:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")

    def start_one(*options, **env):
        pinned = request.param == "pinned" and "--host-cache" in options
        daemon = start(
            *("--device", "hip", "--budget", str(3 * SIZE), "--workers", "2", *options),
            *(("--host-cache-pinned",) if pinned else ()),
            env={
                "ROCMFORGE_MODULE_DIR": str(module_folder()),
                "LD_LIBRARY_PATH": str(fake),
                "FAKE_HIP_MEMORY": str(DEVICE),
                **env,
            },
        )
        if pinned:
            wait_until(lambda: "host cache: " in daemon.log)
            assert "are pinned for hip" in daemon.log
        return daemon

    return start_one


@pytest.fixture
def models(folder):
    """models(n): files that become SIZE bytes of f16 on the device."""
    types = make_model.load_types()

    def make(n):
        paths = []
        for i in range(n):
            paths.append(folder / f"m{i}.gguf")
            tensors = [make_model.Tensor(f"blk.{j}.ffn_up.weight", types["q8_0"], (256, 4096)) for j in range(4)]
            make_model.write_model(paths[-1], tensors, make_model.metadata(1, 256, 256, 4, 100), i)
        return paths

    return make


def settled(daemon, expected):
    wait_until(lambda: states(daemon) == expected, 20)


def gpu_used(daemon):
    with daemon.client() as client:
        return client.call("Devices")["devices"][0]["used"]


def attach_detach(client, name):
    reply = client.call("Attach", name=name)
    client.call("Detach", lease=reply["lease"])
    return reply["model"]


def anonymous_bytes(daemon):
    with open(f"/proc/{daemon.pid}/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("RssAnon:")).split()[1]) * 1024


def fill(client, paths):
    for path, name in zip(paths, "abcdefgh"):
        load(client, path, name)


def test_there_and_back_without_the_file(start_gpu, models):
    """What comes back is what was there, though the file is full of something else, and gone."""
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    data = paths[0].read_bytes()
    with daemon.client() as client, daemon.client() as watcher:
        events = watcher.more("Watch")
        next(events)
        fill(client, paths)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        assert gpu_used(daemon) == 3 * SIZE
        (before,) = [model for model in daemon.models() if model["name"] == "a"]
        assert before["bytes"] == SIZE and before["leases"] == 0
        # The daemon has the file open, so its bytes must go bad and not only its name.
        with open(paths[0], "r+b") as file:
            file.write(b"\xee" * len(data))
        paths[0].unlink()
        model = attach_detach(client, "a")
        assert (model["id"], model["state"]) == (before["id"], "resident")
        settled(daemon, {"a": "resident", "b": "cached", "c": "resident", "d": "resident"})
        with wire_error("FileChanged"):
            client.call("Verify", name="a")
        seen = {}
        while seen.get("a", [])[-1:] != ["detached"]:
            event = next(events)
            seen.setdefault(event["model"]["name"], []).append(event["event"])
        assert seen["a"] == ["loading", "resident", "evicted", "cached", "loading", "resident", "attached", "detached"]


def test_every_bit_comes_back(start_gpu, models):
    """Verify decodes the file anew and compares with the device."""
    daemon = start_gpu("--host-cache", "64Mi", "--staging", "1Mi")
    with daemon.client() as client:
        paths = models(6)
        fill(client, paths)
        for _ in range(2):
            for name in "abcdef":
                assert attach_detach(client, name)["state"] == "resident"
                assert client.call("Verify", name=name)["mismatches"] == []
        assert sorted(states(daemon).values()) == ["cached"] * 3 + ["resident"] * 3
        assert gpu_used(daemon) == 3 * SIZE
        for name in "abcdef":
            client.call("Unload", name=name)
    assert daemon.models() == [] and gpu_used(daemon) == 0


@pytest.mark.parametrize("start_gpu", ["pinned"], indirect=True)
def test_a_copy_of_several_chunks(start_gpu, folder):
    """What is pinned comes back in pieces of 64 MiB."""
    types = make_model.load_types()
    tensors = [make_model.Tensor(f"blk.{j}.ffn_up.weight", types["i8"], (4096, 4096)) for j in range(5)]
    daemon = start_gpu("--host-cache", "192Mi", "--budget", "120Mi")
    with daemon.client() as client:
        for seed, name in enumerate("ab"):
            make_model.write_model(folder / name, tensors, make_model.metadata(1, 256, 256, 4, 100), seed)
            load(client, folder / name, name, form="native")
        settled(daemon, {"a": "cached", "b": "resident"})
        load(client, folder / "a", "a", form="native")
        settled(daemon, {"a": "resident", "b": "cached"})
        assert client.call("Verify", name="a")["mismatches"] == []


def test_load_brings_it_back(start_gpu, models):
    """Under the name that it has, and with what else was asked for."""
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    with daemon.client() as client:
        fill(client, paths)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        replies = list(client.more("Load", path=str(paths[0]), name="other", pin=True, ttl=99))
        model = replies[-1]["model"]
        assert (model["name"], model["state"], model["pinned"], model["ttl"]) == ("a", "resident", True, 99)
        assert replies[-1]["phases"]["dequantise"] == 0
        settled(daemon, {"a": "resident", "b": "cached", "c": "resident", "d": "resident"})


def test_plan_of_what_is_cached(start_gpu, models):
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    with daemon.client() as client:
        fill(client, paths)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        plan = client.call("Plan", path=str(paths[0]))
        assert (plan["fits"], plan["evicts"], plan.get("model")) == (True, ["b"], None)
        assert 0 < plan["seconds"] < 60
        for name in "bcd":
            client.call("Pin", name=name)
        plan = client.call("Plan", path=str(paths[0]))
        assert (plan["fits"], plan["evicts"]) == (False, [])
        with wire_error("OutOfDeviceMemory") as error:
            client.call("Attach", name="a")
        assert (error["needed"], error["available"], error["evictable"]) == (SIZE, 0, 0)
        assert states(daemon)["a"] == "cached", "it is not lost for that"


def test_verify_what_is_cached(start_gpu, models):
    """It is compared where it is, and stays there."""
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    with daemon.client() as client:
        fill(client, paths)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        reply = client.call("Verify", name="a")
        assert (reply["tensors"], reply["mismatches"], reply["replaced"]) == (4, [], False)
        assert "every bit as in the file" in daemon.rfctl("verify", "a").stdout
        data = bytearray(paths[0].read_bytes())
        data[-1] ^= 1
        paths[0].write_bytes(data)
        with wire_error("FileChanged") as error:
            client.call("Verify", name="a")
        assert error["when"] == "since-loaded"
        assert states(daemon)["a"] == "cached" and client.call("Show", name="a")["model"]["changed"]


def test_what_was_compared_in_the_cache_loses_its_name(start_gpu, models, folder):
    """A model in the cache is compared with the file, and is gone as soon as that is over: another one gets its name."""
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    link = folder / "a.gguf"
    link.symlink_to(paths[0])
    with daemon.client() as client:
        fill(client, [link, *paths[1:]])
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        ids = {model["name"]: model["id"] for model in daemon.models()}
        link.unlink()
        link.symlink_to(paths[1])
        assert load(client, link, "a", replace=True)["id"] == ids["b"]
        assert sorted(model["id"] for model in daemon.models()) == sorted(ids[name] for name in "bcd")
        assert client.call("Show", name="a")["model"]["id"] == ids["b"]


def test_the_longest_cached_goes_first(start_gpu, models):
    daemon = start_gpu("--host-cache", str(2 * SIZE))
    with daemon.client() as client:
        fill(client, models(7))
        settled(daemon, {"c": "cached", "d": "cached", "e": "resident", "f": "resident", "g": "resident"})
        client.call("Unload", name="c")
        settled(daemon, {"d": "cached", "e": "resident", "f": "resident", "g": "resident"})


def test_pinned_in_the_cache(start_gpu, models):
    """A copy that is to be kept does not go for another one. Pinned or not, it does not go for its name."""
    daemon = start_gpu("--host-cache", str(2 * SIZE))
    paths = models(8)
    with daemon.client() as client:
        fill(client, paths[:4])
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        client.call("Pin", name="a")
        for path, name in zip(paths[4:7], "efg"):
            load(client, path, name)
        settled(daemon, {"a": "cached", "d": "cached", "e": "resident", "f": "resident", "g": "resident"})
        with wire_error("NameInUse"):
            load(client, paths[7], "a")
        client.call("Pin", name="d")
        load(client, paths[7], "h")  # there is no room for what goes: it is not kept
        settled(daemon, {"a": "cached", "d": "cached", "f": "resident", "g": "resident", "h": "resident"})
        client.call("Unpin", name="a")
        with wire_error("NameInUse"):
            load(client, paths[4], "a")
        assert load(client, paths[4], "a", replace=True)["state"] == "resident"


def test_no_device_to_come_back_to(start_gpu, models):
    """A copy for a device that is lost is of no use to anybody, pinned or not: its name is free."""
    # Memory that is used again would not be exported again.
    options = ("--host-cache", str(2 * SIZE), "--keep-freed", "0")
    daemon = start_gpu(*options, FAKE_HIP_FAIL="hipMemExportToShareableHandle:6:719")
    paths = models(5)
    with daemon.client() as client:
        fill(client, paths[:4])
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        client.call("Pin", name="a")
        with wire_error("DeviceError"):
            load(client, paths[4], "e")
        with wire_error("DeviceError"):
            client.call("Attach", name="a")
        assert load(client, paths[0], "a")["device"] == "host"
        client.call("Unload", name="a")


def test_whose_name_it_is_in_the_cache(start_gpu, models):
    """As if it were resident: its owner, and whoever rules the machine, may have it for another file, if they say so."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    daemon = start_gpu("--host-cache", "64Mi")
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    paths = models(7)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other, daemon.client() as root:
        for path, name in zip(paths[:2], "ab"):
            load_fd(user, path, name=name)
        for path, name in zip(paths[2:5], "cde"):
            load(root, path, name)
        settled(daemon, {"a": "cached", "b": "cached", "c": "resident", "d": "resident", "e": "resident"})
        for client, name, replace in (other, "a", True), (other, "b", False), (user, "a", False), (root, "b", False):
            with open(paths[5], "rb") as file:
                plan = client.call("Plan", fds=[file.fileno()], name=name, replace=replace)
            assert plan["error"] == "io.rocmforge.NameInUse"
            with wire_error("NameInUse"):
                load_fd(client, paths[5], name=name, replace=replace)
        assert (states(daemon)["a"], states(daemon)["b"]) == ("cached", "cached")
        assert load_fd(user, paths[5], name="a", replace=True)["uid"] == USER
        assert load(root, paths[6], "b", replace=True)["uid"] == 0


@pytest.mark.parametrize("start_gpu", [""], indirect=True)  # pinned memory is kept
def test_cache_gives_its_memory_back(start_gpu, models):
    daemon = start_gpu("--host-cache", "64Mi")
    with daemon.client() as client:
        paths = models(8)
        for path, name in zip(paths[:3], "abc"):
            load(client, path, name)
        before = anonymous_bytes(daemon)
        for path, name in zip(paths[3:], "defgh"):
            load(client, path, name)
        assert anonymous_bytes(daemon) > before + 4 * SIZE
        for name in "abcde":
            client.call("Unload", name=name)
        # A sanitizer keeps some of what was freed: ASAN_OPTIONS in the harness says how much.
        kept = 16 * MIB if b"__asan_init" in Path(daemon_program()).read_bytes() else 0
        wait_until(lambda: anonymous_bytes(daemon) < before + SIZE + kept)


def test_no_cache_unless_asked_for(start_gpu, models):
    daemon = start_gpu()
    with daemon.client() as client:
        fill(client, models(4))
        settled(daemon, {"b": "resident", "c": "resident", "d": "resident"})


def test_too_large_for_the_cache(start_gpu, models):
    daemon = start_gpu("--host-cache", str(SIZE - 1))
    with daemon.client() as client:
        fill(client, models(4))
        settled(daemon, {"b": "resident", "c": "resident", "d": "resident"})


def test_unload_and_idleness_do_not_cache(start_gpu, models):
    daemon = start_gpu("--host-cache", "64Mi")
    a, b = models(2)
    with daemon.client() as client:
        load(client, a, "a", ttl=0)
        load(client, b, "b")
        client.call("Unload", name="b")
        settled(daemon, {})


def test_time_to_live_goes_on_in_the_cache(start_gpu, models):
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    with daemon.client() as client:
        load(client, paths[0], "a", ttl=1)
        for path, name in zip(paths[1:], "bcd"):
            load(client, path, name)
        wait_until(lambda: "a" not in states(daemon), 10)
        assert "dropped from host memory" in daemon.log or "was idle" in daemon.log


@pytest.fixture
def copy_gate(folder, start_gpu):  # start_gpu: the daemon ends after the gate is open
    """A daemon that is started with **copy_gate.env copies nothing to or from a GPU while the gate is closed."""
    path = folder / "gate"
    gate = Gate(path, {"FAKE_HIP_GATE": str(path)})
    yield gate
    gate.open()


def saving(daemon):
    """The model that is on its way to host memory, if one is."""
    return next((name for name, state in states(daemon).items() if state == "saving"), None)


def push_out(daemon, loader, gate):
    """Has a cached model brought back, and returns the name of the one that goes for it, and is held on its way."""
    back = next(name for name, state in states(daemon).items() if state == "cached")
    gate.close()
    loader.send("Attach", {"name": back})
    return wait_until(lambda: saving(daemon))


def test_attach_while_it_is_saved(start_gpu, models, copy_gate):
    """On its way to host memory it is as good as there: who wants it waits, and gets it back."""
    daemon = start_gpu("--host-cache", "64Mi", **copy_gate.env)
    with daemon.client() as client, daemon.client() as loader, daemon.client() as other:
        fill(client, models(4))
        ids = {model["name"]: model["id"] for model in daemon.models()}
        for both in (False, True, False, True):
            victim = push_out(daemon, loader, copy_gate)
            waiting = [client, other] if both else [client]
            for who in waiting:
                who.send("Attach", {"name": victim})
            daemon.sync()
            copy_gate.open()
            for who in waiting:
                reply = who.reply()[0]
                assert (reply["model"]["id"], reply["model"]["state"]) == (ids[victim], "resident")
                who.call("Detach", lease=reply["lease"])
            loader.call("Detach", lease=loader.reply()[0]["lease"])
            wait_until(lambda: sorted(states(daemon).values()) == ["cached"] + ["resident"] * 3)


@pytest.mark.parametrize("round_", range(3))
def test_no_copy_of_what_was_replaced_stays(start_gpu, models, copy_gate, round_):
    """A model that loses its name on its way to host memory is not kept there: nobody could ask for it again."""
    daemon = start_gpu("--host-cache", "64Mi", **copy_gate.env)
    paths = models(5)
    with daemon.client() as client, daemon.client() as loader, daemon.client() as other:
        fill(client, paths[:4])
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        client.call("Unload", name="d")
        copy_gate.close()
        with open(paths[4], "rb") as file:
            loader.send("Load", {"fds": [0], "name": "b", "replace": True}, [file.fileno()])
        wait_until(lambda: "filling" in states(daemon).values())
        other.send("Attach", {"name": "a"})
        assert wait_until(lambda: saving(daemon)) == "b"
        copy_gate.open()
        new = loader.reply()[0]["model"]
        other.call("Detach", lease=other.reply()[0]["lease"])
        assert new["name"] == "b"
        settled(daemon, {"a": "resident", "b": "resident", "c": "resident"})


def test_whose_load_a_restore_is(start_gpu, models, folder, copy_gate):
    """It counts against the loads of whoever asks for the model, not of whoever loaded it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    daemon = start_gpu("--host-cache", "64Mi", "--user-loads", "1", **copy_gate.env)
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    paths = models(4)
    junk = folder / "junk"
    junk.write_bytes(b"no model")
    with client_of(daemon, USER) as owner, client_of(daemon, USER + 1) as other, daemon.client() as root:
        load_fd(owner, paths[0], name="a")
        for path, name in zip(paths[1:], "bcd"):
            load(root, path, name)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        copy_gate.close()
        other.send("Attach", {"name": "a"})
        wait_until(lambda: saving(daemon))
        with wire_error("InvalidModel"):  # and not LimitExceeded
            load_fd(owner, junk)
        with client_of(daemon, USER + 1) as second, wire_error("LimitExceeded") as error:
            load_fd(second, junk)
        assert error == {"limit": "user-loads", "value": 1}
        copy_gate.open()
        assert other.reply()[0]["model"]["state"] == "resident"


def test_no_time_to_wait_until_it_is_saved(start_gpu, models, copy_gate):
    daemon = start_gpu("--host-cache", "64Mi", **copy_gate.env)
    with daemon.client() as client, daemon.client() as loader:
        fill(client, models(4))
        victim = push_out(daemon, loader, copy_gate)
        with wire_error("DeadlineExceeded"):
            client.call("Attach", name=victim, deadline=0.001)
        copy_gate.open()
        assert loader.reply()[0]["model"]["state"] == "resident"
        # Another one may have made room for the one that was not waited for.
        wait_until(lambda: set(states(daemon).values()) == {"cached", "resident"})


def test_restore_that_nobody_waits_for(start_gpu, models):
    """Who asked has gone: it stays cached, and nothing is lost of the ledger."""
    daemon = start_gpu("--host-cache", "128Mi", FAKE_HIP_SLOW="copy=20000,clear=20000")
    with daemon.client() as client:
        fill(client, models(5))
        for step in range(12):
            name = next(model["name"] for model in daemon.models() if model["state"] == "cached")
            if step % 2:
                with daemon.client() as other:
                    other.send("Attach", {"name": name})
                    time.sleep(0.005 * step)
            else:
                try:
                    lease = client.call("Attach", name=name, deadline=0.002 + 0.004 * step)["lease"]
                    client.call("Detach", lease=lease)
                except WireError as error:
                    assert error.name == "DeadlineExceeded", error
            wait_until(lambda: set(states(daemon).values()) <= {"cached", "resident"})
        used = sum(model["bytes"] for model in daemon.models() if model["state"] == "resident")
        assert gpu_used(daemon) == used
        for name in "abcde":
            assert attach_detach(client, name)["state"] == "resident"
            assert client.call("Verify", name=name)["mismatches"] == []


def test_cancel_a_restore(start_gpu, models):
    daemon = start_gpu("--host-cache", "64Mi", FAKE_HIP_SLOW="copy=100000,clear=100000")
    with daemon.client() as client, daemon.client() as waiting:
        fill(client, models(4))
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        waiting.send("Attach", {"name": "a"})
        wait_until(lambda: states(daemon)["a"] != "cached", every=0.001)
        client.call("Cancel", name="a")
        with wire_error("Cancelled"):
            waiting.reply()
        assert states(daemon)["a"] == "cached"


def test_device_that_fails_a_restore(start_gpu, models):
    """Memory that the driver does not have after all: the model stays where it was."""
    daemon = start_gpu("--host-cache", "64Mi", "--staging", "1Mi", FAKE_HIP_MEMORY=str(3 * SIZE + 4 * MIB))
    with daemon.client() as client:
        fill(client, models(4))
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        attach_detach(client, "a")


def test_private_in_the_cache(start_gpu, models):
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    daemon = start_gpu("--host-cache", "64Mi")
    os.chmod(daemon.folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    paths = models(4)
    os.seteuid(12345)
    user = daemon.client()
    os.seteuid(0)
    with user, daemon.client() as root:
        with open(paths[0], "rb") as file:
            user.call("Load", fds=[file.fileno()], name="a", private=True)
        for path, name in zip(paths[1:], "bcd"):
            load(root, path, name)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        with wire_error("PermissionDenied"):
            root.call("Attach", name="a")
        assert attach_detach(user, "a")["private"]


@pytest.mark.parametrize("delay", [0, 0.01, 0.03, 0.1])
def test_end_while_saving_and_restoring(start_gpu, models, delay):
    daemon = start_gpu("--host-cache", "64Mi", FAKE_HIP_SLOW="copy=30000,clear=30000")
    paths = models(5)
    with daemon.client() as client, daemon.client() as other, daemon.client() as third:
        fill(client, paths[:4])
        other.send("Load", {"path": str(paths[4]), "name": "e"})
        client.send("Attach", {"name": "a"})
        third.send("Attach", {"name": "b"})
        time.sleep(delay)
        assert daemon.stop() == 0, daemon.log


def test_no_descriptor_is_left(start_gpu, models):
    daemon = start_gpu("--host-cache", "64Mi")
    before = daemon.settled_fds()
    with daemon.client() as client:
        fill(client, models(6))
        for name in "abcdef":
            attach_detach(client, name)
        for name in "abcdef":
            client.call("Unload", name=name)
    wait_until(lambda: daemon.fds() == before)
    assert gpu_used(daemon) == 0


@pytest.mark.parametrize("look", ["SIGHUP", "Plan", "Load"])
@pytest.mark.parametrize("way", ["touched", "the same", "other"])
def test_the_file_of_a_cached_model_is_compared(start_gpu, models, look, way):
    """With the copy in host memory: what has the same bytes stays, and comes back from there."""
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    with daemon.client() as client:
        fill(client, paths)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        first = client.call("Show", name="a")["model"]["id"]
        data = bytearray(paths[0].read_bytes())
        if way == "touched":
            os.utime(paths[0])
        elif way == "the same":
            paths[0].with_suffix(".new").write_bytes(data)
            paths[0].with_suffix(".new").rename(paths[0])
        else:
            data[-1] ^= 1
            paths[0].write_bytes(data)
        same = way != "other"
        reads = daemon.reads()
        if look == "SIGHUP":
            daemon.process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            wait_until(daemon.is_idle)
            assert client.call("Show", name="a")["model"]["changed"] == (way != "touched")  # Load alone reads another file
        elif look == "Plan":
            assert client.call("Plan", path=str(paths[0]), name="a")["error"] is None
            assert client.call("Show", name="a")["model"]["changed"] != same
            assert states(daemon)["a"] == "cached"
        assert (load(client, paths[0], "a")["id"] == first) == same
        assert daemon.reads() > reads
        wait_until(lambda: states(daemon)["a"] == "resident")
        assert not client.call("Show", name="a")["model"]["changed"]
        assert client.call("Verify", name="a")["mismatches"] == []


def test_what_is_compared_in_the_cache_stays_there(start_gpu, folder, part_gate):
    """Nobody loads it back or drops it meanwhile: both happen when the comparison is over."""
    gate = part_gate
    daemon = start_gpu("--host-cache", "8Mi", **gate.env)
    paths = [tensor_model(folder / f"m{i}.gguf", SIZE, i) for i in range(4)]
    with daemon.client() as client, daemon.client() as planner, daemon.client() as user, daemon.client() as other:
        fill(client, paths)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        first = client.call("Show", name="a")["model"]["id"]
        os.utime(paths[0])
        gate.close()
        planner.send("Plan", {"path": str(paths[0]), "name": "a"})
        time.sleep(0.3)
        user.send("Attach", {"name": "a"})
        time.sleep(0.3)
        assert states(daemon)["a"] == "cached"
        client.call("Unload", name="b")  # there is room on the GPU
        with wire_error("ModelBusy"):
            client.call("Unload", name="a")
        gate.open()
        assert planner.reply()[0]["error"] is None
        reply = user.reply()[0]
        assert (reply["model"]["id"], reply["model"]["state"]) == (first, "resident")
        user.call("Detach", lease=reply["lease"])
        client.call("Unload", name="a")
        # What is unloaded by force while it is compared goes when that is over.
        load(client, paths[0], "a")
        load(client, paths[1], "b")
        wait_until(lambda: "cached" in states(daemon).values())
        name = next(name for name, state in states(daemon).items() if state == "cached")
        path = paths["abcd".index(name)]
        os.utime(path)
        gate.close()
        other.send("Plan", {"path": str(path), "name": name})
        time.sleep(0.3)
        assert client.call("Unload", name=name, force=True)["state"] == "draining"
        gate.open()
        other.reply()
        wait_until(lambda: len(daemon.models()) == 3)


@pytest.mark.parametrize("look", ["SIGHUP", "Plan"])
@pytest.mark.parametrize("other", [False, True])
def test_the_file_of_a_cached_model_changes(start_gpu, models, look, other):
    daemon = start_gpu("--host-cache", "64Mi")
    paths = models(4)
    with daemon.client() as client:
        fill(client, paths)
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        first = client.call("Show", name="a")["model"]["id"]
        if other:
            paths[0].rename(paths[0].with_suffix(".old"))
            paths[0].write_bytes(paths[1].read_bytes())
        else:
            os.utime(paths[0])
        if look == "SIGHUP":
            daemon.process.send_signal(signal.SIGHUP)
        else:
            client.call("Plan", path=str(paths[0]), name="a")
        time.sleep(0.2)
        wait_until(daemon.is_idle)
        assert {m["name"]: m["changed"] for m in daemon.models()} == {"a": other, "b": False, "c": False, "d": False}
        assert attach_detach(client, "a")["id"] == first
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        wait_until(daemon.is_idle)
        assert client.call("Show", name="a")["model"]["changed"] == other
        assert client.call("Verify", name="a")["replaced"] == other


def test_a_large_model_is_saved_in_pieces(start_gpu, folder):
    """By several workers, and each byte lands where it belongs: Verify compares with the file what came back."""
    size = 90 * MIB + 12345
    daemon = start_gpu("--budget", str(100 * MIB), "--host-cache", "1G", "--workers", "4")
    large, other = tensor_model(folder / "l.gguf", size), tensor_model(folder / "o.gguf", 20 * MIB, 2)
    with daemon.client() as client:
        for _ in range(2):
            load_fd(client, large, name="large", form="native")
            load_fd(client, other, name="other", form="native")
            assert states(daemon)["large"] == "cached"
            attach_detach(client, "large")
            assert client.call("Verify", name="large")["mismatches"] == []
            client.call("Unload", name="large")


def test_where_the_bytes_of_a_copy_are(start_gpu, models):
    """Copies are the daemon's memory, not that of others."""
    daemon = start_gpu("--host-cache", "64Mi")
    with daemon.client() as client:
        before = client.call("Devices")["devices"][-1]
        fill(client, models(4))
        settled(daemon, {"a": "cached", "b": "resident", "c": "resident", "d": "resident"})
        after = client.call("Devices")["devices"][-1]
    assert after["id"] == "host" and after["used"] == before["used"]
    pool = before.get("cached", 0)
    assert after["cached"] == (pool or SIZE), "pinned memory is all for copies"
    assert after["total"] - after["others"] - after["used"] - after["cached"] >= after["available"]
    row = next(line.split() for line in daemon.rfctl("ps").stdout.splitlines() if line.startswith("a "))
    assert row[2] == "host(hip:0)" and "cached" in row
    shown = daemon.rfctl("show", "a").stdout
    assert " on host as " in shown and "\ncomes back to hip:0 when a client attaches\n" in shown
    assert " of copies" in daemon.rfctl("devices").stdout
