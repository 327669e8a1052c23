"""Files that are no models, that change, or that the caller could not read himself."""
import fcntl
import os
import shutil
import signal
import socket
import threading
import time

import make_model
import pytest
from harness import USER, client_of, sparse_model, wait_until, wire_error


def load_by_fd(client, path, **parameters):
    with open(path, "rb") as file:
        return client.call("Load", fds=[file.fileno()], **parameters)


def test_by_descriptor(client, small_model):
    loaded = load_by_fd(client, small_model)["model"]
    assert loaded["name"] == "small"
    assert loaded["path"] == str(small_model)
    assert loaded["size"] == small_model.stat().st_size


def test_by_path_and_descriptor_is_the_same_model(client, small_model):
    first = client.call("Load", path=str(small_model), name="first")["model"]
    second = load_by_fd(client, small_model, name="second")["model"]
    assert second["id"] == first["id"]
    assert second["name"] == "first"
    other_form = client.call("Load", path=str(small_model), name="third", form="f32")["model"]
    assert other_form["id"] != first["id"]


def test_through_another_path(client, small_model, folder):
    first = client.call("Load", path=str(small_model))["model"]
    link = folder / "link.gguf"
    link.symlink_to(small_model)
    assert client.call("Load", path=str(link))["model"]["id"] == first["id"]


def test_file_that_somebody_has_leased(client, small_model, folder):
    """Who opens it would wait until its owner lets go, for 45 seconds at most: no worker does."""
    leased = folder / "leased.gguf"
    shutil.copy(small_model, leased)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # tells who has the lease that it is wanted back
    try:
        with open(leased, "r+b") as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            began = time.monotonic()
            with wire_error("FileError"):
                client.call("Load", path=str(leased))
            assert time.monotonic() - began < 20
    finally:
        signal.signal(signal.SIGIO, before)
    assert client.call("Load", path=str(leased))["model"]["state"] == "resident"


def test_name_in_use(client, small_model, folder):
    client.call("Load", path=str(small_model), name="taken")
    other = folder / "other.gguf"
    shutil.copyfile(small_model, other)
    with wire_error("NameInUse") as parameters:
        client.call("Load", path=str(other), name="taken")
    assert parameters == {"name": "taken"}


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 23, 24, 100, 1000, 5000, -33])
def test_truncated(client, daemon, small_model, folder, kept):
    path = folder / "cut.gguf"
    data = small_model.read_bytes()
    path.write_bytes(data[:kept])
    with wire_error("InvalidModel") as parameters:
        client.call("Load", path=str(path))
    assert parameters["reason"]
    assert 0 <= parameters["offset"] <= len(data)
    assert client.call("List") == {"models": []}
    assert daemon.used() == 0


def test_every_byte_of_the_header_flipped(daemon, folder):
    """Whatever it does to the header, the answer is a model or a typed error, and the daemon lives."""
    types = make_model.load_types()
    path = folder / "flip.gguf"
    make_model.write_model(path, [make_model.Tensor("a", types["f32"], (32,))], (1, make_model.string("k") + bytes(5)), 1)
    data = path.read_bytes()
    header = data.index(b"a", 24) + 40
    allowed = {"InvalidModel", "UnsupportedType", "OutOfDeviceMemory"}
    with daemon.client() as client:
        for position in range(header):
            for flip in (0x01, 0x80, 0xFF):
                changed = bytearray(data)
                changed[position] ^= flip
                path.write_bytes(changed)
                try:
                    client.call("Load", path=str(path), name="flip")
                    client.call("Unload", name="flip")
                except Exception as error:
                    assert getattr(error, "name", None) in allowed, (position, flip, error)
    assert daemon.used() == 0


def test_not_a_file(client, folder):
    os.mkfifo(folder / "fifo")
    with wire_error("FileError"):
        client.call("Load", path=str(folder / "nothing.gguf"))
    for path in (folder, folder / "fifo", "/dev/zero", "/dev/null"):
        with wire_error("FileError"):
            client.call("Load", path=str(path))
    left, right = socket.socketpair()
    with left, right, wire_error("FileError"):
        client.call("Load", fds=[left.fileno()])
    with open(folder / "write-only", "wb") as file, wire_error("FileError"):
        client.call("Load", fds=[file.fileno()])
    assert client.call("List") == {"models": []}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be someone else")
def test_path_that_the_caller_may_not_read(start, small_model, folder):
    """A daemon with more rights than the caller must not lend them: by path it gives others only what all may read."""
    daemon = start()
    os.chmod(folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    path = folder / "private.gguf"
    shutil.copyfile(small_model, path)
    os.chmod(path, 0o600)
    with client_of(daemon, USER) as client:
        for method in ("Load", "Plan"):
            with wire_error("PermissionDenied"):
                client.call(method, path=str(path))
    assert daemon.models() == []


def test_path_that_the_caller_may_not_reach(start_for_all, small_model, folder):
    """Nor may others learn what is there."""
    daemon = start_for_all()
    (folder / "hidden").mkdir(mode=0o700)
    shutil.copyfile(small_model, folder / "hidden" / "model.gguf")
    shutil.copyfile(small_model, folder / "public.gguf")
    for path in (folder / "hidden", folder / "hidden" / "model.gguf", folder / "public.gguf"):
        os.chown(path, daemon.uid, -1)
    os.chmod(folder / "hidden" / "model.gguf", 0o644)
    with client_of(daemon, USER) as client:
        errors = []
        for name in ("hidden/model.gguf", "hidden/none.gguf", "none.gguf", "hidden"):
            for method in ("Load", "Plan"):
                with wire_error("PermissionDenied") as parameters:
                    client.call(method, path=str(folder / name))
                errors.append(parameters)
        assert errors == errors[:1] * 8
        if daemon.uid != 0:  # root's daemon is no judge of what others may read
            client.call("Plan", path=str(folder / "public.gguf"))
    with daemon.client() as root:
        root.call("Load", path=str(folder / "hidden" / "model.gguf"))


def by_any_descriptor_of(daemon, client, form):
    """Asks for each file without a name that the daemon has open, by the one that the daemon's own process has for it."""
    folder = f"/proc/{daemon.pid}/fd"
    fds = [fd for fd in os.listdir(folder) if os.readlink(f"{folder}/{fd}").endswith("(deleted)")]
    assert fds
    for fd in fds:
        with wire_error("PermissionDenied"):
            client.call("Load", path=f"/proc/self/fd/{fd}", name=f"stolen{fd}", form=form)


@pytest.mark.parametrize("kind", ["memfd", "unlinked"])
def test_descriptors_of_others_are_not_to_be_had_by_path(start_for_all, small_model, folder, kind):
    """Not even where everybody may read the file, had it a name."""
    daemon = start_for_all()
    if kind == "memfd":
        fd = os.memfd_create("private")
    else:
        fd = os.open(folder / "unlinked.gguf", os.O_RDWR | os.O_CREAT, 0o644)
        (folder / "unlinked.gguf").unlink()
    os.write(fd, small_model.read_bytes())
    with client_of(daemon, USER) as owner, client_of(daemon, USER + 1) as other:
        owner.call("Load", fds=[fd], name="m", private=True)
        os.close(fd)
        assert other.call("List")["models"] == []
        for form in ("auto", "f32"):
            by_any_descriptor_of(daemon, other, form)


def test_file_that_changes_while_it_is_read(held_daemon, gate, model_folder):
    path = model_folder / "changing.gguf"
    before = held_daemon.settled_fds()
    with held_daemon.client() as client:
        for change in (lambda: os.truncate(path, 1 << 20), lambda: touch_data(path)):
            sparse_model(path, 128 << 20)
            client.send("Load", {"path": str(path)}, more=True)
            wait_for_filling(held_daemon)
            change()
            gate.open()
            with wire_error("FileChanged") as parameters:
                while True:
                    assert client.reply()[1], "it was loaded all the same"
            assert parameters["path"] == str(path)
            assert client.call("List") == {"models": []}
            gate.close()
    wait_until(lambda: held_daemon.fds() == before)
    assert held_daemon.used() == 0


def touch_data(path):
    with open(path, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"changed")


def wait_for_filling(daemon):
    wait_until(lambda: any(model["state"] == "filling" for model in daemon.models()), every=0.001)


def test_verify_after_a_change(client, small_model, folder):
    """The file is not the one that was loaded any more: that is said, rather than a mismatch."""
    path = folder / "model.gguf"
    shutil.copyfile(small_model, path)
    client.call("Load", path=str(path))
    assert client.call("Verify", name="model")["mismatches"] == []
    touch_data(path)
    with wire_error("FileChanged"):
        client.call("Verify", name="model")
    assert client.call("List")["models"][0]["state"] == "resident"


def test_file_that_changes_while_it_is_verified(held_daemon, gate, model_folder):
    """That is what is told, and not that the memory is wrong."""
    path = sparse_model(model_folder / "verified.gguf", 64 << 20)
    gate.open()
    with held_daemon.client() as client:
        client.call("Load", path=str(path), name="m")
        gate.close()
        client.send("Verify", {"name": "m"}, more=True)
        assert client.reply()[1]
        touch_data(path)
        gate.open()
        with wire_error("FileChanged") as parameters:
            while True:
                assert client.reply()[1], "it was verified all the same"
        assert (parameters["path"], parameters["when"]) == (str(path), "while-read")
        assert client.call("List")["models"][0]["changed"] is False, "nobody has compared it to its end"
    assert "differ" not in held_daemon.log


def test_name_of_a_deleted_file(client, small_model, folder):
    """What the kernel says of a file without a name is no part of the model's."""
    path = folder / "gone.gguf"
    shutil.copy(small_model, path)
    with open(path, "rb") as file:
        path.unlink()
        loaded = client.call("Load", fds=[file.fileno()])["model"]
    assert (loaded["name"], loaded["path"]) == ("gone", str(path))
    client.call("Unload", name="gone")
    memory = os.memfd_create("of memory")
    os.write(memory, small_model.read_bytes())
    loaded = client.call("Load", fds=[memory])["model"]
    os.close(memory)
    assert (loaded["name"], loaded["path"]) == ("memfd:of_memory", "/memfd:of memory")


def test_name_that_only_looks_deleted(client, small_model, folder):
    path = folder / "c.gguf (deleted)"
    shutil.copy(small_model, path)
    loaded = client.call("Load", path=str(path))["model"]
    assert (loaded["name"], loaded["path"]) == ("c.gguf__deleted_", str(path))


def test_deleted_file(client, small_model, folder):
    """The daemon keeps the file open, so a model can be verified after its file was deleted."""
    path = folder / "model.gguf"
    shutil.copyfile(small_model, path)
    client.call("Load", path=str(path))
    path.unlink()
    try:
        assert client.call("Verify", name="model")["mismatches"] == []
    except Exception as error:
        assert getattr(error, "name", None) == "FileChanged"  # deleting moves the change time


def test_too_large_for_the_budget(client, folder):
    path = sparse_model(folder / "huge.gguf", 4 << 30)
    with wire_error("OutOfDeviceMemory") as parameters:
        client.call("Load", path=str(path))
    assert parameters["needed"] >= 4 << 30
    assert parameters["available"] == 3 << 30
    assert client.call("List") == {"models": []}


def test_loads_in_parallel_from_threads(daemon, model_folder):
    types = make_model.load_types()
    paths = []
    for i in range(6):
        paths.append(model_folder / f"parallel{i}.gguf")
        make_model.write_model(
            paths[-1],
            make_model.sized_tensors(10, 4 << 20, [types["q4_0"], types["f16"]]),
            make_model.metadata(4, 256, 256, 4, 100),
            i,
        )
    states = []

    def load(path):
        with daemon.client() as client:
            states.append(client.call("Load", path=str(path))["model"]["state"])
            states.append(client.call("Verify", name=path.stem)["mismatches"])

    threads = [threading.Thread(target=load, args=[path]) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert states.count("resident") == states.count([]) == 6
