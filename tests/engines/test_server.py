"""llama-server says the same on shared weights as on its own, with whatever options people give it."""
import base64
import json
import random
import socket
import struct
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import make_llama
import pytest
from conftest import PLUGIN
from harness import TIMEOUT, build_folder, wait_until

PROMPTS = ["one two three", "w5 w6 w7 w8", "the the the", "a longer prompt of some words, and some more of them after that"]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server:
    """A llama-server that listens on a port of its own, until the block ends."""

    def __init__(self, engine, *words, shared, before=(), **env):
        self.port = free_port()
        self.log = tempfile.TemporaryFile()
        words = ["--host", "127.0.0.1", "--port", self.port, "-t", "1", *words]
        if shared and not before:
            words += ["-ot", ".*=ROCmForge"]
        self.process = engine.spawn([*before, engine.bin / "llama-server", *words], self.log, shared=shared and not before, **env)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.log.close()

    @property
    def said(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def ask(self, path, body=None, post=False, **more):
        data = json.dumps(body or more).encode() if body or more or post else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            return json.loads(reply.read())

    def ready(self):
        """Whether it came up; false if it ended."""

        def done():
            if self.process.poll() is not None:
                return True
            try:
                return self.ask("/health")["status"] == "ok"
            except OSError:
                return False

        wait_until(done, 3 * TIMEOUT)
        return self.process.poll() is None

    def complete(self, prompt, **more):
        body = {"prompt": prompt, "n_predict": 48, "temperature": 0, "ignore_eos": True, "return_tokens": True, "seed": 1, **more}
        return self.ask("/completion", **body)["tokens"]


def tokens_of(server):
    """One prompt after another, and one again, of which the server may have a part already."""
    return [server.complete(prompt) for prompt in [*PROMPTS, PROMPTS[0] + " and"]]


def run(engine, words, shared, ask=tokens_of, **env):
    """What a server answers, and what it wrote; None: it ended before."""
    with Server(engine, *words, shared=shared, **env) as server:
        return (ask(server) if server.ready() else None), server.said


def assert_same(engine, words, ask=tokens_of, **env):
    own, wrote = run(engine, words, False, ask, **env)
    if own is None:
        pytest.skip(f"this llama-server takes no {words}: {wrote[-300:]}")
    shared, wrote = run(engine, words, True, ask, **env)
    assert shared is not None, wrote[-3000:]
    assert "shared with other processes" in wrote, wrote[-3000:]
    assert shared == own


@pytest.fixture
def model(engine, llama):
    if not (engine.bin / "llama-server").exists():
        pytest.skip("there is no llama-server of this version")
    return llama()


BASE = ("-c", "1024", "--no-repack", "--no-warmup", "-ngl", "99")


@pytest.mark.parametrize(
    "options",
    [
        "",
        "-np 4 -cb",
        "-np 2 --no-cont-batching -b 64 -ub 16",
        "-ctk q8_0 -ctv q8_0 -fa on",
        "-fa off --no-kv-offload",
        "--cache-reuse 8 --slot-prompt-similarity 0.1",
        "--override-kv llama.rope.freq_base=float:50000",
        "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 1024",
        "--check-tensors",
        "--numa distribute",
        "--swa-full --no-context-shift",
        "--spec-type ngram-simple",
        "-lv 3 --metrics --slots --props",
        "-sm none -mg 0",
        "--cpu-moe",
        "-kvu -np 3 --cache-ram 0",
        "-bs",
        "--no-host --no-op-offload --poll 0 --prio 0",
        "--warmup",
        "-fit on -fitt 512 -fitc 256 -c 0",
        "-ngl all -ts 1,3",
        "-ngl auto",
        "-ot blk\\.1\\..*=CPU,output=CPU",
        "-ctk q4_0 -nkvo -fa on -ub 1",
        "--embd-normalize 1 --keep 4 --no-perf -v --log-jsonl",
    ],
)
def test_options(engine, model, options):
    assert_same(engine, ["-m", model, *BASE, *options.split()])


def test_experts_on_the_cpu(engine, model, llama):
    assert_same(engine, ["-m", llama("moe", "q8_0"), *BASE, "--n-cpu-moe", "1"])


def test_fewer_experts(engine, model, llama):
    words = ["-m", llama("moe", "q8_0"), *BASE, "--override-kv", "llama.expert_used_count=int:1"]
    assert_same(engine, words)


def test_a_control_vector(engine, model, folder):
    """A GGUF file too, which is no model."""
    make_llama.make_control_vector(folder / "vector.gguf")
    words = ["-m", model, *BASE]
    with_it = [*words, "--control-vector-scaled", f"{folder / 'vector.gguf'}:2.0", "--control-vector-layer-range", "1", "3"]
    assert run(engine, words, True)[0] != run(engine, with_it, True)[0]
    assert_same(engine, with_it)
    assert len(engine.daemon.models()) == 1


def test_an_adapter_that_comes_later(engine, model, folder):
    make_llama.make_lora(folder / "lora.gguf")

    def ask(server):
        before = tokens_of(server)
        server.ask("/lora-adapters", body=[{"id": 0, "scale": 0.5}])
        after = tokens_of(server)
        assert after != before
        return before, after

    assert_same(engine, ["-m", model, *BASE, "--lora", folder / "lora.gguf", "--lora-init-without-apply"], ask)


def test_a_slot_that_is_saved(engine, model, folder):
    def ask(server):
        said = [server.complete(PROMPTS[3], id_slot=0)]
        for action in ("save", "erase", "restore"):
            server.ask(f"/slots/0?action={action}", **({} if action == "erase" else {"filename": "slot.bin"}), post=True)
        return [*said, server.complete(PROMPTS[3] + " one two", id_slot=0)]

    assert_same(engine, ["-m", model, *BASE, "--slot-save-path", f"{folder}/", "--slots"], ask)


def test_a_model_that_drafts_for_itself(engine, model):
    """One file, that the engine has twice."""
    words = ["-m", model, *BASE, "-md", model, "--spec-type", "draft-simple"]
    own, wrote = run(engine, words, False)
    if own is None:
        pytest.skip(f"this llama-server cannot do so: {wrote[-300:]}")
    shared, wrote = run(engine, [*words, "-otd", ".*=ROCmForge"], True)
    assert shared == own, wrote[-3000:]
    assert wrote.count("shared with other processes") == 2 and len(engine.daemon.models()) == 1


def test_the_file_is_replaced_while_it_sleeps(engine, model, llama, folder):
    """It wakes up with the other model, as without the plug-in."""
    path, words = folder / "model.gguf", [*BASE, "--sleep-idle-seconds", "1"]
    make_llama.make(folder / "new.gguf", seed=7)
    own = [run(engine, ["-m", one, *BASE], False)[0] for one in (model, folder / "new.gguf")]
    path.write_bytes(model.read_bytes())
    with Server(engine, "-m", path, *words, shared=True) as server:
        if not server.ready() and "invalid argument" in server.said:
            pytest.skip("this llama-server does not sleep")
        assert tokens_of(server) == own[0]
        wait_until(lambda: server.ask("/props").get("is_sleeping"), TIMEOUT)
        (folder / "new.gguf").rename(path)
        assert tokens_of(server) == own[1]
        assert server.said.count("shared with other processes") == 2


def test_the_variable_and_the_option(engine, model):
    """llama.cpp takes the option alone: its tensors are where it says, and the variable is of no account."""
    own, _ = run(engine, ["-m", model, *BASE], False)
    env = {"LLAMA_ARG_OVERRIDE_TENSOR": ".*=ROCmForge"}
    with Server(engine, "-m", model, *BASE, shared=True, before=["env"], GGML_BACKEND_PATH=str(PLUGIN), **env) as server:
        assert server.ready() and tokens_of(server) == own
        assert "shared with other processes" in server.said


@pytest.mark.parametrize("name", ["a model, of = many.gguf", "-m.gguf", "m%20é\u4e16.gguf"])
def test_names_of_files(engine, model, folder, name):
    (folder / "target.gguf").write_bytes(model.read_bytes())
    (folder / name).symlink_to("target.gguf")
    assert_same(engine, ["-m", f"{folder}/../{folder.name}/{name}", *BASE])
    own, _ = run(engine, ["-m", folder / name, *BASE], False)
    rfctl = build_folder() / "client" / "rfctl" / "rfctl"
    with Server(engine, "-m", folder / name, *BASE, shared=True, before=[rfctl, "run"]) as server:
        assert server.ready() and tokens_of(server) == own
        assert "shared with other processes" in server.said


def test_a_router(engine, model, folder):
    """llama-server without a model starts another for each that is asked for, which inherits -ot and the plug-in."""
    models = folder / "models"
    models.mkdir()
    for name, seed in (("one", 1), ("two", 2)):
        make_llama.make(models / f"{name}.gguf", seed=seed)

    def ask(server):
        body = {"prompt": PROMPTS[0], "max_tokens": 32, "temperature": 0, "seed": 1, "ignore_eos": True}
        return [server.ask("/v1/completions", model=name, **body)["choices"][0]["text"] for name in ("one", "two")]

    words = ["--models-dir", models, *BASE]
    own, wrote = run(engine, words, False, ask)
    if own is None:
        pytest.skip(f"this llama-server is no router: {wrote[-300:]}")
    shared, wrote = run(engine, words, True, ask)
    assert shared == own
    assert wrote.count("shared with other processes") == 2 and len(engine.daemon.models()) == 2


def test_an_adapter(engine, model, folder):
    make_llama.make_lora(folder / "lora.gguf")
    assert_same(engine, ["-m", model, *BASE, "--lora-scaled", f"{folder / 'lora.gguf'}:0.5"])


def test_a_draft_model(engine, model, folder):
    make_llama.make(folder / "draft.gguf", seed=9)
    words = ["-m", model, *BASE, "-md", folder / "draft.gguf", "--spec-type", "draft-simple"]
    assert_same(engine, words)


def picture(seed):
    """A BMP file, in base64."""
    pixels = random.Random(seed).randbytes(64 * 64 * 3)
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + len(pixels), 0, 0, 54, 40, 64, 64, 1, 24, 0, len(pixels), 0, 0, 0, 0)
    return base64.b64encode(header + pixels).decode()


@pytest.mark.parametrize("by", ["-ot", "rfctl run"])
def test_a_projector(engine, model, folder, by):
    """Pictures become embeddings by a model of their own, which is not shared, beside shared weights."""
    make_llama.make_mmproj(folder / "mmproj.gguf")
    words = ["-m", model, *BASE, "--mmproj", folder / "mmproj.gguf"]

    def ask(server):
        marker = server.ask("/props")["media_marker"]
        return [
            server.complete({"prompt_string": f"one {marker} two three", "multimodal_data": [picture(seed)]}) for seed in (1, 2)
        ]

    own, wrote = run(engine, words, False, ask)
    assert own is not None, wrote[-3000:]
    assert own[0] != own[1], "the picture does not matter"
    before = [build_folder() / "client" / "rfctl" / "rfctl", "run"] if by == "rfctl run" else ()
    with Server(engine, *words, shared=True, before=before) as server:
        assert server.ready(), server.said[-3000:]
        assert ask(server) == own
        assert "shared with other processes" in server.said
    assert len(engine.daemon.models()) == 1


def test_several_at_once(engine, model):
    """Four clients of one server, which computes for all of them in one batch."""

    def ask(server):
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(server.complete, PROMPTS))

    assert_same(engine, ["-m", model, *BASE, "-np", "4", "-c", "2048"], ask)


def test_embeddings(engine, model):
    def ask(server):
        return [server.ask("/embedding", content=prompt) for prompt in PROMPTS]

    assert_same(engine, ["-m", model, *BASE, "--embeddings", "--pooling", "mean"], ask)


def test_options_as_variables(engine, model):
    env = {"LLAMA_ARG_MODEL": str(model), "LLAMA_ARG_N_GPU_LAYERS": "99", "LLAMA_ARG_CTX_SIZE": "512"}
    assert_same(engine, ["--no-repack", "--no-warmup"], **env)


@pytest.mark.parametrize("option", [["--no-mmap"], ["-lm", "none"], ["-lm", "mlock"]], ids=" ".join)
def test_without_a_mapping(engine, model, option):
    """The engine reads the weights itself then, and they are not shared, or the server does not start. It says which."""
    own, wrote = run(engine, ["-m", model, *BASE, *option], False)
    if own is None:
        pytest.skip(f"this llama-server has no {option}: {wrote[-300:]}")
    shared, wrote = run(engine, ["-m", model, *BASE, *option], True)
    assert "rocmforge: " in wrote, wrote[-3000:]
    assert shared in (None, own)


def test_sleeping(engine, model):
    """A server that sleeps gives its model up, and takes it again when somebody asks."""

    def ask(server):
        first = tokens_of(server)
        wait_until(lambda: server.ask("/props").get("is_sleeping"), TIMEOUT)
        assert tokens_of(server) == first
        return first

    own, wrote = run(engine, ["-m", model, *BASE, "--sleep-idle-seconds", "1"], False, ask)
    if own is None:
        pytest.skip(f"this llama-server does not sleep: {wrote[-300:]}")
    with Server(engine, "-m", model, *BASE, "--sleep-idle-seconds", "1", shared=True) as server:
        assert server.ready(), server.said[-3000:]
        assert tokens_of(server) == own
        wait_until(lambda: server.ask("/props").get("is_sleeping"), TIMEOUT)
        wait_until(lambda: [one["leases"] for one in engine.daemon.models()] == [0], TIMEOUT)
        assert tokens_of(server) == own
        assert server.said.count("shared with other processes") == 2


@pytest.mark.parametrize("options", ["-ngl 99", "-ngl 2", "-ngl 0", "-ngl 0 --no-op-offload"])
def test_rfctl_runs_it(engine, model, options):
    """It writes the pattern that belongs to -ngl, so that the same processors compute the same layers."""
    words = ["-m", model, *BASE[:-2], *options.split()]
    own, _ = run(engine, words, False)
    rfctl = build_folder() / "client" / "rfctl" / "rfctl"
    with Server(engine, *words, shared=True, before=[rfctl, "run"]) as server:
        assert server.ready(), server.said[-3000:]
        assert tokens_of(server) == own
        assert "shared with other processes" in server.said


def test_three_servers_and_no_daemon(engine, model):
    """They share one copy; and go on when the daemon is gone."""
    own, _ = run(engine, ["-m", model, *BASE], False)
    servers = [Server(engine, "-m", model, *BASE, shared=True) for _ in range(3)]
    try:
        for server in servers:
            assert server.ready(), server.said[-3000:]
        assert [one["leases"] for one in engine.daemon.models()] == [3]
        engine.daemon.process.kill()
        engine.daemon.process.wait()
        for server in servers:
            assert tokens_of(server) == own
    finally:
        for server in servers:
            server.__exit__()
