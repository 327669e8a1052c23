"""What integration tests are made of: the real daemon as a process, files, and patience."""
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import make_model
from rocmforge_wire import Client, WireError

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 60
MIB = 1 << 20
GRANULE = 2 * MIB  # of the host: an arena is a multiple of it

# A sanitizer's finding ends the daemon, and with it the test. Of freed memory little is kept, or it would be taken for
# memory that the daemon has.
SANITIZERS = {
    "ASAN_OPTIONS": "exitcode=99:detect_leaks=1:quarantine_size_mb=16",
    "UBSAN_OPTIONS": "halt_on_error=1:exitcode=99:print_stacktrace=1",
}


def build_folder():
    return Path(os.environ["ROCMFORGE_BUILD"]).resolve()


def module_folder():
    """Where this build's GPU modules are, the daemon's and the clients': what ROCMFORGE_MODULE_DIR names in tests."""
    return build_folder() / "daemon" / "device" / "hip"


def fake_gpu_folder():
    """Where a HIP runtime of the tests' own is, whatever version's name it has; None: built without the hip module."""
    folder = build_folder() / "tests" / "fake_hip"
    return folder if any(folder.glob("libamdhip64.so*")) else None


class Export(NamedTuple):
    """A way in which a GPU's memory gets to clients, and the calls of the runtime that belong to it."""

    kind: str  # of --export
    exporting: str  # is called once for the trial on each device, then once for each model
    allocating: str
    allocated: int  # how often that was called on one device before the first model

    def fails(self, n, code=719):
        """FAKE_HIP_FAIL: the Nth export fails; by itself with a code that loses the device."""
        return f"{self.exporting}:{n}:{code}"

    def refuses(self, model, onwards=""):
        """FAKE_HIP_FAIL: there is no memory for the Nth model, or with "+" from there on."""
        return f"{self.allocating}:{self.allocated + model}{onwards}:2"


EXPORTS = {
    export.kind: export
    for export in (
        Export("fd", "hipMemExportToShareableHandle", "hipMemCreate", 1),
        Export("ipc", "hipIpcGetMemHandle", "hipMalloc", 6),
    )
}


def hold_program():
    return str(build_folder() / "daemon" / "hold" / "rocmforge-hold")


def daemon_program():
    return str(build_folder() / "daemon" / "rocmforged")


def library_environment():
    """For a program that loads librocmforge while it runs: the runtime of a sanitizer has to be there first."""
    library = build_folder() / "client" / "librocmforge.so"
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    runtimes = [line.split()[2] for line in needed.splitlines() if "libasan" in line]
    # Python keeps what it has to its end.
    asan = SANITIZERS["ASAN_OPTIONS"] + ":detect_leaks=0"
    return {**os.environ, **SANITIZERS, "ASAN_OPTIONS": asan, "LD_PRELOAD": " ".join(runtimes)}


def wait_until(condition, seconds=TIMEOUT, every=0.01):
    """Waits for a condition and returns its value; fails if it does not come true."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "this did not come true in time"
        time.sleep(every)


class Daemon:
    def __init__(self, folder, *options, env=None, socket=None, program=None, pass_fds=()):
        self.folder = Path(folder)
        self.socket = Path(socket or self.folder / "io.rocmforge")
        self.log_path = self.folder / f"log{len(list(self.folder.glob('log*')))}"
        command = program or [daemon_program()]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*command, "--socket", str(self.socket), "--device", "host", "--budget", "3Gi", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **SANITIZERS, **(env or {})},
                pass_fds=pass_fds,
            )
        self.pid = self.process.pid

    def wait_ready(self):
        def ready():
            assert self.process.poll() is None, f"the daemon ended:\n{self.log}"
            with contextlib.suppress(OSError):
                with self.client() as client:
                    return client.call("org.varlink.service.GetInfo")

        wait_until(ready)
        return self

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    def client(self, **options):
        return Client(self.socket, **options)

    def rfctl(self, *arguments, check=True, before=(), **options):
        """before: what starts it, as setpriv."""
        return subprocess.run(
            [*before, str(build_folder() / "client" / "rfctl" / "rfctl"), "--socket", str(self.socket), *map(str, arguments)],
            check=check,
            capture_output=True,
            timeout=TIMEOUT,
            **{"text": True, **options},
        )

    def fds(self):
        """What the daemon's descriptors lead to."""
        links = []
        for fd in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/{self.pid}/fd/{fd}"))
        return sorted(links)

    def rss(self):
        """Bytes of memory that it has."""
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak(self):
        """Bytes of memory that it had at most."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) * 1024

    def cpu_seconds(self):
        """Processor time that it took so far."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def reads(self):
        """How often it read from a file or a pipe so far."""
        with open(f"/proc/{self.pid}/io", encoding="ascii") as io:
            return int(next(line for line in io if line.startswith("syscr:")).split()[1])

    def busy(self, seconds=1):
        """Which part of a processor it takes."""
        before, began = self.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / (time.monotonic() - began)

    def is_idle(self):
        """Whether all its threads sleep: one that has something to do, and no processor yet, does not."""
        states = set()
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{self.pid}/task/{task}/stat", encoding="ascii") as stat:
                    states.add(stat.read().rpartition(")")[2].split()[0])
        return states == {"S"}

    def settled_fds(self):
        """What its descriptors lead to once connections that were closed are gone."""
        while True:
            before = self.fds()
            idle = self.is_idle()
            time.sleep(0.05)
            if idle and self.is_idle() and self.fds() == before:
                return before

    def used(self):
        with self.client() as client:
            return sum(device["used"] for device in client.call("Devices")["devices"])

    def models(self):
        with self.client() as client:
            return client.call("List")["models"]

    def status(self):
        with self.client() as client:
            return client.call("Status")

    def sync(self):
        """Returns once the daemon has begun all calls that were sent before."""
        self.status()

    def stop(self, gate=None):
        """Ends it as systemd would, and returns its exit status. A gate is opened when it has begun to end."""
        self.process.send_signal(signal.SIGTERM)
        if gate:
            wait_until(lambda: "stopping" in self.log)
            gate.open()
        return self.process.wait(TIMEOUT)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


# Nobody in particular: neither root nor the daemon.
USER = 12345


@contextlib.contextmanager
def short_folder(prefix="rf"):
    """A new folder, removed in the end. Its name is short, because a socket's path is at most 107 bytes."""
    path = tempfile.mkdtemp(prefix=prefix)
    yield Path(path)
    shutil.rmtree(path)


@contextlib.contextmanager
def ending_well():
    """A list for daemons. In the end each is stopped, unless the test ended it already, and has to end well, with nothing
    to say against it."""
    daemons = []
    yield daemons
    statuses = [daemon.stop() if daemon.process.poll() is None else 0 for daemon in daemons]
    for daemon, status in zip(daemons, statuses):
        daemon.close()
        assert status == 0, daemon.log
        assert "Sanitizer" not in daemon.log and "runtime error" not in daemon.log, daemon.log


@contextlib.contextmanager
def as_user(uid, groups=()):
    """What connects meanwhile is this user's, who is in a group of the same number and in these."""
    before = os.getgroups(), os.getegid()
    os.setgroups(groups)
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[1])
        os.setgroups(before[0])


def client_of(daemon, uid, groups=(), **options):
    with as_user(uid, groups):
        return daemon.client(**options)


def call_with_file(client, uid, method, path, groups=(), **parameters):
    """The reply to a call with this file, which the user has opened."""
    with as_user(uid, groups):
        file = open(path, "rb")
    with file:
        return client.call(method, fds=[file.fileno()], **parameters)


def load_as(client, uid, path, **parameters):
    return call_with_file(client, uid, "Load", path, **parameters)["model"]


class Gate:
    """A file that holds up a daemon started with this environment, while it is there."""

    def __init__(self, path, env):
        self.path = path
        self.env = env

    def close(self):
        self.path.touch()

    def open(self):
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def wire_error(name):
    """The body has to fail with this error; the parameters are in what it yields."""
    parameters = {}
    try:
        yield parameters
    except WireError as error:
        assert error.name == name, error
        parameters.update(error.parameters)
    else:
        raise AssertionError(f"no {name}")


def sparse_model(path, size):
    types = make_model.load_types()
    count = max(size >> 26, 1)
    tensors = [make_model.Tensor(f"blk.{i}.ffn_up.weight", types["i8"], (size // count,)) for i in range(count)]
    n_kv, kv = make_model.metadata(1, 256, 256, 4, 100)
    with open(path, "wb") as out:
        data_start = make_model.write_header(out, tensors, n_kv, kv)
        out.truncate(data_start + size)
    return path


def tensor_model(path, size=MIB, seed=1, type_="i8"):
    """One tensor of random bytes."""
    types = make_model.load_types()
    tensors = [make_model.Tensor("blk.0.ffn_up.weight", types[type_], (size,))]
    make_model.write_model(path, tensors, make_model.metadata(1, 256, 256, 4, 100), seed)
    return path


def load(client, path, name, **parameters):
    return client.call("Load", path=str(path), name=name, **parameters)["model"]


def load_fd(client, path, **parameters):
    with open(path, "rb") as file:
        return client.call("Load", fds=[file.fileno()], **parameters)["model"]


def names(daemon):
    return [model["name"] for model in daemon.models()]


def states(daemon):
    return {model["name"]: model["state"] for model in daemon.models()}


def is_filling(daemon, name):
    return states(daemon).get(name) == "filling"
