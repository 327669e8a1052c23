"""The real daemon on a socket of its own, and model files to load.

ROCMFORGE_BUILD names the build folder, ROCMFORGE_MODEL a real model. `./setup test` sets both.
"""
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import make_model
import pytest
from fd_store import Store
from harness import (
    MIB, ROOT, SANITIZERS, USER, Daemon, Gate, client_of, daemon_program, ending_well, hold_program, short_folder,
    sparse_model, tensor_model,
)  # fmt: skip
from split_model import write_split


def pytest_configure(config):
    for name in ("ROCMFORGE_BUILD", "ROCMFORGE_MODEL"):
        if name not in os.environ:
            pytest.exit(f"{name} is not set; ./setup test sets it", returncode=2)
    # Whoever starts us in the background may have them ignored, and our children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


@pytest.fixture
def start(folder):
    """Starts daemons. Each has to end well, with nothing to say against it, unless the test ended it already."""
    with ending_well() as daemons:

        def start_one(*options, ready=True, **keywords):
            daemon = Daemon(folder, *options, **keywords)
            daemons.append(daemon)
            return daemon.wait_ready() if ready else daemon

        yield start_one


@pytest.fixture(params=["root", "nobody"])
def start_for_all(request, start, folder):
    """A daemon that runs as this user, and that others may connect to."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    nobody = 65534

    def start_one(*options, **keywords):
        if request.param == "nobody":
            os.chown(folder, nobody, nobody)
            program = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
            keywords["program"] = [*program, daemon_program()]
        os.chmod(folder, 0o755)
        daemon = start(*options, **keywords)
        os.chmod(daemon.socket, 0o666)
        daemon.uid = nobody if request.param == "nobody" else 0
        return daemon

    return start_one


@pytest.fixture
def clients(start_for_all):
    """clients(daemon, uid, groups): closed in the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(client_of(*arguments))


@pytest.fixture
def own(folder):
    """own(name, uid, seed, mode, size): a model file of this user."""

    def make(name, uid=USER, seed=1, mode=0o644, size=MIB):
        path = tensor_model(folder / name, size=size, seed=seed)
        os.chown(path, uid, uid)
        os.chmod(path, mode)
        return path

    return make


@pytest.fixture
def held(start):
    """Starts a daemon under rocmforge-hold, which keeps its descriptors. The process is the holder."""
    return lambda *options, **keywords: start(*options, program=[hold_program(), "--", daemon_program()], **keywords)


@pytest.fixture
def store(folder):
    """A service manager's store of descriptors."""
    store = Store(folder)
    yield store
    store.close()


@pytest.fixture
def daemon(start):
    return start()


@pytest.fixture(scope="session")
def slow_read():
    """Environment in which reading a large file takes its time, whatever the machine, and whoever the daemon runs as."""
    folder = Path(tempfile.mkdtemp(prefix="rfl"))
    os.chmod(folder, 0o755)
    library = folder / "slow_read.so"
    source = ROOT / "tests" / "lib" / "slow_read.c"
    command = ["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    asan = SANITIZERS["ASAN_OPTIONS"] + ":verify_asan_link_order=0"
    yield {"LD_PRELOAD": str(library), "SLOW_READ_MS": "5", "ASAN_OPTIONS": asan}
    shutil.rmtree(folder)


@pytest.fixture
def gate(folder, start, slow_read):  # start: the daemon ends after the gate is open
    """A daemon that is started with `env=gate.env` reads nothing of a large file while the gate is closed."""
    path = folder / "gate"
    gate = Gate(path, {**slow_read, "SLOW_READ_MS": "0", "SLOW_READ_GATE": str(path)})
    yield gate
    gate.open()


@pytest.fixture
def part_gate(gate):
    """The same of a daemon that reads for a GPU, which it does in smaller parts."""
    gate.env["SLOW_READ_LEAST"] = str(256 << 10)
    return gate


@pytest.fixture
def held_daemon(start, gate):
    """Its loads of a large file come as far as "filling", and no further before `gate.open()`."""
    gate.close()
    return start(env=gate.env)


@pytest.fixture
def slow_daemon(start, slow_read):
    """Loading or verifying 768 MB takes two seconds at least."""
    return start("--workers", "2", env=slow_read)


@pytest.fixture
def client(daemon):
    with daemon.client() as client:
        yield client


@pytest.fixture(scope="session")
def real_model():
    return Path(os.environ["ROCMFORGE_MODEL"]).resolve()


@pytest.fixture(scope="session")
def model_folder():
    path = tempfile.mkdtemp(prefix="rfm")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def small_model(model_folder):
    """Four tensors, about a megabyte."""
    types = make_model.load_types()
    path = model_folder / "small.gguf"
    tensors = make_model.sized_tensors(4, 1 << 20, [types[name] for name in ("q4_0", "f16", "f32", "q8_0")])
    make_model.write_model(path, tensors, make_model.metadata(4, 256, 256, 4, 100), 1)
    return path


@pytest.fixture(scope="session")
def large_model(model_folder):
    """768 MB that take no room on disk: long enough to read that something can happen meanwhile."""
    return sparse_model(model_folder / "large.gguf", 768 << 20)


@pytest.fixture(scope="session")
def slow_model(model_folder):
    """256 MB that take no room on disk: `slow_daemon` needs two thirds of a second for them at least."""
    return sparse_model(model_folder / "slow.gguf", 256 << 20)


@pytest.fixture(scope="session")
def gated_model(model_folder):
    """64 MB that take no room on disk: a closed gate holds them up, and without one they are there soon."""
    return sparse_model(model_folder / "gated.gguf", 64 << 20)


@pytest.fixture
def models(folder):
    """models(n, size): so many files, each of a granule or as large as is asked."""

    def make(n, size=MIB):
        return [tensor_model(folder / f"m{i}-{size}.gguf", size, i) for i in range(n)]

    return make


@pytest.fixture
def split(folder):
    """split(change): the files of a split model."""
    return functools.partial(write_split, folder)
