"""The units, as they are installed, and the drop-ins that are examples: systemd has nothing to say against them."""
import re
import shutil
import subprocess

import pytest
from harness import ROOT, TIMEOUT, build_folder

pytestmark = pytest.mark.sources


@pytest.fixture
def units(folder):
    """A folder with all of them, whose programs are there."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for source in (build_folder() / "systemd").glob("*.service"):
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", source.read_text(encoding="utf-8"), flags=re.M)
        (folder / source.name).write_text(text, encoding="utf-8")
    for source in (ROOT / "systemd").glob("*.socket"):
        shutil.copy(source, folder)
    return folder


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False)


def verified(*paths):
    done = analyze("verify", "--man=no", *paths)
    return "\n".join(line for line in done.stderr.splitlines() if "rocmforge" in line)


def test_metrics_units(units):
    shutil.copy(units / "rocmforge-metrics@.service", units / "rocmforge-metrics@1.service")
    assert verified(units / "rocmforge-metrics.socket", units / "rocmforge-metrics@1.service") == ""


@pytest.mark.parametrize("gpu", ["amd", "nvidia"])
def test_drop_ins(units, gpu):
    folder = units / "rocmforged.service.d"
    folder.mkdir()
    shutil.copy(ROOT / "systemd" / "examples" / f"{gpu}.conf", folder)
    assert verified(units / "rocmforged.service") == ""


def test_units_of_a_user(folder, units):
    (folder / "user").mkdir()
    shutil.copy(units / "user-rocmforged.service", folder / "user" / "rocmforged.service")
    shutil.copy(ROOT / "systemd" / "user" / "rocmforged.socket", folder / "user")
    assert verified("--user", folder / "user" / "rocmforged.service", folder / "user" / "rocmforged.socket") == ""


@pytest.mark.parametrize("unit, exposure", [("rocmforged.service", 21), ("rocmforge-metrics@.service", 6)])
def test_exposure(units, unit, exposure):
    """What systemd makes of the restrictions, in tenths: 100 is a service without any. It shall not get worse."""
    path = units / unit.replace("@", "")
    if not path.exists():
        shutil.copy(units / unit, path)
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={exposure}", path)
    assert done.returncode == 0, done.stdout[-200:]
