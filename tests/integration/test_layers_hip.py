"""The files of the GPU module use lower ones only, by their includes and by the symbols of their objects."""
import re
import subprocess

import pytest
from harness import ROOT, build_folder, module_folder

pytestmark = pytest.mark.sources

# Lowest first: a file knows itself and files of the levels before its own.
GPU_MODULE = [
    {"hip"},
    {"error"},
    {"kernels", "reader", "share", "work"},
    {"reclaim", "trial"},
    {"arena", "queue"},
    {"device"},
]


def level(name):
    (found,) = [i for i, names in enumerate(GPU_MODULE) if name in names]
    return found


def may_use(user, used):
    return user == used or level(used) < level(user)


def test_includes():
    paths = sorted((ROOT / "daemon/device/hip").glob("*.[ch]"))
    assert {path.stem for path in paths} == set().union(*GPU_MODULE)
    for path in paths:
        for used in re.findall(r'^#include "daemon/device/hip/(\w+)\.h"', path.read_text(encoding="utf-8"), re.MULTILINE):
            assert may_use(path.stem, used), f"{path.name} includes {used}.h"


def symbols(path, option):
    out = subprocess.run(["nm", "-P", "-g", option, path], check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in out.splitlines()}


@pytest.mark.parametrize("kind", ["hip", "cuda"])
def test_symbols(kind):
    objects = {
        path.name.removesuffix(".c.o"): path
        for path in (module_folder() / f"device-{kind}.so.p").glob("*.c.o")
        if path.name.removesuffix(".c.o") in set().union(*GPU_MODULE)
    }
    if not objects:
        pytest.skip(f"{build_folder().name} has no {kind} module")
    assert set(objects) == set().union(*GPU_MODULE) - {"hip"}
    where = {symbol: name for name, path in objects.items() for symbol in symbols(path, "--defined-only")}
    for user, path in objects.items():
        for symbol in symbols(path, "--undefined-only"):
            used = where.get(symbol)
            assert used is None or may_use(user, used), f"{user}.c uses {symbol} of {used}.c"


def test_includes_of_other_folders():
    allowed = r"daemon/device/(hip/\w+|device)\.h|proto/min\.h|kernels/(dequant_gpu|hip|hip_share|types)\.(h|def)"
    for path in sorted((ROOT / "daemon/device/hip").glob("*.[ch]")):
        for used in re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.fullmatch(allowed, used), f"{path.name} includes {used}"
