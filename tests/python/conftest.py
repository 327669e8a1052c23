"""The Python package against the real daemon.

ROCMFORGE_BUILD names the build folder. ROCMFORGE_MODEL names a real model; tests that want one are skipped without it.
ROCMFORGE_PYTHON_INSTALLED: the package that is installed is tested, and not that of the source tree.
"""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import make_model
import pytest
from harness import ROOT, SANITIZERS, TIMEOUT, Daemon, build_folder, ending_well, short_folder

SOURCE = ROOT / "client" / "python" / "src"

if "ROCMFORGE_BUILD" not in os.environ:
    pytest.exit("ROCMFORGE_BUILD is not set; ./setup python-test sets it", returncode=2)
if not os.environ.get("ROCMFORGE_PYTHON_INSTALLED"):
    sys.path.insert(0, str(SOURCE))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
os.environ["ROCMFORGE_LIBRARY"] = str(build_folder() / "client")
os.environ.pop("ROCMFORGE_SOCKET", None)
# Whoever starts us in the background may have it ignored, and our children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Threads that wait for one another in a loop take the processors from whoever else is at work.
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


@pytest.fixture
def folder():
    with short_folder("rfy") as path:
        yield path


@pytest.fixture
def start(folder):
    """Starts daemons. Each has to end well, with nothing to say against it, unless the test ended it already."""
    with ending_well() as daemons:

        def start_one(*options, **keywords):
            daemon = Daemon(folder, *options, **keywords)
            daemons.append(daemon)
            return daemon.wait_ready()

        yield start_one


@pytest.fixture
def daemon(start):
    return start()


@pytest.fixture
def rf(daemon):
    """A client, closed at the end."""
    import rocmforge

    with rocmforge.connect(daemon.socket) as client:
        yield client


@pytest.fixture(scope="session")
def model_folder():
    path = tempfile.mkdtemp(prefix="rfym")
    yield Path(path)
    shutil.rmtree(path)


def write(path, tensors):
    make_model.write_model(path, tensors, make_model.metadata(4, 256, 256, 4, 1000), 1)
    return path


@pytest.fixture(scope="session")
def every_type(model_folder):
    """A matrix of each type that the gguf package knows, a vector, one of three dimensions."""
    known = {int(type_) for type_ in gguf.GGMLQuantizationType}
    types = {name: type_ for name, type_ in make_model.load_types().items() if type_.id in known}
    tensors = [make_model.Tensor(f"blk.{i}.{name}.weight", type_, (512, 3)) for i, (name, type_) in enumerate(types.items())]
    tensors.append(make_model.Tensor("vector", types["f32"], (7,)))
    tensors.append(make_model.Tensor("cube", types["q8_0"], (32, 3, 5)))
    return write(model_folder / "every.gguf", tensors)


@pytest.fixture(scope="session")
def small(model_folder):
    types = make_model.load_types()
    return write(model_folder / "small.gguf", make_model.sized_tensors(8, 1 << 20, [types[n] for n in ("q4_0", "f16", "f32", "bf16")]))


@pytest.fixture(scope="session")
def large(model_folder):
    """Large enough that something can happen while it is loaded slowly."""
    types = make_model.load_types()
    return write(model_folder / "large.gguf", make_model.sized_tensors(20, 100 << 20, [types["f16"]]))


@pytest.fixture(scope="session")
def real_model():
    if not os.environ.get("ROCMFORGE_MODEL"):
        pytest.skip("ROCMFORGE_MODEL names no real model")
    return Path(os.environ["ROCMFORGE_MODEL"])


@pytest.fixture(scope="session")
def slow_read(model_folder):
    """Environment in which the daemon takes its time to read a large file."""
    library = model_folder / "slow_read.so"
    source = ROOT / "tests" / "lib" / "slow_read.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", library, source, "-ldl"], check=True)
    asan = SANITIZERS["ASAN_OPTIONS"] + ":verify_asan_link_order=0"
    return {"LD_PRELOAD": str(library), "SLOW_READ_MS": "50", "ASAN_OPTIONS": asan}


@pytest.fixture
def run_python(daemon):
    """run_python(code, ...): a script in a process of its own, with the daemon's socket; it has to say nothing on stderr
    and to end with 0. Returns what it prints."""

    def run(code, *arguments, stderr="", status=0, **env):
        done = subprocess.run(
            [sys.executable, "-X", "dev", "-c", code, *map(str, arguments)],
            env={**os.environ, "ROCMFORGE_SOCKET": str(daemon.socket), **env},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert (done.stderr, done.returncode) == (stderr, status), done.stderr
        return done.stdout

    return run
