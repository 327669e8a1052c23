"""What rfctl says beside the figures: who may attach, what became of a file, what to do about it."""
import os
import signal

from harness import load, tensor_model, wait_until
from rfctl_rig import rfctl, socket_that_answers


def row(daemon):
    """What ps says of the only model."""
    (line,) = daemon.rfctl("ps").stdout.splitlines()[1:]
    return line


def put(path, seed):
    """Another file takes the path."""
    tensor_model(path.with_suffix(".new"), seed=seed).rename(path)


def looked(daemon, condition):
    """The daemon looks at all files, and the condition holds then."""
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: condition(daemon.models()[0]))


def test_no_file_has_readers_of_what_was_published(daemon, client):
    """For whom it is instead, ps and show say alike."""
    made = client.call("Create", name="p", tensors=[{"name": "a", "type": "f32", "shape": [4, 8]}], device="host")
    os.pwrite(client.fds[made["fd"]], b"x" * 128, 0)
    client.close_fds()
    client.call("Publish", creation=made["creation"])
    assert row(daemon).split()[-1] == "owner"
    assert "for that user and the administrators" in daemon.rfctl("show", "p").stdout


def test_advice_that_works(daemon, client, folder):
    """A model whose name was taken is called NAME#ID, which no load can ask for."""
    path = tensor_model(folder / "m.gguf")
    old = load(client, path, "m")
    client.call("Attach", name="m")
    put(path, 2)
    looked(daemon, lambda model: model["changed"])
    assert "'rfctl load FILE --name m --replace' loads them" in daemon.rfctl("show", "m").stdout
    daemon.rfctl("load", path, "--name", "m", "--replace")
    full = f"m#{old['id']}"
    shown = daemon.rfctl("show", full).stdout
    assert "'rfctl load FILE' loads them" in shown and "--name" not in shown


def test_what_drains_already(daemon, client, folder):
    """It is not said that --force would help: it was given."""
    load(client, tensor_model(folder / "m.gguf"), "m")
    client.call("Attach", name="m")
    refused = daemon.rfctl("unload", "m", check=False)
    assert refused.returncode == 1 and "'rfctl unload --force m' frees it" in refused.stderr
    daemon.rfctl("unload", "m", "--force")
    refused = daemon.rfctl("unload", "m", check=False)
    assert refused.returncode == 1
    assert "it drains already, and is freed when they have detached" in refused.stderr and "--force" not in refused.stderr


def test_changed_and_deleted(daemon, client, folder):
    """Both are said, and no advice to load what is not there."""
    load(client, tensor_model(folder / "m.gguf"), "m")
    model = {**client.call("List")["models"][0], "changed": True, "deleted": True}
    reply = {"models": [model], "model": model, "metadata": [], "tensors": [], "leases": []}
    told = {}
    for command in ("ps",), ("show", "m"):
        with socket_that_answers(folder / command[0], reply):
            told[command[0]] = rfctl("--socket", folder / command[0], *command).stdout
    assert told["ps"].rstrip().endswith("file changed, and deleted")
    assert "file deleted: " in told["show"] and "file changed: " in told["show"] and "--replace" not in told["show"]
