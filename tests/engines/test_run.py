"""rfctl run: one word before the engine's own command."""
import signal
import subprocess

import pytest
from conftest import agree
from harness import build_folder


def test_it_shares(engine, llama):
    own = engine.run(llama(), shared=False)
    first, second = engine.rfctl_run(llama()), engine.rfctl_run(llama())
    for done in (first, second):
        assert done.status == 0 and agree(done.said, own.said), done.err[-2000:]
        assert done.shared and any(line.startswith("rfctl: ") and " shares " in line for line in done.told)
    [model] = engine.daemon.models()
    assert model["form"] == "native"


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


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["-lm", "none"], "read the whole file itself"),
        (["--no-mmap"], "read the whole file itself"),
        (["-sm", "row"], "cuts tensors in parts"),
        (["-sm", "layer"], "whole on one GPU"),
    ],
)
def test_what_cannot_be_had_is_refused(host_engine, llama, options, sentence):
    done = host_engine.rfctl_run(llama(), *options)
    assert done.status == 2 and sentence in done.err


def test_no_daemon(host_engine, llama):
    host_engine.daemon.stop()
    own = host_engine.run(llama(), shared=False)
    done = host_engine.rfctl_run(llama())
    assert done.status == 0 and agree(done.said, own.said) and "ordinary way" in done.err
    done = host_engine.rfctl_run(llama(), ROCMFORGE_STRICT="1")
    assert done.status == 3 and "is not run" in done.err


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
