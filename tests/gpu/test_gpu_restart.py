"""Models on a GPU outlive the daemon: it is killed under rocmforge-hold, and the next one serves the same memory, with
no byte read from the file, or copied to the GPU, again."""
import contextlib
import os
import signal
import time

import pytest
from conftest import KIND
from harness import daemon_program, hold_program, wait_until
from rocmforge_wire import Closed
from test_gpu_daemon import load
from test_gpu_share import Child, device_of, digests

KILLS = int(os.environ.get("ROCMFORGE_KILLS", "5"))


@pytest.fixture
def held(start):
    return start("--export", "fd", program=[hold_program(), "--", daemon_program()])


def kill(daemon):
    """Returns the milliseconds from SIGKILL to the next daemon's first answer to Attach, and to its answer to Status."""
    before = daemon.status()["pid"]
    began = time.monotonic()
    os.kill(before, signal.SIGKILL)
    while True:
        with contextlib.suppress(OSError, Closed), daemon.client() as client:
            client.call("Attach", name="m", table=True)
            took = time.monotonic() - began
            assert client.call("Status")["pid"] != before  # answered when the driver has started
            return took * 1000, (time.monotonic() - began) * 1000
        assert time.monotonic() - began < 60
        time.sleep(0.001)


def test_killed(held, large_model, kind):
    load(held, large_model, "m", device=f"{kind or KIND}:0")
    expected = digests(held)
    (model,) = held.models()
    taken = device_of(held)["used"]
    large_model.rename(large_model.with_suffix(".away"))  # nobody can read it again by its name
    try:
        took = []
        with Child(held, "hold") as child:
            assert child.told() == expected
            for _ in range(KILLS):
                wait_until(lambda: held.status()["uptime"] > 0)
                time.sleep(0.5)
                took.append(kill(held))
                assert child.again() == expected, "the bytes of who was attached changed"
                assert digests(held) == expected
                assert device_of(held)["used"] == taken
                assert [(m["id"], m["name"], m["state"]) for m in held.models()] == [(model["id"], "m", "resident")]
        for name, times in zip(("Attach", "Status"), map(sorted, zip(*took))):
            print(f"{taken / 1e9:.2f} GB, {KILLS} times SIGKILL: from there to the next daemon's answer to {name} "
                  f"{times[0]:.0f}, median {times[len(times) // 2]:.0f}, at most {times[-1]:.0f} ms")
    finally:
        large_model.with_suffix(".away").rename(large_model)
