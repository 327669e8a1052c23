"""rfctl run, with a script in an engine's place that tells how it was started."""
import json
import os
import re
import signal
import subprocess
import time

import harness
import make_llama
import pytest
from harness import TIMEOUT, build_folder, fake_gpu_folder
from rfctl_rig import INTERRUPTED, Terminal

PLUGIN = build_folder() / "client" / "engines" / "llama" / "libggml-rocmforge.so"

pytestmark = pytest.mark.skipif(not PLUGIN.exists(), reason="this build has no plug-in for llama.cpp (-Dggml)")

SCRIPT = """#!/usr/bin/env python3
import json, os, sys
names = "GGML_BACKEND_PATH", "ROCMFORGE_SOCKET", "LLAMA_ARG_FIT"
print(json.dumps({"words": sys.argv[1:], **{name: os.environ.get(name) for name in names}}))
sys.exit(7)
"""


class Run:
    def __init__(self, folder, daemon, name="llama-server", backends=()):
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.daemon = daemon
        self.engine = self.folder / name
        self.engine.write_text(SCRIPT)
        self.engine.chmod(0o755)
        for backend in backends: # rfctl looks which there are
            (self.folder / f"libggml-{backend}.so").touch()
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
    assert all(line.startswith("rfctl: ") for line in err.splitlines()) and " is to share model (" in err
    [model] = run.daemon.models()
    assert (model["name"], model["form"], model["device"]) == ("model", "native", "host")
    assert "is to share model (" in run()[1] # it is there already


@pytest.mark.parametrize(
    "words, env, fit",
    [
        ([], {}, None),
        (["-c", "512"], {}, "off"),
        (["--ctx_size", "512"], {}, "off"),
        ([], {"LLAMA_ARG_CTX_SIZE": "512"}, "off"),
        (["-c", "0"], {"LLAMA_ARG_CTX_SIZE": "512"}, None),
        (["-c", "512", "--fit", "on"], {}, None),
        (["-c", "512", "-md", "draft.gguf"], {}, None),
        (["-c", "512"], {"LLAMA_ARG_FIT": "on"}, "on"),
    ],
)
def test_the_rehearsal_is_left_out(run, words, env, fit):
    """If the context's size is given, nothing is left for it to choose."""
    assert run(*words, **env)[0]["LLAMA_ARG_FIT"] == fit


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


@pytest.mark.parametrize("option", ["-p", "--prompt", "-r", "-sys", "--in_prefix"])
@pytest.mark.parametrize("text", ["-h", "--version", "-m"])
def test_a_text_is_no_option(run, option, text):
    """Even if it looks like one."""
    told, _ = run(option, text)
    assert told["words"][2:] == [option, text, "-ot", ".*=ROCmForge"]
    assert len(run.daemon.models()) == 1


READS = "the engine would read the whole file itself"
WHOLE = "a resident model is whole on one GPU"
DOWNLOADED = "it names no file that is here"
CHOOSES = "the engine would choose a model later"


def refusal(name, reason):
    return f"rfctl: {name} does not work with shared weights: {reason}"


@pytest.mark.parametrize(
    "words, name, reason",
    [
        (["-lm", "none"], "-lm", READS),
        (["--load-mode", "dio"], "--load-mode", READS),
        (["--load_mode", "mlock"], "--load-mode", READS),
        (["--no-mmap"], "--no-mmap", READS),
        (["-mmp", "0"], "-mmp", READS),
        (["-dio"], "-dio", READS),
        (["-lm", "mmap", "--no-mmap"], "--no-mmap", READS),
        (["-sm", "row"], "-sm", "it cuts tensors in parts"),
        (["-sm", "none", "--split-mode", "tensor"], "--split-mode", "it cuts tensors in parts"),
        (["-sm", "layer"], "-sm", WHOLE),
        (["-dev", "ROCm0,ROCm1"], "-dev", WHOLE),
        (["-hf", "some/model"], "-hf", DOWNLOADED),
        (["-dr", "some/model"], "-dr", DOWNLOADED),
    ],
)
def test_refused(run, words, name, reason):
    assert refusal(name, reason) in run(*words, status=2)[1]
    assert not run.daemon.models()


@pytest.mark.parametrize(
    "words",
    [
        ["-lm", "none", "-lm", "mmap"],
        ["--no-mmap", "--mmap"],
        ["-mmp", "0", "-mmp", "1"],
        ["-dio", "-ndio"],
        ["-sm", "row", "-sm", "none"],
        ["--split_mode", "layer", "-sm", "none"],
        ["-dev", "ROCm0,ROCm1", "--device", "ROCm0"],
    ],
)
def test_the_last_word_counts(run, words):
    """As in llama.cpp."""
    assert run(*words)[0]["words"][2:] == [*words, "-ot", ".*=ROCmForge"]


def test_the_last_model_counts(run):
    told, err = run("-m", run.model, "--model", "/nothing/here.gguf")
    assert "-ot" not in told["words"] and "/nothing/here.gguf" in err
    told, _ = run("-m", "/nothing/here.gguf", "-m", run.model)
    assert told["words"][-2:] == ["-ot", ".*=ROCmForge"]
    assert [model["name"] for model in run.daemon.models()] == ["model"]


def test_no_model(run):
    assert "-m FILE is missing" in run(model=False, status=2)[1]
    for words in (["-hf", "some/model"], ["-mu", "some/where"], ["--docker-repo", "some/model"]):
        assert refusal(words[0], "it names no file that is here") in run(*words, model=False, status=2)[1]
    for words in (["--models-dir", "/models"], ["--models-preset", "models.ini"]):
        assert refusal(words[0], CHOOSES) in run(*words, model=False, status=2)[1]
        assert run(*words)[0]["words"][-2:] == ["-ot", ".*=ROCmForge"] # llama-server takes -m, if there is one


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("LLAMA_ARG_LOAD_MODE", "none", READS),
        ("LLAMA_ARG_NO_MMAP", "0", READS),
        ("LLAMA_ARG_MMAP", "off", READS),
        ("LLAMA_ARG_SPLIT_MODE", "row", "it cuts tensors in parts"),
        ("LLAMA_ARG_DEVICE", "ROCm0,ROCm1", WHOLE),
        ("LLAMA_ARG_HF_REPO", "some/model", DOWNLOADED),
        ("LLAMA_ARG_MODEL_URL", "some/where", DOWNLOADED),
        ("LLAMA_ARG_DOCKER_REPO", "some/model", DOWNLOADED),
        ("LLAMA_ARG_MODELS_DIR", "/models", CHOOSES),
        ("LLAMA_ARG_MODELS_PRESET", "models.ini", CHOOSES),
    ],
)
def test_a_variable_is_an_option(run, name, value, reason):
    assert refusal(name, reason) in run(model=reason != CHOOSES, status=2, **{name: value})[1]


def test_words_count_more_than_variables(run):
    assert run("-lm", "mmap", LLAMA_ARG_LOAD_MODE="none")[0]
    assert run("-sm", "none", LLAMA_ARG_SPLIT_MODE="row")[0]
    assert run(LLAMA_ARG_MODEL="/nothing/here.gguf")[0]["words"][-2:] == ["-ot", ".*=ROCmForge"]
    assert run("x", model=False, LLAMA_ARG_MODEL=str(run.model))[0]["words"] == ["x", "-ot", ".*=ROCmForge"]
    assert run(LLAMA_ARG_MODELS_DIR="/models")[0] # of no account where a model is named
    assert "not locked" in run(LLAMA_ARG_MLOCK="1")[1]
    assert "not locked" not in run(LLAMA_ARG_MLOCK="0")[1]


def test_what_is_not_shared_is_told(run):
    assert "the draft model is its own" in run("-md", "draft.gguf")[1]
    assert "the draft model is its own" in run(LLAMA_ARG_SPEC_DRAFT_MODEL="draft.gguf")[1]
    assert "draft" not in run("-md", "draft.gguf", "-otd", ".*=ROCmForge")[1]
    assert "what -cmoe keeps on the CPU is its own" in run("-cmoe")[1]
    assert "what -ncmoe keeps on the CPU is its own" in run("-ncmoe", "1")[1]
    assert "keeps on the CPU" not in run("-ncmoe", "0")[1]
    assert "not locked" in run("--mlock")[1]


def test_another_plugin_is_there(run):
    assert "an engine loads only one" in run(status=2, GGML_BACKEND_PATH="/somebody/libggml-else.so")[1]
    assert run(GGML_BACKEND_PATH=str(PLUGIN))[0]["GGML_BACKEND_PATH"] == str(PLUGIN)


def test_one_benchmark_is_not_made_two(folder, start):
    run = Run(folder, start(), name="llama-bench")
    assert "another -ot for another test" in run("-ot", "x=CPU", status=2)[1]
    assert run()[0]["words"][2:] == ["-ot", ".*=ROCmForge"]
    more = "llama-bench makes a test for each value: run it once for each"
    for words in (["-m", "other.gguf"], ["-ngl", "0,99"], ["-ngl", "0-99+33"], ["-ngl", "1", "-ngl", "2"], ["-mmp", "0,1"]):
        name = words[0]
        assert refusal(name, more) in run(*words, status=2)[1]
    assert run("-ngl", "99", "-p", "16,32", LLAMA_ARG_LOAD_MODE="none")[0] # it reads no variables


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

    def make(gpus, backends=("hip", "cpu"), options=()):
        monkeypatch.setenv("FAKE_HIP_DEVICES", str(gpus))
        return Run(folder, start("--device", "hip", *options), backends=backends)

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
    assert run("-ngl", "0", "-ngl", "5")[0]["words"][6:] == ["-ot", ".*=ROCmForge"]
    assert devices(run) == ["host"] # whose name is taken: the plug-in finds another for the GPU's


def test_some_layers_and_no_gpu(run):
    """The daemon has none, and the engine has none that is known: nothing is left out."""
    told, err = run("-ngl", "2")
    assert told["words"][4:] == ["-ot", ".*=ROCmForge_Host"]
    assert "all layers are in host memory" in err and "its own" not in err
    (run.folder / "libggml-cpu-haswell.so").touch()
    told, err = run("-ngl", "2")
    assert told["words"][4:] == ["-ot", ".*=ROCmForge_Host"] and "its own" not in err
    (run.folder / "libggml-vulkan.so").touch() # whose layers cannot be shared
    told, err = run("-ngl", "2")
    assert told["words"][4:] == ["-ot", "^(token_embd|blk\\.(0|1|2))\\.=ROCmForge_Host"] and "its own" in err


def test_an_engine_without_gpus(gpu_run):
    run = gpu_run(1, backends=("cpu", "base"))
    assert run("-ngl", "2")[0]["words"][4:] == ["-ot", ".*=ROCmForge_Host"]
    assert run("-ngl", "99")[0]["words"][4:] == ["-ot", ".*=ROCmForge"]
    assert devices(run) == ["host"]


@pytest.mark.parametrize("backend, reason", [("hip", "the daemon has no GPU"), ("vulkan", "cannot be shared on such GPUs")])
def test_gpus_on_which_nothing_is_shared(folder, start, backend, reason):
    """The engine would have all weights on its first GPU, or compute with the CPU: it gets the user's words."""
    run = Run(folder, start(), backends=(backend, "cpu"))
    for words in ([], ["-ngl", "99"]):
        told, err = run(*words)
        assert told["words"] == ["-m", str(run.model), *words] and told["GGML_BACKEND_PATH"] is None
        assert reason in err and "ordinary way" in err
    assert "is not run" in run(status=1, ROCMFORGE_STRICT="1")[1]
    assert devices(run) == []
    assert run("-ngl", "2")[0]["words"][-1] == "^(token_embd|blk\\.(0|1|2))\\.=ROCmForge_Host"
    assert run("-ngl", "99", before=["--device", "host"])[0]["words"][4:] == ["-ot", ".*=ROCmForge_Host"]
    assert devices(run) == ["host"]


def test_a_backend_for_other_machines(folder, start):
    """Every release has the one for machines in the network (--rpc)."""
    run = Run(folder, start(), backends=("cpu", "rpc"))
    assert run("-ngl", "99")[0]["words"][4:] == ["-ot", ".*=ROCmForge"] and devices(run) == ["host"]


def test_it_fits_on_one_of_two_gpus(gpu_run, folder):
    """It is there already. The other one may be the engine's first, and has no room."""
    run = gpu_run(2, options=["--budget", "9M"])
    make_llama.make(folder / "other.gguf", seed=2)
    run.daemon.rfctl("load", folder / "other.gguf", "--as", "native", "--device", "hip:0", "--pin")
    run.daemon.rfctl("load", run.model, "--as", "native", "--device", "hip:1")
    for before in ([], ["--device", "hip:1"]):
        told, err = run(before=before)
        assert told["words"] == ["-m", str(run.model)] and "ordinary way" in err
        assert "is on hip:1, and does not fit on each of the daemon's GPUs" in err and "name it with -dev" in err
    assert run("-dev", "ROCm1")[0]["words"][4:] == ["-ot", ".*=ROCmForge1"]
    assert run("-dev", "ROCm1", before=["--device", "hip:1"])[0]["words"][4:] == ["-ot", ".*=ROCmForge1"]
    assert devices(run) == ["hip:0", "hip:1"]
    run.daemon.rfctl("unload", "model")
    assert "fits on one, and does not fit on each" in run()[1]
    assert devices(run) == ["hip:0"]


@pytest.mark.parametrize("layers", [1 << 62, (1 << 64) - 1])
def test_more_layers_than_can_be(run, folder, layers):
    """What stands in a file is not believed: each layer has a tensor."""
    make_llama.make(folder / "layers.gguf", layers=layers)
    (run.folder / "libggml-vulkan.so").touch()
    began = time.monotonic()
    told, _ = run("-m", folder / "layers.gguf", "-ngl", "2")
    assert told["words"][-2:] == ["-ngl", "2"] and time.monotonic() - began < 20


def test_several_gpus(gpu_run):
    """Which of them is the engine's first, the plug-in knows, which has the model loaded."""
    run = gpu_run(2)
    assert run()[0]["words"][2:] == ["-ot", ".*=ROCmForge", "-sm", "none"]
    assert run("-dev", "ROCm1")[0]["words"][4:] == ["-ot", ".*=ROCmForge1"]
    assert run("-dev", "ROCm0")[0]["words"][4:] == ["-ot", ".*=ROCmForge"]
    assert run("-mg", "1")[0]["words"][4:] == ["-ot", ".*=ROCmForge1", "-sm", "none"]
    assert run("-sm", "none", "-mg", "1")[0]["words"][6:] == ["-ot", ".*=ROCmForge1"]
    assert devices(run) == []
    _, err = run(before=["--device", "hip:1"])
    assert devices(run) == ["hip:1"] and "if it is the engine's GPU" in err


def test_the_daemons_device_decides(gpu_run):
    run = gpu_run(2)
    assert run(before=["--device", "host"])[0]["words"][2:] == ["-ot", ".*=ROCmForge_Host"]
    assert devices(run) == ["host"]
    assert run("-ngl", "2", before=["--device", "host"])[0]["words"][4:] == ["-ot", ".*=ROCmForge_Host"]
    assert "--device hip:0 contradicts -ngl" in run("-ngl", "2", before=["--device", "hip:0"], status=2)[1]
    assert "--device hip:0 contradicts -dev none" in run("-dev", "none", before=["--device", "hip:0"], status=2)[1]


def test_an_engine_whose_backends_are_elsewhere(gpu_run):
    """In a distribution's folder, or in the program itself: the one GPU is taken for the engine's."""
    run = gpu_run(1, backends=())
    told, err = run()
    assert told["words"][2:] == ["-ot", ".*=ROCmForge"]
    assert devices(run) == ["hip:0"] and "is to share model (" in err


NO_ROOM = "of the daemon's GPUs, and shared weights are whole on one (-sm none)"


@pytest.mark.parametrize("backends", [("hip", "cpu"), ()])
def test_it_fits_on_no_single_gpu(gpu_run, backends):
    """llama.cpp can spread it over both: it gets the user's words, and no -sm none."""
    run = gpu_run(2, backends, ["--budget", "2M"])
    for words in ([], ["-ngl", "99"], ["-mg", "1"], ["-dev", "ROCm1"]):
        told, err = run(*words)
        assert told["words"] == ["-m", str(run.model), *words] and told["GGML_BACKEND_PATH"] is None
        assert "does not fit on any " + NO_ROOM in err and "ordinary way" in err
    assert "is not run" in run(status=1, ROCMFORGE_STRICT="1")[1]


@pytest.mark.parametrize("backends", [("hip", "cpu"), ()])
def test_it_does_not_fit_on_the_gpu(gpu_run, backends):
    """Then llama.cpp's own choice of layers that fit is not turned off by our -ot."""
    run = gpu_run(1, backends, ["--budget", "2M"])
    told, err = run()
    assert told["words"] == ["-m", str(run.model)] and "ordinary way" in err


def test_one_of_two_gpus_is_told(gpu_run):
    run = gpu_run(2)
    assert "uses one GPU (-sm none)" in run()[1]
    assert "-sm none" not in run("-dev", "ROCm1")[1]


def test_what_the_host_computes_is_told(run):
    said = "what the CPU computes with them is as with --no-repack"
    assert run()[1].count(said) == 1


def test_what_a_gpu_computes_is_the_same(gpu_run):
    assert "--no-repack" not in gpu_run(1)()[1]


def test_the_progress_on_a_terminal(folder, held_daemon, gate, gated_model):
    """A bar while the model is loaded, which is gone when the engine starts: the terminal is the engine's then."""
    run = Run(folder, held_daemon)
    modules = {"ROCMFORGE_MODULE_DIR": f"{harness.module_folder()}:{PLUGIN.parent}"}
    terminal = Terminal(held_daemon, "run", run.engine, "-m", gated_model, columns=100, env=modules)
    bar = re.compile(r"filling +\[#*\.*\] +\d+%")
    harness.wait_until(lambda: terminal.read(0.02) and any(map(bar.match, terminal.bars())))
    gate.open()
    assert terminal.wait() == 7
    told, words = "".join(terminal.screen()).split('{"words": ')
    assert told.startswith("rfctl: ") and "is to share gated" in told and "[" not in told
    assert words.startswith('["-m"')


def test_an_interrupt_while_the_model_is_loaded(folder, held_daemon, gate, gated_model):
    """Then there is no engine."""
    run = Run(folder, held_daemon)
    modules = {"ROCMFORGE_MODULE_DIR": f"{harness.module_folder()}:{PLUGIN.parent}"}
    terminal = Terminal(held_daemon, "run", run.engine, "-m", gated_model, env=modules)
    harness.wait_until(lambda: terminal.read(0.02) and len(terminal.bars()) > 1)
    terminal.press(b"\x03")
    assert terminal.wait() == INTERRUPTED
    assert "words" not in "".join(terminal.screen())
    gate.open()
