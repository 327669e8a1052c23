"""What the examples tell of themselves: time, and memory that is theirs alone or shared."""
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager


@contextmanager
def timed(times, what):
    """Adds the seconds of wall clock and of processor that the body takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    times[what] = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def memory():
    """Bytes in this process: all that is resident, and how much of it are models of the daemon; both also with each
    shared page divided by the number of processes that have it (PSS)."""
    found = {"rss": 0, "pss": 0, "models_rss": 0, "models_pss": 0}
    is_model = False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as smaps:
        for line in smaps:
            field, _, rest = line.partition(":")
            if field in ("Rss", "Pss"):
                size = int(rest.split()[0]) * 1024
                found[field.lower()] += size
                if is_model:
                    found[f"models_{field.lower()}"] += size
            elif "-" in line.split(None, 1)[0]:
                is_model = "/memfd:rocmforge" in line
    return found


def told(title, times, used=None):
    """Prints both."""
    print(f"{title}:")
    for what, taken in times.items():
        print(f"  {what:36} {taken['seconds']:8.3f} s, {taken['cpu']:8.3f} s of CPU")
    if used:
        print(f"  memory: {used['rss'] / 1e6:.0f} MB resident, of which {used['models_rss'] / 1e6:.0f} MB are the model's;")
        print(f"  shared pages divided (PSS): {used['pss'] / 1e6:.0f} MB, of which {used['models_pss'] / 1e6:.0f} MB are the model's")


def in_processes_of_their_own(count, *arguments):
    """Runs this example in `count` new processes at the same time, with other arguments. Returns the JSON that each
    prints last. So the time and memory of one way are not mixed with those of another."""
    command = [sys.executable, os.path.abspath(sys.argv[0]), *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
    # Whoever calls memory_together() waits until all have come so far, and then until all have measured.
    lines = [process.stdout.readline() for process in processes]
    while all(line == WAITING for line in lines):
        for process in processes:
            print(file=process.stdin, flush=True)
        lines = [process.stdout.readline() for process in processes]
    results = [line + process.communicate()[0] for line, process in zip(lines, processes)]
    if any(process.returncode for process in processes):
        raise SystemExit(1)
    return [json.loads(result.splitlines()[-1]) for result in results]


WAITING = "waiting\n"


def wait():
    print(WAITING, end="", flush=True)
    sys.stdin.readline()


def memory_together():
    """memory(), at a time when all processes that were started together are there."""
    wait()
    used = memory()
    wait()
    return used
