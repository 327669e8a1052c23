"""rfctl inspect, which needs no daemon."""
import json
import re

from rfctl_rig import REFUSED, rfctl


def test_inspect(small_model, folder):
    text = rfctl("inspect", small_model, env={"ROCMFORGE_SOCKET": str(folder / "nobody")}).stdout
    assert text.startswith(f"{small_model}: GGUF version 3, ")
    assert "architecture:    llama" in text
    assert re.search(r"^bits per weight: \d+\.\d\d$", text, re.MULTILINE)
    assert re.search(r"^q4_0 +1 +\d+ +\d+ kB$", text, re.MULTILINE)
    assert re.search(r"^llama.context_length +u32 +4096$", text, re.MULTILINE)
    assert re.search(r"^blk.0.attn_k.weight +f32 +\[\d+, \d+\] ", text, re.MULTILINE)


def test_inspect_says_what_show_says(daemon, small_model):
    daemon.rfctl("load", small_model, "--as", "native")
    shown = json.loads(daemon.rfctl("show", "small", "--json").stdout)
    inspected = json.loads(rfctl("inspect", small_model, "--json").stdout)
    assert inspected["metadata"] == shown["metadata"]
    assert inspected["size"] == shown["model"]["size"]
    assert sum(entry["tensors"] for entry in inspected["types"]) == len(inspected["tensors"]) == 4
    assert sum(entry["bytes"] for entry in inspected["types"]) == inspected["bytes"]
    for key in ("name", "type", "shape", "size"):
        assert [t[key] for t in inspected["tensors"]] == [t[key] for t in shown["tensors"]]
    data = small_model.read_bytes()
    first = inspected["tensors"][0]
    dumped = daemon.rfctl("dump", "small", first["name"], text=False).stdout
    assert dumped == data[first["offset"] : first["offset"] + first["size"]]


def test_inspect_refuses(folder, small_model):
    data = small_model.read_bytes()
    path = folder / "broken.gguf"
    for broken in (b"", b"GGUF", b"no model at all, only text", data[:1000], data[:-1000]):
        path.write_bytes(broken)
        result = rfctl("inspect", path)
        assert result.returncode == REFUSED
        assert result.stdout == ""
        assert re.fullmatch(rf"rfctl: cannot inspect {re.escape(str(path))}: .*, at byte \d+\n", result.stderr)
    assert rfctl("inspect", folder / "gone").returncode == REFUSED
    assert rfctl("inspect", folder).returncode == REFUSED
