"""Models outlive the daemon: it is killed, or ends, and the next one has them resident again without reading a file.

ROCMFORGE_KILLS says how often test_killed_under_load kills the daemon.
"""
import contextlib
import errno
import hashlib
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import make_safetensors
import pytest
from fd_store import Store, content, sealed
from harness import (
    MIB,
    SANITIZERS,
    TIMEOUT,
    USER,
    build_folder,
    client_of,
    daemon_program,
    fake_gpu_folder,
    hold_program,
    library_environment,
    load,
    module_folder,
    names,
    tensor_model,
    wait_until,
    wire_error,
)
from rocmforge_wire import Closed, WireError

KILLS = int(os.environ.get("ROCMFORGE_KILLS", "8"))


@pytest.fixture
def held(start):
    """Starts a daemon under rocmforge-hold. The process is the holder."""
    return lambda *options, **keywords: start(*options, program=[hold_program(), "--", daemon_program()], **keywords)


@pytest.fixture
def store(folder):
    store = Store(folder)
    yield store
    store.close()


def memory(client, name):
    """Attaches, and maps the model's memory."""
    reply = client.call("Attach", name=name)
    fd = client.fds[reply["fd"]]
    mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    return reply, mapped


def bytes_of(reply, mapped):
    (tensor,) = reply["tensors"]
    return mapped[tensor["offset"] : tensor["offset"] + tensor["size"]]


def file_bytes(path, size=MIB):
    return path.read_bytes()[-size:]


def daemon_pid(daemon):
    return daemon.status()["pid"]


def kill(daemon, number=signal.SIGKILL):
    """Ends the daemon under a holder, and waits for the next one."""
    before = daemon_pid(daemon)
    wait_until(lambda: kept(daemon))
    os.kill(before, number)
    restarted(daemon, before)


def restarted(daemon, before):
    def another():
        with contextlib.suppress(OSError, Closed):
            return daemon_pid(daemon) != before

    wait_until(another)


def kept(holder):
    """What the holder has: name in /proc of each."""
    return [fd for fd in holder.fds() if fd.startswith("/memfd:rocmforge") or fd.endswith((".gguf", ".safetensors"))]


def described(daemon):
    """All that List tells, but for what time changes."""
    return [{k: v for k, v in model.items() if k != "idle"} for model in daemon.models()]


def test_killed(held, folder):
    daemon, path = held(), tensor_model(folder / "m.gguf")
    expected = file_bytes(path)
    with daemon.client() as client:
        load(client, path, "m")
        reply, mapped = memory(client, "m")
        before = described(daemon)
        path.unlink()  # nobody can read it again by its name
        kill(daemon)
        assert bytes_of(reply, mapped) == expected  # who was attached reads on
    after = described(daemon)
    for model in before + after:
        model.pop("leases")
    assert after == before
    with daemon.client() as client:
        assert bytes_of(*memory(client, "m")) == expected
        assert client.call("Verify", name="m")["mismatches"] == []
    assert "model=m id=1 resident again on host" in daemon.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_ends_otherwise(held, folder, number):
    """SIGTERM: the holder starts a daemon that ended well again only if it was asked to."""
    daemon, path = held(), tensor_model(folder / "m.gguf")
    with daemon.client() as client:
        load(client, path, "m")
    before = daemon_pid(daemon)
    if number == signal.SIGTERM:
        daemon.process.send_signal(signal.SIGUSR1)
        restarted(daemon, before)
    else:
        kill(daemon, number)
    assert names(daemon) == ["m"]
    with daemon.client() as client:
        assert bytes_of(*memory(client, "m")) == file_bytes(path)


def test_all_that_is_known_of_it(held, folder):
    daemon = held()
    paths = [tensor_model(folder / f"{i}.gguf", seed=i) for i in range(3)]
    third = file_bytes(paths[2])
    with daemon.client() as client:
        load(client, paths[0], "first", ttl=1000)
        load(client, paths[1], "second", forms=[{"match": "*up*", "form": "f32"}], form="native")
        load(client, paths[2], "third")
        load(client, paths[0], "other")
        client.call("Pin", name="second")
        client.call("SetTtl", name="third", ttl=77)
        paths[2].unlink()
        assert client.call("Verify", name="third")["deleted"]
        before, shown = described(daemon), [client.call("Show", name=name) for name in ("other", "second", "third")]
        used = daemon.used()
    kill(daemon)
    assert described(daemon) == before
    assert daemon.used() == used
    with daemon.client() as client:
        again = [client.call("Show", name=name) for name in ("other", "second", "third")]
        for one, other in zip(shown, again):
            one["model"].pop("idle", None), other["model"].pop("idle", None)
        assert again == shown
        for name, data in ("other", file_bytes(paths[0])), ("third", third):
            assert bytes_of(*memory(client, name)) == data
        assert client.call("Verify", name="third")["deleted"]
        # A load of the same file finds it, and reads nothing.
        assert load(client, paths[0], "again")["id"] == 1
        assert load(client, tensor_model(folder / "new.gguf", seed=9), "new")["id"] == 4


def test_names_that_change(held, folder):
    daemon, path = held(), tensor_model(folder / "m.gguf")
    with daemon.client() as client:
        load(client, path, "m")
        load(client, path, "n")
    kill(daemon)
    with daemon.client() as client:
        client.call("Unload", name="m")  # the name
        client.call("Pin", name="n")
    kill(daemon)
    (model,) = daemon.models()
    assert model["name"] == "n" and model["aliases"] == [] and model["pinned"]


def test_unloaded_is_gone(held, folder):
    daemon = held("--grace", "1")
    with daemon.client() as client:
        load(client, tensor_model(folder / "a.gguf", seed=1), "a")
        load(client, tensor_model(folder / "b.gguf", seed=2), "b")
        wait_until(lambda: len(kept(daemon)) == 8)
        client.call("Unload", name="a")
    wait_until(lambda: len(kept(daemon)) == 4)
    kill(daemon)
    assert names(daemon) == ["b"]
    with daemon.client() as client:
        wait_until(lambda: unload(client, "b"))
    wait_until(lambda: not kept(daemon))


def unload(client, name):
    try:
        client.call("Unload", name=name)
    except WireError as error:
        assert error.name == "ModelBusy", error
        time.sleep(0.05)
        return False
    return True


def test_grace(held, folder):
    """Nothing of it is freed before clients had the time to come back; then it is idle as any other."""
    daemon = held("--grace", "2", "--budget", "4Mi")
    with daemon.client() as client:
        load(client, tensor_model(folder / "a.gguf", seed=1), "a")
    kill(daemon)
    began = time.monotonic()
    with daemon.client() as client:
        other = tensor_model(folder / "b.gguf", size=3 * MIB, seed=2)
        with wire_error("OutOfDeviceMemory"):
            load(client, other, "b")
        with wire_error("ModelBusy"):
            client.call("Unload", name="a")
        load(client, other, "b", waitForMemory=TIMEOUT)
        assert time.monotonic() - began > 1
        assert names(daemon) == ["b"]


def test_private_stays_private(held, folder):
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    daemon, path = held(), tensor_model(folder / "m.gguf")
    os.chmod(folder, 0o755)
    os.chmod(path, 0o600)
    os.chmod(daemon.socket, 0o666)
    with daemon.client() as client:
        load(client, path, "m")
        load(client, tensor_model(folder / "p.gguf", seed=2), "p", private=True)
    kill(daemon)
    os.chmod(daemon.socket, 0o666)
    with client_of(daemon, USER) as client:
        assert client.call("List")["models"] == []
        for name in ("m", "p"):
            with wire_error("ModelNotFound"):
                client.call("Attach", name=name)


def test_changed_file_is_loaded_again(held, folder):
    daemon, path = held(), tensor_model(folder / "m.gguf")
    with daemon.client() as client:
        load(client, path, "m")
    kill(daemon)
    tensor_model(folder / "new", seed=5).rename(path)
    with daemon.client() as client:
        assert load(client, path, "n")["id"] == 2
        assert bytes_of(*memory(client, "n")) == file_bytes(path)


def test_split_model(held, split):
    daemon = held()
    with daemon.client() as client:
        load(client, split()[0], "m")
        before = client.call("Show", name="m")["tensors"]
    kill(daemon)
    with daemon.client() as client:
        assert client.call("Show", name="m")["tensors"] == before
        assert client.call("Verify", name="m")["mismatches"] == []


@pytest.mark.parametrize("look", ["Load", "SIGHUP"])
def test_a_link_is_known_after_a_restart(held, folder, look):
    """As in a cache of downloads: the link leads to another file when there is another version."""
    v1, v2 = (tensor_model(folder / f"v{i}.gguf", seed=i) for i in (1, 2))
    link = folder / "m.gguf"
    link.symlink_to(v1)
    daemon = held("--grace", "1")
    with daemon.client() as client:
        first = client.call("Load", path=str(link))["model"]
        assert first["name"] == "m"
    kill(daemon)
    link.unlink()
    link.symlink_to(v2)
    with daemon.client() as client:
        if look == "SIGHUP":
            os.kill(daemon_pid(daemon), signal.SIGHUP)
            wait_until(lambda: daemon.models()[0]["changed"])
            assert client.call("Verify", name="m")["replaced"]
        time.sleep(1.5)  # the old one is not held for others any more
        second = client.call("Load", path=str(link))["model"]
        assert (second["name"], second["id"] > first["id"], second["path"]) == ("m", True, str(v2))


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_paths_of_all_files_are_known_after_a_restart(held, split, moved):
    """A file that was moved before the restart counts by the path that it was loaded by."""
    paths = split()
    daemon = held()
    with daemon.client() as client:
        load(client, paths[0], "m")
    data = paths[moved].read_bytes()
    paths[moved].rename(paths[moved].with_suffix(".old"))
    kill(daemon)
    paths[moved].write_bytes(data)
    with daemon.client() as client:
        assert client.call("Verify", name="m")["replaced"]
    os.kill(daemon_pid(daemon), signal.SIGHUP)
    wait_until(lambda: daemon.models()[0]["changed"])


@pytest.mark.parametrize("n", [1, 3])
def test_safetensors(held, folder, n):
    tensors = [(f"t{i}", ("F16", (64, 64))) for i in range(6)]
    place = folder / "model"
    place.mkdir()
    make_safetensors.write_folder(place, [dict(tensors[i::n]) for i in range(n)])
    daemon = held()
    with daemon.client() as client:
        load(client, place, "m")
        before = client.call("Show", name="m")["tensors"]
    kill(daemon)
    with daemon.client() as client:
        assert client.call("Show", name="m")["tensors"] == before
        assert client.call("Verify", name="m")["mismatches"] == []


# --- Clients come back ---


def test_lease_is_taken_again(held, folder):
    daemon, path = held("--grace", "1"), tensor_model(folder / "m.gguf")
    with daemon.client() as client:
        load(client, path, "m")
        load(client, path, "n")
        token = client.call("Attach", name="m")["token"]
        assert client.call("Attach", name="n")["token"] == token and len(token) == 32
        assert client.call("Attach", name=load(client, tensor_model(folder / "o", seed=2), "o")["name"])["token"] != token
    kill(daemon)
    with daemon.client() as client:
        reply = client.call("Reattach", name="m", token=token)
        assert reply["model"]["name"] == "m" and reply["model"]["leases"] == 1 and not client.fds
        time.sleep(1.5)  # the time of grace is over: only the lease keeps it
        client.call("Unload", name="n")  # the name
        with wire_error("ModelBusy") as parameters:
            client.call("Unload", name="m")
        assert [lease["lease"] for lease in parameters["leases"]] == [reply["lease"]]
        for wrong in ("0" * 32, token[::-1]):
            with wire_error("ModelNotFound") as parameters:
                client.call("Reattach", name="m", token=wrong)
            assert parameters == {"name": "m"}
        for wrong in ("", token[1:], token + "0", token.upper() + "G", "g" + token[1:]):
            with wire_error("org.varlink.service.InvalidParameter") as parameters:
                client.call("Reattach", name="m", token=wrong)
            assert parameters == {"parameter": "token"}
        client.call("Detach", lease=reply["lease"])
        client.call("Unload", name="m")
        with wire_error("ModelNotFound"):
            client.call("Reattach", name="m", token=token)


def test_token_gives_no_right(start_for_all, folder):
    """It tells which model, not who may have it."""
    daemon = start_for_all()
    path = tensor_model(folder / "m.gguf")
    os.chmod(path, 0o644)
    with client_of(daemon, USER) as client:
        with open(path, "rb") as file:
            client.call("Load", fds=[file.fileno()], name="m", private=True)
        token = client.call("Attach", name="m")["token"]
        client.call("Reattach", name="m", token=token)
    with client_of(daemon, USER + 1) as client, wire_error("ModelNotFound"):
        client.call("Reattach", name="m", token=token)


class Attacher:
    """attacher.py, in a process of its own."""

    def __init__(self, daemon):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("attacher.py"), build_folder(), daemon.socket],
            env=library_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *command):
        print(*command, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            assert self.process.wait(TIMEOUT) == 0
        finally:
            self.process.kill()
            self.process.stdout.close()


def digest(path):
    return hashlib.sha256(file_bytes(path)).hexdigest()


def test_library_reconnects(held, folder):
    daemon = held()
    paths = [tensor_model(folder / f"{i}.gguf", seed=i) for i in range(2)]
    with daemon.client() as client:
        for i, path in enumerate(paths):
            load(client, path, f"m{i}")

    def leases():
        return [model["leases"] for model in daemon.models()]

    with Attacher(daemon) as attacher:
        assert [attacher.ask("attach", f"m{i}") for i in range(2)] == [None, None]
        for _ in range(3):
            kill(daemon)
            assert attacher.ask("attach", "m0")["error"] == -errno.ECONNRESET
            assert attacher.ask("reconnect", TIMEOUT) is None
            assert attacher.ask("leased") == [True, True]
            assert leases() == [1, 1]
            assert attacher.ask("digests") == [digest(path) for path in paths]
        assert attacher.ask("reconnect", 0) is None  # to the same daemon, too
        wait_until(lambda: leases() == [1, 1])
        assert attacher.ask("attach", "m0") is None
        assert leases() == [2, 1]
        assert [attacher.ask("detach") for _ in range(2)] == [None, None]
        assert leases() == [1, 0]
    wait_until(lambda: leases() == [0, 0])


def test_library_is_told_of_draining_after_a_restart(held, folder):
    """Of models that were attached before, without another attach: once each."""
    daemon = held()
    for name in "mn":
        with daemon.client() as client:
            load(client, tensor_model(folder / f"{name}.gguf", seed=ord(name)), name)
    with Attacher(daemon) as attacher:
        assert [attacher.ask("attach", name) for name in "mmn"] == [None, None, None]
        kill(daemon)
        assert attacher.ask("status")["error"] == -errno.ECONNRESET
        with daemon.client() as client:  # before it has its leases again
            client.call("Unload", name="m", force=True)
        failure = attacher.ask("reconnect", TIMEOUT)
        assert failure["error"] == -errno.ESTALE and "no lease on 'm'" in failure["message"]
        assert attacher.ask("leased") == [False, False, True] and attacher.ask("told") == ["m"]
        with daemon.client() as client:  # and afterwards
            client.call("Unload", name="n", force=True)
        assert attacher.ask("told") == ["m"]
        assert attacher.ask("status") is None
        assert attacher.ask("told") == ["m", "n"]
        assert attacher.ask("status") is None
        assert attacher.ask("told") == ["m", "n"]


def test_nobody_keeps_descriptors(start, folder):
    """Where there is no store, nothing is said of one when the daemon stops."""
    daemon = start()
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m")
    daemon.process.terminate()
    assert daemon.process.wait(TIMEOUT) == 0
    assert "outlive" not in daemon.log


def test_library_without_the_model(start, folder):
    """The next daemon knows nothing of it: what was attached can be read, and is told to be without a lease."""
    daemon, path = start(), tensor_model(folder / "m.gguf")
    with daemon.client() as client:
        load(client, path, "m")
    with Attacher(daemon) as attacher:
        attacher.ask("attach", "m")
        daemon.process.kill()
        daemon.process.wait()
        assert attacher.ask("reconnect", 0.1)["error"] == -errno.ECONNREFUSED
        start()
        failure = attacher.ask("reconnect", TIMEOUT)
        assert failure["error"] == -errno.ESTALE and "'m'" in failure["message"]
        assert attacher.ask("leased") == [False]
        assert attacher.ask("digests") == [digest(path)]
        assert attacher.ask("load", path) is None
        assert attacher.ask("leased") == [False, True]
        assert [attacher.ask("detach") for _ in range(2)] == [None, None]


# --- The holder ---

# Is started again and again: notes that, says that it is ready if it is to, and is killed.
SHORT_LIVED = """
import os, signal, socket, sys
with open(sys.argv[1], "a") as file:
    file.write("started\\n")
if sys.argv[2] == "ready":
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1\\nSTATUS=x", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("ready", [True, False])
def test_started_again_at_once_if_it_was_ready(folder, ready):
    noted = folder / "noted"
    noted.touch()
    command = [hold_program(), "--", sys.executable, "-c", SHORT_LIVED, noted, "ready" if ready else "not"]
    began = time.monotonic()
    with subprocess.Popen(command) as holder:
        wait_until(lambda: noted.read_text().count("started") >= (4 if ready else 2))
        took = time.monotonic() - began
        holder.kill()
    assert took < 6 if ready else took >= 2


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
    with subprocess.Popen([hold_program(), "--", program, noted]) as holder:
        wait_until(lambda: noted.read_text().count("\n") == 2)
        holder.wait(TIMEOUT)
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


# --- Under load ---


def read_for_ever(read, expected, ended, wrong):
    while not ended.is_set():
        if read() != expected:
            wrong.append("a reader that stayed attached")
            return


def come_and_go(daemon, folder, number, ended, wrong):
    """Loads, attaches, compares and unloads a model of its own, whatever happens to the daemon."""
    path = tensor_model(folder / f"own{number}.gguf", seed=100 + number)
    expected = file_bytes(path)
    while not ended.is_set():
        # WireError: one that was taken back, and was unloaded since, stays until the time of grace is over.
        with contextlib.suppress(OSError, Closed, WireError):
            with daemon.client() as client:
                load(client, path, f"own{number}")
                if bytes_of(*memory(client, f"own{number}")) != expected:
                    wrong.append("a client that comes and goes")
                client.call("Unload", name=f"own{number}", force=True)
        time.sleep(0.001)


@contextlib.contextmanager
def mapped_reader(daemon, name):
    """A function that reads the model's memory, which is mapped here."""
    with daemon.client() as client:
        reply, mapped = memory(client, name)
        yield lambda: hashlib.sha256(bytes_of(reply, mapped)).hexdigest()


@contextlib.contextmanager
def library_reader(daemon, name):
    """The same by librocmforge, in a process of its own."""
    with Attacher(daemon) as attacher:
        assert attacher.ask("attach", name) is None
        yield lambda: attacher.ask("digests")[0]


def test_killed_under_load(held, folder):
    killed_under_load(held("--grace", "1"), folder, mapped_reader, 12)


def killed_under_load(daemon, folder, reader, n_kept):
    """n_kept: what the holder has for three models."""
    wrong, ended, threads = [], threading.Event(), []
    paths = [tensor_model(folder / f"m{i}.gguf", size=8 * MIB, seed=i) for i in range(3)]
    expected = [hashlib.sha256(file_bytes(path, 8 * MIB)).hexdigest() for path in paths]
    with contextlib.ExitStack() as readers:
        for i, path in enumerate(paths):
            with daemon.client() as client:
                load(client, path, f"m{i}")
            read = readers.enter_context(reader(daemon, f"m{i}"))
            threads.append(threading.Thread(target=read_for_ever, args=(read, expected[i], ended, wrong)))
        for i in range(2):
            threads.append(threading.Thread(target=come_and_go, args=(daemon, folder, i, ended, wrong)))
        wait_until(lambda: len(kept(daemon)) >= n_kept)
        for thread in threads:
            thread.start()
        try:
            for n in range(KILLS):
                pid = wait_until(lambda: pid_of(daemon))
                time.sleep(0.01 * (n % 7))
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: pid_of(daemon) not in (None, pid))
                for i in range(3):
                    with mapped_reader(daemon, f"m{i}") as read:
                        assert read() == expected[i], f"after {n + 1} kills"
                assert not wrong
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert not wrong
    assert "not resident again" not in daemon.log.replace("model=own", "") or lost_only_own(daemon.log)


def lost_only_own(log):
    """A model whose description was on its way when the daemon was killed has none."""
    lines = [line for line in log.splitlines() if "not resident again" in line]
    return all("model=? " in line and "its description was not kept" in line for line in lines)


def pid_of(daemon):
    with contextlib.suppress(OSError, Closed):
        return daemon_pid(daemon)


@pytest.mark.alone
def test_soon_there(held, small_model):
    soon_there(held("--workers", "12"), small_model, 4, 0.1)


def soon_there(daemon, model, n_kept, at_most):
    """From the daemon's end, so with its next start, to the first Attach that is answered."""
    times = []
    with daemon.client() as client:
        load(client, model, "m")
    for _ in range(9):
        pid = daemon_pid(daemon)
        wait_until(lambda: len(kept(daemon)) >= n_kept)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError, Closed):
                with daemon.client() as client:
                    client.call("Attach", name="m")
                    times.append(time.monotonic() - began)
                    assert client.call("Status")["pid"] != pid
                    break
            time.sleep(0.0005)
    print("ms:", *(f"{seconds * 1000:.1f}" for seconds in sorted(times)))
    sanitized = library_environment()["LD_PRELOAD"]
    assert min(times) < (2 if sanitized else at_most), times


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


# --- GPUs ---

FAKE = fake_gpu_folder()
needs_fake = pytest.mark.skipif(not FAKE, reason="this build has no module for AMD GPUs (hipcc is not installed)")


@pytest.fixture
def fake(monkeypatch):
    """Sets the environment of fake GPUs; more of it by keywords."""

    def set_up(**more):
        environment = {"LD_LIBRARY_PATH": str(FAKE), "ROCMFORGE_MODULE_DIR": str(module_folder()), "FAKE_HIP_DEVICES": "2"}
        for name, value in {**environment, **more}.items():
            monkeypatch.setenv(name, value)
        return "--device", "hip"

    return set_up


@needs_fake
def test_gpu(held, fake, folder):
    """Nothing is uploaded again: the file is gone, and the bytes are there."""
    daemon = held(*fake(), "--export", "fd")
    path = tensor_model(folder / "m.gguf")
    expected = file_bytes(path)
    with daemon.client() as client:
        load(client, path, "m", device="hip:1")
        name = client.call("Show", name="m")["tensors"][0]["name"]
    path.unlink()
    for _ in range(3):
        before = daemon_pid(daemon)
        wait_until(lambda: len([fd for fd in daemon.fds() if "rocmforge" in fd]) >= 2)
        os.kill(before, signal.SIGKILL)
        restarted(daemon, before)
        (model,) = daemon.models()
        assert model["device"] == "hip:1" and model["state"] == "resident"
        assert daemon.rfctl("dump", "m", name, text=False).stdout == expected
    assert "model=m id=1 resident again on hip:1" in daemon.log


@needs_fake
def test_gpu_killed_under_load(held, fake, folder):
    """Nine descriptors: that of a GPU's memory has another name."""
    killed_under_load(held(*fake(), "--export", "fd", "--grace", "1"), folder, library_reader, 9)


@pytest.mark.alone
@needs_fake
def test_gpu_soon_there(held, fake, folder, small_model):
    """Long before its driver has started, and before the GPU is tried and its link measured."""
    slow = fake(FAKE_HIP_DEVICES="1", FAKE_HIP_SLOW="start=300000")
    soon_there(held(*slow, "--export", "fd", "--workers", "12"), small_model, 3, 0.1)


@pytest.fixture
def gpu_kept(store, start, fake, folder):
    """A store with a model on hip:1, and one on the host. start_again(**environment): the next daemon."""
    options = (*fake(), "--export", "fd", "--grace", "1")
    daemon = store.start(start, *options)
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m", device="hip:1")
        load(client, tensor_model(folder / "h.gguf", seed=2), "h", device="host")
        store.token = client.call("Attach", name="m")["token"]
        store.wait("d", 2)
    daemon.process.kill()
    daemon.process.wait()
    store.receive()

    # LeakSanitizer itself crashes in about one of forty such daemons ("Tracer caught signal 11").
    no_leaks = {"ASAN_OPTIONS": SANITIZERS["ASAN_OPTIONS"] + ":detect_leaks=0"}

    def start_again(*more, **environment):
        fake(**environment)
        return store.start(start, *options, *more, env=no_leaks)

    store.start_again = start_again
    return store


START = 1.5  # seconds
SLOW = {"FAKE_HIP_SLOW": f"start={START * 1e6:.0f}"}


@needs_fake
def test_gpu_attach_before_its_driver(gpu_kept, folder):
    """Attach, Reattach and Detach are answered, with what was known of the GPU; all else waits until it is there."""
    daemon = gpu_kept.start_again(**SLOW)
    began = time.monotonic()
    with daemon.client() as early, daemon.client() as late, daemon.client() as loads, daemon.client() as gone:
        late.send("Status")
        with open(tensor_model(folder / "n.gguf", seed=3), "rb") as file:  # descriptors wait with their call
            loads.send("Load", {"name": "n", "fds": [0]}, [file.fileno()])
        gone.send("Pin", {"name": "h"}, oneway=True)
        gone.close()
        reply = early.call("Attach", name="m")
        assert early.fds[reply["fd"]] >= 0 and reply["model"]["state"] == "resident"
        again = early.call("Reattach", name="m", token=gpu_kept.token)
        early.call("Detach", lease=reply["lease"])
        host, mapped = memory(early, "h")
        assert bytes_of(host, mapped) == file_bytes(folder / "h.gguf")
        with wire_error("ModelNotFound"):
            early.call("Attach", name="n")
        assert time.monotonic() - began < 0.9 * START and "resident again on hip" not in daemon.log
        assert late.reply()[0]["models"] and loads.reply()[0]["model"]["name"] == "n"
        assert time.monotonic() - began > 0.9 * START
        device = next(d for d in early.call("Devices")["devices"] if d["id"] == "hip:1")
        same = ("id", "kind", "name", "uuid", "pci", "total", "budget", "export", "state")
        assert {key: reply["device"][key] for key in same} == {key: device[key] for key in same}
        assert reply["device"]["used"] == device["used"] == reply["model"]["bytes"] and reply["device"]["link"] > 0
        assert "model=m id=1 resident again on hip:1" in daemon.log
        time.sleep(1.2)  # the time of grace is over, which began when the GPU was there
        with wire_error("ModelBusy") as parameters:
            early.call("Unload", name="m")
        assert [lease["lease"] for lease in parameters["leases"]] == [again["lease"]]
        assert early.call("Verify", name="m")["mismatches"] == []
        assert early.call("Show", name="h")["model"]["pinned"]
        early.call("Detach", lease=again["lease"])
        early.call("Unload", name="m")
    assert daemon.stop() == 0


@needs_fake
@pytest.mark.parametrize(
    "changes, why",
    [
        ({"FAKE_HIP_UUID": "beef"}, "its device is not there any more, or is another one"),
        ({"FAKE_HIP_DEVICES": "1"}, "its device is not there any more, or is another one"),
        ({"FAKE_HIP_NO_VMM": "1"}, "exports no descriptors now"),
        ({"FAKE_HIP_FAIL": "hipMemImportFromShareableHandle:3"}, "its memory: hipMemImportFromShareableHandle"),
    ],
)
def test_gpu_is_another_one_when_its_driver_is_there(gpu_kept, folder, changes, why):
    """Who has attached meanwhile is told by draining; the model goes, and its name is free."""
    export = ("--export", "auto") if "FAKE_HIP_NO_VMM" in changes else ()
    of_m = {name for name in gpu_kept.entries if name.split("-")[1] == key_of(gpu_kept, "a", "rocmforge-model")}
    daemon = gpu_kept.start_again(*export, **SLOW, **changes)
    with daemon.client() as client:
        reply = client.call("Attach", name="m")
        with daemon.client() as other:
            assert other.call("Attach", name="m")["model"]["id"] == reply["model"]["id"]
        status = client.call("Status")
        assert status["draining"] == ["m"]
        line = next(line for line in daemon.log.splitlines() if "was kept, but is not resident again: " in line)
        assert "model=m " in line and why in line
        assert {model["name"]: model["state"] for model in daemon.models()} == {"h": "resident", "m#1": "draining"}
        with wire_error("ModelNotFound"):
            client.call("Attach", name="m")
        load(client, folder / "m.gguf", "m", device="hip:0")
        client.call("Detach", lease=reply["lease"])
        wait_until(lambda: sorted(names(daemon)) == ["h", "m"])
        gpu_kept.receive()
        assert of_m <= gpu_kept.removed
    assert daemon.stop() == 0


def key_of(store, role, not_named):
    """The key of the model whose memory is no file in memory, but a GPU's."""
    for name in store.of(role):
        if not_named not in os.readlink(f"/proc/self/fd/{store.entries[name]}"):
            return name.split("-")[1]
    raise AssertionError(store.entries)


@needs_fake
def test_gpu_nobody_attached_before_it_was_another_one(gpu_kept):
    daemon = gpu_kept.start_again(**SLOW, FAKE_HIP_UUID="beef")
    wait_until(lambda: names(daemon) == ["h"])
    assert "model=m was kept, but is not resident again" in daemon.log
    with daemon.client() as client:
        used = {device["id"]: device["used"] for device in client.call("Devices")["devices"]}
    assert used["hip:0"] == used["hip:1"] == 0


@needs_fake
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ends_before_the_driver_is_there(gpu_kept, number):
    """The store has everything for the next one."""
    before = set(gpu_kept.entries)
    daemon = gpu_kept.start_again(**SLOW)
    with daemon.client() as client:
        client.call("Attach", name="m")
        client.send("Status")
        time.sleep(0.2)
        os.kill(daemon.pid, number)
        if number == signal.SIGTERM:
            with wire_error("ShuttingDown"):
                client.reply()
        assert daemon.process.wait(TIMEOUT) == (0 if number == signal.SIGTERM else -number)
    gpu_kept.receive()
    assert not gpu_kept.removed and set(gpu_kept.entries) == before
    assert sorted(names(gpu_kept.start_again())) == ["h", "m"]


@needs_fake
def test_no_gpu_is_there_at_all(gpu_kept):
    """Where GPUs were asked for, the daemon ends, and says why; the store has everything for the next one."""
    before = set(gpu_kept.entries)
    daemon = gpu_kept.start_again(**SLOW, FAKE_HIP_DEVICES="0")
    with daemon.client() as client, contextlib.suppress(Closed, OSError):
        client.call("Attach", name="m")
        client.call("Status")
    assert daemon.process.wait(TIMEOUT) == 1 and "no hip device" in daemon.log
    gpu_kept.receive()
    assert not gpu_kept.removed and set(gpu_kept.entries) == before


@needs_fake
def test_gpu_that_is_gone(store, start, fake, folder):
    options = (*fake(), "--export", "fd")
    daemon = store.start(start, *options)
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m", device="hip:1")
        store.wait("d", 1)
    daemon.process.kill()
    daemon.process.wait()
    store.receive()
    before = set(store.entries)
    fake(FAKE_HIP_DEVICES="1")
    daemon = store.start(start, *options)
    wait_until(lambda: daemon.models() == [])
    assert daemon.used() == 0
    store.receive()
    assert store.removed == before
    assert "its device is not there any more, or is another one" in daemon.log


@needs_fake
def test_handles_are_not_kept(store, start, fake, folder):
    """Memory behind an IPC handle ends with the process."""
    daemon = store.start(start, *fake(), "--export", "ipc")
    with daemon.client() as client:
        load(client, tensor_model(folder / "m.gguf"), "m")
        client.call("Pin", name="m")
    daemon.sync()
    store.receive()
    assert not store.entries
