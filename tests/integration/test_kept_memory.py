"""Memory of unloaded models that a GPU keeps for a moment (--keep-freed): who gets it again and who does not, that it
counts as free, and that it is given up when others need it. On tests/fake_hip and the module as it is built."""
import os
import subprocess
import sys
import time

import make_model
import pytest
from harness import MIB, ROOT, build_folder, fake_gpu_folder, library_environment, module_folder, wait_until

SIZE = 8 * MIB  # of a model on the device
DEVICE = 512 * MIB
AGAIN = "is used again"


@pytest.fixture
def start_gpu(start):
    fake = fake_gpu_folder()
    if not fake:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")

    def start_one(*options, **env):
        return start(
            *("--device", "hip", "--log-level", "debug", *options),
            env={
                "ROCMFORGE_MODULE_DIR": str(module_folder()),
                "LD_LIBRARY_PATH": str(fake),
                "FAKE_HIP_MEMORY": str(DEVICE),
                **env,
            },
        )

    return start_one


@pytest.fixture
def model(folder):
    """model(seed, rows): a file that becomes SIZE bytes of f16 on the device if `rows` is not given."""
    types = make_model.load_types()

    def make(seed, rows=256):
        path = folder / f"m{seed}-{rows}.gguf"
        tensors = [make_model.Tensor(f"blk.{i}.ffn_up.weight", types["q8_0"], (rows, 4096)) for i in range(4)]
        make_model.write_model(path, tensors, make_model.metadata(1, rows, rows, 4, 100), seed)
        return str(path)

    return make


@pytest.mark.parametrize("export", ["fd", "ipc"])
def test_the_next_model_gets_it(start_gpu, model, export):
    daemon = start_gpu("--export", export, "--keep-freed", "60")
    with daemon.client() as client:
        assert client.call("Load", path=model(1), name="a")["model"]["bytes"] == SIZE
        client.call("Unload", name="a")
        assert AGAIN not in daemon.log
        client.call("Load", path=model(2), name="b")
        assert AGAIN in daemon.log
        assert client.call("Verify", name="b")["mismatches"] == []
        lease = client.call("Attach", name="b")
        assert lease["lease"] > 0


@pytest.mark.parametrize("export", ["fd", "ipc"])
def test_not_what_a_client_had(start_gpu, model, export):
    """The client's lease is over, but it may have the memory mapped."""
    daemon = start_gpu("--export", export, "--keep-freed", "60")
    with daemon.client() as client:
        client.call("Load", path=model(1), name="a", private=True)
        lease = client.call("Attach", name="a")["lease"]
        kept = os.dup(client.fds[0]) if export == "fd" else -1
        was = os.pread(kept, SIZE, 0) if kept >= 0 else b""
        client.call("Detach", lease=lease)
        client.call("Unload", name="a")
        client.call("Load", path=model(2), name="b", private=True)
        assert AGAIN not in daemon.log
        if kept >= 0:
            assert os.pread(kept, SIZE, 0) == was
        client.call("Unload", name="b")  # nobody had this one
        client.call("Load", path=model(3), name="c")
        assert daemon.log.count(AGAIN) == 1
    if kept >= 0:
        os.close(kept)


def test_a_process_that_keeps_the_memory(start_gpu, model):
    """It reads what it mapped long after its lease; what it maps is never another model."""
    daemon = start_gpu("--keep-freed", "60")
    reader = ROOT / "tests" / "lib" / "attacher.py"
    with daemon.client() as client:
        client.call("Load", path=model(1), name="a")
        with subprocess.Popen([sys.executable, reader, build_folder(), daemon.socket], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True, bufsize=1,
                              env={**library_environment(), "LD_LIBRARY_PATH": str(fake_gpu_folder()),
                                   "ROCMFORGE_MODULE_DIR": str(module_folder())}) as process:

            def ask(command):
                process.stdin.write(command + "\n")
                return process.stdout.readline()

            ask("attach a")
            before = ask("digests")
            client.call("Unload", name="a", force=True)
            client.call("Load", path=model(2), name="b")
            assert ask("digests") == before
            process.stdin.close()
        wait_until(lambda: [m["name"] for m in client.call("List")["models"]] == ["b"])
        client.call("Load", path=model(3), name="c")
        assert AGAIN not in daemon.log


def free_of(client):
    device = client.call("Devices")["devices"][0]
    return device["available"]


def test_it_counts_as_free(start_gpu, model):
    daemon = start_gpu("--keep-freed", "60")
    with daemon.client() as client:
        before = free_of(client)
        client.call("Load", path=model(1), name="a")
        assert free_of(client) == before - SIZE
        client.call("Unload", name="a")
        assert free_of(client) == before


def test_given_up_for_another_size(start_gpu, model):
    """What is kept and the new model do not fit together."""
    daemon = start_gpu("--keep-freed", "60", "--budget", str(5 * SIZE))
    with daemon.client() as client:
        for seed in range(2):
            client.call("Load", path=model(seed), name=f"m{seed}")
        for seed in range(2):
            client.call("Unload", name=f"m{seed}")
        large = client.call("Load", path=model(9, rows=4 * 256 + 32), name="large")["model"]
        assert large["bytes"] > 4 * SIZE
        assert client.call("Verify", name="large")["mismatches"] == []
        assert AGAIN not in daemon.log


def test_given_back_when_the_time_is_over(start_gpu, model, folder):
    """The memory that a client does not let go of is warned of then."""
    daemon = start_gpu("--keep-freed", "1", FAKE_HIP_LEAK="1")
    with daemon.client() as client:
        client.call("Load", path=model(1), name="a")
        client.call("Unload", name="a")
        assert "a client may have it open" not in daemon.log
        wait_until(lambda: "a client may have it open" in daemon.log)


def test_never_kept(start_gpu, model):
    daemon = start_gpu("--keep-freed", "0", FAKE_HIP_LEAK="1")
    with daemon.client() as client:
        client.call("Load", path=model(1), name="a")
        client.call("Unload", name="a")
        assert "a client may have it open" in daemon.log
        client.call("Load", path=model(1), name="a")
        assert AGAIN not in daemon.log


def test_end_while_memory_is_kept(start_gpu, model):
    daemon = start_gpu("--keep-freed", "60")
    with daemon.client() as client:
        client.call("Load", path=model(1), name="a")
        client.call("Unload", name="a")
    began = time.monotonic()
    daemon.process.terminate()
    assert daemon.process.wait(30) == 0
    assert time.monotonic() - began < 20
