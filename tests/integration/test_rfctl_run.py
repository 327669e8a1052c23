"""rfctl run, with a script in an engine's place that tells how it was started."""
import json
import os
import signal
import subprocess

import harness
import make_llama
import pytest
from harness import TIMEOUT, build_folder, fake_gpu_folder

PLUGIN = build_folder() / "client" / "engines" / "llama" / "libggml-rocmforge.so"

pytestmark = pytest.mark.skipif(not PLUGIN.exists(), reason="this build has no plug-in for llama.cpp (-Dggml)")

SCRIPT = """#!/usr/bin/env python3
import json, os, sys
names = "GGML_BACKEND_PATH", "ROCMFORGE_SOCKET"
print(json.dumps({"words": sys.argv[1:], **{name: os.environ.get(name) for name in names}}))
sys.exit(7)
"""


class Run:
    def __init__(self, folder, daemon, name="llama-server", gpu=False):
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.daemon = daemon
        self.engine = self.folder / name
        self.engine.write_text(SCRIPT)
        self.engine.chmod(0o755)
        if gpu:
            (self.folder / "libggml-hip.so").touch() # rfctl looks whether it is there
        self.model = folder / "model.gguf"
        make_llama.make(self.model)

    def __call__(self, *words, before=(), engine=None, status=7, model=True, **env):
        """How the engine was started, and what was said."""
        modules = f"{harness.module_folder()}:{PLUGIN.parent}"
        rfctl = [build_folder() / "client" / "rfctl" / "rfctl", "--socket", self.daemon.socket, "run", *before]
        command = [*rfctl, engine or self.engine, *(["-m", self.model] if model else []), *words]
        environment = {**os.environ, **harness.SANITIZERS, "ROCMFORGE_MODULE_DIR": modules, **env}
        done = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert done.returncode == status, done.stderr
        told = json.loads(done.stdout) if status == 7 else None
        return told, done.stderr


@pytest.fixture
def run(folder, start):
    return Run(folder, start())


def test_the_engine_is_started(run):
    told, err = run("-ngl", "99", "--port", "1234")
    assert told["words"] == ["-m", str(run.model), "-ngl", "99", "--port", "1234", "-ot", ".*=ROCmForge"]
    assert told["GGML_BACKEND_PATH"] == str(PLUGIN)
    assert told["ROCMFORGE_SOCKET"] == str(run.daemon.socket)
    assert err.splitlines()[-1].startswith("rfctl: ") and " shares model (" in err
    [model] = run.daemon.models()
    assert (model["name"], model["form"], model["device"]) == ("model", "native", "host")
    assert "shares model (" in run()[1] # it is there already


def test_signals_are_as_they_were(run):
    """rfctl ignores SIGPIPE, and what is ignored stays so in the program that comes after."""
    run.engine.write_text("#!/bin/sh\nprintf '\"%s\"' \"$(grep SigIgn /proc/self/status | tr '\\t' ' ')\"\nexit 7\n")
    ignored = int(run()[0].split()[-1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1


def test_options_of_both(run):
    told, _ = run("--name", "theirs", "--help-me", before=["--pin", "--name=mine", "--ttl", "10m"])
    assert told["words"][2:] == ["--name", "theirs", "--help-me", "-ot", ".*=ROCmForge"]
    [model] = run.daemon.models()
    assert model["name"] == "mine" and model["pinned"] and model["ttl"] == 600


def test_the_engine_is_found_as_a_shell_finds_it(run):
    path = f"{run.folder}:{os.environ['PATH']}"
    assert run(engine="llama-server", PATH=path)[0]["GGML_BACKEND_PATH"] == str(PLUGIN)
    _, err = run(engine="no-such-engine", status=127)
    assert "cannot run no-such-engine" in err
    run.engine.chmod(0o644)
    run(status=126)


def test_patterns_of_ones_own_come_first(run):
    told, err = run("-ot", "exps=CPU")
    assert told["words"][2:] == ["-ot", "exps=CPU", "-ot", ".*=ROCmForge"]
    assert "your own -ot comes first" in err


def test_what_tells_of_the_engine_needs_no_model(run):
    assert run("--version", model=False)[0]["words"] == ["--version"]
    assert not run.daemon.models()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["-lm", "none"], "-lm cannot be had with shared weights: the engine would read the whole file itself"),
        (["--load-mode", "dio"], "the engine would read the whole file itself"),
        (["--no-mmap"], "the engine would read the whole file itself"),
        (["-mmp", "0"], "the engine would read the whole file itself"),
        (["-sm", "row"], "it cuts tensors in parts"),
        (["--split-mode", "tensor"], "it cuts tensors in parts"),
        (["-sm", "layer"], "a resident model is whole on one GPU"),
    ],
)
def test_refused(run, words, sentence):
    assert sentence in run(*words, status=2)[1]
    assert not run.daemon.models()


def test_no_model_that_is_here(run):
    assert "-m FILE is missing" in run(model=False, status=2)[1]
    assert "-hf names no file that is here" in run("-hf", "some/model", model=False, status=2)[1]
    assert "-mu names no file" in run("-mu", "some/where", model=False, status=2)[1]
    assert run("x", model=False, LLAMA_ARG_MODEL=str(run.model))[0]["words"] == ["x", "-ot", ".*=ROCmForge"]


def test_a_variable_is_an_option(run):
    assert "LLAMA_ARG_LOAD_MODE cannot be had" in run(status=2, LLAMA_ARG_LOAD_MODE="none")[1]


def test_another_plugin_is_there(run):
    assert "an engine loads only one" in run(status=2, GGML_BACKEND_PATH="/somebody/libggml-else.so")[1]
    assert run(GGML_BACKEND_PATH=str(PLUGIN))[0]["GGML_BACKEND_PATH"] == str(PLUGIN)


def test_one_benchmark_is_not_made_two(folder, start):
    run = Run(folder, start(), name="llama-bench")
    assert "another -ot for another test" in run("-ot", "x=CPU", status=2)[1]
    assert run()[0]["words"][2:] == ["-ot", ".*=ROCmForge"]


def test_no_daemon(run):
    run.daemon.stop()
    told, err = run("-ngl", "9")
    assert told["words"] == ["-m", str(run.model), "-ngl", "9"] and told["GGML_BACKEND_PATH"] is None
    assert "no daemon" in err and "ordinary way" in err
    _, err = run(status=3, ROCMFORGE_STRICT="1")
    assert "ROCMFORGE_STRICT is set" in err


def test_it_does_not_fit(folder, start):
    run = Run(folder, start("--budget", "2M"))
    told, err = run()
    assert told["words"] == ["-m", str(run.model)] and "ordinary way" in err
    run(status=1, ROCMFORGE_STRICT="1")


def test_no_such_file(run):
    told, err = run("-m", "/nothing/here.gguf")
    assert "-ot" not in told["words"] and "cannot" in err


@pytest.fixture
def gpu_run(folder, start, monkeypatch):
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_gpu_folder()))
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(harness.module_folder()))

    def make(gpus, backend=True):
        monkeypatch.setenv("FAKE_HIP_DEVICES", str(gpus))
        return Run(folder, start("--device", "hip"), gpu=backend)

    return make


def devices(run):
    return [model["device"] for model in run.daemon.models()]


def test_one_gpu(gpu_run):
    run = gpu_run(1)
    assert run()[0]["words"][2:] == ["-ot", ".*=ROCmForge"]
    assert devices(run) == ["hip:0"]


def test_some_layers(gpu_run):
    """The model has four, and the output."""
    run = gpu_run(1)
    told, err = run("-ngl", "2")
    assert told["words"][4:] == ["-ot", "^(token_embd|blk\\.(0|1|2))\\.=ROCmForge_Host"]
    assert "layers on the GPU are its own" in err and devices(run) == ["host"]
    assert run("-ngl", "0")[0]["words"][4:] == ["-ot", ".*=ROCmForge_Host"]
    assert run("-dev", "none")[0]["words"][4:] == ["-ot", ".*=ROCmForge_Host"]
    assert run("-ngl", "5")[0]["words"][4:] == ["-ot", ".*=ROCmForge"]
    assert devices(run) == ["host"] # whose name is taken: the plug-in finds another for the GPU's


def test_several_gpus(gpu_run):
    """Which of them is the engine's first, the plug-in knows, which has the model loaded."""
    run = gpu_run(2)
    assert run()[0]["words"][2:] == ["-ot", ".*=ROCmForge", "-sm", "none"]
    assert devices(run) == []
    run(before=["--device", "hip:1"])
    assert devices(run) == ["hip:1"]


def test_an_engine_that_may_have_no_gpu(gpu_run):
    run = gpu_run(1, backend=False)
    assert run()[0]["words"][2:] == ["-ot", ".*=ROCmForge"]
    assert devices(run) == []
