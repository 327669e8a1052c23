"""llama.cpp itself, unmodified, with the plug-in: real engines, a real daemon, and models that the tests make.

ROCMFORGE_BUILD names the build folder. ROCMFORGE_ENGINES names a folder with api2/bin and api3/bin, which `./setup
engine-test` makes. ROCMFORGE_GEMMA names a real model, Gemma-3-270M; without it what needs one is skipped.
"""
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import make_llama
import pytest
from harness import TIMEOUT, Daemon, build_folder, ending_well, fake_gpu_folder, module_folder, short_folder

PLUGIN = build_folder() / "client" / "engines" / "llama" / "libggml-rocmforge.so" if "ROCMFORGE_BUILD" in os.environ else None
MINUTES = 3 * TIMEOUT


def pytest_configure(config):
    for name in ("ROCMFORGE_BUILD", "ROCMFORGE_ENGINES"):
        if name not in os.environ:
            pytest.exit(f"{name} is not set; ./setup engine-test sets it", returncode=2)


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


@pytest.fixture
def start(folder):
    """Starts daemons. Each has to end well, unless the test ended it already."""
    with ending_well() as daemons:

        def start_one(*options, **keywords):
            daemons.append(Daemon(folder, *options, **keywords))
            return daemons[-1].wait_ready()

        yield start_one


@pytest.fixture(scope="session")
def models():
    path = Path(tempfile.mkdtemp(prefix="rfm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def llama(models):
    """llama(shape, type, tied): the path of a model."""

    def make(shape="tiny", type_="q4_0", tied=False):
        path = models / f"{shape}-{type_}{'-tied' if tied else ''}.gguf"
        if not path.exists():
            make_llama.make(path, shape, type_, tied)
        return path

    return make


@pytest.fixture(scope="session")
def gemma():
    path = os.environ.get("ROCMFORGE_GEMMA")
    if not path or not os.path.exists(path):
        pytest.skip("ROCMFORGE_GEMMA names no model: PyPI could not be reached")
    return Path(path).resolve()


def agree(one, other):
    """Whether they say the same to the end. Engine.listen() takes as many bytes of each."""
    return len(one) >= 64 and one == other


def take(process, size):
    """The first so many bytes that a process says; fewer if it ends."""
    said = b""
    while len(said) < size:
        part = process.stdout.read(size - len(said))
        if not part:
            break
        said += part
    return said


class Result:
    def __init__(self, status, said, err):
        self.status = status
        self.said = said
        self.err = err.decode(errors="replace")

    @property
    def told(self):
        """What the plug-in and rfctl said; perhaps behind the dots that the engine writes while it loads."""
        return re.findall(r"(?:rocmforge|rfctl): .*", self.err)

    @property
    def shared(self):
        return any("shared with other processes" in line for line in self.told)


class Engine:
    """One version of llama.cpp; `gpu`: with a stand-in for a GPU's backend."""

    def __init__(self, api, gpu, daemon, folder):
        self.bin = Path(os.environ["ROCMFORGE_ENGINES"]).resolve() / f"api{api}" / "bin"
        self.api = api
        self.gpu = gpu
        self.daemon = daemon
        self.cwd = folder / "engine" # where ggml looks for backends too
        self.cwd.mkdir()
        if gpu:
            (self.cwd / "libggml-hip.so").symlink_to(build_folder() / "tests" / "engines" / f"fake_gpu_api{api}.so")

    def words(self, model, *options, tokens=64):
        """Asks for more tokens than listen() waits for, of which some are one byte, but no more than the context holds."""
        return [
            "-m", model, "-p", "one two three", "-n", min(4 * tokens, 470), "--temp", "0", "-no-cnv", "--no-display-prompt",
            "--no-warmup", "-t", "1", "-c", "512", "--no-repack", "--ignore-eos", *options,
        ]

    def environment(self, shared, **env):
        environment = {**os.environ, "ROCMFORGE_SOCKET": str(self.daemon.socket) if self.daemon else "/nowhere"}
        environment["ROCMFORGE_MODULE_DIR"] = f"{module_folder()}:{PLUGIN.parent}"
        environment.pop("ROCMFORGE_MODEL", None)
        environment["GGML_NO_BACKTRACE"] = "1" # which stands on standard output
        if shared:
            environment["GGML_BACKEND_PATH"] = str(PLUGIN)
        return {**environment, **env}

    def spawn(self, command, log, shared=True, **env):
        """A program that writes what it says to a file."""
        return subprocess.Popen(
            [str(word) for word in command], env=self.environment(shared, **env), cwd=self.cwd, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT,
        )

    def start(self, program, *words, shared=True, **env):
        return subprocess.Popen(
            [str(word) for word in [self.bin / program, *words]], env=self.environment(shared, **env), cwd=self.cwd,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )

    def call(self, *command, shared=True, **env):
        done = subprocess.run(
            [str(word) for word in command], env=self.environment(shared, **env), cwd=self.cwd, capture_output=True,
            timeout=MINUTES, check=False, stdin=subprocess.DEVNULL,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def listen(self, *command, tokens, shared=True, **env):
        """The same, of a command that generates: until it has said some three bytes for each token. llama.cpp writes from
        a thread that it does not wait for when it ends, so the last that it says may be lost, and it is ended before."""
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                [str(word) for word in command], env=self.environment(shared, **env), cwd=self.cwd,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, bufsize=0,
            )
            said = take(process, 3 * tokens)
            whole = len(said) == 3 * tokens
            if whole:
                process.kill()
            process.stdout.close()
            status = process.wait(MINUTES)
            log.seek(0)
            return Result(0 if whole else status, said, log.read())

    def run(self, model, *options, tokens=64, shared=True, pattern=".*=ROCmForge", program="llama-completion", **env):
        """As a user types it: with -ot."""
        override = ["-ot", pattern] if shared else []
        words = self.words(model, *options, *override, tokens=tokens)
        return self.listen(self.bin / program, *words, tokens=tokens, shared=shared, **env)

    def rfctl_run(self, model, *options, before=(), program="llama-completion", **env):
        rfctl = build_folder() / "client" / "rfctl" / "rfctl"
        words = self.words(model, *options)
        return self.listen(rfctl, "run", *before, self.bin / program, *words, tokens=64, shared=False, **env)


@pytest.fixture(params=["api2", "api3"])
def api(request):
    if not (Path(os.environ["ROCMFORGE_ENGINES"]) / request.param / "bin" / "llama-completion").exists():
        pytest.skip(f"there is no llama.cpp of {request.param}")
    return int(request.param[3:])


def make_engine(api, kind, start, folder, monkeypatch, *options):
    """kind: "host", "gpu", or "gpus", which is two. options: the daemon's."""
    if kind == "host":
        return Engine(api, False, start(*options), folder)
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_gpu_folder()))
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(module_folder()))
    if kind == "gpus":
        monkeypatch.setenv("FAKE_HIP_DEVICES", "2") # the daemon's
        monkeypatch.setenv("FAKE_GPUS", "2") # the engine's
    return Engine(api, True, start("--device", "hip", *options), folder)


@pytest.fixture(params=["host", "gpu"])
def engine(request, api, start, folder, monkeypatch):
    return make_engine(api, request.param, start, folder, monkeypatch)


@pytest.fixture
def host_engine(api, start, folder, monkeypatch):
    return make_engine(api, "host", start, folder, monkeypatch)


@pytest.fixture
def gpus_engine(api, start, folder, monkeypatch):
    return make_engine(api, "gpus", start, folder, monkeypatch)


@pytest.fixture
def narrow_engine(api, start, folder, monkeypatch):
    """Two GPUs, on each of which the daemon has 50 MB, and the engine too in one buffer."""
    monkeypatch.setenv("FAKE_GPU_LIMIT", "50000000")
    return make_engine(api, "gpus", start, folder, monkeypatch, "--budget", "50M")


@pytest.fixture
def half_full_engine(api, start, folder, monkeypatch):
    """Two GPUs. The first has no room for a model of 6 MB."""
    engine = make_engine(api, "gpus", start, folder, monkeypatch, "--budget", "9M")
    other = folder / "other.gguf"
    make_llama.make(other, seed=2)
    engine.daemon.rfctl("load", other, "--as", "native", "--device", "hip:0", "--pin")
    return engine


@pytest.fixture
def gpu_engine(api, start, folder, monkeypatch):
    return make_engine(api, "gpu", start, folder, monkeypatch)
