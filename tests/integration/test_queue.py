"""Loads that wait for memory: who gets it first, and how the wait ends."""
import contextlib
import os
import random
import re
import time

import make_model
import pytest
from harness import GRANULE, MIB, USER, client_of, load, names, states, wait_until, wire_error
from rocmforge_wire import WireError

SIZE = MIB  # of a file whose model takes one granule


@pytest.fixture
def full(start, models):
    """A daemon whose memory, two granules, is leased, by a connection for each half."""
    daemon = start("--budget", str(2 * GRANULE))
    a, b = models(2)
    daemon.holders = [daemon.client(), daemon.client()]
    for holder, path, name in zip(daemon.holders, (a, b), "ab"):
        holder.call("Load", path=str(path), name=name, lease=True)
    yield daemon
    for holder in daemon.holders:
        holder.close()


@pytest.fixture
def more(folder, models):
    def make(n, size=SIZE):
        """Other files than those of `full`."""
        return models(n + 2, size)[2:] if size == SIZE else models(n, size)

    return make


def queue(daemon, path, name, seconds=60, **parameters):
    client = daemon.client()
    client.send("Load", {"path": str(path), "name": name, "waitForMemory": seconds, **parameters}, more=True)
    return client


def places(daemon):
    return {model["name"]: model["position"] for model in daemon.models() if model["state"] == "queued"}


def last(client):
    while True:
        parameters, continues = client.reply()
        if not continues:
            return parameters


def test_waits_for_a_lease_to_end(full, more):
    (path,) = more(1)
    with queue(full, path, "c") as waiting, full.client() as client:
        wait_until(lambda: places(full) == {"c": 1})
        with wire_error("OutOfDeviceMemory"):
            client.call("Load", path=str(path), name="c2", form="native", private=True)
        device = client.call("Devices")["devices"][0]
        assert (device["queued"], device["available"]) == (GRANULE, 0)
        full.holders[0].close()
        reply = last(waiting)
        assert reply["model"]["state"] == "resident" and reply["model"]["position"] is None
        assert names(full) == ["b", "c"]
        assert client.call("Devices")["devices"][0]["queued"] == 0


def test_others_are_served_while_a_crowd_gets_its_leases(start_for_all, folder, models):
    """Many wait for a model with Attach, and each answer is long. Some go before they have theirs."""
    daemon = start_for_all("--budget", "64Mi")
    types = make_model.load_types()
    tensors = [make_model.Tensor(f"t{i}", types["f32"], (8,)) for i in range(8000)]
    tensors.append(make_model.Tensor("large", types["f32"], (8 * MIB,)))
    path = folder / "crowd.gguf"
    make_model.write_model(path, tensors, make_model.metadata(1, 256, 256, 4, 100), 1)
    (other,) = models(1, 44 * MIB)
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(daemon.client())
        load(holder, other, "other", lease=True)
        waiting = stack.enter_context(daemon.client())
        with open(path, "rb") as file:
            waiting.send("Load", {"fds": [0], "name": "crowd", "waitForMemory": 60, "public": True}, [file.fileno()])
        wait_until(lambda: places(daemon) == {"crowd": 1})
        crowd = [stack.enter_context(daemon.client()) for _ in range(60)]
        for client in crowd:
            client.send("Attach", {"name": "crowd"})
        innocent = stack.enter_context(client_of(daemon, USER))

        def leases():
            return {model["name"]: model["leases"] for model in innocent.call("List")["models"]}.get("crowd", 0)

        innocent.call("Status")
        holder.close()
        while (n := leases()) == 0:
            pass
        for client in crowd[40:]:
            client.close()
        assert n < 60, "nobody was served between"
        for client in crowd[:40]:
            assert len(client.reply()[0]["tensors"]) == 8001
        wait_until(lambda: leases() == 40)
        for client in crowd[:40]:
            client.close()
        wait_until(lambda: leases() == 0)
        assert waiting.reply()[0]["model"]["name"] == "crowd"
        assert waiting.call("Unload", name="crowd")["state"] == "unloaded", "nothing holds it"


def test_a_quota_that_only_one_fits_in(start_for_all, models):
    """Two loads of a user wait, and the same end of a lease gives both the memory. The second one has to end, too."""
    daemon = start_for_all("--budget", "16Mi", "--user-bytes", "12Mi")
    (large,), (first, second) = models(1, 16 * MIB), models(2, 8 * MIB)
    with contextlib.ExitStack() as stack:
        holder = stack.enter_context(daemon.client())
        load(holder, large, "a", lease=True)
        waiting = [stack.enter_context(client_of(daemon, USER)) for _ in range(2)]
        for client, path, name in zip(waiting, (first, second), "bc"):
            with open(path, "rb") as file:
                client.send("Load", {"fds": [0], "name": name, "waitForMemory": 60}, [file.fileno()])
            wait_until(lambda: name in places(daemon))
        wait_until(daemon.is_idle)
        holder.close()
        assert waiting[0].reply()[0]["model"]["state"] == "resident"
        with wire_error("LimitExceeded") as error:
            waiting[1].reply()
        assert error == {"limit": "user-bytes", "value": 12 * MIB}
    assert states(daemon) == {"b": "resident"}


def test_progress_tells_that_it_is_queued(full, more):
    (path,) = more(1)
    with queue(full, path, "c") as waiting:
        parameters, continues = waiting.reply()
        while parameters["model"]["state"] != "queued" or parameters["model"]["position"] is None:
            parameters, continues = waiting.reply()
        assert continues and parameters["progress"]["state"] == "queued" and parameters["model"]["position"] == 1


def test_time_is_over(full, more):
    (path,) = more(1)
    began = time.monotonic()
    with full.client() as client, wire_error("OutOfDeviceMemory") as parameters:
        client.call("Load", path=str(path), name="c", waitForMemory=0.5)
    assert 0.5 <= time.monotonic() - began < 20
    assert parameters == {"device": "host", "needed": GRANULE, "available": 0, "evictable": 0}
    assert names(full) == ["a", "b"]


def test_without_it_the_answer_comes_at_once(full, more):
    path, other = more(2)
    with full.client() as client, queue(full, path, "c"):
        wait_until(lambda: places(full) == {"c": 1})
        with wire_error("OutOfDeviceMemory"):
            client.call("Load", path=str(other), name="d")
        with wire_error("org.varlink.service.InvalidParameter"):
            client.call("Load", path=str(other), name="d", waitForMemory=-1)


def test_who_joins_may_wait_for_as_long_as_it_said(full, more):
    """Not at all, for a shorter and for a longer time: the load goes on until nobody waits."""
    (path,) = more(1)
    began = time.monotonic()
    with queue(full, path, "c", 3) as first, full.client() as none, full.client() as short:
        wait_until(lambda: places(full) == {"c": 1})
        with queue(full, path, "c", 6) as longer:
            short.send("Load", {"path": str(path), "name": "c", "waitForMemory": 1})
            with wire_error("OutOfDeviceMemory") as parameters:
                none.call("Load", path=str(path), name="other", deadline=2)
            assert parameters == {"device": "host", "needed": GRANULE, "available": 0, "evictable": 0}
            assert [model["aliases"] for model in full.models() if model["name"] == "c"] == [[]]
            for client, seconds in ((short, 1), (first, 3), (longer, 6)):
                with wire_error("OutOfDeviceMemory"):
                    last(client)
                assert seconds <= time.monotonic() - began < seconds + 1.5
    wait_until(lambda: names(full) == ["a", "b"])


def test_the_last_one_whose_time_is_over_ends_it(full, more):
    """Whoever would have waited longer has gone."""
    (path,) = more(1)
    began = time.monotonic()
    with queue(full, path, "c", 2) as first:
        wait_until(lambda: places(full) == {"c": 1})
        longer = queue(full, path, "c", 60)
        longer.reply()
        longer.close()
        with wire_error("OutOfDeviceMemory"):
            last(first)
        assert time.monotonic() - began < 20
        wait_until(lambda: names(full) == ["a", "b"], 5)


def test_who_joins_gets_it_too(full, more):
    (path,) = more(1)
    with queue(full, path, "c", 1) as first, queue(full, path, "c", 60) as second:
        with wire_error("OutOfDeviceMemory"):
            last(first)
        full.holders[0].close()
        assert last(second)["model"]["state"] == "resident"


def touch(path):
    os.utime(path, (1, 1))


@pytest.mark.parametrize("way", [None, touch, lambda path: path.chmod(0o640)])
def test_plan_of_what_is_queued(full, more, way):
    """It says what Load answers, at once."""
    (path,) = more(1)
    with queue(full, path, "c"), full.client() as client:
        wait_until(lambda: places(full) == {"c": 1})
        if way:
            way(path)
        for name in "c", "d":
            plan = client.call("Plan", path=str(path), name=name)
            assert (plan["fits"], plan["error"], plan["available"]) == (False, "io.rocmforge.OutOfDeviceMemory", 0)
            assert "model" not in plan
            with wire_error("OutOfDeviceMemory"):
                client.call("Load", path=str(path), name=name, deadline=5)
        with wire_error("OutOfDeviceMemory"):
            client.call("Load", path=str(path), name="c", waitForMemory=0.5, deadline=5)
        assert places(full) == {"c": 1}


@pytest.mark.parametrize(
    "way", [touch, lambda path: path.chmod(0o640), lambda path: path.rename(path.with_name("moved.gguf"))]
)
def test_file_that_is_touched_while_it_is_queued(full, more, way):
    """Nothing was read of it but its header, which is the same."""
    (path,) = more(1)
    with queue(full, path, "c") as waiting, full.client() as client:
        wait_until(lambda: places(full) == {"c": 1})
        way(path)
        full.holders[0].close()
        model = last(waiting)["model"]
        assert (model["state"], model["changed"]) == ("resident", False)
        there = path if path.exists() else path.with_name("moved.gguf")
        assert model["path"] == str(path)  # as it was asked for
        assert client.call("Verify", name="c")["mismatches"] == []
        reads = full.reads()
        assert client.call("Load", path=str(there))["model"]["id"] == model["id"]
        assert full.reads() - reads < 10, "it has not been touched since"


def test_file_that_has_another_header_by_then(full, more):
    (path,) = more(1)
    data = bytearray(path.read_bytes())
    with queue(full, path, "c") as waiting:
        wait_until(lambda: places(full) == {"c": 1})
        at = data.index(b"llama")
        data[at : at + 5] = b"lluma"
        path.write_bytes(data)
        full.holders[0].close()
        with wire_error("FileChanged") as error:
            last(waiting)
    assert error == {"path": str(path), "when": "while-read"}
    wait_until(lambda: names(full) in ([], ["a", "b"], ["b"]))


def test_what_can_never_fit_is_refused_at_once(full, more):
    (huge,) = more(1, 6 * MIB)
    with full.client() as client, wire_error("OutOfDeviceMemory"):
        client.call("Load", path=str(huge), name="huge", waitForMemory=3600)


def test_cancel(full, more):
    path, second = more(2)
    with queue(full, path, "c") as waiting, queue(full, second, "d") as behind, full.client() as client:
        wait_until(lambda: set(places(full)) == {"c", "d"})
        first, then = sorted(places(full), key=places(full).get)
        client.call("Cancel", name=first)
        with wire_error("Cancelled"):
            last(waiting if first == "c" else behind)
        wait_until(lambda: places(full) == {then: 1})
        full.holders[0].close()
        assert last(behind if first == "c" else waiting)["model"]["name"] == then


def test_gone_with_its_client(full, more):
    (path,) = more(1)
    queue(full, path, "c").close()
    wait_until(lambda: names(full) == ["a", "b"])


def test_deadline(full, more):
    (path,) = more(1)
    with queue(full, path, "c", deadline=0.3) as waiting, wire_error("DeadlineExceeded"):
        last(waiting)
    wait_until(lambda: names(full) == ["a", "b"])


def test_daemon_ends_while_some_wait(full, more):
    (path,) = more(1)
    with queue(full, path, "c") as waiting:
        wait_until(lambda: places(full) == {"c": 1})
        assert full.stop() == 0
        with pytest.raises(Exception):
            last(waiting)


def test_by_itself(full, more):
    """`wait` false: the answer comes when memory was taken, and the load goes on."""
    (path,) = more(1)
    with queue(full, path, "c", wait=False) as waiting:
        wait_until(lambda: places(full) == {"c": 1})
        full.holders[1].close()
        last(waiting)
    wait_until(lambda: states(full).get("c") == "resident")


def test_unpinned_is_memory_too(start, models):
    daemon = start("--budget", str(GRANULE))
    a, b = models(2)
    with daemon.client() as client:
        client.call("Load", path=str(a), name="a", pin=True)
        with queue(daemon, b, "b") as waiting:
            wait_until(lambda: places(daemon) == {"b": 1})
            client.call("Unpin", name="a")
            assert last(waiting)["model"]["name"] == "b"


def test_large_ones_are_not_starved(full, more):
    """Small ones that come later do not take what a large one waits for, piece by piece."""
    (large,) = more(1, 3 * MIB)
    small, other = more(2)
    with queue(full, large, "large") as waiting:
        wait_until(lambda: places(full) == {"large": 1})
        with queue(full, small, "small") as behind, full.client() as client:
            wait_until(lambda: places(full) == {"large": 1, "small": 2})
            full.holders[0].close()  # there is room for the small one
            wait_until(lambda: client.call("Devices")["devices"][0]["available"] == 0)
            plan = client.call("Plan", path=str(other), name="other")
            assert (plan["fits"], plan["available"]) == (False, 0)
            time.sleep(0.3)
            assert places(full) == {"large": 1, "small": 2}
            full.holders[1].close()
            reply = last(waiting)
            assert reply["model"]["name"] == "large"
            assert last(behind)["model"]["name"] == "small", "once the large one is idle"


def test_watch_and_ps_show_it(full, more):
    path, second = more(2)
    with full.client() as watcher:
        watcher.send("Watch", more=True)
        watcher.reply()
        with queue(full, path, "c") as waiting:
            wait_until(lambda: places(full) == {"c": 1})
            with queue(full, second, "d"):
                wait_until(lambda: places(full) == {"c": 1, "d": 2})
                shown = full.rfctl("ps").stdout
                assert re.search("^c .* queued 1 ", shown, re.MULTILINE), shown
                assert re.search("^d .* queued 2 ", shown, re.MULTILINE), shown
                full.holders[0].close()
                last(waiting)
                wait_until(lambda: places(full) in ({"d": 1}, {}))
        wait_until(lambda: states(full).get("d") != "queued")
        full.rfctl("unload", "c", check=False)
        seen = []
        while ("unloaded", "c") not in seen and ("evicted", "c") not in seen:
            event = watcher.reply()[0]
            seen.append((event["event"], event["model"]["name"]))
            if event["event"] == "queued":
                assert event["model"]["state"] == "queued" and event["model"]["position"] in (1, 2)
    assert seen.index(("queued", "c")) < seen.index(("queued", "d")) < seen.index(("resident", "c"))


def test_rfctl_waits(full, more):
    (path,) = more(1)
    refused = full.rfctl("load", path, "--name", "c", "--wait-for-memory", "1s", check=False)
    assert refused.returncode == 1 and "not enough" in refused.stderr
    full.holders[0].close()
    assert full.rfctl("load", path, "--name", "c", "--wait-for-memory", "30s").returncode == 0


def test_rfctl_prints_a_queued_load_once(full, more):
    """Also with --no-wait, which waits for the memory."""
    (path,) = more(1)
    refused = full.rfctl("load", path, "--no-wait", "--wait-for-memory", "4s", check=False)
    lines = refused.stderr.splitlines()
    assert refused.returncode == 1 and [line.startswith("queued") for line in lines] == [True, False], lines


def settled(daemon):
    """The places in the queue, first to last, when nothing moves any more."""
    before, since = None, time.monotonic()
    while time.monotonic() - since < 0.1:
        now = {model["name"]: (model["state"], model["position"]) for model in daemon.models()}
        # Without a place it has its memory already, and its file is looked at again.
        rest = all(state == "resident" or (state == "queued" and place) for state, place in now.values())
        if now != before or not rest:
            before, since = now, time.monotonic()
    queued = {name: place for name, (state, place) in before.items() if state == "queued"}
    return dict(sorted(queued.items(), key=lambda item: item[1]))


@pytest.mark.parametrize("seed", range(3))
def test_order(start, models, seed):
    """Of loads of random sizes, whoever came first has its memory first: none overtakes one that it could delay."""
    draw = random.Random(seed)
    daemon = start("--budget", str(8 * GRANULE))
    blocks = models(8)
    holders = []
    for i, path in enumerate(blocks):
        holder = daemon.client()
        holder.call("Load", path=str(path), name=f"block{i}", lease=True)
        holders.append(holder)
    sizes = [draw.choice([1, 3, 5, 7, 9]) * MIB for _ in range(10)]
    waiting = {}
    for i, size in enumerate(sizes):
        (path,) = models(1, size + 4096 * (i + 1))
        waiting[f"w{i}"] = queue(daemon, path, f"w{i}", lease=True)
        wait_until(lambda: places(daemon).get(f"w{i}") == i + 1)
    draw.shuffle(holders)
    while places(daemon):
        for name in [name for name, state in states(daemon).items() if state == "resident" and name in waiting]:
            holders.append(waiting.pop(name))
        holders.pop(draw.randrange(len(holders))).close()
        queued = settled(daemon)
        assert list(queued.values()) == list(range(1, len(queued) + 1))
        assert list(queued) == [f"w{i}" for i in range(len(sizes) - len(queued), len(sizes))], "the first ones left"
    for client in [*holders, *waiting.values()]:
        client.close()


def test_whoever_comes_back_at_once_does_not_keep_it(start, models):
    """A client that lets go of a model and takes it again in the next moment keeps nobody waiting."""
    daemon = start("--budget", str(GRANULE))
    a, b = models(2)
    with daemon.client() as busy:
        lease = busy.call("Load", path=str(a), name="a", lease=True)["lease"]
        with queue(daemon, b, "b") as waiting:
            wait_until(lambda: places(daemon) == {"b": 1})
            for method, parameters in ("Detach", {"lease": lease}), ("Attach", {"name": "a"}):
                busy.send(method, parameters)  # both are there before the first is answered
            busy.reply()
            with pytest.raises(WireError) as error:
                busy.reply()
            assert error.value.name in ("ModelBusy", "ModelNotFound"), "it is on its way out, or gone"
            assert last(waiting)["model"]["name"] == "b"
