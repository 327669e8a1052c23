#!/usr/bin/env python3
"""What attaching and wrapping from Python takes, on a model in host memory: the best and the median of 50 times.

    ROCMFORGE_SOCKET=... ROCMFORGE_LIBRARY=BUILD bench_python.py MODEL.gguf

Needs numpy; torch where it is there.
"""
import importlib.util
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "client" / "python" / "src"))

import rocmforge  # noqa: E402

TIMES = 50


def measure(what, function, per=1, times=TIMES):
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    best, median = min(taken), statistics.median(taken)
    each = f"; {1e6 * best / per:.1f} us each" if per > 1 else ""
    print(f"{what:44} {1e3 * best:9.3f} {1e3 * median:9.3f} ms{each}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with rocmforge.connect() as rf:
        model = rf.load_attach(sys.argv[1])
        n = len(model)
        print(f"{model.name}: {n} tensors, {model.nbytes / 1e6:.1f} MB{'':21} best    median")
        measure("attach and close", lambda: rf.attach(model.name).close())
        measure("metadata", lambda: rf.attach(model.name).metadata(), times=5)

        def names():
            with rf.attach(model.name) as fresh:
                list(fresh)

        measure("attach, all names, close", names)
        tensors = list(model.values())
        arrays = [tensor for tensor in tensors if tensor.dtype != "bfloat16"]
        measure("numpy() of all", lambda: [tensor.numpy() for tensor in arrays], len(arrays))
        measure("a DLPack capsule of all", lambda: [tensor.__dlpack__(max_version=(1, 0)) for tensor in tensors], n)
        measure("buffer() of all", lambda: [tensor.buffer() for tensor in tensors], n)
        if not importlib.util.find_spec("torch"):
            print("no torch here")
            return
        measure("torch() of all", lambda: [tensor.torch() for tensor in tensors], n)
        model.close()


if __name__ == "__main__":
    main()
