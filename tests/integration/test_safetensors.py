"""Models in safetensors files."""
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time

import make_safetensors
import pytest
from harness import ROOT, build_folder, fake_gpu_folder, library_environment, module_folder, wait_until, wire_error
from make_safetensors import BITS, file_bytes

RFCTL = ["client", "rfctl", "rfctl"]


def inspect(path):
    """What rfctl makes of a file: the description, or None and why it was refused."""
    program = build_folder().joinpath(*RFCTL)
    done = subprocess.run([program, "inspect", "--json", path], capture_output=True, text=True)
    return (json.loads(done.stdout), "") if done.returncode == 0 else (None, done.stderr + done.stdout)


# --- against the package ---


def right_header(rng):
    """A header, and how many bytes of tensors it needs."""
    header, at = {}, 0
    if rng.random() < 0.5:
        header["__metadata__"] = {rng.choice(["format", "a", "é\n"]): "pt" for _ in range(rng.randrange(3))}
    for i in range(rng.randrange(6)):
        dtype = rng.choice(list(BITS))
        shape = [rng.choice([0, 1, 2, 3, 4, 8]) for _ in range(rng.randrange(4))]
        elements = 1
        for n in shape:
            elements *= n
        if elements * BITS[dtype] % 8:
            shape.append(8)
            elements *= 8
        size = elements * BITS[dtype] // 8
        header[f"t{i}.weight"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header, at


def spoil_info(rng, info):
    key = rng.choice(["dtype", "shape", "data_offsets"])
    kind = rng.randrange(5)
    if kind == 0:
        del info[key]
    elif kind == 1:
        info[key] = rng.choice([None, True, 1, "F32", "f32", "F128", "", [], [1], [0, 4, 8], [-1, 2], [1.5], ["1"], {}])
    elif kind == 2:
        info["shape"] = [*info["shape"], rng.choice([2, 1 << 31, 1 << 62, (1 << 64) - 1, 1 << 64])]
    elif kind == 3:
        at = rng.randrange(2)
        info["data_offsets"][at] += rng.choice([-1, 1, 4, 1 << 40])
    else:
        info["more"] = rng.choice([None, [], {"a": [1, {"b": "c"}]}, 1e300, "x"])


def spoil_text(rng, text):
    if not text:
        return text
    at, kind = rng.randrange(len(text)), rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + bytes([rng.choice(b'{}[]",:\\ 019aeE.-+\xff\x00\n')]) + text[at + 1 :]
    if kind == 2:
        return text[:at] + rng.choice([b" ", b"\\u0041", b"\\u00", b"\xc3\xa9", b"\xc3", b",", b'"', b"0"]) + text[at:]
    return text[:at]


def generated(seed):
    """A file, right or wrong."""
    rng = random.Random(seed)
    header, size = right_header(rng)
    infos = [value for key, value in header.items() if key != "__metadata__"]
    wrong = rng.randrange(7)
    if wrong == 1 and infos:
        spoil_info(rng, rng.choice(infos))
    if wrong == 2:
        size = max(0, size + rng.choice([-4, -1, 1, 8]))
    if wrong == 3:
        header["__metadata__"] = rng.choice([None, [], {"a": 1}, {"a": None}, "x", {"a": "b"}])
    if wrong == 6 and infos:  # a hole, or shared bytes
        info, by = rng.choice(infos), rng.choice([-4, -1, 1, 4])
        info["data_offsets"] = [max(0, n + by) for n in info["data_offsets"]]
        size += max(0, rng.choice([0, by]))
    text = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode()
    if wrong == 4:
        text = spoil_text(rng, text)
    whole = file_bytes(text + b" " * rng.randrange(3), bytes(size))
    if wrong == 5:
        length = rng.choice([0, 1, len(text) - 1, len(text) + 1, 100_000_000, 100_000_001, (1 << 63), (1 << 64) - 1])
        whole = length.to_bytes(8, "little") + whole[8:] if rng.random() < 0.7 else whole[: rng.randrange(len(whole) + 1)]
    return whole


# What the package takes and we do not: see daemon/safetensors/safetensors.h.
STRICTER = ("2^53", "2^63", "stands twice", "two tensors are called", "holds NUL", "name is empty", "does not begin with",
            "not a GGUF file", "not an object", "more than 8 dimensions", "a number is too long")  # fmt: skip


def nested(levels, brackets):
    return {"[]": b"[" * levels + b"]" * levels, "{}": b'{"a":' * levels + b"1" + b"}" * levels}[brackets]


# An unknown field of a tensor's info, or an entry of the metadata.
UNKNOWN = {
    **{f"{levels} levels of {brackets}": nested(levels, brackets) for levels in (124, 125, 126, 127, 128, 129, 1000)
       for brackets in ("[]", "{}")},
    "a sibling of levels": b"[" + nested(124, "[]") + b"," + nested(124, "{}") + b"]",
    "NUL": b'"a\\u0000"', "NUL in a key": b'{"\\u0000":1}', "half a character": b'"\\ud800"',
    "64 digits": b"1" * 64, "65 digits": b"1" * 65, "1e999": b"1e999", "twice": b'{"a":1,"a":2}',
}  # fmt: skip


@pytest.mark.parametrize("what", [*UNKNOWN, "metadata", "a key of the metadata"])
def test_unknown_fields_against_the_package(folder, what):
    safetensors = pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    info = b'"dtype":"F32","shape":[2],"data_offsets":[0,8]'
    if what in UNKNOWN:
        text = b'{"t":{%s,"x":%s}}' % (info, UNKNOWN[what])
    else:
        text = b'{"__metadata__":{%s},"t":{%s}}' % (b'"a\\u0000":"b"' if "key" in what else b'"a":"b\\u0000"', info)
    whole, path = file_bytes(text, bytes(8)), folder / "m.safetensors"
    path.write_bytes(whole)
    try:
        safetensors.deserialize(whole)
        theirs = True
    except safetensors.SafetensorError:
        theirs = False
    ours, why = inspect(path)
    stricter = theirs and ours is None and any(word in why for word in STRICTER)
    assert stricter or (ours is not None) == theirs, (theirs, why)
    assert stricter == (what in ("NUL", "NUL in a key", "65 digits", "metadata", "a key of the metadata")), why


def test_against_the_package(folder):
    """Both take a file or both refuse it, and both find the same in it."""
    safetensors = pytest.importorskip("safetensors", reason="the package safetensors is not installed")
    path, taken, refused, strict = folder / "m.safetensors", 0, 0, []
    for seed in range(int(os.environ.get("ROCMFORGE_SAFETENSORS_FILES", "600"))):
        whole = generated(seed)
        path.write_bytes(whole)
        try:
            theirs = dict(safetensors.deserialize(whole))
        except (safetensors.SafetensorError, ValueError, OverflowError):
            theirs = None
        ours, why = inspect(path)
        if theirs is not None and ours is None:
            assert any(word in why for word in STRICTER), (seed, whole[:400], why)
            strict.append(why)
            continue
        assert (ours is None) == (theirs is None), (seed, whole[:400], why)
        if ours is None:
            assert "at byte" in why, why
            refused += 1
            continue
        taken += 1
        found = {tensor["name"]: tensor for tensor in ours["tensors"]}
        assert set(found) == set(theirs), seed
        for name, tensor in theirs.items():
            mine = found[name]
            assert mine["shape"] == tensor["shape"] and mine["type"] == tensor["dtype"].lower(), (seed, name)
            assert whole[mine["offset"] : mine["offset"] + mine["size"]] == bytes(tensor["data"]), (seed, name)
    assert taken > 100 and refused > 100 and len(strict) < taken // 10, (taken, refused, strict)


# --- loaded ---

ALL = {f"t.{dtype.lower()}": (dtype, [3, 8]) for dtype in BITS} | {
    "scalar": ("F32", []),
    "empty": ("F16", [0, 4]),
    "odd.f4": ("F4", [2, 3]),  # rows that do not end on a byte
    "odd.f6": ("F6_E2M3", [2, 2]),
    "one.u8": ("U8", [1]),
    "behind": ("F32", [5, 7]),  # at an odd offset of the file
    "cube": ("BF16", [2, 3, 4]),
}


def attached(client, name):
    """name → description and bytes of each tensor."""
    reply = client.call("Attach", name=name, header=True)
    fd = client.fds[reply["fd"]]
    return {
        tensor["name"]: (tensor, os.pread(fd, tensor["size"], tensor["offset"])) for tensor in reply["tensors"]
    }, reply


@pytest.mark.parametrize("form", ["auto", "native"])
@pytest.mark.parametrize("by", ["path", "rfctl"])
def test_bytes_are_the_files(daemon, folder, form, by):
    path = folder / "all.safetensors"
    told = make_safetensors.write(path, ALL, {"format": "pt"})
    with daemon.client() as client:
        if by == "path":
            client.call("Load", path=str(path), name="m", form=form)
        else:
            daemon.rfctl("load", path, "--name", "m", "--as", form)
        tensors, reply = attached(client, "m")
        assert {name: data for name, (_, data) in tensors.items()} == told
        for name, (dtype, shape) in ALL.items():
            assert tensors[name][0]["shape"] == shape and tensors[name][0]["type"] == dtype.lower()
        # What clients get as the header is what the file begins with.
        header = client.fds[reply["header"]]
        whole = path.read_bytes()
        size = os.fstat(header).st_size
        assert os.pread(header, size, 0) == whole[:size] and size == 8 + int.from_bytes(whole[:8], "little")
        assert client.call("Verify", name="m")["mismatches"] == []
        assert client.call("Plan", path=str(path), form=form)["model"]["name"] == "m"


def test_the_package_reads_the_same(daemon, folder):
    """Every byte against the package's own reading of a file that the package wrote."""
    numpy = pytest.importorskip("safetensors.numpy", reason="the package safetensors is not installed")
    np = pytest.importorskip("numpy")
    rng = np.random.default_rng(3)
    path = folder / "m.safetensors"
    numpy.save_file(
        {
            "a": rng.standard_normal((129, 67), np.float32),
            "b": rng.integers(0, 255, (1000, 333), np.uint8),
            "c": rng.standard_normal((512, 300)).astype(np.float16),
            "d": rng.standard_normal(()),
        },
        path,
        metadata={"format": "np"},
    )
    daemon.rfctl("load", path, "--name", "m")
    theirs = numpy.load_file(path)
    with daemon.client() as client:
        tensors, _ = attached(client, "m")
    assert set(tensors) == set(theirs)
    for name, array in theirs.items():
        assert tensors[name][0]["shape"] == list(array.shape) and tensors[name][1] == array.tobytes()


def widened(dtype, data):
    """The numbers of a plain tensor."""
    kinds = {"F32": "f", "F64": "d", "F16": "e"}
    if dtype == "BF16":
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    return list(struct.unpack(f"<{len(data) // struct.calcsize(kinds[dtype])}{kinds[dtype]}", data))


@pytest.mark.parametrize("form", ["f32", "f16", "bf16"])
def test_forms(daemon, folder, form):
    """Floats are converted; integers, small floats and their scales are not."""
    path = folder / "m.safetensors"
    told = make_safetensors.write(path, {**ALL, "w.weight_scale_inv": ("F32", [2, 3]), "w.weight_scale": ("BF16", [4])})
    with daemon.client() as client:
        client.call("Load", path=str(path), name="m", form=form)
        tensors, _ = attached(client, "m")
        assert client.call("Verify", name="m")["mismatches"] == []
    tolerance = {"f32": 0, "f16": 1 / 1024, "bf16": 1 / 128}[form]
    converted = 0
    for name, data in told.items():
        tensor, loaded = tensors[name]
        dtype, shape = ALL.get(name, ("F32", []))
        assert tensor["shape"] == ALL.get(name, (0, tensor["shape"]))[1]
        if "scale" in name or dtype not in ("F32", "F64", "F16", "BF16") or not shape:
            assert loaded == data, name
            continue
        assert tensor["form"] == form, name
        for mine, theirs in zip(widened(form.upper(), loaded), widened(dtype, data), strict=True):
            assert abs(mine - theirs) <= max(tolerance, 1e-7) * abs(theirs) + 1e-6, name
        converted += 1
    assert converted >= 6
    assert tensors["t.f8_e4m3"][0]["form"] == "native"


def test_a_rule_converts_integers_and_no_small_floats(daemon, folder):
    path = folder / "m.safetensors"
    told = make_safetensors.write(path, {"i": ("I8", [4]), "s": ("F8_E4M3", [4])})
    with daemon.client() as client:
        client.call("Load", path=str(path), name="m", forms=[{"match": "i", "form": "f32"}])
        tensors, _ = attached(client, "m")
        assert widened("F32", tensors["i"][1]) == list(struct.unpack("4b", told["i"]))
        with wire_error("UnsupportedType") as error:
            client.call("Load", path=str(path), name="n", forms=[{"match": "s", "form": "f32"}])
        assert error["type"] == "f8_e4m3"


def test_wrong_files_are_refused_and_the_daemon_goes_on(daemon, folder):
    path = folder / "wrong.safetensors"
    info = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    path.write_bytes(file_bytes({"a": info}, bytes(4)))
    with daemon.client() as client:
        with wire_error("InvalidModel") as error:
            client.call("Load", path=str(path))
        assert error == {"reason": "a tensor has 4 bytes, and by its shape and dtype 8", "offset": 9}
        path.write_bytes((100_000_000).to_bytes(8, "little") + b"{")
        with wire_error("InvalidModel") as error:
            client.call("Load", path=str(path))
        assert error["offset"] == 0 and "past the end" in error["reason"]
        path.write_bytes((100_000_001).to_bytes(8, "little") + b"{")
        with wire_error("InvalidModel") as error:
            client.call("Load", path=str(path))
        assert error == {"reason": "the header is larger than 100000000 bytes", "offset": 0}
        path.write_bytes(file_bytes({"a": info | {"shape": [1]}}, bytes(4)))
        assert client.call("Load", path=str(path))["model"]["tensors"] == 1


def test_the_library(daemon, folder):
    path = folder / "m.safetensors"
    told = make_safetensors.write(path, ALL, {"format": "pt", "é": "a\nb"})
    daemon.rfctl("load", path, "--name", "m")
    program = """
import sys
from librocmforge import Client
with Client(sys.argv[1], sys.argv[2]) as client, client.attach("m") as model:
    for tensor in model:
        print(tensor.name, tensor.type, tensor.shape, bytes(model.view(tensor)).hex(), sep="|")
    print("metadata", model.metadata(), sep="|")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(build_folder()), str(daemon.socket)],
        env={**library_environment(), "PYTHONPATH": str(ROOT / "tests" / "lib")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = dict((line.split("|")[0], line.split("|")[1:]) for line in done.stdout.splitlines())
    assert lines["metadata"] == [str({b"format": b"pt", "é".encode(): b"a\nb"})]
    for name, data in told.items():
        assert lines[name] == [ALL[name][0].lower(), str(ALL[name][1]), data.hex()]


def test_inspect_plan_show_dump(daemon, folder):
    path = folder / "m.safetensors"
    told = make_safetensors.write(path, ALL, {"format": "pt", "note": "a\nb"})
    text = daemon.rfctl("inspect", path).stdout
    assert text.splitlines()[0].startswith(f"{path}: safetensors, ") and "f8_e4m3fnuz" in text and "note" in text
    assert "f4" in daemon.rfctl("plan", path).stdout + daemon.rfctl("show", path, check=False).stdout + text
    daemon.rfctl("load", path, "--name", "m")
    shown = json.loads(daemon.rfctl("--json", "show", "m").stdout)
    entries = {entry["key"]: json.loads(entry["value"]) for entry in shown["metadata"]}
    assert entries == {"format": "pt", "note": "a\nb"}
    assert {tensor["name"] for tensor in shown["tensors"]} == set(told)
    assert "0 mismatch" in daemon.rfctl("verify", "m").stdout or daemon.rfctl("verify", "m").returncode == 0
    assert daemon.rfctl("dump", "m", "odd.f4", text=False).stdout == told["odd.f4"]


# --- folders ---

SHARDS = [{"a.weight": ("BF16", [64, 3])}, {"b.weight": ("F16", [5]), "c": ("I64", [2])}, {"d": ("F8_E4M3", [7])}]


def cached(folder, name="models--org--tiny-8B"):
    """A folder as Hugging Face's cache has it: links to blobs whose names are hashes."""
    snapshot = folder / name / "snapshots" / "0a1b"
    (folder / name / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    told = make_safetensors.write_folder(snapshot, SHARDS)
    for i, path in enumerate(sorted(snapshot.iterdir())):
        blob = folder / name / "blobs" / f"{i:064}"
        path.rename(blob)
        path.symlink_to(f"../../blobs/{blob.name}")
    return snapshot, told


def check_folder(daemon, name, told):
    with daemon.client() as client:
        tensors, _ = attached(client, name)
        assert {name: data for name, (_, data) in tensors.items()} == told
        assert client.call("Verify", name=name)["mismatches"] == []


@pytest.mark.parametrize("by", ["path", "rfctl"])
def test_a_folder(daemon, folder, by):
    place = folder / "tiny"
    place.mkdir()
    told = make_safetensors.write_folder(place, SHARDS)
    make_safetensors.write(place / "model-00009-of-00003.safetensors", {"x": ("F32", [1])})  # not of the index
    make_safetensors.write(place / "other.safetensors", {"a.weight": ("F32", [1])})
    if by == "path":
        with daemon.client() as client:
            assert client.call("Load", path=str(place))["model"]["name"] == "tiny"
    else:
        assert "tiny" in daemon.rfctl("load", place).stdout
    check_folder(daemon, "tiny", told)
    assert "4" in daemon.rfctl("inspect", place).stdout
    inspected = json.loads(daemon.rfctl("inspect", "--json", place).stdout)
    assert {tensor["name"] for tensor in inspected["tensors"]} == set(told)
    assert "tiny" in daemon.rfctl("plan", place).stdout


def test_links_into_a_cache(daemon, folder):
    snapshot, told = cached(folder)
    daemon.rfctl("load", snapshot)
    check_folder(daemon, "tiny-8B", told)
    done = subprocess.run(
        [build_folder().joinpath(*RFCTL), "--socket", daemon.socket, "load", "."], cwd=snapshot, capture_output=True
    )
    assert done.returncode == 0 and b"already" in done.stdout, "the same files, the same model"


WAYS = [("path", "snapshot"), ("path", "link"), ("path", "file")]
WAYS += [("rfctl", way) for way in ("snapshot", "link", "file", "files", "relative file", "here")]


@pytest.mark.parametrize("by, way", WAYS)
def test_links_into_a_cache_have_the_models_name(daemon, folder, by, way):
    """And not the hash that the file behind the link is called."""
    snapshot, told = cached(folder)
    files = [snapshot / f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    (folder / "link").symlink_to(snapshot)
    one = {"snapshot": snapshot, "link": folder / "link", "file": files[0], "relative file": files[0].name, "here": "."}
    if by == "path":
        with daemon.client() as client:
            assert client.call("Load", path=str(one[way]))["model"]["name"] == "tiny-8B"
    else:
        asked = files if way == "files" else [one[way]]
        rfctl = [build_folder().joinpath(*RFCTL), "--socket", daemon.socket]
        subprocess.run([*rfctl, "load", *asked], cwd=snapshot, check=True)
    check_folder(daemon, "tiny-8B", told)


@pytest.mark.parametrize("way", ["in the folder", "the folder itself", "one file", "split without an index"])
def test_preload(start, folder, way):
    """A folder of --preload may have folders of safetensors files, and may be one itself."""
    snapshot, told = cached(folder)
    preload, name = folder / "preload", "tiny"
    if way == "the folder itself":
        preload, name = snapshot, "tiny-8B"
        (snapshot / "config.json").write_text("{}")
        make_safetensors.write(snapshot / "consolidated.safetensors", {"a.weight": ("F32", [1])})
    else:
        preload.mkdir()
        (preload / "README.md").write_text("no model")
    if way == "in the folder":
        (preload / name).symlink_to(snapshot)
        (preload / "other").mkdir()
        (preload / "other" / "config.json").write_text("{}")
    elif way == "one file":
        told = make_safetensors.write(preload / "tiny.safetensors", SHARDS[1])
    elif way == "split without an index":
        told = make_safetensors.write_folder(preload, SHARDS, index=False)
        name = "preload"
    daemon = start("--preload", str(preload))
    wait_until(lambda: [(m["name"], m["state"], m["pinned"]) for m in daemon.models()] == [(name, "resident", True)])
    check_folder(daemon, name, told)
    for again in range(2):
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
        wait_until(daemon.is_idle)
    assert [m["name"] for m in daemon.models()] == [name]
    assert daemon.status()["models"] == 1 and "could not be" not in daemon.log


NAMED = {
    "index": [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)],
    "index of other names": ["a.safetensors", "b.safetensors", "c.safetensors"],
    "names": [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)],
}


def named(folder, by):
    """The files of a model, and what is in them."""
    place = folder / "tiny"
    place.mkdir()
    told = make_safetensors.write_folder(place, SHARDS, index=by != "names")
    paths = [path.rename(place / name) for path, name in zip(sorted(place.glob("*.safetensors")), NAMED[by])]
    index = place / "model.safetensors.index.json"
    if by != "names":
        where = {tensor: name for name, tensors in zip(NAMED[by], SHARDS) for tensor in tensors}
        index.write_text(json.dumps({"weight_map": where}))
    return paths, told


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("by", list(NAMED))
def test_any_file_stands_for_the_model(daemon, folder, by, number):
    """A part is not taken for the whole, whichever file is named."""
    paths, told = named(folder, by)
    path = paths[number - 1]
    link = folder / "friend.safetensors"
    link.symlink_to(path)
    for asked in (path, link):
        inspected = json.loads(daemon.rfctl("--json", "inspect", asked).stdout)
        assert (inspected["file"], inspected["files"], inspected["whole"]) == (number, 3, True)
        assert {tensor["name"] for tensor in inspected["tensors"]} == set(told)
        assert f"file {number} of 3: all are here" in daemon.rfctl("inspect", asked).stdout
        assert f"{len(told)} tensors" in daemon.rfctl("plan", asked).stdout
        with daemon.client() as client:
            assert client.call("Plan", path=str(asked))["tensors"] == len(told)
    daemon.rfctl("load", path, "--name", "m")
    check_folder(daemon, "m", told)
    with daemon.client() as client:
        assert client.call("Load", path=str(path), name="m")["model"]["tensors"] == len(told)
    assert "already" in daemon.rfctl("load", paths[0].parent if by != "names" else paths[0], "--name", "m").stdout


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("by", list(NAMED))
def test_a_file_whose_others_are_missing(daemon, folder, by, number):
    paths, _ = named(folder, by)
    paths[2].unlink()
    path = paths[number - 1]
    for command in ("load", "plan"):
        failed = daemon.rfctl(command, path, check=False)
        assert failed.returncode == 1 and f"cannot open {paths[2]}" in failed.stderr
    for method in ("Load", "Plan"):
        with daemon.client() as client, wire_error("FileError") as error:
            client.call(method, path=str(path))
        assert error["call"] == "open"
    inspected = json.loads(daemon.rfctl("--json", "inspect", path).stdout)
    assert (inspected["file"], inspected["files"], inspected["whole"]) == (number, 3, False)
    assert inspected["missing"] == [str(paths[2])] and len(inspected["tensors"]) == len(SHARDS[number - 1])
    text = daemon.rfctl("inspect", path).stdout
    assert f"file {number} of 3: not all are here; the numbers are those of this file. Missing:\n  {paths[2]}\n" in text
    assert daemon.models() == []


@pytest.mark.parametrize("by", list(NAMED))
def test_a_part_that_is_named_by_hand(daemon, folder, by):
    """It is refused, and not loaded as if it were the whole; also if a link leads to a file."""
    paths, told = named(folder, by)
    link = folder / "friend.safetensors"
    link.symlink_to(paths[1])
    for command in ("load", "plan", "inspect"):
        for asked in ([paths[0], paths[1]], [paths[2], link]):
            failed = daemon.rfctl(command, *asked, check=False)
            missing = paths[2] if paths[0] in asked else paths[0]
            assert failed.returncode == 1 and missing.name in failed.stderr, (command, failed.stdout, failed.stderr)
            assert "not named" in failed.stderr
    assert daemon.models() == []
    other = paths[0].with_name("other.safetensors")
    told |= make_safetensors.write(other, {"x": ("F32", [1])})
    daemon.rfctl("load", paths[2], other, paths[0], link, "--name", "m")
    check_folder(daemon, "m", told)
    assert len(json.loads(daemon.rfctl("--json", "inspect", *paths).stdout)["tensors"]) == len(told) - 1


def test_a_part_of_which_another_file_is_missing(daemon, folder):
    paths, _ = named(folder, "index")
    paths[2].unlink()
    failed = daemon.rfctl("load", *paths[:2], check=False)
    assert failed.returncode == 1 and str(paths[2]) in failed.stderr and daemon.models() == []


def test_a_file_that_the_index_does_not_name(daemon, folder):
    paths, _ = named(folder, "index")
    other = paths[0].with_name("other.safetensors")
    told = make_safetensors.write(other, {"x": ("F32", [1])})
    assert "file" not in json.loads(daemon.rfctl("--json", "inspect", other).stdout)
    daemon.rfctl("load", other)
    check_folder(daemon, "other", told)


@pytest.mark.parametrize("name", ["friend", "model-00002-of-00003"])
def test_preload_of_a_link_to_one_file(start, folder, name):
    """Also if its name says that it is a later one, and no first one is beside it."""
    paths, told = named(folder, "index")
    preload = folder / "preload"
    preload.mkdir()
    (preload / f"{name}.safetensors").symlink_to(paths[1])
    daemon = start("--preload", str(preload))
    name = "friend" if name == "friend" else "preload"
    wait_until(lambda: [(m["name"], m["state"]) for m in daemon.models()] == [(name, "resident")])
    check_folder(daemon, name, told)


def test_a_folder_with_one_file(daemon, folder):
    place = folder / "one"
    place.mkdir()
    told = make_safetensors.write(place / "model.safetensors", SHARDS[1])
    daemon.rfctl("load", place)
    check_folder(daemon, "one", told)


def test_the_first_file_finds_the_others(daemon, folder):
    place = folder / "tiny"
    place.mkdir()
    told = make_safetensors.write_folder(place, SHARDS, index=False)
    daemon.rfctl("load", place / "model-00001-of-00003.safetensors")
    check_folder(daemon, "tiny", told)


INDEXES = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b'{"weight_map": {}}',
    b'{"weight_map": []}',
    b'{"weight_map": {"a": 1}}',
    b'{"weight_map": {"a": "../secret.safetensors"}}',
    b'{"weight_map": {"a": "/etc/passwd"}}',
    b'{"weight_map": {"a": ".."}}',
    b'{"weight_map": {"a": ""}}',
    b'{"weight_map": {"a": "x\\u0000y"}}',
    b'{"weight_map": {"a": "m"}, "weight_map": {"a": "m"}}',
    b'{"weight_map": {"a": "m"}} x',
    b'{"weight_map": {"a": "' + b"m" * 256 + b'"}}',
]


@pytest.mark.parametrize("index", INDEXES, ids=range(len(INDEXES)))
def test_an_index_that_is_wrong(daemon, folder, index):
    place = folder / "tiny"
    place.mkdir()
    (place / "model.safetensors.index.json").write_bytes(index)
    done = daemon.rfctl("load", place, check=False)
    assert done.returncode != 0 and "index.json is not valid" in done.stderr
    with daemon.client() as client, wire_error("FileError") as error:
        client.call("Load", path=str(place))
    assert error["text"] == "the folder's index is not valid"


def test_a_folder_that_lacks_a_file(daemon, folder):
    place = folder / "tiny"
    place.mkdir()
    done = daemon.rfctl("load", place, check=False)
    assert done.returncode != 0 and "no regular file" in done.stderr
    make_safetensors.write_folder(place, SHARDS)
    (place / "model-00002-of-00003.safetensors").unlink()
    done = daemon.rfctl("load", place, check=False)
    assert done.returncode != 0 and "model-00002-of-00003.safetensors" in done.stderr


def test_a_name_in_two_files(daemon, folder):
    place = folder / "tiny"
    place.mkdir()
    make_safetensors.write_folder(place, [SHARDS[0], SHARDS[1], {"a.weight": ("F32", [1])}])
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {f"{i}": f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}}))
    with daemon.client() as client, wire_error("InvalidModel") as error:
        client.call("Load", path=str(place))
    assert "tensor 'a.weight' stands in two files" in error["reason"]


@pytest.mark.parametrize("form", ["native", "f16", "f32"])
def test_on_a_gpu(start, folder, form):
    """On the fake HIP runtime: what is in the device's memory is what the CPU makes of the file."""
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    fake = {"LD_LIBRARY_PATH": str(fake_gpu_folder()), "ROCMFORGE_MODULE_DIR": str(module_folder())}
    daemon = start("--device", "hip", env=fake)
    path = folder / "m.safetensors"
    make_safetensors.write(path, {**ALL, "large": ("BF16", [1024, 1025]), "w.scale": ("F32", [3])})
    with daemon.client() as client:
        model = client.call("Load", path=str(path), name="m", form=form, dequant="gpu")["model"]
        assert model["device"] == "hip:0"
        assert client.call("Verify", name="m")["mismatches"] == []
