"""publish() and create(): models that this process makes."""
import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rocmforge
import rocmforge.aio
from harness import names, wait_until

A = np.arange(24, dtype="float32").reshape(4, 6)
STATE = {
    "a": A,
    "transposed": A.T,
    "row": A[1],
    "tied": A,
    "half": np.linspace(-1, 1, 5).astype("float16"),
    "scalar": np.array(5, "int64"),
    "flags": np.array([True, False]),
    "complex": np.array([1 + 2j], "complex64"),
    "empty": np.empty((0, 3), "uint8"),
    "reversed": np.arange(6, dtype="uint16")[::-1],
    "every second": np.arange(100, dtype="uint32").reshape(10, 10)[:, ::2],
    "column major": np.asfortranarray(np.arange(6, dtype="int16").reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
}


def equal(model, state=None):
    for name, array in (state or STATE).items():
        got = model.numpy(name)
        assert got.shape == array.shape and (got == array).all(), name
        assert got.dtype == array.dtype.newbyteorder("=") and not (got.size and got.flags.writeable)


def test_published(daemon, rf):
    with rf.publish("m", STATE, key="k", metadata={"x": [1, "\N{SNOWMAN}"]}, pin=True, ttl=9) as model:
        equal(model)
        assert model.published == ("k", {"x": [1, "\N{SNOWMAN}"]}) == rocmforge.Published("k", model.metadata())
        info = model.model_info
        assert (info["source"], info["key"], info["pinned"], info["ttl"]) == ("published", "k", True, 9)
        assert model.path is None and not model["a"].is_blocks
        # Bytes that are shared stand there once, and strides stay.
        assert [name for name in model if model[name].is_view] == ["transposed", "row", "tied"]
        assert model["tied"].offset == model["a"].offset and model["row"].offset == model["a"].offset + 24
        assert model["transposed"].strides == (1, 6) and model.info("transposed")["strides"] == [1, 6]
        assert model["column major"].strides == (1, 2) and model["every second"].strides is None
        assert info["size"] == 96 + 10 + 8 + 2 + 8 + 12 + 200 + 12 + 12
        for name in STATE:
            assert model.numpy(name, copy=True).tolist() == STATE[name].tolist()
        assert memoryview(model["transposed"]).tolist() == A.T.tolist() if sys.version_info >= (3, 12) else True
        assert np.from_dlpack(model["transposed"]).tolist() == A.T.tolist()
        assert np.asarray(model["transposed"]).tolist() == A.T.tolist()
    code = "import rocmforge, sys; m = rocmforge.attach('m', socket=sys.argv[1]); print(m.numpy('transposed').sum())"
    done = subprocess.run([sys.executable, "-c", code, str(daemon.socket)], capture_output=True, text=True, check=True)
    assert float(done.stdout) == A.sum()
    with pytest.raises(rocmforge.NoFile):
        rf.verify("m")
    assert rf.show("m")["metadata"][0]["key"] == "key"


def test_metadata(rf):
    for i, metadata in enumerate((None, "text", "", {"a": 1}, [1, 2], 7, "\N{SNOWMAN}" * 300000)):
        with rf.publish(f"m{i}", {"a": A}, metadata=metadata) as model:
            assert model.published == (None, metadata or None)
            assert model.metadata() == ({"a": 1} if metadata == {"a": 1} else {"metadata": metadata} if metadata else {})
    with pytest.raises(rocmforge.InvalidManifest, match="too long"):
        rf.publish("m", {"a": A}, metadata="x" * ((1 << 20) + 1))
    with pytest.raises((ValueError, TypeError)):
        rf.publish("m", {"a": A}, metadata=object())
    wait_until(lambda: "m" not in [model["name"] for model in rf.list()])


def test_of_an_attached_model(rf, small):
    """Blocks, too."""
    rf.load(small, name="file", form="native")
    with rf.attach("file") as model, rf.publish("copy", model) as copy:
        for name in model:
            assert copy[name].read() == model[name].read()
            assert (copy[name].type, copy[name].form) == (model[name].type, model[name].form)
            assert copy[name].logical_shape == model[name].logical_shape


def test_wrong_tensors(rf):
    for value, error in (([1], TypeError), (None, TypeError), (np.array(["a"]), rocmforge.UnsupportedDtype)):
        with pytest.raises(error):
            rf.publish("m", {"a": value})
    with pytest.raises(rocmforge.InvalidManifest, match="no type 'f99'"):
        rf.create("m", {"a": ("f99", (2,))})
    with pytest.raises(rocmforge.InvalidParameter):
        rf.create("m")
    assert rf.list() == []


def test_created(daemon, rf):
    with rf.create("m", {"a": ("float32", (2, 3)), "q": ("q4_0", (2, 32))}, device="host") as creation:
        array = creation.array("a")
        array[:] = 7
        os.pwrite(creation.fileno(), b"\1" * 36, creation.offset("q"))
        with pytest.raises(rocmforge.InUse):
            creation.publish()
        del array
        with creation.publish() as model:
            assert model.numpy("a").tolist() == [[7.0] * 3] * 2 and model["q"].read() == b"\1" * 36
    with pytest.raises(rocmforge.Closed):
        creation.publish()
    with rf.create("n", nbytes=1000, device="host") as creation:
        creation.buffer()[4:8] = b"abcd"
        with pytest.raises(rocmforge.InvalidParameter):
            creation.publish()
        tensors = [{"name": "t", "type": "u8", "shape": [4], "offset": 4}]
        assert creation.publish(tensors=tensors).numpy("t").tobytes() == b"abcd"
    with rf.create("gone", nbytes=1000, device="host"):
        assert "gone" in names(daemon)
    wait_until(lambda: "gone" not in names(daemon))


def build(socket, barrier, results):
    with rocmforge.connect(socket) as rf:
        barrier.wait()
        made = rf.create("m", {"a": ("int64", (4,))}, key="k", device="host")
        if isinstance(made, rocmforge.Creation):
            time.sleep(0.2)
            made.array("a")[:] = os.getpid()
            made = made.publish()
            results.put(("made", os.getpid()))
        else:
            results.put(("adopted", int(made.numpy("a")[3])))


def test_one_process_builds(daemon):
    context = multiprocessing.get_context("spawn")
    n = 4
    barrier, results = context.Barrier(n), context.Queue()
    processes = [context.Process(target=build, args=(str(daemon.socket), barrier, results)) for _ in range(n)]
    for process in processes:
        process.start()
    told = [results.get(timeout=60) for _ in range(n)]
    for process in processes:
        process.join()
    (maker,) = [pid for how, pid in told if how == "made"]
    assert sorted(told) == [("adopted", maker)] * (n - 1) + [("made", maker)]


def test_a_signal_ends_the_wait(daemon, rf):
    with rf.create("m", nbytes=100, key="k", device="host"):
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            rf.publish("m", {"a": A}, key="k")
        timer.join()
        with pytest.raises(rocmforge.ModelBusy):
            rf.publish("m", {"a": A}, key="k", wait=False)
        with pytest.raises(rocmforge.DeadlineExceeded):
            rf.publish("m", {"a": A}, key="k", deadline=0.1)
    wait_until(lambda: rf.status()["loads"] == 0)
    with rf.publish("m", {"a": A}, key="k"):
        pass


def test_asyncio(daemon):
    async def run():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            with await rf.publish("m", STATE, metadata=[1]) as model:
                equal(model)
                assert model.published == (None, [1])
            with await rf.create("c", nbytes=5, key="k", device="host") as creation:
                task = asyncio.create_task(rf.publish("other", STATE, key="k"))
                await asyncio.sleep(0.2)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert isinstance(creation, rocmforge.Creation)
            for _ in range(100):
                if (await rf.status())["loads"] == 0:
                    break
                await asyncio.sleep(0.05)
            assert (await rf.status())["loads"] == 0

    asyncio.run(run())


def test_torch(rf):
    torch = pytest.importorskip("torch")
    weight = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    state = {
        "w": weight,
        "w.t": weight.t(),
        "tied": torch.nn.Parameter(weight),
        "slice": weight[1:],
        "part": torch.arange(100).reshape(10, 10)[:, 3:5],
        "f8": torch.ones(4).to(torch.float8_e4m3fn),
    }
    with rf.publish("m", state) as model:
        for name, tensor in state.items():
            assert torch.equal(model.torch(name).float(), tensor.detach().float()), name
        assert model.torch("w.t").stride() == (1, 4) and model["part"].strides is None
        assert [name for name in model if model[name].is_view] == ["w.t", "tied", "slice"]
    with pytest.raises(TypeError):
        rf.publish("n", {"a": torch.empty(3, device="meta")})
    with rf.create("c", {"a": ("bfloat16", (2, 2))}, device="host") as creation:
        creation.torch("a").fill_(3)
        assert creation.publish().torch("a").sum() == 12
