"""Files whose file system does not answer: they hold up who loads them, and nobody else."""
import contextlib
import os
import signal
import time

import fuse_files
import pytest
from harness import MIB, USER, client_of, load_fd, names, states, tensor_model, wait_until
from rocmforge_wire import WireError

HANG = 1  # seconds, after which a file counts as one that does not answer
SOON = 5  # of a load that waits for nobody, on a busy machine
STOP = 5  # and for which the daemon that ends waits
OTHER = USER + 1

pytestmark = pytest.mark.skipif(not fuse_files.available(), reason="needs root and /dev/fuse")


@pytest.fixture
def mount(folder, start):  # start: the daemon ends after the files answer
    """mount(n, size): so many model files, whose answers can be kept back."""
    mounted = []

    def make(n=1, size=8 * MIB, **options):
        paths = [tensor_model(folder / f"hung{i}.gguf", size, i) for i in range(n)]
        for path in paths:
            os.chmod(path, 0o644)
        try:
            files = fuse_files.FuseFiles(folder / f"mnt{len(mounted)}", paths, **options)
        except OSError as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        mounted.append(files)
        return files

    yield make
    for files in mounted:
        files.close()


@pytest.fixture
def shared(start, folder):
    """A daemon that all users may connect to."""
    os.chmod(folder, 0o755)

    def start_one(*options, **keywords):
        daemon = start("--workers", "2", *options, **keywords)
        os.chmod(daemon.socket, 0o666)
        return daemon

    return start_one


@pytest.fixture
def usual(models):
    path = models(1, 16 * MIB)[0]
    os.chmod(path, 0o644)
    return path


def send_load(client, path, name, **parameters):
    with open(path, "rb") as file:
        client.send("Load", {"fds": [0], "name": name, **parameters}, fds=[file.fileno()])


def timed_load(daemon, uid, path, name):
    began = time.monotonic()
    with client_of(daemon, uid) as client:
        load_fd(client, path, name=name)
        client.call("Unload", name=name)
    return time.monotonic() - began


def held_up(daemon):
    return daemon.status()["heldUp"]


@pytest.mark.alone
@pytest.mark.parametrize("direct", [False, True])
def test_loads_of_others_go_on(shared, mount, usual, direct):
    """One user's file hangs while its data is read, and all workers read it. Others' loads are as fast as before."""
    daemon = shared()
    files = mount(direct=direct)
    before = min(timed_load(daemon, OTHER, usual, f"before{i}") for i in range(3))
    with client_of(daemon, USER) as client:
        files.hold(fuse_files.READ, from_offset=2 * MIB)
        send_load(client, files.path(), "m")
        wait_until(lambda: held_up(daemon) > 0)
        after = min(timed_load(daemon, OTHER, usual, f"after{i}") for i in range(3))
        assert after < 4 * before + 0.1, (before, after)
        [model] = [model for model in daemon.models() if model["name"] == "m"]
        assert model["heldUp"] and model["state"] == "filling"
        assert "file does not answer" in daemon.rfctl("ps").stdout
        files.go_on()
        client.reply()
    wait_until(lambda: held_up(daemon) == 0)
    assert not any(model["heldUp"] for model in daemon.models())
    with daemon.client() as client:
        assert client.call("Verify", name="m")["mismatches"] == []


def test_one_user_with_many_files(shared, mount, usual):
    """However many of a user's files hang: the user's own loads wait then, and nobody else's."""
    daemon = shared()
    files = mount(12, size=4 * MIB)
    clients = [client_of(daemon, USER) for _ in range(12)]
    with contextlib.ExitStack() as stack:
        for client in clients:
            stack.enter_context(client)
        files.hold(fuse_files.READ, from_offset=MIB)
        for i, client in enumerate(clients):
            send_load(client, files.path(i), f"m{i}")
        wait_until(lambda: held_up(daemon) > 0)
        assert timed_load(daemon, OTHER, usual, "other") < 10
        time.sleep(2 * HANG)  # as many as may have begun to wait
        assert held_up(daemon) <= 4
        assert timed_load(daemon, OTHER, usual, "again") < SOON
        files.go_on()
        for client in clients:
            client.reply()
    assert sorted(names(daemon)) == sorted(f"m{i}" for i in range(12))


def test_several_users(shared, mount, usual):
    """Four users do it together."""
    daemon = shared()
    files = mount(8, size=4 * MIB)
    files.hold(fuse_files.READ, from_offset=MIB)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(daemon, USER + 10 + i // 2)) for i in range(8)]
        for i, client in enumerate(clients):
            send_load(client, files.path(i), f"m{i}")
        wait_until(lambda: held_up(daemon) >= 4)
        timed_load(daemon, OTHER, usual, "other")  # their jobs came first, and each is noticed only when it hangs
        wait_until(lambda: held_up(daemon) == 16 or timed_load(daemon, OTHER, usual, "other") < HANG)
        assert timed_load(daemon, OTHER, usual, "again") < SOON
        files.go_on()
        for client in clients:
            client.reply()


@pytest.mark.parametrize("kind", ["header", "attributes"])
def test_before_the_data(shared, mount, usual, kind):
    daemon = shared()
    files = mount(3, valid=0)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(client_of(daemon, USER)) for _ in range(3)]
        opened = [stack.enter_context(open(files.path(i), "rb")) for i in range(3)]
        files.hold(fuse_files.READ if kind == "header" else fuse_files.GETATTR)
        for client, file in zip(clients, opened):
            client.send("Load", {"fds": [0], "name": "m"}, fds=[file.fileno()])
        wait_until(lambda: held_up(daemon) > 0)
        assert timed_load(daemon, OTHER, usual, "other") < SOON
        files.go_on()
        for client in clients:
            with contextlib.suppress(WireError):
                client.reply()


def test_closing_a_file_does_not_stop_the_loop(shared, mount, usual):
    """close() waits for the file system, too: of a model's file, and of descriptors that nobody wants."""
    daemon = shared()
    files = mount()
    with client_of(daemon, USER) as client:
        load_fd(client, files.path(), name="m")
        with open(files.path(), "rb") as file:
            files.hold(fuse_files.FLUSH)
            client.call("Unload", name="m")
            for _ in range(3):
                client.send("List", {}, fds=[file.fileno()] * 100)
                client.reply()
            client.send("AddFiles", {"fds": [0]}, fds=[file.fileno()])
            assert client.reply()[0] == {"files": 1}
            wait_until(lambda: files.n_held() == 1)
            wait_until(lambda: held_up(daemon) == 1)
            client.close()
            assert timed_load(daemon, OTHER, usual, "other") < SOON
            assert timed_load(daemon, USER, usual, "own") < SOON
            assert files.n_held() == 1  # one at a time waits
            files.go_on()
    wait_until(lambda: held_up(daemon) == 0)
    wait_until(lambda: not any("hung" in fd for fd in daemon.fds()))


def test_cancelled(shared, mount):
    """Cancel is answered, and so is the load, although the file does not answer."""
    daemon = shared()
    files = mount()
    with client_of(daemon, USER) as client, client_of(daemon, USER) as other:
        files.hold(fuse_files.READ, from_offset=2 * MIB)
        send_load(client, files.path(), "m")
        wait_until(lambda: held_up(daemon) > 0)
        other.call("Cancel", name="m")
        with pytest.raises(WireError, match="Cancelled"):
            client.reply()
        wait_until(lambda: states(daemon) == {"m": "unloading"})
        files.go_on()
        wait_until(lambda: not states(daemon))


@pytest.mark.parametrize("direct", [False, True])
def test_the_daemon_ends(shared, mount, usual, direct):
    """Threads that wait keep the process, but not the socket, nor the memory of models; then nothing is left of it."""
    daemon = shared()
    files = mount(direct=direct)
    with client_of(daemon, USER) as client:
        with daemon.client() as root:
            load_fd(root, usual, name="usual")
        files.hold(fuse_files.READ, from_offset=2 * MIB)
        send_load(client, files.path(), "m")
        wait_until(lambda: held_up(daemon) > 0)
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        with pytest.raises(WireError, match="ShuttingDown"):
            client.reply()
        wait_until(lambda: "ends without waiting for them" in daemon.log, seconds=STOP + 10)
        assert time.monotonic() - began < STOP + 10
        assert not daemon.socket.exists()
        files.go_on()
    assert daemon.process.wait(30) == 1


def test_the_daemon_ends_while_a_file_is_closed(shared, mount):
    daemon = shared()
    files = mount()
    with client_of(daemon, USER) as client:
        load_fd(client, files.path(), name="m")
    files.hold(fuse_files.FLUSH)
    daemon.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "ends without waiting for them" in daemon.log, seconds=STOP + 10)
    files.go_on()
    assert daemon.process.wait(30) == 1


def test_verify_of_a_file_that_hangs(shared, mount, usual):
    """Others' verifications go on."""
    daemon = shared()
    files = mount()
    with client_of(daemon, USER) as client, client_of(daemon, OTHER) as other:
        load_fd(client, files.path(), name="m")
        load_fd(other, usual, name="usual")
        with open(files.path(), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        files.hold(fuse_files.READ)
        client.send("Verify", {"name": "m"})
        wait_until(lambda: held_up(daemon) > 0)
        assert other.call("Verify", name="usual")["mismatches"] == []
        files.go_on()
        assert client.reply()[0]["mismatches"] == []
