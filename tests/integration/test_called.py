"""By which name a model is called to whom: by one that means this very model to the user who is told it."""
import hashlib
import subprocess

import pytest
from harness import MIB, USER, build_folder, call_with_file, load_as, wait_until, wire_error

OTHER = USER + 1


def plan_as(client, uid, path, **parameters):
    return call_with_file(client, uid, "Plan", path, **parameters)


def rfctl_of(daemon, uid, *arguments):
    command = [str(build_folder() / "client" / "rfctl" / "rfctl"), "--socket", str(daemon.socket), *map(str, arguments)]
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
    return subprocess.run([*user, *command], capture_output=True, check=True, timeout=60).stdout


class Two:
    """A user's private file is resident as m, and so is a file of root that everybody may read: root did not see the
    first one when it gave the name."""

    def __init__(self, daemon, clients, own):
        self.daemon = daemon
        self.user, self.other, self.root = clients(daemon, USER), clients(daemon, OTHER), clients(daemon, 0)
        self.path, self.shared = own("mine.gguf", mode=0o600), own("shared.gguf", 0, 2)
        self.own = load_as(self.user, USER, self.path, name="m", pin=True)
        self.of_root = load_as(self.root, 0, self.shared, name="m")
        self.full = f"m#{self.of_root['id']}"


@pytest.fixture
def two(start_for_all, clients, own):
    return Two(start_for_all("--budget", "6Mi"), clients, own)


def test_load_and_plan(two):
    planned = plan_as(two.user, USER, two.shared)["model"]
    joined = load_as(two.user, USER, two.shared)
    assert planned["id"] == joined["id"] == two.of_root["id"]
    assert planned["name"] == joined["name"] == two.full and planned["aliases"] == joined["aliases"] == []
    assert two.user.call("Attach", name=joined["name"])["model"]["id"] == joined["id"]
    assert load_as(two.other, OTHER, two.shared)["name"] == "m", "to whom it means that one"


def test_the_bytes_are_those_of_the_file(two):
    """What `rfctl dump` prints by the name that Load answers with, and by the file."""
    told = load_as(two.user, USER, two.shared)["name"]
    dumps = [rfctl_of(two.daemon, USER, "dump", what, "blk.0.ffn_up.weight") for what in (told, two.shared, "m", two.path)]
    sums = [hashlib.sha256(dump).hexdigest() for dump in dumps]
    assert sums[0] == sums[1] != sums[2] == sums[3]


def test_a_further_name_is_told_first_if_the_first_means_another(two):
    """With one that the user gave, the model has a name for the user."""
    joined = load_as(two.user, USER, two.shared, name="r")
    assert (joined["name"], joined["aliases"]) == ("r", [])
    assert [load_as(two.other, OTHER, two.shared)[key] for key in ("name", "aliases")] == ["m", ["r"]]


def test_every_answer(two):
    leased = two.user.call("Attach", name=two.full)
    assert leased["model"]["name"] == two.full
    shown = two.user.call("Show", name=two.full)
    assert shown["model"]["name"] == two.full and [lease["model"] for lease in shown["leases"]] == [two.full]
    assert {model["name"]: model["id"] for model in two.user.call("List")["models"]} == {
        "m": two.own["id"], two.full: two.of_root["id"],
    }  # fmt: skip
    samples = {metric["name"]: metric["samples"] for metric in two.user.call("Metrics")["metrics"]}["rocmforge_model_leases"]
    told = [{label["name"]: label["value"] for label in sample["labels"]} for sample in samples]
    assert {labels["model"]: labels["id"] for labels in told} == {"m": str(two.own["id"]), two.full: str(two.of_root["id"])}
    with wire_error("ModelBusy") as error:
        two.user.call("Cancel", name=two.full)
    assert error["name"] == two.full and [lease["model"] for lease in error["leases"]] == [two.full]
    assert two.root.call("Unload", name=two.full, force=True)["state"] == "draining"
    assert two.user.call("Status")["draining"] == [two.full]


def test_what_would_be_evicted(two, own):
    """The user's own m is pinned: it is the other one that goes."""
    large = own("large.gguf", seed=3, size=3 * MIB)
    assert plan_as(two.user, USER, large)["evicts"] == [two.full]
    assert plan_as(two.other, OTHER, large)["evicts"] == ["m"]
    assert rfctl_of(two.daemon, USER, "plan", large).decode().count(two.full) == 1


def test_events(two, clients):
    """One event is told to each watcher by that watcher's name."""
    watchers = {uid: clients(two.daemon, uid).more("Watch") for uid in (USER, OTHER)}
    first = {uid: next(watcher)["models"] for uid, watcher in watchers.items()}
    assert [model["name"] for model in first[USER]] == ["m", two.full]
    assert [model["name"] for model in first[OTHER]] == ["m"]
    two.other.call("Attach", name="m")
    for uid, name in (USER, two.full), (OTHER, "m"):
        event = next(watchers[uid])
        assert (event["event"], event["model"]["name"], event["model"]["id"]) == ("attached", name, two.of_root["id"])


def test_many_models_of_one_name(start_for_all, clients, own):
    """Which of them a name means is decided for each, however many there are."""
    daemon = start_for_all()
    for i in range(12):
        uid = OTHER + i
        load_as(clients(daemon, uid), uid, own(f"f{i}.gguf", uid, i + 1, 0o600), name="m")
    models = clients(daemon, 0).call("List")["models"]
    assert [model["name"] for model in models] == ["m", *(f"m#{model['id']}" for model in models[1:])]
    ps = daemon.rfctl("ps").stdout.splitlines()[1:]
    assert [line.split()[0] for line in ps] == [model["name"] for model in models]
    for name in (model["name"] for model in models):
        assert daemon.rfctl("show", name).returncode == 0


def test_the_name_is_the_plain_one_again(two):
    """When the user's own model is gone, m means the other one."""
    two.user.call("Unload", name="m", force=True)
    wait_until(lambda: len(two.user.call("List")["models"]) == 1)
    (left,) = two.user.call("List")["models"]
    assert (left["name"], left["id"]) == ("m", two.of_root["id"])
