"""Which models stay in memory, who may have how much of it, and what is told about it."""
import contextlib
import json
import os
import signal
import struct
import threading
import time

import make_model
import pytest
from harness import USER, client_of, sparse_model, wait_until, wire_error
from rocmforge_wire import Closed, WireError

MIB = 1 << 20
GRANULE = 2 * MIB  # of the host: an arena is a multiple of it


def write_model(path, size=MIB, seed=1, type_="i8"):
    """One tensor of random bytes."""
    types = make_model.load_types()
    tensors = [make_model.Tensor("blk.0.ffn_up.weight", types[type_], (size,))]
    make_model.write_model(path, tensors, make_model.metadata(1, 256, 256, 4, 100), seed)
    return path


@pytest.fixture
def models(folder):
    """models(n, size): so many files, each of a granule or as large as is asked."""

    def make(n, size=MIB):
        return [write_model(folder / f"m{i}-{size}.gguf", size, i) for i in range(n)]

    return make


def load(client, path, name, **parameters):
    return client.call("Load", path=str(path), name=name, **parameters)["model"]


def names(daemon):
    return [model["name"] for model in daemon.models()]


def states(daemon):
    return {model["name"]: model["state"] for model in daemon.models()}


def is_filling(daemon, name):
    return states(daemon).get(name) == "filling"


def arenas(daemon):
    return [link for link in daemon.fds() if link.startswith("/memfd:")]


@pytest.fixture
def big(large_model):
    return large_model


# --- Budget and eviction ---


def test_budget_in_per_cent(start):
    daemon = start("--budget", "10%")
    with daemon.client() as client:
        (device,) = client.call("Devices")["devices"]
        assert device["budget"] == device["total"] // 100 * 10
        assert device["available"] == device["budget"]


def test_budget_in_bytes(start):
    daemon = start("--budget", "64M")
    with daemon.client() as client:
        assert client.call("Devices")["devices"][0]["budget"] == 64 * MIB


def test_least_recently_used_goes_first(start, models):
    """Three fit. Use, not age, says which one goes."""
    daemon = start("--budget", "6M")
    a, b, c, d, e = models(5)
    with daemon.client() as client, daemon.client() as watcher:
        for path, name in ((a, "a"), (b, "b"), (c, "c")):
            load(client, path, name)
        client.call("Detach", lease=client.call("Attach", name="a")["lease"])
        events = watcher.more("Watch")
        next(events)
        load(client, d, "d")
        assert names(daemon) == ["a", "c", "d"]
        load(client, a, "a")  # joining is use as well
        load(client, e, "e")
        assert names(daemon) == ["a", "d", "e"]
        assert client.call("Devices")["devices"][0]["used"] == 3 * GRANULE
        evicted = []
        while len(evicted) < 2:
            event = next(events)
            if event["event"] == "evicted":
                evicted.append(event["model"]["name"])
        assert evicted == ["b", "c"]


def test_no_more_than_needed(start, models):
    """The oldest is too small to help, and what helps is enough alone: the oldest stays."""
    daemon = start("--budget", "10M")
    (small,) = models(1)
    first, second = models(2, 4 * MIB)
    with daemon.client() as client:
        load(client, small, "small")
        load(client, first, "first")
        load(client, second, "second")
        load(client, models(3, 4 * MIB)[2], "third")
        assert names(daemon) == ["small", "second", "third"]


def test_nothing_goes_where_that_cannot_suffice(start, models):
    daemon = start("--budget", "8M")
    a, b, c = models(3)
    (huge,) = models(1, 7 * MIB)
    with daemon.client() as client, daemon.client() as holder:
        load(client, a, "pinned", pin=True)
        load(client, b, "leased")
        load(client, c, "idle")
        holder.call("Attach", name="leased")
        with wire_error("OutOfDeviceMemory") as error:
            load(client, huge, "huge")
        assert error["device"] == "host"
        assert (error["needed"], error["available"], error["evictable"]) == (8 * MIB, 2 * MIB, 2 * MIB)
        assert states(daemon) == {"pinned": "resident", "leased": "resident", "idle": "resident"}
        holder.call("Attach", name="pinned")
        client.call("Unpin", name="pinned")
        with wire_error("OutOfDeviceMemory"):
            load(client, huge, "huge")
        holder.close()
        wait_until(lambda: all(model["leases"] == 0 for model in daemon.models()))
        load(client, huge, "huge")
        assert names(daemon) == ["huge"]


def test_larger_than_the_budget(start, models):
    daemon = start("--budget", "4M")
    (path,) = models(1, 8 * MIB)
    with daemon.client() as client:
        with wire_error("OutOfDeviceMemory") as error:
            load(client, path, "m")
        assert (error["needed"], error["available"], error["evictable"]) == (8 * MIB, 4 * MIB, 0)
    assert daemon.used() == 0


def test_memory_on_its_way_back_is_waited_for(start, model_folder, big):
    """A load that needs what is just being unloaded evicts nobody for it, and does not fail."""
    daemon = start("--budget", "900M")
    other = sparse_model(model_folder / "other-large.gguf", 768 * MIB)
    with daemon.client() as first, daemon.client() as second:
        load(first, big, "a")
        first.send("Unload", {"name": "a"})
        load(second, other, "b")
        assert first.reply()[0]["state"] == "unloaded"
        assert names(daemon) == ["b"]


def test_leaving_while_memory_is_on_its_way_back(start, gate, model_folder, big):
    """Whoever waits for memory may go, or run out of time, at any moment of that; what comes of it is never loaded."""
    daemon = start("--budget", "900M", env=gate.env)
    other = sparse_model(model_folder / "other-large.gguf", 768 * MIB)
    for step in range(12):
        with daemon.client() as first:
            gate.open()
            load(first, big, "a")
            gate.close()
            second = daemon.client()
            first.send("Unload", {"name": "a"})
            if step % 3 == 0:
                second.send("Load", {"path": str(other), "name": "b", "deadline": 0.004 + 0.002 * step})
                with wire_error("DeadlineExceeded"):
                    second.reply()
            elif step % 3 == 1:
                second.send("Load", {"path": str(other), "name": "b"})
                time.sleep(0.004 + 0.002 * step)
            else:
                second.send("Load", {"path": str(other), "name": "b"})
                wait_until(lambda: "b" in names(daemon), every=0)
                with daemon.client() as third:
                    third.send("Cancel", {"name": "b"})
                    daemon.sync()
                    gate.open()
                    third.reply()
                with wire_error("Cancelled"):
                    second.reply()
            second.close()
            daemon.sync()
            gate.open()
        wait_until(lambda: daemon.models() == [])
    assert daemon.used() == 0


# --- Pins, times to live, leases ---


def test_pin(start, models):
    daemon = start("--budget", "4M")
    a, b, c = models(3)
    with daemon.client() as client:
        load(client, a, "a")
        load(client, b, "b")
        client.call("Pin", name="a")
        assert [model["pinned"] for model in daemon.models()] == [True, False]
        load(client, c, "c")
        assert names(daemon) == ["a", "c"]
        client.call("Unpin", name="a")
        load(client, b, "b")
        assert names(daemon) == ["c", "b"]


def test_time_to_live(start, models):
    daemon = start()
    a, b = models(2)
    with daemon.client() as client, daemon.client() as holder:
        load(client, a, "short")
        load(client, b, "long", ttl=1000)
        holder.call("Attach", name="short")
        client.call("SetTtl", name="short", ttl=1)
        time.sleep(1.3)
        assert names(daemon) == ["short", "long"], "a model that is used is not idle"
        holder.close()
        began = time.monotonic()
        wait_until(lambda: names(daemon) == ["long"], 5)
        assert time.monotonic() - began > 0.8
        client.call("SetTtl", name="long", ttl=0)
        wait_until(lambda: names(daemon) == [], 5)


def test_time_to_live_of_a_pinned_model(start, models):
    daemon = start()
    (path,) = models(1)
    with daemon.client() as client:
        load(client, path, "m", ttl=0, pin=True)
        time.sleep(0.3)
        assert names(daemon) == ["m"]
        client.call("SetTtl", name="m", ttl=None)
        client.call("Unpin", name="m")
        time.sleep(0.2)
        assert names(daemon) == ["m"]
        client.call("SetTtl", name="m", ttl=0)
        wait_until(lambda: names(daemon) == [], 5)


def test_busy_tells_the_holders(daemon, models):
    (path,) = models(1)
    with daemon.client() as client, daemon.client() as holder:
        load(client, path, "m")
        lease = holder.call("Attach", name="m")["lease"]
        time.sleep(0.1)
        with wire_error("ModelBusy") as error:
            client.call("Unload", name="m")
        (held,) = error["leases"]
        assert (held["lease"], held["pid"], held["uid"]) == (lease, os.getpid(), os.geteuid())
        assert 0.1 <= held["age"] < 10


def test_draining(daemon, models):
    """No new leases; the holder is told once, in its own next reply; the memory goes with the last lease."""
    a, b = models(2)
    with daemon.client() as client, daemon.client() as holder, daemon.client() as late, daemon.client() as watcher:
        load(client, a, "m")
        load(client, b, "other")
        leases = [holder.call("Attach", name="m")["lease"] for _ in range(2)]
        holder.call("Attach", name="other")
        fd = holder.take_fd(0)
        os.close(fd)
        late.call("Attach", name="m")
        events = watcher.more("Watch")
        next(events)
        reply = client.call("Unload", name="m", force=True)
        assert reply["state"] == "draining"
        assert "draining" not in reply
        assert next(events)["event"] == "draining"
        with wire_error("ModelBusy") as error:
            client.call("Attach", name="m")
        assert error["state"] == "draining"
        with wire_error("ModelBusy"):
            client.call("Unload", name="m")
        assert holder.call("Status")["draining"] == ["m"]
        assert "draining" not in holder.call("Status")
        assert "draining" not in client.call("Status")
        used = daemon.used()
        for lease in leases:
            holder.call("Detach", lease=lease)
        assert states(daemon) == {"m": "draining", "other": "resident"}
        assert daemon.used() == used, "memory with a live lease is not freed"
        late.close()
        wait_until(lambda: names(daemon) == ["other"])
        assert daemon.used() == GRANULE
        seen = [next(events)["event"] for _ in range(4)]
        assert seen == ["detached", "detached", "detached", "unloaded"]


def test_holder_that_watches_is_told(daemon, models):
    (path,) = models(1)
    with daemon.client() as client, daemon.client() as holder:
        load(client, path, "m")
        holder.call("Attach", name="m")
        events = holder.more("Watch")
        next(events)
        client.call("Unload", name="m", force=True)
        event = next(events)
        assert (event["event"], event["draining"]) == ("draining", ["m"])


def test_draining_waits_for_ever(daemon, models):
    """Neither time nor want of memory takes what has a lease."""
    (path,) = models(1)
    with daemon.client() as client, daemon.client() as holder:
        load(client, path, "m", ttl=0, pin=True)
        fd = holder.call("Attach", name="m")["fd"]
        client.call("Unpin", name="m")
        client.call("Unload", name="m", force=True)
        time.sleep(0.5)
        assert states(daemon) == {"m": "draining"}
        assert os.pread(holder.fds[fd], 16, 0) == path.read_bytes()[-MIB:][:16]


def test_force_without_leases(daemon, models):
    (path,) = models(1)
    with daemon.client() as client:
        load(client, path, "m")
        assert client.call("Unload", name="m", force=True)["state"] == "unloaded"
        assert names(daemon) == []


# --- Joined loads ---


def test_ten_clients_one_load(slow_daemon, big):
    """All get the same model and all see its progress; only the one that began it is told its phases."""
    daemon = slow_daemon
    results = []

    def one(number):
        with daemon.client() as client:
            results.append(list(client.more("Load", path=str(big), name=f"name{number}")))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({replies[-1]["model"]["id"] for replies in results}) == 1
    assert all(reply["progress"]["total"] for replies in results for reply in replies[:-1][-1:])
    assert all(len(replies) > 1 for replies in results), "somebody saw no progress"
    assert sum("phases" in replies[-1] for replies in results) == 1
    assert len(daemon.models()) == 1


def test_identity_is_not_the_path(daemon, models, folder):
    (path,) = models(1)
    os.link(path, folder / "hard.gguf")
    os.symlink(path, folder / "soft.gguf")
    with daemon.client() as client:
        first = load(client, path, "m")
        for other in ("hard.gguf", "soft.gguf"):
            assert load(client, folder / other, "another")["id"] == first["id"]
        with open(folder / "hard.gguf", "rb") as file:
            assert client.call("Load", fds=[file.fileno()])["model"]["id"] == first["id"]
        os.utime(path, (1, 1))
        assert load(client, path, "touched")["id"] != first["id"]
        path.write_bytes(path.read_bytes())
        assert load(client, path, "written")["id"] not in (first["id"], first["id"] + 1)


def test_another_form_needs_another_name(daemon, small_model):
    with daemon.client() as client:
        first = load(client, small_model, "m", form="f16")
        with wire_error("NameInUse") as error:
            load(client, small_model, "m", form="native")
        assert error == {"name": "m"}
        second = load(client, small_model, "n", form="native")
        assert second["id"] != first["id"]
        assert load(client, small_model, "whatever", form="native")["id"] == second["id"]


# --- Waiting, and for how long ---


def test_attach_while_loading(held_daemon, gate, big):
    daemon = held_daemon
    with daemon.client() as loader, daemon.client() as client:
        loader.send("Load", {"path": str(big), "name": "big"})
        wait_until(lambda: is_filling(daemon, "big"), every=0.001)
        attaching = client.more("Attach", name="big")
        replies = [next(attaching)]
        gate.open()
        replies += attaching
        assert all(reply["progress"]["total"] and "lease" not in reply for reply in replies[:-1])
        assert replies[-1]["lease"] and replies[-1]["model"]["state"] == "resident"
        assert loader.reply()[0]["model"]["id"] == replies[-1]["model"]["id"]


def test_attach_keeps_a_load_alive(held_daemon, gate, big):
    daemon = held_daemon
    with daemon.client() as client:
        with daemon.client() as loader:
            loader.send("Load", {"path": str(big), "name": "big"})
            wait_until(lambda: is_filling(daemon, "big"), every=0.001)
            client.send("Attach", {"name": "big"})
            daemon.sync()
        daemon.sync()
        gate.open()
        assert client.reply()[0]["lease"]


def test_attach_to_a_load_that_is_cancelled(held_daemon, gate, big):
    daemon = held_daemon
    with daemon.client() as loader, daemon.client() as client, daemon.client() as third:
        loader.send("Load", {"path": str(big), "name": "big"})
        wait_until(lambda: is_filling(daemon, "big"), every=0.001)
        client.send("Attach", {"name": "big"})
        daemon.sync()
        third.send("Cancel", {"name": "big"})
        daemon.sync()
        gate.open()
        third.reply()
        for waiting in (loader, client):
            with wire_error("Cancelled"):
                waiting.reply()
    assert names(daemon) == [] and daemon.used() == 0


@pytest.mark.parametrize("method", ["Load", "Attach"])
def test_deadline_while_loading(held_daemon, gate, big, method):
    """The one who waits too long is told so in time; the load goes on while somebody else waits."""
    daemon = held_daemon
    with daemon.client() as loader, daemon.client() as client:
        loader.send("Load", {"path": str(big), "name": "big"})
        wait_until(lambda: is_filling(daemon, "big"), every=0.001)
        parameters = {"path": str(big)} if method == "Load" else {"name": "big"}
        with wire_error("DeadlineExceeded"):
            client.call(method, deadline=0.01, **parameters)
        assert client.call("Status")["pid"] == daemon.pid
        assert is_filling(daemon, "big")
        gate.open()
        assert loader.reply()[0]["model"]["state"] == "resident"


def test_deadline_of_the_only_one(held_daemon, gate, big):
    daemon = held_daemon
    with daemon.client() as client:
        with wire_error("DeadlineExceeded"):
            client.call("Load", path=str(big), name="big", deadline=0.02)
        gate.open()
        wait_until(lambda: names(daemon) == [])
        assert daemon.used() == 0


def test_deadline_of_verify_and_unload(start, gate, big):
    daemon = start(env=gate.env)
    with daemon.client() as client:
        load(client, big, "big")
        gate.close()
        with wire_error("DeadlineExceeded"):
            client.call("Verify", name="big", deadline=0.01)
        gate.open()
        wait_until(lambda: states(daemon) == {"big": "resident"})

        def unloaded():
            try:
                return client.call("Unload", name="big", deadline=0.001)
            except WireError as error:
                assert error.name in ("DeadlineExceeded", "ModelBusy", "ModelNotFound"), error
                return error.name != "ModelBusy"

        wait_until(unloaded)
        wait_until(lambda: names(daemon) == [])
        assert daemon.used() == 0


# --- Plan ---


def test_plan(start, models):
    daemon = start("--budget", "4M")
    a, b, c = models(3)
    (huge,) = models(1, 6 * MIB)
    with daemon.client() as client:
        plan = client.call("Plan", path=str(a))
        assert (plan["fits"], plan["evicts"], plan["bytes"], plan["available"]) == (True, [], GRANULE, 4 * MIB)
        assert plan["size"] == a.stat().st_size and plan["tensors"] == 1
        assert plan["seconds"] is None, "no load so far, and no rate"
        assert names(daemon) == []
        load(client, a, "a")
        load(client, b, "b")
        before = daemon.models()
        plan = client.call("Plan", path=str(c))
        assert (plan["fits"], plan["evicts"], plan["available"]) == (True, ["a"], 0)
        assert plan["seconds"] > 0
        plan = client.call("Plan", path=str(b))
        assert (plan["fits"], plan["evicts"], plan["seconds"], plan["model"]["name"]) == (True, [], 0, "b")
        plan = client.call("Plan", path=str(huge))
        assert (plan["fits"], plan["evicts"]) == (False, [])
        after = daemon.models()
        for model in before + after:
            del model["idle"]
        assert after == before
        assert load(client, c, "c") and names(daemon) == ["b", "c"], "it came as it was planned"
        with open(a, "rb") as file:
            plan = client.call("Plan", fds=[file.fileno()], form="f32")
            assert plan["form"] == "f32" and plan["bytes"] == 4 * MIB
    assert not any(link.endswith("m0-1048576.gguf") for link in daemon.settled_fds())


def test_plan_of_no_model(client, folder):
    (folder / "bad.gguf").write_bytes(b"GGUF and no more")
    with wire_error("InvalidModel"):
        client.call("Plan", path=str(folder / "bad.gguf"))
    with wire_error("FileError"):
        client.call("Plan", path=str(folder / "none.gguf"))
    with wire_error("DeviceNotFound"):
        client.call("Plan", path=str(folder / "bad.gguf"), device="hip:7")


# --- Split models ---

U16, U32, I32 = 2, 4, 5


def write_shard(path, number, count, total, tensors, seed, keys=("no", "count", "tensors.count")):
    values = {"no": ("<H", U16, number), "count": ("<H", U16, count), "tensors.count": ("<i", I32, total)}
    kv = b""
    for key in keys:
        form, type_, value = values[key]
        kv += make_model.string(f"split.{key}") + struct.pack("<I", type_) + struct.pack(form, value)
    extra = [("general.architecture", b"llama")] if number == 0 else []
    for key, value in extra:
        kv += make_model.string(key) + struct.pack("<I", make_model.STRING) + make_model.string(value.decode())
    make_model.write_model(path, tensors, (len(keys) + len(extra), kv), seed)


def split_tensors(n):
    types = make_model.load_types()
    return [make_model.Tensor(f"blk.{i}.ffn_up.weight", types["f32"], (256, 64 + i)) for i in range(n)]


@pytest.fixture
def split(folder):
    """split(change): three files of a model; change(number) gives what to write otherwise."""

    def make(change=lambda number: {}, n=3):
        tensors = split_tensors(7)
        shares = [tensors[:0], tensors[:3], tensors[3:]]
        paths = []
        for number in range(n):
            path = folder / f"model-{number + 1:05}-of-{n:05}.gguf"
            fields = {"number": number, "count": n, "total": 7, "tensors": shares[number], "seed": number}
            write_shard(path, **{**fields, **change(number)})
            paths.append(path)
        return paths

    return make


def check_split(client, name, paths):
    """Every tensor's bytes are those of the shard that it stands in."""
    reply = client.call("Attach", name=name)
    assert [tensor["name"] for tensor in reply["tensors"]] == [f"blk.{i}.ffn_up.weight" for i in range(7)]
    fd = client.fds[reply["fd"]]
    for path, tensors in ((paths[1], reply["tensors"][:3]), (paths[2], reply["tensors"][3:])):
        data = path.read_bytes()
        for tensor in tensors:
            bytes_ = os.pread(fd, tensor["size"], tensor["offset"])
            assert len(bytes_) == tensor["size"] and data.count(bytes_) == 1
    client.call("Detach", lease=reply["lease"])


def test_split_by_path(daemon, split):
    paths = split()
    with daemon.client() as client:
        model = client.call("Load", path=str(paths[0]))["model"]
        assert model["size"] == sum(path.stat().st_size for path in paths)
        assert model["tensors"] == 7
        check_split(client, model["name"], paths)
        assert client.call("Verify", name=model["name"])["mismatches"] == []
        assert client.call("Plan", path=str(paths[0]))["model"]["id"] == model["id"]


def test_split_by_descriptors(daemon, split):
    paths = split()
    with daemon.client() as client, contextlib.ExitStack() as stack:
        fds = [stack.enter_context(open(path, "rb")).fileno() for path in paths]
        assert client.call("Load", fds=fds, name="m")["model"]["tensors"] == 7
        check_split(client, "m", paths)
        assert client.call("Load", path=str(paths[0]))["model"]["name"] == "m", "the same files, the same model"
        with wire_error("InvalidModel") as error:
            client.call("Load", fds=fds[:2], name="n")
        assert "3 files" in error["reason"]
        with wire_error("InvalidModel"):
            client.call("Load", fds=[fds[0], fds[2], fds[1]], name="n")
        with wire_error("InvalidModel") as error:
            client.call("Load", fds=fds[:1], name="n")
        assert "all are needed" in error["reason"]
        assert names(daemon) == ["m"]


@pytest.mark.parametrize(
    "change",
    [
        {2: {"number": 1}},
        {0: {"count": 2}},
        {0: {"total": 8}},
        {0: {"keys": ("no", "count")}},
        {1: {"keys": ("count", "tensors.count")}},
        {0: {"keys": ("count", "tensors.count")}},
        {2: {"tensors": split_tensors(4)}},
        {0: {"keys": ()}},
    ],
    ids=["number", "count", "total", "no-total", "no-number", "first-no-number", "names", "nothing"],
)
def test_split_that_does_not_agree(daemon, split, change):
    paths = split(lambda number: change.get(number, {}))
    with daemon.client() as client:
        with wire_error("InvalidModel"):
            client.call("Load", path=str(paths[0]))
    assert names(daemon) == [] and daemon.used() == 0


def test_split_whose_later_files_do_not_count(daemon, split):
    """Loaders go by the first file's count."""
    paths = split(lambda number: {"keys": ("no",)} if number else {})
    with daemon.client() as client:
        client.call("Load", path=str(paths[0]), name="m")
        check_split(client, "m", paths)


def test_split_from_a_later_file(daemon, split):
    paths = split()
    with daemon.client() as client, wire_error("InvalidModel") as error:
        client.call("Load", path=str(paths[1]))
    assert "first" in error["reason"]


def test_split_with_a_file_missing(daemon, split):
    paths = split()
    before = daemon.settled_fds()
    paths[2].unlink()
    with daemon.client() as client, wire_error("FileError") as error:
        client.call("Load", path=str(paths[0]))
    assert error["call"] == "open"
    wait_until(lambda: daemon.fds() == before)


# --- Fair, and bounded ---

def load_fd(client, path, **parameters):
    with open(path, "rb") as file:
        return client.call("Load", fds=[file.fileno()], **parameters)["model"]


def test_limit_of_connections(start_for_all):
    daemon = start_for_all("--user-connections", "3")
    mine = [client_of(daemon, USER) for _ in range(3)]
    for client in mine:
        client.call("Status")
    fourth = client_of(daemon, USER)
    message = fourth.receive()
    assert message == {
        "error": "io.rocmforge.LimitExceeded",
        "parameters": {"limit": "user-connections", "value": 3},
    }
    with pytest.raises((Closed, ConnectionError)):
        fourth.receive()
    other = client_of(daemon, USER + 1)
    other.call("Status")
    for unbounded in (0, daemon.uid):
        clients = [client_of(daemon, unbounded) for _ in range(5)]
        for client in clients:
            client.call("Status")
            client.close()
    mine.pop().close()
    wait_until(lambda: daemon.status()["connections"] == 4)  # two, the other's, and that of who asks
    with client_of(daemon, USER) as again:
        again.call("Status")
    for client in (*mine, fourth, other):
        client.close()


def test_limit_of_loads(start_for_all, gate, folder):
    daemon = start_for_all("--user-loads", "1", env=gate.env)
    gate.close()
    paths = [sparse_model(folder / f"large{i}.gguf", 640 * MIB) for i in range(2)]
    with client_of(daemon, USER) as first, client_of(daemon, USER) as second, client_of(daemon, daemon.uid) as own:
        with open(paths[0], "rb") as file:
            first.send("Load", {"fds": [0], "name": "first"}, [file.fileno()])
        wait_until(lambda: is_filling(daemon, "first"), every=0.001)
        with wire_error("LimitExceeded") as error:
            load_fd(second, paths[1], name="second")
        assert error == {"limit": "user-loads", "value": 1}
        gate.open()
        load_fd(own, paths[1], name="own")
        first.reply()
        assert load_fd(second, paths[1], name="second")["name"] == "own"


def test_limit_of_leases(start_for_all, models):
    daemon = start_for_all("--user-leases", "2")
    a, b = models(2)
    with client_of(daemon, USER) as first, client_of(daemon, USER) as second, client_of(daemon, 0) as root:
        load_fd(root, a, name="a")
        load_fd(root, b, name="b")
        lease = first.call("Attach", name="a")["lease"]
        second.call("Attach", name="b")
        with wire_error("LimitExceeded") as error:
            first.call("Attach", name="b")
        assert error == {"limit": "user-leases", "value": 2}
        for _ in range(4):
            root.call("Attach", name="a")
        first.call("Detach", lease=lease)
        first.call("Attach", name="b")


def test_limit_of_bytes(start_for_all, models):
    daemon = start_for_all("--user-bytes", "4M")
    a, b, c = models(3)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other, client_of(daemon, daemon.uid) as own:
        load_fd(user, a, name="a")
        load_fd(user, b, name="b")
        with wire_error("LimitExceeded") as error:
            load_fd(user, c, name="c")
        assert error == {"limit": "user-bytes", "value": 4 * MIB}
        load_fd(other, c, name="c")
        load_fd(user, c)  # another's, which costs this user nothing
        user.call("Unload", name="a")
        load_fd(user, models(4)[3], name="d")
        (huge,) = models(1, 6 * MIB)
        load_fd(own, huge, name="huge")
        assert sorted(names(daemon)) == ["b", "c", "d", "huge"]
    assert daemon.used() == 3 * GRANULE + 6 * MIB


def test_only_the_owner_changes_a_model(start_for_all, models):
    """Neither by name nor by loading what is there already."""
    daemon = start_for_all()
    (path,) = models(1)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other, client_of(daemon, 0) as root:
        load_fd(user, path, name="m")
        for method, parameters in (
            ("Pin", {}),
            ("Unpin", {}),
            ("SetTtl", {"ttl": 0}),
            ("Unload", {}),
            ("Unload", {"force": True}),
        ):
            with wire_error("PermissionDenied"):
                other.call(method, name="m", **parameters)
        model = load_fd(other, path, pin=True, ttl=0)
        assert (model["name"], model["pinned"], model["ttl"]) == ("m", False, None)
        model = load_fd(user, path, pin=True, ttl=7)
        assert (model["pinned"], model["ttl"]) == (True, 7)
        root.call("Unpin", name="m")
        model = load_fd(root, path, pin=True)
        assert (model["pinned"], model["ttl"]) == (True, 7)


# --- What one user has for itself ---


def test_private(start_for_all, models):
    daemon = start_for_all()
    a, b = models(2)
    with contextlib.ExitStack() as stack:
        user, other, root, watcher = (
            stack.enter_context(client_of(daemon, uid)) for uid in (USER, USER + 1, 0, USER + 1)
        )
        events = watcher.more("Watch")
        assert next(events)["models"] == []
        model = load_fd(user, a, name="mine", private=True)
        assert model["private"] and model["uid"] == USER
        assert other.call("List")["models"] == []
        assert [m["name"] for m in user.call("List")["models"]] == ["mine"]
        assert [m["name"] for m in root.call("List")["models"]] == ["mine"]
        for method in ("Attach", "Show", "Verify", "Unload", "Pin", "Cancel"):
            with wire_error("ModelNotFound"):
                other.call(method, name="mine")
        with wire_error("PermissionDenied"):
            root.call("Attach", name="mine")
        user.call("Attach", name="mine")
        assert load_fd(user, a, private=True)["id"] == model["id"]
        theirs = load_fd(other, a, name="theirs")
        assert theirs["id"] != model["id"], "a private model is not joined"
        seen = [next(events)["model"]["name"] for _ in range(2)]
        assert seen == ["theirs", "theirs"]
        assert load_fd(user, a)["name"] == "theirs"


def test_plan_tells_nothing_private(start_for_all, models):
    daemon = start_for_all("--budget", "4M")
    a, b = models(2)
    (huge,) = models(1, 3 * MIB)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other:
        load_fd(user, a, name="mine", private=True)
        load_fd(user, b, name="shown")
        with open(huge, "rb") as file:
            assert other.call("Plan", fds=[file.fileno()])["evicts"] == ["shown"]
        with open(huge, "rb") as file:
            assert user.call("Plan", fds=[file.fileno()])["evicts"] == ["mine", "shown"]
        with open(a, "rb") as file:
            assert other.call("Plan", fds=[file.fileno()]).get("model") is None


# --- Preloading ---


@pytest.fixture
def preload_folder(folder):
    path = folder / "preload"
    path.mkdir()
    return path


def test_preload(start, models, preload_folder):
    a, b, c = models(3)
    for path, name in ((c, "1-last"), (a, "0-first"), (b, "2-more")):
        (preload_folder / f"{name}.gguf").symlink_to(path)
    (preload_folder / "1-bad.gguf").write_bytes(b"no model")
    (preload_folder / "1-dangling.gguf").symlink_to("/nowhere.gguf")
    (preload_folder / "README").write_text("not a model")
    os.mkfifo(preload_folder / "1-pipe.gguf")
    (preload_folder / ".hidden.gguf").symlink_to(a)
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: states(daemon) == {n: "resident" for n in ("0-first", "1-last", "2-more")})
    listed = daemon.models()
    assert [model["name"] for model in listed] == ["0-first", "1-last", "2-more"], "in order of name"
    assert all(model["pinned"] and model["ttl"] is None for model in listed)
    for name in ("1-bad", "1-dangling", "1-pipe"):
        assert f"{name}.gguf skipped" in daemon.log


def test_preload_again(start, models, preload_folder):
    a, b = models(2)
    (preload_folder / "a.gguf").symlink_to(a)
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: states(daemon) == {"a": "resident"})
    (preload_folder / "b.gguf").symlink_to(b)
    with daemon.client() as client:
        client.call("Unpin", name="a")
        for _ in range(3):
            daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: states(daemon) == {"a": "resident", "b": "resident"})
        wait_until(lambda: all(model["pinned"] for model in daemon.models()))
        client.call("Unload", name="a")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: states(daemon) == {"b": "resident", "a": "resident"})


def test_preload_of_a_split_model(start, split, preload_folder):
    for path in split():
        (preload_folder / path.name).symlink_to(path)
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: list(states(daemon).values()) == ["resident"])
    assert daemon.models()[0]["tensors"] == 7
    assert "skipped" not in daemon.log


def test_preload_of_nothing(start, folder):
    daemon = start("--preload", str(folder / "none"))
    wait_until(lambda: "none" in daemon.log.split("ready")[-1] or "preload" in daemon.log)
    assert names(daemon) == []


def test_end_while_preloading(start, gate, preload_folder, big):
    (preload_folder / "a.gguf").symlink_to(big)
    (preload_folder / "b.gguf").symlink_to(big)
    gate.close()
    daemon = start("--preload", str(preload_folder), env=gate.env)
    wait_until(lambda: is_filling(daemon, "a"), every=0.001)
    assert daemon.stop(gate) == 0


def test_hangup_without_preload(daemon):
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    assert names(daemon) == []


# --- The end, in every state ---


def test_end_while_memory_is_on_its_way_back(start, model_folder, big):
    other = sparse_model(model_folder / "other-large.gguf", 768 * MIB)
    for _ in range(3):
        daemon = start("--budget", "900M")
        with daemon.client() as first, daemon.client() as second:
            load(first, big, "a")
            first.send("Unload", {"name": "a"})
            second.send("Load", {"path": str(other), "name": "b"})
            wait_until(lambda: "b" in names(daemon) or "a" not in names(daemon), every=0.001)
            assert daemon.stop() == 0, daemon.log


@pytest.mark.parametrize("delay", [0, 0.002, 0.01, 0.05, 0.2])
def test_end_at_any_moment_of_a_load(start, big, delay):
    daemon = start()
    with daemon.client() as loader, daemon.client() as attacher:
        loader.send("Load", {"path": str(big), "name": "big"})
        attacher.send("Attach", {"name": "big"})
        time.sleep(delay)
        assert daemon.stop() == 0, daemon.log


def test_end_while_draining_and_verifying(start, big, models):
    (path,) = models(1)
    daemon = start()
    with daemon.client() as client, daemon.client() as holder, daemon.client() as verifier, daemon.client() as planner:
        load(client, big, "big")
        load(client, path, "m", ttl=1)
        holder.call("Attach", name="m")
        client.call("Unload", name="m", force=True)
        verifier.send("Verify", {"name": "big"}, more=True)
        planner.send("Plan", {"path": str(path), "form": "f32"})
        verifier.reply()
        assert daemon.stop() == 0, daemon.log


def test_lists_are_json(daemon, models):
    """All sizes are integers below 2^53, also where a limit is none."""
    (path,) = models(1)
    with daemon.client() as client:
        load(client, path, "m", ttl=1 << 40)
        text = json.dumps(daemon.models())
        assert str(1 << 40) in text
