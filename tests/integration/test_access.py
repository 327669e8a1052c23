"""A file's readers are its model's readers; and names are looked up for who asks."""
import contextlib
import os

import pytest
from harness import USER, as_user, client_of, load_fd, names, tensor_model, wait_until, wire_error

OTHER, MEMBER, GROUP = USER + 1, USER + 2, USER + 10
BY_NAME = ("Attach", "Show", "Verify", "Unload", "Pin", "Unpin", "Cancel")


@pytest.fixture
def own_file(folder):
    """own_file(name, mode): a model file of USER, in GROUP."""

    def make(name="m.gguf", mode=0o640, seed=1, uid=USER):
        path = tensor_model(folder / name, seed=seed)
        os.chown(path, uid, GROUP)
        os.chmod(path, mode)
        return path

    return make


@pytest.fixture
def clients(start_for_all):
    """clients(daemon, uid, groups): closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(client_of(*arguments))


def load_as(client, uid, path, **parameters):
    with as_user(uid):
        file = open(path, "rb")
    with file:
        return client.call("Load", fds=[file.fileno()], **parameters)["model"]


def seen(client):
    return sorted(model["name"] for model in client.call("List")["models"])


def assert_not_there(client, name):
    """As if there had never been a model of this name."""
    for method in BY_NAME:
        with wire_error("ModelNotFound") as error:
            client.call(method, name=name)
        assert error == {"name": name}
    assert name not in seen(client)
    status = client.call("Status")
    assert (status["models"], status["leases"], status["loads"]) == (len(seen(client)), 0, 0)


def test_who_may_read_the_file(start_for_all, clients, own_file):
    daemon = start_for_all()
    user, member, stranger = clients(daemon, USER), clients(daemon, MEMBER, [GROUP]), clients(daemon, OTHER)
    root, own = clients(daemon, 0), clients(daemon, daemon.uid)
    events = clients(daemon, OTHER).more("Watch")
    assert next(events)["models"] == []
    model = load_as(user, USER, own_file(), name="m")
    assert (model["access"], model["uid"], model["private"]) == ("readers", USER, False)
    for client in (user, member, root, own):
        assert seen(client) == ["m"]
        lease = client.call("Attach", name="m")["lease"]
        client.call("Detach", lease=lease)
    assert_not_there(stranger, "m")
    load_as(stranger, OTHER, own_file("o.gguf", 0o600, 2, OTHER), name="o")
    assert next(events)["model"]["name"] == "o", "nothing of the other model was told"


def test_modes_are_looked_at_again(start_for_all, clients, own_file, folder):
    daemon = start_for_all()
    user, stranger, root = clients(daemon, USER), clients(daemon, OTHER), clients(daemon, 0)
    path = own_file(mode=0o644)
    load_as(user, USER, path, name="m")
    lease = stranger.call("Attach", name="m")["lease"]
    stranger.call("Detach", lease=lease)
    os.chmod(path, 0o600)
    with wire_error("ModelNotFound"):
        stranger.call("Attach", name="m")
    assert_not_there(stranger, "m")
    os.chmod(path, 0o644)
    load_as(user, USER, path, name="m")  # which has the daemon look
    assert seen(stranger) == ["m"]
    os.chmod(folder, 0o711)
    stranger.call("Attach", name="m")
    os.chmod(folder, 0o700)
    os.chmod(daemon.socket, 0o666)
    with wire_error("ModelNotFound"):
        stranger.call("Attach", name="m")
    assert seen(root) == ["m"]
    os.chmod(folder, 0o755)


def test_access_control_lists(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o644)
    acl = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + id_.to_bytes(4, "little")
        for tag, perm, id_ in ((1, 6, 2**32 - 1), (2, 4, 1), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1))
    )
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    user, stranger = clients(daemon, USER), clients(daemon, OTHER)
    load_as(user, USER, path, name="m")
    assert_not_there(stranger, "m")


def test_who_passes_the_file_may_read_it(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o600)
    user, guest, stranger = clients(daemon, USER), clients(daemon, OTHER), clients(daemon, OTHER + 1)
    model = load_as(user, USER, path, name="m")
    assert_not_there(guest, "m")
    assert load_fd(guest, path)["id"] == model["id"]
    guest.call("Attach", name="m")
    assert_not_there(stranger, "m")
    with wire_error("PermissionDenied"):
        guest.call("Unload", name="m")


def test_public_and_private(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o640)
    user, member, stranger = clients(daemon, USER), clients(daemon, MEMBER, [GROUP]), clients(daemon, OTHER)
    root = clients(daemon, 0)
    with wire_error("PermissionDenied"):
        load_fd(member, path, name="m", public=True)
    assert load_fd_plan(member, path, public=True)["error"] == "io.rocmforge.PermissionDenied"
    with wire_error("org.varlink.service.InvalidParameter"):
        load_fd(user, path, name="m", public=True, private=True)
    model = load_as(user, USER, path, name="m")
    with wire_error("PermissionDenied"):
        load_fd(member, path, public=True)
    assert_not_there(stranger, "m")
    again = load_as(user, USER, path, public=True)
    assert (again["id"], again["access"]) == (model["id"], "public")
    stranger.call("Attach", name="m")
    assert load_fd(root, own_file("r.gguf", 0o600, 3), name="r", public=True)["access"] == "public"
    assert seen(stranger) == ["m", "r"]
    mine = load_as(user, USER, path, name="mine", private=True)
    assert (mine["access"], mine["private"]) == ("private", True)
    assert seen(member) == ["m", "r"]


def load_fd_plan(client, path, **parameters):
    with open(path, "rb") as file:
        return client.call("Plan", fds=[file.fileno()], **parameters)


def test_each_has_its_names(start_for_all, clients, own_file):
    daemon = start_for_all()
    user, other, third, root = (clients(daemon, uid) for uid in (USER, OTHER, OTHER + 1, 0))
    a = load_as(user, USER, own_file("a.gguf", 0o600, 1), name="m")
    plan = load_fd_plan(other, own_file("b.gguf", 0o644, 2, OTHER), name="m")
    assert plan["error"] is None
    b = load_as(other, OTHER, own_file("b.gguf", 0o644, 2, OTHER), name="m")
    assert a["id"] != b["id"] and a["name"] == b["name"] == "m"
    for client, model in ((user, a), (other, b), (third, b)):
        assert client.call("Show", name="m")["model"]["id"] == model["id"]
        assert client.call("Attach", name="m")["model"]["id"] == model["id"]
    for model in (a, b):
        assert root.call("Show", name=f"m#{model['id']}")["model"]["id"] == model["id"]
    with wire_error("ModelNotFound"):
        third.call("Show", name=f"m#{a['id']}")
    c = own_file("c.gguf", 0o644, 3)
    for client in (user, other, third):  # each sees one of that name, and cannot take it
        with wire_error("NameInUse"):
            load_fd(client, c, name="m")
        assert load_fd_plan(client, c, name="m")["error"] == "io.rocmforge.NameInUse"


def test_nobody_sits_on_a_name_of_preload(start_for_all, clients, own_file, folder):
    (folder / "preload").mkdir(mode=0o755)
    daemon = start_for_all("--preload", str(folder / "preload"))
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    load_as(user, USER, own_file("a.gguf", 0o600), name="llama")
    path = tensor_model(folder / "preload" / "llama.gguf", seed=5)
    os.chmod(path, 0o644)
    daemon.process.send_signal(1)
    wait_until(lambda: names(daemon) == ["llama", "llama"])
    wait_until(lambda: all(model["state"] == "resident" for model in daemon.models()))
    assert other.call("Show", name="llama")["model"]["uid"] == daemon.uid
    assert user.call("Show", name="llama")["model"]["uid"] == USER


# --- Several names ---


def test_further_names(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    model = load_as(user, USER, path, name="a")
    events = clients(daemon, OTHER).more("Watch")
    next(events)
    joined = load_as(user, USER, path, name="b")
    assert (joined["id"], joined["name"], joined["aliases"]) == (model["id"], "a", ["b"])
    event = next(events)
    assert (event["event"], event["model"]["aliases"]) == ("renamed", ["b"])
    assert load_as(user, USER, path)["aliases"] == ["b"], "no name was asked for, and none was given"
    assert load_as(other, OTHER, path, name="c")["aliases"] == ["b", "c"]
    for name in "abc":
        assert other.call("Show", name=name)["model"]["id"] == model["id"]
        lease = other.call("Attach", name=name)["lease"]
        other.call("Detach", lease=lease)
        user.call("Pin", name=name)
        user.call("Unpin", name=name)
        assert user.call("Verify", name=name)["mismatches"] == []
    with wire_error("PermissionDenied"):
        other.call("Unload", name="b")
    assert user.call("Unload", name="a")["state"] == "named"
    assert other.call("List")["models"][0]["name"] == "b"
    with wire_error("ModelNotFound"):
        user.call("Show", name="a")
    assert other.call("Unload", name="c")["state"] == "named"
    lease = other.call("Attach", name="b")["lease"]
    with wire_error("ModelBusy"):
        user.call("Unload", name="b")
    other.call("Detach", lease=lease)
    assert user.call("Unload", name="b")["state"] == "unloaded"
    assert user.call("List")["models"] == []


def test_the_last_name_is_whoever_gave_it(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    model = load_as(user, USER, path, name="a")
    load_as(other, OTHER, path, name="b")
    assert user.call("Unload", name="a")["state"] == "named"
    assert other.call("Unload", name="b")["state"] == "unloaded"
    load_as(user, USER, path, name="a")
    model = load_as(other, OTHER, path, name="b")
    assert user.call("Unload", name=f"a#{model['id']}")["state"] == "unloaded"  # with all of its names


def test_a_name_of_another_model(start_for_all, clients, own_file):
    daemon = start_for_all()
    a, b = own_file("a.gguf", 0o644, 1), own_file("b.gguf", 0o644, 2)
    user = clients(daemon, USER)
    load_as(user, USER, a, name="a")
    load_as(user, USER, b, name="b")
    with wire_error("NameInUse") as error:
        load_as(user, USER, a, name="b")
    assert error == {"name": "b"}
    plan = load_fd_plan(user, a, name="b")
    assert plan["error"] == "io.rocmforge.NameInUse"
    for i in range(15):
        load_as(user, USER, a, name=f"n{i}")
    with wire_error("LimitExceeded") as error:
        load_as(user, USER, a, name="one-too-many")
    assert error == {"limit": "names", "value": 16}


def test_draining_is_told_by_the_name_that_was_asked_for(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    load_as(user, USER, path, name="a")
    model = load_as(user, USER, path, name="b")
    other.call("Attach", name="b")
    assert user.call("Unload", name=f"a#{model['id']}", force=True)["state"] == "draining"
    assert other.call("Status")["draining"] == ["b"]


def test_rfctl_says_which_names(daemon, small_model):
    assert "loaded" in daemon.rfctl("load", small_model, "--name", "a").stdout
    assert "as a, now also b" in daemon.rfctl("load", small_model, "--name", "b").stdout
    row = daemon.rfctl("ps").stdout.splitlines()[1].split()
    assert row[-4:] == ["root", "readers", "also", "b"]
    assert "also called b" in daemon.rfctl("show", "b").stdout
    assert daemon.rfctl("unload", "a").stdout == "a is no name of the model any more; it has others\n"
    assert daemon.rfctl("unload", "b").stdout == "unloaded b\n"
    public = daemon.rfctl("load", small_model, "--public", "--name", "p")
    assert public.returncode == 0
    assert "\npublic\n" in daemon.rfctl("show", "p").stdout
