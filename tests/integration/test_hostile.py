"""What comes from outside and is not a client's message: a log that nobody reads, attributes on sealed memory, too few
threads, a loop whose system calls fail. The daemon serves on, or says in one line why it cannot."""
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess

import pytest
from harness import MIB, USER, Daemon, as_user, client_of, daemon_program, library_environment, load_fd, wait_until
from rocmforge_wire import Closed, WireError


@pytest.fixture
def unread(folder, start):
    """A daemon whose standard error is a pipe, and the pipe."""
    path = folder / "stderr"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    daemon = start("--log-level", "debug", program=["sh", "-c", f'exec 2>"{path}"; exec "$0" "$@"', daemon_program()])
    yield daemon, pipe
    os.close(pipe)


def read_all(pipe):
    text = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            text += os.read(pipe, 1 << 16)
    return text.decode()


def test_log_that_nobody_reads(unread):
    """Lines are dropped and counted; clients are served, and SIGTERM stops it."""
    daemon, pipe = unread
    for _ in range(1500):  # each leaves lines; a pipe has room for 64 KiB
        with daemon.client() as client:
            client.call("Status")
    first = read_all(pipe)
    assert 32 << 10 < len(first) <= 64 << 10 and "dropped" not in first
    with daemon.client() as client:
        client.call("Status")
    wait_until(lambda: "lines were dropped: standard error did not accept them" in read_all(pipe))
    assert daemon.stop() == 0


def test_log_of_others_stays_blocking(unread):
    """The daemon's own way of writing does not change what other processes share with it."""
    daemon, _ = unread
    flags = next(line for line in open(f"/proc/{daemon.pid}/fdinfo/2", encoding="ascii") if line.startswith("flags:"))
    assert not int(flags.split()[1], 8) & os.O_NONBLOCK


def set_attribute(fd):
    """0, or the errno, in a process of another user."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            with as_user(65534):
                os.setxattr(fd, "user.x", b"y" * 1000)
        except OSError as error:
            code = error.errno
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_attributes_of_sealed_memory(daemon, small_model):
    """Nobody else can leave kernel memory behind in them."""
    own = os.memfd_create("own")
    if set_attribute(own) != 0:
        pytest.skip("this kernel has no user attributes on files in memory")
    os.close(own)
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="m")
        reply = client.call("Attach", name="m", table=True, header=True)
        for key in ("fd", "table", "header"):
            fd = client.fds[reply[key]]
            assert set_attribute(fd) == errno.EACCES, key
            with as_user(65534), pytest.raises(PermissionError):
                os.open(f"/proc/self/fd/{fd}", os.O_RDWR)


def test_too_few_threads(folder):
    daemon = Daemon(folder, "--workers", "500", program=["sh", "-c", 'ulimit -v 400000; exec "$0" "$@"', daemon_program()])
    try:
        code = daemon.process.wait(30)
        if "Sanitizer" in daemon.log:
            pytest.skip("a sanitizer needs more address space than this leaves")
        assert code == 1
        assert "of 500 workers could be started: Resource temporarily unavailable" in daemon.log
        assert len(daemon.log.splitlines()) == 1
    finally:
        daemon.process.kill()


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_loop_that_cannot_go_on(start):
    """libuv aborts: one line says what failed."""
    daemon = start()
    strace = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(daemon.pid), "-e", "trace=epoll_ctl"]
        + ["-e", "inject=epoll_ctl:error=ENOSPC:when=2+"],
        stderr=subprocess.PIPE,
    )
    try:
        traced = f"/proc/{daemon.pid}/status"
        with contextlib.suppress(AssertionError):
            wait_until(lambda: "TracerPid:\t0\n" not in open(traced, encoding="ascii").read(), seconds=5)
        if "TracerPid:\t0\n" in open(traced, encoding="ascii").read():
            pytest.skip("this process may not be traced")
        with contextlib.suppress(OSError, Exception), daemon.client() as client:
            client.call("Status")
        assert daemon.process.wait(30) == -signal.SIGABRT
        assert "the process aborts; the last error of a system call in this thread: ENOSPC" in daemon.log
    finally:
        strace.kill()
        strace.wait()


# --- What users take together ---


@pytest.fixture
def many_files():
    """This process may open as many files as it needs here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    if before[1] < 4096:
        pytest.skip("needs more descriptors than `ulimit -Hn` allows")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def served(client):
    with contextlib.suppress(WireError, Closed, ConnectionError):
        return client.call("Status")["connections"] > 0
    return False


def test_connections_of_many_users(start_for_all, many_files):
    """However many come: each finds some, and those who administer always do."""
    daemon = start_for_all()
    with contextlib.ExitStack() as stack:
        counts = []
        for i in range(9):
            counts.append(0)
            while True:
                client = stack.enter_context(client_of(daemon, USER + i))
                if not served(client):
                    break
                counts[-1] += 1
        assert counts[:3] == [256, 256, 224] and min(counts) >= 1, counts
        assert sum(counts) <= 960
        for _ in range(40):
            assert served(stack.enter_context(daemon.client()))


def test_memory_of_a_user(start_for_all, small_model):
    """What a user has the daemon keep is bounded, the useless part of it is not kept, and all of it goes back."""
    if library_environment()["LD_PRELOAD"]:
        pytest.skip("a sanitizer's memory is not the daemon's")
    daemon = start_for_all()
    junk = {"method": "io.rocmforge.Watch", "more": True, "junk": ["y" * 20] * 8000}
    junk = json.dumps(junk).encode() + b"\0"
    with daemon.client() as client:
        load_fd(client, small_model, name="m", public=True)
    daemon.settled_fds()
    before = daemon.rss()
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(client_of(daemon, USER)) for _ in range(250)]
            for client in clients:
                client.send_raw(junk)
            for client in clients:  # beside it: a request without an end
                client.socket.settimeout(0.5)
                with contextlib.suppress(OSError):
                    client.send_raw(b'{"method":"io.rocmforge.List","x":"' + b"z" * 250000)
            daemon.sync()
            assert daemon.rss() - before < 112 * MIB
            with client_of(daemon, USER) as client:  # little is served also then
                for _ in range(500):
                    client.call("Detach", lease=client.call("Attach", name="m", table=True)["lease"])
            daemon.sync()
            assert daemon.rss() - before < 112 * MIB
        with daemon.client() as client:
            wait_until(lambda: client.call("Status")["connections"] == 1)
            wait_until(lambda: daemon.rss() - before < 16 * MIB, seconds=10)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_descriptors_of_a_user(start, folder, small_model, many_files):
    """Requests whose turn does not come may not take all."""
    limit = 1200
    daemon = start(program=["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', daemon_program()])
    os.chmod(folder, 0o755)
    os.chmod(daemon.socket, 0o666)
    with contextlib.ExitStack() as stack, open(small_model, "rb") as file:
        told = 0
        for _ in range(10):
            client = stack.enter_context(client_of(daemon, USER))
            client.send("Watch", more=True)
            client.reply()
            client.send("List", fds=[file.fileno()] * 200)
            daemon.sync()
            client.socket.settimeout(0.2)
            try:
                while True:
                    client.reply()
            except WireError as error:
                assert error.name == "LimitExceeded" and error.parameters["limit"] == "user-descriptors"
                told += 1
            except (TimeoutError, Closed):
                pass
        assert told >= 7
        assert len(daemon.fds()) < limit // 2
        assert served(stack.enter_context(client_of(daemon, USER + 1)))
