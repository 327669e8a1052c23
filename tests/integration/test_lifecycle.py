"""Loads that are joined, shared, cancelled or left; leases, and what happens when their holder dies."""
import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import time

import pytest
from harness import MIB, ROOT, sparse_model, wait_until, wire_error
from rocmforge_wire import WireError


def filling(daemon, name):
    return any(m["name"] == name and m["state"] == "filling" for m in daemon.models())


def wait_for_filling(daemon, name):
    wait_until(lambda: filling(daemon, name), every=0.001)


def arenas(daemon):
    return [link for link in daemon.fds() if link.startswith("/memfd:")]


def test_progress(slow_daemon, large_model):
    with slow_daemon.client() as client:
        replies = list(client.more("Load", path=str(large_model)))
    progress = [reply["progress"] for reply in replies[:-1]]
    assert len(progress) >= 5, "of two seconds"
    assert all(a["done"] <= b["done"] for a, b in zip(progress, progress[1:]))
    assert all(p["done"] <= p["total"] for p in progress)
    assert replies[-1].get("progress") is None
    phases = replies[-1]["phases"]
    assert phases["total"] > 0 and phases["read"] > 0


def test_loop_sleeps_after_a_load(start, small_model):
    """It does not for a moment, where workers leave it a processor: then it does."""
    daemon = start("--workers", "1")
    with daemon.client() as client:
        client.call("Load", path=str(small_model))
        assert daemon.busy(0.5) < 0.1


def test_shown_before_it_is_there(slow_daemon, large_model):
    """What it contains is told soon, however slow the file is."""
    before = slow_daemon.reads()
    with slow_daemon.client() as client, slow_daemon.client() as other:
        client.send("Load", {"path": str(large_model), "name": "large"})

        def shown():
            with contextlib.suppress(WireError):
                return other.call("Show", name="large")

        assert wait_until(shown)["tensors"]
        assert slow_daemon.reads() < before + 150  # of 768, and a few of what wakes it


def test_joined_load(held_daemon, gate, gated_model):
    """Two ask for the same file: one load, one model, two answers."""
    with held_daemon.client() as first, held_daemon.client() as second:
        first.send("Load", {"path": str(gated_model), "name": "first"})
        wait_for_filling(held_daemon, "first")
        second.send("Load", {"path": str(gated_model), "name": "second"})
        held_daemon.sync()
        gate.open()
        first_reply, _ = first.reply()
        second_reply, _ = second.reply()
        assert first_reply["model"]["id"] == second_reply["model"]["id"]
        assert second_reply["model"]["name"] == "first"
        assert second_reply.get("phases") is None
        assert len(held_daemon.models()) == 1
        assert held_daemon.used() == first_reply["model"]["bytes"]


def test_joined_load_outlives_the_first(held_daemon, gate, gated_model):
    with held_daemon.client() as second:
        with held_daemon.client() as first:
            first.send("Load", {"path": str(gated_model), "name": "first"})
            wait_for_filling(held_daemon, "first")
            second.send("Load", {"path": str(gated_model)})
            held_daemon.sync()
        held_daemon.sync()
        gate.open()
        assert second.reply()[0]["model"]["state"] == "resident"


def test_cancel_leaves_nothing(held_daemon, gate, gated_model):
    before = held_daemon.settled_fds()
    with held_daemon.client() as loader, held_daemon.client() as client:
        loader.send("Load", {"path": str(gated_model), "name": "big"}, more=True)
        wait_for_filling(held_daemon, "big")
        assert held_daemon.used() >= 64 << 20
        client.send("Cancel", {"name": "big"})
        held_daemon.sync()
        gate.open()
        assert client.reply() == ({}, False)
        with wire_error("Cancelled"):
            while True:
                assert loader.reply()[1], "it was loaded all the same"
        assert client.call("List") == {"models": []}
        assert client.call("Status")["loads"] == 0
    wait_until(lambda: held_daemon.fds() == before)
    assert arenas(held_daemon) == []
    assert held_daemon.used() == 0


def test_load_ends_when_nobody_waits(held_daemon, gate, gated_model):
    before = held_daemon.settled_fds()
    with held_daemon.client() as loader:
        loader.send("Load", {"path": str(gated_model), "name": "big"}, more=True)
        wait_for_filling(held_daemon, "big")
    held_daemon.sync()
    gate.open()
    wait_until(lambda: held_daemon.models() == [])
    wait_until(lambda: held_daemon.fds() == before)
    assert held_daemon.used() == 0


def test_load_without_wait_goes_on(held_daemon, gate, gated_model):
    with held_daemon.client() as client:
        reply = client.call("Load", path=str(gated_model), name="big", wait=False)
        assert reply["model"]["state"] != "resident"
        assert reply.get("phases") is None
    held_daemon.sync()
    gate.open()
    wait_until(lambda: [m["state"] for m in held_daemon.models()] == ["resident"])


def test_cancel_of_what_is_not_loading(client, small_model):
    with wire_error("ModelNotFound"):
        client.call("Cancel", name="nobody")
    client.call("Load", path=str(small_model), name="small")
    with wire_error("ModelBusy") as parameters:
        client.call("Cancel", name="small")
    assert parameters["state"] == "resident"


def test_unload_of_what_is_loading(held_daemon, gate, gated_model):
    with held_daemon.client() as loader, held_daemon.client() as client:
        loader.send("Load", {"path": str(gated_model), "name": "big"})
        wait_for_filling(held_daemon, "big")
        for method in ("Unload", "Verify"):
            with wire_error("ModelBusy") as parameters:
                client.call(method, name="big")
            assert (parameters["name"], parameters["state"]) == ("big", "filling")
        gate.open()
        assert loader.reply()[0]["model"]["state"] == "resident"


def test_attach_waits_for_a_load(held_daemon, gate, gated_model):
    with held_daemon.client() as loader, held_daemon.client() as client:
        loader.send("Load", {"path": str(gated_model), "name": "big"})
        wait_for_filling(held_daemon, "big")
        client.send("Attach", {"name": "big"})
        held_daemon.sync()
        gate.open()
        attached, _ = client.reply()
        assert attached["model"]["state"] == "resident"
        assert len(client.fds) == 1
        assert loader.reply()[0]["model"]["id"] == attached["model"]["id"]


def test_two_loads_share_fairly(start, slow_read, model_folder):
    """A small load that begins after a large one does not wait for it."""
    daemon = start("--workers", "1", env=slow_read)
    large = sparse_model(model_folder / "fair-large.gguf", 256 << 20)
    small = sparse_model(model_folder / "fair-small.gguf", 16 << 20)
    with daemon.client() as first, daemon.client() as second:
        first.send("Load", {"path": str(large), "name": "large"}, more=True)
        wait_for_filling(daemon, "large")
        second.call("Load", path=str(small), name="small")
        assert filling(daemon, "large"), "the large one was first"
        while first.reply()[1]:
            pass


def test_ten_loads_at_once(daemon, model_folder):
    paths = [sparse_model(model_folder / f"ten{i}.gguf", 16 << 20) for i in range(10)]
    clients = [daemon.client() for _ in paths]
    for client, path in zip(clients, paths):
        client.send("Load", {"path": str(path)})
    for client in clients:
        assert client.reply()[0]["model"]["state"] == "resident"
        client.close()
    assert len(daemon.models()) == 10


def test_cancel_at_any_moment(slow_daemon, model_folder):
    """Again and again, later and later: whatever it meets, nothing is left."""
    daemon = slow_daemon
    path = sparse_model(model_folder / "moment.gguf", 64 << 20)
    before = daemon.settled_fds()
    outcomes = set()
    for step in range(40):
        with daemon.client() as loader, daemon.client() as client:
            loader.send("Load", {"path": str(path), "name": "m"})
            time.sleep(step * 0.001)
            try:
                client.call("Cancel", name="m")
            except WireError as error:
                outcomes.add(error.name)
            try:
                loader.reply()
                outcomes.add("loaded")
                client.call("Unload", name="m")
            except WireError as error:
                outcomes.add(error.name)
    assert outcomes <= {"Cancelled", "ModelBusy", "ModelNotFound", "loaded"}
    assert "Cancelled" in outcomes
    assert daemon.models() == []
    assert daemon.used() == 0
    wait_until(lambda: daemon.fds() == before)


# --- Leases ---


def test_lease(daemon, small_model):
    with daemon.client() as owner, daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        attached = owner.call("Attach", name="small")
        assert attached["model"]["leases"] == 1
        assert attached["device"]["export"] == "memfd"
        with wire_error("ModelBusy") as parameters:
            client.call("Unload", name="small")
        (lease,) = parameters["leases"]
        assert lease["lease"] == attached["lease"]
        assert lease["pid"] == os.getpid()
        assert lease["uid"] == os.geteuid()
        with wire_error("LeaseNotFound") as parameters:
            client.call("Detach", lease=attached["lease"])
        assert parameters == {"lease": attached["lease"]}
        owner.call("Detach", lease=attached["lease"])
        with wire_error("LeaseNotFound"):
            owner.call("Detach", lease=attached["lease"])
        client.call("Unload", name="small")
    assert arenas(daemon) == []


def test_lease_ids_are_not_used_twice(client, small_model):
    client.call("Load", path=str(small_model), name="small")
    seen = set()
    for _ in range(100):
        lease = client.call("Attach", name="small")["lease"]
        assert lease not in seen
        seen.add(lease)
        client.call("Detach", lease=lease)


def test_arena_is_sealed(client, small_model):
    client.call("Load", path=str(small_model), name="small")
    reply = client.call("Attach", name="small")
    fd, size = client.fds[reply["fd"]], reply["model"]["bytes"]
    with pytest.raises(PermissionError):
        mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, size * 2)):
        with pytest.raises((PermissionError, OSError)):
            change()
    mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ).close()


def test_arena_outlives_detach(client, small_model):
    """A mapping that a client made stays readable: a host arena is a file, and the kernel counts."""
    client.call("Load", path=str(small_model), name="small", form="native")
    reply = client.call("Attach", name="small")
    arena = mmap.mmap(client.fds[reply["fd"]], reply["model"]["bytes"], mmap.MAP_SHARED, mmap.PROT_READ)
    first = bytes(arena[:4096])
    client.call("Detach", lease=reply["lease"])
    client.call("Unload", name="small")
    assert arena[:4096] == first


HOLDER = """
import sys
sys.path.insert(0, sys.argv[1])
from rocmforge_wire import Client
client = Client(sys.argv[2])
for _ in range(3):
    client.call("Attach", name="small")
print("attached", flush=True)
sys.stdin.read()
"""


def test_client_is_killed_while_attached(daemon, small_model):
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        command = [sys.executable, "-c", HOLDER, str(ROOT / "tests" / "lib"), str(daemon.socket)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout.readline() == "attached\n"
            (model,) = client.call("List")["models"]
            assert model["leases"] == 3
            assert model["idle"] is None
            assert {lease["pid"] for lease in client.call("Show", name="small")["leases"]} == {holder.pid}
            holder.send_signal(signal.SIGKILL)
        wait_until(lambda: client.call("List")["models"][0]["leases"] == 0)
        assert client.call("List")["models"][0]["idle"] is not None
        client.call("Unload", name="small")
    assert arenas(daemon) == []


def test_table_in_binary(client, small_model):
    client.call("Load", path=str(small_model), name="small")
    tensors = client.call("Attach", name="small")["tensors"]
    reply = client.call("Attach", name="small", table=True)
    assert reply.get("tensors") is None
    table = os.pread(client.fds[reply["table"]], 1 << 20, 0)
    assert table.startswith(b"rftable2")
    assert all(tensor["name"].encode() + b"\0" in table for tensor in tensors)
    assert len(tensors) == int.from_bytes(table[16:24], "little")


# --- Those who watch ---


def test_watch(daemon, small_model):
    with daemon.client() as watcher, daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        events = watcher.more("Watch")
        first = next(events)
        assert first.get("event") is None
        assert [model["name"] for model in first["models"]] == ["small"]
        lease = client.call("Attach", name="small")["lease"]
        client.call("Detach", lease=lease)
        client.call("Unload", name="small")
        client.call("Load", path=str(small_model), name="again")
        seen = [(event["event"], event["model"]["name"]) for _, event in zip(range(5), events)]
        assert seen == [
            ("attached", "small"),
            ("detached", "small"),
            ("unloaded", "small"),
            ("loading", "again"),
            ("resident", "again"),
        ]


def test_many_who_watch_are_told_the_same(start, models):
    """Everything, in the same order: who reads at once, and who reads only when the socket is full. Who holds a lease on a
    model that drains learns it beside."""
    daemon = start("--budget", "64Mi")
    small, large = models(28, 1024), models(1, 44 * MIB)[0]
    with contextlib.ExitStack() as stack:
        client, reader, holder = (stack.enter_context(daemon.client()) for _ in range(3))
        late = [stack.enter_context(daemon.client()) for _ in range(10)]
        client.call("Load", path=str(models(1)[0]), name="held")
        holder.call("Attach", name="held")
        for watcher in (reader, holder, *late):
            watcher.send("Watch", more=True)
            watcher.reply()
        client.call("Unload", name="held", force=True)
        told = []
        for _ in range(10):
            for i, path in enumerate(small):
                client.call("Load", path=str(path), name=f"s{i}", public=True)
            client.call("Load", path=str(large), name="large")
            client.call("Unload", name="large")
            told.append(reader.reply()[0])
        client.call("Load", path=str(small[0]), name="end")

        def rest(watcher, told):
            while (told[-1]["event"], told[-1]["model"]["name"]) != ("resident", "end"):
                told.append(watcher.reply()[0])
            return told

        told = rest(reader, told)
        assert len(json.dumps(told)) > 256 << 10, "more than a socket takes"
        assert sum(event["event"] == "evicted" for event in told) >= 10 * 18
        assert all(rest(watcher, [watcher.reply()[0]]) == told for watcher in late)
        with_name = rest(holder, [holder.reply()[0]])
        assert with_name[0].pop("draining") == ["held"]
        assert with_name == told


def test_watch_needs_more(client):
    with pytest.raises(WireError):
        client.call("Watch")


def test_watch_sees_a_failure(daemon, small_model, folder):
    path = folder / "cut.gguf"
    path.write_bytes(small_model.read_bytes()[:-1000])
    with daemon.client() as watcher, daemon.client() as client:
        events = watcher.more("Watch")
        next(events)
        with wire_error("InvalidModel"):
            client.call("Load", path=str(path))
        names = []
        for event in events:
            names.append(event["event"])
            if event["event"] == "failed":
                assert event["error"]
                break
        assert names == ["loading", "failed"]
