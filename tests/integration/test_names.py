"""Names: how many a model has, who gives them, and how a load with `replace` moves them."""
import os
import subprocess

import pytest
from harness import (
    GRANULE, MIB, USER, build_folder, client_of, fake_gpu_folder, load, load_as, load_fd, module_folder,
    sparse_model, states, tensor_model, wait_until, wire_error,
)  # fmt: skip

OTHER = USER + 1


def model_of(client, name):
    return client.call("Show", name=name)["model"]


def names_of(model):
    return {model["name"], *model["aliases"]}


def plan_error(client, path, **parameters):
    """What Plan says: the error without the interface's name, or None."""
    with open(path, "rb") as file:
        error = client.call("Plan", fds=[file.fileno()], **parameters)["error"]
    return error and error.removeprefix("io.rocmforge.")


# --- How many ---


def test_a_name_too_many_is_not_taken(client, models):
    a, b = models(2)
    load(client, a, "a")
    for i in range(15):
        load(client, a, f"n{i}")
    other = load(client, b, "m")
    assert plan_error(client, a, name="m", replace=True) == "LimitExceeded"
    with wire_error("LimitExceeded") as error:
        load(client, a, "m", replace=True)
    assert error == {"limit": "names", "value": 16}
    assert model_of(client, "m")["id"] == other["id"], "the name stays where it was"
    assert len(names_of(model_of(client, "a"))) == 16
    client.call("Unload", name="n3")
    assert plan_error(client, a, name="m", replace=True) is None
    assert names_of(load(client, a, "m", replace=True)) >= {"a", "m", "n14"}


def test_no_name_is_lost_where_there_is_no_room_for_all(client, folder):
    """Both models are of one path, whose file was replaced meanwhile. The newer one was there under other names."""
    path = tensor_model(folder / "m.gguf", seed=1)
    old = load(client, path, "m")
    for i in range(9):
        load(client, path, f"o{i}")
    os.rename(tensor_model(folder / "new", seed=2), path)
    new = load(client, path, "n")
    for i in range(9):
        load(client, path, f"n{i}")
    load(client, path, "m", replace=True)
    now = {model["id"]: names_of(model) for model in client.call("List")["models"]}
    assert now[new["id"]] >= {"m", "n", "n8"} and len(now[new["id"]]) == 16
    assert now[new["id"]] | now[old["id"]] == {"m", "n", *(f"{c}{i}" for c in "no" for i in range(9))}


def test_the_limit_of_who_did_not_load_it(start_for_all, clients, own):
    """Also of a name that replaces."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    path, theirs = own("m.gguf"), own("o.gguf", OTHER, 2)
    load_as(user, USER, path, name="m")
    for i in range(4):
        load_as(other, OTHER, path, name=f"o{i}")
    old = load_as(other, OTHER, theirs, name="mine")
    assert plan_error(other, path, name="o4") == plan_error(other, path, name="mine", replace=True) == "LimitExceeded"
    for parameters in ({"name": "o4"}, {"name": "mine", "replace": True}):
        with wire_error("LimitExceeded") as error:
            load_as(other, OTHER, path, **parameters)
        assert error == {"limit": "names", "value": 4}
    assert model_of(other, "mine")["id"] == old["id"]


def test_the_last_names_are_for_its_user(start_for_all, clients, own):
    daemon = start_for_all()
    path = own("m.gguf")
    user, root = clients(daemon, USER), clients(daemon, 0)
    load_as(user, USER, path, name="m")
    for i in range(11):
        stranger = clients(daemon, OTHER + i // 4)
        load_as(stranger, OTHER + i // 4, path, name=f"o{i}")
    assert plan_error(stranger, path, name="o11") == "LimitExceeded"
    with wire_error("LimitExceeded") as error:
        load_as(stranger, OTHER + 2, path, name="o11")
    assert error == {"limit": "names", "value": 12}
    for i in range(3):
        load_as(user, USER, path, name=f"m{i}")
    assert load_fd(root, path, name="r")["aliases"][-1] == "r"
    with wire_error("LimitExceeded") as error:
        load_as(user, USER, path, name="m4")
    assert error == {"limit": "names", "value": 16}


def test_guests_are_foreseen(start_for_all, clients, own):
    """Users who may not read the file, and pass it open."""
    daemon = start_for_all()
    path = own("m.gguf", mode=0o600)
    load_as(clients(daemon, USER), USER, path, name="m")
    for uid in range(OTHER, OTHER + 256):
        with client_of(daemon, uid) as guest:
            assert plan_error(guest, path) is None
            load_fd(guest, path)
    last = clients(daemon, OTHER + 256)
    assert plan_error(last, path) == "LimitExceeded"
    with wire_error("LimitExceeded") as error:
        load_fd(last, path)
    assert error == {"limit": "guests", "value": 256}


# --- Replacing with a model that is there, or on its way ---


def send_load(client, path, **parameters):
    with open(path, "rb") as file:
        client.send("Load", {"fds": [0], **parameters}, [file.fileno()])


@pytest.fixture
def held(start, gate):
    """Models of at least a mebibyte are held up while the gate is closed; a worker is left for what else there is."""
    return start("--workers", "4", env=gate.env)


@pytest.fixture
def replacing(held, folder, gate):
    """The old model "m"; another that is held up while it is loaded as "x"; and a load of it that replaces "m"."""
    old, new = tensor_model(folder / "old.gguf", seed=1), sparse_model(folder / "new.gguf", 2 * MIB)
    with held.client() as client, held.client() as first, held.client() as second:
        before = load(client, old, "m")
        load(client, old, "also")
        gate.close()
        send_load(first, new, name="x")
        wait_until(lambda: states(held).get("x") == "filling")
        assert plan_error(client, new, name="m", replace=True) is None
        send_load(second, new, name="m", replace=True)
        wait_until(lambda: held.status()["loads"] == 2)
        held.sync()
        yield before, client, first, second


@pytest.mark.parametrize("stays", [False, True])
def test_the_load_that_would_be_joined_is_cancelled(held, replacing, gate, stays):
    """The old model keeps its name. Whoever asked for the name, and is still there, has the file loaded anew."""
    before, client, first, second = replacing
    assert model_of(client, "m")["id"] == before["id"], "the name moves when the new model is resident"
    if not stays:
        second.close()
        wait_until(lambda: held.status()["loads"] == 1)
    client.send("Cancel", {"name": "x"})
    wait_until(lambda: states(held).get("x") == "unloading")
    gate.open()
    client.reply()
    with wire_error("Cancelled"):
        first.reply()
    if stays:
        new = second.reply()[0]["model"]
        assert (new["name"], new["aliases"], model_of(client, "also")["id"]) == ("m", [], before["id"])
    else:
        assert [(m["id"], m["name"], m["aliases"]) for m in held.models()] == [(before["id"], "m", ["also"])]


def test_a_name_moves_when_the_load_that_was_joined_is_done(held, replacing, gate):
    before, client, first, second = replacing
    gate.open()
    new = first.reply()[0]["model"]
    assert second.reply()[0]["model"]["id"] == new["id"]
    assert (model_of(client, "m")["id"], model_of(client, "also")["id"]) == (new["id"], before["id"])


def test_a_further_name_of_a_model_that_takes_one(held, folder, gate):
    """It waits, too: as long as the model has not taken its own, nobody knows how many it will have."""
    old, new = tensor_model(folder / "old.gguf", seed=1), sparse_model(folder / "new.gguf", 2 * MIB)
    with held.client() as client, held.client() as first, held.client() as second:
        load(client, old, "m")
        gate.close()
        send_load(first, new, name="m", replace=True)
        wait_until(lambda: "filling" in states(held).values())
        assert plan_error(client, new, name="m") is None, "the load would join: the model gets this name"
        send_load(second, new, name="x")
        wait_until(lambda: held.status()["loads"] == 2)
        gate.open()
        new_id = first.reply()[0]["model"]["id"]
        joined = second.reply()[0]["model"]
        assert (joined["id"], joined["name"], joined["aliases"]) == (new_id, "m", ["x"])


@pytest.fixture
def on_gpu(start, monkeypatch):
    """A daemon with a fake GPU that has room for one model, and host memory for another."""
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_gpu_folder()))
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(module_folder()))
    return start("--device", "hip", "--budget", str(GRANULE), "--host-cache", "64Mi")


def test_a_cached_model_gets_the_name_when_it_is_back(on_gpu, models):
    a, b, c = models(3)
    with on_gpu.client() as client:
        gpu = next(d["id"] for d in client.call("Devices")["devices"] if d["kind"] != "host")
        cached = load(client, a, "a", device=gpu)
        lease = load_lease(client, c, "c", device=gpu)
        wait_until(lambda: states(on_gpu)["a"] == "cached")
        old = load(client, b, "m", device="host")
        with wire_error("OutOfDeviceMemory"):
            load(client, a, "m", device=gpu, replace=True)
        assert model_of(client, "m")["id"] == old["id"]
        assert names_of(model_of(client, "a")) == {"a"}
        client.call("Detach", lease=lease)
        assert plan_error(client, a, name="m", device=gpu, replace=True) is None
        assert load(client, a, "m", device=gpu, replace=True)["id"] == cached["id"]
        assert names_of(model_of(client, "m")) == {"a", "m"}
        wait_until(lambda: old["id"] not in [m["id"] for m in on_gpu.models()])


def load_lease(client, path, name, **parameters):
    return client.call("Load", path=str(path), name=name, lease=True, **parameters)["lease"]


def test_a_name_that_means_another_model_for_who_asks(start_for_all, clients, own):
    """The model that is joined has the name already, from somebody else."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    path, mine = own("m.gguf", OTHER, 1), own("mine.gguf", USER, 2, 0o600)
    joined = load_as(other, OTHER, path, name="m")
    second = load_as(user, USER, mine, name="m2")
    load_as(other, OTHER, path, name="m2")
    assert model_of(user, "m2")["id"] == second["id"]
    assert plan_error(user, path, name="m2") == "NameInUse"
    with wire_error("NameInUse"):
        load_as(user, USER, path, name="m2")
    assert plan_error(user, path, name="m2", replace=True) is None
    assert load_as(user, USER, path, name="m2", replace=True)["id"] == joined["id"]
    assert model_of(user, "m2")["id"] == model_of(other, "m2")["id"] == joined["id"]
    wait_until(lambda: [model["id"] for model in daemon.models()] == [joined["id"]])


# --- Which names move, and whose they are then ---


@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize("changed", [False, True])
def test_all_names_move_to_the_newer_version_of_a_file(client, folder, passed, changed):
    """However the file was passed. Another model of the same bytes is no newer version."""
    path = tensor_model(folder / "m.gguf", seed=1)

    def load_it(name, **parameters):
        if passed:
            return load_fd(client, path, name=name, **parameters)
        return load(client, path, name, **parameters)

    old = load_it("m")
    load_it("also")
    if changed:
        os.rename(tensor_model(folder / "new", seed=2), path)
    new = load_it("m", replace=True, form="auto" if changed else "f32")
    assert new["id"] != old["id"]
    assert model_of(client, "m")["id"] == new["id"]
    assert model_of(client, "also")["id"] == (new if changed else old)["id"]


@pytest.mark.parametrize("changed", [False, True])
def test_only_one_name_moves_to_another_file(client, folder, models, changed):
    """Whether or not the old model's file has changed."""
    path = tensor_model(folder / "m.gguf", seed=7)
    old = load(client, path, "m")
    load(client, path, "also")
    if changed:
        os.rename(tensor_model(folder / "new", seed=8), path)
        assert client.call("Plan", path=str(path)).get("model") is None
    new = load(client, models(1)[0], "m", replace=True)
    assert (model_of(client, "m")["id"], model_of(client, "also")["id"]) == (new["id"], old["id"])


def test_all_names_move_when_a_link_leads_to_another_file(client, folder, models):
    """If the daemon reads the link. Of a passed file it knows only where the link led."""
    link = folder / "link.gguf"
    a, b = models(2)
    link.symlink_to(a)
    load(client, link, "m")
    load(client, link, "also")
    link.unlink()
    link.symlink_to(b)
    new = load(client, link, "m", replace=True)
    assert (model_of(client, "m")["id"], model_of(client, "also")["id"]) == (new["id"], new["id"])


def test_who_replaces_has_given_the_name(start_for_all, clients, own):
    """Also if another had given it: that one may not even see the new model."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    old, new = own("old.gguf"), own("new.gguf", seed=2, mode=0o600)
    load_as(user, USER, old, name="m")
    load_as(other, OTHER, old, name="o")
    load_as(user, USER, new, name="n")
    load_as(user, USER, new, name="o", replace=True)
    load_as(user, USER, new)  # has the daemon look who may read the file
    assert names_of(model_of(user, "n")) == {"n", "o"}
    with wire_error("ModelNotFound"):
        model_of(other, "o")


@pytest.mark.parametrize("newer", [False, True])
def test_a_name_that_root_gave_is_not_passed_on(start_for_all, clients, own, folder, newer):
    """Such a name goes before others of the same text. It says that root chose this model, not another one."""
    daemon = start_for_all()
    user, other, third, root = (clients(daemon, uid) for uid in (USER, OTHER, OTHER + 1, 0))
    theirs, mine = own("t.gguf", OTHER, 1, 0o600), own("m.gguf", USER, 2)
    first = load_as(other, OTHER, theirs, name="llama")
    chosen = load_as(user, USER, mine, name="mine")
    load_fd(root, mine, name="llama")
    os.chmod(theirs, 0o644)
    load_as(other, OTHER, theirs)  # has the daemon look
    assert model_of(third, "llama")["id"] == chosen["id"]
    if newer:
        os.rename(own("new", USER, 3), mine)
        load_as(user, USER, mine, name="mine", replace=True)
    else:
        load_as(user, USER, own("o.gguf", USER, 3), name="llama", replace=True)
    assert model_of(user, "llama")["id"] != chosen["id"]
    assert model_of(third, "llama")["id"] == first["id"]


def test_a_cached_model_keeps_its_name_from_a_load_that_fails(on_gpu, models, folder):
    """It gives it up to a model that is loaded, if that was asked for, as a resident one does."""
    a, b, c = models(3)
    broken = folder / "broken.gguf"
    broken.write_bytes(b.read_bytes()[:1000])
    with on_gpu.client() as client:
        gpu = next(d["id"] for d in client.call("Devices")["devices"] if d["kind"] != "host")
        cached = load(client, a, "m", device=gpu)
        load(client, a, "also", device=gpu)
        lease = load_lease(client, c, "c", device=gpu)
        wait_until(lambda: states(on_gpu)["m"] == "cached")
        for path in (broken, b):
            with wire_error("InvalidModel" if path == broken else "OutOfDeviceMemory"):
                load(client, path, "m", device=gpu, replace=True)
        assert model_of(client, "m")["id"] == cached["id"]
        client.call("Detach", lease=lease)
        assert plan_error(client, b, name="m", device=gpu) == "NameInUse"
        with wire_error("NameInUse"):
            load(client, b, "m", device=gpu)
        assert (states(on_gpu)["m"], model_of(client, "m")["id"]) == ("cached", cached["id"])
        new = load(client, b, "m", device=gpu, replace=True)
        assert (new["name"], model_of(client, "also")["id"]) == ("m", cached["id"])
        load(client, b, "also", device=gpu, replace=True)
        wait_until(lambda: [m["id"] for m in on_gpu.models()] == [new["id"]] or "c" in states(on_gpu))
        assert cached["id"] not in [m["id"] for m in on_gpu.models()]


def test_a_cached_model_that_comes_back_while_it_is_replaced(start, monkeypatch, part_gate, models, folder):
    """Somebody attaches to it meanwhile. It has no name then, and goes when nobody uses it any more."""
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_gpu_folder()))
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(module_folder()))
    daemon = start("--device", "hip", "--budget", str(GRANULE), "--host-cache", "64Mi", "--workers", "4", env=part_gate.env)
    a, b = models(2)
    new = sparse_model(folder / "new.gguf", MIB)
    with daemon.client() as client, daemon.client() as loader, daemon.client() as user:
        gpu = next(d["id"] for d in client.call("Devices")["devices"] if d["kind"] != "host")
        cached = load(client, a, "m", device=gpu)
        load(client, b, "b", device=gpu)
        wait_until(lambda: states(daemon)["m"] == "cached")
        client.call("Unload", name="b")
        part_gate.close()
        send_load(loader, new, name="m", device="host", replace=True)
        wait_until(lambda: "filling" in states(daemon).values())
        lease = user.call("Attach", name="m")
        assert lease["model"]["id"] == cached["id"]
        part_gate.open()
        assert loader.reply()[0]["model"]["name"] == "m"
        wait_until(lambda: states(daemon) == {"m": "resident", f"m#{cached['id']}": "draining"})
        user.call("Detach", lease=lease["lease"])
        wait_until(lambda: states(daemon) == {"m": "resident"})


def test_ps_tells_apart_what_has_the_same_name(start_for_all, clients, own):
    """Each row has a name that means its model to who asks."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    first = load_as(user, USER, own("m.gguf", mode=0o600), name="m")
    theirs = own("o.gguf", OTHER, 2, 0o600)
    second = load_as(other, OTHER, theirs, name="o")
    assert ps_names(daemon) == ["m", "o"]
    load_as(other, OTHER, theirs, name="m")
    assert ps_names(daemon) == ["m", "o"], "its alias is the older one's name"
    for name, model in zip(ps_names(daemon), (first, second)):
        assert f"(id {model['id']})" in daemon.rfctl("show", name).stdout


def ps_names(daemon):
    return [line.split()[0] for line in daemon.rfctl("ps").stdout.splitlines()[1:]]


def test_rfctl_tells_of_the_model_that_is_meant(daemon, models):
    """By NAME#ID too."""
    (path,) = models(1)
    with daemon.client() as client:
        full = f"m#{load(client, path, 'm')['id']}"
        client.call("Pin", name="m")
        for name in ("m", full):
            assert daemon.rfctl("ttl", name, "1h").stdout.startswith(f"{name} is pinned, so it stays")
        lease = client.call("Attach", name="m")["lease"]
        assert daemon.rfctl("unload", full, "--force").stdout == f"draining {full}: 1 lease\n"
        client.call("Detach", lease=lease)


def test_rfctl_tells_of_ones_own_model(start_for_all, clients, own, folder):
    """Another user's has the name too, and is the older one."""
    daemon = start_for_all()
    user, other = clients(daemon, USER), clients(daemon, OTHER)
    theirs, mine = own("t.gguf", OTHER, 1, 0o600), own("m.gguf", USER, 2)
    load_as(other, OTHER, theirs, name="m")
    load_as(user, USER, mine, name="m", pin=True)
    os.chmod(theirs, 0o644)
    load_as(other, OTHER, theirs)  # has the daemon look
    rfctl = str(build_folder() / "client" / "rfctl" / "rfctl")
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", rfctl, "--socket", str(daemon.socket)]
    told = subprocess.run([*command, "ttl", "m", "1h"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told.startswith("m is pinned, so it stays")
