"""Small files that say much of themselves: a daemon that reads them neither stops for it, nor takes memory that nobody
counts."""
import os
import struct
import time

import make_model
import pytest
from harness import USER, client_of, sparse_model, wait_until, wire_error

MIB = 1 << 20
TIB = 1 << 40


def write_header(path, tensors=(), entries=(), data=0):
    """A file of these tensors and key-values, and so many bytes of nothing."""
    with open(path, "wb") as out:
        start = make_model.write_header(out, tensors, len(entries), b"".join(entries))
        out.truncate(start + data)
    return path


def entry(key, text):
    return make_model.string(key) + struct.pack("<I", make_model.STRING) + make_model.string(text)


def tensor(name, elements):
    return make_model.Tensor(name, make_model.load_types()["i8"], (elements,))


@pytest.fixture
def endless(folder):
    """A tensor of 8 TiB that take no room on disk: cut into spans, it would be a gigabyte of them."""
    return write_header(folder / "endless.gguf", [tensor("t", 8 * TIB)], data=8 * TIB)


def test_size_is_held_against_the_device_first(daemon, client, endless):
    before = daemon.rss()
    began = time.monotonic()
    with wire_error("OutOfDeviceMemory") as parameters:
        client.call("Load", path=str(endless))
    plan = client.call("Plan", path=str(endless))
    assert parameters["needed"] == plan["bytes"] == 8 * TIB and not plan["fits"]
    assert time.monotonic() - began < 5
    assert daemon.rss() < before + 32 * MIB


@pytest.fixture
def talkative(folder):
    """Metadata that are 30 MB in the file, and several times as many as JSON."""
    return write_header(folder / "talkative.gguf", entries=[entry(f"k{i}", "\1" * 4000) for i in range(7500)])


@pytest.mark.alone
def test_metadata_beyond_a_bound_are_left_out(daemon, talkative):
    with daemon.client() as client, daemon.client() as other:
        client.call("Load", path=str(talkative), name="m")
        client.send("Show", {"name": "m"})
        began = time.monotonic()
        other.call("Status")
        assert time.monotonic() - began < 1, "it was busy with the other's answer"
        metadata = client.reply()[0]["metadata"]
        assert [entry["key"] for entry in metadata[:2]] == ["k0", "k1"]
        size = sum(len(entry["value"]) for entry in metadata)
        assert MIB < size < 4 * MIB and len(metadata) < 7500


@pytest.mark.alone
def test_nobody_waits_while_metadata_are_made_ready(daemon, talkative):
    """Not even for the length of a load."""
    with daemon.client() as client, daemon.client() as other:
        client.send("Load", {"path": str(talkative), "name": "m"})
        waits = []
        while [model["state"] for model in other.call("List")["models"]] != ["resident"]:
            began = time.monotonic()
            other.call("Status")
            waits.append(time.monotonic() - began)
        assert max(waits) < 1


def test_headers_are_in_the_ledger(daemon, client, talkative):
    before, size = client.call("Devices")["devices"][-1]["used"], os.stat(talkative).st_size
    model = client.call("Load", path=str(talkative), name="m")["model"]
    used = client.call("Devices")["devices"][-1]["used"] - before
    assert size < used - model["bytes"] < 2 * size + 8 * MIB
    client.call("Unload", name="m")
    wait_until(lambda: client.call("Devices")["devices"][-1]["used"] == before)


def test_no_memory_for_a_header(start, talkative):
    daemon = start("--budget", "24Mi")
    with daemon.client() as client:
        with wire_error("LimitExceeded") as parameters:
            client.call("Load", path=str(talkative))
        assert parameters == {"limit": "host-memory", "value": 24 * MIB}
    wait_until(lambda: daemon.used() == 0 and daemon.models() == [])


def test_idle_models_go_for_a_header(start, talkative, folder):
    """As they would for the model itself: a full ledger is what a daemon has that runs for long."""
    daemon = start("--budget", "256Mi")
    with daemon.client() as client:
        for i in range(4):
            client.call("Load", path=str(sparse_model(folder / f"idle{i}.gguf", 64 * MIB - 4096)), name=f"idle{i}")
        model = client.call("Load", path=str(talkative), name="m")["model"]
        assert model["state"] == "resident"
        wait_until(lambda: all(model["state"] == "resident" for model in daemon.models()))  # those that go are gone
        names = {model["name"] for model in client.call("List")["models"]}
        assert "m" in names and "idle0" not in names
        for name in names:
            client.call("Unload", name=name)
    wait_until(lambda: daemon.used() == 0)


def test_a_users_headers_count(start_for_all, talkative):
    daemon = start_for_all("--user-bytes", "24Mi")
    with client_of(daemon, USER) as client, open(talkative, "rb") as file:
        with wire_error("LimitExceeded") as parameters:
            client.call("Load", fds=[file.fileno()])
        assert parameters == {"limit": "user-bytes", "value": 24 * MIB}
    wait_until(lambda: daemon.used() == 0)


def test_show_of_what_is_loading(held_daemon, gate, gated_model):
    """As soon as there is something to show."""
    with held_daemon.client() as loader, held_daemon.client() as client:
        loader.send("Load", {"path": str(gated_model), "name": "m"})
        wait_until(lambda: [model["state"] for model in held_daemon.models()] == ["filling"])
        with wire_error("ModelBusy"):
            client.call("Show", name="m")
        gate.open()
        loader.reply()
        assert client.call("Show", name="m")["model"]["state"] == "resident"
