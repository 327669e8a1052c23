"""Memory that something refers to stays; what nothing refers to goes; nothing is left over."""
import gc
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import rocmforge
from harness import TIMEOUT, wait_until

NAME = "blk.0.attn_v.weight"


def mapped(name):
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        return sum(name in line for line in maps)


@pytest.fixture(autouse=True)
def mappings():
    """How many models are mapped, more than before the test. At its end nothing of the daemon's is, that was not."""
    gc.collect()
    all_before, before = mapped("/memfd:"), mapped("/memfd:rocmforge-model")
    yield lambda: mapped("/memfd:rocmforge-model") - before
    gc.collect()
    assert mapped("/memfd:") == all_before


def rss():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


VIEWS = {
    "numpy": lambda tensor: tensor.numpy(),
    "interface": lambda tensor: np.asarray(tensor),
    "buffer": lambda tensor: tensor.buffer(),
    "slice of an array": lambda tensor: tensor.numpy()[1:],
    "dlpack": lambda tensor: np.from_dlpack(tensor),
    "capsule": lambda tensor: tensor.__dlpack__(),
    "slice of a buffer": lambda tensor: tensor.buffer()[5:],
}


@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
def test_a_view_keeps_the_lease(rf, small, make, mappings):
    model = rf.load_attach(small, name="m", form="f32")
    view = make(model[NAME])
    with pytest.raises(rocmforge.InUse, match="1 view of its memory") as caught:
        model.close()
    assert caught.value.views == 1 and not model.closed
    model.close(force=True)
    assert model.closed and mappings() == 1
    with pytest.raises(rocmforge.Closed):
        model[NAME]
    with pytest.raises(rocmforge.ModelBusy):
        rf.unload("m")
    del model
    gc.collect()
    if hasattr(view, "tobytes"):
        assert len(view.tobytes()) > 1000
    del view
    assert mappings() == 0
    assert rf.unload("m") == "unloaded"


def test_the_end_of_a_with_leaves_views_what_they_have(rf, small, mappings):
    with rf.load_attach(small, name="m", form="f32") as model:
        array = model.numpy(NAME)
        expected = array.copy()
    rf.close()
    assert np.array_equal(array, expected)
    del array, model
    assert mappings() == 0


def test_without_close(rf, small, mappings):
    model = rf.load_attach(small, name="m", form="f32")
    tensor = model[NAME]
    array = tensor.numpy()
    del model
    assert array.sum() == tensor.numpy().sum()
    del tensor
    assert mappings() == 1
    del array
    assert mappings() == 0 and rf.unload("m") == "unloaded"


def test_closed_tensors_say_so(rf, small):
    with rf.load_attach(small, form="f32") as model:
        tensor = model[NAME]
    for use in (tensor.numpy, tensor.read, tensor.buffer, tensor.__dlpack__, lambda: tensor.data_ptr, tensor.torch):
        if use == tensor.torch:
            pytest.importorskip("torch")
        with pytest.raises(rocmforge.Closed, match="was closed"):
            use()
    model.close()
    with pytest.raises(rocmforge.Closed):
        model.__enter__()


def test_a_thousand_cycles_leave_nothing(daemon, rf, small, mappings):
    rf.load(small, name="m", form="f32")

    def cycle():
        with rf.attach("m") as model:
            array = model.numpy(NAME)
            again = np.from_dlpack(model[NAME])
            model[NAME].__dlpack__(max_version=(1, 0))
            assert array[0, 0] == again[0, 0]

    def cycles(n):
        for _ in range(n):
            cycle()
        gc.collect()

    cycles(200)
    fds, memory, maps = len(os.listdir("/proc/self/fd")), rss(), mappings()
    cycles(1000)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert mappings() == maps == 0
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which keeps for long what was freed
        assert rss() - memory < 1 << 20
    assert rf.list()[0]["leases"] == 0
    wait_until(lambda: daemon.status()["connections"] == 2)  # the client's, and the one that asks


def test_a_daemon_that_is_gone_takes_no_memory_with_it(start, small, mappings):
    daemon = start()
    with rocmforge.connect(daemon.socket) as rf:
        model = rf.load_attach(small, form="f32")
        array = model.numpy(NAME)
        expected = array.copy()
        daemon.stop()
        assert np.array_equal(array, expected) and np.array_equal(model.numpy(NAME), expected)
        del array
        model.close()
        assert mappings() == 0


ERROR = """
import signal, sys, numpy as np, rocmforge
model = rocmforge.load_attach(sys.argv[1], name="m", form="f32")
name = "blk.0.attn_v.weight"
def capsule(**options): return model[name].__dlpack__(**options)
def array(): return np.from_dlpack(model[name])
for _ in range(200):
    try:
        EXPRESSION
    except EXCEPTION as error:
        assert type(error) is EXCEPTION and error.__context__ is None, repr(error)
    else:
        raise SystemExit("no exception")
    assert model.views == 0, model.views
model.close()
assert rocmforge.connect().list()[0]["leases"] == 0
"""
ERRORS = {
    "(capsule(), 1 / 0)": "ZeroDivisionError",
    "(capsule(max_version=(1, 0)), capsule(max_version=(1, 0), copy=True), 1 / 0)": "ZeroDivisionError",
    "array().reshape(7, 7)": "ValueError",
    "array()[10**9]": "IndexError",
    "[array(), array()[:1], model.numpy('no_such')]": "KeyError",
    "(array(), capsule(), signal.raise_signal(signal.SIGINT), int)": "KeyboardInterrupt",
}


@pytest.mark.parametrize("expression", ERRORS)
def test_an_exception_that_frees_a_view_is_not_lost(run_python, small, expression):
    """The expression's values are freed while its exception is pending."""
    run_python(ERROR.replace("EXPRESSION", expression).replace("EXCEPTION", ERRORS[expression]), small)


INTERRUPT = """
import signal, sys, numpy as np, rocmforge
model = rocmforge.load_attach(sys.argv[1], name="m", form="f32")
tensor = model["blk.0.attn_v.weight"]
signal.signal(signal.SIGALRM, signal.default_int_handler)
for make in (tensor.numpy, lambda: np.from_dlpack(tensor), lambda: np.frombuffer(tensor.buffer())):
    for _ in range(50):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            for _ in range(100000):
                make().sum()
            raise SystemExit("the interrupt was lost")
        except KeyboardInterrupt:
            pass
        assert model.views == 0
model.close()
"""


def test_an_interrupt_while_views_come_and_go_is_not_lost(run_python, small):
    """The signal mostly comes while NumPy is at work; then the view is freed, and then Python looks for signals."""
    run_python(INTERRUPT, small)


EXIT = """
import sys, numpy as np, rocmforge
rocmforge.load(sys.argv[1], name="m", form="f32")
model = rocmforge.attach("m")
tensor = model["blk.0.attn_v.weight"]
kept = [tensor, tensor.numpy(), np.from_dlpack(tensor), tensor.__dlpack__(), tensor.__dlpack__(max_version=(1, 0))]
sys.kept = kept  # lives as long as the interpreter
kept.append(kept)  # only the garbage collector ends this
client = rocmforge.connect()
client.on_draining(print)
try:
    import torch
    torch.kept = tensor.torch()
except ImportError:
    pass
print("done")
"""


def test_the_interpreters_end_is_quiet(run_python, small):
    assert run_python(EXIT, small) == "done\n"


def test_the_interpreters_end_in_an_exception_is_quiet_too(run_python, small):
    code = EXIT + "import os, signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); os.kill(os.getpid(), signal.SIGTERM)"
    assert run_python(code, small, status=3) == "done\n"


def test_a_write_is_refused_by_the_system(run_python, daemon, small):
    """The memory is sealed and mapped for reading: what goes round Python's checks ends the process, and changes
    nothing."""
    code = (
        "import ctypes, sys, rocmforge\n"
        "model = rocmforge.load_attach(sys.argv[1], name='m', form='f32')\n"
        "ctypes.memset(model['blk.0.attn_v.weight'].data_ptr, 0, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, small], env={**os.environ, "ROCMFORGE_SOCKET": str(daemon.socket)},
                          capture_output=True, timeout=TIMEOUT)
    if b"AddressSanitizer" in done.stderr:
        assert done.returncode != 0
    else:
        assert done.returncode == -signal.SIGSEGV


def test_a_forked_child_reads_and_frees_for_itself(rf, small, mappings):
    model = rf.load_attach(small, name="m", form="f32")
    array = model.numpy(NAME)
    total = array.sum()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            same = array.sum() == total and model.numpy(NAME).sum() == total and len(list(model)) == 8
            del array
            model.close()
            status = 0 if same and mappings() == 0 else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert array.sum() == total and rf.list()[0]["leases"] == 1
    del array
    model.close()
    assert rf.list()[0]["leases"] == 0


def test_multiprocessing_attaches_in_the_child(run_python, small):
    code = """
import multiprocessing, sys, rocmforge
def work(name):
    with rocmforge.attach(name) as model:
        return float(model.numpy("blk.0.attn_v.weight").sum())
if __name__ == "__main__":
    rocmforge.load(sys.argv[1], name="m", form="f32")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(len(set(pool.map(work, ["m"] * 8))))
"""
    assert run_python(code, small) == "1\n"


def test_threads_share_a_model(rf, small, mappings):
    model = rf.load_attach(small, form="f32")
    failures = []

    def work():
        try:
            for _ in range(50):
                for name in model:
                    array = model.numpy(name) if model[name].dtype == "float32" else None
                    model[name].read()
                    del array
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and model.views == 0
    model.close()
    assert mappings() == 0
