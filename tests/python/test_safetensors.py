"""Models in safetensors files."""
import json
from pathlib import Path

import make_safetensors
import pytest
import rocmforge
from rocmforge import _files

TENSORS = {"w": ("BF16", [4, 3]), "i": ("I64", [5]), "h": ("F16", [2, 2]), "q": ("F8_E4M3", [6]), "m": ("U8", [3])}


def test_a_file(rf, folder):
    told = make_safetensors.write(folder / "m.safetensors", TENSORS, {"format": "pt", "é": "ö"})
    pytest.importorskip("ml_dtypes")
    with rf.load_attach(folder / "m.safetensors") as model:
        assert {tensor.name: tensor.read() for tensor in model.values()} == told
        assert model["w"].shape == (4, 3) and model["w"].dtype == "bfloat16" and model["i"].dtype == "int64"
        assert model["q"].dtype == "float8_e4m3fn" and model["q"].shape == (6,)
        assert model.metadata() == {"format": "pt", "é": "ö"}
        assert not model["m"].is_blocks and model["m"].dtype == "uint8" and model["m"].shape == (3,)
        assert model["q"].numpy().dtype.name == "float8_e4m3fn" and model["q"].numpy().tobytes() == told["q"]
        assert model["h"].numpy().tobytes() == told["h"]


@pytest.mark.parametrize("by_path", [False, True])
def test_a_folder(rf, folder, by_path):
    place = folder / "tiny"
    place.mkdir()
    told = make_safetensors.write_folder(place, [{"a": TENSORS["w"]}, {"b": TENSORS["i"]}])
    make_safetensors.write(place / "other.safetensors", {"a": ("F32", [1])})
    name = rf.load(place, by_path=by_path)["model"]["name"]
    assert name == "tiny"
    with rf.attach(name) as model:
        assert {tensor.name: tensor.read() for tensor in model.values()} == told
    assert rf.load(place / "model-00001-of-00002.safetensors")["model"]["name"] == "tiny"


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_any_file_stands_for_the_model(rf, folder, monkeypatch, library, index):
    place = folder / "tiny"
    place.mkdir()
    make_safetensors.write_folder(place, [{"a": TENSORS["w"]}, {"b": TENSORS["i"]}], index=False)
    make_safetensors.write(place / "other.safetensors", {"a": ("F32", [1])})
    if not library:
        monkeypatch.setattr(_files, "_found", lambda path: None)
    paths = [str(place / f"model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    if index:  # names that tell nothing
        for i, name in enumerate(("one.safetensors", "two.safetensors")):
            paths[i] = str(Path(paths[i]).rename(place / name))
        where = {"a": "one.safetensors", "b": "two.safetensors"}
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    for path in paths:
        assert _files.shard_paths(path) == paths
        assert rf.plan(path)["tensors"] == 2
    assert _files.shard_paths(place / "other.safetensors") == [str(place / "other.safetensors")]
    Path(paths[0]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        rf.plan(paths[1])
    assert error.value.filename == paths[0]


@pytest.mark.parametrize("library", [True, False])
@pytest.mark.parametrize("index", [True, False])
def test_a_list_has_all_files(rf, folder, monkeypatch, library, index):
    place = folder / "tiny"
    place.mkdir()
    make_safetensors.write_folder(place, [{name: TENSORS["w"]} for name in "abc"], index=index)
    make_safetensors.write(place / "other.safetensors", {"x": ("F32", [1])})
    if not library:
        monkeypatch.setattr(_files, "_found", lambda path: None)
    paths = sorted(str(path) for path in place.glob("model-*.safetensors"))
    assert rf.plan(paths[::-1])["tensors"] == 3
    assert rf.plan([*paths, place / "other.safetensors"])["tensors"] == 4
    assert rf.plan(paths[1:2])["tensors"] == 3  # as one path
    for call in (rf.plan, rf.load):
        with pytest.raises(rocmforge.IncompleteFiles) as error:
            call([paths[2], place / "other.safetensors"])
        assert error.value.missing == paths[:2]
    (place / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(rocmforge.IncompleteFiles) as error:
        rf.load(paths[1:])
    assert error.value.missing == paths[:1]
    assert rf.list() == []


def test_names(rf, folder):
    place = folder / "models--org--Tiny-1B" / "snapshots" / "0a"
    place.mkdir(parents=True)
    make_safetensors.write(folder / "blob", {"a": ("F32", [1])})
    (place / "model.safetensors").symlink_to(folder / "blob")
    assert rf.load(place)["model"]["name"] == "Tiny-1B"
    rf.unload("Tiny-1B")
    assert rf.load(place / "model.safetensors")["model"]["name"] == "Tiny-1B"


@pytest.mark.parametrize("index", ["", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_wrong(rf, folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="is not valid"):
        rf.load(folder)
