"""Models that are split into several files."""
import contextlib
import os

import pytest
from harness import names, wait_until, wire_error
from split_model import split_tensors


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
