"""Models outlive the daemon: it is killed, or ends, and the next one has them resident again without reading a file."""
import errno
import os
import signal
import struct
import subprocess
import sys
import time

import make_model
import make_safetensors
import pytest
from harness import MIB, TIMEOUT, USER, client_of, hold_program, load, names, tensor_model, wait_until, wire_error
from restarts import (
    Attacher, bytes_of, daemon_pid, described, digest, file_bytes, kept, kill, killed_under_load, mapped_reader,
    memory, restarted, soon_there,
)  # fmt: skip
from rocmforge_wire import WireError


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


# --- Under load ---


def test_killed_under_load(held, folder):
    killed_under_load(held("--grace", "1"), folder, mapped_reader, 12)


@pytest.mark.alone
def test_soon_there(held, small_model):
    soon_there(held("--workers", "12"), small_model, 4, 0.1)


@pytest.mark.alone
@pytest.mark.parametrize("n", [1, 4, 12])
def test_soon_there_with_large_vocabularies(held, folder, n):
    """Each header has 152,000 tokens and as many merges, as those of large models have. The daemon reads all before it
    answers: how long that takes is printed, and only one model has to be soon there."""
    count, data = make_model.metadata(1, 256, 256, 4, 152_000)
    merges = b"".join(make_model.string(f"token {i:06d}") for i in range(152_000))
    data += make_model.string("tokenizer.ggml.merges") + struct.pack("<IIQ", make_model.ARRAY, make_model.STRING, 152_000)
    metadata = (count + 1, data + merges)
    tensors = [make_model.Tensor("blk.0.ffn_up.weight", make_model.load_types()["i8"], (MIB,))]
    for i in range(1, n + 1):
        make_model.write_model(folder / f"m{i}.gguf", tensors, metadata, i)
    daemon = held()
    with daemon.client() as client:
        for i in range(1, n):
            load(client, folder / f"m{i}.gguf", f"m{i}")
    soon_there(daemon, folder / f"m{n}.gguf", 4 * n, 0.1 if n == 1 else 5)


def test_a_long_start_says_that_it_goes_on(store, start, folder):
    """systemd would end a daemon that says nothing for as long as a start may take."""
    daemon = store.start(start)
    tensors = [(f"t{i}", ("F32", (1,))) for i in range(65_535)]
    with daemon.client() as client:
        for i in range(4):
            place = folder / f"m{i}"
            place.mkdir()
            make_safetensors.write_folder(place, [dict([*tensors, (f"own{i}", ("F32", (1,)))])])
            load(client, place, f"m{i}")
            store.wait("d", i + 1)
    daemon.process.kill()
    daemon.process.wait()
    store.receive()
    store.said.clear()
    began = time.monotonic()
    daemon = store.start(start)
    assert len(names(daemon)) == 4
    print(f"ms: {(time.monotonic() - began) * 1000:.0f}")
    store.receive()
    before = store.said[: next(i for i, line in enumerate(store.said) if line.startswith("READY"))]
    assert "EXTEND_TIMEOUT_USEC=30000000" in before
    assert any(line.startswith("STATUS=Taking models back: ") and line.endswith(" of 4") for line in before)
