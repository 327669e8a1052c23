"""The package as it is installed: all of it, by Meson and by pip, and checked by mypy."""
import ctypes
import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import rocmforge
from harness import ROOT, TIMEOUT, build_folder

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
    wheel, _ = wheel_metadata(folder)
    compiles = sys.version_info < (3, 12)
    assert wheel.name.endswith("-py3-none-any.whl") != compiles
    names = set(zipfile.ZipFile(wheel).namelist())
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which("cc"):  # without a compiler, or Python's headers, it is installed without this
        assert any(re.match(r"rocmforge/_exporter\..*so$", name) for name in names) == (compiles and headers.exists())
    assert {path[len("src/"):] for path in sources()} <= names
    target = folder / "target"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel], check=True)
    code = "import importlib.metadata, rocmforge, rocmforge.aio; print(rocmforge.__file__, importlib.metadata.version('rocmforge'))"
    env = {**os.environ, "PYTHONPATH": str(target)}
    out = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert out.startswith(str(target)) and out.split()[1] == "0.1.0"


# Where the package that is tested is.
INSTALLED = Path(rocmforge.__file__).parents[1]


def run_bare(code, *arguments, folder, **env):
    """With nothing but Python and the package: -S leaves out what was installed."""
    before = f"import sys\nsys.path.insert(0, {str(folder)!r})\n"
    unset = ("ROCMFORGE_LIBRARY", "PYTHONPATH", "LD_LIBRARY_PATH")
    done = subprocess.run([sys.executable, "-S", "-E", "-c", before + code, *map(str, arguments)], capture_output=True, text=True,
                          env={**{k: v for k, v in os.environ.items() if k not in unset}, **env}, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_but_python_is_needed(daemon, small, folder):
    shutil.copytree(INSTALLED / "rocmforge", folder / "alone" / "rocmforge")  # not what stands beside it
    code = """
import asyncio, rocmforge, rocmforge.aio
model = rocmforge.load_attach(sys.argv[1], form="f32", socket=sys.argv[2])
tensor = model["blk.0.attn_v.weight"]
assert len(bytes(tensor)) == len(tensor.buffer()) == tensor.nbytes and tensor.__dlpack__() and model.metadata()
try: tensor.numpy()
except ImportError: pass
async def main():
    async with rocmforge.aio.connect(sys.argv[2]) as rf:
        return len(await rf.list())
assert asyncio.run(main()) == 1
print(sorted({"numpy", "torch", "tqdm", "ml_dtypes", "transformers", "typing_extensions"} & set(sys.modules)))
"""
    assert run_bare(code, small, daemon.socket, folder=folder / "alone", ROCMFORGE_LIBRARY=os.environ["ROCMFORGE_LIBRARY"]) == "[]\n"


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """What Meson installs of this build, below a folder."""
    meson = shutil.which("meson")
    if not meson:
        pytest.skip("no meson")
    folder = tmp_path_factory.mktemp("prefix")
    subprocess.run([meson, "install", "-C", build_folder(), "--no-rebuild", "--quiet", "--destdir", folder], check=True, timeout=TIMEOUT)
    return folder


def test_meson_installs_it(prefix):
    """All files, where a Python finds them, and what importlib.metadata reads."""
    found = list(prefix.rglob("rocmforge/__init__.py"))
    if not found:
        pytest.skip("this build was configured with -Dpython=disabled")
    (package,) = (path.parent for path in found)
    installed = {str(path.relative_to(package.parent)) for path in package.rglob("*") if path.suffix == ".py" or path.name == "py.typed"}
    assert {f"src/{path}" for path in installed} == sources()
    code = "import importlib.metadata, rocmforge.aio\nprint(rocmforge.__file__, importlib.metadata.version('rocmforge'), rocmforge.__version__)"
    path, *versions = run_bare(code, folder=package.parent).split()
    assert Path(path).parent == package and versions == ["0.1.0", "0.1.0"]


def test_the_installed_library_is_found(prefix):
    """By its name, where the system looks for libraries."""
    (library,) = prefix.rglob("librocmforge.so.0")
    code = "from rocmforge import _library\n_library.library()\nprint(next(line.split()[-1] for line in open('/proc/self/maps') if 'librocmforge' in line))"
    path = run_bare(code, folder=INSTALLED, LD_LIBRARY_PATH=str(library.parent))
    assert path.strip() == str(library.resolve())


def wheel_metadata(folder):
    pytest.importorskip("setuptools", minversion="61")
    pytest.importorskip("wheel")
    shutil.copytree(PACKAGE, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(command, check=True, timeout=TIMEOUT)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as parts:
        (name,) = (name for name in parts.namelist() if name.endswith("/METADATA"))
        return wheel, email.message_from_bytes(parts.read(name))


def test_without_a_compiler(folder):
    """Then it is installed all the same."""
    shutil.copytree(PACKAGE, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"]
    subprocess.run(command, check=True, timeout=TIMEOUT, env={**os.environ, "CC": "/bin/false", "LDSHARED": "/bin/false"})
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rocmforge/tensor.py" in names and not any(name.endswith((".so", ".c")) for name in names)


def test_the_extras(folder):
    """What each brings, and that pip takes what is here for enough."""
    wheel, metadata = wheel_metadata(folder)
    assert metadata.get_all("Provides-Extra") == ["numpy", "torch", "transformers"]
    needs = {}
    for line in metadata.get_all("Requires-Dist"):
        name, extra = re.fullmatch(r"([\w-]+)[^;]*; extra == ['\"](\w+)['\"]", line).groups()
        needs.setdefault(extra, set()).add(name)
    assert needs["numpy"] == {"numpy"} and needs["torch"] == {"torch"} and {"torch", "transformers", "numpy"} <= needs["transformers"]
    for extra, names in needs.items():
        if all(importlib.util.find_spec(name if name != "protobuf" else "google.protobuf") for name in names if name != "protobuf"):
            command = [sys.executable, "-m", "pip", "install", "--no-index", "--dry-run", "--ignore-installed", "--no-deps", f"{wheel}[{extra}]"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            assert done.returncode == 0 and "Would install rocmforge" in done.stdout, done.stderr


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
