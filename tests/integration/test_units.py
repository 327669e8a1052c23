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


def drop_in(units, name):
    folder = units / "rocmforged.service.d"
    folder.mkdir()
    shutil.copy(ROOT / "systemd" / "examples" / f"{name}.conf", folder)


@pytest.mark.parametrize("name", ["amd", "nvidia", "host"])
def test_drop_ins(units, name):
    drop_in(units, name)
    assert verified(units / "rocmforged.service") == ""


def test_units_of_a_user(folder, units):
    (folder / "user").mkdir()
    shutil.copy(units / "user-rocmforged.service", folder / "user" / "rocmforged.service")
    shutil.copy(ROOT / "systemd" / "user" / "rocmforged.socket", folder / "user")
    assert verified("--user", folder / "user" / "rocmforged.service", folder / "user" / "rocmforged.socket") == ""


@pytest.mark.parametrize("unit, more, exposure", [
    ("rocmforged.service", None, 17),
    ("rocmforged.service", "amd", 15),
    ("rocmforged.service", "nvidia", 15),
    ("rocmforged.service", "host", 7),
    ("rocmforge-metrics@.service", None, 6),
])
def test_exposure(units, unit, more, exposure):
    """What systemd makes of the restrictions, in tenths: 100 is a service without any. It shall not get worse."""
    path = units / unit.replace("@", "")
    if not path.exists():
        shutil.copy(units / unit, path)
    if more:
        drop_in(units, more)
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={exposure}", path)
    assert done.returncode == 0, done.stdout[-200:]


def test_the_manual_page_has_these_figures(units):
    page = (ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8")
    text = re.search(r"^# SANDBOX\n(.*?)^\*PrivateDevices", page, re.M | re.S)[1]
    assert re.findall(r"\b\d\.\d\b", text) == ["1.7", "1.5", "0.7"]


def test_commands_of_the_manual_page_are_printed_whole():
    """In text that is filled, man(1) breaks words, and who copies such a command has a hyphen in it."""
    page = (ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8")
    for i, block in enumerate(page.split("\n```\n")):
        if i % 2 == 0:
            assert not re.search(r"^\t?[#$] [a-z]", block, re.M), block[-400:]
    assert page.count("\n```\n") >= 16


def test_catalog(folder):
    """What `journalctl --catalog` says of each message that the daemon has, and of no other."""
    if not shutil.which("journalctl"):
        pytest.skip("journalctl is not installed")
    for name in "usr/lib/systemd/catalog", "var/lib/systemd/catalog":
        (folder / name).mkdir(parents=True)
    shutil.copy(ROOT / "systemd" / "rocmforge.catalog", folder / "usr/lib/systemd/catalog")
    for option in "--update-catalog", "--list-catalog":
        done = subprocess.run(["journalctl", f"--root={folder}", option], capture_output=True, text=True, timeout=TIMEOUT,
                              check=True)
        assert done.stderr == ""
    header = (ROOT / "daemon" / "base" / "messages.h").read_text(encoding="utf-8")
    messages = dict(re.findall(r"/\* (.*) \*/\n#define MESSAGE_\w+ \"(\w+)\"", header))
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert sorted(listed) == sorted(messages.values())
    catalog = (ROOT / "systemd" / "rocmforge.catalog").read_text(encoding="utf-8")
    for fields, number in messages.items():
        entry = catalog.split(f"-- {number}\n")[1].split("\n-- ")[0]
        assert set(re.findall(r"@(\w+)@", entry)) <= set(re.findall(r"[A-Z_]{5,}", fields)), entry


STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> said
state=$(head -n 1 states)
[ "$(wc -l < states)" -lt 2 ] || sed -i 1d states
case "$1" in
    show) echo "$state" ;;
    --quiet) [ "$state" = active ] ;;
esac
"""


@pytest.mark.parametrize("states, restarts", [
    (["active"], True),
    (["activating", "activating", "active"], True),
    (["activating", "failed"], False),
    (["inactive"], False),
])
def test_an_upgrade_restarts_a_daemon_that_is_still_starting(folder, states, restarts):
    """Its unit is 'activating' while the drivers of GPUs start."""
    script = (ROOT / "debian" / "rocmforge.postinst").read_text(encoding="utf-8")
    for name in ("systemctl", "deb-systemd-invoke", "sleep"):
        (folder / name).write_text(STAND_IN if name != "sleep" else "#!/bin/sh\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "states").write_text("\n".join(states) + "\n", encoding="utf-8")
    script = script.replace("/run/systemd/system", str(folder))
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    subprocess.run(["sh", "-c", script, "postinst", "triggered"], cwd=folder, env=environment, timeout=TIMEOUT, check=True)
    assert ("deb-systemd-invoke restart" in (folder / "said").read_text(encoding="utf-8")) == restarts


def test_the_store_has_one_size():
    """The daemon counts what systemd and the holder keep: all have to know the same number."""
    store = (ROOT / "daemon" / "keep" / "store.h").read_text(encoding="utf-8")
    size = int(re.search(r"#define STORE_NAME_SIZE (\d+)u", store)[1])
    kib = int(re.search(r"#define STORE_NAMES_MAX \((\d+)u << 10\)", store)[1])
    hold = (ROOT / "daemon" / "hold" / "hold.c").read_text(encoding="utf-8")
    numbers = {kib * 1024 // size, int(re.search(r"#define KEPT_MAX +(\d+)", hold)[1])}
    for unit in ("rocmforged.service.in", "user/rocmforged.service.in"):
        text = (ROOT / "systemd" / unit).read_text(encoding="utf-8")
        numbers.add(int(re.search(r"^FileDescriptorStoreMax=(\d+)$", text, flags=re.M)[1]))
    assert len(numbers) == 1 and f"({kib}u * 1024)" in hold
