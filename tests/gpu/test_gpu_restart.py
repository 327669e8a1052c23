"""Models on a GPU outlive the daemon: it is killed under rocmforge-hold, and the next one serves the same memory, with
no byte read from the file, or copied to the GPU, again."""
import contextlib
import math
import os
import signal
import time

import pytest
from conftest import FAKE, KIND
from harness import daemon_program, hold_program, wait_until
from rocmforge_wire import Closed
from test_gpu_daemon import load
from test_gpu_share import Child, device_of, digests

KILLS = int(os.environ.get("ROCMFORGE_KILLS", "5"))

# Writes down the time right before the daemon is executed, in seconds since 1970, as time.time() tells it.
STAMPED = ["bash", "-c", 'echo "$EPOCHREALTIME" >>"$0"; exec "$@"']


@pytest.fixture
def stamps(folder):
    return folder / "stamps"


@pytest.fixture
def held(start, stamps):
    return start("--export", "fd", program=[hold_program(), "--", *STAMPED, stamps, daemon_program()])


def killed(daemon):
    """Kills it. Returns its process id, and the seconds until its process had ended, which the holder waits for: the
    kernel and the driver free what it had."""
    pid = daemon.status()["pid"]
    began = time.time()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), every=0.0002)
    return pid, time.time() - began


def first_attach(daemon):
    """Attaches as soon as somebody answers. Returns the client, whose lease it is, and when it was answered."""
    end = time.time() + 60
    while time.time() < end:
        with contextlib.suppress(OSError, Closed):
            client = daemon.client()
            try:
                client.call("Attach", name="m", table=True)
                return client, time.time()
            except (OSError, Closed):
                client.close()
        time.sleep(0.001)
    raise AssertionError("nobody answers")


def restart(daemon, stamps, client_process):
    """Returns what each part took, in seconds, by its name."""
    before, end = killed(daemon)
    client, answered = first_attach(daemon)
    with client:
        mapped = client_process.again()
        assert client.call("Status")["pid"] != before  # answered when the driver has started
        started = time.time()
    executed = float(stamps.read_text().split()[-1].replace(",", "."))
    return {
        "SIGKILL to the end of the process": end,
        "exec of the next one to its first answer to Attach": answered - executed,
        "that answer until another client has attached and opened the memory": mapped - answered,
        "exec to its answer to Status": started - executed,
    }


def median_p95_worst(seconds):
    ordered = sorted(1000 * s for s in seconds)
    return ordered[len(ordered) // 2], ordered[math.ceil(0.95 * len(ordered)) - 1], ordered[-1]


def test_killed(held, stamps, large_model, kind):
    load(held, large_model, "m", device=f"{kind or KIND}:0")
    expected = digests(held)
    (model,) = held.models()
    taken = device_of(held)["used"]
    large_model.rename(large_model.with_suffix(".away"))  # nobody can read it again by its name
    try:
        took = []
        with Child(held, "hold") as child, Child(held, "open") as opens:
            assert child.told() == expected
            opens.told()
            for _ in range(KILLS):
                wait_until(lambda: held.status()["uptime"] > 0)
                time.sleep(0.5)
                took.append(restart(held, stamps, opens))
                assert child.again() == expected, "the bytes of who was attached changed"
                assert digests(held) == expected
                assert device_of(held)["used"] == taken
                assert [(m["id"], m["name"], m["state"]) for m in held.models()] == [(model["id"], "m", "resident")]
        parts = {part: median_p95_worst([times[part] for times in took]) for part in took[0]}
        print(f"{taken / 1e9:.2f} GB, {KILLS} times SIGKILL; milliseconds, median / p95 / worst:",
              "; ".join(f"{part} {' / '.join(f'{ms:.1f}' for ms in figures)}" for part, figures in parts.items()))
        if not FAKE:
            assert parts["exec of the next one to its first answer to Attach"][0] < 100
    finally:
        large_model.with_suffix(".away").rename(large_model)
