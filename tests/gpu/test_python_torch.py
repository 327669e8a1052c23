"""The Python package and a GPU: what torch and transformers make of a model there, in a process of their own, held
against what the gguf package decodes on the CPU, and ggml's own values.

torch sees no GPU in tests/fake_hip. There, these tests have the model in host memory if there is a torch: so they are
tried before they run on a GPU. ROCMFORGE_GEMMA names a file of Gemma-3-270M.
"""
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys

import make_model
import pytest
from conftest import FAKE, write_model
from harness import ROOT, build_folder, library_environment

CHILD = ROOT / "tests" / "gpu" / "python_child.py"
TIMEOUT = 400
needs_gpu = pytest.mark.skipif(FAKE, reason="needs a GPU")
# Where a child finds modules, besides those that are installed.
FOLDERS = [ROOT / "client/python/src", ROOT / "tests/python", ROOT / "tests/lib"]


def environment(daemon=None):
    more = {
        "ROCMFORGE_LIBRARY": str(build_folder() / "client"),
        "PYTHONPATH": os.pathsep.join(map(str, (*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])))),
        "ROCMFORGE_SOCKET": str(daemon.socket) if daemon else "",
    }
    return {**library_environment(), **more}


@functools.lru_cache(maxsize=None)
def why_no_torch(module="torch"):
    """Empty: there is a torch that sees a GPU, or any if there is no GPU, and the module."""
    code = f"import torch, {module}\nprint(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        return f"no {module} for {sys.executable}: {done.stderr.strip().splitlines()[-1]}"
    return "" if FAKE or done.stdout.split()[-1] == "True" else "this torch sees no GPU"


def run(daemon, what, *arguments):
    done = subprocess.run(
        [sys.executable, str(CHILD), what, *map(str, arguments)],
        env=environment(daemon),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture
def torch_child(start, capsys):
    """torch_child(what, ...): what the child found, which is told, too: the figures are of use."""

    def child(what, *arguments, module="torch", options=()):
        reason = why_no_torch(module)
        if reason:
            pytest.skip(reason)
        result, stderr = run(start(*options), what, *arguments)
        with capsys.disabled():
            print(f"\npython, {what}: {result}")
        return result, stderr

    return child


@pytest.fixture
def place(kind):
    """The device that torch is to find the model on."""
    return "host" if FAKE else f"{kind}:0"


@pytest.fixture(scope="session")
def known_types(model_folder):
    """Two tensors of each type that the gguf package knows."""
    gguf = pytest.importorskip("gguf")
    known = {int(type_) for type_ in gguf.GGMLQuantizationType}
    names = [name for name, type_ in make_model.load_types().items() if type_.id in known]
    return write_model(model_folder / "known.gguf", 2 * len(names), 6 << 20 if FAKE else 60 << 20, names)


@pytest.fixture(scope="session")
def quantised_llama(model_folder):
    """The 291 tensors of a 7B model in types as quantised files mix them, of other sizes: 26 million weights."""
    types = make_model.load_types()
    path = model_folder / "quantised.gguf"
    mixed = [types[name] for name in ("q4_K", "q6_K", "q5_0", "q8_0", "iq4_xs")]
    tensors = make_model.preset_tensors(make_model.llama_shapes(32, 256, 768, 1000), mixed, types["f32"])
    make_model.write_model(path, tensors, make_model.metadata(32, 256, 768, 4, 1000), 1)
    return path


@pytest.fixture
def gemma():
    path = os.environ.get("ROCMFORGE_GEMMA")
    if not path or not os.path.exists(path):
        pytest.skip("ROCMFORGE_GEMMA names no file of Gemma-3-270M; ./setup python-test --all fetches it")
    return os.path.abspath(path)


@pytest.fixture(scope="session")
def llama(model_folder):
    """The same tensors, 0.9 GB of f16; where there is no GPU, 27 MB."""
    types = make_model.load_types()
    path = model_folder / "llama.gguf"
    sizes = (128, 352, 1000) if FAKE else (1024, 2816, 32000)
    tensors = make_model.preset_tensors(make_model.llama_shapes(32, *sizes), [types["f16"]], types["f32"])
    make_model.write_model(path, tensors, make_model.metadata(32, *sizes[:2], 16, sizes[2]), 1)
    return path


@pytest.fixture(scope="session")
def little_of_each(model_folder):
    """Two tensors of each type, 3 MB."""
    return write_model(model_folder / "little.gguf", 66, 3 << 20, "all")


def test_without_torch(start, little_of_each, kind):
    pytest.importorskip("numpy")
    result, _ = run(start(), "plain", little_of_each, kind, f"{kind}:0")
    assert result["tensors"] == 4 * 66


def test_the_cuda_array_interface_keeps_the_memory(start, small_model, kind):
    run(start(), "interface_keeps", small_model, f"{kind}:0")


@pytest.mark.fake
def test_the_second_gpu_is_told_by_its_identity(start, small_model):
    """Devices are counted anew in each process."""
    daemon = start(FAKE_HIP_DEVICES=2)
    code = (
        "import rocmforge, sys\n"
        "with rocmforge.load_attach(sys.argv[1], device='hip:1') as model:\n"
        "    print(next(iter(model.values())).__dlpack_device__())"
    )
    env = {**environment(daemon), "FAKE_HIP_DEVICES": "2"}
    done = subprocess.run([sys.executable, "-c", code, small_model], env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.stdout, done.returncode) == ("(10, 1)\n", 0), done.stderr


def test_every_type_is_right_to_the_bit(torch_child, known_types, place):
    """All tensors of blocks, and those of f16, bf16 and f32, as gguf decodes them; the others, and the few types that it
    cannot decode, as they stand in the file."""
    result, _ = torch_child("bits", known_types, place, module="gguf")
    assert result["compared"]["native"] == result["tensors"] and result["tensors"] >= 2 * 32
    assert all(result["compared"][form] >= 2 * 26 for form in ("f32", "f16", "bf16"))


def test_every_tensor_of_a_quantised_model_is_right_to_the_bit(torch_child, quantised_llama, place):
    result, _ = torch_child("bits", quantised_llama, place, module="gguf")
    assert set(result["compared"].values()) == {291} == {result["tensors"]}


def test_blocks_and_values_of_ggml(torch_child, folder, place):
    result, _ = torch_child("vectors", folder, place, module="numpy")
    assert set(result["compared"].values()) == {27}


def test_wrapping_takes_no_memory(torch_child, llama, place):
    result, _ = torch_child("wrap", llama, place)
    assert result["tensors"] == 291 and result["taken"] == 0
    assert FAKE or result["best_ms"] < 50


def test_nothing_is_freed_under_a_live_tensor(torch_child, known_types, place):
    torch_child("lifetime", known_types, place, module="gguf")


@needs_gpu
def test_a_tensor_made_of_the_interface_keeps_the_memory(torch_child, small_model, kind):
    torch_child("as_tensor_keeps", small_model, f"{kind}:0")


def test_the_end_with_live_tensors_is_quiet(torch_child, every_type, place):
    _, stderr = torch_child("leave", every_type, place)
    assert stderr == ""


def test_transformers(torch_child, llama, place):
    result, _ = torch_child("transformers", llama, place, module="transformers")
    assert result["share"] > 0.7


def test_each_architecture_of_transformers(torch_child, place):
    result, _ = torch_child("architectures", place, module="transformers, gguf")
    assert len(result["furthest"]) >= 9


def test_gemma(torch_child, gemma, place):
    """Its parameters are views but for the norms, and its tokens are those of the CPU."""
    result, _ = torch_child("gemma", gemma, place, module="transformers, gguf")
    assert result["tensors"] == result["compared"] == 236 and result["share"] > 0.99
    assert "France" in result["text"]


@needs_gpu
def test_the_example(start, small_model, capsys):
    """Times and memory with and without the daemon, and the same numbers."""
    reason = why_no_torch("gguf")
    if reason:
        pytest.skip(reason)
    example = ROOT / "client" / "python" / "examples" / "gpu.py"
    done = subprocess.run([sys.executable, str(example), str(small_model)], env=environment(start()), capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}")
    for line in ("With the daemon:", "Without it:", "loading it, if it is not there", "reading, decoding and copying the file"):
        assert line in done.stdout
    taken = re.findall(r"this process took: (\d+) MB; checksum (\S+)$", done.stdout, re.M)
    assert len(taken) == 2 and taken[0][0] == "0" and taken[0][1] == taken[1][1], done.stdout


def test_the_example_of_numpy(start, capsys):
    """It computes in host memory, also where the daemon has a GPU. With a model of which the sentences make sense."""
    pytest.importorskip("gguf")
    model = os.environ.get("ROCMFORGE_MODEL")
    if not model or not os.path.exists(model):
        pytest.skip("ROCMFORGE_MODEL names no file of MiniLM; ./setup demo makes it")
    example = ROOT / "client" / "python" / "examples" / "embeddings.py"
    done = subprocess.run([sys.executable, str(example), model], env=environment(start()), capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert "The same numbers: True" in done.stdout


@needs_gpu
def test_text_from_gemma_in_two_processes(start, gemma, capsys):
    """The example says the same with and without the daemon. On a GPU torch takes memory for the norms only."""
    reason = why_no_torch("transformers, accelerate, gguf")
    if reason:
        pytest.skip(reason)
    example = ROOT / "client" / "python" / "examples" / "generate.py"
    done = subprocess.run([sys.executable, str(example), gemma], env=environment(start()), capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert "99.98 % views" in done.stdout
    # Before 5.20, transformers itself cuts the prompt of this file into other tokens.
    assert "The same text: True" in done.stdout or importlib.metadata.version("transformers").split(".")[:2] < ["5", "20"]
    taken = [int(size) for size in re.findall(r"torch took for the model: (\d+) MB$", done.stdout, re.M)]
    assert taken[:2] == [0, 0] and taken[2] > 1000, done.stdout
