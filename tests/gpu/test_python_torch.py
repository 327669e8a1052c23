"""The Python package and a GPU: what torch and transformers make of a model there, in a process of their own.

On tests/fake_hip there is no torch; what needs none runs there, too.
"""
import functools
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


def environment(daemon=None):
    more = {
        "ROCMFORGE_LIBRARY": str(build_folder() / "client"),
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "client/python/src", ROOT / "tests/python", *filter(None, [os.environ.get("PYTHONPATH")])))),
        "ROCMFORGE_SOCKET": str(daemon.socket) if daemon else "",
    }
    return {**library_environment(), **more}


@functools.lru_cache(maxsize=None)
def why_no_torch(module="torch"):
    """Empty: there is a torch that sees a GPU, and the module."""
    code = f"import torch, {module}\nprint(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        return f"no {module} for {sys.executable}: {done.stderr.strip().splitlines()[-1]}"
    return "" if done.stdout.split()[-1] == "True" else "this torch sees no GPU"


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


@pytest.fixture(scope="session")
def llama(model_folder):
    """The 291 tensors of a 7B model, of other sizes: 0.9 GB of f16."""
    types = make_model.load_types()
    path = model_folder / "llama.gguf"
    shapes = make_model.llama_shapes(32, 1024, 2816, 32000)
    tensors = make_model.preset_tensors(shapes, [types["f16"]], types["f32"])
    make_model.write_model(path, tensors, make_model.metadata(32, 1024, 2816, 16, 32000), 1)
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


@needs_gpu
def test_every_tensor_is_right_to_the_bit(torch_child, every_type, kind):
    result, _ = torch_child("bits", every_type, f"{kind}:0")
    assert result["tensors"] == 4 * 66


@needs_gpu
def test_wrapping_takes_no_memory(torch_child, llama, kind):
    result, _ = torch_child("wrap", llama, f"{kind}:0")
    assert result["tensors"] == 291 and result["taken"] == 0
    assert result["best_ms"] < 50


@needs_gpu
def test_nothing_is_freed_under_a_live_tensor(torch_child, every_type, kind):
    torch_child("lifetime", every_type, f"{kind}:0")


@needs_gpu
def test_a_tensor_made_of_the_interface_keeps_the_memory(torch_child, small_model, kind):
    torch_child("as_tensor_keeps", small_model, f"{kind}:0")


@needs_gpu
def test_the_end_with_live_tensors_is_quiet(torch_child, every_type, kind):
    _, stderr = torch_child("leave", every_type, f"{kind}:0")
    assert stderr == ""


@needs_gpu
def test_transformers(torch_child, llama, kind):
    result, _ = torch_child("transformers", llama, f"{kind}:0", module="transformers")
    assert result["share"] > 0.8


@needs_gpu
def test_transformers_by_its_own_names(torch_child, kind):
    torch_child("others", f"{kind}:0", module="transformers, gguf")


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
