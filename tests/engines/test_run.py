"""rfctl run: one word before the engine's own command."""
import signal
import subprocess

import pytest
from conftest import Engine, agree
from harness import build_folder


def test_it_shares(engine, llama):
    own = engine.run(llama(), shared=False)
    first, second = engine.rfctl_run(llama()), engine.rfctl_run(llama())
    for done in (first, second):
        assert done.status == 0 and agree(done.said, own.said), done.err[-2000:]
        assert done.shared and any(line.startswith("rfctl: ") and " is to share " in line for line in done.told)
    [model] = engine.daemon.models()
    assert model["form"] == "native"


def test_the_rehearsal_is_left_out(engine, llama):
    """The engine's, which tries what fits into memory: the words say how large the context is."""
    rehearses = "fitting params to device memory"
    assert rehearses in engine.run(llama(), "-lv", "4").err
    done = engine.rfctl_run(llama(), "-lv", "4")
    assert done.status == 0 and "shared with other processes" in done.err and rehearses not in done.err
    assert rehearses in engine.rfctl_run(llama(), "-lv", "4", "--fit", "on").err


def test_layers_on_the_host(gpu_engine, llama):
    """-ngl 2 of 4 layers and the output: the first three are the CPU's, and shared; -ngl 0: all."""
    own = gpu_engine.run(llama(), "-ngl", "2", shared=False)
    done = gpu_engine.rfctl_run(llama(), "-ngl", "2")
    assert done.status == 0 and agree(done.said, own.said) and done.shared
    done = gpu_engine.rfctl_run(llama(), "-ngl", "0")
    assert done.status == 0 and done.shared
    assert {model["device"] for model in gpu_engine.daemon.models()} == {"host"}


def test_the_engines_exit_status(host_engine, llama, folder):
    done = host_engine.rfctl_run(llama(), "--no-such-option")
    assert done.status == host_engine.run(llama(), "--no-such-option", shared=False).status != 0
    rfctl = build_folder() / "client" / "rfctl" / "rfctl"
    assert host_engine.call(rfctl, "run", "sh", "-m", llama(), shared=False).status != 0
    assert host_engine.call(rfctl, "run", folder / "nothing", "-m", llama(), shared=False).status == 127


def test_options_of_rfctl_stand_before(host_engine, llama):
    done = host_engine.rfctl_run(llama(), before=["--pin", "--name", "mine"])
    assert done.status == 0 and done.shared, done.err
    [model] = host_engine.daemon.models()
    assert model["name"] == "mine" and model["pinned"]


# What says the same as without rfctl, or is refused with this sentence.
ODD = {
    "read whole": (["-lm", "none"], "read the whole file itself"),
    "read whole, as older versions say it": (["--no-mmap"], "read the whole file itself"),
    "mapped after all": (["-lm", "none", "-lm", "mmap"], None),
    "rows split": (["-sm", "row"], "cuts tensors in parts"),
    "tensors split": (["-sm", "tensor"], "cuts tensors in parts"),
    "layers split": (["-sm", "layer"], "whole on one GPU"),
    "the first GPU": (["-sm", "none"], None),
    "the second GPU": (["-sm", "none", "-mg", "1"], None),
    "the second device": (["-dev", "ROCm1"], None),
    "two devices": (["-dev", "ROCm0,ROCm1"], "whole on one GPU"),
    "no device": (["-dev", "none"], None),
    "no layer": (["-ngl", "0"], None),
    "some layers": (["-ngl", "2"], None),
    "all layers": (["-ngl", "99"], None),
    "experts on the CPU": (["-cmoe"], None),
    "the first layer's experts on the CPU": (["-ncmoe", "1"], None),
    "a pattern of one's own": (["-ot", "blk\\.1\\.=CPU"], None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_options(gpus_engine, llama, name):
    options, sentence = ODD[name]
    model = llama("moe", "q8_0") if "cmoe" in options[0] else llama()
    done = gpus_engine.rfctl_run(model, *options)
    if sentence:
        assert done.status == 2 and sentence in done.err
        return
    own = gpus_engine.run(model, *options, shared=False)
    assert own.status == 0, own.err[-2000:]
    assert done.status == 0 and agree(done.said, own.said), done.err[-2000:]
    assert done.shared or any("not shared" in line for line in done.told), done.told


def test_no_daemon(host_engine, llama):
    host_engine.daemon.stop()
    own = host_engine.run(llama(), shared=False)
    done = host_engine.rfctl_run(llama())
    assert done.status == 0 and agree(done.said, own.said) and "ordinary way" in done.err
    done = host_engine.rfctl_run(llama(), ROCMFORGE_STRICT="1")
    assert done.status == 3 and "is not run" in done.err


def test_what_fits_only_on_two_gpus(narrow_engine, llama):
    """67 MB: the engine spreads them, with rfctl as without. No weights are shared."""
    model = llama("small")
    own = narrow_engine.run(model, "-ngl", "99", shared=False)
    assert own.status == 0, own.err[-2000:]
    done = narrow_engine.rfctl_run(model, "-ngl", "99")
    assert done.status == 0 and agree(done.said, own.said), done.err[-2000:]
    assert not done.shared and any("(-sm none)" in line for line in done.told) and "ordinary way" in done.err


def test_what_is_on_the_second_gpu_only(half_full_engine, llama):
    """The first, which the engine would use, has no room: it is started in the ordinary way, unless the GPU is named."""
    engine, model = half_full_engine, llama()
    own = engine.run(model, "-ngl", "99", shared=False)
    engine.daemon.rfctl("load", model, "--as", "native", "--device", "hip:1")
    for before in ([], ["--device", "hip:1"]):
        done = engine.rfctl_run(model, "-ngl", "99", before=before)
        assert done.status == 0 and agree(done.said, own.said) and not done.shared, done.err[-2000:]
        assert any("is on hip:1" in line and "-dev" in line for line in done.told), done.told
    done = engine.rfctl_run(model, "-ngl", "99", "-dev", "ROCm1")
    assert done.status == 0 and agree(done.said, own.said) and done.shared, done.err[-2000:]
    assert sorted(one["device"] for one in engine.daemon.models()) == ["hip:0", "hip:1"]


def test_a_daemon_without_gpus(api, start, folder, llama, monkeypatch):
    """The engine has two, over which it spreads a model: as without rfctl."""
    monkeypatch.setenv("FAKE_GPUS", "2")
    monkeypatch.setenv("FAKE_GPU_LIMIT", "50000000")
    engine, model = Engine(api, True, start(), folder), llama("small")
    own = engine.run(model, "-ngl", "99", shared=False)
    assert own.status == 0, own.err[-2000:]
    done = engine.rfctl_run(model, "-ngl", "99")
    assert done.status == 0 and agree(done.said, own.said) and not done.shared, done.err[-2000:]
    assert any("the daemon has no GPU" in line for line in done.told), done.told
    done = engine.rfctl_run(model, "-ngl", "99", before=["--device", "host"])
    assert done.status == 0 and agree(done.said, own.said) and done.shared, done.err[-2000:]


def test_a_signal_ends_the_engine(host_engine, llama):
    rfctl = build_folder() / "client" / "rfctl" / "rfctl"
    command = [rfctl, "run", host_engine.bin / "llama-completion", *host_engine.words(llama(), tokens=200)]
    process = subprocess.Popen(
        list(map(str, command)), env=host_engine.environment(False), cwd=host_engine.cwd, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )
    assert process.stdout.read(1)
    process.send_signal(signal.SIGTERM) # to the engine: it is the same process
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
