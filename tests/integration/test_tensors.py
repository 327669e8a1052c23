"""Tensors as files may have them, whatever an engine would say: long names, many dimensions, types that nobody here can
decode; and the zeros that stand behind rows of odd length."""
import json
import subprocess
import sys

import make_model
import pytest
from harness import ROOT, TIMEOUT, build_folder, fake_gpu_folder, library_environment, module_folder, wire_error
from make_model import Tensor, TensorType

ONE_KEY = (1, make_model.string("general.architecture") + b"\x08\0\0\0" + make_model.string("odd"))
LONG = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_q.weight"


@pytest.fixture(scope="module")
def types():
    return make_model.load_types()


def write(path, *tensors, meta=ONE_KEY):
    make_model.write_model(path, tensors, meta, 7)
    return path


def attached(daemon, name):
    """What another process has of the model: the bytes of its memory, and its tensors."""
    command = [sys.executable, ROOT / "tests" / "integration" / "tell_tensors.py", build_folder(), daemon.socket, name]
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, timeout=TIMEOUT, check=True, env=library_environment()
    )
    return json.loads(result.stdout)


def tensor_bytes(daemon, name, tensor):
    return daemon.rfctl("dump", name, tensor, text=False).stdout


@pytest.mark.parametrize("name", ["n" * 64, LONG, "x" * 4095], ids=["64", "77", "4095"])
def test_long_name(daemon, folder, types, name):
    path = write(folder / "long.gguf", Tensor(name, types["f32"], (32, 4)), Tensor("short", types["q4_0"], (32, 4)))
    data = path.read_bytes()
    with daemon.client() as client:
        for form in ("auto", "native", "f32"):
            client.call("Load", path=str(path), name=form, form=form)
            assert [t["name"] for t in client.call("Show", name=form)["tensors"]] == [name, "short"]
            assert tensor_bytes(daemon, form, name) in data
            assert client.call("Verify", name=form)["mismatches"] == []
            client.call("Unload", name=form)
    assert name in daemon.rfctl("--json", "inspect", path).stdout


def test_name_that_is_too_long(daemon, folder, types):
    path = write(folder / "long.gguf", Tensor("x" * 4096, types["f32"], (32, 4)))
    with daemon.client() as client, wire_error("InvalidModel") as error:
        client.call("Load", path=str(path))
    assert "4095" in error["reason"]


@pytest.mark.parametrize("shape", [(2, 2, 1, 3, 4), (2, 1, 2, 1, 2, 1, 2, 3)], ids=["5", "8"])
def test_many_dimensions(daemon, folder, types, shape):
    """Every reader is told the whole shape: by JSON, and by the table that the library reads."""
    path = write(folder / "deep.gguf", Tensor("patch_embedding.weight", types["f32"], shape))
    with daemon.client() as client:
        for form in ("native", "bf16"):  # f32 would be the same bytes as native: one model
            client.call("Load", path=str(path), name=form, form=form)
            (tensor,) = client.call("Show", name=form)["tensors"]
            assert tensor["shape"] == list(reversed(shape))
            (found,) = attached(daemon, form)["tensors"]
            assert found["shape"] == list(reversed(shape))
            assert found["bytes"] == tensor["size"]
            if form != "bf16":
                assert bytes.fromhex(found["held"]) in path.read_bytes()
            assert client.call("Verify", name=form)["mismatches"] == []


def test_nine_dimensions(daemon, folder, types):
    path = write(folder / "deep.gguf", Tensor("t", types["f32"], (1,) * 9))
    with daemon.client() as client, wire_error("InvalidModel") as error:
        client.call("Load", path=str(path))
    assert "9 dimensions" in error["reason"]


def test_types_that_nobody_decodes(daemon, folder, types):
    """A number that is not in the table, one that the format gave up, and an engine's own: kept as they are."""
    unknown, removed = TensorType(137, "type137", 1, 1), TensorType(31, "q4_0_4_4", 1, 1)
    internal = TensorType(15, "q8_K", 256, 292)
    path = write(
        folder / "odd.gguf",
        Tensor("first", unknown, (100, 7)),
        Tensor("known", types["q4_0"], (32, 4)),
        Tensor("given.up", removed, (64, 2)),
        Tensor("internal", internal, (256, 2)),
        Tensor("last", unknown, (5,)),
    )
    data = path.read_bytes()
    with daemon.client() as client:
        for form in ("auto", "native"):
            client.call("Load", path=str(path), name=form, form=form)
            tensors = {t["name"]: t for t in client.call("Show", name=form)["tensors"]}
            assert [tensors[n]["type"] for n in ("first", "given.up", "internal", "last")] == [
                "type137", "q4_0_4_4", "q8_K", "type137",
            ]  # fmt: skip
            # Up to where the next one begins, or to the end of the file.
            assert [tensors[n]["size"] for n in ("first", "given.up", "internal", "last")] == [704, 128, 584, 32]
            for name in ("first", "given.up", "internal", "last"):
                assert tensors[name]["form"] == "native"
                assert tensor_bytes(daemon, form, name) in data
            first = attached(daemon, form)["tensors"][0]
            assert (first["type"], first["type_id"]) == ("type137", 137)
            assert client.call("Verify", name=form)["mismatches"] == []
        with wire_error("UnsupportedType") as error:
            client.call("Load", path=str(path), name="f32", form="f32")
        assert error == {"tensor": "first", "type": "type137"}
    inspected = daemon.rfctl("inspect", path).stdout
    assert "type137" in inspected and "q4_0_4_4" in inspected


# --- zeros behind rows of odd length ---

PADDING = {"q4_0": (32, 270), "q8_0": (640, 408), "q4_K": (256, 144), "q6_K": (768, 210), "iq4_nl": (480, 18)}


def padded_model(folder, types):
    tensors = [Tensor(name, types[name], (row, 3)) for name, (row, _) in PADDING.items()]
    tensors += [Tensor("whole", types["q4_0"], (512, 3)), Tensor("plain", types["f32"], (33, 3))]
    return write(folder / "padded.gguf", *tensors)


def check_padding(daemon, name, form):
    """The bytes are there, are no other tensor's, and are zero."""
    with daemon.client() as client:
        told = {t["name"]: t.get("padding", 0) for t in client.call("Show", name=name)["tensors"]}
    model = attached(daemon, name)
    assert len(model["tensors"]) == len(told)
    for tensor in model["tensors"]:
        native = form == "native" and tensor["name"] in PADDING
        padding = PADDING[tensor["name"]][1] if native else 0
        behind = bytes.fromhex(tensor["behind"])
        assert tensor["padding"] == padding == told[tensor["name"]]
        assert len(behind) >= padding
        assert not any(behind), tensor["name"]
        assert any(bytes.fromhex(tensor["held"]))


@pytest.mark.parametrize("form", ["native", "auto", "f32"])
def test_padding_on_the_host(daemon, folder, types, form):
    path = padded_model(folder, types)
    with daemon.client() as client:
        plan = client.call("Plan", path=str(path), form=form)
        loaded = client.call("Load", path=str(path), name="m", form=form)["model"]
        assert loaded["bytes"] == plan["bytes"]
    check_padding(daemon, "m", form)


@pytest.mark.skipif(not fake_gpu_folder(), reason="this build has no module for AMD GPUs (hipcc is not installed)")
@pytest.mark.parametrize("form", ["native", "auto"])
@pytest.mark.parametrize("dequant", ["cpu", "gpu"])
def test_padding_on_a_gpu(start, monkeypatch, folder, types, form, dequant):
    """A GPU's memory comes with what was in it before."""
    environment = {
        "LD_LIBRARY_PATH": str(fake_gpu_folder()),
        "ROCMFORGE_MODULE_DIR": f"{module_folder()}:{build_folder() / 'client'}",
        "FAKE_HIP_DEVICES": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    daemon = start("--device", "hip")
    path = padded_model(folder, types)
    with daemon.client() as client:
        client.call("Load", path=str(path), name="m", form=form, device="hip:0", dequant=dequant)
    check_padding(daemon, "m", form)
