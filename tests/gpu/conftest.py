"""The real daemon with a GPU module, on tests/fake_hip or on a GPU.

ROCMFORGE_BUILD names the build folder. ROCMFORGE_GPU names a kind, "cuda" or "hip": then the tests run on this
machine's GPU, and those that need what only the fake does are skipped. Without it they run on the fake.
"""
import os
import shutil
import tempfile
from pathlib import Path

import make_model
import pytest
from harness import Daemon, ending_well, fake_gpu_folder, module_folder, short_folder

KIND = os.environ.get("ROCMFORGE_GPU", "")
FAKE = not KIND
MODULES = module_folder()


def pytest_configure(config):
    config.addinivalue_line("markers", "fake: needs tests/fake_hip")
    if "ROCMFORGE_BUILD" not in os.environ:
        pytest.exit("ROCMFORGE_BUILD is not set", returncode=2)
    if FAKE and not fake_gpu_folder():
        pytest.exit("this build has no hip module, so there is nothing to run on the fake", returncode=2)
    os.environ["ROCMFORGE_MODULE_DIR"] = str(MODULES)
    if FAKE:
        os.environ["LD_LIBRARY_PATH"] = str(fake_gpu_folder())


def pytest_runtest_setup(item):
    if item.get_closest_marker("fake") and not FAKE:
        pytest.skip("needs tests/fake_hip")


@pytest.fixture
def kind():
    return KIND or "hip"


@pytest.fixture
def folder():
    with short_folder() as path:
        yield path


@pytest.fixture
def start(folder):
    """start(*options, FAKE_HIP_DEVICES=2, ...): a daemon. Each has to end well, unless the test ended it already."""
    with ending_well() as daemons:

        def start_one(*options, program=None, **env):
            options = ["--device", "auto", "--budget", "95%", *options]
            daemon = Daemon(folder, *options, program=program, env={name: str(value) for name, value in env.items()})
            daemons.append(daemon)
            return daemon.wait_ready()

        yield start_one


@pytest.fixture(scope="session")
def model_folder():
    path = tempfile.mkdtemp(prefix="rfm")
    yield Path(path)
    shutil.rmtree(path)


def write_model(path, count, size, names):
    types = make_model.load_types()
    chosen = list(types.values()) if names == "all" else [types[name] for name in names]
    tensors = make_model.sized_tensors(count, size, chosen)
    make_model.write_model(path, tensors, make_model.metadata(4, 256, 256, 4, 100), 1)
    return path


@pytest.fixture(scope="session")
def every_type(model_folder):
    """Two tensors of each type: more than a slot of the staging memory has, so that tensors lie across two slots."""
    return write_model(model_folder / "every.gguf", 66, 24 << 20 if FAKE else 60 << 20, "all")


@pytest.fixture(scope="session")
def small_model(model_folder):
    return write_model(model_folder / "small.gguf", 4, 1 << 20, ("q4_0", "f16", "f32", "q8_0"))


@pytest.fixture(scope="session")
def large_model(model_folder):
    """Large enough that something can happen meanwhile."""
    return write_model(model_folder / "large.gguf", 20, 200 << 20, ("q4_0", "q6_K", "f16"))
