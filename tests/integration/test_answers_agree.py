"""What the daemon answers to different calls about the same models agrees, whatever was done to them, for each user."""
import contextlib
import os
import random
import signal
import threading
import time

import pytest
from harness import (
    GRANULE, MIB, USER, client_of, fake_gpu_folder, module_folder, tensor_model, wait_until,
)  # fmt: skip
from rocmforge_wire import Closed, WireError

BUDGET = 5 * GRANULE
NAMES = ["a", "b", "c", "d"]
ROUNDS = 120
REFUSALS = (
    "ModelBusy", "PermissionDenied", "ModelNotFound", "OutOfDeviceMemory", "NameInUse", "LimitExceeded", "FileChanged",
)  # fmt: skip


class Watcher:
    """What a client knows that only reads the events."""

    def __init__(self, client):
        self.client, self.models = client, {}
        first, _ = self.first(client)
        self.models.update({model["id"]: model for model in first["models"]})
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    @staticmethod
    def first(client):
        client.send("Watch", more=True)
        return client.reply()

    def read(self):
        with contextlib.suppress(Closed, OSError, ValueError):
            while True:
                event, _ = self.client.reply()
                model = event["model"]
                ended = event["event"] in ("cancelled", "failed") and model["state"] != "cached"
                if event["event"] == "unloaded" or ended:
                    self.models.pop(model["id"], None)
                else:
                    self.models[model["id"]] = model

    def close(self):
        self.client.socket.shutdown(2)
        self.thread.join()
        self.client.close()


class Rig:
    """A daemon, and clients of several users."""

    def __init__(self, daemon, users, files, stack):
        self.daemon, self.files = daemon, files
        self.clients = {uid: stack.enter_context(client_of(daemon, uid)) for uid in users}
        self.watchers = {uid: Watcher(client_of(daemon, uid)) for uid in users}
        for watcher in self.watchers.values():
            stack.callback(watcher.close)
        self.leases = []
        self.done = []  # what was done, to tell if something is wrong
        self.seen = set()  # errors, and notes of models
        self.shared = set()  # (id, name), if another model had the name too

    def settle(self):
        root = self.clients[0]
        wait_until(
            lambda: all(model["state"] in ("resident", "cached", "draining") for model in root.call("List")["models"])
            and root.call("Status")["loads"] == 0
        )


def listed(client):
    return {model["id"]: model for model in client.call("List")["models"]}


def names_of(model):
    return {name for name in (model["name"], *model["aliases"]) if "#" not in name}


def full_name(model):
    """What means this model for everybody who sees it."""
    return f"{model['name'].split('#')[0]}#{model['id']}"


def without_time(model):
    return {key: value for key, value in model.items() if key != "idle"}


def load_parameters(draw, devices):
    parameters = {}
    if draw.random() < 0.7:
        parameters["name"] = draw.choice(NAMES)
    for key, odds in ("replace", 0.4), ("private", 0.1), ("public", 0.1), ("pin", 0.1):
        if draw.random() < odds and not (key == "public" and "private" in parameters):
            parameters[key] = True
    if draw.random() < 0.3:
        parameters["form"] = draw.choice(["native", "f32"])
    if draw.random() < 0.2:
        parameters["ttl"] = draw.choice([100, 1000])
    if draw.random() < 0.5:
        parameters["device"] = draw.choice(devices)
    return parameters


def do_file(draw, rig, path, what):
    if what == "delete":
        path.unlink(missing_ok=True)
    elif what == "write" or not path.exists():
        new = tensor_model(path.with_suffix(".new"), draw.choice([1, 2, 3]) * MIB, draw.randrange(3))
        new.chmod(draw.choice([0o600, 0o644]))
        os.chown(new, draw.choice(sorted(rig.clients)), 0)
        new.rename(path)
    elif what == "chmod":
        path.chmod(draw.choice([0o600, 0o644]))
    elif what == "touch":
        os.utime(path, (draw.randrange(1 << 30), 1))
    else:
        path.rename(path.with_suffix(".old"))


def do_model(draw, rig, client, what):
    models = list(listed(client).values())
    if not models:
        return
    model = draw.choice(models)
    name = draw.choice([full_name(model), *sorted(names_of(model))])
    rig.done[-1] += (name,)
    if what == "attach":
        reply = client.call("Attach", name=name)
        rig.leases.append((client, reply["lease"], reply["model"]["id"]))
    elif what == "unload":
        client.call("Unload", name=name)
    elif what == "drain":
        client.call("Unload", name=name, force=True, **draw.choice([{}, {"deadline": 0.05}]))
        time.sleep(0.1)  # after it the model has lost its name
    elif what == "ttl":
        client.call("SetTtl", name=name, ttl=draw.choice([100, None]))
    elif what == "verify":
        client.call("Verify", name=name)
    else:
        client.call(what, name=name)


def do(draw, rig, devices):
    """Something that happens to a model or a file."""
    uid = draw.choice(sorted(rig.clients))
    client, path = rig.clients[uid], draw.choice(rig.files)
    what = draw.choice(
        ["load"] * 8 + ["attach"] * 3 + ["detach", "unload", "drain", "Pin", "Unpin", "Unpin", "ttl", "verify", "verify"]
        + ["write", "write", "chmod", "touch", "delete", "move", "hangup", "hangup"]
    )  # fmt: skip
    rig.done.append((uid, what, path.name))
    try:
        if what == "load":
            parameters = load_parameters(draw, devices)
            rig.done[-1] += (parameters,)
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                client.call("Load", fds=[file.fileno()], **parameters)
        elif what == "detach" and rig.leases:
            holder, lease, _ = rig.leases.pop(draw.randrange(len(rig.leases)))
            holder.call("Detach", lease=lease)
        elif what == "hangup":
            rig.daemon.process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
            wait_until(rig.daemon.is_idle)
        elif what in ("write", "chmod", "touch", "delete", "move"):
            do_file(draw, rig, path, what)
        elif what != "detach":
            do_model(draw, rig, client, what)
    except WireError as error:
        rig.done[-1] += (error.name,)
        rig.seen.add(error.name)
        assert error.name in REFUSALS, error


def check_names(client, models, others):
    """Every name that is listed with a model means that model; what is not listed is not there."""
    for model in models.values():
        assert without_time(client.call("Show", name=full_name(model))["model"]) == without_time(model)
        for name in (model["name"], *model["aliases"]):
            assert client.call("Show", name=name)["model"]["id"] == model["id"]
    for model in others.values():
        for name in (full_name(model), *names_of(model)):
            if not any(name in names_of(one) for one in models.values()):
                for method in ("Show", "Verify", "Unload", "Pin", "SetTtl", "Cancel"):
                    with pytest.raises(WireError) as caught:
                        client.call(method, name=name)
                    assert caught.value.name == "ModelNotFound", (method, name)


def check_counts(client, models):
    status = client.call("Status")
    assert status["models"] == len(models)
    assert status["leases"] == sum(model["leases"] for model in models.values())
    for model in models.values():
        leases = client.call("Show", name=full_name(model))["leases"]
        assert len(leases) == model["leases"]
        assert (model["idle"] is None) == (model["state"] != "resident" or model["leases"] > 0), model
        assert (model["access"] == "private") == model["private"]


def check_devices(client, models):
    for device in client.call("Devices")["devices"]:
        there = [m for m in models.values() if m["device"] == device["id"] and m["state"] != "cached"]
        assert device["used"] == sum(model["bytes"] for model in there), (device, there)
        free = min(device["budget"] - device["used"], device["total"] - device["others"] - device["used"] - device.get("cached", 0))
        assert device["available"] == max(0, free - device["queued"]), device


def check_metrics(client, models):
    metrics = {metric["name"]: metric["samples"] for metric in client.call("Metrics")["metrics"]}
    told = {}
    for sample in metrics["rocmforge_model_memory_bytes"]:
        labels = {label["name"]: label["value"] for label in sample["labels"]}
        told[int(labels["id"])] = (labels["model"], labels["device"], labels["state"], sample["value"])
    assert told == {i: (m["name"], m["device"], m["state"], m["bytes"]) for i, m in models.items()}


def seen(model, shared):
    keys = ("state", "leases", "device", "bytes", "uid", "changed")
    names = {name for name in names_of(model) if (model["id"], name) not in shared}
    return {**{key: model[key] for key in keys}, "deleted": model.get("deleted"), "names": names}


def check_events(watcher, models, held, shared):
    """Who has read the events knows what is so now of each model that it was told of. held: models on which the user has
    leases: of these it is told also if it does not see them any more. shared: names that another model had too: when
    that one comes or goes, there is no event for this one."""

    def same():
        told = dict(watcher.models)
        return set(told) <= set(models) | held and all(
            seen(told[i], shared) == seen(models[i], shared) for i in told if i in models
        )

    try:
        wait_until(same, 3)
    except AssertionError:
        told = dict(watcher.models)
        assert {i: seen(m, shared) for i, m in told.items()} == {i: seen(m, shared) for i, m in models.items() if i in told}
        raise


def check_rights(client, uid, model):
    """Whoever may change a model may do so by each call that changes one."""
    if model["state"] == "draining":
        return
    may = uid in (0, model["uid"])
    pinned, ttl = model["pinned"], model["ttl"]
    for method, parameters in ("Pin" if pinned else "Unpin", {}), ("SetTtl", {"ttl": ttl}):
        try:
            client.call(method, name=full_name(model), **parameters)
            assert may, (method, model)
        except WireError as error:
            assert error.name == "PermissionDenied" and not may, (method, model, error)


def check_plan(rig, client):
    """A model that is there already is one that is listed, and its file has not changed."""
    for path in rig.files:
        if not path.exists():
            continue
        for form in ("auto", "f32"):
            with open(path, "rb") as file:
                plan = client.call("Plan", fds=[file.fileno()], form=form)
            rig.settle()
            if "model" in plan:
                model = listed(rig.clients[0]).get(plan["model"]["id"])
                assert model and not model["changed"], (plan, model)
                assert (plan["device"], plan["bytes"], plan["evicts"]) == (model["device"], model["bytes"], [])


def note_shared(rig):
    """Notes each model with each name that another model has too, if some user sees it."""
    having = {}
    for client in rig.clients.values():
        for id_, model in listed(client).items():
            for name in names_of(model):
                having.setdefault(name, set()).add(id_)
    rig.shared.update((id_, name) for name, ids in having.items() if len(ids) > 1 for id_ in ids)


def check(rig):
    rig.settle()
    everything = listed(rig.clients[0])
    rig.seen.update(key for model in everything.values() for key in ("changed", "deleted") if model.get(key))
    rig.seen.update(model["state"] for model in everything.values())
    note_shared(rig)
    for uid, client in rig.clients.items():
        models = listed(client)
        others = {i: model for i, model in everything.items() if i not in models}
        check_names(client, models, others)
        check_counts(client, models)
        check_metrics(client, models)
        held = {id_ for holder, _, id_ in rig.leases if holder is client}
        check_events(rig.watchers[uid], models, held, rig.shared)
        for model in models.values():
            check_rights(client, uid, model)
    check_devices(rig.clients[0], everything)


def run(daemon, folder, seed, devices):
    draw = random.Random(seed)
    files = [tensor_model(folder / f"{name}.gguf", (i % 3 + 1) * MIB, i) for i, name in enumerate("abcde")]
    for path in files:
        os.chown(path, draw.choice([0, USER, USER + 1]), 0)
    with contextlib.ExitStack() as stack:
        rig = Rig(daemon, (0, USER, USER + 1), files, stack)
        for _ in range(ROUNDS):
            do(draw, rig, devices)
            try:
                check(rig)
                if draw.random() < 0.2:
                    check_plan(rig, rig.clients[draw.choice(sorted(rig.clients))])
            except BaseException:
                print(*rig.done, sep="\n")
                raise
        for client, lease, _ in rig.leases:
            client.call("Detach", lease=lease)
    if "SEED" in os.environ:
        print(sorted(rig.seen))
    return rig.seen


SEEDS = [int(os.environ["SEED"])] if "SEED" in os.environ else [2, 4]


@pytest.mark.parametrize("seed", SEEDS)
def test_on_the_host(start_for_all, folder, seed):
    run(start_for_all("--budget", str(BUDGET)), folder, seed, ["auto", "host"])


@pytest.mark.parametrize("seed", SEEDS)
def test_on_gpus(start_for_all, folder, monkeypatch, seed):
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_gpu_folder()))
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(module_folder()))
    for name, value in {"DEVICES": "2", "MEMORY": "100000000", "TAKEN": "20000000"}.items():
        monkeypatch.setenv(f"FAKE_HIP_{name}", value)
    daemon = start_for_all("--device", "hip", "--budget", str(BUDGET), "--host-cache", "16Mi")
    run(daemon, folder, seed, ["auto", "host", "hip", "hip:0", "hip:1"])
