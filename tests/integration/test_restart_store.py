"""What is kept for the next daemon: how much room there is for whom, and that what comes back is not trusted."""
import os
import socket
import struct
import subprocess
import sys
import time

import make_safetensors
import pytest
from fd_store import content, sealed
from harness import USER, client_of, hold_program, load, names, tensor_model, wait_until
from restarts import bytes_of, file_bytes, kill, memory

# --- The store's room ---


@pytest.fixture
def for_all(held, folder):
    """A daemon under the holder that other users may connect to. kill_it(): and to the next one."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    os.chmod(folder, 0o755)
    daemon = held()
    os.chmod(daemon.socket, 0o666)

    def kill_it():
        kill(daemon)
        os.chmod(daemon.socket, 0o666)

    daemon.kill_it = kill_it
    return daemon


def many_files(place, n):
    """A model of so many files, in a folder. Each takes two descriptors in the store."""
    place.mkdir()
    make_safetensors.write_folder(place, [{f"t{i}": ("F32", (8,))} for i in range(n)])
    return place


def load_as(daemon, user, path, name):
    for each in (path, *path.glob("*")):
        os.chmod(each, 0o755)
    daemon.rfctl("load", path, "--name", name, before=["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"])


def test_a_model_of_very_many_files_ends_nothing(for_all, folder):
    """Their names together would be more than exec() takes."""
    load_as(for_all, USER + 1, tensor_model(folder / "before.gguf", seed=1), "before")
    load_as(for_all, USER, many_files(folder / "many", 2100), "many")
    load_as(for_all, USER + 1, tensor_model(folder / "after.gguf", seed=2), "after")
    assert sorted(names(for_all)) == ["after", "before", "many"]
    for_all.kill_it()
    assert sorted(names(for_all)) == ["after", "before"]
    assert "Argument list too long" not in for_all.log
    assert "model=many id=2 would not outlive the daemon: its user's share of the store is used up" in for_all.log


def test_the_holder_bounds_the_names(folder):
    """Whatever it is sent: a program that is given all of them can be started."""
    program = folder / "sender"
    program.write_text(
        f"#!{sys.executable}\n"
        + """
import array, os, socket, sys
with open(sys.argv[1], "a") as file:
    print(len(os.environ.get("LISTEN_FDNAMES", "")), os.environ.get("LISTEN_FDS", 0), file=file)
if os.path.getsize(sys.argv[1]) < 10:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
        sock.send(b"READY=1")
        for i in range(700):
            message = f"FDSTORE=1\\nFDNAME={i:0250d}".encode()
            sock.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [2]))])
    os._exit(1)
"""
    )
    program.chmod(0o755)
    noted = folder / "noted"
    noted.touch()
    with subprocess.Popen([hold_program(), "--", program, noted], stderr=subprocess.DEVNULL) as holder:
        try:
            wait_until(lambda: noted.read_text().count("\n") >= 2)
        finally:
            holder.kill()
    size, n = map(int, noted.read_text().split("\n")[1].split())
    assert 90 << 10 < size <= 100 << 10 and n == (size + 1) // 251


def test_one_user_does_not_fill_the_store(for_all, folder):
    """Neither what others load before, nor what they change and load later, is lost for it."""
    load_as(for_all, USER + 1, tensor_model(folder / "before.gguf", seed=1), "before")
    for i in range(6):
        load_as(for_all, USER, many_files(folder / f"many{i}", 400), f"many{i}")
    with client_of(for_all, USER + 1) as client:
        client.call("SetTtl", name="before", ttl=3600)
    load_as(for_all, USER + 1, tensor_model(folder / "after.gguf", seed=2), "after")
    for_all.kill_it()
    assert sorted(names(for_all)) == ["after", "before", "many0"]
    assert [model["ttl"] for model in for_all.models() if model["name"] == "before"] == [3600]
    for i in range(1, 6):
        assert f"model=many{i} id={i + 2} would not outlive the daemon: its user's share" in for_all.log


def test_kept_when_there_is_room_again(for_all, folder):
    for i in range(2):
        load_as(for_all, USER, many_files(folder / f"many{i}", 400), f"many{i}")
    wait_until(lambda: "model=many1 id=2 would not outlive the daemon: its user's share" in for_all.log)
    with client_of(for_all, USER) as client:
        client.call("Unload", name="many0")
    wait_until(lambda: "model=many1 id=2 would outlive the daemon now" in for_all.log)
    for_all.kill_it()
    assert names(for_all) == ["many1"]
    with client_of(for_all, USER) as client:
        assert client.call("Verify", name="many1")["mismatches"] == []


def test_a_full_store_keeps_what_it_has(store, start, folder):
    """A change of what is kept always has room. What has none is kept as soon as others have left."""
    daemon = store.start(start, env={"FDSTORE": "9"})
    with daemon.client() as client:
        for i, name in enumerate("abc"):
            load(client, tensor_model(folder / f"{name}.gguf", seed=i), name)
        store.wait("d", 2)
        wait_until(lambda: "model=c id=3 would not outlive the daemon: the store is full" in daemon.log)
        before = store.of("d")
        client.call("SetTtl", name="a", ttl=3600)
        daemon.sync()
        store.receive()
        assert len(store.of("d")) == 2 and store.of("d") != before and len(store.entries) == 8
        client.send("Unload", {"name": "b"})
        wait_until(lambda: "model=c id=3 would outlive the daemon now" in daemon.log)
        store.receive()
        assert client.reply()[0]["state"] == "unloaded"
    daemon.process.kill()
    daemon.process.wait()
    store.receive()
    assert len(store.entries) == 8
    daemon = store.start(start)
    assert {model["name"]: model["ttl"] for model in daemon.models()}["a"] == 3600
    assert sorted(names(daemon)) == ["a", "c"]


# --- What the store gives back is not trusted ---


@pytest.fixture
def stored(start, store, folder):
    """A store with what one model needs."""
    path = tensor_model(folder / "m.gguf")
    daemon = store.start(start, ready=True)
    with daemon.client() as client:
        load(client, path, "m")
        store.wait("d", 1)
    daemon.process.kill()
    daemon.process.wait()
    store.receive()
    assert [len(store.of(role)) for role in "dahf"] == [1, 1, 1, 1]
    return store


def test_as_it_was(stored, start, folder):
    daemon = stored.start(start)
    with daemon.client() as client:
        assert bytes_of(*memory(client, "m")) == file_bytes(folder / "m.gguf")
    assert not stored.removed


@pytest.mark.parametrize("place", [0, 2, 4])
def test_with_the_socket(stored, start, folder, place):
    """systemd hands over its socket in the same way, before or after."""
    path = folder / "io.rocmforge"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        entries = list(stored.entries.items())
        entries.insert(place, ("rocmforged.socket", os.dup(listening.fileno())))
        stored.entries = dict(entries)
        daemon = stored.start(start, socket_too=True)
        assert names(daemon) == ["m"]
        with daemon.client() as client:
            assert bytes_of(*memory(client, "m")) == file_bytes(folder / "m.gguf")


def refused(stored, start, why, role="d"):
    before = set(stored.entries)
    daemon = stored.start(start)
    assert daemon.models() == [] and daemon.used() == 0
    stored.receive()
    assert stored.removed == before  # all of it
    line = next(line for line in daemon.log.splitlines() if "was kept, but is not resident again: " in line)
    assert why in line
    with daemon.client() as client:
        assert client.call("Devices")["devices"][-1]["used"] == 0


@pytest.mark.parametrize("part", range(24))
def test_damaged_description(stored, start, part):
    """A byte in each 24th of it."""
    (name,) = stored.of("d")
    data = bytearray(content(stored.entries[name]))
    at = min(len(data) * part // 24 + part, len(data) - 1)
    data[at] ^= 1 << part % 8
    stored.replace(name, sealed(bytes(data)))
    refused(stored, start, "description")


def prologue(data, **changes):
    values = dict(zip(("magic", "version", "size", "checksum"), struct.unpack("<8s3Q", data[:32])))
    values.update(changes)
    return struct.pack("<8s3Q", *values.values()) + data[32:]


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda data: prologue(data, version=1 << 30), "another version"),
        (lambda data: prologue(data, version=0), "another version"),
        (lambda data: prologue(data, magic=b"GGUF\0\0\0\0"), "it is no description"),
        (lambda data: prologue(data, size=1 << 60), "another length"),
        (lambda data: prologue(data, checksum=0), "the checksum of its description is wrong"),
        (lambda data: data + b"\0", "another length"),
        (lambda data: data[:-1], "another length"),
        (lambda data: data[:16], "cannot be read"),
        (lambda data: b"", "cannot be read"),
    ],
)
def test_another_description(stored, start, change, why):
    (name,) = stored.of("d")
    stored.replace(name, sealed(change(content(stored.entries[name]))))
    refused(stored, start, why)


@pytest.mark.parametrize(
    "role, change, why",
    [
        ("d", lambda fd: sealed(content(fd), seal=False), "its description is not sealed"),
        ("a", lambda fd: sealed(content(fd), seal=False), "the memory is not sealed"),
        ("a", lambda fd: sealed(content(fd)[:-1]), "the memory has another size"),
        ("a", lambda fd: sealed(b""), "the memory has another size"),
        ("a", lambda fd: os.open("/dev/null", os.O_RDONLY), "F_GET_SEALS"),
        ("h", lambda fd: sealed(content(fd), seal=False), "its header is not sealed"),
        ("h", lambda fd: sealed(content(fd)[:-1]), "its header has another length"),
        ("h", lambda fd: sealed(content(fd)[::-1]), "its header is not the one that was kept"),
        ("f", lambda fd: os.open("/dev/null", os.O_RDONLY), "not a regular file"),
        ("f", lambda fd: sealed(content(fd)), "it is another file"),
    ],
)
def test_another_descriptor(stored, start, role, change, why):
    (name,) = stored.of(role)
    stored.replace(name, change(stored.entries[name]))
    refused(stored, start, why)


@pytest.mark.parametrize("role", "dahf")
def test_missing_descriptor(stored, start, role):
    (name,) = stored.of(role)
    os.close(stored.entries.pop(name))
    refused(stored, start, "was not kept" if role == "d" else "not all of its descriptors were kept")


def test_the_later_description(stored, start, folder):
    """A daemon that was killed between two messages left two."""
    (name,) = stored.of("d")
    stored.entries[name[:-1] + "7"] = os.dup(stored.entries[name])
    daemon = stored.start(start)
    assert names(daemon) == ["m"]
    stored.receive()
    assert stored.removed == {name}


def test_stores_what_is_new_once(stored, start):
    """What was taken back is not sent again, nor removed when the daemon ends."""
    before = set(stored.entries)
    daemon = stored.start(start)
    with daemon.client() as client:
        client.call("Pin", name="m")
        stored.wait("d", 1)
    assert daemon.stop() == 0
    stored.receive()
    assert set(stored.entries) - before == set(stored.of("d"))
    assert before - set(stored.entries) == stored.removed and len(stored.removed) == 1


def test_memory_is_free_when_the_store_has_let_go(store, start, folder):
    """Else the next load would find less than the daemon reckons with."""
    daemon = store.start(start)
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m")
        store.wait("d", 1)
        client.send("Unload", {"name": "m"})
        time.sleep(0.3)
        assert daemon.used() > 0 and store.entries
        store.receive()
        assert client.reply()[0]["state"] == "unloaded"
    assert not store.entries and daemon.used() == 0


def test_foreign_descriptors(store, start):
    """Names that are not the daemon's are no models."""
    for name in ("rocmforge-", "rocmforge-0-d1", "rocmforge-00000000000000zz-d1", "rocmforge-0000000000000001-x1"):
        store.entries[name] = sealed(b"x")
    daemon = store.start(start)
    assert daemon.models() == []
    assert "resident again" not in daemon.log
