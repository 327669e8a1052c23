"""A file's readers are its model's readers; and names are looked up for who asks."""
import os
import signal
import time

import pytest
from harness import USER, as_user, load_as, load_fd, names, tensor_model, wait_until, wire_error
from namespace import in_namespace

OTHER, MEMBER, GROUP = USER + 1, USER + 2, USER + 10
BY_NAME = ("Attach", "Show", "Verify", "Unload", "Pin", "Unpin", "SetTtl", "Cancel")


@pytest.fixture
def own_file(folder):
    """own_file(name, mode): a model file of USER, in GROUP."""

    def make(name="m.gguf", mode=0o640, seed=1, uid=USER):
        path = tensor_model(folder / name, seed=seed)
        os.chown(path, uid, GROUP)
        os.chmod(path, mode)
        return path

    return make


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
    assert seen(stranger) == []
    stranger.call("Detach", lease=stranger.call("Attach", name="m")["lease"])  # which has the daemon look
    assert seen(stranger) == ["m"]
    os.chmod(folder, 0o711)
    stranger.call("Attach", name="m")
    os.chmod(folder, 0o700)
    os.chmod(daemon.socket, 0o666)
    with wire_error("ModelNotFound"):
        stranger.call("Attach", name="m")
    assert seen(root) == ["m"]
    os.chmod(folder, 0o755)


def test_rights_that_widen(start_for_all, clients, own_file):
    daemon = start_for_all()
    user, other, stranger = clients(daemon, USER), clients(daemon, OTHER), clients(daemon, OTHER + 1)
    path = own_file(mode=0o600)
    model = load_as(user, USER, path, name="m")
    load_as(other, OTHER, own_file("o.gguf", 0o600, 2, OTHER), name="m")
    for name in ("m", f"m#{model['id']}", "nobody"):
        with wire_error("ModelNotFound") as error:
            stranger.call("Attach", name=name)
        assert error == {"name": name}
    os.chmod(path, 0o644)
    assert stranger.call("Attach", name=f"m#{model['id']}")["model"]["id"] == model["id"]
    os.chmod(path, 0o600)
    with wire_error("ModelNotFound"):
        stranger.call("Attach", name="m")
    os.chmod(path, 0o644)
    assert stranger.call("Attach", name="m")["model"]["id"] == model["id"]


def test_a_signal_has_modes_looked_at(start_for_all, clients, own_file):
    daemon = start_for_all()
    user, stranger = clients(daemon, USER), clients(daemon, OTHER)
    paths = [own_file(f"{i}.gguf", 0o600, i) for i in range(3)]
    for path in paths:
        load_as(user, USER, path)
        os.chmod(path, 0o644)
    assert seen(stranger) == []
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: seen(stranger) == ["0", "1", "2"])
    os.chmod(paths[1], 0o600)
    os.kill(daemon.pid, signal.SIGHUP)
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: seen(stranger) == ["0", "2"])


def test_modes_change_while_the_file_is_compared(start_for_all, clients, own_file):
    """A signal has the file compared, too, which gives the model a new source: what was read of the old one is read
    again."""
    daemon = start_for_all()
    user, stranger = clients(daemon, USER), clients(daemon, OTHER)
    path = own_file("m.gguf", 0o600)
    load_as(user, USER, path, name="m")
    for mode, names_seen in [(0o644, ["m"]), (0o600, [])] * 100:
        os.chmod(path, mode)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda names_seen=names_seen: seen(stranger) == names_seen, every=0.001)


def test_watch_tells_whose_access_ends(start_for_all, clients, own_file):
    daemon = start_for_all()
    user, other, holder = clients(daemon, USER), clients(daemon, OTHER), clients(daemon, OTHER + 1)
    events, all_events = clients(daemon, OTHER).more("Watch"), clients(daemon, daemon.uid).more("Watch")
    path = own_file(mode=0o644)
    next(events), next(all_events)
    load_as(user, USER, path, name="m")
    load_as(other, OTHER, path, name="theirs")
    lease = holder.call("Attach", name="m")["lease"]
    held = clients(daemon, OTHER + 1).more("Watch")
    assert [model["name"] for model in next(held)["models"]] == ["m"]
    os.chmod(path, 0o600)
    load_as(user, USER, path)  # which has the daemon look

    def until(told, end):
        kinds = []
        while end not in kinds:
            kinds.append(next(told)["event"])
        return kinds

    assert until(events, "unloaded") == ["loading", "resident", "renamed", "attached", "unloaded"]
    assert until(all_events, "attached") == ["loading", "resident", "renamed", "attached"]
    event = next(all_events)
    assert (event["event"], event["model"]["aliases"]) == ("renamed", []), "a name whose giver sees nothing is gone"
    assert next(held)["event"] == "renamed", "who holds a lease is told"
    assert user.call("Unload", name="m", force=True)["state"] == "draining"
    assert next(held)["event"] == "draining"
    load_as(other, OTHER, own_file("o.gguf", 0o600, 2, OTHER), name="o")
    assert next(events)["model"]["name"] == "o", "nothing more is told to who neither sees it nor holds a lease"
    holder.call("Detach", lease=lease)
    assert next(held)["event"] == "unloaded"


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


def test_who_passes_a_file_that_it_may_not_read_any_more(start_for_all, clients, own_file):
    """The daemon looks at the file then: who is a guest is decided by what it finds."""
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, guest = clients(daemon, USER), clients(daemon, OTHER)
    model = load_as(user, USER, path, name="m")
    os.chmod(path, 0o600)
    assert load_fd(guest, path, name="g")["aliases"] == ["g"]
    assert guest.call("Show", name="g")["model"]["id"] == model["id"]
    guest.call("Attach", name="g")


def test_who_passed_the_file_is_looked_at_again(start_for_all, clients, own_file):
    """Whoever loses the right to read it by a change of its mode passes it again, or sees the model no longer."""
    daemon = start_for_all()
    path = own_file(mode=0o640)
    user, guest = clients(daemon, USER), clients(daemon, OTHER)
    model = load_as(user, USER, path, name="m")
    load_fd(guest, path, name="g")
    os.chmod(path, 0o644)
    guest.call("Detach", lease=guest.call("Attach", name="m")["lease"])
    os.chmod(path, 0o600)
    with wire_error("ModelNotFound"):
        guest.call("Attach", name="m")
    assert_not_there(guest, "g")
    assert only(user)["aliases"] == [], "nor has it a name"
    assert load_fd(guest, path)["id"] == model["id"]
    guest.call("Attach", name="m")


def test_a_folder_that_the_daemon_does_not_see(start_for_all, clients, own_file, folder):
    """Who came by such a folder is found out by the file's mode."""
    daemon = start_for_all()
    team = folder / "team"
    team.mkdir()
    os.chown(team, USER, GROUP)
    os.chmod(team, 0o750)
    path = own_file("m.gguf", 0o644).rename(team / "m.gguf")
    user, member = clients(daemon, USER), clients(daemon, MEMBER, [GROUP])
    load_as(user, USER, path, name="m")
    with as_user(MEMBER, [GROUP]):
        file = open(path, "rb")
    with file:
        planned = member.call("Plan", fds=[file.fileno()])["model"]["name"]
        assert planned == "m", "what Load would join, also where the daemon cannot tell that the member may read it"
        member.call("Load", fds=[file.fileno()])
    member.call("Detach", lease=member.call("Attach", name="m")["lease"])
    os.chmod(team, 0o700)
    os.chmod(path, 0o600)
    with wire_error("ModelNotFound"):
        member.call("Attach", name="m")


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
    assert seen(member) == ["r"]


def test_ones_own_private_model(start_for_all, clients, own_file):
    """The user's own loads join it, whatever access they ask for."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    path = own_file(mode=0o644)

    def load_as_planned(**parameters):
        with as_user(USER):
            planned = load_fd_plan(user, path, **parameters)
        assert planned["error"] is None
        model = load_as(user, USER, path, **parameters)
        assert planned["model"]["id"] == model["id"]
        return model

    first = load_as(user, USER, path, private=True)
    for parameters in ({}, {"name": "m"}, {"name": "b"}, {"name": "c", "private": True}):
        model = load_as_planned(**parameters)
        assert (model["id"], model["access"]) == (first["id"], "private")
    assert seen(other) == []
    model = load_as_planned(name="b", public=True)
    assert (model["id"], model["access"]) == (first["id"], "public")
    assert seen(other) == ["m"]


def test_one_narrows_ones_own_model(start_for_all, clients, own_file):
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    path = own_file(mode=0o644)
    first = load_as(user, USER, path, name="m")
    load_as(other, OTHER, path, name="theirs")
    events = clients(daemon, OTHER).more("Watch")
    assert len(next(events)["models"]) == 1
    theirs = load_as(other, OTHER, path, private=True, name="o")
    assert theirs["id"] != first["id"], "who did not load it does not narrow it"
    model = load_as(user, USER, path, name="m", private=True)
    assert (model["id"], model["access"], model["aliases"]) == (first["id"], "private", [])
    assert seen(other) == ["o"]
    told = [next(events) for _ in range(3)]
    assert [(event["event"], event["model"]["id"]) for event in told[-1:]] == [("unloaded", first["id"])]


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
    wait_until(lambda: len(names(daemon)) == 2 and all("llama" in name for name in names(daemon)))
    wait_until(lambda: all(model["state"] == "resident" for model in daemon.models()))
    assert other.call("Show", name="llama")["model"]["uid"] == daemon.uid
    assert user.call("Show", name="llama")["model"]["uid"] == USER


# --- Paths that others can write to, or see otherwise ---


def only(client):
    (model,) = client.call("List")["models"]
    return model


def test_the_same_bytes_at_the_same_path(start_for_all, clients, own_file):
    """They are another user's now, who learns nothing of the model that was made of the old ones."""
    daemon = start_for_all()
    user, other, third = (clients(daemon, uid) for uid in (USER, OTHER, OTHER + 1))
    first = load_as(user, USER, own_file("m.gguf", 0o600, 1), name="secret")
    os.unlink(own_file("m.gguf", 0o600, 1))
    path = own_file("m.gguf", 0o600, 1, OTHER)
    plan = load_fd_plan(other, path)
    assert (plan["error"], "model" in plan) == (None, False)
    mine = load_as(other, OTHER, path, name="mine")
    assert mine["id"] != first["id"]
    assert seen(other) == ["mine"]
    load_as(other, OTHER, path, public=True)
    assert seen(third) == ["mine"]
    secret = user.call("Show", name="secret")["model"]
    assert (secret["id"], secret["access"], secret["aliases"]) == (first["id"], "readers", [])


@pytest.mark.parametrize("name", ["m", "taken"])
def test_the_file_of_a_model_that_is_there_got_another_owner(start_for_all, clients, own_file, name):
    """Plan and Load both decide by who owns the file now."""
    daemon = start_for_all()
    root, other = clients(daemon, 0), clients(daemon, OTHER)
    path = own_file("m.gguf", 0o644, 1, 0)
    first = load_fd(root, path, name="m")
    load_fd(root, own_file("n.gguf", 0o644, 2, 0), name="taken")
    os.chown(path, OTHER, OTHER)
    plan = load_fd_plan(other, path, name=name, public=True)
    if name == "m":
        assert (plan["error"], plan["model"]["id"]) == (None, first["id"])
        model = load_as(other, OTHER, path, name=name, public=True)
        assert (model["id"], model["access"]) == (first["id"], "public")
    else:
        assert plan["error"] == "io.rocmforge.NameInUse"
        with wire_error("NameInUse"):
            load_as(other, OTHER, path, name=name, public=True)


def test_a_reader_puts_a_file_in_the_place_of_another(start_for_all, clients, own_file):
    """With the same bytes: a model that everybody reads stays one of the file that its user loaded."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    path = own_file("m.gguf", 0o644, 1)
    first = load_as(user, USER, path, name="m")
    os.unlink(path)
    path = own_file("m.gguf", 0o644, 1, OTHER)
    load_as(other, OTHER, path, name="mine", public=True)
    now = user.call("Show", name="m")["model"]
    assert (now["id"], now["access"], now["changed"], now["aliases"]) == (first["id"], "readers", False, [])
    again = own_file("m.gguf", 0o644, 1)  # the same inode, of the user's
    assert load_as(user, USER, again, name="m")["id"] == first["id"], "its user may"


def test_only_the_owner_publishes_what_is_there(start_for_all, clients, own_file):
    daemon = start_for_all()
    user, other, third = (clients(daemon, uid) for uid in (USER, OTHER, OTHER + 1))
    path = own_file("m.gguf", 0o644, 1)
    first = load_as(other, OTHER, path, name="m")
    with wire_error("PermissionDenied"):
        load_as(third, OTHER + 1, path, public=True)
    assert load_as(user, USER, path, public=True)["id"] == first["id"]
    assert only(third)["access"] == "public"


def test_a_path_in_another_mount_namespace_changes_nothing(start_for_all, clients, own_file, folder):
    daemon = start_for_all()
    user, third = clients(daemon, USER), clients(daemon, OTHER + 1)
    path = own_file("m.gguf", 0o644, 1)
    evil = own_file("evil.gguf", 0o644, 8, OTHER)
    first = load_as(user, USER, path, name="m")
    mounts = f"mount --bind {evil} {path}"
    assert in_namespace(daemon, OTHER, mounts, "plan", path, "--name", "evil").returncode == 0
    loaded = in_namespace(daemon, OTHER, mounts, "load", path, "--name", "evil")
    assert loaded.returncode == 0, loaded.stderr
    assert only(third)["changed"] is False
    assert load_as(user, USER, path, name="m")["id"] == first["id"]


def test_a_model_of_another_mount_namespace_is_not_changed(start_for_all, clients, own_file, folder):
    daemon = start_for_all()
    root = clients(daemon, 0)
    (folder / "in").mkdir(mode=0o755)
    path = own_file("in/m.gguf", 0o644, 1)
    mounts = f"cp {path} {folder}/copy\nmount -t tmpfs none {folder}/in\ncp {folder}/copy {path}\nchown {OTHER} {path}"
    loaded = in_namespace(daemon, OTHER, mounts, "load", path, "--name", "m")
    assert loaded.returncode == 0, loaded.stderr
    load_as(root, 0, own_file("o.gguf", 0o644, 2), name="o")
    own_file("o.gguf", 0o644, 3)  # written over
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: root.call("Show", name="o")["model"]["changed"])
    time.sleep(0.2)
    assert root.call("Show", name="m")["model"]["changed"] is False


def test_joined_by_a_path_of_another_mount_namespace(start_for_all, clients, own_file, folder):
    daemon = start_for_all()
    user, third = clients(daemon, USER), clients(daemon, OTHER + 1)
    path = own_file("m.gguf", 0o644, 1)
    (folder / "q").mkdir()
    load_as(user, USER, path, name="m")
    for touch in (False, True):
        if touch:
            os.utime(path, (1, 1))
        mounts = f"mount --bind {folder} /mnt"
        joined = in_namespace(daemon, OTHER, mounts, "load", "/mnt/m.gguf", "--name", "bind")
        assert joined.returncode == 0, joined.stderr
        model = only(third)
        assert (model["name"], model["aliases"], model["path"]) == ("m", ["bind"], str(path))
        third.call("Detach", lease=third.call("Attach", name="bind")["lease"])


def test_who_waits_to_attach_is_looked_at_in_the_end(start_for_all, clients, own_file, folder):
    daemon = start_for_all("--budget", "10M")
    user, holder, other = clients(daemon, USER), clients(daemon, USER), clients(daemon, OTHER)
    (folder / "in").mkdir(mode=0o755)
    os.chown(folder / "in", USER, USER)
    sizes = {}
    for name in ("a.gguf", "in/b.gguf"):
        sizes[name] = tensor_model(folder / name, 6 << 20, len(sizes))
        os.chmod(sizes[name], 0o644)
        os.chown(sizes[name], USER, USER)
    load_fd(holder, sizes["a.gguf"], name="a", lease=True)
    with open(sizes["in/b.gguf"], "rb") as file:
        user.send("Load", {"fds": [0], "name": "b", "waitForMemory": 30}, [file.fileno()])
    wait_until(lambda: "b" in names(daemon))
    other.send("Attach", {"name": "b"})
    time.sleep(0.3)
    os.chmod(folder / "in", 0o700)
    holder.close()
    assert user.reply()[0]["model"]["name"] == "b"
    with wire_error("ModelNotFound"):
        other.reply()
    os.chmod(folder / "in", 0o755)


# --- Several names ---


def test_nobody_uses_up_the_names_of_another(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    load_as(user, USER, path, name="a")
    for i in range(4):
        load_as(other, OTHER, path, name=f"o{i}")
    with wire_error("LimitExceeded") as error:
        load_as(other, OTHER, path, name="o4")
    assert error == {"limit": "names", "value": 4}
    assert load_as(user, USER, path, name="b")["aliases"][-1] == "b"


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


@pytest.mark.parametrize("force", [False, True])
def test_the_last_name_ends_no_model_of_another(start_for_all, clients, own_file, force):
    """Who gave it cannot end what another user loaded, and perhaps pinned, or uses."""
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    model = load_as(user, USER, path, name="a", pin=force)
    load_as(other, OTHER, path, name="b")
    if force:
        user.call("Attach", name="a")
    assert user.call("Unload", name="a")["state"] == "named"
    for name, why in ("b", "another user loaded this model, and it has no other name"), (f"b#{model['id']}", "another user loaded this model"):
        with wire_error("PermissionDenied") as error:
            other.call("Unload", name=name, force=force)
        assert error == {"reason": why}
    (now,) = other.call("List")["models"]
    assert (now["name"], now["state"], now["pinned"]) == ("b", "resident", force)
    assert user.call("Unload", name="b", force=True)["state"] == ("draining" if force else "unloaded")


def test_the_last_name_is_its_users(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    model = load_as(user, USER, path, name="a")
    load_as(other, OTHER, path, name="b")
    assert user.call("Unload", name="a")["state"] == "named"
    assert user.call("Unload", name="b")["state"] == "unloaded"
    load_as(user, USER, path, name="a")
    model = load_as(other, OTHER, path, name="b")
    assert user.call("Unload", name=f"a#{model['id']}")["state"] == "unloaded"  # with all of its names


def test_whose_access_ends_has_no_names(start_for_all, clients, own_file):
    daemon = start_for_all()
    path = own_file(mode=0o644)
    user, other, member = clients(daemon, USER), clients(daemon, OTHER), clients(daemon, MEMBER, [GROUP])
    model = load_as(user, USER, path, name="a")
    load_as(other, OTHER, path, name="b")
    load_as(member, MEMBER, path, name="c")
    os.chmod(path, 0o640)
    member.call("Detach", lease=member.call("Attach", name="c")["lease"])
    assert "c" in only(user)["aliases"], "whoever is in the group keeps it"
    assert user.call("Unload", name="a")["state"] == "named"
    os.chmod(path, 0o600)
    with wire_error("ModelNotFound"):
        member.call("Attach", name="c")  # which has the daemon look
    now = only(user)
    assert (now["id"], now["name"], now["aliases"]) == (model["id"], "c", []), "the last one stays"
    second = load_as(user, USER, own_file("o.gguf", 0o600, 2), name="b")
    assert second["id"] != model["id"], "the name is free"
    assert user.call("Unload", name="c")["state"] == "unloaded"


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
