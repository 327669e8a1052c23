"""Which models stay in memory, and for how long."""
import json
import os
import time

from harness import GRANULE, MIB, load, names, sparse_model, states, wait_until, wire_error

# --- Budget and eviction ---


def test_budget_in_per_cent(start):
    daemon = start("--budget", "10%")
    with daemon.client() as client:
        (device,) = client.call("Devices")["devices"]
        assert device["budget"] == device["total"] // 100 * 10
        assert device["available"] == device["budget"]


def test_budget_in_bytes(start):
    daemon = start("--budget", "64Mi")
    with daemon.client() as client:
        assert client.call("Devices")["devices"][0]["budget"] == 64 * MIB


def test_least_recently_used_goes_first(start, models):
    """Three fit. Use, not age, says which one goes."""
    daemon = start("--budget", "6Mi")
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
    daemon = start("--budget", "10Mi")
    (small,) = models(1)
    first, second = models(2, 4 * MIB)
    with daemon.client() as client:
        load(client, small, "small")
        load(client, first, "first")
        load(client, second, "second")
        load(client, models(3, 4 * MIB)[2], "third")
        assert names(daemon) == ["small", "second", "third"]


def test_nothing_goes_where_that_cannot_suffice(start, models):
    daemon = start("--budget", "8Mi")
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
    daemon = start("--budget", "4Mi")
    (path,) = models(1, 8 * MIB)
    with daemon.client() as client:
        with wire_error("OutOfDeviceMemory") as error:
            load(client, path, "m")
        assert (error["needed"], error["available"], error["evictable"]) == (8 * MIB, 4 * MIB, 0)
    assert daemon.used() == 0


def test_memory_on_its_way_back_is_waited_for(start, model_folder):
    """A load that needs what is just being unloaded evicts nobody for it, and does not fail."""
    daemon = start("--budget", "450Mi")
    one, other = (sparse_model(model_folder / f"way-back{i}.gguf", 384 * MIB) for i in range(2))
    with daemon.client() as first, daemon.client() as second:
        load(first, one, "a")
        first.send("Unload", {"name": "a"})
        load(second, other, "b")
        assert first.reply()[0]["state"] == "unloaded"
        assert names(daemon) == ["b"]


def test_leaving_while_memory_is_on_its_way_back(start, gate, model_folder):
    """Whoever waits for memory may go, or run out of time, at any moment of that; what comes of it is never loaded."""
    daemon = start("--budget", "225Mi", env=gate.env)
    one, other = (sparse_model(model_folder / f"leaving{i}.gguf", 192 * MIB) for i in range(2))
    for step in range(12):
        with daemon.client() as first:
            gate.open()
            load(first, one, "a")
            gate.close()
            second = daemon.client()
            first.send("Unload", {"name": "a"})
            if step % 3 == 0:
                second.send("Load", {"path": str(other), "name": "b", "deadline": 0.002 + 0.001 * step})
                with wire_error("DeadlineExceeded"):
                    second.reply()
            elif step % 3 == 1:
                second.send("Load", {"path": str(other), "name": "b"})
                time.sleep(0.002 + 0.001 * step)
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
    daemon = start("--budget", "4Mi")
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
        with wire_error("ModelBusy") as error:
            load(client, a, "m")
        assert (error["name"], error["state"], len(error["leases"])) == ("m", "draining", 3)
        for path, parameters in ((a, {"form": "f32"}), (b, {"form": "f32"})):
            with wire_error("NameInUse"):  # of what it has another of
                load(client, path, "m", **parameters)
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


def test_draining_is_not_pinned(daemon, models):
    (path,) = models(1)
    with daemon.client() as client, daemon.client() as holder:
        load(client, path, "m", pin=True)
        lease = holder.call("Attach", name="m")["lease"]
        client.call("Unload", name="m", force=True)
        assert client.call("Show", name="m")["model"]["pinned"] is False
        for method in ("Pin", "Unpin", "SetTtl"):
            with wire_error("ModelBusy") as error:
                client.call(method, name="m")
            assert error["state"] == "draining"
        pinned = daemon.rfctl("pin", "m", check=False)
        assert pinned.returncode != 0 and "drain" in pinned.stderr
        holder.call("Detach", lease=lease)
        wait_until(lambda: names(daemon) == [])


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


def test_the_same_file_after_a_drain_that_took_too_long(daemon, models):
    """A holder that hangs keeps its memory, and nobody from the file or the name."""
    (path,) = models(1)
    with daemon.client() as client, daemon.client() as hung:
        first = load(client, path, "m")["id"]
        lease = hung.call("Attach", name="m")["lease"]
        client.call("Unload", name="m", force=True, deadline=0.2)
        with wire_error("ModelBusy"):
            load(client, path, "m")
        wait_until(lambda: names(daemon) == [f"m#{first}"])
        second = load(client, path, "m")["id"]
        assert states(daemon) == {f"m#{first}": "draining", "m": "resident"}
        assert client.call("Attach", name="m")["model"]["id"] == second != first
        hung.call("Detach", lease=lease)
        wait_until(lambda: states(daemon) == {"m": "resident"})


def test_force_without_leases(daemon, models):
    (path,) = models(1)
    with daemon.client() as client:
        load(client, path, "m")
        assert client.call("Unload", name="m", force=True)["state"] == "unloaded"
        assert names(daemon) == []


def test_lists_are_json(daemon, models):
    """All sizes are integers below 2^53, also where a limit is none."""
    (path,) = models(1)
    with daemon.client() as client:
        load(client, path, "m", ttl=1 << 40)
        text = json.dumps(daemon.models())
        assert str(1 << 40) in text
