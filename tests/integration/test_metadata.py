"""The whole metadata of a file reaches who attaches, and who is told a part of it is told that it is a part."""
import fcntl
import json
import os
import struct
import subprocess
import sys

import gguf
import make_model
import pytest
from harness import (
    MIB,
    ROOT,
    TIMEOUT,
    build_folder,
    fake_gpu_folder,
    library_environment,
    module_folder,
    states,
    wait_until,
)

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
U8, STRING, ARRAY = 0, 8, 9
TEMPLATE = "{% for message in messages %}\n" + "x" * 9000 + "\N{EURO SIGN}"
TOKENS = [f"token {i}\n" for i in range(5000)]


def entry(key, type_, data):
    return make_model.string(key) + struct.pack("<I", type_) + data


def strings(values):
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(make_model.string, values))


@pytest.fixture(scope="module")
def wordy(model_folder):
    """A model that has more to say of itself than Show tells."""
    entries = [
        entry("general.architecture", STRING, make_model.string("llama")),
        entry("tokenizer.chat_template", STRING, make_model.string(TEMPLATE)),
        entry("tokenizer.ggml.tokens", ARRAY, strings(TOKENS)),
        entry("few", ARRAY, strings(["a", "b"])),
        entry("long.elements", ARRAY, strings(["y" * 5000, "b"])),
        entry("nested", ARRAY, struct.pack("<IQ", ARRAY, 2) + strings(["a"]) + struct.pack("<IQ3B", U8, 3, 1, 2, 3)),
        entry("count", U8, b"\x07"),
    ]
    types = make_model.load_types()
    path = model_folder / "wordy.gguf"
    tensors = [make_model.Tensor(f"blk.{i}.weight", types["q8_0"], (256, 40)) for i in range(8)]
    make_model.write_model(path, tensors, (len(entries), b"".join(entries)), 3)
    return path


def header_of(path):
    """All before the tensor data, less what pads it."""
    data = path.read_bytes()
    reader = gguf.GGUFReader(path)
    last = reader.tensors[-1].field
    end = last.offset + sum(int(part.nbytes) for part in last.parts)
    return data[:end]


def attached(daemon, name):
    command = [sys.executable, ROOT / "tests" / "integration" / "tell_metadata.py", build_folder(), daemon.socket, name]
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, timeout=TIMEOUT, check=True, env=library_environment()
    )
    return json.loads(result.stdout)


def test_header_is_the_file_s(daemon, small_model):
    with daemon.client() as client:
        client.call("Load", path=str(small_model), name="m")
        reply = client.call("Attach", name="m", header=True)
        assert "header" not in client.call("Attach", name="m")
        fd = client.fds[0] if len(client.fds) == 1 else None
        assert fd is not None
        reply = client.call("Attach", name="m", header=True, table=True)
        assert (reply["fd"], reply["table"], reply["header"]) == (0, 1, 2)
        fd = client.fds[reply["header"]]
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
        assert os.pread(fd, 1 << 20, 0) == header_of(small_model)


def test_library_has_all_of_it(daemon, wordy):
    daemon.rfctl("load", wordy)
    seen = attached(daemon, "wordy")
    assert bytes.fromhex(seen["header"]) == header_of(wordy)
    assert seen["metadata"] == {
        "general.architecture": "llama",
        "tokenizer.chat_template": TEMPLATE.encode().decode("latin-1"),
        "tokenizer.ggml.tokens": TOKENS,
        "few": ["a", "b"],
        "long.elements": ["y" * 5000, "b"],
        "nested": [["a"], [1, 2, 3]],
        "count": 7,
    }


def test_library_has_what_the_gguf_package_has(daemon, real_model):
    daemon.rfctl("load", real_model, "--name", "real")
    seen = attached(daemon, "real")["metadata"]
    fields = {key: field for key, field in gguf.GGUFReader(real_model).fields.items() if not key.startswith("GGUF.")}
    assert set(seen) == set(fields) and len(seen) > 5
    for key, field in fields.items():
        want = field.contents()
        if isinstance(want, str):
            want = want.encode().decode("latin-1")
        elif isinstance(want, list) and want and isinstance(want[0], str):
            want = [text.encode().decode("latin-1") for text in want]
        assert seen[key] == want, key


def check_cut(metadata):
    told = {one["key"]: one for one in metadata}
    assert [key for key, one in told.items() if one.get("cut")] == [
        "tokenizer.chat_template", "tokenizer.ggml.tokens", "long.elements",
    ]  # fmt: skip
    template = told["tokenizer.chat_template"]
    assert template["size"] == len(TEMPLATE.encode())
    assert len(json.loads(template["value"])) == 4096
    assert told["tokenizer.ggml.tokens"]["count"] == len(TOKENS)
    assert json.loads(told["tokenizer.ggml.tokens"]["value"]) == TOKENS[:16]
    assert json.loads(told["nested"]["value"]) == [["a"], [1, 2, 3]]
    assert told["nested"]["type"] == "array" and told["nested"]["count"] == 2


def test_what_is_cut_is_marked(daemon, wordy):
    daemon.rfctl("load", wordy)
    with daemon.client() as client:
        reply = client.call("Show", name="wordy")
    check_cut(reply["metadata"])
    assert "metadataLeft" not in reply
    check_cut(json.loads(daemon.rfctl("--json", "inspect", wordy).stdout)["metadata"])
    text = daemon.rfctl("show", "wordy").stdout
    assert f"... ({len(TEMPLATE.encode())} bytes)" in text
    assert ",...]" in text


def test_metadata_that_is_left_out(daemon, folder):
    """Of more than 4 MiB the rest is left out, and its keys are counted."""
    types = make_model.load_types()
    entries = [entry(f"key{i}", STRING, make_model.string("\x01" * 4096)) for i in range(400)]
    path = folder / "much.gguf"
    tensors = [make_model.Tensor("t", types["f32"], (32,))]
    make_model.write_model(path, tensors, (len(entries), b"".join(entries)), 3)
    daemon.rfctl("load", path)
    with daemon.client() as client:
        reply = client.call("Show", name="much")
    assert 0 < len(reply["metadata"]) < 400
    assert reply["metadataLeft"] == 400 - len(reply["metadata"])
    assert f"and {reply['metadataLeft']} more keys" in daemon.rfctl("show", "much").stdout
    assert len(attached(daemon, "much")["metadata"]) == 400


def test_one_value_whole(daemon, wordy):
    daemon.rfctl("load", wordy)

    def show(key, *options):
        return daemon.rfctl("show", "wordy", "--metadata", key, *options).stdout

    assert show("tokenizer.chat_template") == TEMPLATE + "\n"
    assert json.loads(show("tokenizer.chat_template", "--json")) == TEMPLATE
    assert show("tokenizer.ggml.tokens").splitlines() == [f"token {i}\\n" for i in range(5000)]
    assert json.loads(show("tokenizer.ggml.tokens", "--json")) == TOKENS
    assert show("nested") == '["a"]\n[1,2,3]\n'
    assert json.loads(show("nested", "--json")) == [["a"], [1, 2, 3]]
    assert show("count") == "7\n"
    missing = daemon.rfctl("show", "wordy", "--metadata", "none", check=False)
    assert missing.returncode == 1 and missing.stdout == ""
    assert "no key 'none'" in missing.stderr
    assert daemon.models()[0]["leases"] == 0


def test_a_value_takes_no_lease(start, wordy, small_model):
    """Asking what a model is called changes nothing: neither which models are where, nor when they were last used."""
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    daemon = start(
        *("--device", "hip", "--budget", str(2 * MIB), "--host-cache", "64M"),
        env={"ROCMFORGE_MODULE_DIR": str(module_folder()), "LD_LIBRARY_PATH": str(fake_gpu_folder())},
    )
    with daemon.client() as client, daemon.client() as watcher, daemon.client() as holder:
        client.call("Load", path=str(wordy), name="wordy", device="hip")
        client.call("Load", path=str(small_model), name="other", device="hip", form="native")
        wait_until(lambda: states(daemon) == {"wordy": "cached", "other": "resident"}, 20)
        holder.call("Attach", name="other")
        client.call("Unload", name="other", force=True)
        events = watcher.more("Watch")
        next(events)
        assert daemon.rfctl("show", "wordy", "--metadata", "tokenizer.chat_template").stdout == TEMPLATE + "\n"
        assert daemon.rfctl("show", "other", "--metadata", "general.architecture").stdout == "llama\n"
        assert states(daemon) == {"wordy": "cached", "other": "draining"}
        client.call("Unload", name="wordy")
        assert next(events)["event"] == "unloaded"
        reply = client.call("Show", name="other", header=True)
        assert os.pread(client.fds[reply["header"]], 4, 0) == b"GGUF"


def test_of_a_split_model_it_is_the_first_file_s(daemon, split):
    paths = split()
    with daemon.client() as client:
        client.call("Load", path=str(paths[0]), name="m")
        reply = client.call("Attach", name="m", header=True)
        header = os.pread(client.fds[reply["header"]], 1 << 20, 0)
    assert header and paths[0].read_bytes().startswith(header)
    assert header.endswith(b"llama")  # its last key; it has no tensors


def test_it_is_charged(start, folder):
    """A header takes its bytes in the ledger twice: as it was read, and as it is given out."""
    types = make_model.load_types()
    path = folder / "heavy.gguf"
    size = 16 * MIB
    data = entry("blob", ARRAY, struct.pack("<IQ", U8, size) + bytes(size))
    make_model.write_model(path, [make_model.Tensor("t", types["f32"], (32,))], (1, data), 3)
    daemon = start()
    with daemon.client() as client:
        client.call("Load", path=str(path), name="m")
    assert daemon.used() > 2 * size


@pytest.mark.skipif(not fake_gpu_folder(), reason="this build has no module for AMD GPUs (hipcc is not installed)")
def test_it_is_kept_while_host_memory_has_the_model(start, wordy, small_model):
    daemon = start(
        *("--device", "hip", "--budget", str(2 * MIB), "--host-cache", "64M"),
        env={
            "ROCMFORGE_MODULE_DIR": str(module_folder()),
            "LD_LIBRARY_PATH": str(fake_gpu_folder()),
        },
    )
    with daemon.client() as client:
        client.call("Load", path=str(wordy), name="wordy", device="hip")
        client.call("Load", path=str(small_model), name="other", device="hip", form="native")
        wait_until(lambda: states(daemon) == {"wordy": "cached", "other": "resident"}, 20)
        reply = client.call("Attach", name="wordy", header=True)
        header = os.pread(client.fds[reply["header"]], 1 << 20, 0)
    assert header == header_of(wordy)
