"""--lock-memory: host memory of models is locked, and a daemon that may not lock it does not start."""
import os

import pytest
from harness import MIB, TIMEOUT, daemon_program, fake_gpu_folder, library_environment, load_fd, module_folder, tensor_model, wait_until

SIZE = 8 * MIB


def locked(daemon):
    with open(f"/proc/{daemon.pid}/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmLck:")).split()[1]) * 1024


@pytest.fixture(autouse=True)
def is_root():
    if os.geteuid() != 0:
        pytest.skip("needs root, who may lock memory and may be somebody else")
    if library_environment()["LD_PRELOAD"]:
        pytest.skip("a sanitizer takes calls of mlock() for itself, and locks nothing")


def test_a_resident_model_is_locked(start, folder):
    daemon = start("--lock-memory")
    path = tensor_model(folder / "m.gguf", SIZE)
    with daemon.client() as client:
        load_fd(client, path, name="m")
        assert locked(daemon) >= SIZE
        assert client.call("Verify", name="m")["mismatches"] == []
        client.call("Unload", name="m")
    wait_until(lambda: locked(daemon) == 0)


def test_nothing_is_locked_without_it(start, folder):
    daemon = start()
    with daemon.client() as client:
        load_fd(client, tensor_model(folder / "m.gguf", SIZE), name="m")
        assert locked(daemon) == 0


@pytest.mark.skipif(not fake_gpu_folder(), reason="this build has no module for AMD GPUs (hipcc is not installed)")
def test_a_copy_in_host_memory_is_locked(start, folder):
    gpu = {"LD_LIBRARY_PATH": str(fake_gpu_folder()), "ROCMFORGE_MODULE_DIR": str(module_folder())}
    daemon = start("--device", "hip", "--budget", str(2 * SIZE), "--host-cache", "1G", "--lock-memory", env=gpu)
    with daemon.client() as client:
        load_fd(client, tensor_model(folder / "a.gguf", SIZE), name="a", form="native")
        load_fd(client, tensor_model(folder / "b.gguf", 2 * SIZE - MIB), name="b", form="native")
        assert {model["name"]: model["state"] for model in daemon.models()} == {"a": "cached", "b": "resident"}
        assert locked(daemon) >= SIZE
        client.call("Unload", name="a")
    wait_until(lambda: locked(daemon) == 0)


@pytest.mark.parametrize("limit, starts", ((MIB, False), (4 * MIB, True)))
def test_it_may_lock_what_models_may_take(start, folder, limit, starts):
    os.chown(folder, 65534, 65534)
    program = ["prlimit", f"--memlock={limit}:{limit}", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    daemon = start("--lock-memory", "--budget", "4Mi", ready=False, program=[*program, daemon_program()])
    if starts:
        daemon.wait_ready()
        return
    assert daemon.process.wait(TIMEOUT) == 1
    assert "--lock-memory" in daemon.log and "LimitMEMLOCK=" in daemon.log
    assert "1.0 MB may be locked" in daemon.log, daemon.log
