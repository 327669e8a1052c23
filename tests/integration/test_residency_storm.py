"""Many clients at once, each doing what comes to its mind; and clients that die in the middle. Nothing may be left."""
import os
import random
import signal
import subprocess
import sys
import threading
import time

import make_model
import pytest
from harness import ROOT, fake_gpu_folder, module_folder, sparse_model, wait_until
from rocmforge_wire import WireError

MIB = 1 << 20
CLIENTS = 8
SECONDS = 6
LEASES_MAX = 4

# Answers that somebody who does not look around first has to expect.
EXPECTED = {
    "Cancelled",
    "DeadlineExceeded",
    "ModelBusy",
    "ModelNotFound",
    "NameInUse",
    "OutOfDeviceMemory",
}


@pytest.fixture(scope="module")
def files(model_folder):
    types = make_model.load_types()
    paths = []
    for i in range(8):
        names = [["q4_0", "f16"], ["q8_0", "f32"], ["q6_K", "bf16"]][i % 3]
        tensors = make_model.sized_tensors(3, (1 + i % 3) * MIB, [types[name] for name in names])
        paths.append(model_folder / f"storm{i}.gguf")
        make_model.write_model(paths[-1], tensors, make_model.metadata(3, 256, 256, 4, 100), i)
    return paths


class Storm:
    def __init__(self, daemon, files):
        self.daemon = daemon
        self.files = files
        self.end = time.monotonic() + SECONDS
        self.wrong = []
        self.seen = {}
        self.lock = threading.Lock()

    def name(self, rng):
        return f"n{rng.randrange(len(self.files))}"

    def act(self, rng, client, leases):
        action = rng.choice(
            ["load"] * 6
            + ["attach"] * 6
            + ["detach"] * 5
            + ["unload"] * 2
            + ["pin", "ttl", "cancel", "verify", "force", "plan", "list", "leave"]
        )
        name, deadline = self.name(rng), rng.choice([None, None, 0.001, 0.02, 1])
        path = str(self.files[int(name[1:])])
        if action == "load":
            form = rng.choice(["auto", "auto", "native", "f32"])
            name, wait = name + form[0], rng.random() < 0.8
            client.call("Load", path=path, name=name, form=form, deadline=deadline, wait=wait)
            return action
        name += rng.choice("aanf")
        if action == "attach" and len(leases) < LEASES_MAX:
            leases.append(client.call("Attach", name=name, deadline=deadline)["lease"])
        elif action == "detach" and leases:
            client.call("Detach", lease=leases.pop(rng.randrange(len(leases))))
        elif action in ("unload", "force"):
            client.call("Unload", name=name, force=action == "force", deadline=deadline)
        elif action == "pin":
            client.call("Pin", name=name)
            client.call("Unpin", name=name)
        elif action == "ttl":
            client.call("SetTtl", name=name, ttl=rng.choice([None, 0, 1]))
        elif action == "cancel":
            client.call("Cancel", name=name, deadline=deadline)
        elif action == "verify":
            assert client.call("Verify", name=name, deadline=deadline)["mismatches"] == []
        elif action == "plan":
            client.call("Plan", path=path)
        elif action == "list":
            client.call("List")
        elif action == "leave":
            client.send("Load", {"path": path, "name": name})
            time.sleep(rng.random() * 0.01)
            return None
        return action

    def run(self, seed):
        rng = random.Random(seed)
        client, leases = self.daemon.client(), []
        try:
            while time.monotonic() < self.end:
                outcome = "error"
                try:
                    outcome = self.act(rng, client, leases)
                except WireError as error:
                    outcome = error.name
                    if error.name not in EXPECTED:
                        self.wrong.append(str(error))
                if outcome is None:
                    client.close()
                    client, leases = self.daemon.client(), []
                with self.lock:
                    self.seen[outcome] = self.seen.get(outcome, 0) + 1
        except Exception as error:  # pylint: disable=broad-except
            self.wrong.append(repr(error))
        finally:
            client.close()


def ride_out(daemon, files):
    before = daemon.settled_fds()
    storm = Storm(daemon, files)
    threads = [threading.Thread(target=storm.run, args=(seed,)) for seed in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert daemon.process.poll() is None, daemon.log
    assert not storm.wrong, storm.wrong[:5]
    assert storm.seen.get("load", 0) > 20 and storm.seen.get("attach", 0) > 20, storm.seen
    print(storm.seen)

    def quiet():
        with daemon.client() as client:
            return client.call("Status")["loads"] == 0 and client.call("Status")["leases"] == 0

    wait_until(quiet)

    def emptied():
        with daemon.client() as client:
            for model in client.call("List")["models"]:
                try:
                    client.call("Unload", name=model["name"])
                except WireError as error:
                    assert error.name in ("ModelBusy", "ModelNotFound"), error
            return client.call("List")["models"] == []

    wait_until(emptied)
    with daemon.client() as client:
        assert all(device["used"] == 0 for device in client.call("Devices")["devices"])
    wait_until(lambda: daemon.fds() == before)
    assert not any(link.startswith("/memfd:rocmforge") for link in daemon.fds())


def test_storm(start, files):
    ride_out(start("--budget", "14Mi", "--workers", "3"), files)


def test_storm_with_a_cache(start, files):
    fake = fake_gpu_folder()
    if not fake:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    daemon = start(
        *("--device", "hip", "--budget", "14Mi", "--workers", "3", "--host-cache", "20Mi", "--staging", "2Mi"),
        env={
            "ROCMFORGE_MODULE_DIR": str(module_folder()),
            "LD_LIBRARY_PATH": str(fake),
            "FAKE_HIP_SLOW": "copy=300,kernel=300,clear=3000",
        },
    )
    ride_out(daemon, files)


CLIENT = """
import sys
sys.path.insert(0, sys.argv[1])
from rocmforge_wire import Client
client = Client(sys.argv[2])
method = sys.argv[3]
if method != "Load":
    client.send("Attach", {"name": "big"})
    if method == "Leased":
        client.reply()
else:
    client.send("Load", {"path": sys.argv[4], "name": "big"}, more=True)
print("sent", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("delay", [0, 0.003, 0.01, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_dies_while_it_loads(daemon, large_model, delay, number):
    before = daemon.settled_fds()
    command = [sys.executable, "-c", CLIENT, str(ROOT / "tests" / "lib"), str(daemon.socket), "Load", str(large_model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "sent\n"
        time.sleep(delay)
        process.send_signal(number)

    def settled():
        with daemon.client() as client:
            return client.call("Status")["loads"] == 0

    wait_until(settled)
    with daemon.client() as client:
        for model in client.call("List")["models"]:
            assert model["state"] == "resident"
            client.call("Unload", name=model["name"])
    assert daemon.used() == 0
    wait_until(lambda: daemon.fds() == before)


def test_clients_die_while_attached_or_waiting(daemon, model_folder):
    """A holder's death ends its lease, and what drains for it goes."""
    path = sparse_model(model_folder / "die.gguf", 256 * MIB)
    before = daemon.settled_fds()
    for method in ("Leased", "Attach"):
        with daemon.client() as loader, daemon.client() as client:
            if method == "Leased":
                client.call("Load", path=str(path), name="big")
            else:
                loader.send("Load", {"path": str(path), "name": "big"})
                wait_until(lambda: client.call("List")["models"], every=0.001)
            command = [sys.executable, "-c", CLIENT, str(ROOT / "tests" / "lib"), str(daemon.socket), method]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout.readline() == "sent\n"
                if method == "Leased":
                    assert client.call("Unload", name="big", force=True)["state"] == "draining"
                process.kill()
            if method == "Leased":
                wait_until(lambda: client.call("List")["models"] == [])
            else:
                loader.reply()
                wait_until(lambda: client.call("List")["models"][0]["leases"] == 0)
                client.call("Unload", name="big")
    assert daemon.used() == 0
    wait_until(lambda: daemon.fds() == before)
    assert os.path.exists(f"/proc/{daemon.pid}")
