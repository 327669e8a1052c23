"""Plan and Load agree: what Plan says of a load is what comes of it, in whatever state the daemon is."""
import contextlib
import itertools
import os
import random
import subprocess

import make_hf
import make_model
import pytest
from harness import (
    GRANULE, MIB, USER, build_folder, client_of, fake_gpu_folder, load_fd, module_folder, wait_until, wire_error,
)  # fmt: skip
from rocmforge_wire import WireError

BUDGET = 8 * GRANULE
ROUNDS = 60
NAMES = ["a", "b", "c", "d", "e"]
NUMBERS = itertools.count()
FORMS = ["auto", "native", "f32"]
RULES = [[{"match": "*", "form": "native"}], [{"match": "t", "form": "f32"}], [{"match": "nothing", "form": "f32"}]]

FAKE = fake_gpu_folder()


@pytest.fixture
def on_gpu(start, monkeypatch):
    """A daemon with two fake GPUs, of which others have some, and host memory for what these have no room for."""

    def start_fake():
        if not FAKE:
            pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(FAKE))
        monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(module_folder()))
        for name, value in {"DEVICES": "2", "MEMORY": "100000000", "TAKEN": "20000000"}.items():
            monkeypatch.setenv(f"FAKE_HIP_{name}", value)
        return start("--device", "hip", "--budget", str(BUDGET), "--host-cache", "6Mi")

    return start_fake


@pytest.fixture
def files(folder):
    """Of one to nine granules as they are; some have a header that goes into the ledger."""
    paths = [folder / f"{'abcdefg'[i]}.gguf" for i in range(len(SIZES))]
    for i, path in enumerate(paths):
        write_file(path, i, SIZES[i])
    return paths


SIZES = [1, 1, 2, 3, 5, 7, 17]


def write_file(path, i, size, seed=None):
    """Other bytes for another seed."""
    types = make_model.load_types()
    tensors = [make_model.Tensor("t", types["q8_0" if i % 2 else "i8"], (MIB * size // 32 * 32,))]
    n, metadata = make_model.metadata(1, 256, 256, 4, 100)
    if i in (1, 3):
        text = "x" * (3 * MIB)
        metadata += make_model.string("text") + make_model.STRING.to_bytes(4, "little") + make_model.string(text)
        n += 1
    new = path.with_suffix(".new")
    make_model.write_model(new, tensors, (n, metadata), i if seed is None else seed)
    os.rename(new, path)


def there(client):
    wait_until(
        lambda: all(
            model["state"] in ("resident", "cached", "draining") for model in client.call("List")["models"]
        )
    )
    return {model["name"]: model for model in client.call("List")["models"]}


def change_file(draw, path):
    """Its times, its bytes, or its size."""
    i = "abcdefg".index(path.stem)
    what = draw.choice(["touch", "bytes", "size"])
    if what == "touch":
        os.utime(path, (draw.randrange(1 << 30), 1))
    else:
        write_file(path, i, SIZES[i] if what == "bytes" else draw.choice(SIZES), draw.random())


def name_fully(client, model):
    """Gives a model as many names as it may have."""
    parameters = {key: model[key] for key in ("path", "form", "forms", "private") if key in model}
    for _ in range(15 - len(model["aliases"])):
        try:
            client.call("Load", name=f"x{next(NUMBERS)}", device=model["device"], **parameters)
        except WireError as error:
            assert error.name in ("LimitExceeded", "OutOfDeviceMemory"), error
            return


def change(draw, client, leases, files):
    """Something that happens to the models."""
    if draw.random() < 0.1:
        change_file(draw, draw.choice(files[:5]))
        return
    models = there(client)
    name = draw.choice(sorted(models)) if models else None
    what = draw.choice(["attach", "detach", "detach", "pin", "unpin", "unpin", "unload", "drain", "name"])
    if what == "name" and name and models[name]["state"] == "resident" and not models[name]["changed"]:
        name_fully(client, models[name])
    elif what == "detach" and leases:
        client.call("Detach", lease=leases.pop(draw.randrange(len(leases))))
    elif name and what in ("pin", "unpin"):
        if models[name]["state"] != "draining":
            client.call(what.capitalize(), name=name)
    elif name and what == "attach" and models[name]["state"] == "resident":
        leases.append(client.call("Attach", name=name)["lease"])
    elif name and what in ("unload", "drain"):
        try:
            client.call("Unload", name=name, force=what == "drain")
        except WireError as error:
            assert error.name == "ModelBusy"


def gone(before, after):
    """Names of those that are not on their device any more."""
    on_device = {model["id"] for model in after.values() if model["state"] != "cached"}
    return sorted(
        name for name, model in before.items() if model["state"] != "cached" and model["id"] not in on_device
    )


def draw_parameters(draw, path, models):
    """Names are mostly those of a few models, or an alias."""
    parameters = {"path": str(path), "form": draw.choice(FORMS)}
    for key in ("replace", "private"):
        if draw.random() < 0.2:
            parameters[key] = True
    if draw.random() < 0.2:
        parameters["forms"] = draw.choice(RULES)
    if draw.random() < 0.7:
        aliases = [alias for model in models.values() for alias in model["aliases"]]
        parameters["name"] = draw.choice(aliases) if aliases and draw.random() < 0.2 else draw.choice(NAMES)
    return parameters


def replaced(before, name):
    """Names of the models that may have gone because another has this name now."""
    return {key for key, model in before.items() if name in (key, *model["aliases"])}


def agree(draw, client, path, evicted):
    """Asks what a load would do, and does it. Returns the error, or None."""
    before = there(client)
    parameters = draw_parameters(draw, path, before)
    plan = client.call("Plan", **parameters)
    assert there(client).keys() == before.keys(), "asking does nothing"
    try:
        loaded = client.call("Load", **parameters)
    except WireError as error:
        said = error.name if error.name.startswith("org.") else f"io.rocmforge.{error.name}"
        assert plan["error"] == said, (parameters, plan, before, str(error))
        assert plan["evicts"] == [] and gone(before, there(client)) == []
        if error.name == "OutOfDeviceMemory":
            assert not plan["fits"] and error.parameters["needed"] >= plan["bytes"]
            assert (error.parameters["device"], error.parameters["available"]) == (plan["device"], plan["available"])
            assert error.parameters["available"] + error.parameters["evictable"] < error.parameters["needed"]
        return error.name
    after = there(client)
    assert plan["fits"] and plan["error"] is None, (parameters, plan, before)
    assert (loaded["model"]["device"], loaded["model"]["bytes"]) == (plan["device"], plan["bytes"])
    joined = plan.get("model")
    if joined:
        assert joined["id"] == loaded["model"]["id"] and joined["name"] in before
    left = set(gone(before, after)) - set(plan["evicts"])
    name = parameters.get("name", path.stem)
    assert set(plan["evicts"]) <= set(gone(before, after)), (parameters, plan, before, after)
    assert left <= replaced(before, name), (parameters, plan, before, after)
    assert name in (loaded["model"]["name"], *loaded["model"]["aliases"]) or "name" not in parameters
    evicted.extend(plan["evicts"])
    return None


def state_and_ask(draw, daemon, files):
    seen, evicted, leases = [], [], []
    with daemon.client() as client:
        for _ in range(ROUNDS):
            for _ in range(draw.randrange(3)):
                change(draw, client, leases, files)
            seen.append(agree(draw, client, draw.choice(files), evicted))
        for lease in leases:  # not left to the end of the connection, which the daemon may see later
            client.call("Detach", lease=lease)
    return {*seen, *(["evicted"] if evicted else [])}


def test_on_the_host(start, files):
    daemon = start("--budget", str(BUDGET))
    seen = set().union(*(state_and_ask(random.Random(seed), daemon, files) for seed in range(5)))
    assert seen >= {None, "evicted", "OutOfDeviceMemory", "NameInUse", "LimitExceeded"}


def test_on_gpus(on_gpu, files):
    daemon = on_gpu()
    seen = set().union(*(state_and_ask(random.Random(seed), daemon, files) for seed in range(5)))
    assert seen >= {None, "evicted", "OutOfDeviceMemory", "NameInUse", "LimitExceeded"}


def change_of_users(draw, clients, files, leases):
    """Something that happens to a file, or that a user does to a model which it sees."""
    path, uid = draw.choice(files), draw.choice(sorted(clients))
    seen = there(clients[uid])
    name = draw.choice(sorted(seen)) if seen else None
    what = draw.choice(["chmod", "chown", "bytes", "attach", "detach", "drain", "unload", "pin", "unpin"])
    if what == "chmod":
        path.chmod(draw.choice([0o600, 0o640, 0o644]))
    elif what == "chown":
        os.chown(path, draw.choice(sorted(clients)), 0)
    elif what == "bytes" and draw.random() < 0.3:
        owner, mode = path.stat().st_uid, path.stat().st_mode
        change_file(draw, path)
        os.chown(path, owner, 0)
        path.chmod(mode)
    elif what == "detach" and leases:
        client, lease = leases.pop(draw.randrange(len(leases)))
        client.call("Detach", lease=lease)
    elif name:
        try:
            if what == "attach":
                leases.append((clients[uid], clients[uid].call("Attach", name=name)["lease"]))
            elif what in ("unload", "drain"):
                clients[uid].call("Unload", name=name, force=what == "drain")
            elif what in ("pin", "unpin"):
                clients[uid].call(what.capitalize(), name=name)
        except WireError as error:
            assert error.name in ("ModelBusy", "PermissionDenied", "ModelNotFound", "OutOfDeviceMemory"), error


def agree_of_users(draw, uid, client, root, path):
    """The same as agree(), of a user who may not see all models. Returns the error, or None."""
    there(root)
    parameters = {"name": draw.choice(NAMES[:4]), "form": draw.choice(FORMS)}
    for key in draw.choice([[], [], ["replace"], ["private"], ["public"], ["replace", "private"]]):
        parameters[key] = True
    with open(path, "rb") as file:
        plan = client.call("Plan", fds=[file.fileno()], **parameters)
        there(root)
        try:
            loaded = client.call("Load", fds=[file.fileno()], **parameters)["model"]
        except WireError as error:
            assert plan["error"] == f"io.rocmforge.{error.name}", (uid, parameters, plan, str(error))
            return error.name
    assert plan["error"] is None, (uid, parameters, plan, loaded)
    assert plan.get("model", loaded)["id"] == loaded["id"], (uid, parameters, plan, loaded)
    assert parameters["name"] in (loaded["name"], *loaded["aliases"])
    assert client.call("Show", name=parameters["name"])["model"]["id"] == loaded["id"], (uid, parameters, loaded)
    return None


def test_of_several_users(start_for_all, files):
    daemon = start_for_all("--budget", str(BUDGET), "--user-bytes", str(BUDGET // 2))
    users, seen = (0, USER, USER + 1, USER + 2), set()
    for seed in range(4):
        draw, leases = random.Random(seed), []
        with contextlib.ExitStack() as stack:
            clients = {uid: stack.enter_context(client_of(daemon, uid)) for uid in users}
            for _ in range(ROUNDS):
                for _ in range(draw.randrange(4)):
                    change_of_users(draw, clients, files[:5], leases)
                uid = draw.choice(users)
                seen.add(agree_of_users(draw, uid, clients[uid], clients[0], draw.choice(files)))
            for client, lease in leases:
                client.call("Detach", lease=lease)
    assert seen >= {None, "OutOfDeviceMemory", "NameInUse", "LimitExceeded", "PermissionDenied"}


def test_name_that_is_taken(client, models):
    """There is memory for it, and it cannot be loaded all the same."""
    a, b = models(2)
    client.call("Load", path=str(a), name="m")
    plan = client.call("Plan", path=str(b), name="m")
    assert (plan["fits"], plan["error"]) == (True, "io.rocmforge.NameInUse")
    assert client.call("Plan", path=str(b), name="n")["error"] is None
    assert client.call("Plan", path=str(a), name="n")["model"]["name"] == "m"


def test_name_that_drains(client, models):
    a, b = models(2)
    client.call("Load", path=str(a), name="m", lease=True)
    client.call("Unload", name="m", force=True)
    assert client.call("Plan", path=str(a), name="m")["error"] == "io.rocmforge.ModelBusy"
    assert client.call("Plan", path=str(b), name="m")["error"] == "io.rocmforge.NameInUse"
    assert client.call("Plan", path=str(a), name="n")["error"] is None


def test_rfctl_plan_tells_why(daemon, models):
    a, b = models(2)
    daemon.rfctl("load", a, "--name", "m")
    plan = daemon.rfctl("plan", b, "--name", "m", check=False)
    assert plan.returncode == 1
    why = "another model has this name; take another one with --name, or, if that model is yours, --replace"
    assert plan.stdout.splitlines()[-1] == f"cannot be loaded: {why}"
    assert daemon.rfctl("plan", b, "--name", "m", "--replace").returncode == 0
    assert daemon.rfctl("plan", b, "--name", "n").returncode == 0


def test_rfctl_plan_tells_why_also_if_it_does_not_fit(start, models):
    """Memory is not all that keeps it from being loaded, and load names the other reason."""
    daemon = start("--budget", str(GRANULE))
    (path,) = models(1)
    with daemon.client() as client:
        client.call("Load", path=str(path), name="m", lease=True)
        client.call("Unload", name="m", force=True)
        lines = daemon.rfctl("plan", path, "--name", "m", check=False).stdout.splitlines()
        assert lines[-2].startswith("does not fit: ")
        assert lines[-1] == "cannot be loaded: it is being unloaded, and somebody still has it mapped"
        with wire_error("ModelBusy"):
            client.call("Load", path=str(path), name="m")


def rfctl_of(daemon, uid, *arguments):
    """What rfctl says on standard output for this user, and its exit status."""
    rfctl = str(build_folder() / "client" / "rfctl" / "rfctl")
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    command = [*user, rfctl, "--socket", str(daemon.socket), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines(), done.returncode


def test_a_users_bytes(start_for_all, models):
    """The limit of a user is asked for as well. There is memory all the same."""
    daemon = start_for_all("--user-bytes", str(GRANULE))
    a, b = models(2)
    with client_of(daemon, USER) as client, open(a, "rb") as first, open(b, "rb") as second:
        assert client.call("Plan", fds=[first.fileno()])["error"] is None
        client.call("Load", fds=[first.fileno()])
        plan = client.call("Plan", fds=[second.fileno()])
        assert (plan["error"], plan["fits"], plan["evicts"]) == ("io.rocmforge.LimitExceeded", True, [])
        with wire_error("LimitExceeded") as error:
            client.call("Load", fds=[second.fileno()])
        assert error["limit"] == "user-bytes"
        for path in (a, b):
            os.chmod(path, 0o644)
        lines, status = rfctl_of(daemon, USER, "plan", b)
        assert status == 1 and lines[-2].startswith("fits: ")
        assert lines[-1].startswith("cannot be loaded: a limit is reached: ")


def test_a_model_that_is_there_needs_no_memory(start_for_all, models):
    """Also if the load is refused for another reason."""
    daemon = start_for_all("--budget", str(GRANULE))
    (path,) = models(1)
    os.chmod(path, 0o644)
    with client_of(daemon, USER) as user:
        load_fd(user, path, name="m", lease=True)
        lines, status = rfctl_of(daemon, USER + 1, "plan", path, "--public")
        assert status == 1 and lines[-2].startswith("fits: ")
        assert lines[-1] == "cannot be loaded: only who owns the file makes its model public"


@pytest.mark.parametrize("device", [{}, {"device": "host"}])
def test_there_is_no_gpu_to_decode_with(client, small_model, device):
    """Host memory has none. Load refuses it, so Plan does not say that it fits."""
    said = []
    for method in ("Plan", "Load"):
        with pytest.raises(WireError) as caught:
            client.call(method, path=str(small_model), dequant="gpu", **device)
        said.append((caught.value.name, caught.value.parameters))
    reason = {"device": "gpu", "reason": "host memory has no GPU to decode with"}
    assert said == [("DeviceNotFound", reason)] * 2


# A value that a parameter cannot have, and the parameter.
WRONG = [
    ({"fds": [0]}, "fds"),
    ({"path": None}, "fds"),
    ({"path": "tiny.gguf"}, "path"),
    ({"name": "-m"}, "name"),
    ({"form": "f8"}, "form"),
    ({"forms": [{}]}, "forms"),
    ({"dequant": "npu"}, "dequant"),
    ({"private": True, "public": True}, "public"),
]


@pytest.mark.parametrize("method", ["Plan", "Load"])
@pytest.mark.parametrize("wrong, parameter", WRONG)
def test_wrong_parameters(client, small_model, method, wrong, parameter):
    with pytest.raises(WireError) as caught:
        client.call(method, **{"path": str(small_model), **wrong})
    assert (caught.value.name, caught.value.parameters) == (
        "org.varlink.service.InvalidParameter", {"parameter": parameter}
    )


def asked(client, method, path, **parameters):
    """The error of the answer, or the model in it."""
    try:
        with open(path, "rb") as file:
            answer = client.call(method, fds=[file.fileno()], **parameters)
        return answer["model"]["id"] if method == "Load" else answer["error"] or answer["model"]["id"]
    except WireError as error:
        return error.name, error.parameters


def test_a_resident_model_whose_configuration_is_gone(client, folder):
    """Load does not read it again to join the model, nor does Plan need it."""
    make_hf.make(folder / "llama", "llama")
    tp = {"layout": "vllm", "tp": {"rank": 0, "size": 2}}
    model = client.call("Load", path=str(folder / "llama"), **tp)["model"]
    (folder / "llama" / "config.json").unlink()
    plan = client.call("Plan", path=str(folder / "llama"), **tp)
    keys = ("bytes", "size", "tensors", "device")
    assert {key: plan[key] for key in keys} == {key: model[key] for key in keys}
    assert (plan["error"], plan["fits"], plan["evicts"], plan["model"]["id"]) == (None, True, [], model["id"])
    assert client.call("Load", path=str(folder / "llama"), **tp)["model"]["id"] == model["id"]
    for method in ("Plan", "Load"):
        with wire_error("InvalidLayout"):
            client.call(method, path=str(folder / "llama"), layout="vllm", tp={"rank": 1, "size": 2})


def test_a_broken_file(start_for_all, models):
    """What is wrong beside the file is said first, by both."""
    daemon = start_for_all()
    whole, broken = models(2)
    broken.write_bytes(whole.read_bytes()[:600])
    for path in (whole, broken):
        os.chown(path, USER, USER)
        os.chmod(path, 0o644)
    with client_of(daemon, USER) as user, client_of(daemon, USER + 1) as other:
        load_fd(user, whole, name="m")
        for client, parameters, error in (
            (user, {"name": "m"}, "NameInUse"), (other, {"public": True}, "PermissionDenied"),
            (user, {}, "InvalidModel"), (user, {"form": "f32"}, "InvalidModel"), (user, {"name": "m", "replace": True}, "InvalidModel"),
        ):  # fmt: skip
            answers = [asked(client, method, broken, **parameters) for method in ("Plan", "Load")]
            assert answers[0] == answers[1] and answers[0][0] == error, (parameters, answers)
        lease = user.call("Attach", name="m")["lease"]
        user.call("Unload", name="m", force=True)
        assert asked(user, "Plan", broken, name="m")[0] == asked(user, "Load", broken, name="m")[0] == "NameInUse"
        user.call("Detach", lease=lease)
