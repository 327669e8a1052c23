"""Files that are not in the page cache: read past it, where that is possible, and as ever where it is not."""
import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import page_cache
import pytest
from harness import (
    MIB,
    ROOT,
    SANITIZERS,
    daemon_program,
    fake_gpu_folder,
    load,
    load_fd,
    module_folder,
    tensor_model,
    wait_until,
    wire_error,
)

SIZE = 24 * MIB
PIECE = 256 << 10  # that is read past the cache at a time
ODD = 3211264 + 7  # of bytes: the file ends within a page


def built_with():
    return "liburing" in subprocess.run(["ldd", daemon_program()], capture_output=True, text=True, check=True).stdout


def is_possible(folder):
    """Whether a file here can be read past the page cache, and this process can tell what the cache has of it."""
    path = folder / "probe"
    path.write_bytes(bytes(MIB))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        with open(path, "rb") as file:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        page_cache.drop(path)
        return page_cache.cached(path) == 0
    except OSError:
        return False
    finally:
        path.unlink()


@pytest.fixture(autouse=True)
def possible(folder):
    if not built_with():
        pytest.skip("built without liburing")
    if not is_possible(folder):
        pytest.skip(f"files in {folder} cannot be read past the page cache")


@pytest.fixture(scope="session")
def shim():
    folder = Path(tempfile.mkdtemp(prefix="rfd"))
    os.chmod(folder, 0o755)  # for daemons of any user
    library = folder / "direct_faults.so"
    source = ROOT / "tests" / "lib" / "direct_faults.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-o", library, source, "-ldl"], check=True)
    yield {"LD_PRELOAD": str(library), "ASAN_OPTIONS": SANITIZERS["ASAN_OPTIONS"] + ":verify_asan_link_order=0"}
    shutil.rmtree(folder)


@pytest.fixture
def counted(folder, shim):
    """A function that tells how many reads past the page cache began, and the environment for it."""
    path = folder / "count"
    return lambda: path.stat().st_size if path.exists() else 0, {**shim, "DIRECT_COUNT": str(path)}


def cold_model(path, size=SIZE, seed=1, type_="q8_0"):
    tensor_model(path, size, seed, type_)
    page_cache.drop(path)
    assert page_cache.cached(path) == 0
    return path


def verified(client, name):
    return client.call("Verify", name=name)["mismatches"] == []


@pytest.mark.parametrize("form", ("native", "f16", "f32"))
def test_a_cold_file_does_not_fill_the_page_cache(start, folder, counted, form):
    count, env = counted
    daemon = start("--page-cache", "auto", env=env)
    path = cold_model(folder / "cold.gguf")
    with daemon.client() as client:
        load_fd(client, path, name="m", form=form)
        assert page_cache.cached(path) < path.stat().st_size / 2  # the header's page, and what is read ahead of it
        assert count() > 4
        assert verified(client, "m")


def test_keep_fills_the_page_cache(start, folder, counted):
    count, env = counted
    daemon = start("--page-cache", "keep", env=env)
    path = cold_model(folder / "cold.gguf")
    with daemon.client() as client:
        load_fd(client, path, name="m", form="native")
    assert page_cache.cached(path) == path.stat().st_size
    assert count() == 0


def test_drop_empties_the_page_cache(start, folder):
    daemon = start("--page-cache", "drop")
    path = cold_model(folder / "warm.gguf")
    page_cache.read_into_cache(path, [(0, path.stat().st_size)])
    with daemon.client() as client:
        load_fd(client, path, name="m", form="native")
        wait_until(lambda: page_cache.cached(path) == 0)
        assert verified(client, "m")


def test_a_cached_file_is_read_from_the_page_cache(start, folder, counted):
    count, env = counted
    daemon = start(env=env)
    path = cold_model(folder / "warm.gguf")
    page_cache.read_into_cache(path, [(0, path.stat().st_size)])
    with daemon.client() as client:
        load_fd(client, path, name="m", form="f16")
        assert count() == 0
        assert page_cache.cached(path) == path.stat().st_size
        assert verified(client, "m")


@pytest.mark.parametrize("form", ("native", "f16"))
def test_what_is_half_cached_comes_from_both(start, folder, counted, form):
    count, env = counted
    daemon = start(env=env)
    path = cold_model(folder / "half.gguf", 64 * MIB)
    size = path.stat().st_size
    stripe = 300_000  # neither regions, nor parts, nor pages
    page_cache.read_into_cache(path, [(at, at + stripe) for at in range(0, size - stripe, 5 * stripe)])
    before = page_cache.cached(path)
    assert 0 < before < size / 2
    with daemon.client() as client:
        load_fd(client, path, name="m", form=form)
        assert count() > 4
        assert page_cache.cached(path) < size * 3 / 4
        assert verified(client, "m")


@pytest.mark.parametrize("form", ("native", "f32"))
@pytest.mark.parametrize("fault", ("error", "error:3", "short", "end"))
def test_what_is_not_delivered_is_read_as_ever(start, folder, counted, fault, form):
    count, env = counted
    daemon = start(env={**env, "DIRECT_FAULT": fault})
    path = cold_model(folder / "cold.gguf", ODD // 34 * 32)
    with daemon.client() as client:
        load_fd(client, path, name="m", form=form)
        assert count() > 0
        assert verified(client, "m")


@pytest.mark.parametrize("form", ("native", "f32"))
@pytest.mark.parametrize("size", (SIZE, MIB * 3 // 4))
def test_a_faulty_disk_is_told_as_ever(start, folder, shim, form, size):
    """After one read that fails, the rest of the file is read in the ordinary way; the small file has no rest."""
    path = cold_model(folder / "cold.gguf", size // 34 * 32)
    for place in (min(MIB, size // 3), size // 2, path.stat().st_size - 64):  # the last bytes may be padding
        page_cache.drop(path)
        env = {**shim, "DIRECT_FAULT": "error", "FAULTY_FROM": str(place)}
        daemon = start(env=env)
        with daemon.client() as client:
            with wire_error("FileError") as error:
                load_fd(client, path, name="m", form=form)
            assert "Input/output error" in str(error)
        assert daemon.used() == 0
        daemon.stop()


@pytest.mark.parametrize("how", ("shorter", "touched"))
def test_a_file_that_changes_meanwhile(start, folder, shim, how):
    gate = folder / "gate"
    gate.touch()
    daemon = start(env={**shim, "DIRECT_GATE": str(gate)})
    path = cold_model(folder / "cold.gguf")
    with daemon.client() as client:
        client.send("Load", {"path": str(path), "name": "m", "form": "native"})
        wait_until(lambda: [model["state"] for model in daemon.models()] == ["filling"])
        if how == "shorter":
            os.truncate(path, path.stat().st_size - MIB)
        else:
            with open(path, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"x")
        gate.unlink()
        with wire_error("FileChanged"):
            client.reply()
    assert daemon.used() == 0


def test_a_load_that_is_cancelled_while_it_reads(start, folder, shim):
    gate = folder / "gate"
    gate.touch()
    daemon = start(env={**shim, "DIRECT_GATE": str(gate)})
    path = cold_model(folder / "cold.gguf")
    fds = daemon.settled_fds()
    with daemon.client() as client:
        load(client, path, "m", form="f16", wait=False)
        wait_until(lambda: daemon.models()[0]["state"] == "filling")
        client.send("Cancel", {"name": "m"})
        daemon.sync()
        gate.unlink()
        client.reply()
        wait_until(lambda: daemon.models() == [])
    assert daemon.settled_fds() == fds
    assert daemon.used() == 0


def test_the_client_s_descriptor_stays_as_it_is(daemon, folder):
    path = cold_model(folder / "cold.gguf")
    with daemon.client() as client, open(path, "rb", buffering=0) as file:
        before = fcntl.fcntl(file, fcntl.F_GETFL)
        client.call("Load", fds=[file.fileno()], name="m")
        assert fcntl.fcntl(file, fcntl.F_GETFL) == before
        assert file.tell() == 0 and len(file.read(100)) == 100


def test_files_that_cannot_be_read_past_the_cache(daemon, folder):
    """A tmpfs is its page cache."""
    path = f"/dev/shm/rocmforge-cold-{os.getpid()}.gguf"
    try:
        tensor_model(path, SIZE)
        with daemon.client() as client:
            load_fd(client, path, name="m")
            assert verified(client, "m")
    finally:
        os.unlink(path)


def test_an_overlay(daemon, folder):
    """The kernel says of such files that nothing is cached, which is not so."""
    for name in ("lower", "upper", "work", "over"):
        (folder / name).mkdir()
    cold_model(folder / "lower" / "cold.gguf")
    options = f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, folder / "over"]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no overlay can be mounted")
    try:
        with daemon.client() as client:
            load_fd(client, folder / "over" / "cold.gguf", name="m", form="native")
            assert verified(client, "m")
            client.call("Unload", name="m")
    finally:
        daemon.stop()  # it has the file open
        subprocess.run(["umount", folder / "over"], check=True)


@pytest.mark.parametrize("cached", ("nothing", "half", "all"))
def test_a_file_of_another_user(start_for_all, folder, counted, cached):
    """Newer kernels do not tell the daemon what the page cache has of it; but pages can be tried."""
    count, env = counted
    daemon = start_for_all(env=env)
    path = cold_model(folder / "cold.gguf", 64 * MIB)
    os.chmod(path, 0o644)
    size = path.stat().st_size
    if cached != "nothing":
        page_cache.read_into_cache(path, [(0, size if cached == "all" else size // 2)])
    with daemon.client() as client:
        load_fd(client, path, name="m", form="native")
        assert (count() > 0) == (cached != "all")
        if cached == "half":
            assert count() < size * 3 / 4 / PIECE
        if cached != "all":
            assert page_cache.cached(path) < size * 3 / 4
        assert verified(client, "m")


def test_a_file_that_only_the_client_may_open(start_for_all, folder, counted):
    count, env = counted
    daemon = start_for_all(env=env)
    path = cold_model(folder / "cold.gguf")
    os.chmod(path, 0o600)
    with daemon.client() as client:
        load_fd(client, path, name="m", form="native")
        assert (count() > 0) == (daemon.uid == 0)
        assert verified(client, "m")


@pytest.mark.skipif(not fake_gpu_folder(), reason="built without the hip module")
@pytest.mark.parametrize("form", ("native", "f16"))
@pytest.mark.parametrize("fault", ("none", "error:5", "short"))
def test_a_gpu(start, folder, counted, form, fault):
    count, env = counted
    gpu = {"LD_LIBRARY_PATH": str(fake_gpu_folder()), "ROCMFORGE_MODULE_DIR": str(module_folder())}
    daemon = start("--device", "hip", env={**gpu, **env, "DIRECT_FAULT": fault})
    path = cold_model(folder / "cold.gguf", 96 * MIB)
    with daemon.client() as client:
        for device_or_cpu in ("gpu", "cpu"):
            page_cache.drop(path)
            load_fd(client, path, name="m", form=form, dequant=device_or_cpu)
            assert count() > 0
            if fault == "none":
                assert page_cache.cached(path) < path.stat().st_size / 2
            assert verified(client, "m")
            client.call("Unload", name="m")
