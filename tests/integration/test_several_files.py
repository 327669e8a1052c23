"""Models of several files: which files are the model's, and what it is called and shown as."""
import contextlib
import os

import make_safetensors
import pytest
from harness import USER, client_of, wire_error
from split_model import split_tensors, write_shard, write_split


def by_id(daemon, id_):
    return next((model for model in daemon.models() if model["id"] == id_), None)


def several_gguf(folder, evil):
    """A model's files, and what another user gives: the first of them, and others of its own."""
    shards = write_split(folder)
    own = write_split(evil, lambda number: {"tensors": split_tensors(7)[:4]} if number == 1 else
                      {"tensors": split_tensors(7)[4:]} if number == 2 else {})
    return shards, [shards[0], *own[1:]]


def several_safetensors(folder, evil, n=3):
    shards = [folder / f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)]
    own = [evil / path.name for path in shards]
    for i in range(n):
        make_safetensors.write(shards[i], {f"t{i}": ("F32", (64, 64))}, seed=i)
        make_safetensors.write(own[i], {f"t{i}": ("F32", (64, 65))}, seed=i)
    return shards, [shards[0], *own[1:]]


def one_safetensors(folder, evil):
    """Of one file: the other user gives it beside a file that is not of it."""
    path, own = folder / "model.safetensors", evil / "model-2.safetensors"
    make_safetensors.write(path, {"t0": ("F32", (64, 64))})
    make_safetensors.write(own, {"t1": ("F32", (64, 64))})
    return [path], [path, own]


def one_safetensors_last(folder, evil):
    shards, given = one_safetensors(folder, evil)
    return shards, given[::-1]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("write", [several_gguf, several_safetensors, one_safetensors, one_safetensors_last])
def test_one_file_of_several_takes_no_name(start_for_all, folder, write, pin, hidden):
    """Who gives a model's first file with others of its own says nothing of the model."""
    daemon = start_for_all()
    evil = folder / "evil"
    evil.mkdir()
    shards, given = write(folder, evil)
    for path in (folder, evil):
        path.chmod(0o755)
    for path in {*shards, *given}:
        path.chmod(0o644)
    with daemon.client() as owner, client_of(daemon, USER) as other, contextlib.ExitStack() as stack:
        fds = [stack.enter_context(open(path, "rb")).fileno() for path in given]
        with contextlib.ExitStack() as whole:
            own = [whole.enter_context(open(path, "rb")).fileno() for path in shards]
            for path in (shards[1:] or shards) if hidden else []:
                path.chmod(0o600)
            first = owner.call("Load", fds=own, name="prod", pin=pin)["model"]
        assert other.call("Plan", fds=fds)["error"] is None
        assert not by_id(daemon, first["id"])["changed"]
        if hidden:
            other.call("Load", fds=fds, name="prod")
        else:
            with wire_error("NameInUse"):
                other.call("Load", fds=fds, name="prod")
        assert owner.call("Show", name="prod")["model"]["id"] == first["id"]
        kept = by_id(daemon, first["id"])
        assert (kept["name"], kept["changed"]) == ("prod", False)


def digests(paths):
    """The same files under names that tell no order; the first one's is the last."""
    named = [path.with_name(f"sha256-{name}") for path, name in zip(paths, ("f", "b", "a"))]
    for old, new in zip(paths, named):
        old.rename(new)
    return named


def wrong_numbers(paths):
    """The names tell another order than the files."""
    names = [path.name for path in paths]
    for path in paths:
        path.rename(path.with_suffix(".moved"))
    return [path.with_suffix(".moved").rename(path.with_name(name)) for path, name in zip(paths, reversed(names))]


def open_in(order, paths, stack):
    return [stack.enter_context(open(paths[i], "rb")).fileno() for i in order]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("named", [list, digests, wrong_numbers])
def test_the_path_is_that_of_the_first_file(daemon, client, folder, named, order):
    """Of the model's, not of those that were given."""
    paths = named(write_split(folder))
    with contextlib.ExitStack() as stack, daemon.client() as watcher:
        watcher.send("Watch", more=True)
        watcher.reply()
        fds = open_in(order, paths, stack)
        model = client.call("Load", fds=fds)["model"]
        if named is list:
            assert model["name"] == "model-00001-of-00003"
        name = model["name"]
        shown = client.call("Show", name=name)["model"]
        watched = watcher.reply()[0]["model"]
        while watched["state"] != "resident":
            watched = watcher.reply()[0]["model"]
        assert {one["path"] for one in (model, shown, watched, daemon.models()[0])} == {str(paths[0])}
        assert client.call("Plan", fds=fds)["model"]["path"] == str(paths[0])
        assert daemon.rfctl("show", name).stdout.count(str(paths[0])) == 1
        attached = client.call("Attach", name=name)
        memory = client.fds[attached["fd"]]
        for tensor in attached["tensors"]:
            part = os.pread(memory, tensor["size"], tensor["offset"])
            assert len(part) == tensor["size"] and sum(path.read_bytes().count(part) for path in paths) == 1
        assert client.call("Verify", name=name)["mismatches"] == []
        os.utime(paths[2], (1, 1))
        assert client.call("Load", fds=fds[::-1])["model"]["id"] == model["id"], "compared, and the same"
        assert daemon.models()[0]["path"] == str(paths[0])


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
def test_safetensors_files_tell_their_order_by_their_names(daemon, client, folder, order):
    evil = folder / "evil"
    evil.mkdir()
    paths, _ = several_safetensors(folder, evil)
    with contextlib.ExitStack() as stack:
        model = client.call("Load", fds=open_in(order, paths, stack), name="m")["model"]
        assert model["path"] == str(paths[0])
        assert [tensor["name"] for tensor in client.call("Show", name="m")["tensors"]] == ["t0", "t1", "t2"]
        assert client.call("Verify", name="m")["mismatches"] == []
    other = [path.rename(folder / name) for path, name in zip(paths, ("c.safetensors", "b.safetensors", "a.safetensors"))]
    with contextlib.ExitStack() as stack:
        model = client.call("Load", fds=open_in((1, 0, 2), other, stack), name="n", form="f16")["model"]
        assert model["path"] == str(other[1]), "these tell no order: the first one that is given counts"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("named", [list, digests])
def test_which_file_is_wrong_is_told_as_they_were_given(daemon, client, folder, named, order):
    paths = named(write_split(folder))
    with open(paths[2], "r+b") as file:
        file.truncate(os.path.getsize(paths[2]) - 4096)
    with contextlib.ExitStack() as stack, wire_error("InvalidModel") as error:
        client.call("Load", fds=open_in(order, paths, stack))
    assert error["reason"].startswith(f"file {order.index(2) + 1}: ")


def links_to(paths):
    """Further names of the same files, which tell no order."""
    links = [path.with_name(f"link-{i}") for i, path in enumerate(paths)]
    for path, link in zip(paths, links):
        os.link(path, link)
    return links


def replace(path, folder, tensors=None, seed=2):
    """Puts another file at the path of the last file; as it was written it had seed 2."""
    new = folder / "new"
    write_shard(new, 2, 3, 7, tensors or split_tensors(7)[3:], seed)
    new.chmod(0o644)
    new.rename(path)


OTHER = {"bytes": {"seed": 9}, "size": {"tensors": [split_tensors(8)[7], *split_tensors(7)[4:]]}}


def load_files(client, paths, method="Load", **parameters):
    with contextlib.ExitStack() as stack:
        return client.call(method, fds=open_in(range(len(paths)), paths, stack), **parameters)


@pytest.mark.parametrize("method", ["Plan", "Load"])
@pytest.mark.parametrize("what", OTHER)
def test_one_file_was_replaced_and_the_others_have_further_names(daemon, client, folder, what, method):
    """The path of the one leads to other bytes, by whatever paths the others are found."""
    paths = write_split(folder)
    first = load_files(client, paths, name="m")["model"]
    links = links_to(paths)
    replace(paths[2], folder, **OTHER[what])
    given = [*links[:2], paths[2]]
    assert load_files(client, given, method, name="n").get("error") is None
    assert by_id(daemon, first["id"])["changed"]
    assert load_files(client, given, "Plan", name="m")["error"] is None
    second = load_files(client, given, name="m")["model"]
    assert second["id"] != first["id"] and second["name"] == ("m" if method == "Plan" else "n")
    assert client.call("Show", name="m")["model"]["id"] == second["id"]


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_replaced_by_the_same_bytes_is_the_same_model(daemon, client, folder, whole):
    paths = write_split(folder)
    first = load_files(client, paths, name="m")["model"]
    links = links_to(paths)
    if not whole:
        replace(paths[2], folder)
    given = [*links[:2], links[2] if whole else paths[2]]
    assert load_files(client, given, "Plan")["model"]["id"] == first["id"]
    again = load_files(client, given, name="m")["model"]
    assert (again["id"], again["changed"]) == (first["id"], False)


@pytest.mark.parametrize("method", ["Plan", "Load"])
def test_a_file_is_written_to_by_another_name(daemon, client, folder, method):
    """It is the model's file, whatever it is called."""
    paths = write_split(folder)
    first = load_files(client, paths, name="m")["model"]
    links = links_to(paths)
    with open(links[2], "ab") as file:
        file.write(bytes(4096))
    load_files(client, links, method, name="n")
    assert by_id(daemon, first["id"])["changed"]


@pytest.mark.parametrize("what", OTHER)
def test_another_user_takes_no_name_by_further_names(start_for_all, folder, what):
    """A further name may be all that is left of a file that was replaced: only the paths themselves count."""
    daemon = start_for_all()
    folder.chmod(0o755)
    paths = write_split(folder)
    for path in paths:
        path.chmod(0o644)
    with daemon.client() as owner, client_of(daemon, USER) as other:
        first = load_files(owner, paths, name="prod")["model"]
        links = links_to(paths)
        replace(paths[2], folder, **OTHER[what])
        for given in ([*links[:2], paths[2]], links):
            with wire_error("NameInUse"):
                load_files(other, given, name="prod")
        assert owner.call("Show", name="prod")["model"]["id"] == first["id"]
