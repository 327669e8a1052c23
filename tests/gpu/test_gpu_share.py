"""Memory of a GPU that clients get by descriptor: what they can do with it, what they cannot, and how long it lasts."""
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAKE, KIND
from harness import EXPORTS, build_folder, daemon_program, library_environment, wait_until
from test_gpu_daemon import devices, load, unload

CHILD = Path(__file__).resolve().parent / "share_child.py"

# A container's namespaces, as far as they matter here.
APART = ["unshare", "--pid", "--ipc", "--net", "--fork", "--kill-child", "--mount-proc"]


class Child:
    def __init__(self, daemon, what, model="m", before=()):
        command = [*before, sys.executable, CHILD, build_folder(), daemon.socket, model, what]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=library_environment(),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()
        self.process.wait()

    def told(self):
        """What it says next."""
        line = self.process.stdout.readline()
        assert line, f"the client ended with {self.process.wait(60)}: {self.process.stderr.read()}"
        return json.loads(line)

    def again(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.told()


def digests(daemon, model="m"):
    with Child(daemon, "hold", model) as child:
        return child.told()


def device_of(daemon):
    return devices(daemon)[f"{KIND or 'hip'}:0"]


@pytest.fixture
def shared(start, small_model, kind):
    """A daemon that exports descriptors, with the model `m` on the GPU."""
    daemon = start("--export", "fd")
    load(daemon, small_model, "m", device=f"{kind}:0")
    assert device_of(daemon)["export"] == "fd"
    return daemon


def test_what_this_gpu_can(start, kind):
    """By itself the daemon takes descriptors where they work. Where they do not, the log says why."""
    daemon = start()
    export = device_of(daemon)["export"]
    print(f"{kind} exports {export}", *[line for line in daemon.log.splitlines() if "by IPC handle" in line])
    if kind == "cuda" or FAKE:
        assert export == "fd", daemon.log
    else:
        assert export == "fd" or "because descriptors do not work" in daemon.log


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("form", ["native", "f16"])
def test_bytes_arrive(start, small_model, kind, export, form):
    """The same as of the file in host memory, bit for bit."""
    daemon = start("--export", export)
    load(daemon, small_model, "m", device=f"{kind}:0", form=form)
    load(daemon, small_model, "host", device="host", form=form)
    assert device_of(daemon)["export"] == export
    assert digests(daemon) == digests(daemon, "host")
    with daemon.client(timeout=120) as client:
        assert client.call("Verify", name="m")["mismatches"] == []


def test_who_writes_is_refused(shared):
    """A client's kernel that writes to the model fails; the daemon's bytes, and another client's, stay as they are."""
    with Child(shared, "hold") as reader:
        before = reader.told()
        with Child(shared, "write") as writer:
            told = writer.told()
        assert told["control"] == [0, True], f"the kernel does not write to memory of its own either: {told}"
        assert told["error"] != 0, "the kernel wrote to the model, and nobody stopped it"
        print(f"writing to the model: error {told['error']}")
        assert reader.again() == before
    with shared.client(timeout=120) as client:
        assert client.call("Verify", name="m")["mismatches"] == []
    assert device_of(shared)["state"] == "ready"
    assert digests(shared) == before


def test_nothing_in_common_but_the_socket(start, small_model, kind):
    """Daemon and client in PID, IPC and network namespaces of their own, as two containers are."""
    able = subprocess.run([*APART, "true"], capture_output=True, text=True)
    if able.returncode != 0:
        pytest.skip(f"no namespaces can be made here: {able.stderr.strip()}")
    # Without --fork the daemon would not be in a new PID namespace, but the client is in one that the daemon is not in.
    daemon = start("--export", "fd", program=["unshare", "--ipc", "--net", daemon_program()])
    load(daemon, small_model, "m", device=f"{kind}:0")
    expected = digests(daemon)
    with Child(daemon, "hold", before=APART) as child:
        assert child.told() == expected


def test_a_handle_needs_more_in_common(start, small_model, kind):
    """What descriptors are good for. ROCm refuses the handle (its memory is found by process ids), and so does the
    stand-in; CUDA's driver on an H200 accepts it if only these namespaces differ: there the bytes must be right."""
    able = subprocess.run([*APART, "true"], capture_output=True, text=True)
    if able.returncode != 0:
        pytest.skip(f"no namespaces can be made here: {able.stderr.strip()}")
    daemon = start("--export", "ipc")
    load(daemon, small_model, "m", device=f"{kind}:0")
    with Child(daemon, "hold", before=APART) as child:
        line = child.process.stdout.readline()
        if line and kind == "cuda":
            pytest.skip("this driver opens handles of other namespaces")
        assert line == "" and "MemHandle" in child.process.stderr.read()


def test_daemon_killed_while_a_client_reads(shared, start, small_model, kind):
    """What a client has mapped stays, and a new daemon serves beside it."""
    with Child(shared, "hold") as child:
        before = child.told()
        shared.process.kill()
        shared.process.wait()
        assert child.again() == before, "the bytes changed when the daemon was killed"
        daemon = start("--export", "fd")
        load(daemon, small_model, "m", device=f"{kind}:0")
        assert digests(daemon) == before
        assert child.again() == before
    assert device_of(daemon)["state"] == "ready"


def test_memory_comes_back(shared, small_model, kind):
    """When the last of those who have it lets go of it: the daemon is first, the client last."""
    with Child(shared, "hold") as child:
        before = child.told()
        with shared.client() as client:
            assert client.call("Unload", name="m", force=True)["state"] == "draining"
        assert child.again() == before
    wait_until(lambda: shared.models() == [])
    assert device_of(shared)["used"] == 0
    others = device_of(shared)["others"]
    for _ in range(20 if FAKE else 5):
        load(shared, small_model, "m", device=f"{kind}:0")
        assert digests(shared) == before
        unload(shared, "m")
    assert device_of(shared)["others"] <= others + (64 << 20), "each load takes memory that does not come back"


def test_a_thousand_attaches(shared):
    """Neither side keeps a descriptor."""
    digests(shared)
    wait_until(lambda: shared.models()[0]["leases"] == 0)
    before = len(shared.fds())
    with Child(shared, "attach") as child:
        first, last = child.told()
    assert first == last
    wait_until(lambda: len(shared.fds()) <= before)


def test_descriptors_of_models(shared, small_model, kind):
    """The daemon has them as long as the models, no longer."""
    unload(shared, "m")
    before = len(shared.fds())
    for _ in range(10):
        load(shared, small_model, "m", device=f"{kind}:0")
        unload(shared, "m")
    wait_until(lambda: len(shared.fds()) <= before)
    with shared.client() as client:
        load(shared, small_model, "m", device=f"{kind}:0")
        client.call("Attach", name="m")
        unload_later = client.take_fd(0)
    wait_until(lambda: shared.models()[0]["leases"] == 0)
    unload(shared, "m")
    os.close(unload_later)
    wait_until(lambda: len(shared.fds()) <= before)
