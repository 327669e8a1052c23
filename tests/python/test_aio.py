"""The client of asyncio."""
import asyncio
import os
import pickle
import signal

import pytest
import rocmforge
import rocmforge.aio
from harness import states, wait_until
from split_model import write_split


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_model_comes_and_goes(daemon, small):
    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            assert (await rf.plan(small))["fits"]
            seen = []
            reply = await rf.load(small, name="m", form="f32", progress=seen.append, trace=True)
            assert reply["model"]["state"] == "resident" and seen and reply["trace"]
            with await rf.attach("m", deadline=5) as model:
                assert model.numpy("blk.0.attn_v.weight").any()
                with pytest.raises(rocmforge.ModelBusy):
                    await rf.unload("m")
            assert (await rf.verify("m"))["mismatches"] == []
            await rf.pin("m")
            await rf.unpin("m")
            await rf.set_ttl("m", 5)
            assert (await rf.show("m"))["model"]["ttl"] == 5
            assert [device["id"] for device in await rf.devices()] == ["host"]
            assert (await rf.status())["models"] == len(await rf.list()) == 1
            assert await rf.unload("m") == "unloaded"
            with await rf.load_attach(small, name="n") as model:
                assert len(model.metadata()) > 5

    run(main())


def test_many_at_once(daemon, small):
    async def main():
        rf = await rocmforge.aio.connect(daemon.socket)
        await rf.load(small, name="m")

        async def one():
            with await rf.attach("m") as model:
                await asyncio.sleep(0)
                return len(model), (await rf.list())[0]["name"]

        assert set(await asyncio.gather(*(one() for _ in range(50)))) == {(8, "m")}
        assert (await rf.list())[0]["leases"] == 0
        rf.close()
        with pytest.raises(rocmforge.Closed):
            await rf.list()
        with pytest.raises(TypeError):
            pickle.dumps(rf)

    run(main())


def test_cancelling_ends_a_load(start, large, slow_read):
    daemon = start(env=slow_read)

    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            task = asyncio.create_task(rf.load(large))
            while states(daemon).get("large") != "filling":
                await asyncio.sleep(0.01)
            waiter = asyncio.create_task(rf.attach("large"))
            await asyncio.sleep(0.05)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert states(daemon).get("large") == "filling"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await rf.status()

    run(main())
    wait_until(lambda: daemon.models() == [])


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(daemon):
    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            os.kill(daemon.pid, signal.SIGSTOP)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(rf.status(), 0.2)
            asyncio.get_running_loop().call_later(0.2, os.kill, daemon.pid, signal.SIGCONT)
            assert await rf.list() == [] and (await rf.status())["models"] == 0

    run(main())


def test_a_wait_leaves_the_loop_to_others(start, large, slow_read):
    daemon = start(env={**slow_read, "SLOW_READ_MS": "20"})

    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            task = asyncio.create_task(rf.load(large))
            answered = 0
            while not task.done():
                await rf.status()
                answered += 1
                await asyncio.sleep(0.01)
            assert answered > 10 and (await task)["model"]["state"] == "resident"

    run(main())


def test_watch(daemon, small):
    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            events = rf.watch()
            assert (await events.__anext__())["models"] == []
            await rf.load(small, name="m")
            assert [(await events.__anext__())["event"] for _ in range(2)] == ["loading", "resident"]
            await events.aclose()

    run(main())


def test_errors(daemon, small, folder):
    async def main():
        with pytest.raises(rocmforge.NoDaemon):
            await rocmforge.aio.connect(folder / "nothing")
        async with rocmforge.aio.connect(daemon.socket) as rf:
            with pytest.raises(rocmforge.ModelNotFound):
                await rf.attach("nothing")
            with pytest.raises(rocmforge.MethodNotFound):
                await rf.call("Nothing")
            daemon.stop()
            with pytest.raises(rocmforge.NoDaemon):
                await rf.list()

    run(main())


def test_close_ends_a_call(daemon):
    """A call that waits for an answer, and one that waits for its turn."""

    async def main():
        rf = await rocmforge.aio.connect(daemon.socket)
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            calls = [asyncio.create_task(rf.status()) for _ in range(2)]
            await asyncio.sleep(0.1)
            rf.close()
            for call in calls:
                with pytest.raises(rocmforge.Closed):
                    await asyncio.wait_for(call, 5)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)

    run(main())


def test_a_closed_connection_takes_no_other_ones_place(daemon, small):
    """The loop knows descriptors by their number, and numbers are used again."""

    async def main():
        rf = await rocmforge.aio.connect(daemon.socket)
        os.kill(daemon.pid, signal.SIGSTOP)
        call = asyncio.create_task(rf.status())
        await asyncio.sleep(0.1)
        rf.close()
        again = asyncio.create_task(rocmforge.aio.Client(daemon.socket).status())
        await asyncio.sleep(0.1)
        os.kill(daemon.pid, signal.SIGCONT)
        assert (await asyncio.wait_for(again, 10))["models"] == 0
        with pytest.raises(rocmforge.Closed):
            await call

    run(main())


def test_parts_of_other_calls(daemon, folder):
    first, *others = [os.open(path, os.O_RDONLY) for path in write_split(folder)]

    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            assert await rf.add_files([first]) == 1
            await rf.call("Load", {"fds": list(range(len(others))), "added": 1, "name": "m"}, others)
            lease = (await rf.call("Attach", {"name": "m"}))["lease"]
            await rf.detach(lease)
            with pytest.raises(rocmforge.LeaseNotFound):
                await rf.detach(lease)
            with pytest.raises(ValueError, match="999"):
                await rf.add_files([999])

    run(main())
    for fd in (first, *others):
        os.close(fd)


def test_cycles_leave_nothing(daemon, small):
    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            await rf.load(small, name="m", form="f32")

            async def cycles(n):
                for _ in range(n):
                    with await rf.attach("m") as model:
                        assert model.numpy("blk.0.attn_v.weight")[0, 0] is not None

            await cycles(50)
            before = sorted(os.listdir("/proc/self/fd"))
            await cycles(200)
            assert sorted(os.listdir("/proc/self/fd")) == before
            assert (await rf.list())[0]["leases"] == 0

    run(main())
