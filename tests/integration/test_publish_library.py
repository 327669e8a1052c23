"""Publishing by librocmforge, from another process: on the host, and on a fake GPU by descriptor and by handle."""
import errno
import subprocess
import sys
from pathlib import Path

import pytest
from harness import EXPORTS, MIB, build_folder, fake_gpu_folder, library_environment, module_folder, names, states, wait_until
from librocmforge import Client, Creation, Failure

FAKE = fake_gpu_folder()
PLACES = ["host", *EXPORTS]
DATA = bytes(range(128))


@pytest.fixture(autouse=True)
def without_sanitizer():
    """This process loads the library itself."""
    if library_environment()["LD_PRELOAD"]:
        pytest.skip("a sanitizer's runtime has to be in a process from its start")


@pytest.fixture(params=PLACES)
def place(request, start, monkeypatch):
    """A daemon, and the device where it is published."""
    if request.param == "host":
        return start(), "host"
    if not FAKE:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    for name, value in {"LD_LIBRARY_PATH": FAKE, "ROCMFORGE_MODULE_DIR": module_folder(), "FAKE_HIP_DEVICES": "1"}.items():
        monkeypatch.setenv(name, str(value))
    options = ("--device", "hip", "--export", EXPORTS[request.param].kind, "--host-cache", "64Mi")
    return start(*options), "hip:0"


def publisher(daemon, device, name="m", key="k"):
    script = Path(__file__).with_name("publisher.py")
    command = [sys.executable, script, build_folder(), daemon.socket, device, name, key]
    environment = library_environment()
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()


def expected(first):
    return [
        first,
        f"a [4, 8] None 0 {DATA.hex()}",
        f"tied [8, 4] [1, 8] 0 {bytes(128).hex()}",
        f"b [1048576] None 0 {bytes(128).hex()}",
        "[(b'key', b'k'), (b'metadata', b'{\"m\": 1}')]",
    ]


def test_published_and_adopted(place):
    daemon, device = place
    assert publisher(daemon, device) == expected("made")
    assert publisher(daemon, device, "other") == expected("adopted")
    with daemon.client() as client:
        (model,) = client.call("List")["models"]
        assert (model["device"], model["source"], model["key"], model["pinned"]) == (device, "published", "k", True)
        assert model["leases"] == 0 and model["aliases"] == ["other"]
    dumped = daemon.rfctl("dump", "m", "b", text=False).stdout
    assert dumped == bytes(MIB - 128) + DATA
    shown = daemon.rfctl("show", "m").stdout
    assert "published, 1.0 MB, by " in shown and "file" not in shown.splitlines()[1]
    assert daemon.rfctl("show", "m", "--metadata", "metadata").stdout.strip() == '{"m": 1}'
    row = daemon.rfctl("ps").stdout.splitlines()[1].split()
    assert row[:3] == ["m", "published", device]
    refused = daemon.rfctl("verify", "m", check=False)
    assert refused.returncode == 1 and "no file to compare it with: 'm'" in refused.stderr
    with daemon.client() as client:
        client.call("Unpin", name="m")
        client.call("Unload", name="m#1")
    assert daemon.used() == 0


def test_evicted_to_host_memory_and_back(place):
    daemon, device = place
    if device == "host":
        pytest.skip("models on the host are not copied to host memory")
    publisher(daemon, device)
    with daemon.client() as client:
        client.call("Unpin", name="m")
        left = next(d["available"] for d in client.call("Devices")["devices"] if d["id"] == device)
        client.call("Create", name="large", bytes=left // (2 * MIB) * (2 * MIB) + MIB, device=device)
        assert states(daemon)["m"] == "cached"
        client.call("Cancel", name="large")
    assert publisher(daemon, device) == expected("adopted")
    assert states(daemon) == {"m": "resident"}


def test_a_publisher_that_ends(place):
    daemon, device = place
    if device != "host":
        pytest.skip("this process has no GPU")
    with Client(build_folder(), daemon.socket) as client:
        made = client.create("m", [("a", "f32", [4])], device=b"host")
        made.write(made.offset(0), b"abcd")
        with pytest.raises(Failure) as failure:
            client.create("m", [("a", "f32", [4])], device=b"host", key=b"k")
        assert failure.value.error == -errno.EEXIST
        made.end()
        assert names(daemon) == []
        with pytest.raises(Failure) as failure:
            client.create("m", [("a", "f99", [4])], device=b"host")
        assert failure.value.error == -errno.EBADMSG and failure.value.name == "io.rocmforge.InvalidManifest"
        made = client.create("m", bytes=MIB, device=b"host")
        with pytest.raises(Failure) as failure:
            made.publish(tensors=[("a", "f32", [4], None, 4 * MIB)])
        assert failure.value.error == -errno.EBADMSG
        with made.publish(tensors=[("a", "f32", [4], None, 4)]) as model:
            assert model.find("a").offset == 4
        made = client.create("n", bytes=MIB, device=b"host")
        assert isinstance(made, Creation)
    wait_until(lambda: names(daemon) == ["m"])  # the connection ended
