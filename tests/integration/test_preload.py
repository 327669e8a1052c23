"""Models that the daemon loads by itself."""
import os
import signal
import time

import make_safetensors
import pytest
from harness import USER, client_of, is_filling, load_fd, names, states, tensor_model, wait_until


@pytest.fixture
def preload_folder(folder):
    path = folder / "preload"
    path.mkdir()
    return path


def test_preload(start, models, preload_folder):
    a, b, c = models(3)
    for path, name in ((c, "1-last"), (a, "0-first"), (b, "2-more")):
        (preload_folder / f"{name}.gguf").symlink_to(path)
    (preload_folder / "1-bad.gguf").write_bytes(b"no model")
    (preload_folder / "1-dangling.gguf").symlink_to("/nowhere.gguf")
    (preload_folder / "README").write_text("not a model")
    os.mkfifo(preload_folder / "1-pipe.gguf")
    (preload_folder / ".hidden.gguf").symlink_to(a)
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: states(daemon) == {n: "resident" for n in ("0-first", "1-last", "2-more")})
    listed = daemon.models()
    assert [model["name"] for model in listed] == ["0-first", "1-last", "2-more"], "in order of name"
    assert all(model["pinned"] and model["ttl"] is None for model in listed)
    for name in ("1-bad", "1-dangling", "1-pipe"):
        assert daemon.log.count(name) == 1, "one line is enough"
        assert f"{name}.gguf skipped" in daemon.log
    assert "README skipped: it is no GGUF or safetensors file" in daemon.log
    assert ".hidden" not in daemon.log


def test_preload_again(start, models, preload_folder):
    a, b = models(2)
    (preload_folder / "a.gguf").symlink_to(a)
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: states(daemon) == {"a": "resident"})
    (preload_folder / "b.gguf").symlink_to(b)
    with daemon.client() as client:
        client.call("Unpin", name="a")
        for _ in range(3):
            daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: states(daemon) == {"a": "resident", "b": "resident"})
        wait_until(lambda: all(model["pinned"] for model in daemon.models()))
        client.call("Unload", name="a")
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: states(daemon) == {"b": "resident", "a": "resident"})


def test_preload_replaces_what_a_user_loaded_first(start_for_all, folder, preload_folder):
    preload_folder.chmod(0o755)
    daemon = start_for_all("--preload", str(preload_folder))
    path = tensor_model(preload_folder / "m.gguf", seed=1)
    path.chmod(0o644)
    os.chown(path, USER, USER)
    with client_of(daemon, USER) as user:
        first = load_fd(user, path)
        assert first["name"] == "m"
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.models()[0]["pinned"])
    new = tensor_model(folder / "new.gguf", seed=2)
    new.chmod(0o644)
    new.rename(path)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: [(m["name"], m["id"] > first["id"], m["pinned"]) for m in daemon.models()] == [("m", True, True)])


@pytest.mark.parametrize("way", ["fds", "path"])
def test_a_link_to_what_a_user_loaded_first_is_followed(start_for_all, folder, preload_folder, way):
    folder.chmod(0o755)
    preload_folder.chmod(0o755)
    daemon = start_for_all("--preload", str(preload_folder))
    old, new = (tensor_model(folder / f"{i}.gguf", seed=i) for i in (1, 2))
    for path in (old, new):
        path.chmod(0o644)
    uid = daemon.uid if way == "path" else USER  # a daemon that is root opens no path for others
    with client_of(daemon, uid) as user:
        if way == "fds":
            first = load_fd(user, old, name="live")
        else:
            first = user.call("Load", path=str(old), name="live")["model"]
    link = preload_folder / "live.gguf"
    link.symlink_to(old)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.models()[0]["pinned"])
    assert daemon.models()[0]["id"] == first["id"]
    link.unlink()
    link.symlink_to(new)
    daemon.process.send_signal(signal.SIGHUP)
    after = [("live", str(new), True)]
    wait_until(lambda: [(m["name"], m["path"], m["pinned"]) for m in daemon.models()] == after)


def test_of_several_links_to_a_file_the_first_is_followed(start_for_all, folder, preload_folder):
    """Another one must not take the names of those that still lead to the old file."""
    folder.chmod(0o755)
    preload_folder.chmod(0o755)
    daemon = start_for_all("--preload", str(preload_folder))
    old, new = (tensor_model(folder / f"{i}.gguf", seed=i) for i in (1, 2))
    for path in (old, new):
        path.chmod(0o644)
    with daemon.client() as client:
        first = load_fd(client, old, name="mine")
    for name in "ab":
        (preload_folder / f"{name}.gguf").symlink_to(old)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.models()[0]["aliases"] == ["a", "b"])
    (preload_folder / "b.gguf").unlink()
    (preload_folder / "b.gguf").symlink_to(new)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "b.gguf skipped: another model has this name" in daemon.log)
    assert [(m["id"], m["name"], m["aliases"]) for m in daemon.models()] == [(first["id"], "mine", ["a", "b"])]


def test_preload_of_names_much_like_a_part(start, models, preload_folder):
    likes = ("m-00003-of-00002", "the-longest-lord-of-rings")
    for path, name in zip(models(2), likes):
        (preload_folder / f"{name}.gguf").symlink_to(path)
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: states(daemon) == dict.fromkeys(likes, "resident"))


def test_preload_of_a_split_model(start, split, preload_folder):
    for path in split():
        (preload_folder / path.name).symlink_to(path)
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: list(states(daemon).values()) == ["resident"])
    assert daemon.models()[0]["tensors"] == 7
    assert "skipped" not in daemon.log


def test_preload_of_a_store_of_digests(start, split, models, preload_folder):
    """Files of another program's, whose names say nothing: what begins as a model does is one."""
    (single,) = models(1)
    (preload_folder / "sha256-00").symlink_to(single)
    for i, path in enumerate(split()):
        path.rename(preload_folder / f"sha256-{7 - i}1")
    (preload_folder / "sha256-99").write_text("a licence")
    (preload_folder / "folder").mkdir()
    daemon = start("--preload", str(preload_folder))
    wait_until(lambda: states(daemon) == {"sha256-00": "resident", "sha256-71": "resident"})
    assert {model["name"]: model["tensors"] for model in daemon.models()} == {"sha256-00": 1, "sha256-71": 7}
    assert "sha256-99 skipped: it is no GGUF or safetensors file" in daemon.log
    assert "folder skipped: it is no regular file, and no folder of safetensors files" in daemon.log
    assert daemon.log.count("is a later file of a split model: it is loaded together with the first file") == 2


def test_preload_of_nothing(start, folder):
    daemon = start("--preload", str(folder / "none"))
    wait_until(lambda: "none" in daemon.log.split("ready")[-1] or "preload" in daemon.log)
    assert names(daemon) == []


def test_end_while_preloading(start, gate, preload_folder, large_model):
    (preload_folder / "a.gguf").symlink_to(large_model)
    (preload_folder / "b.gguf").symlink_to(large_model)
    gate.close()
    daemon = start("--preload", str(preload_folder), env=gate.env)
    wait_until(lambda: is_filling(daemon, "a"), every=0.001)
    assert daemon.stop(gate) == 0


def test_preload_in_a_layout(start, models, preload_folder):
    """What vLLM fuses stands together; a client that asks for that gets the model that is there. GGUF files are loaded as
    they are."""
    (gguf,) = models(1)
    (preload_folder / "a.gguf").symlink_to(gguf)
    folder = preload_folder / "llama"
    folder.mkdir()
    parts = ("q", "k", "v")
    tensors = {f"model.layers.0.self_attn.{part}_proj.weight": ("F16", (8, 24)) for part in parts}
    between = {f"model.layers.{i}.input_layernorm.weight": ("F16", (24,)) for i in range(3)}
    pairs = zip(sorted(tensors.items()), between.items())
    make_safetensors.write(folder / "model.safetensors", dict(one for pair in pairs for one in pair))
    daemon = start("--preload", str(preload_folder), "--preload-layout", "vllm")
    wait_until(lambda: states(daemon) == {"a": "resident", "llama": "resident"})
    with daemon.client() as client:
        shown = client.call("Show", name="llama")
        offsets = {tensor["name"]: tensor["offset"] for tensor in shown["tensors"]}
        q, k, v = (offsets[name] for name in tensors)
        assert (k - q, v - k) == (8 * 24 * 2, 8 * 24 * 2)
        assert "model.layers.0.self_attn.qkv_proj.weight" in offsets
        assert shown["model"]["layout"] == "vllm" and shown["model"]["pinned"]
        path = str(folder / "model.safetensors")
        assert client.call("Load", path=path, layout="vllm")["model"]["id"] == shown["model"]["id"]
        assert client.call("Load", path=path, name="other")["model"]["id"] != shown["model"]["id"]


def test_hangup_without_preload(daemon):
    daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    assert names(daemon) == []
