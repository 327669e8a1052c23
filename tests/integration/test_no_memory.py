"""A daemon that is short of memory for its own work: whatever it was about to do, it says that, and goes on."""
import subprocess

import make_model
import pytest
from harness import MIB, ROOT, fake_gpu_folder, library_environment, load, module_folder, names, states, wait_until, wire_error

TENSORS = 1000

# Bytes, in the daemon's structs.
PLACEMENT = 32
EXTENT = 16
PIECE = 48
CANDIDATE = 24

MEMORY = {"limit": "memory", "value": 0}


class Short:
    """While it is set, the daemon has no memory for what takes so many bytes."""

    def __init__(self, path, library):
        self.path = path
        self.env = {"LD_PRELOAD": str(library), "NO_MEMORY": str(path)}

    def set(self, n_bytes):
        new = self.path.with_suffix(".new")
        new.write_text(str(n_bytes))
        new.replace(self.path)

    def off(self):
        self.path.unlink()


@pytest.fixture
def short(folder):
    if library_environment()["LD_PRELOAD"]:
        pytest.skip("a sanitizer's runtime does not always start beside another calloc(); test_faults.py runs with it")
    library = folder / "no_memory.so"
    source = ROOT / "tests" / "lib" / "no_memory.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", library, source, "-ldl"], check=True)
    return Short(folder / "short", library)


@pytest.fixture
def many(folder):
    """A model of so many tensors that what is kept of each takes more than anything else, and just so much."""
    path = folder / "many.gguf"
    types = make_model.load_types()
    tensors = [make_model.Tensor(f"blk.{i}.ffn_up.weight", types["f32"], (64,)) for i in range(TENSORS)]
    make_model.write_model(path, tensors, make_model.metadata(1, 256, 256, 4, 100), 1)
    return path


def test_no_memory_to_verify(start, short, many):
    daemon = start(env=short.env)
    with daemon.client() as client:
        load(client, many, "m")
        short.set(TENSORS * PLACEMENT)
        with wire_error("LimitExceeded") as error:
            client.call("Verify", name="m")
        assert error == MEMORY
        short.off()
        assert client.call("Verify", name="m")["mismatches"] == []


@pytest.mark.parametrize("n_bytes", [TENSORS * PLACEMENT, (TENSORS + 1) * EXTENT])
def test_no_memory_to_load(start, short, many, n_bytes):
    daemon = start(env=short.env)
    with daemon.client() as client:
        short.set(n_bytes)
        with wire_error("LimitExceeded") as error:
            load(client, many, "m")
        assert error == MEMORY and names(daemon) == [] and daemon.used() == 0
        short.off()
        load(client, many, "m")


def test_no_memory_to_make_room(start, short, models):
    """Neither to find out who would go."""
    daemon = start("--budget", "80Mi", env=short.env)
    paths = models(41)
    with daemon.client() as client:
        for i, path in enumerate(paths[:40]):
            load(client, path, f"m{i}")
        short.set(40 * CANDIDATE)
        with wire_error("LimitExceeded") as error:
            client.call("Plan", path=str(paths[40]))
        assert error == MEMORY
        short.set(41 * CANDIDATE)  # this one, too
        with wire_error("LimitExceeded") as error:
            load(client, paths[40], "new")
        assert error == MEMORY and len(names(daemon)) == 40
        short.off()
        assert client.call("Plan", path=str(paths[40]))["evicts"] == ["m0"]
        load(client, paths[40], "new")


def test_no_memory_to_bring_it_back(start, short, folder):
    fake = fake_gpu_folder()
    if not fake:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    env = {"ROCMFORGE_MODULE_DIR": str(module_folder()), "LD_LIBRARY_PATH": str(fake)}
    options = ("--device", "hip", "--budget", "96Mi", "--host-cache", "1Gi", "--staging", "3Mi")
    daemon = start(*options, env={**env, **short.env})
    types = make_model.load_types()
    paths = [folder / f"m{i}.gguf" for i in range(2)]
    for i, path in enumerate(paths):
        tensors = [make_model.Tensor("blk.0.ffn_up.weight", types["f32"], (16 * MIB,))]
        make_model.write_model(path, tensors, make_model.metadata(1, 256, 256, 4, 100), i)
    with daemon.client() as client:
        for path, name in zip(paths, "ab"):
            load(client, path, name)
        wait_until(lambda: states(daemon) == {"a": "cached", "b": "resident"})
        short.set(64 * PIECE)  # of the plan of the copy as it lies: one for each mebibyte
        with wire_error("LimitExceeded") as error:
            client.call("Attach", name="a")
        assert error == MEMORY
        wait_until(lambda: states(daemon) in ({"a": "cached"}, {"a": "cached", "b": "cached"}))
        short.off()
        assert client.call("Attach", name="a")["model"]["state"] == "resident"
