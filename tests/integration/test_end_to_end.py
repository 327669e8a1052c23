"""A model is loaded by rfctl, and other processes read it in place: every tensor, bit for bit what the gguf package
makes of the same file."""
import json
import subprocess
import sys

import make_model
import pytest
from harness import ROOT, build_folder

READER = ROOT / "tests" / "integration" / "reader.py"
FORMS = ["native", "f32", "f16", "bf16", "auto"]


def read_elsewhere(daemon, name, path):
    """Attaches in a process of its own and compares."""
    result = subprocess.run(
        [sys.executable, READER, daemon.socket, name, path], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("form", FORMS)
def test_real_model(daemon, real_model, form):
    daemon.rfctl("load", real_model, "--name", "real", "--as", form)
    verified = daemon.rfctl("verify", "real")
    assert verified.returncode == 0
    seen = read_elsewhere(daemon, "real", real_model)
    assert seen["mismatches"] == []
    assert seen["compared"] == seen["tensors"] > 20
    daemon.rfctl("unload", "real")
    assert daemon.models() == []
    assert daemon.used() == 0


@pytest.mark.parametrize("form", FORMS)
def test_every_type(daemon, model_folder, form):
    """Random blocks of every type that the gguf package has a decoder for."""
    path = model_folder / "every.gguf"
    types = make_model.load_types()
    unknown_to_gguf = {"q2_0"}
    without_decoder = {"i8", "i16", "i32", "i64", "f64", "q1_0"}
    chosen = [type_ for name, type_ in types.items() if name not in unknown_to_gguf | without_decoder]
    if not path.exists():
        tensors = make_model.sized_tensors(len(chosen), 8 << 20, chosen)
        make_model.write_model(path, tensors, make_model.metadata(4, 256, 256, 4, 100), 7)
    with daemon.client() as client:
        client.call("Load", path=str(path), name="every", form=form)
        verified = client.call("Verify", name="every")
        assert verified["mismatches"] == []
        assert verified["tensors"] == len(chosen)
        seen = read_elsewhere(daemon, "every", path)
    assert seen["mismatches"] == []
    assert seen["compared"] == len(chosen)


def test_c_example(daemon, real_model):
    """The example of the documentation, built against the library, reads through it."""
    daemon.rfctl("load", real_model, "--name", "real", "--as", "f32")
    program = build_folder() / "docs" / "read_tensor"
    with daemon.client() as client:
        name = client.call("Show", name="real")["tensors"][0]["name"]
    result = subprocess.run(
        [program, "real", name], env={"ROCMFORGE_SOCKET": str(daemon.socket)}, capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 0, result.stderr
    assert name in result.stdout
    result = subprocess.run(
        [program, "no-such-model"], env={"ROCMFORGE_SOCKET": str(daemon.socket)}, capture_output=True, timeout=30
    )
    assert result.returncode == 1


def test_dump(daemon, real_model):
    """What rfctl dumps is what the arena holds."""
    daemon.rfctl("load", real_model, "--name", "real", "--as", "native")
    gguf = pytest.importorskip("gguf")
    for tensor in gguf.GGUFReader(real_model).tensors[:5]:
        dumped = daemon.rfctl("dump", "real", tensor.name, text=False)
        assert dumped.stdout == tensor.data.tobytes()
