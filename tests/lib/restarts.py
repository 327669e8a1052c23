"""The daemon ends, and rocmforge-hold starts the next one: what tests do meanwhile, and what they look at.

ROCMFORGE_KILLS says how often killed_under_load() kills the daemon.
"""
import contextlib
import hashlib
import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from harness import MIB, TIMEOUT, build_folder, library_environment, load, tensor_model, wait_until
from rocmforge_wire import Closed, WireError

KILLS = int(os.environ.get("ROCMFORGE_KILLS", "8"))


def memory(client, name):
    """Attaches, and maps the model's memory."""
    reply = client.call("Attach", name=name)
    fd = client.fds[reply["fd"]]
    mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    return reply, mapped


def bytes_of(reply, mapped):
    (tensor,) = reply["tensors"]
    return mapped[tensor["offset"] : tensor["offset"] + tensor["size"]]


def file_bytes(path, size=MIB):
    return path.read_bytes()[-size:]


def daemon_pid(daemon):
    return daemon.status()["pid"]


def kill(daemon, number=signal.SIGKILL):
    """Ends the daemon under a holder that keeps something, and waits for the next one."""
    wait_until(lambda: kept(daemon))
    kill_at_once(daemon, number)


def kill_at_once(daemon, number=signal.SIGKILL):
    """The same, whether or not anything is kept."""
    before = daemon_pid(daemon)
    os.kill(before, number)
    restarted(daemon, before)


def restarted(daemon, before):
    def another():
        with contextlib.suppress(OSError, Closed):
            return daemon_pid(daemon) != before

    wait_until(another)


def kept(holder):
    """What the holder has: name in /proc of each."""
    return [fd for fd in holder.fds() if fd.startswith("/memfd:rocmforge") or fd.endswith((".gguf", ".safetensors"))]


def described(daemon):
    """All that List tells, but for what time changes."""
    return [{k: v for k, v in model.items() if k != "idle"} for model in daemon.models()]


class Attacher:
    """attacher.py, in a process of its own."""

    def __init__(self, daemon):
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("attacher.py"), build_folder(), daemon.socket],
            env=library_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *command):
        print(*command, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            assert self.process.wait(TIMEOUT) == 0
        finally:
            self.process.kill()
            self.process.stdout.close()


def digest(path):
    return hashlib.sha256(file_bytes(path)).hexdigest()


def read_for_ever(read, expected, ended, wrong):
    while not ended.is_set():
        if read() != expected:
            wrong.append("a reader that stayed attached")
            return


def come_and_go(daemon, folder, number, ended, wrong):
    """Loads, attaches, compares and unloads a model of its own, whatever happens to the daemon."""
    path = tensor_model(folder / f"own{number}.gguf", seed=100 + number)
    expected = file_bytes(path)
    while not ended.is_set():
        # WireError: one that was taken back, and was unloaded since, stays until the time of grace is over.
        with contextlib.suppress(OSError, Closed, WireError):
            with daemon.client() as client:
                load(client, path, f"own{number}")
                if bytes_of(*memory(client, f"own{number}")) != expected:
                    wrong.append("a client that comes and goes")
                client.call("Unload", name=f"own{number}", force=True)
        time.sleep(0.001)


@contextlib.contextmanager
def mapped_reader(daemon, name):
    """A function that reads the model's memory, which is mapped here."""
    with daemon.client() as client:
        reply, mapped = memory(client, name)
        yield lambda: hashlib.sha256(bytes_of(reply, mapped)).hexdigest()


@contextlib.contextmanager
def library_reader(daemon, name):
    """The same by librocmforge, in a process of its own."""
    with Attacher(daemon) as attacher:
        assert attacher.ask("attach", name) is None
        yield lambda: attacher.ask("digests")[0]


def killed_under_load(daemon, folder, reader, n_kept):
    """n_kept: what the holder has for three models."""
    wrong, ended, threads = [], threading.Event(), []
    paths = [tensor_model(folder / f"m{i}.gguf", size=8 * MIB, seed=i) for i in range(3)]
    expected = [hashlib.sha256(file_bytes(path, 8 * MIB)).hexdigest() for path in paths]
    with contextlib.ExitStack() as readers:
        for i, path in enumerate(paths):
            with daemon.client() as client:
                load(client, path, f"m{i}")
            read = readers.enter_context(reader(daemon, f"m{i}"))
            threads.append(threading.Thread(target=read_for_ever, args=(read, expected[i], ended, wrong)))
        for i in range(2):
            threads.append(threading.Thread(target=come_and_go, args=(daemon, folder, i, ended, wrong)))
        wait_until(lambda: len(kept(daemon)) >= n_kept)
        for thread in threads:
            thread.start()
        try:
            for n in range(KILLS):
                pid = wait_until(lambda: pid_of(daemon))
                time.sleep(0.01 * (n % 7))
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: pid_of(daemon) not in (None, pid))
                for i in range(3):
                    with mapped_reader(daemon, f"m{i}") as read:
                        assert read() == expected[i], f"after {n + 1} kills"
                assert not wrong
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert not wrong
    assert "not resident again" not in daemon.log.replace("model=own", "") or lost_only_own(daemon.log)


def lost_only_own(log):
    """A model whose description was on its way when the daemon was killed has none."""
    lines = [line for line in log.splitlines() if "not resident again" in line]
    return all("model=? " in line and "its description was not kept" in line for line in lines)


def pid_of(daemon):
    with contextlib.suppress(OSError, Closed):
        return daemon_pid(daemon)


def soon_there(daemon, model, n_kept, at_most):
    """From the daemon's end, so with its next start, to the first Attach that is answered."""
    times = []
    with daemon.client() as client:
        load(client, model, "m")
    for _ in range(9):
        pid = daemon_pid(daemon)
        wait_until(lambda: len(kept(daemon)) >= n_kept)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError, Closed):
                with daemon.client() as client:
                    client.call("Attach", name="m")
                    times.append(time.monotonic() - began)
                    assert client.call("Status")["pid"] != pid
                    break
            time.sleep(0.0005)
    print("ms:", *(f"{seconds * 1000:.1f}" for seconds in sorted(times)))
    sanitized = library_environment()["LD_PRELOAD"]
    assert statistics.median(times) < (2 if sanitized else at_most), times
