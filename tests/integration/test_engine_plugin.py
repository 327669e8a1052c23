"""The plug-in for llama.cpp in a program that does what llama.cpp does, for each version of ggml's interface; with host
memory, and with a stand-in for a GPU's backend on the fake HIP runtime. The real engines: tests/engines."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time

import harness
import make_llama
import make_model
import pytest
import rocmforge_wire
from harness import TIMEOUT, build_folder, fake_gpu_folder, library_environment

ENGINES = build_folder() / "tests" / "engines"
PLUGIN = build_folder() / "client" / "engines" / "llama" / "libggml-rocmforge.so"
FAKE = fake_gpu_folder()

pytestmark = pytest.mark.skipif(not PLUGIN.exists(), reason="this build has no plug-in for llama.cpp (-Dggml)")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """make(shape, type): the path of a model."""
    folder = tmp_path_factory.mktemp("llama")

    def make(shape="tiny", type_="q4_0"):
        path = folder / f"{shape}-{type_}.gguf"
        if not path.exists():
            make_llama.make(path, shape, type_)
        return path

    return make


class Stub:
    def __init__(self, api, daemon, gpus):
        self.api = api
        self.daemon = daemon
        self.gpus = gpus

    def command(self, model, *options):
        gpu = ["--gpu", ENGINES / f"fake_gpu_api{self.api}.so"] if self.gpus else []
        return [str(word) for word in [ENGINES / f"stub_host_api{self.api}", PLUGIN, model, *gpu, *options]]

    def environment(self, **env):
        environment = library_environment()
        del environment["ROCMFORGE_MODEL"] # which means something else to the tests
        environment["ROCMFORGE_SOCKET"] = str(self.daemon.socket)
        return {**environment, "FAKE_GPUS": str(self.gpus), **env}

    def run(self, model, *options, status=0, **env):
        """What it told, and what it wrote to standard error."""
        done = subprocess.run(
            self.command(model, *options),
            env=self.environment(**env), capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if status == 0 else None, done.stderr

    def begin(self, model, *options):
        process = subprocess.Popen(
            self.command(model, "--wait", *options),
            env=self.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        first = json.loads(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        return process, first


@pytest.fixture(params=[2, 3], ids=["api2", "api3"])
def api(request):
    return request.param


@pytest.fixture(params=["host", "gpu"])
def stub(request, api, start, monkeypatch):
    if request.param == "host":
        return Stub(api, start(), 0)
    if not FAKE:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(FAKE))
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(harness.module_folder()))
    monkeypatch.setenv("FAKE_HIP_DEVICES", "2")
    return Stub(api, start("--device", "hip"), 1)


def assert_shared(told):
    assert told["same"] and told["padded"]
    assert told["resident"] == told["tensors"], told


@pytest.mark.parametrize("shape, type_", [("tiny", "q4_0"), ("moe", "q8_0"), ("padded", "q4_0"), ("tiny", "f16")])
def test_weights_are_shared(stub, llama, shape, type_):
    told, err = stub.run(llama(shape, type_))
    assert_shared(told)
    [model] = stub.daemon.models()
    assert model["form"] == "native" and model["device"] == ("hip:0" if stub.gpus else "host")
    tensors = make_llama.tensors(make_llama.SHAPES[shape], make_model.load_types()[type_], make_model.load_types()["f32"], False)
    size = sum(tensor.size for tensor in tensors)
    n = told["tensors"]
    [report] = [line for line in err.splitlines() if "shared" in line] # after all were compared, and nothing else
    where = f"{model['name']} on {model['device']}"
    shared, _, attached = report.rpartition(", attached in ")
    assert shared == f"rocmforge: shared with other processes: {n} of {n} tensors, {size / 1e6:.1f} MB of {where}"
    took, _, repacking = attached.partition(" ms")
    assert 0 < float(took) < 1000 * TIMEOUT
    assert repacking == ("" if stub.gpus else "; computed as with --no-repack")


def test_it_is_given_back_with_the_model(stub, llama):
    """While the process goes on: the end of a process gives back everything anyway."""
    process, first = stub.begin(llama())
    assert_shared(first)
    [model] = stub.daemon.models()
    assert model["leases"] == 1
    process.stdin.write("go\n")
    process.stdin.flush()
    assert_shared(json.loads(process.stdout.readline()))
    assert process.stdout.readline() == "freed\n"
    harness.wait_until(lambda: stub.daemon.models()[0]["leases"] == 0, seconds=10)
    assert process.poll() is None
    _, err = process.communicate("end\n", timeout=TIMEOUT)
    assert process.returncode == 0, err


def test_a_model_that_is_resident_is_joined(stub, llama):
    device = "hip:0" if stub.gpus else "host"
    stub.daemon.rfctl("load", llama(), "--as", "native", "--device", device, "--name", "mine")
    assert_shared(stub.run(llama())[0])
    assert [model["name"] for model in stub.daemon.models()] == ["mine"]


def test_another_form_is_not_taken(stub, llama):
    """Its name is taken, and its bytes are others."""
    device = "hip:0" if stub.gpus else "host"
    stub.daemon.rfctl("load", llama(), "--as", "f32", "--device", device)
    assert_shared(stub.run(llama())[0])
    assert sorted(model["name"] for model in stub.daemon.models()) == ["tiny-q4_0", "tiny-q4_0-native"]


def test_a_file_of_the_same_name_is_not_taken(stub, llama, folder):
    """What is resident has the same name, tensors and size, and other bytes."""
    (folder / "other").mkdir()
    other = folder / "other" / llama().name
    make_llama.make(other, "tiny", "q4_0", seed=2)
    assert_shared(stub.run(other)[0])
    assert_shared(stub.run(llama())[0])
    assert len(stub.daemon.models()) == 2


def test_a_file_that_was_replaced_is_another(stub, llama, folder):
    path = folder / "model.gguf"
    shutil.copy(llama(), path)
    assert_shared(stub.run(path)[0])
    path.unlink()
    make_llama.make(path, "tiny", "q4_0", seed=3)
    assert_shared(stub.run(path)[0])
    with open(path, "r+b") as file: # and one that was changed in place
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    assert_shared(stub.run(path)[0])


def test_two_models_at_the_same_time(stub, llama, folder):
    """Their tensors have the same names, types and shapes: each gets its own file's bytes."""
    make_llama.make(folder / "a.gguf", seed=5)
    make_llama.make(folder / "b.gguf", seed=6)
    assert_shared(stub.run(folder / "a.gguf", "--also", folder / "b.gguf")[0])
    assert_shared(stub.run(folder / "b.gguf", "--also", folder / "a.gguf")[0])
    assert sorted(model["name"] for model in stub.daemon.models()) == ["a", "b"]


def test_what_is_open_beside_is_no_model(stub, llama, folder):
    """An adapter (LoRA), which is mapped too in some versions; and a projector, which engines read and do not map."""
    make_llama.make_lora(folder / "lora.gguf")
    make_llama.make(folder / "mmproj.gguf", seed=8)
    told, err = stub.run(llama(), "--also", folder / "lora.gguf", "--beside", folder / "mmproj.gguf")
    assert_shared(told)
    assert len(err.splitlines()) == 2 # the model is loaded, and shared
    assert [model["name"] for model in stub.daemon.models()] == ["tiny-q4_0"]


def test_a_symbolic_link_is_the_file(stub, llama, folder):
    (folder / "link.gguf").symlink_to(llama())
    assert_shared(stub.run(folder / "link.gguf")[0])
    assert_shared(stub.run(llama())[0])
    assert len(stub.daemon.models()) == 1


@pytest.mark.parametrize("how", ["copy", "parts", "write", "twice", "views", "read", "none"])
def test_whatever_is_set_is_what_tensors_have(stub, llama, how):
    told, err = stub.run(llama("padded"), "--how", how)
    assert told["same"] and told["padded"]
    if how == "twice":
        assert_shared(told)
    elif how in ("write", "views"):
        assert told["resident"] == told["tensors"] - 1
        assert "the engine changes it" in err
    else:
        assert told["resident"] == 0
    if how == "copy": # each is told of once, although all are read too
        assert err.count("is not shared: its bytes come from elsewhere") == 3 and err.count("others are not shared") == 1
        assert "not shared: none of the engine's" in err
    if how == "read":
        assert "not shared" in err
    if how == "none":
        assert "rocmforge" not in err # an adapter's memory: nothing to tell
    for model in stub.daemon.models(): # nobody else's bytes were written to
        assert "every bit" in stub.daemon.rfctl("verify", model["name"]).stdout


def test_no_daemon(stub, llama, folder):
    told, err = stub.run(llama(), ROCMFORGE_SOCKET=str(folder / "nobody"))
    assert told["same"] and told["resident"] == 0
    assert "no daemon" in err and "ordinary way" in err
    _, err = stub.run(llama(), status=4, ROCMFORGE_SOCKET=str(folder / "nobody"), ROCMFORGE_STRICT="1")
    assert "ROCMFORGE_STRICT" in err


def test_strict_is_silent_where_all_is_shared(stub, llama):
    assert_shared(stub.run(llama(), ROCMFORGE_STRICT="1")[0])


@pytest.mark.parametrize("how, reason", [("copy", "its bytes come from elsewhere"), ("parts", "it is set in parts"), ("write", "the engine changes it")])
def test_strict_refuses_single_tensors(stub, llama, how, reason):
    """Whether its bytes can be shared is known when a tensor is set: then nothing is left but to end."""
    _, err = stub.run(llama(), "--how", how, status=1, ROCMFORGE_STRICT="1")
    told = err.splitlines()[-2:]
    assert told[0].endswith(f"is not shared: {reason}") and told[1] == "rocmforge: ROCMFORGE_STRICT is set: the engine is ended"


def test_strict_refuses_a_tensor_that_the_model_lacks(stub, llama):
    device = "hip:0" if stub.gpus else "host"
    stub.daemon.rfctl("load", llama(), "--as", "native", "--device", device, "--name", "named")
    _, err = stub.run(llama("moe", "q8_0"), status=5, ROCMFORGE_STRICT="1", ROCMFORGE_MODEL="named")
    assert "cannot be shared, and ROCMFORGE_STRICT is set" in err


def test_a_tensor_is_read_before_it_is_set(stub, llama):
    """It has no bytes. What the engine would get is garbage, so it gets none."""
    _, err = stub.run(llama(), "--how", "early", status=-signal.SIGABRT)
    assert err.splitlines()[-1] == (
        "rocmforge: token_embd.weight is read before it is set: the engine is ended, because this tensor has no bytes"
    )


def test_no_memory_to_read_a_gpus_tensor(stub, llama):
    """Never zeros in place of weights."""
    if not stub.gpus:
        pytest.skip("of GPUs only")
    _, err = stub.run(llama(), status=-signal.SIGABRT, FAKE_GPU_LIMIT="16")
    assert "no memory for token_embd.weight: the engine is ended" in err


def test_no_memory_for_a_tensor_of_its_own(stub, llama):
    if not stub.gpus:
        pytest.skip("of GPUs only")
    _, err = stub.run(llama(), "--how", "copy", status=-signal.SIGABRT, FAKE_GPU_LIMIT="16")
    assert "no memory for token_embd.weight: the engine is ended" in err


def test_a_model_that_does_not_fit(api, start, llama):
    stub = Stub(api, start("--budget", "4Mi"), 0)
    told, err = stub.run(llama("padded"))
    assert told["same"] and told["resident"] == 0
    assert "the daemon does not give" in err and "ordinary way" in err
    stub.run(llama("padded"), status=4, ROCMFORGE_STRICT="1")


def test_the_daemon_is_killed(stub, llama):
    process, first = stub.begin(llama("padded"))
    assert_shared(first)
    os.kill(stub.daemon.pid, signal.SIGKILL)
    stub.daemon.process.wait()
    out, err = process.communicate("go\nend\n", timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert_shared(json.loads(out.splitlines()[0]))


@pytest.fixture(params=["host", "gpu"])
def held_stub(request, api, start, monkeypatch):
    """Its daemon runs under rocmforge-hold."""
    program = [harness.hold_program(), "--", harness.daemon_program()]
    if request.param == "host":
        return Stub(api, start("--grace", "1", program=program), 0)
    if not FAKE:
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(FAKE))
    monkeypatch.setenv("ROCMFORGE_MODULE_DIR", str(harness.module_folder()))
    return Stub(api, start("--grace", "1", "--device", "hip", "--export", "fd", program=program), 1)


def holders(daemon, name):
    with contextlib.suppress(OSError, rocmforge_wire.Closed), daemon.client() as client:
        return [lease["pid"] for lease in client.call("Show", name=name)["leases"]]


def test_the_lease_is_taken_again(held_stub, llama):
    """The daemon is killed several times: what the engine computes on is held for it all the time."""
    daemon, path = held_stub.daemon, llama("padded")
    process, first = held_stub.begin(path)
    assert_shared(first)
    for _ in range(3):
        before = daemon.status()["pid"]
        harness.wait_until(lambda: len([fd for fd in daemon.fds() if "rocmforge" in fd or fd.endswith(".gguf")]) >= 3)
        os.kill(before, signal.SIGKILL)
        harness.wait_until(lambda: holders(daemon, path.stem) == [process.pid])
        assert daemon.status()["pid"] != before
    time.sleep(1.5)  # the time of grace is over: only the lease holds it
    with daemon.client() as client, harness.wire_error("ModelBusy") as parameters:
        client.call("Unload", name=path.stem)
    assert [lease["pid"] for lease in parameters["leases"]] == [process.pid]
    process.stdin.write("go\n")
    process.stdin.flush()
    assert_shared(json.loads(process.stdout.readline()))
    assert process.stdout.readline() == "freed\n"
    harness.wait_until(lambda: holders(daemon, path.stem) == [])
    _, err = process.communicate("end\n", timeout=TIMEOUT)
    assert process.returncode == 0 and "anew" not in err, err


def test_the_next_daemon_does_not_have_the_model(start, api, llama):
    stub = Stub(api, start(), 0)
    process, first = stub.begin(llama())
    assert_shared(first)
    stub.daemon.process.kill()
    stub.daemon.process.wait()
    time.sleep(0.3)  # some tries find nobody
    start()
    for word in "the daemon loads", "shared with other processes", "the daemon was started anew":
        assert word in process.stderr.readline()
    out, err = process.communicate("go\nend\n", timeout=TIMEOUT)
    assert process.returncode == 0 and not err, err
    assert_shared(json.loads(out.splitlines()[0]))


def test_the_model_is_unloaded_by_force(stub, llama):
    process, first = stub.begin(llama())
    assert_shared(first)
    stub.daemon.rfctl("unload", "tiny-q4_0", "--force")
    out, err = process.communicate("go\nend\n", timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert_shared(json.loads(out.splitlines()[0]))
    harness.wait_until(lambda: not stub.daemon.models())


def test_a_named_model(stub, llama, folder):
    """ROCMFORGE_MODEL: a copy of the file is as good as the file, and another file is noticed by its bytes."""
    device = "hip:0" if stub.gpus else "host"
    shutil.copy(llama(), folder / "copy.gguf")
    stub.daemon.rfctl("load", folder / "copy.gguf", "--as", "native", "--device", device, "--name", "named")
    assert_shared(stub.run(llama(), ROCMFORGE_MODEL="named")[0])
    make_llama.make(folder / "other.gguf", "tiny", "q4_0", seed=4)
    told, err = stub.run(folder / "other.gguf", ROCMFORGE_MODEL="named")
    assert told["same"] and told["resident"] < told["tensors"]
    assert "its bytes are others than the file's" in err
    told, err = stub.run(llama("moe"), ROCMFORGE_MODEL="named")
    assert told["same"]
    told, err = stub.run(llama(), ROCMFORGE_MODEL="nobody")
    assert told["same"] and told["resident"] == 0 and "the daemon does not give" in err


def test_several_gpus(stub, llama):
    if not stub.gpus:
        pytest.skip("of GPUs only")
    stub.gpus = 2
    for type_, device in (("ROCmForge", "hip:0"), ("ROCmForge1", "hip:1"), ("ROCmForge_Host", "host")):
        assert_shared(stub.run(llama("padded"), "--type", type_)[0])
        assert device in [model["device"] for model in stub.daemon.models()]


def test_a_gpu_that_the_daemon_has_not(stub, llama):
    if not stub.gpus:
        pytest.skip("of GPUs only")
    stub.gpus = 3
    told, err = stub.run(llama(), "--type", "ROCmForge2")
    assert told["same"] and told["resident"] == 0
    assert "keeps no models on the GPU" in err


def test_a_gpu_backend_of_another_make(stub, llama):
    """Its buffer types' context is laid out otherwise: that is noticed before it is used, and the host serves."""
    if not stub.gpus:
        pytest.skip("of GPUs only")
    told, err = stub.run(llama(), FAKE_GPU_CONTEXT="other")
    assert "not as this plug-in knows them" in err
    assert_shared(told)
    assert [model["device"] for model in stub.daemon.models()] == ["host"]


@pytest.mark.parametrize("version, number", [("0.24.9", 2), ("0.27.0", 4), ("1.0.0", 3), ("0.26.0", 2), ("0.25.3", 3)])
def test_another_version_is_refused(start, llama, version, number):
    """With one sentence, which says what the engine has and what can be had."""
    stub = Stub(3, start(), 0)
    _, err = stub.run(llama(), "--version", version, "--api", str(number), status=3)
    assert [line for line in err.splitlines() if line.startswith("rocmforge: ")] == [
        f"rocmforge: this engine has ggml {version} with interface {number}; weights can be shared with ggml 0.25.x with "
        "interface 2 and ggml 0.26.x with interface 3. Its weights are not shared"
    ]


def test_reading_ahead_is_asked_for_no_more(stub, llama):
    told, _ = stub.run(llama(), "--type", "ROCmForge_Host")
    assert told["numa"] # the word stands on the command line
    assert not stub.run(llama(), "--type", "ROCmForge_Host", ROCMFORGE_PREFETCH="1")[0]["numa"]


def test_a_split_model_lacks_a_file(stub, folder):
    """The stub opens the first file only: all of a split model have to be open."""
    first = make_llama.make_split(folder)[0]
    told, err = stub.run(first)
    assert told["same"] and told["resident"] == 0
    assert "is one of 3 files of a model, and the engine does not have all of them open" in err


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_split_model(stub, folder, number):
    """The stub sets the tensors of one file."""
    paths = make_llama.make_split(folder)
    also = [word for path in paths if path != paths[number] for word in ("--also", path)]
    assert_shared(stub.run(paths[number], *also)[0])
    assert len(stub.daemon.models()) == 1


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_split_model_whose_names_do_not_tell(stub, folder, number):
    """As in caches of downloads: the names with numbers are links, and the files that they lead to have other names."""
    (folder / "blobs").mkdir()
    names = []
    for i, path in enumerate(make_llama.make_split(folder)):
        path.rename(folder / "blobs" / f"{7 - i}f00d")
        path.symlink_to(folder / "blobs" / f"{7 - i}f00d")
        names.append(path)
    also = [word for path in names if path != names[number] for word in ("--also", path)]
    assert_shared(stub.run(names[number], *also)[0])
    assert len(stub.daemon.models()) == 1


def test_a_name_with_numbers_makes_no_split_model(stub, llama, folder):
    """The engine goes by what stands in the file, too."""
    path = folder / "model-00001-of-00002.gguf"
    shutil.copy(llama(), path)
    assert_shared(stub.run(path)[0])
