"""llama.cpp says the same on shared weights as on its own."""
import ctypes
import json
import mmap
import os
import re
import signal
from pathlib import Path

import make_llama
import pytest
from conftest import agree, take


def assert_same(engine, model, *options, tokens=64, **keywords):
    own = engine.run(model, *options, tokens=tokens, shared=False)
    assert own.status == 0 and own.said, own.err[-2000:]
    shared = engine.run(model, *options, tokens=tokens, **keywords)
    assert shared.status == 0, shared.err[-2000:]
    assert shared.shared and not any("not shared" in line for line in shared.told), shared.told
    assert agree(shared.said, own.said)
    return shared


@pytest.mark.parametrize(
    "shape, type_, tied",
    [("tiny", "q4_0", False), ("tiny", "f16", False), ("tiny", "q6_K", True), ("moe", "q8_0", False), ("padded", "q4_0", False)],
)
def test_same_tokens(engine, llama, shape, type_, tied):
    assert_same(engine, llama(shape, type_, tied), tokens=130) # of some five and a half bytes each: more than 64


def test_same_tokens_of_a_real_model(engine, gemma):
    assert_same(engine, gemma, tokens=110) # of some five bytes each: more than 64


def cached(path):
    """The part of a file that is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as whole:
        pages = -(-len(whole) // mmap.PAGESIZE)
        present = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(whole)
        address = ctypes.addressof(start)
        del start
        assert libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(whole)), present) == 0
        return sum(page & 1 for page in present) / pages


def forget(path):
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path) > 0.01:
        pytest.skip("this file system lets go of nothing")


def test_the_file_is_not_read_again(host_engine, llama):
    """llama.cpp reads ahead all of what it maps; with resident weights it reads the header."""
    model = llama("small", "f16")
    forget(model)
    assert host_engine.run(model, tokens=8, shared=False).status == 0
    assert cached(model) > 0.99
    host_engine.daemon.rfctl("load", model, "--as", "native", "--device", "host")
    forget(model)
    done = host_engine.run(model, tokens=8)
    assert done.status == 0 and done.shared
    assert cached(model) < 0.2
    forget(model)
    assert host_engine.run(model, tokens=8, ROCMFORGE_PREFETCH="1").status == 0
    assert cached(model) > 0.99


def test_a_split_model(engine, folder):
    paths = make_llama.make_split(folder)
    assert_same(engine, paths[0])
    assert len(engine.daemon.models()) == 1


def test_an_adapter(engine, llama, folder):
    """Its own memory, beside shared weights; and it changes what is said."""
    make_llama.make_lora(folder / "lora.gguf")
    changed = assert_same(engine, llama(), "--lora", folder / "lora.gguf")
    assert not agree(changed.said, engine.run(llama()).said)


def embed(engine, *words, shared):
    """The embeddings that llama-embedding prints. It may lose the end of it when it ends, see listen(): then it is asked
    again."""
    for _ in range(10):
        done = engine.call(engine.bin / "llama-embedding", *words, shared=shared)
        assert done.status == 0 and done.shared == shared, done.err[-2000:]
        try:
            return [one["embedding"] for one in json.loads(done.said)["data"]]
        except ValueError:
            continue
    pytest.skip("llama-embedding loses what it prints")


def test_embeddings(engine, llama):
    words = ["-m", llama(), "-p", "one two three", "-t", "1", "--pooling", "mean", "--no-repack", "--embd-output-format", "json"]
    [own] = embed(engine, *words, shared=False)
    assert len(own) == 512 and any(own)
    assert embed(engine, *words, "-ot", ".*=ROCmForge", shared=True) == [own]


@pytest.mark.parametrize("how", ["killed", "unloaded"])
def test_the_daemon_lets_go_while_it_generates(engine, llama, how):
    model = llama("padded")
    whole = engine.run(model, tokens=200)
    process = engine.start("llama-completion", *engine.words(model, "-ot", ".*=ROCmForge", tokens=200))
    said = process.stdout.read(1)
    if how == "killed":
        os.kill(engine.daemon.pid, signal.SIGKILL)
        engine.daemon.process.wait()
    else:
        engine.daemon.rfctl("unload", engine.daemon.models()[0]["name"], "--force")
    said += take(process, len(whole.said) - 1)
    process.kill()
    process.communicate()
    assert said == whole.said and len(said) == 600


def test_no_daemon(engine, llama):
    engine.daemon.stop()
    own = engine.run(llama(), shared=False)
    fallen = engine.run(llama())
    assert fallen.status == 0 and agree(fallen.said, own.said)
    assert any("ordinary way" in line for line in fallen.told)
    assert engine.run(llama(), ROCMFORGE_STRICT="1").status != 0


def pss(pid):
    """In bytes."""
    return int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), re.M)[1]) << 10


def test_memory_of_three(host_engine, gemma):
    """Three processes on shared weights take less than one and two thirds that read the file themselves."""

    def three(shared, *options):
        override = ["-ot", ".*=ROCmForge"] if shared else []
        words = host_engine.words(gemma, *override, *options, tokens=200)
        processes = [host_engine.start("llama-completion", *words, shared=shared) for _ in range(3)]
        try:
            for process in processes:
                assert process.stdout.read(1)
            return sum(pss(process.pid) for process in processes)
        finally:
            for process in processes:
                process.kill()
                process.communicate()

    own, shared = three(False, "-lm", "none"), three(True)
    print(f"PSS of three: {own / 1e6:.0f} MB with weights of their own, {shared / 1e6:.0f} MB shared")
    assert shared < own - 400e6 # two copies of 247 MB
    [model] = host_engine.daemon.models()
    assert model["bytes"] < 300e6


# What has to say the same as without the plug-in, or be refused with a sentence.
ODD = {
    "read whole": ["-lm", "none"],
    "direct": ["-lm", "dio"],
    "locked": ["-lm", "mlock"],
    "mapped and locked": ["-lm", "mmap+mlock"],
    "no layer on the GPU": ["-ngl", "0"],
    "some layers": ["-ngl", "2"],
    "all layers": ["-ngl", "99"],
    "one GPU": ["-sm", "none", "-mg", "0", "-ngl", "99"],
    "layers split": ["-sm", "layer"],
    "checked": ["--check-tensors"],
    "overridden": ["--override-kv", "llama.context_length=int:2048"],
    "numa": ["--numa", "distribute"],
    "some on the CPU": ["-ot", "blk\\.0\\..*=CPU"],
    "no cache on the GPU": ["--no-kv-offload"],
    "a quantised cache": ["-ctk", "q8_0"],
    "small batches": ["-b", "16", "-ub", "8"],
    "lazy": ["-lzm", "on"],
    "not fitted": ["--fit", "off"],
    "experts on the CPU": ["-cmoe"],
    "the first layer's experts on the CPU": ["-ncmoe", "1"],
    "rows split": ["-sm", "row"],
    "read whole, as older versions say it": ["--no-mmap"],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_options(engine, llama, name):
    options = ODD[name]
    # The pattern goes before -ngl: all weights are on the GPU, and numbers are those that come of computing there.
    placed = ["-ot", ".*=ROCm0"] if engine.gpu and "-ngl" in options else []
    model = llama("moe", "q8_0") if "cmoe" in options[0] else llama()
    own = engine.run(model, *options, *placed, shared=False)
    if own.status != 0 and "-mg" in options:
        pytest.skip("this engine has no GPU to choose")
    if own.status != 0 and "invalid argument" in own.err:
        pytest.skip(f"this version has no {options[0]}")
    if own.status != 0 and "row" in options: # newer versions: the stand-in has no buffers that are split
        assert engine.run(model, *options).status != 0
        return
    assert own.status == 0, own.err[-2000:]
    shared = engine.run(model, *options)
    assert shared.status == 0, shared.err[-2000:]
    assert agree(shared.said, own.said)
    if not shared.shared: # then it was said why
        assert any("not shared" in line for line in shared.told), shared.told
    assert_verified(engine)


# Of two GPUs: options, the pattern, and whether tokens are the same; or the sentence with which the engine ends.
IMPOSSIBLE = "cannot run the operation"
PLACES = {
    "layers split": (["-sm", "layer"], ".*=ROCmForge", None),
    "the first GPU": (["-sm", "none"], ".*=ROCmForge", None),
    "the second GPU": (["-sm", "none", "-mg", "1"], ".*=ROCmForge1", None),
    "the second device": (["-dev", "ROCm1"], ".*=ROCmForge1", None),
    "one half on each": (["-sm", "layer"], "blk\\.[01]\\..*=ROCmForge,.*=ROCmForge1", None),
    "no device": (["-dev", "none"], ".*=ROCmForge_Host", None),
    "another device": (["-dev", "ROCm1"], ".*=ROCmForge", IMPOSSIBLE),
    "no device, and a GPU's memory": (["-dev", "none"], ".*=ROCmForge", IMPOSSIBLE),
    "tensors split": (["-sm", "tensor"], ".*=ROCmForge", "nothing is computed on it"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places(gpus_engine, llama, name):
    options, pattern, sentence = PLACES[name]
    options = [*options, "-ngl", "99"]
    own = gpus_engine.run(llama(), *options, shared=False)
    if own.status != 0 and "tensor" in options:
        pytest.skip("the stand-in for a GPU cannot be used so, without the plug-in either")
    assert own.status == 0, own.err[-2000:]
    shared = gpus_engine.run(llama(), *options, pattern=pattern)
    if sentence:
        assert shared.status != 0 and sentence in shared.err, shared.err[-2000:]
        return
    assert shared.status == 0 and shared.shared, shared.err[-2000:]
    assert agree(shared.said, own.said)
    assert_verified(gpus_engine)


@pytest.mark.parametrize("shared_draft", [False, True])
def test_a_draft_model(engine, llama, folder, shared_draft):
    """With greedy sampling the text does not depend on the draft, and is that of the model alone."""
    program = engine.bin / "llama-speculative-simple"
    if not program.exists():
        pytest.skip("this llama.cpp has no llama-speculative-simple")
    draft = folder / "draft.gguf"
    make_llama.make(draft, seed=9)
    words = ["-m", llama(), "-md", draft, "--spec-type", "draft-simple", "-p", "one two three", "-n", "200", "--temp", "0"]
    words += ["-t", "1", "-c", "512", "--no-repack"]
    override = ["-ot", ".*=ROCmForge", *(["-otd", ".*=ROCmForge"] if shared_draft else [])]
    own = engine.listen(program, *words, tokens=100, shared=False)
    if own.status != 0:
        pytest.skip("this llama-speculative-simple cannot be used so: " + own.err[-200:])
    shared = engine.listen(program, *words, *override, tokens=100)
    assert shared.status == 0 and shared.shared, shared.err[-2000:]
    assert agree(shared.said, own.said), (shared.said, own.said)
    assert len(engine.daemon.models()) == 1 + shared_draft


def assert_verified(engine):
    """Nobody wrote to what is everybody's."""
    for model in engine.daemon.models():
        assert "every bit" in engine.daemon.rfctl("verify", model["name"]).stdout


def test_the_file_is_deleted_meanwhile(engine, llama, folder):
    model = folder / "model.gguf"
    model.write_bytes(llama().read_bytes())
    assert_same(engine, model)
    process = engine.start("llama-completion", *engine.words(model, "-ot", ".*=ROCmForge", tokens=100))
    said = process.stdout.read(1)
    model.unlink()
    said += take(process, 299)
    process.kill()
    process.communicate()
    assert said == engine.run(llama(), tokens=100).said
    assert engine.run(model).status != 0 # as without


def test_another_file_of_the_same_name(engine, llama, folder):
    """Its name, tensors and size are those of what is resident."""
    model = folder / "model.gguf"
    model.write_bytes(llama().read_bytes())
    first = assert_same(engine, model)
    model.unlink()
    make_llama.make(model, seed=7)
    assert not agree(assert_same(engine, model).said, first.said)


def test_bench(engine, llama):
    done = engine.call(
        engine.bin / "llama-bench", "-m", llama(), "-p", "16", "-n", "4", "-r", "1", "-t", "1", "-ot", ".*=ROCmForge"
    )
    assert done.status == 0 and done.shared, done.err[-2000:]
