"""A model is loaded by rfctl and verified by rfctl, and other processes read it in place through librocmforge: every
tensor, bit for bit what the gguf package makes of the same file."""
import json
import subprocess
import sys

import gguf
import make_model
import pytest
from harness import ROOT, TIMEOUT, build_folder, library_environment

READER = ROOT / "tests" / "integration" / "reader.py"
FORMS = ["native", "f32", "f16", "bf16", "auto"]
PLAIN = ["f32", "f16", "bf16"]


def read_elsewhere(daemon, name, path):
    """What a process of its own sees through the library. The wire has to tell the same of the tensors."""
    result = subprocess.run(
        [sys.executable, READER, build_folder(), daemon.socket, name, path],
        capture_output=True,
        text=True,
        timeout=300,
        env=library_environment(),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    seen = json.loads(result.stdout)
    with daemon.client() as client:
        reply = client.call("Attach", name=name)
        assert seen["tensors"] == reply["tensors"]
        assert seen["bytes"] == reply["model"]["bytes"]
        client.call("Detach", lease=reply["lease"])
    return seen


def form_of(tensor, asked):
    """The form that a tensor gets when a model is loaded in one. Native bytes that are floats are told as such."""
    tensor_type = tensor["type"]
    if asked in ("f16", "bf16") and tensor_type == "f32" and len(tensor["shape"]) <= 1:
        return "f32"
    if asked in PLAIN:
        return asked
    if tensor_type in PLAIN:
        return tensor_type
    return "f16" if asked == "auto" else "native"


def check(daemon, name, path, form):
    """Loads a file in a form, verifies it, and reads it elsewhere. Returns the number of tensors."""
    daemon.rfctl("load", path, "--name", name, "--as", form)
    verified = json.loads(daemon.rfctl("--json", "verify", name).stdout.splitlines()[-1])
    assert verified["mismatches"] == []
    seen = read_elsewhere(daemon, name, path)
    assert seen["wrong"] == []
    assert verified["tensors"] == len(seen["tensors"])
    for tensor in seen["tensors"]:
        assert tensor["form"] == form_of(tensor, form), tensor
    daemon.rfctl("unload", name)
    assert daemon.models() == []
    assert daemon.used() == 0
    return len(seen["tensors"])


@pytest.mark.parametrize("form", FORMS)
def test_real_model(daemon, real_model, form):
    assert check(daemon, "real", real_model, form) > 20


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
    assert check(daemon, "every", path, form) == len(chosen)


def test_the_comparison_sees_a_bit(daemon, real_model, folder):
    """A reader that finds nothing has to be one that finds what is there: here the file differs in its last bit."""
    daemon.rfctl("load", real_model, "--name", "real", "--as", "native")
    other = folder / "other.gguf"
    data = bytearray(real_model.read_bytes())
    last = max(gguf.GGUFReader(real_model).tensors, key=lambda tensor: tensor.data_offset)
    data[last.data_offset + last.n_bytes - 1] ^= 1
    other.write_bytes(data)
    wrong = read_elsewhere(daemon, "real", other)["wrong"]
    assert [line.split(":")[0] for line in wrong] == [last.name, last.name]


def test_c_example(daemon, real_model):
    """The example of the documentation, built against the library, reads through it."""
    daemon.rfctl("load", real_model, "--name", "real", "--as", "f32")
    program = build_folder() / "docs" / "read_tensor"
    with daemon.client() as client:
        name = client.call("Show", name="real")["tensors"][0]["name"]
    environment = {"ROCMFORGE_SOCKET": str(daemon.socket)}
    result = subprocess.run([program, "real", name], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stderr
    assert name in result.stdout
    result = subprocess.run([program, "no-such-model"], env=environment, capture_output=True, timeout=TIMEOUT)
    assert result.returncode == 1


def test_dump(daemon, real_model):
    """What rfctl dumps is what the arena holds."""
    daemon.rfctl("load", real_model, "--name", "real", "--as", "native")
    for tensor in gguf.GGUFReader(real_model).tensors[:5]:
        dumped = daemon.rfctl("dump", "real", tensor.name, text=False)
        assert dumped.stdout == tensor.data.tobytes()
