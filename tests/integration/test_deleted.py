"""Files that are deleted while their models are in memory."""
import os
import signal
import time

import pytest
from harness import MIB, load, tensor_model, wait_until
from split_model import write_split


@pytest.fixture
def path(folder):
    return tensor_model(folder / "m.gguf", seed=1)


def look_again(daemon):
    """The daemon has looked at the files of all models when this returns."""
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    wait_until(daemon.is_idle)


def verify(daemon):
    daemon.rfctl("verify", "m")


def marks(daemon):
    """For each model: is it deleted, has it changed?"""
    return [(model.get("deleted", False), model["changed"]) for model in daemon.models()]


@pytest.mark.parametrize("look", [look_again, verify])
def test_is_told(daemon, client, path, look):
    first = load(client, path, "m")
    assert "deleted" not in first
    with daemon.client() as watcher:
        events = watcher.more("Watch")
        next(events)
        path.unlink()
        for _ in range(2):
            look(daemon)
            assert marks(daemon) == [(True, False)]
        event = next(events)
        assert (event["event"], event["model"]["deleted"]) == ("deleted", True)
        tensor_model(path, seed=1)
        assert load(client, path, "m")["id"] == first["id"]
        event = next(events)
        assert (event["event"], "deleted" in event["model"]) == ("restored", False), "it was told once"


def test_rfctl_says_so(daemon, path):
    daemon.rfctl("load", path, "--name", "m")
    daemon.rfctl("load", path, "--name", "n")
    path.unlink()
    verified = daemon.rfctl("verify", "m").stdout
    assert verified.endswith("every bit as in the file that was loaded; it was deleted since\n")
    assert "also n; file deleted" in daemon.rfctl("ps").stdout
    assert "file deleted: when the model is unloaded, it cannot be loaded from there again" in daemon.rfctl("show", "m").stdout


def test_verify_says_so(client, path):
    load(client, path, "m")
    assert "deleted" not in client.call("Verify", name="m")
    path.unlink()
    for _ in range(2):
        reply = client.call("Verify", name="m")
        assert (reply["mismatches"], reply["replaced"], reply["deleted"]) == ([], False, True)


@pytest.mark.parametrize("look", [look_again, verify])
@pytest.mark.parametrize("way", ["moved", "another name", "a new folder", "replaced", "a link"])
def test_what_was_not_deleted(daemon, client, folder, path, way, look):
    """The file has another name, or a newer one is at its path: this is another note."""
    if way == "a link":
        path, old = folder / "link.gguf", path
        path.symlink_to(old)
    load(client, path, "m")
    if way == "moved":
        path.rename(folder / "moved.gguf")
    elif way == "another name":
        os.link(path, folder / "other.gguf")
        path.unlink()
    elif way == "a new folder":
        (folder / "d").mkdir()
        path.rename(folder / "d" / path.name)
    elif way == "replaced":
        tensor_model(folder / "new", seed=2).rename(path)
    else:
        path.unlink()
        path.symlink_to(tensor_model(folder / "new.gguf", seed=2))
        old.unlink()
    look(daemon)
    look_again(daemon)
    assert marks(daemon) == [(False, way in ("replaced", "a link"))]


def test_a_file_without_a_name(daemon, client):
    """It never had one."""
    fd = os.memfd_create("m")
    try:
        with open(fd, "r+b", closefd=False) as file:
            file.write(tensor_model(daemon.folder / "m.gguf", seed=1).read_bytes())
        client.call("Load", fds=[fd], name="m")
    finally:
        os.close(fd)
    look_again(daemon)
    verify(daemon)
    assert marks(daemon) == [(False, False)]


@pytest.mark.parametrize("i", range(3))
def test_each_file_of_a_split_model_counts(daemon, client, folder, i):
    shards = write_split(folder)
    load(client, shards[0], "m")
    shards[i].unlink()
    look_again(daemon)
    assert marks(daemon) == [(True, False)]


@pytest.mark.parametrize("method", ["Load", "Plan", "SIGHUP"])
@pytest.mark.parametrize("other", [False, True])
def test_a_file_is_there_again(daemon, client, path, method, other):
    """With the same bytes it is the model's file, else the model has changed; either way there is something to load."""
    first = load(client, path, "m")
    data = path.read_bytes()
    path.unlink()
    look_again(daemon)
    assert marks(daemon) == [(True, False)]
    if other:
        tensor_model(path, 2 * MIB, seed=2)
    else:
        path.write_bytes(data)
    if method == "SIGHUP":
        look_again(daemon)
        assert marks(daemon) == [(False, True)], "any other file at a path counts, before a load has read it"
    else:
        plan = client.call("Plan", path=str(path), name="m")
        assert ("model" in plan) == (not other) and marks(daemon) == [(False, other)]
    if method != "Plan":
        assert (load(client, path, "m")["id"] == first["id"]) == (not other)
        wait_until(lambda: marks(daemon) == [(False, False)])


def test_changed_before(daemon, client, path):
    """Both are so, and both are told. What cannot be loaded is not offered."""
    load(client, path, "m")
    path.write_bytes(tensor_model(path.with_name("other.gguf"), seed=2).read_bytes())
    look_again(daemon)
    path.unlink()
    look_again(daemon)
    assert marks(daemon) == [(True, True)]
    shown = daemon.rfctl("show", "m").stdout
    assert "file deleted" in shown and "file changed: before it was deleted" in shown and "rfctl load" not in shown
