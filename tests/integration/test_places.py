"""The place of a file: its path, in the file system that the daemon and the file's users share. What a path says in
somebody's own view is nobody else's concern."""
import contextlib
import os
import shutil
import signal
import time

import pytest
from harness import MIB, USER, call_with_file, client_of, load_fd, tensor_model, wait_until, wire_error
from namespace import in_namespace

OTHER, THIRD, GROUP = USER + 1, USER + 2, USER + 10


def own(path, uid=USER, mode=0o644, gid=None):
    os.chown(path, uid, uid if gid is None else gid)
    os.chmod(path, mode)
    return path


def folder_of(path, uid=USER, mode=0o755, gid=None):
    path.mkdir()
    return own(path, uid, mode, gid)


def look_again(daemon):
    """The daemon has looked at the files of all models when this returns."""
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    wait_until(daemon.is_idle)


def marks(daemon):
    """For each model: has it changed, is it deleted?"""
    return {model["name"]: (model["changed"], model.get("deleted", False)) for model in daemon.models()}


def seen(client):
    return sorted(model["name"] for model in client.call("List")["models"])


# --- one path, two files ---


@pytest.mark.parametrize("uid", [0, USER])
@pytest.mark.parametrize("size", [MIB, 2 * MIB])
def test_one_path_in_two_mount_namespaces(start_for_all, clients, folder, uid, size):
    """Neither file says anything of the other one's model."""
    daemon = start_for_all()
    root = clients(daemon, 0)
    os.chmod(folder, 0o755)
    models = folder_of(folder / "models", uid)
    path = models / "m.gguf"
    for name, seed, bytes_ in (("A", 1, MIB), ("B", 2, size)):
        folder_of(folder / name, uid)
        own(tensor_model(folder / name / "m.gguf", bytes_, seed), uid)

    def inside(name, *arguments):
        done = in_namespace(daemon, uid, f"mount --bind {folder / name} {models}", *arguments)
        return done.stdout + done.stderr

    assert "loaded m" in inside("A", "load", path)
    first = root.call("Show", name="m")["model"]["id"]
    assert "another model has this name" in inside("B", "plan", path)
    assert marks(daemon) == {"m": (False, False)}
    assert not root.call("Verify", name="m")["replaced"]
    own(tensor_model(path, size, seed=3), uid)  # and one that the daemon sees
    daemon.rfctl("plan", path, check=False)
    look_again(daemon)
    assert not root.call("Verify", name="m")["replaced"]
    assert marks(daemon) == {"m": (False, False)}
    assert "there already" in inside("A", "plan", path)
    assert "another" in inside("B", "load", path)
    assert "loaded b" in inside("B", "load", path, "--name", "b")
    assert root.call("Show", name="m")["model"]["id"] == first
    assert marks(daemon) == {"m": (False, False), "b": (False, False)}


@pytest.mark.parametrize("size", [MIB, 2 * MIB])
def test_two_files_in_memory_of_one_name(start_for_all, clients, folder, size):
    daemon = start_for_all()
    user = clients(daemon, USER)
    with contextlib.ExitStack() as stack:
        fds = []
        for seed, bytes_ in ((1, MIB), (2, size)):
            file = stack.enter_context(open(os.memfd_create("weights"), "r+b"))
            file.write(tensor_model(folder / "z.gguf", bytes_, seed).read_bytes())
            file.flush()
            fds.append(file.fileno())
        first = user.call("Load", fds=[fds[0]])["model"]
        assert user.call("Plan", fds=[fds[1]])["error"] == "io.rocmforge.NameInUse"
        assert not user.call("Verify", name=first["name"])["replaced"]
        second = user.call("Load", fds=[fds[1]], name="second")["model"]
        assert second["id"] != first["id"]
        assert user.call("Load", fds=[fds[0]])["model"]["id"] == first["id"]
    assert marks(daemon) == {first["name"]: (False, False), "second": (False, False)}


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_what_was_at_the_path_before(start_for_all, clients, folder, mode):
    """Somebody has an older file still open. It is not at the path any more."""
    daemon = start_for_all()
    user = clients(daemon, USER)
    os.chmod(folder, 0o755)
    home = folder_of(folder / "home", mode=mode)
    path = own(tensor_model(home / "m.gguf", 2 * MIB, seed=1))
    with open(path, "rb") as old:
        os.rename(own(tensor_model(home / "new", seed=2)), path)
        call_with_file(user, USER, "Load", path)
        assert user.call("Plan", fds=[old.fileno()])["error"] == "io.rocmforge.NameInUse"
    assert marks(daemon) == {"m": (False, False)}


@pytest.mark.parametrize("size", [MIB, 2 * MIB])
def test_where_the_daemon_cannot_look(start_for_all, clients, folder, size):
    """A file that was replaced in its user's home is a newer one all the same: both were opened there."""
    daemon = start_for_all()
    user = clients(daemon, USER)
    os.chmod(folder, 0o755)
    home = folder_of(folder / "home", mode=0o700)
    path = own(tensor_model(home / "m.gguf", seed=1))
    first = call_with_file(user, USER, "Load", path)["model"]
    os.rename(own(tensor_model(home / "new", size, seed=2)), path)
    plan = call_with_file(user, USER, "Plan", path)
    assert (plan["error"], "model" in plan) == (None, False)
    assert marks(daemon) == {"m": (True, False)}
    user.call("Verify", name="m")
    assert marks(daemon) == {"m": (True, False)}, "the file that is still open says nothing of the path"
    second = call_with_file(user, USER, "Load", path)["model"]
    assert second["id"] != first["id"] and second["name"] == "m"
    wait_until(lambda: [model["id"] for model in daemon.models()] == [second["id"]])


def test_written_to_where_the_daemon_cannot_look(start_for_all, clients, folder):
    daemon = start_for_all()
    user = clients(daemon, USER)
    os.chmod(folder, 0o755)
    home = folder_of(folder / "home", mode=0o700)
    path = own(tensor_model(home / "m.gguf", seed=1))
    call_with_file(user, USER, "Load", path)
    path.write_bytes(tensor_model(home / "new", seed=2).read_bytes())
    look_again(daemon)
    assert marks(daemon) == {"m": (True, False)}


# --- paths that the daemon opens ---


@pytest.fixture
def start_as_nobody(start, folder):
    """A daemon that opens paths for others: one that is not root's."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    from harness import daemon_program

    nobody = 65534
    os.chown(folder, nobody, nobody)
    os.chmod(folder, 0o755)
    daemon = start(program=["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups", daemon_program()])
    os.chmod(daemon.socket, 0o666)
    daemon.uid = nobody
    return daemon


def test_a_path_to_what_the_daemon_has_open(start_as_nobody, folder):
    """A file that everybody may read, but whose model is private: whoever finds the descriptor learns of it."""
    daemon = start_as_nobody
    path = own(tensor_model(folder / "payroll.gguf"))
    ways = ["/proc/self/fd/{}", "/proc/thread-self/fd/{}", "/dev/fd/{}", f"/proc/{daemon.pid}/fd/{{}}", f"{folder}/{{}}"]
    with client_of(daemon, USER) as user, client_of(daemon, OTHER) as other:
        load_fd(user, path, private=True)
        fds = [int(fd) for fd in os.listdir(f"/proc/{daemon.pid}/fd")]
        assert any(os.readlink(f"/proc/{daemon.pid}/fd/{fd}") == str(path) for fd in fds)
        for fd in fds:
            (folder / str(fd)).symlink_to(f"/proc/self/fd/{fd}")
            for way in ways:
                for method in ("Load", "Plan"):
                    with wire_error("PermissionDenied"):
                        other.call(method, path=way.format(fd))
        for root in ("/proc/self/root", f"/proc/{daemon.pid}/root", "/proc/self/cwd/../../../.."):
            with wire_error("PermissionDenied"):
                other.call("Load", path=f"{root}{path}")
        assert seen(other) == []
        assert other.call("Load", path=str(path))["model"]["name"] == "payroll"


def test_a_link_where_others_may_not_look(start_as_nobody, folder):
    """Every folder and every link on the way counts, and not only where it ends."""
    daemon = start_as_nobody
    path = own(tensor_model(folder / "m.gguf"))
    hidden = folder_of(folder / "hidden", daemon.uid, 0o700)
    (hidden / "secret.gguf").symlink_to(path)
    (hidden / "folder").symlink_to(folder)
    (folder / "way").symlink_to(hidden)
    (folder / "good.gguf").symlink_to("./m.gguf")
    with client_of(daemon, OTHER) as other:
        for way in ("hidden/secret.gguf", "hidden/folder/m.gguf", "way/secret.gguf", "hidden/../m.gguf"):
            with wire_error("PermissionDenied"):
                other.call("Load", path=f"{folder}/{way}")
        assert other.call("Load", path=f"{folder}/good.gguf")["model"]["name"] == "good"


# --- whose word counts for who may see a model ---


@pytest.mark.parametrize("method", ["plan", "load"])
def test_no_path_of_another_widens(start_for_all, clients, folder, method):
    """A reader of a file cannot show its model to who may not read it."""
    daemon = start_for_all()
    user, third = clients(daemon, USER), clients(daemon, THIRD)
    os.chmod(folder, 0o755)
    team = folder_of(folder / "team", mode=0o750, gid=GROUP)
    public = folder_of(folder / "public", OTHER)
    path = own(tensor_model(team / "m.gguf"), gid=GROUP)
    (public / "m.gguf").symlink_to(path)
    call_with_file(user, USER, "Load", path)
    assert seen(third) == []
    mounts = f"mount --bind {team} {public}"
    done = in_namespace(daemon, OTHER, mounts, method, public / "m.gguf", groups=[GROUP])
    assert done.returncode == 0, done.stderr
    assert seen(third) == []
    look_again(daemon)
    assert seen(third) == []
    if method == "load":
        assert seen(clients(daemon, OTHER, [GROUP])) == ["m"]


@pytest.mark.parametrize("touched", [False, True])
@pytest.mark.parametrize("who", [OTHER, USER])
@pytest.mark.parametrize("method", ["Plan", "Load"])
def test_no_path_of_another_narrows(start_for_all, clients, folder, method, who, touched):
    """A further name of a file, in a folder of fewer users, takes the model from nobody: not the name either that
    somebody gave it."""
    daemon = start_for_all()
    user, other, third = (clients(daemon, uid, [GROUP]) for uid in (USER, OTHER, THIRD))
    os.chmod(folder, 0o755)
    team = folder_of(folder / "team", mode=0o777, gid=GROUP)
    path = own(tensor_model(team / "m.gguf"), mode=0o664, gid=GROUP)
    home = folder_of(folder / "home", who, 0o701)
    call_with_file(user, USER, "Load", path)
    call_with_file(third, THIRD, "Load", path, name="named")
    os.link(path, home / "l.gguf")
    os.chmod(home, 0o700 if daemon.uid == 0 else 0o701)
    if touched:
        os.utime(path, (1, 1))
    call_with_file(other if who == OTHER else user, who, method, home / "l.gguf")
    if touched:
        look_again(daemon)
    assert seen(third) == ["m"]
    assert third.call("Show", name="named")["model"]["path"] == str(path)
    third.call("Attach", name="named")
    stranger = clients(daemon, THIRD + 1)
    assert seen(stranger) == ["m"]


# --- what a reader may replace ---


@pytest.mark.parametrize("way", ["mode", "group", "folder", "acl"])
def test_what_fewer_may_read_takes_no_name(start_for_all, clients, folder, way):
    """A file of another user at the path of a model, which those who see the model may not read."""
    if way == "acl" and not shutil.which("setfacl"):
        pytest.skip("no setfacl")
    daemon = start_for_all()
    user, other, third = clients(daemon, USER), clients(daemon, OTHER), clients(daemon, THIRD)
    os.chmod(folder, 0o755)
    shared = folder_of(folder / "shared", mode=0o777)
    path = own(tensor_model(shared / "m.gguf", seed=1))
    first = call_with_file(user, USER, "Load", path)["model"]
    new = own(tensor_model(shared / "new", 2 * MIB, seed=2), OTHER)
    os.rename(new, path)
    if way == "mode":
        os.chmod(path, 0o600)
    elif way == "group":
        own(path, OTHER, 0o640)
    elif way == "folder":
        own(shared, OTHER, 0o700)
    else:
        os.system(f"setfacl -m u:{USER}:--- {path}")
    assert call_with_file(other, OTHER, "Plan", path)["error"] == "io.rocmforge.NameInUse"
    with wire_error("NameInUse"):
        call_with_file(other, OTHER, "Load", path)
    assert user.call("Show", name="m")["model"]["id"] == first["id"]
    assert user.call("Show", name="m")["model"]["changed"]
    own(shared, mode=0o777)
    if way == "acl":
        os.system(f"setfacl -b {path}")
    own(path, OTHER)
    assert call_with_file(other, OTHER, "Load", path)["model"]["name"] == "m"
    wait_until(lambda: seen(third) == ["m"])
    assert user.call("Show", name="m")["model"]["id"] != first["id"]


# --- looking at files ---


@pytest.mark.parametrize("half", [900, 0, 3 * MIB])
@pytest.mark.parametrize("how", ["path", "fds"])
def test_a_plan_for_a_broken_file(daemon, client, folder, half, how):
    """The file at the path is no model any more: that is a change, too."""
    path = tensor_model(folder / "m.gguf", 4 * MIB, seed=1)
    whole = path.read_bytes()
    load_fd(client, path)
    new = folder / "new"
    new.write_bytes(whole[:half])
    if half == 0:
        os.truncate(new, len(whole))
    os.rename(new, path)
    with wire_error("InvalidModel"):
        if how == "path":
            client.call("Plan", path=str(path))
        else:
            call_with_file(client, 0, "Plan", path)
    assert marks(daemon) == {"m": (True, False)}


def test_another_file_with_the_same_bytes(daemon, client, folder):
    """SIGHUP does not read it. What rfctl says of that is true."""
    path = tensor_model(folder / "m.gguf", seed=1)
    load_fd(client, path)
    os.rename(tensor_model(folder / "new", seed=1), path)
    look_again(daemon)
    said = daemon.rfctl("show", "m").stdout
    assert "file changed: " in said and "other bytes now" not in said
    assert "there already" in daemon.rfctl("plan", path).stdout
    assert "file changed" not in daemon.rfctl("show", "m").stdout


@pytest.mark.parametrize("method", ["Plan", "Load"])
def test_touched_while_it_is_compared(start, folder, gate, method):
    """What could not be compared is not known to differ: nobody is told so, and no second copy is made."""
    daemon = start(env=gate.env)
    path = tensor_model(folder / "m.gguf", 16 * MIB, seed=1)
    with daemon.client() as client, daemon.client() as asker:
        first = load_fd(client, path)
        os.utime(path, (5, 5))
        gate.close()
        asker.send(method, {"path": str(path)})
        time.sleep(0.5)
        os.utime(path, (9, 9))
        gate.open()
        with wire_error("FileChanged") as error:
            asker.reply()
        assert error["when"] == "while-read"
        assert marks(daemon) == {"m": (False, False)}
        assert client.call("Plan", path=str(path))["model"]["id"] == first["id"]
        with open(path, "rb") as file:
            assert client.call("Load", fds=[file.fileno()])["model"]["id"] == first["id"]


def test_who_reads_a_deleted_file(start_for_all, clients, folder):
    """Its folders still count: they are those that it was in."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    os.chmod(folder, 0o755)
    home = folder_of(folder / "home")
    path = own(tensor_model(home / "m.gguf"))
    call_with_file(user, USER, "Load", path)
    path.unlink()
    look_again(daemon)
    assert seen(other) == ["m"]
    other.call("Detach", lease=other.call("Attach", name="m")["lease"])
    os.chmod(home, 0o700)
    look_again(daemon)
    assert seen(other) == []
    with wire_error("ModelNotFound"):
        other.call("Attach", name="m")
    os.chmod(home, 0o755)
    other.call("Detach", lease=other.call("Attach", name="m")["lease"])
    os.rename(home, folder / "moved")
    look_again(daemon)
    assert seen(other) == ["m"]
    os.rmdir(folder / "moved")
    folder_of(folder / "moved", OTHER)  # another folder, of another user
    look_again(daemon)
    assert (seen(other), seen(user)) == ([], ["m"]), "a folder that is gone cannot be looked at"


def test_deleted_before_it_was_loaded(daemon, client, folder):
    path = tensor_model(folder / "m.gguf")
    with open(path, "rb") as file:
        path.unlink()
        client.call("Load", fds=[file.fileno()])
    look_again(daemon)
    assert marks(daemon) == {"m": (False, True)}
    assert client.call("Verify", name="m")["deleted"]
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    with open(fd, "r+b") as file:
        file.write(tensor_model(folder / "z.gguf", seed=2).read_bytes())
        file.flush()
        client.call("Load", fds=[fd], name="never")
    look_again(daemon)
    assert marks(daemon) == {"m": (False, True), "never": (False, False)}, "it never had a name"


@pytest.mark.parametrize("state", ["queued", "filling"])
def test_replaced_before_it_is_resident(start, folder, gate, state):
    """SIGHUP looks at the files of all models, also of those that wait for memory or are being read."""
    daemon = start("--budget", "40Mi", env=gate.env)
    held = tensor_model(folder / "held.gguf", 16 * MIB, seed=1)
    path = tensor_model(folder / "m.gguf", 30 * MIB, seed=2)
    with daemon.client() as client, daemon.client() as loader:
        lease = None
        if state == "queued":
            load_fd(client, held)
            lease = client.call("Attach", name="held")["lease"]
        gate.close()
        with open(path, "rb") as file:
            loader.send("Load", {"fds": [0], "waitForMemory": 60}, [file.fileno()])
        wait_until(lambda: any(model["state"] == state for model in daemon.models()))
        os.rename(tensor_model(folder / "new", 30 * MIB, seed=3), path)
        look_again(daemon)
        if state == "queued":
            assert marks(daemon)["m"] == (True, False)
        gate.open()
        if lease:
            client.call("Detach", lease=lease)
        loader.reply()
        wait_until(lambda: marks(daemon)["m"] == (True, False))  # while reading hangs, nothing looks at the file
