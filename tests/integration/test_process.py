"""The daemon as a process: its socket, its signals, and what it and systemd say to each other."""
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from harness import ROOT, TIMEOUT, build_folder, daemon_program, wait_until, wire_error
from rocmforge_wire import Client, Closed, WireError

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


def test_socket_is_gone_afterwards(start):
    daemon = start()
    assert daemon.stop() == 0
    assert not daemon.socket.exists()


def test_socket_path_too_long(start, folder):
    daemon = start(ready=False, socket=folder / ("x" * 120))
    assert daemon.process.wait(TIMEOUT) != 0
    assert daemon.log


@pytest.mark.parametrize(
    "options", [["--no-such-option"], ["--budget", "lots"], ["--workers", "0"], ["--workers", "x"], ["extra"]]
)
def test_wrong_usage(start, options):
    daemon = start(*options, ready=False)
    assert daemon.process.wait(TIMEOUT) == 2
    assert daemon.log


# --- Signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it(start, number):
    daemon = start()
    daemon.process.send_signal(number)
    assert daemon.process.wait(TIMEOUT) == 0


def test_end_with_clients(held_daemon, gate, small_model, large_model):
    """One idle, one attached, one that watches, one that waits for a load: each learns of it, none holds it up."""
    daemon = held_daemon
    idle, attached, watcher, loader = (daemon.client() for _ in range(4))
    attached.call("Load", path=str(small_model), name="small")
    attached.call("Attach", name="small")
    watcher.send("Watch", {}, more=True)
    watcher.reply()
    loader.send("Load", {"path": str(large_model), "name": "big"})
    wait_until(lambda: any(m["state"] == "filling" for m in daemon.models()), every=0.001)
    began = time.monotonic()
    assert daemon.stop(gate) == 0
    assert time.monotonic() - began < 10
    for client in (idle, attached):
        with pytest.raises((Closed, ConnectionError)):
            client.receive()
    for client in (watcher, loader):
        with pytest.raises((Closed, ConnectionError, WireError)) as end:
            while True:
                client.reply()
        if isinstance(end.value, WireError):
            assert end.value.name in ("ShuttingDown", "Cancelled")
    for client in (idle, attached, watcher, loader):
        client.close()


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
    """Lines that come in so many seconds."""
    end = time.monotonic() + seconds
    lines = []
    while (left := end - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            lines += listener.recv(4096).decode().splitlines()
        except TimeoutError:
            break
    return lines


def next_said(listener, prefix):
    listener.settimeout(TIMEOUT)
    lines = []
    while not any(line.startswith(prefix) for line in lines):
        lines += listener.recv(4096).decode().splitlines()
    return lines


def test_notify(start, notify, folder, small_model):
    daemon = start(ready=False, env={"NOTIFY_SOCKET": str(folder / "notify")})
    next_said(notify, "READY=1")
    with daemon.client() as client:  # at once: ready means that it answers
        assert client.call("List") == {"models": []}
        client.call("Load", path=str(small_model), name="small")
    assert any(line.startswith("STATUS=") for line in said(notify))
    daemon.process.terminate()
    assert "STOPPING=1" in next_said(notify, "STOPPING=1")
    assert daemon.process.wait(TIMEOUT) == 0


def test_watchdog_is_fed(start, notify, folder):
    """Several times in each period that systemd grants."""
    start(env={"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"})
    end = time.monotonic() + 2
    count = 0
    while time.monotonic() < end:
        count += said(notify, 0.05).count("WATCHDOG=1")
    assert count >= 5


def test_watchdog_is_not_fed_unasked(start, notify, folder):
    start(env={"NOTIFY_SOCKET": str(folder / "notify")})
    assert "WATCHDOG=1" not in said(notify, 1)


def test_watchdog_of_another_process(start, notify, folder):
    start(env={"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"})
    assert "WATCHDOG=1" not in said(notify, 1)


def test_socket_activation(folder):
    """The first client finds the socket before there is a daemon, and the daemon leaves it when it goes."""
    activate = shutil.which("systemd-socket-activate")
    if not activate:
        pytest.skip("systemd-socket-activate is not installed")
    path = folder / "activated"
    command = [activate, f"--listen={path}", daemon_program(), "--device", "host"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(path.exists)
            with Client(path) as client:
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


def test_wire_error_on_a_name_that_is_gone(start, small_model):
    daemon = start()
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="small")
        client.call("Unload", name="small")
        for method in ("Unload", "Show", "Attach", "Verify", "Cancel"):
            with wire_error("ModelNotFound") as parameters:
                client.call(method, name="small")
            assert parameters == {"name": "small"}
