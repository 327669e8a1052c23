"""A client in a container: namespaces of its own, and of the daemon only the folder with its socket."""
import os
import subprocess
import sys

import pytest
from harness import ROOT, TIMEOUT, library_environment, load

# A root of its own that has nothing of the machine but programs and libraries, read-only, and the folder of the socket.
CONTAINER = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/root"
cd "$1/root"
for path in usr bin lib lib64 sbin etc root proc dev; do
    [ -e "/$path" ] || continue
    [ ! -L "/$path" ] || { cp -P "/$path" "$path"; continue; }
    mkdir "$path"
    case $path in proc) mount -t proc proc proc ;; *) mount --rbind -o ro "/$path" "$path" ;; esac
done
for path in "$2" "$3"; do mkdir -p "./$path"; mount --bind -o ro "$path" "./$path"; done
mkdir -p run/rocmforge tmp
mount --bind -o ro "$1/socket" run/rocmforge
shift 3
exec chroot . "$@"
"""

READER = """
import os, sys
sys.path.insert(0, sys.argv[1] + "/client/python/src")
sys.dont_write_bytecode = True
import rocmforge
assert os.getpid() < 10, "this is no PID namespace of its own"
with rocmforge.attach("m", socket="/run/rocmforge/io.rocmforge") as model:
    for name in model:
        data = bytes(model[name].buffer())
        assert len(data) == model[name].nbytes and any(data)
    print(len(model), "tensors")
os._exit(0)
"""


@pytest.fixture
def contained(folder):
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces")
    (folder / "root").mkdir()
    (folder / "socket").mkdir()
    build = os.path.realpath(os.environ["ROCMFORGE_BUILD"])

    def run(*command, user=()):
        spaces = ["--mount", "--pid", "--ipc", "--net", "--uts", "--cgroup", "--fork", *user]
        done = subprocess.run(
            ["unshare", *spaces, "bash", "-c", CONTAINER, "container", folder, build, ROOT, *command],
            capture_output=True, text=True, timeout=TIMEOUT, check=False,
            env={**library_environment(), "ROCMFORGE_LIBRARY": f"{build}/client/librocmforge.so"},
        )
        if "unshare failed" in done.stderr:
            pytest.skip(done.stderr.strip())
        return done

    run.socket = folder / "socket" / "io.rocmforge"
    return run


@pytest.mark.parametrize("user", [(), ("--user", "--map-root-user")], ids=["same users", "users apart"])
def test_host_memory(contained, start, small_model, user):
    """It needs nothing but the socket: no process, no file and no network of the daemon's."""
    daemon = start(socket=contained.socket)
    with daemon.client() as client:
        load(client, small_model, "m")
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
    done = contained(python, "-c", READER, str(ROOT), user=user)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" tensors\n")


def test_without_the_socket(contained):
    done = contained("/usr/bin/test", "-e", "/run/rocmforge/io.rocmforge")
    assert done.returncode == 1, "the namespace is not one of its own"
