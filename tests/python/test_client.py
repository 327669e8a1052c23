"""Calls: every method, progress, what ends a call, connections that come and go."""
import inspect
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import gguf
import pytest
import rocmforge
import rocmforge.aio
from harness import ROOT, TIMEOUT, states, wait_until
from split_model import write_split

INTERFACE = (ROOT / "proto" / "io.rocmforge.varlink").read_text()


def methods():
    """The wire's methods as Python calls them."""
    for name in re.findall(r"^method (\w+)", INTERFACE, re.M):
        yield re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


@pytest.mark.parametrize("client", [rocmforge.Client, rocmforge.aio.Client])
def test_every_method_is_there(client):
    assert [name for name in methods() if not callable(getattr(client, name, None))] == []


def test_both_clients_take_the_same():
    def parameters(function):
        return [(p.name, p.kind, p.default, p.annotation) for p in inspect.signature(function).parameters.values()]

    def public(client):
        return {name for name, value in vars(client).items() if callable(value) and not name.startswith("_")}

    ours = {*methods(), "call", "call_more", "load_attach", "on_draining", "close"}
    assert public(rocmforge.aio.Client) == ours and public(rocmforge.Client) == ours | {"after_fork"}
    for name in ours:
        assert parameters(getattr(rocmforge.Client, name)) == parameters(getattr(rocmforge.aio.Client, name)), name


@pytest.mark.parametrize("method, options", [("Load", rocmforge.LoadOptions), ("Plan", rocmforge.PlanOptions)])
def test_load_and_plan_take_what_the_wire_takes(method, options):
    text = re.search(rf"^method {method}\((.*?)\)", INTERFACE, re.M | re.S)[1]
    wire = {re.sub(r"([A-Z])", r"_\1", name).lower() for name in re.findall(r"(\w+): \S", text)}
    own = {"fds", "added", "path", "lease", "table", "header"}  # what load() and load_attach() do with them
    assert wire - own == options.__annotations__.keys()


def test_create_and_publish_take_what_the_wire_takes():
    def wire(method):
        text = re.search(rf"^method {method}\((.*?)\)", INTERFACE, re.M | re.S)[1]
        return {re.sub(r"([A-Z])", r"_\1", name).lower() for name in re.findall(r"(\w+): \S", text)}

    own = {"name", "tensors", "tensors_file", "bytes", "table", "header"}  # what create() does with them
    assert wire("Create") - own == rocmforge.CreateOptions.__annotations__.keys()
    own = {"creation", "tensors_file", "metadata_file", "lease", "table", "header"}
    assert wire("Publish") - own == inspect.signature(rocmforge.Creation.publish).parameters.keys() - {"self"}
    publish = inspect.signature(rocmforge.Client.publish).parameters.keys()
    assert publish - {"self", "options", "progress"} == {"name", "tensors", "metadata", "pin", "ttl"}


def test_what_every_method_takes():
    """All parameters of the wire's methods, by the same name: none is left out, and none is made up."""
    for method, text in re.findall(r"^method (\w+)\((.*?)\)", INTERFACE, re.M | re.S):
        if method in ("Load", "Plan", "Create", "Publish"):
            continue
        wire = {re.sub(r"([A-Z])", r"_\1", name).lower() for name in re.findall(r"(\w+): \S", text)}
        name = re.sub(r"(?<!^)([A-Z])", r"_\1", method).lower()
        ours = inspect.signature(getattr(rocmforge.Client, name)).parameters.keys() - {"self", "progress"}
        assert wire - {"table", "header"} == ours, method  # which attach() asks for, or the library


def test_a_wrong_option_is_refused(rf, small):
    with pytest.raises(TypeError, match="nmae"):
        rf.load(small, nmae="m")
    with pytest.raises(TypeError, match="trace"):
        rf.load_attach(small, trace=True)
    with pytest.raises(TypeError, match="ttl"):
        rf.plan(small, ttl=3)


def test_forms_by_name(rf, small):
    rules = {"*": "f16", "blk.0.*": "f32", "*attn_k*": "native"}
    with rf.load_attach(small, forms=rules) as model:
        forms = {name: tensor.form for name, tensor in model.items()}
        assert forms["blk.0.attn_v.weight"] == "f32" and "f16" in forms.values()
        assert forms["blk.0.attn_k.weight"] in ("native", "f32", "f16", "bf16")
    assert rf.plan(small, forms=[{"match": "*", "form": "f16"}])["bytes"] > 0


def test_a_queued_load(start, small):
    daemon = start("--budget", "4M")
    with rocmforge.connect(daemon.socket) as rf:
        model = rf.load_attach(small, name="one", form="native")
        with pytest.raises(rocmforge.OutOfDeviceMemory) as caught:
            rf.load(small, name="two", form="f16", wait_for_memory=0.2)
        assert caught.value.needed > caught.value.available
        model.close()


def test_a_model_comes_and_goes(rf, small):
    plan = rf.plan(small)
    assert plan["fits"] and plan["tensors"] == 8 and plan.get("model") is None
    reply = rf.load(small, name="m", form="f16", trace=True)
    assert reply["model"]["name"] == "m" and reply["phases"]["total"] > 0 and reply["trace"]
    assert [model["name"] for model in rf.list()] == ["m"]
    assert {entry["key"] for entry in rf.show("m")["metadata"]} >= {"general.architecture"}
    assert [device["id"] for device in rf.devices()] == ["host"]
    assert rf.status()["models"] == 1
    rf.pin("m")
    assert rf.list()[0]["pinned"]
    rf.unpin("m")
    rf.set_ttl("m", 600)
    assert rf.list()[0]["ttl"] == 600
    rf.set_ttl("m", None)
    assert rf.list()[0]["ttl"] is None and not rf.list()[0]["pinned"]
    assert rf.verify("m")["mismatches"] == []
    assert rf.unload("m") == "unloaded" and rf.list() == []


def test_by_path_and_by_link(rf, small, folder):
    assert rf.load(small, by_path=True)["model"]["name"] == "small"
    rf.unload("small")
    (folder / "my model.gguf").symlink_to(small)
    assert rf.load(folder / "my model.gguf")["model"]["name"] == "my_model"


def test_split_model(rf, folder):
    paths = write_split(folder)
    with rf.load_attach(paths[0], form="native") as model:
        expected = [tensor for path in paths for tensor in gguf.GGUFReader(path).tensors]
        assert list(model) == [tensor.name for tensor in expected]
        assert all(model[tensor.name].read() == tensor.data.tobytes() for tensor in expected)
        assert model.metadata()["split.count"] == 3


@pytest.mark.parametrize("form", ["sha256-{}f{}a0", "m-{:05}-of-{:05}.GGUF", "m-{}-of-{}"])
def test_split_model_by_what_its_files_say(rf, folder, form):
    """As with rfctl: names only help."""
    paths = [path.rename(path.with_name(form.format(i + 1, 3))) for i, path in enumerate(write_split(folder))]
    assert rf.plan(paths[0])["tensors"] == 7
    rf.load(paths[0], name="m")
    with rf.attach("m") as model:
        assert model.metadata()["split.count"] == 3
    paths[1].rename(folder / "m-00002-of-00003.gguf.old")
    assert rf.plan(paths[0])["model"]["name"] == "m"
    os.remove(folder / "m-00002-of-00003.gguf.old")
    with pytest.raises(FileNotFoundError):
        rf.plan(paths[0])


def test_split_model_that_cannot_be_told_from_another(rf, folder):
    paths, copies = write_split(folder), []
    for i, path in enumerate(paths):
        copies.append(path.with_name(f"copy{i}"))
        copies[-1].write_bytes(path.read_bytes())
        paths[i] = path.rename(path.with_name(f"blob{i}"))
    with pytest.raises(rocmforge.AmbiguousFiles) as error:
        rf.load(paths[0])
    assert error.value.files in [sorted([str(paths[i]), str(copies[i])]) for i in (1, 2)]
    assert pickle.loads(pickle.dumps(error.value)).files == error.value.files
    with pytest.raises(rocmforge.AmbiguousFiles):
        rf.load(paths[0], by_path=True)
    assert rf.load(paths, name="m")["model"]["tensors"] == 7


def test_split_model_of_many_files(rf, folder, daemon):
    """More than a message carries. That they are not of one model is found when all have come."""
    first = write_split(folder)
    assert set(rf.load_attach(list(reversed(first)), form="native", name="listed")) == set(rf.load_attach(first[0], form="native"))
    with pytest.raises(rocmforge.WireError):
        rf.load([first[0]] * 600)
    assert rf.status()["connections"] <= 4
    with pytest.raises(ValueError, match="at least one file"):
        rf.load([])


def test_progress(rf, large, start, capsys, monkeypatch):
    seen = []
    rf.load(large, progress=seen.append)
    assert seen and all(set(report) >= {"state", "done", "total", "rate"} for report in seen)
    seen.clear()
    rf.verify("large", progress=seen.append)
    assert seen and seen[-1]["state"] == "verifying"
    rf.unload("large")
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    rf.load(large, progress=True)
    assert capsys.readouterr() == ("", "")  # no terminal


def test_progress_with_tqdm(rf, large, capsys, monkeypatch):
    """Its bar, at 100 % in the end, and closed also when the load fails."""
    tqdm = pytest.importorskip("tqdm.auto")
    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append(self)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    reply = rf.load(large, name="m", progress=True)
    (bar,) = bars
    assert bar.n == bar.total == reply["model"]["bytes"] and bar.desc == "loading large.gguf" and bar.disable
    shown = capsys.readouterr()
    assert "loading large.gguf: 100%" in shown.err and shown.out == ""


def test_progress_that_raises_ends_the_load(start, large, slow_read):
    daemon = start(env=slow_read)
    with rocmforge.connect(daemon.socket) as rf:

        def raise_(_):
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            rf.load(large, progress=raise_)
        wait_until(lambda: daemon.models() == [])
        assert rf.list() == []


def test_ctrl_c_ends_a_load(start, large, slow_read):
    daemon = start(env=slow_read)
    code = f"import rocmforge; rocmforge.connect({str(daemon.socket)!r}).load({str(large)!r})"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: states(daemon).get("large") == "filling")
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=TIMEOUT)
    assert stderr.rstrip().endswith("KeyboardInterrupt") and "ignored" not in stderr
    assert child.returncode == -signal.SIGINT
    wait_until(lambda: daemon.models() == [])


def test_ctrl_c_ends_a_wait_to_attach(start, large, slow_read):
    daemon = start(env=slow_read)
    with rocmforge.connect(daemon.socket) as rf:
        rf.load(large, wait=False)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            rf.attach("large")
        assert time.monotonic() - began < 3
        rf.cancel("large")
        wait_until(lambda: daemon.models() == [])


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(daemon):
    with rocmforge.connect(daemon.socket) as rf:
        os.kill(daemon.pid, signal.SIGSTOP)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            rf.status()
        threading.Timer(0.2, os.kill, (daemon.pid, signal.SIGCONT)).start()
        assert rf.list() == [] and rf.status()["models"] == 0


def test_attach_waits_for_a_load_so_long(start, large, slow_read):
    daemon = start(env={**slow_read, "SLOW_READ_MS": "20"})
    with rocmforge.connect(daemon.socket) as rf:
        rf.load(large, wait=False)
        with pytest.raises(rocmforge.DeadlineExceeded):
            rf.attach("large", deadline=0.05)
        seen = []
        with rf.attach("large", deadline=30, progress=seen.append) as model:
            assert len(model) == 20 and seen
        with pytest.raises(ValueError):
            rf.attach("large", deadline=-1)


def test_threads_share_a_client(rf, small):
    rf.load(small, name="m")
    failures = []

    def work():
        try:
            for _ in range(20):
                assert rf.list()[0]["name"] == "m"
                with rf.attach("m") as model:
                    assert len(model["blk.0.attn_v.weight"].read()) > 1000
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rf.unload("m") == "unloaded"


def test_a_client_connects_anew(start, folder):
    first = start()
    with rocmforge.connect(first.socket) as rf:
        pid = rf.status()["pid"]
        first.stop()
        with pytest.raises(rocmforge.NoDaemon, match="is rocmforged running"):
            rf.list()
        start()
        assert rf.status()["pid"] != pid


def test_no_daemon_and_closed(folder, daemon):
    with pytest.raises(rocmforge.NoDaemon) as caught:
        rocmforge.connect(folder / "nothing")
    assert isinstance(caught.value, ConnectionError) and isinstance(caught.value, rocmforge.Error)
    rf = rocmforge.connect(daemon.socket)
    rf.close()
    rf.close()
    for call in (rf.list, rf.watch().__next__, lambda: rf.attach("m"), lambda: rf.on_draining(print)):
        with pytest.raises(rocmforge.Closed):
            call()


def test_module_functions(daemon, small, monkeypatch):
    monkeypatch.setenv("ROCMFORGE_SOCKET", str(daemon.socket))
    assert rocmforge.load(small, name="m")["model"]["state"] == "resident"
    with rocmforge.attach("m") as one, rocmforge.load_attach(small) as two:
        assert one.id == two.id


def test_watch(rf, small):
    events = rf.watch()
    assert next(events)["models"] == []
    rf.load(small, name="m")
    assert next(events)["event"] == "loading"
    assert next(events)["event"] == "resident"
    events.close()


def test_a_forked_child_connects_anew(rf, small):
    rf.load(small, name="m")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with rf.attach("m") as model:
                status = 0 if len(model) == 8 and rf.list()[0]["leases"] == 1 else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert rf.list()[0]["leases"] == 0


def test_pickling_is_refused(rf, small):
    with rf.load_attach(small, name="m") as model:
        for thing in (rf, model, model["blk.0.attn_v.weight"]):
            with pytest.raises(TypeError, match="in the other process"):
                pickle.dumps(thing)


def test_versions_agree():
    from rocmforge import _library

    project = re.search(r"version: '(.*?)'", (ROOT / "meson.build").read_text())[1]
    package = re.search(r'^version = "(.*?)"', (ROOT / "client/python/pyproject.toml").read_text(), re.M)[1]
    assert project == package == rocmforge.__version__ == _library.library().rf_version().decode()


def test_library_not_found(run_python, folder):
    code = "import rocmforge, sys\ntry: rocmforge._library.library()\nexcept rocmforge.LibraryNotFound as e: print(e)"
    assert "there is no librocmforge.so.0" in run_python(code, ROCMFORGE_LIBRARY=str(folder))
    assert "install rocmforge, or set" in run_python(code, ROCMFORGE_LIBRARY="/nowhere/x.so")


def test_close_ends_a_call_of_another_thread(daemon):
    rf = rocmforge.connect(daemon.socket)
    ended = []

    def call():
        try:
            rf.status()
        except BaseException as error:
            ended.append(type(error))

    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]  # the second waits for its turn
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        rf.close()
        for thread in threads:
            thread.join(5)
        assert ended == [rocmforge.Closed] * 2
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def test_a_name_that_another_model_takes_meanwhile(daemon, rf, small, large, monkeypatch):
    """The model is attached to that was waited for, and not the one that has the name by then."""
    from rocmforge import client as client_module

    attach = client_module.Attachment

    def late(socket, name):
        with rocmforge.connect(daemon.socket) as other:
            other.load(large, name="m", replace=True)
        return attach(socket, name)

    first = rf.load(small, name="m")["model"]
    monkeypatch.setattr(client_module, "Attachment", late)
    try:
        model = rf.attach("m")
    except rocmforge.ModelBusy as busy:  # it drains by now
        assert busy.name == f"m#{first['id']}"
    else:
        assert model.id == first["id"] and len(model) == 8
        model.close()


def test_attaching_by_name_and_id(rf, small):
    info = rf.load(small, name="m")["model"]
    with rf.attach(f"m#{info['id']}") as model:
        assert (model.name, model.id) == ("m", info["id"])


def test_parts_of_other_calls(rf, folder):
    first, *others = fds = [os.open(path, os.O_RDONLY) for path in write_split(folder)]
    assert rf.add_files([first]) == 1
    rf.call("Load", {"fds": list(range(len(others))), "added": 1, "name": "m"}, others)
    for fd in fds:
        os.close(fd)
    lease = rf.call("Attach", {"name": "m"})["lease"]
    assert rf.show("m")["leases"][0]["lease"] == lease
    rf.detach(lease)
    assert rf.show("m")["leases"] == []
    with pytest.raises(rocmforge.LeaseNotFound):
        rf.detach(lease)


@pytest.mark.parametrize("fds", [[999], [-1], [0] * 254], ids=["closed", "negative", "too many"])
def test_descriptors_that_cannot_be_sent(rf, fds):
    with pytest.raises(ValueError):
        rf.call("Load", {"fds": [0]}, fds)
    assert rf.list() == []


def test_what_is_no_missing_daemon(folder):
    """A path that no socket can have, and one through a file."""
    (folder / "file").touch()
    for path in ("/" + "x" * 200, folder / "file" / "socket"):
        with pytest.raises(OSError) as caught:
            rocmforge.connect(path)
        assert not isinstance(caught.value, rocmforge.NoDaemon)
    with pytest.raises(rocmforge.NoDaemon):
        rocmforge.connect(folder / "file")  # nobody listens


def test_a_failed_attach_leaves_no_connection(daemon):
    """Not even while the exception is kept, which refers to all that was there when it was raised."""
    from rocmforge._memory import Attachment

    before = os.listdir("/proc/self/fd")
    with pytest.raises(rocmforge.ModelNotFound) as caught:
        Attachment(str(daemon.socket), "nothing")
    assert os.listdir("/proc/self/fd") == before and caught.value.name == "nothing"


def test_locks_that_others_held_when_a_child_was_forked(daemon, small):
    """Such a thread does not exist in the child, and would never release them."""
    from rocmforge import _library

    rf = rocmforge.connect(daemon.socket)
    model = rf.load_attach(small, name="m", form="f32")
    held, done = threading.Event(), threading.Event()

    def hold():
        with rf._lock, model._attachment._lock, _library._lock:
            held.set()
            done.wait(TIMEOUT)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # which ends it
        status = 1
        try:
            model.numpy("blk.0.attn_v.weight")
            model.close(force=True)
            _library._library = None
            rf.list()
            with rf.attach("m"):
                status = 0
        finally:
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    done.set()
    thread.join()
    assert status == 0
    model.close()
    rf.close()


def test_a_connection_of_the_parent_is_not_used(rf):
    events = rf.watch()
    next(events)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            next(events)
        except rocmforge.ConnectionLost as error:
            status = 0 if "forked" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_reattach(rf, daemon, small):
    """A lease ends with its connection; who has the memory still can take another one."""
    rf.load(small, name="again")
    with rocmforge.connect(str(daemon.socket)) as other:
        token = other.call("Attach", {"name": "again"})["token"]
    reply = rf.reattach("again", token)
    assert reply["model"]["name"] == "again" and reply["lease"] > 0
    rf.detach(reply["lease"])
    with pytest.raises(rocmforge.ModelNotFound):
        rf.reattach("again", "0" * 32)
