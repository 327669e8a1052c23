"""Loads that several wait for, how long one waits, and the end of the daemon meanwhile."""
import os
import threading
import time

import pytest
from harness import MIB, is_filling, load, names, sparse_model, states, wait_until, wire_error
from rocmforge_wire import WireError

# --- Joined loads ---


def test_ten_clients_one_load(slow_daemon, large_model):
    """All get the same model and all see its progress; only the one that began it is told its phases."""
    daemon = slow_daemon
    results = []

    def one(number):
        with daemon.client() as client:
            results.append(list(client.more("Load", path=str(large_model), name=f"name{number}")))

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
        assert load(client, path, "touched")["id"] == first["id"], "all of its bytes were compared"
        path.write_bytes(path.read_bytes())
        assert load(client, path, "written")["id"] == first["id"]
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert load(client, path, "changed")["id"] != first["id"]


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


def test_attach_while_loading(held_daemon, gate, gated_model):
    daemon = held_daemon
    with daemon.client() as loader, daemon.client() as client:
        loader.send("Load", {"path": str(gated_model), "name": "big"})
        wait_until(lambda: is_filling(daemon, "big"), every=0.001)
        attaching = client.more("Attach", name="big")
        replies = [next(attaching)]
        gate.open()
        replies += attaching
        assert all(reply["progress"]["total"] and "lease" not in reply for reply in replies[:-1])
        assert replies[-1]["lease"] and replies[-1]["model"]["state"] == "resident"
        assert loader.reply()[0]["model"]["id"] == replies[-1]["model"]["id"]


def test_attach_keeps_a_load_alive(held_daemon, gate, gated_model):
    daemon = held_daemon
    with daemon.client() as client:
        with daemon.client() as loader:
            loader.send("Load", {"path": str(gated_model), "name": "big"})
            wait_until(lambda: is_filling(daemon, "big"), every=0.001)
            client.send("Attach", {"name": "big"})
            daemon.sync()
        daemon.sync()
        gate.open()
        assert client.reply()[0]["lease"]


def test_attach_to_a_load_that_is_cancelled(held_daemon, gate, gated_model):
    daemon = held_daemon
    with daemon.client() as loader, daemon.client() as client, daemon.client() as third:
        loader.send("Load", {"path": str(gated_model), "name": "big"})
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
def test_deadline_while_loading(held_daemon, gate, gated_model, method):
    """The one who waits too long is told so in time; the load goes on while somebody else waits."""
    daemon = held_daemon
    with daemon.client() as loader, daemon.client() as client:
        loader.send("Load", {"path": str(gated_model), "name": "big"})
        wait_until(lambda: is_filling(daemon, "big"), every=0.001)
        parameters = {"path": str(gated_model)} if method == "Load" else {"name": "big"}
        with wire_error("DeadlineExceeded"):
            client.call(method, deadline=0.01, **parameters)
        assert client.call("Status")["pid"] == daemon.pid
        assert is_filling(daemon, "big")
        gate.open()
        assert loader.reply()[0]["model"]["state"] == "resident"


def test_deadline_of_the_only_one(held_daemon, gate, gated_model):
    daemon = held_daemon
    with daemon.client() as client:
        with wire_error("DeadlineExceeded"):
            client.call("Load", path=str(gated_model), name="big", deadline=0.02)
        gate.open()
        wait_until(lambda: names(daemon) == [])
        assert daemon.used() == 0


def test_deadline_of_verify_and_unload(start, gate, large_model):
    daemon = start(env=gate.env)
    with daemon.client() as client:
        load(client, large_model, "big")
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


# --- The end, in every state ---


def test_end_while_memory_is_on_its_way_back(start, model_folder):
    one, other = (sparse_model(model_folder / f"way-back{i}.gguf", 384 * MIB) for i in range(2))
    for _ in range(3):
        daemon = start("--budget", "450Mi")
        with daemon.client() as first, daemon.client() as second:
            load(first, one, "a")
            first.send("Unload", {"name": "a"})
            second.send("Load", {"path": str(other), "name": "b"})
            wait_until(lambda: "b" in names(daemon) or "a" not in names(daemon), every=0.001)
            assert daemon.stop() == 0, daemon.log


@pytest.mark.parametrize("delay", [0, 0.002, 0.01, 0.05, 0.2])
def test_end_at_any_moment_of_a_load(start, large_model, delay):
    daemon = start()
    with daemon.client() as loader, daemon.client() as attacher:
        loader.send("Load", {"path": str(large_model), "name": "big"})
        attacher.send("Attach", {"name": "big"})
        time.sleep(delay)
        assert daemon.stop() == 0, daemon.log


def test_end_while_draining_and_verifying(start, large_model, models):
    (path,) = models(1)
    daemon = start()
    with daemon.client() as client, daemon.client() as holder, daemon.client() as verifier, daemon.client() as planner:
        load(client, large_model, "big")
        load(client, path, "m", ttl=1)
        holder.call("Attach", name="m")
        client.call("Unload", name="m", force=True)
        verifier.send("Verify", {"name": "big"}, more=True)
        planner.send("Plan", {"path": str(path), "form": "f32"})
        verifier.reply()
        assert daemon.stop() == 0, daemon.log
