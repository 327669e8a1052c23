"""Several GPUs of the fake HIP runtime: which one a model goes to, and that it is found there again."""
import signal

import pytest
from harness import Gate, fake_gpu_folder, module_folder, sparse_model, wait_until, wire_error

MIB = 1 << 20
FAKE = fake_gpu_folder()
MODULES = module_folder()

pytestmark = pytest.mark.skipif(not FAKE, reason="this build has no module for AMD GPUs (hipcc is not installed)")


@pytest.fixture
def start_gpus(start):
    """start_gpus(*options, FAKE_HIP_...=...): a daemon with two GPUs of 512 MiB."""

    def start_some(*options, env=None, **settings):
        environment = {
            "LD_LIBRARY_PATH": str(FAKE),
            "ROCMFORGE_MODULE_DIR": str(MODULES),
            "FAKE_HIP_DEVICES": "2",
            "FAKE_HIP_MEMORY": str(512 * MIB),
        }
        return start("--device", "hip", *options, env={**environment, **(env or {}), **settings})

    return start_some


def load(client, path, **parameters):
    return client.call("Load", path=str(path), **parameters)["model"]


def devices(client):
    return {device["id"]: device for device in client.call("Devices")["devices"]}


@pytest.mark.parametrize("device", ["auto", "hip"])
def test_loaded_again_it_is_the_same(start_gpus, small_model, device):
    """The other GPU has more free by then, and does not matter."""
    with start_gpus().client() as client:
        first = load(client, small_model, device=device)
        assert load(client, small_model, device=device)["id"] == first["id"]
        assert load(client, small_model, name="other", device=device)["id"] == first["id"]
        assert client.call("Plan", path=str(small_model), device=device)["model"]["id"] == first["id"]
        assert len(client.call("List")["models"]) == 1


def test_joined_while_it_is_loading(start_gpus, part_gate, gated_model):
    daemon = start_gpus(env=part_gate.env)
    part_gate.close()
    with daemon.client() as first, daemon.client() as second:
        first.send("Load", {"path": str(gated_model)})
        wait_until(lambda: [model["state"] for model in daemon.models()] == ["filling"])
        second.send("Load", {"path": str(gated_model)})
        daemon.sync()
        part_gate.open()
        assert first.reply()[0]["model"]["id"] == second.reply()[0]["model"]["id"]


def test_one_that_was_named_is_that_one(start_gpus, small_model):
    with start_gpus().client() as client:
        first = load(client, small_model, device="hip:1")
        second = load(client, small_model, name="second", device="hip:0")
        assert (first["device"], second["device"]) == ("hip:1", "hip:0")
        assert first["id"] != second["id"]


def test_each_goes_where_the_most_is_free(start_gpus, model_folder):
    paths = [sparse_model(model_folder / f"free{i}.gguf", 64 * MIB) for i in range(4)]
    with start_gpus().client() as client:
        assert [load(client, path)["device"] for path in paths] == ["hip:0", "hip:1", "hip:0", "hip:1"]


def test_two_at_once_go_to_two(start_gpus, folder, model_folder):
    """Each is put somewhere when its size is known and reserved, not when it is asked for."""
    gate = Gate(folder / "gate", {})
    daemon = start_gpus(FAKE_HIP_GATE=str(gate.path))
    paths = [sparse_model(model_folder / f"at-once{i}.gguf", 96 * MIB) for i in range(2)]
    gate.close()
    with daemon.client() as first, daemon.client() as second:
        first.send("Load", {"path": str(paths[0])})
        second.send("Load", {"path": str(paths[1])})
        wait_until(lambda: [model["state"] for model in daemon.models()] == ["filling"] * 2)
        gate.open()
        models = [client.reply()[0]["model"] for client in (first, second)]
        assert sorted(model["device"] for model in models) == ["hip:0", "hip:1"]
        for model in models:
            assert first.call("Verify", name=model["name"])["mismatches"] == []


def test_where_it_fits_rather_than_where_another_must_go(start_gpus, model_folder):
    paths = [sparse_model(model_folder / f"fits{i}.gguf", size * MIB) for i, size in enumerate((40, 80, 32))]
    with start_gpus("--budget", "100Mi").client() as client:
        load(client, paths[0], name="small")
        load(client, paths[1], name="large")
        plan = client.call("Plan", path=str(paths[2]))
        assert (plan["device"], plan["fits"], plan["evicts"]) == ("hip:0", True, [])
        assert load(client, paths[2], name="third")["device"] == "hip:0"
        assert len(client.call("List")["models"]) == 3


def test_evicted_where_that_suffices(start_gpus, model_folder):
    """The one with more free has a model that somebody holds; the other's may go."""
    paths = [sparse_model(model_folder / f"evict{i}.gguf", size * MIB) for i, size in enumerate((65, 64, 75))]
    with start_gpus("--budget", "100Mi").client() as client:
        load(client, paths[0], name="idle")
        load(client, paths[1], name="held")
        client.call("Attach", name="held")
        assert client.call("Plan", path=str(paths[2]))["evicts"] == ["idle"]
        assert load(client, paths[2], name="new")["device"] == "hip:0"
        assert {model["name"] for model in client.call("List")["models"]} == {"held", "new"}


def test_what_others_have_taken_counts(start_gpus, small_model):
    """The ledgers are the same; the driver has less for the first."""
    with start_gpus(FAKE_HIP_TAKEN="300000000").client() as client:
        assert load(client, small_model)["device"] == "hip:1"


def test_a_lost_one_is_passed_over(start_gpus, small_model, model_folder):
    other = sparse_model(model_folder / "other.gguf", 4 * MIB)
    with start_gpus(FAKE_HIP_FAIL="hipMemExportToShareableHandle:3:719").client() as client:
        with wire_error("DeviceError"):
            load(client, small_model)
        assert [devices(client)[f"hip:{i}"]["state"] for i in range(2)] == ["failed", "ready"]
        assert load(client, small_model)["device"] == "hip:1"
        for method, parameters in (("Load", {"path": str(other)}), ("Plan", {"path": str(other)})):
            with wire_error("DeviceError") as error:
                client.call(method, device="hip:0", **parameters)
            assert error["text"] == "hip:0 was lost"


def test_verify_on_a_lost_one(start_gpus, small_model, model_folder):
    other = sparse_model(model_folder / "lose-it.gguf", 4 * MIB)
    with start_gpus(FAKE_HIP_FAIL="hipMemExportToShareableHandle:4:719").client() as client:
        load(client, small_model, name="early", device="hip:0")
        with wire_error("DeviceError"):
            load(client, other, device="hip:0")
        with wire_error("DeviceError") as error:
            client.call("Verify", name="early")
        assert error["text"] == "hip:0 was lost"


@pytest.mark.parametrize("first, second", [("auto", "hip:0"), ("auto", "hip:1"), ("hip:1", "auto"), ("hip:0", "hip:1")])
def test_loads_of_one_file_that_leave_other_choices(start_gpus, part_gate, gated_model, first, second):
    """Whoever names a device gets that one, whatever another load of the file was about to choose."""
    daemon = start_gpus(env=part_gate.env, FAKE_HIP_TAKEN="100000000")
    for round_ in range(6):
        part_gate.close()
        with daemon.client() as one, daemon.client() as two:
            one.send("Load", {"path": str(gated_model), "name": f"one{round_}", "device": first})
            two.send("Load", {"path": str(gated_model), "name": f"two{round_}", "device": second})
            daemon.sync()
            part_gate.open()
            models = [client.reply()[0]["model"] for client in (one, two)]
            for model, device in zip(models, (first, second)):
                assert device in ("auto", model["device"])
            assert (models[0]["device"] == models[1]["device"]) == (models[0]["id"] == models[1]["id"])
            for name in {model["name"] for model in models}:
                one.call("Unload", name=name)


def test_a_cached_model_of_a_lost_one(start_gpus, small_model, model_folder):
    """It says so, and not that memory is short."""
    paths = [sparse_model(model_folder / f"cached{i}.gguf", 8 * MIB) for i in range(3)]
    options = ("--budget", "12Mi", "--host-cache", "64Mi", "--keep-freed", "0")  # memory that is used again is not exported again
    daemon = start_gpus(*options, FAKE_HIP_DEVICES="1", FAKE_HIP_FAIL="hipMemExportToShareableHandle:4:719")
    with daemon.client() as client:
        load(client, paths[0], name="a", device="hip")
        load(client, paths[1], name="b", device="hip")
        wait_until(lambda: {m["name"]: m["state"] for m in daemon.models()}["a"] == "cached")
        with wire_error("DeviceError"):
            load(client, paths[2], name="c", device="hip")
        with wire_error("DeviceError") as error:
            client.call("Attach", name="a")
        assert error["text"] == "hip:0 was lost"


@pytest.mark.parametrize("leak", [False, True])
def test_memory_that_does_not_come_back_is_told(start_gpus, small_model, leak):
    daemon = start_gpus("--keep-freed", "0", **({"FAKE_HIP_LEAK": "1"} if leak else {}))
    with daemon.client() as client:
        load(client, small_model, name="m")
        client.call("Unload", name="m")
        assert devices(client)["hip:0"]["used"] == 0
    assert ("the driver has 0 B back" in daemon.log) == leak


def test_preloaded_again_it_is_the_same(start_gpus, small_model, gated_model, folder):
    links = folder / "models"
    links.mkdir()
    (links / "a.gguf").symlink_to(small_model)
    daemon = start_gpus("--preload", str(links))
    wait_until(lambda: [model["state"] for model in daemon.models()] == ["resident"])
    (links / "b.gguf").symlink_to(gated_model)  # looked at after the other
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: [model["state"] for model in daemon.models()] == ["resident"] * 2)
    assert "skipped" not in daemon.log
