"""An allocation or a system call fails, each one in turn: whoever asked is told, nothing is left, and the next load works.

ROCMFORGE_FAULTS=all tries every one; without it about a hundred of each kind, other ones each day."""
import errno
import mmap
import os
import struct
import subprocess
import time

import pytest
from harness import ROOT, SANITIZERS, TIMEOUT, build_folder, load_fd, tensor_model, wait_until
from rocmforge_wire import Closed, WireError

MEMORY, CALLS = 1, 2
ALL = os.environ.get("ROCMFORGE_FAULTS") == "all"
TRIES = 100
MANY = 1 << 40


class Faults:
    def __init__(self, folder, objects):
        library, path = folder / "fail_nth.so", folder / "faults"
        source = ROOT / "tests" / "lib" / "fail_nth.c"
        command = ["cc", "-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-o", library, source, "-ldl"]
        subprocess.run(command, check=True)
        path.write_bytes(bytes(mmap.PAGESIZE))
        with open(path, "r+b") as file:
            self.control = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        # An object that cJSON has no memory to name is not freed: some hundred bytes for each such failure.
        asan = SANITIZERS["ASAN_OPTIONS"] + ":verify_asan_link_order=0:detect_leaks=0"
        self.env = {"LD_PRELOAD": str(library), "FAIL_NTH": str(path), "FAIL_NTH_IN": objects, "ASAN_OPTIONS": asan}

    def set(self, left, kind, error):
        self.control[8:24] = struct.pack("=qq", kind, error)
        self.control[:8] = struct.pack("=q", left)

    def off(self):
        """How many calls were left until one would have failed; 0: one has."""
        left = struct.unpack("=q", self.control[:8])[0]
        self.control[:8] = bytes(8)
        return left

    def count(self, kind, function):
        self.set(MANY, kind, 0)
        function()
        return MANY - self.off()


def numbers(count):
    """Which calls shall fail."""
    every = 1 if ALL else max(count // TRIES, 1)
    return range(1 + int(time.time() / 86400) % every, count + 1, every)


@pytest.fixture
def faults(folder):
    return Faults(folder, "rocmforged,libcjson,libc.so")


@pytest.fixture
def path(folder):
    return tensor_model(folder / "m.gguf", 64 << 10)


def shape(value, where=""):
    """Where which fields of an answer are."""
    if isinstance(value, dict):
        return {f"{where}.{key}" for key in value} | {each for key in value for each in shape(value[key], f"{where}.{key}")}
    return {each for i, part in enumerate(value) for each in shape(part, f"{where}.{i}")} if isinstance(value, list) else set()


def everything(daemon, path):
    """Returns which fields the answers have."""
    with daemon.client() as client:
        answers = [load_fd(client, path, name="m", form="f32"), client.call("Show", name="m")]
        answers.append(client.call("Attach", name="m"))
        answers.append(client.call("Attach", name="m", table=True, header=True))
        assert len(client.fds) == 3
        answers.append(client.call("Verify", name="m"))
        assert answers[-1]["mismatches"] == []
        with open(path, "rb") as file:
            answers.append(client.call("Plan", fds=[file.fileno()], form="f32"))
        for answer in answers[2:4]:
            client.call("Detach", lease=answer["lease"])
        answers.append(client.call("Unload", name="m"))
        answers.append(client.call("Status"))
        return shape(answers)


def is_told(error, kind):
    """Whether the error says what was the matter."""
    if error.name == "LimitExceeded":
        return error.parameters["limit"] in ("memory", "descriptors")
    if error.name == "InvalidMessage":
        return error.parameters["reason"].startswith("out of memory")
    if error.name in ("DeviceError", "FileError"):
        return kind == CALLS or error.parameters["code"] == errno.ENOMEM
    return error.name == "OutOfDeviceMemory"


@pytest.mark.parametrize("kind, error", [(MEMORY, errno.ENOMEM), (CALLS, errno.EIO), (CALLS, errno.ENOMEM)])
def test_daemon(start, faults, path, kind, error):
    daemon = start("--workers", "2", env=faults.env)
    for _ in range(3):
        whole = everything(daemon, path)
    before = daemon.settled_fds()
    count = faults.count(kind, lambda: everything(daemon, path))
    assert count > (300 if kind == MEMORY else 20), count
    told, wrong = {}, []
    for n in numbers(count):
        faults.set(n, kind, error)
        try:
            found = everything(daemon, path)
            if found != whole:
                wrong.append((n, found ^ whole))
            outcome = "none"
        except WireError as failure:
            outcome = failure.name
            if not is_told(failure, kind):
                wrong.append((n, str(failure)))
        except (Closed, ConnectionError):
            outcome = "closed"
        faults.off()
        told[outcome] = told.get(outcome, 0) + 1
        assert daemon.process.poll() is None, (n, daemon.log)
        with daemon.client() as client:
            wait_until(lambda: client.call("Status")["leases"] == 0 and client.call("Status")["loads"] == 0)
            for model in client.call("List")["models"]:
                client.call("Unload", name=model["name"])
            assert client.call("Devices")["devices"][0]["used"] == 0, n
    everything(daemon, path)
    assert daemon.settled_fds() == before
    print(f"{count} calls, outcomes {told}")
    assert not wrong, wrong


def test_library(daemon, folder, path):
    """A program that attaches and reads ends by itself, with a message, and no lease is left."""
    faults = Faults(folder, "librocmforge,libcjson")
    with daemon.client() as client:
        load_fd(client, path, name="m")
        program = [build_folder() / "docs" / "read_tensor", "m"]
        env = {**os.environ, **SANITIZERS, **faults.env, "ROCMFORGE_SOCKET": str(daemon.socket)}

        def read():
            return subprocess.run(program, env=env, capture_output=True, text=True, timeout=TIMEOUT)

        for kind, error in ((MEMORY, errno.ENOMEM), (CALLS, errno.EIO)):
            count = faults.count(kind, lambda: read().check_returncode())
            assert count >= 5, count
            for n in numbers(count):
                faults.set(n, kind, error)
                done = read()
                assert faults.off() == 0
                assert done.returncode in (0, 1), (n, done.returncode, done.stderr)
                assert done.returncode == 0 or done.stderr, n
                assert "Sanitizer" not in done.stderr, done.stderr
                wait_until(lambda: client.call("Status")["leases"] == 0)
