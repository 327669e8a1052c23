"""Loading with a lease: what was loaded cannot be evicted before it is used."""
import subprocess
import sys
import textwrap

import pytest
from harness import (
    GRANULE,
    MIB,
    ROOT,
    TIMEOUT,
    build_folder,
    library_environment,
    states,
    wait_until,
    wire_error,
)

N = 20


def test_answers_as_load_and_attach_do(daemon, client, small_model):
    loaded = client.call("Load", path=str(small_model), name="m", lease=True)
    attached = client.call("Attach", name="m")
    assert loaded.pop("phases")["total"] > 0
    assert loaded.keys() == attached.keys()
    assert loaded["tensors"] == attached["tensors"] and loaded["model"]["leases"] == 1
    assert {key: loaded["device"][key] for key in ("id", "used")} == {
        key: attached["device"][key] for key in ("id", "used")
    }
    assert attached["lease"] != loaded["lease"]
    with wire_error("ModelBusy") as busy:
        client.call("Unload", name="m")
    assert {lease["lease"] for lease in busy["leases"]} == {loaded["lease"], attached["lease"]}
    client.call("Detach", lease=loaded["lease"])
    client.call("Detach", lease=attached["lease"])
    client.call("Unload", name="m")


def test_descriptors_come_with_it(daemon, client, small_model):
    """Of the memory, and of the table in binary if that is asked for; also of a model that is there."""
    for table in (False, True):
        reply = client.call("Load", path=str(small_model), name="m", lease=True, table=table)
        assert reply["fd"] == 0 and len(client.fds) == (2 if table else 1)
        assert (reply["table"], reply["tensors"] is None) == ((1, True) if table else (None, False))
    assert daemon.models()[0]["leases"] == 2
    client.close()
    wait_until(lambda: daemon.models()[0]["leases"] == 0)


def test_joins_with_a_lease(held_daemon, gate, gated_model):
    """Whoever joins a load gets a lease of its own, and so does who began it."""
    with held_daemon.client() as first, held_daemon.client() as second, held_daemon.client() as third:
        first.send("Load", {"path": str(gated_model), "name": "m", "lease": True})
        wait_until(lambda: states(held_daemon) == {"m": "filling"})
        second.send("Load", {"path": str(gated_model), "name": "m", "lease": True})
        third.send("Load", {"path": str(gated_model), "name": "m"})
        held_daemon.sync()
        gate.open()
        replies = [client.reply()[0] for client in (first, second, third)]
        assert replies[0]["lease"] != replies[1]["lease"]
        assert "phases" in replies[0] and "phases" not in replies[1] and "lease" not in replies[2]
        assert held_daemon.models()[0]["leases"] == 2


@pytest.mark.parametrize(
    "wrong, parameters",
    [("lease", {"lease": True, "wait": False}), ("table", {"table": True}), ("lease", {"lease": 1})],
)
def test_wrong_parameters(client, small_model, wrong, parameters):
    with wire_error("org.varlink.service.InvalidParameter") as error:
        client.call("Load", path=str(small_model), **parameters)
    assert error == {"parameter": wrong}


def run_library(code, daemon, *arguments):
    """In a process of its own, which has the library's sanitizer, if it has one."""
    lines = ["import sys", f"sys.path.insert(0, {str(ROOT / 'tests' / 'lib')!r})", "import librocmforge",
             f"client = librocmforge.Client({str(build_folder())!r}, sys.argv[1])", textwrap.dedent(code)]
    command = [sys.executable, "-c", "\n".join(lines), daemon.socket, *arguments]
    return subprocess.Popen(
        command, env=library_environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_clients_and_room_for_one(start, models):
    """None of their attempts fails: what was loaded stays until it is let go, and the other waits for that."""
    daemon = start("--budget", str(GRANULE))
    code = f"""
        input()
        for _ in range({N}):
            with client.load_attach(sys.argv[2], wait_for_memory=60) as model:
                assert len(model) == 1
    """
    processes = [run_library(code, daemon, path) for path in models(2)]
    with daemon.client() as client:
        wait_until(lambda: client.call("Status")["connections"] == 3)
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.communicate(timeout=TIMEOUT)[1] == "" and process.returncode == 0
    assert "evicted" in daemon.log, "they were in each other's way"


def test_attach_alone_may_come_too_late(start, models):
    """What a lease with the load is for."""
    daemon = start("--budget", str(GRANULE))
    a, b = models(2)
    with daemon.client() as client, daemon.client() as other:
        client.call("Load", path=str(a), name="a")
        other.call("Load", path=str(b), name="b")
        with wire_error("ModelNotFound"):
            client.call("Attach", name="a")
        client.call("Load", path=str(a), name="a", lease=True)
        with wire_error("OutOfDeviceMemory"):
            other.call("Load", path=str(b), name="b")


def test_library_refuses_what_is_not_waited_for(daemon, small_model):
    code = """
        def error_of(*arguments, **options):
            try:
                client.load_attach(*arguments, **options)
            except librocmforge.Failure as failure:
                return failure.error

        assert error_of(sys.argv[2], no_wait=True) == -22
        assert error_of("/nowhere/m.gguf") == -2
        with client.load_attach(sys.argv[2]) as model:
            assert model.name == "small" and model.device == "host"
    """
    process = run_library(code, daemon, small_model)
    assert process.communicate(timeout=TIMEOUT)[1] == "" and process.returncode == 0
    wait_until(lambda: [model["leases"] for model in daemon.models()] == [0])


def test_dump_of_what_a_file_does_not_have(daemon, models):
    """A file is not loaded for a tensor that is not in it."""
    (path,) = models(1, 3 * MIB)
    result = daemon.rfctl("dump", path, "no-such-tensor", check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith(f": there is no such tensor; 'rfctl inspect {path}' lists them\n")
    assert daemon.models() == []


def test_dump_of_a_file(daemon, models):
    """rfctl and the example load a file that they are to read, where it is not there yet."""
    (path,) = models(1, 3 * MIB)
    dumped = daemon.rfctl("dump", path, "blk.0.ffn_up.weight", text=False).stdout
    assert len(dumped) == 3 * MIB and dumped in path.read_bytes()
    assert states(daemon) == {"m0-3145728": "resident"}
    assert daemon.rfctl("dump", "m0-3145728", "blk.0.ffn_up.weight", text=False).stdout == dumped
    daemon.rfctl("unload", "m0-3145728")
    command = [build_folder() / "docs" / "read_tensor", path, "blk.0.ffn_up.weight"]
    environment = {"ROCMFORGE_SOCKET": str(daemon.socket)}
    for _ in range(2):
        example = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        assert example.returncode == 0, example.stderr
        assert "blk.0.ffn_up.weight" in example.stdout
        assert states(daemon) == {"m0-3145728": "resident"}
