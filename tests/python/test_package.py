"""The package as it is installed: all of it, by Meson and by pip, and checked by mypy."""
import ctypes
import os
import re
import shutil
import subprocess
import sys

import pytest
from harness import ROOT, TIMEOUT

PACKAGE = ROOT / "client" / "python"


def sources():
    files = (PACKAGE / "src").rglob("*")
    return {str(path.relative_to(PACKAGE)) for path in files if path.suffix == ".py" or path.name == "py.typed"}


def test_meson_installs_every_file():
    listed = re.findall(r"'(src/[^']+)'", (PACKAGE / "meson.build").read_text())
    assert len(listed) == len(set(listed)) and set(listed) == sources()


def test_the_struct_is_that_of_the_header(folder):
    from rocmforge import _library

    fields = [name for name, *_ in _library.CTensor._fields_]
    lines = "".join(f'printf("%zu ", offsetof(rf_tensor, {name}));' for name in fields)
    source = f'#include <stddef.h>\n#include <stdio.h>\n#include "rocmforge.h"\nint main(void) {{ {lines} printf("%zu %d", sizeof(rf_tensor), RF_DIMS_MAX); }}'
    (folder / "offsets.c").write_text(source)
    subprocess.run(["cc", "-I", ROOT / "client", "-o", folder / "offsets", folder / "offsets.c"], check=True)
    found = subprocess.run([folder / "offsets"], check=True, capture_output=True, text=True).stdout.split()
    ours = [getattr(_library.CTensor, name).offset for name in fields]
    assert list(map(int, found)) == [*ours, ctypes.sizeof(_library.CTensor), _library.DIMS_MAX]


def test_every_part_is_in_the_wheel(folder):
    pytest.importorskip("setuptools", minversion="61")
    pytest.importorskip("wheel")
    shutil.copytree(PACKAGE, folder / "source")  # setuptools writes beside what it builds
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(command, check=True, timeout=TIMEOUT)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    import zipfile

    names = set(zipfile.ZipFile(wheel).namelist())
    assert {path[len("src/"):] for path in sources()} <= names
    target = folder / "target"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel], check=True)
    code = "import importlib.metadata, rocmforge, rocmforge.aio; print(rocmforge.__file__, importlib.metadata.version('rocmforge'))"
    env = {**os.environ, "PYTHONPATH": str(target)}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert out.startswith(str(target)) and out.split()[1] == "0.1.0"


def test_types():
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--config-file", PACKAGE / "pyproject.toml", "--cache-dir", os.devnull, PACKAGE / "src" / "rocmforge"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout


def test_what_users_write_is_typed(folder):
    pytest.importorskip("mypy")
    (folder / "use.py").write_text('''
import rocmforge
with rocmforge.connect() as rf:
    reply = rf.load("m.gguf", name="m")
    reveal_type(reply["model"]["bytes"])
    with rf.attach("m") as m:
        reveal_type(m["x"])
    try:
        rf.unload("m")
    except rocmforge.ModelBusy as busy:
        reveal_type(busy.leases)
''')
    env = dict(os.environ)
    if not env.get("ROCMFORGE_PYTHON_INSTALLED"):  # then py.typed leads mypy to it
        env["MYPYPATH"] = str(PACKAGE / "src")
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", "--follow-imports", "silent", "--cache-dir", os.devnull, "use.py"], cwd=folder, env=env,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    revealed = re.findall(r'Revealed type is "(.*?)"', done.stdout)
    assert [re.sub(r".*\.", "", name) for name in revealed[:2]] == ["int", "Tensor"] and "Lease" in revealed[2]
