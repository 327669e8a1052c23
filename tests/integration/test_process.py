"""The daemon as a process: its socket, its signals, and what it and systemd say to each other."""
import contextlib
import ctypes
import errno
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from harness import ROOT, TIMEOUT, build_folder, daemon_program, wait_until, wire_error
from rocmforge_wire import Client, Closed

# --- The socket ---


def test_stale_socket_is_replaced(start, folder):
    path = folder / "io.rocmforge"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    assert start().models() == []


def test_socket_of_a_living_daemon_is_not_taken(start):
    first = start()
    with first.client() as client:
        second = start(ready=False)
        assert second.process.wait(TIMEOUT) != 0
        assert str(first.socket) in second.log
        assert client.call("List") == {"models": []}
    assert first.models() == []


def test_socket_of_a_daemon_that_was_killed(start):
    first = start()
    first.process.kill()
    first.process.wait()
    assert first.socket.exists()
    assert start().models() == []


def test_several_start_at_once_on_a_stale_socket(start, folder):
    """One of them gets it."""
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / "io.rocmforge"))
        daemons = [start(ready=False) for _ in range(6)]
        wait_until(lambda: sum(daemon.process.poll() is None for daemon in daemons) <= 1)
        (alive,) = [daemon for daemon in daemons if daemon.process.poll() is None]
        alive.wait_ready()
        assert alive.status()["pid"] == alive.pid
        assert alive.stop() == 0


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_socket_is_left_alone(start, folder, kind):
    path = folder / "io.rocmforge"
    if kind == "file":
        path.write_text("precious")
    else:
        path.mkdir()
    daemon = start(ready=False)
    assert daemon.process.wait(TIMEOUT) != 0
    assert path.is_dir() if kind == "folder" else path.read_text() == "precious"
    assert f"{path}: what is there is not a socket" in daemon.log
    assert not path.with_name("io.rocmforge.lock").exists()


def test_socket_is_gone_afterwards(start):
    daemon = start()
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


def test_socket_path_too_long(start, folder):
    daemon = start(ready=False, socket=folder / ("x" * 120))
    assert daemon.process.wait(TIMEOUT) != 0
    assert daemon.log


@pytest.mark.parametrize(
    "options", [["--no-such-option"], ["--budget", "lots"], ["--workers", "0"], ["--workers", "x"], ["--socket", ""], ["extra"]],
)
def test_wrong_usage(start, options):
    daemon = start(*options, ready=False)
    assert daemon.process.wait(TIMEOUT) == 2
    assert daemon.log


# --- Limits of the process ---


def test_file_size_limit(start, small_model):
    """An arena is a file. One that may not be so large is an error of its load, not the end of the daemon."""
    daemon = start(program=["sh", "-c", 'ulimit -f 128; exec "$0" "$@"', daemon_program()])
    with daemon.client() as client:
        with wire_error("DeviceError") as parameters:
            client.call("Load", path=str(small_model), name="small")
        assert (parameters["code"], parameters["text"]) == (errno.EFBIG, os.strerror(errno.EFBIG))
        assert client.call("List") == {"models": []}


# --- Standard streams ---


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams(start, small_model, closed):
    """What it opens is not taken for a stream: no line of the log ends up there."""
    daemon = start(program=["sh", "-c", f'exec "$0" "$@" {closed}', daemon_program()])
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        assert client.call("Verify", name="small")["mismatches"] == []
    assert daemon.stop() == 0


@pytest.mark.parametrize("whose", ["ours", "another"])
def test_priorities_are_for_the_journal(start, folder, whose):
    """JOURNAL_STREAM comes from systemd, and stays when standard error leads elsewhere."""
    log = folder / "journal"
    log.touch()
    found = os.stat(log)
    inode = found.st_ino + (whose == "another")
    script = f'JOURNAL_STREAM={found.st_dev}:{inode} exec "$0" "$@" 2>{log}'
    start(program=["sh", "-c", script, daemon_program()])
    first = log.read_text().splitlines()[0]
    assert first.startswith("<6>") if whose == "ours" else first.startswith("rocmforged: info: ")


# --- Signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it(start, number):
    daemon = start()
    daemon.process.send_signal(number)
    assert daemon.process.wait(TIMEOUT) == 0


def test_end_with_clients(held_daemon, gate, small_model, gated_model):
    """One idle, one attached, one that watches, several that wait for a load: each learns of it, none holds it up."""
    daemon = held_daemon
    idle, attached, watcher, loader = (daemon.client() for _ in range(4))
    attached.call("Load", path=str(small_model), name="small")
    attached.call("Attach", name="small")
    watcher.send("Watch", {}, more=True)
    watcher.reply()
    loader.send("Load", {"path": str(gated_model), "name": "big"})
    wait_until(lambda: any(m["state"] == "filling" for m in daemon.models()), every=0.001)
    joined = [daemon.client() for _ in range(3)]
    joined[0].send("Load", {"path": str(gated_model)}, more=True)
    joined[1].send("Attach", {"name": "big"})
    joined[2].send("Attach", {"name": "big"}, more=True)
    daemon.sync()
    began = time.monotonic()
    assert daemon.stop(gate) == 0
    assert time.monotonic() - began < 10
    for client in (idle, attached):
        with pytest.raises((Closed, ConnectionError)):
            client.receive()
    for client in (watcher, loader, *joined):
        with wire_error("ShuttingDown"):
            while True:
                client.reply()
        client.close()
    for client in (idle, attached):
        client.close()


def test_end_with_a_verification(start, gate, gated_model):
    """It waits for the file, and is told like those that wait for a load."""
    daemon = start(env=gate.env)
    with daemon.client() as client:
        client.call("Load", path=str(gated_model), name="m")
        gate.close()
        client.send("Verify", {"name": "m"})
        daemon.sync()
        assert daemon.stop(gate) == 0
        with wire_error("ShuttingDown"):
            client.reply()


def test_end_with_a_client_that_never_reads(start, small_model):
    daemon = start()
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        client.socket.settimeout(0.2)
        with pytest.raises((TimeoutError, ConnectionError)):
            while True:
                client.socket.sendall(b'{"method":"io.rocmforge.Show","parameters":{"name":"small"}}\0' * 100)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10


# --- systemd ---


@pytest.fixture
def notify(folder):
    """A socket such as systemd's, and what was said on it so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        yield listener


def said(listener, seconds=0.2):
    """Messages that come in so many seconds."""
    end = time.monotonic() + seconds
    messages = []
    while (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            messages.append(listener.recv(4096).decode())
        except TimeoutError:
            break
    return messages


def next_said(listener):
    """The next message, but for those about descriptors to be kept: test_restart_store.py."""
    listener.settimeout(TIMEOUT)
    while (said := listener.recv(4096).decode()).startswith(("FDSTORE", "BARRIER")):
        pass
    return said


def test_notify(start, gate, notify, folder, gated_model, small_model):
    """Each state is told once, in these words."""
    daemon = start(ready=False, env={**gate.env, "NOTIFY_SOCKET": str(folder / "notify")})
    assert next_said(notify) == "READY=1\nSTATUS=0 models resident, 0 loading"
    with daemon.client() as client, daemon.client() as loader:
        client.call("List")
        client.call("Load", path=str(small_model), name="a")
        assert next_said(notify) == "STATUS=0 models resident, 1 loading"
        assert next_said(notify) == "STATUS=1 model resident (2.1 MB), 0 loading"
        gate.close()
        loader.send("Load", {"path": str(gated_model), "name": "gated"})
        assert next_said(notify) == "STATUS=1 model resident (2.1 MB), 1 loading"
        gate.open()
        loader.reply()
        assert next_said(notify) == "STATUS=2 models resident (69.2 MB), 0 loading"
        client.call("Unload", name="a")
        assert next_said(notify) == "STATUS=1 model resident (67.1 MB), 0 loading"
        client.call("Verify", name="gated")  # of which nothing is told
        client.call("Unload", name="gated")
        assert next_said(notify) == "STATUS=0 models resident, 0 loading"
    daemon.process.terminate()
    assert next_said(notify) == "STOPPING=1\nSTATUS=Stopping"
    assert daemon.process.wait(TIMEOUT) == 0
    assert said(notify) == []


def test_notify_of_a_preload_folder_that_is_missing(start, notify, folder):
    missing = str(folder / "missing")
    daemon = start("--preload", missing, ready=False, env={"NOTIFY_SOCKET": str(folder / "notify")})
    while not next_said(notify).endswith("STATUS=0 models resident, 0 loading, 1 preload failed"):
        pass
    assert missing in daemon.log


def test_notify_of_preloads(start, notify, folder, small_model):
    """Those that failed are told until the folder is looked at again."""
    preload = folder / "preload"
    preload.mkdir()
    (preload / "a.gguf").symlink_to(small_model)
    (preload / "b.gguf").write_text("GGUF, it says, but this is no model, only long enough to be one")
    daemon = start("--preload", str(preload), ready=False, env={"NOTIFY_SOCKET": str(folder / "notify")})
    while next_said(notify) != "STATUS=1 model resident (2.1 MB), 0 loading, 1 preload failed":
        pass
    (preload / "b.gguf").unlink()
    daemon.process.send_signal(signal.SIGHUP)
    while next_said(notify) != "STATUS=1 model resident (2.1 MB), 0 loading":
        pass


def test_notify_of_a_load_that_fails(start, notify, folder):
    daemon = start(ready=False, env={"NOTIFY_SOCKET": str(folder / "notify")})
    next_said(notify)
    (folder / "text.gguf").write_text("this is no model, but long enough to be one")
    with daemon.client() as client, wire_error("InvalidModel"):
        client.call("Load", path=str(folder / "text.gguf"))
    assert next_said(notify) == "STATUS=0 models resident, 1 loading"
    assert next_said(notify) == "STATUS=0 models resident, 0 loading"


def fill_queue(path):
    """Sends a socket datagrams until nobody can send it any more; returns how many. A sender may have fewer under way
    than the receiver takes."""
    n = 0
    with contextlib.ExitStack() as senders:
        while True:
            sender = senders.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sender.connect(str(path))
            sender.setblocking(False)
            n_before = n
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.send(b"X")
                    n += 1
            if n == n_before:
                return n


def test_ready_means_that_it_answers(start, notify, folder):
    """systemd does not listen: the daemon waits for it to say that it is ready, and takes connections by then."""
    n_before = fill_queue(folder / "notify")
    daemon = start(ready=False, env={"NOTIFY_SOCKET": str(folder / "notify")})
    wait_until(lambda: asleep_in(daemon.pid, "sendmsg"))
    with daemon.client() as client:
        client.send("List")
        for _ in range(n_before):
            assert next_said(notify) == "X"
        assert next_said(notify).startswith("READY=1\n")
        assert client.reply() == ({"models": []}, False)


SYSCALLS = {"sendmsg": {"x86_64": 46, "aarch64": 211}}


def asleep_in(pid, name):
    """Whether the main thread waits in this system call."""
    number = SYSCALLS[name].get(os.uname().machine)
    if number is None:
        pytest.skip("its system calls are not known here")
    with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
        return file.read().split()[0] == str(number)


def test_not_ready_if_it_cannot_start(start, notify, folder):
    (folder / "io.rocmforge").mkdir()
    daemon = start(ready=False, env={"NOTIFY_SOCKET": str(folder / "notify")})
    assert daemon.process.wait(TIMEOUT) == 1
    assert said(notify) == []


# --- The watchdog ---

WATCHDOG = 2  # seconds that systemd grants here: long, so that a machine under load feeds it in time


@pytest.fixture
def watched(start, notify, folder):
    env = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(WATCHDOG * 1000000)}
    return start(ready=False, env=env)


@pytest.mark.alone
def test_watchdog_is_fed(watched, notify):
    """Twice in each period that systemd grants, as its manual wants it; not more often."""
    assert next_said(notify).startswith("READY=1\n")
    meals = []
    while len(meals) < 6:
        assert next_said(notify) == "WATCHDOG=1"
        meals.append(time.monotonic())
    gaps = [b - a for a, b in zip(meals, meals[1:])]
    assert max(gaps) < WATCHDOG
    assert WATCHDOG / 2 * 0.8 < sum(gaps) / len(gaps) < WATCHDOG / 2 * 1.3


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


def ptrace(request, tid):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, tid, None, None) < 0:
        if ctypes.get_errno() == errno.EPERM:
            pytest.skip("ptrace is not allowed here")
        raise OSError(ctypes.get_errno(), "ptrace")


@contextlib.contextmanager
def main_thread_stopped(pid):
    """The loop's thread hangs, wherever it was; the workers' do not."""
    ptrace(PTRACE_SEIZE, pid)
    ptrace(PTRACE_INTERRUPT, pid)
    assert os.waitpid(pid, WALL)[0] == pid
    try:
        yield
    finally:
        ptrace(PTRACE_DETACH, pid)


def thread_states(pid):
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/stat", encoding="ascii") as file:
            yield int(tid), file.read().rpartition(")")[2].split()[0]


def test_watchdog_is_not_fed_by_a_loop_that_hangs(watched, notify):
    """The process is there and its other threads run, but nobody is answered: systemd has to learn of it."""
    watched.wait_ready()
    said(notify, WATCHDOG)
    with main_thread_stopped(watched.pid):
        states = dict(thread_states(watched.pid))
        assert states.pop(watched.pid) == "t"
        assert states and set(states.values()) <= {"S", "R"}
        said(notify, 0)
        while said(notify, 0.01):  # what was on its way
            pass
        assert said(notify, 2 * WATCHDOG) == []
    assert next_said(notify) == "WATCHDOG=1"
    assert watched.models() == []


def test_watchdog_is_not_fed_unasked(start, notify, folder):
    start(env={"NOTIFY_SOCKET": str(folder / "notify")})
    assert len(said(notify, 1)) == 1, "it is ready"


def test_watchdog_of_another_process(start, notify, folder):
    start(env={"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"})
    assert len(said(notify, 1)) == 1, "it is ready"


def connected(path):
    with contextlib.suppress(OSError):
        return Client(path)
    return None


def test_socket_activation(folder):
    """The first client finds the socket before there is a daemon, and the daemon leaves it when it goes."""
    activate = shutil.which("systemd-socket-activate")
    if not activate:
        pytest.skip("systemd-socket-activate is not installed")
    path = folder / "activated"
    command = [activate, f"--listen={path}", daemon_program(), "--device", "host"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            # It is there before it listens.
            with wait_until(lambda: connected(path)) as client:
                assert client.call("List") == {"models": []}
                with Client(path) as other:
                    assert other.call("Status")["pid"] == process.pid
            process.terminate()
            assert process.wait(TIMEOUT) == 0, process.stderr.read()
            assert path.exists(), "the socket is systemd's"
        finally:
            process.kill()


def test_units(folder):
    """systemd has nothing to say against the units, as they are installed."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    service = (build_folder() / "systemd" / "rocmforged.service").read_text()
    (line,) = [line for line in service.splitlines() if line.startswith("ExecStart=")]
    assert line.endswith("bin/rocmforged")
    (folder / "rocmforged.service").write_text(service.replace(line, f"ExecStart={daemon_program()}"))
    shutil.copy(ROOT / "systemd" / "rocmforged.socket", folder)
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", folder / "rocmforged.service", folder / "rocmforged.socket"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    assert result.returncode == 0, result.stderr
    assert "rocmforge" not in result.stderr


def unit_settings(name):
    settings = {}
    for line in (build_folder() / "systemd" / name).read_text().splitlines():
        key, sign, value = line.partition("=")
        if sign and not key.startswith("#"):
            settings[key] = value
    return settings


def test_service_that_cannot_start_is_given_up():
    """So many starts, with our pauses between them, come within the interval. Wrong usage is 2."""
    settings = unit_settings("rocmforged.service")
    pause = float(settings["RestartSec"].removesuffix("ms")) / 1000
    assert int(settings["StartLimitIntervalSec"]) > 5 * int(settings["StartLimitBurst"]) * pause
    assert settings["RestartPreventExitStatus"] == "2"


def test_wire_error_on_a_name_that_is_gone(start, small_model):
    daemon = start()
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        client.call("Unload", name="small")
        for method in ("Unload", "Show", "Attach", "Verify", "Cancel"):
            with wire_error("ModelNotFound") as parameters:
                client.call(method, name="small")
            assert parameters == {"name": "small"}
