"""Debian packages on a booted Debian 12: what an administrator does with them, and what systemd does with the service.

usage: run.py FOLDER PACKAGES --model FILE [--slow-read FILE] [TEST...]

FOLDER keeps the Debian and the packages that it downloads for the next time. PACKAGES has those of the project, and in
its folder `later` those of a later version. FILE is a model; --slow-read: tests/lib/slow_read.c, compiled. The tests need
one another: `install` comes first, and `purge` last. Exits with 77, and says why, where there can be no such machine.
"""
import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
from booted import Booted, machine
from admin import MESSAGES, ROOT, USER, Admin, Failed, Reader, check, commands, section

PACKAGES = ["librocmforge0", "librocmforge-dev", "rocmforge", "python3-rocmforge"]
NO_DAEMON = 3
KILLS = 20


def debs(folder, packages=PACKAGES):
    return " ".join(str(Path("/packages") / next(folder.glob(f"{name}_*.deb")).name) for name in packages)


def version(folder):
    """Of the packages there."""
    return next(folder.glob("rocmforge_*.deb")).name.split("_")[1]


def test_install(admin, arguments):
    """The packages install, and the socket listens; nothing runs yet."""
    admin.types("apt-get update -qq")
    # What they depend on first, so that what is different afterwards is theirs alone.
    needed = "libcjson1 liburing2 libuv1 libsystemd0 python3 bash-completion"
    admin.types(f"DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends {needed}")
    admin.before = admin.files()
    admin.types("DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends " + debs(arguments.packages))
    check(admin.shows("ActiveState", "rocmforged.socket") == "active", "the socket does not listen")
    check(admin.shows("ActiveState") == "inactive", "the daemon runs, and nobody asked for it")
    check(admin.shows("ActiveState", "rocmforge-metrics.socket") == "inactive", "metrics are served unasked")
    check("rocmforge" in admin.looks("getent passwd rocmforge"), "there is no user rocmforge")
    admin.types("mkdir -p /srv/models && cat >/srv/models/demo.gguf", give=arguments.model.read_bytes())


def test_activation(admin, arguments):
    """The first client starts the daemon."""
    admin.types("rfctl ping", user=USER)
    check(admin.shows("ActiveState") == "active", "the daemon does not run")
    check(admin.shows("StatusText") == "0 models resident, 0 loading", admin.shows("StatusText"))
    ready = admin.entries("DAEMON_READY")[0]["MESSAGE"]
    check(f"rocmforged {version(arguments.packages)} ready" in ready, ready)


def test_sandbox(admin, arguments):
    """It is in force in the process that runs."""
    pid = admin.shows("MainPID")
    status = admin.looks(f"cat /proc/{pid}/status")
    for field, value in {"NoNewPrivs": "1", "Seccomp": "2", "CapBnd": "0000000000000000",
                         "CapEff": "0000000000000000"}.items():
        check(re.search(rf"^{field}:\s*{value}$", status, re.M), f"{field} is not {value}:\n{status}")
    check(admin.looks(f"stat -c %U /proc/{pid}").strip() == "rocmforge", "it runs as somebody else")
    mounts = admin.looks(f"cat /proc/{pid}/mountinfo")
    check(re.search(r" / / ro[, ]", mounts), f"its root can be written to:\n{mounts}")
    admin.types(f"nsenter --target {pid} --mount touch /usr/written", status=1)
    check(re.search(r" /proc .*hidepid=(2|invisible)", mounts), f"other users' processes can be seen:\n{mounts}")
    exposure = "Overall exposure level for rocmforged.service: "
    told = admin.types("systemd-analyze security rocmforged.service --no-pager | tail -1")
    check(exposure + re.search(r"security rocmforged\* prints ([\d.]+)", section("SANDBOX"))[1] in told, told)


def test_journal(admin, arguments):
    """Lines have fields."""
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)
    entry = admin.entries("MODEL_RESIDENT")[-1]
    uid = admin.looks(f"id -u {USER}").strip()
    (model,) = json.loads(admin.looks("rfctl --json ps"))["models"]
    expected = {"MODEL": "demo", "DEVICE": "host", "BYTES": str(model["bytes"]), "CLIENT_UID": uid}
    check({key: entry.get(key) for key in expected} == expected, str(entry))
    check(int(entry["DURATION_USEC"]) > 0 and entry["PRIORITY"] == "6", str(entry))
    check("demo" in admin.looks("journalctl MODEL=demo -o cat --no-pager"), "nothing is found by its model")
    check("1 model resident" in admin.shows("StatusText"), admin.shows("StatusText"))
    explained = admin.types(f"journalctl --catalog --no-pager MESSAGE_ID={MESSAGES['MODEL_RESIDENT']} MODEL=demo")
    check("Subject: The model demo is resident on host" in explained, explained)


def test_kill(admin, arguments):
    """By SIGKILL, again and again: the model stays, though its file cannot be found, and who is attached reads on."""
    admin.types("mv /srv/models/demo.gguf /srv/models/elsewhere")
    loaded = len(admin.entries("MODEL_RESIDENT"))
    with Reader(admin, "reader", "demo") as reader:
        for _ in range(KILLS):
            before = admin.shows("MainPID")
            admin.looks(f"kill -KILL {before}")
            admin.waits(lambda: admin.has_another(before), "another daemon")
            check(admin.models() == {"demo": "resident"}, f"{admin.models()}\n{admin.journal()[-2000:]}")
        print(f"  killed {KILLS} times", flush=True)
        admin.waits(lambda: leases(admin, "demo") == 1, "the reader's lease")
        check("another byte" not in reader.says(), reader.says())
    admin.waits(lambda: leases(admin, "demo") == 0, "no lease")
    check(len(admin.entries("MODEL_AGAIN")) >= KILLS and not admin.entries("MODEL_DROPPED"), admin.journal()[-3000:])
    check(len(admin.entries("MODEL_RESIDENT")) == loaded, "it was loaded again")
    admin.types("mv /srv/models/elsewhere /srv/models/demo.gguf")
    admin.types("rfctl verify demo", user=USER)


def leases(admin, name):
    models = json.loads(admin.looks("rfctl --json ps"))["models"]
    return next(model["leases"] for model in models if model["name"] == name)


def test_restart(admin, arguments):
    """By systemctl: the model stays over a restart, and not over a stop, as the manual page says of this systemd."""
    for _ in range(3):
        admin.types("systemctl restart rocmforged")
        check(admin.models() == {"demo": "resident"}, f"{admin.models()}\n{admin.journal()[-2000:]}")
    admin.types("systemctl daemon-reexec && systemctl restart rocmforged")
    check(admin.models() == {"demo": "resident"}, "not after daemon-reexec")
    systemd = int(admin.looks("systemctl --version").split()[1])
    admin.types("systemctl stop rocmforged.socket rocmforged.service")
    admin.types("rfctl ping", status=NO_DAEMON)
    admin.types("systemctl start rocmforged.socket")
    kept = {"demo": "resident"} if systemd >= 254 else {}
    check("older systemd (Debian 12 has 252)" in section("RESTART"), "the manual page says something else")
    check(admin.models() == kept, str(admin.models()))
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)


def test_crash_loop(admin, arguments):
    """A daemon that cannot start is given up, its socket too, and comes back as the manual page says."""
    admin.drop_in("rocmforged.service", "[Service]\nExecStart=\nExecStart=/bin/false\n")
    admin.types("systemctl restart rocmforged", status=1)
    began = time.monotonic()
    admin.waits(lambda: admin.shows("ActiveState") == "failed" and admin.shows("SubState") == "failed"
                and admin.shows("ActiveState", "rocmforged.socket") != "active", "it is given up")
    print(f"  given up after {time.monotonic() - began:.0f} s, and {admin.shows('NRestarts')} times", flush=True)
    admin.types("rfctl ping", status=NO_DAEMON)
    admin.no_drop_in("rocmforged.service")
    line = re.search(r"run \*(systemctl reset-failed.*?)\*", section("SYSTEMD"), re.S)[1].replace("\n", " ")
    admin.types(line)
    admin.types("systemctl start rocmforged.socket")
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)


def test_user(admin, arguments):
    """A daemon of a user's own, where none of the system listens; it outlives SIGKILL too."""
    admin.types("systemctl stop rocmforged.socket rocmforged.service")
    uid = admin.looks(f"id -u {USER}").strip()
    # Their own systemd, as a login would start it.
    admin.types(f"install -d -o {USER} -m 0700 /run/user/{uid}")
    admin.types(f"systemd-run --quiet --unit=manager --uid={USER} --property=Type=notify --property=Delegate=yes "
                f"--setenv=XDG_RUNTIME_DIR=/run/user/{uid} /lib/systemd/systemd --user")
    env = f"export XDG_RUNTIME_DIR=/run/user/{uid}; "
    line = re.search(r"\*(systemctl --user enable.*?)\*", section("SYSTEMD"), re.S)[1].replace("\n", " ")
    admin.types(env + line, user=USER)
    admin.types(env + "rfctl load /srv/models/demo.gguf --name own", user=USER)
    show = env + "systemctl --user show --value -p MainPID rocmforged.service"
    before = admin.looks(show, user=USER).strip()
    admin.types(f"kill -KILL {before}", user=USER)
    admin.waits(lambda: admin.looks(show, user=USER).strip() not in (before, "0"), "another daemon")
    told = admin.types(env + "rfctl --json ps", user=USER)
    check([model["state"] for model in json.loads(told)["models"]] == ["resident"], told)
    admin.types(env + "systemctl --user disable --now rocmforged.socket rocmforged.service", user=USER)
    admin.types(f"systemctl stop manager.service && rm -r /run/user/{uid}")
    admin.types("systemctl start rocmforged.socket")
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)


def test_completion(admin, arguments):
    """Names of models that there are."""
    line = (". /usr/share/bash-completion/completions/rfctl; COMP_WORDS=(rfctl {}); COMP_CWORD={}; _rfctl; "
            'echo "${{COMPREPLY[@]}}"')
    check(admin.types(line.format("show ''", 2), user=USER).split() == ["demo"], "no name of a model")
    check("metrics" in admin.types(line.format("me", 1), user=USER), "no command")
    check("--private" in admin.types(line.format("load --pr", 2), user=USER), "no option")


def scrape(admin):
    program = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9879/metrics', timeout=30).read().decode())"
    return admin.types(f'python3 -c "{program}"', user=USER)


def test_metrics(admin, arguments):
    """Over HTTP, without names that are not for everybody."""
    admin.types(f"install -o {USER} -m 0600 /srv/models/demo.gguf /srv/models/own.gguf")
    admin.types("rfctl load /srv/models/own.gguf --name unreadable --as f32", user=USER)
    admin.types("rfctl load /srv/models/demo.gguf --name secret --private --as native", user=USER)
    # The network is the host's: it works only where nobody else listens at this port.
    admin.types("systemctl enable --now rocmforge-metrics.socket || ! journalctl -u rocmforge-metrics.socket --no-pager")
    text = scrape(admin)
    check('rocmforge_model_memory_bytes{model="demo"' in text, f"no model that everybody sees:\n{text}")
    check("secret" not in text and "unreadable" not in text, f"names that are not for everybody:\n{text}")
    check(re.search(r'^rocmforge_loads_total\{outcome="loaded"\} [1-9]', text, re.M), text)
    check(re.search(r"LISTEN.* 127\.0\.0\.1:9879 ", admin.looks("ss -ltn")) or
          "127.0.0.1:9879" in admin.shows("Listen", "rocmforge-metrics.socket"), "it listens elsewhere")
    admin.types("rfctl unload secret && rfctl unload unreadable", user=USER)


def test_group(admin, arguments):
    """As the manual page says: only the members of a group may connect."""
    page = (ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8")
    lines = re.search(r"# systemctl edit rocmforged.socket\n(.*?\n)```", page, re.S)[1]
    check("SocketGroup=models" in lines, "the manual page has another example")
    admin.types("groupadd models && useradd --groups models member && useradd stranger")
    admin.drop_in("rocmforged.socket", lines)
    admin.types("systemctl restart rocmforged.socket")
    admin.types("rfctl ping", user="stranger", status=NO_DAEMON)
    admin.types("rfctl ping", user="member")
    admin.no_drop_in("rocmforged.socket")
    admin.types("systemctl restart rocmforged.socket")
    admin.types("rfctl ping", user="stranger")


def test_stop(admin, arguments):
    """During a load: it is cancelled, and the daemon ends well."""
    for file in "tests/lib/make_model.py", "kernels/types.def":
        admin.types(f"mkdir -p /srv/{Path(file).parent} && cat >/srv/{file}", give=(ROOT / file).read_bytes())
    admin.types("python3 /srv/tests/lib/make_model.py /srv/models/big.gguf --tensors 8 --bytes 512M --types q4_0")
    admin.types("rfctl load /srv/models/big.gguf --name big --as f32 --no-wait", user=USER)
    began = time.monotonic()
    admin.types("systemctl stop rocmforged.service")
    check(time.monotonic() - began < 30, "it did not end in time")
    check(admin.shows("Result") == "success", admin.shows("Result"))
    failed = [entry for entry in admin.entries("LOAD_FAILED") if entry.get("MODEL") == "big"]
    check(failed, f"the load was not cut off:\n{admin.journal()[-2000:]}")
    admin.types("rm -r /srv/models/big.gguf /srv/tests /srv/kernels")
    admin.types("rfctl ping", user=USER)


def test_drain(admin, arguments):
    """It takes longer to end than systemd waits, but makes progress, and asks for more time. Each read answers before the
    daemon gives its file up, which is 5 s without progress."""
    if not arguments.slow_read:
        raise Failed("no --slow-read")
    admin.types("cat >/srv/slow_read.so", give=arguments.slow_read.read_bytes())
    for file in "tests/lib/make_model.py", "kernels/types.def":
        admin.types(f"mkdir -p /srv/{Path(file).parent} && cat >/srv/{file}", give=(ROOT / file).read_bytes())
    for i in range(2):  # one read each
        admin.types(f"python3 /srv/tests/lib/make_model.py /srv/models/{i}.gguf --tensors 1 --bytes 240K --types f32 "
                    f"--seed {i}")
    admin.drop_in("rocmforged.service", "[Service]\nTimeoutStopSec=5\nEnvironment=LD_PRELOAD=/srv/slow_read.so "
                  "SLOW_READ_MS=6000 SLOW_READ_LEAST=100000\nExecStart=\nExecStart=/usr/bin/rocmforged --workers 2\n")
    admin.types("systemctl restart rocmforged.service")
    admin.types("rfctl load /srv/models/0.gguf --no-wait", user=USER)
    time.sleep(3.7)
    admin.types("rfctl load /srv/models/1.gguf --no-wait", user=USER)
    began = time.monotonic()
    admin.types("systemctl stop rocmforged.service")
    took = time.monotonic() - began
    check(took > 5.5, f"it ended after {took:.1f} s, so this shows nothing")
    check(admin.shows("Result") == "success", f"{admin.shows('Result')} after {took:.1f} s:\n{admin.journal()[-2000:]}")
    print(f"  it ended after {took:.1f} s, and systemd waits 5", flush=True)
    admin.no_drop_in("rocmforged.service")
    admin.types("rm -r /srv/models/0.gguf /srv/models/1.gguf /srv/tests /srv/kernels /srv/slow_read.so")


def test_watchdog(admin, arguments):
    """A daemon that hangs is ended and started again."""
    admin.drop_in("rocmforged.service", "[Service]\nWatchdogSec=2\n")
    admin.types("systemctl restart rocmforged.service")
    pid = admin.shows("MainPID")
    time.sleep(5)
    check(admin.shows("MainPID") == pid, "one that does not hang was ended")
    admin.types(f"kill -STOP {pid}")
    admin.waits(lambda: admin.shows("MainPID") not in (pid, "0") and admin.shows("ActiveState") == "active",
                "the watchdog", 120)
    check("watchdog" in admin.journal().lower(), "the journal does not tell of the watchdog")
    admin.types("rfctl ping", user=USER)
    admin.no_drop_in("rocmforged.service")
    admin.types("systemctl restart rocmforged.service")


def test_upgrade(admin, arguments):
    """To another version, by the words of the manual page alone, while a client reads: it reads on, nothing is loaded
    again, the new daemon runs, and clients wait meanwhile and are not refused."""
    later = version(arguments.packages / "later")
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)
    admin.types("mv /srv/models/demo.gguf /srv/models/elsewhere")
    loaded, dropped = len(admin.entries("MODEL_RESIDENT")), len(admin.entries("MODEL_DROPPED"))
    pings = "for i in $(seq 200); do rfctl ping >/dev/null || echo refused $?; sleep 0.05; done; echo end"
    install, restart, look, journal = commands("UPGRADE")
    with Reader(admin, "reader", "demo"):
        for what, lines in ("packages", [install, look, journal]), ("restart", [restart, look, journal]):
            before, restarts = admin.shows("MainPID"), len(admin.entries("DAEMON_READY"))
            admin.begins("pings", pings)
            for line in lines:
                told = admin.types(line, folder="/packages/later")
                if line == look:
                    check(re.search(r"^demo .* resident ", told, re.M), told)
                elif line == journal and not dropped:
                    check("No entries" in told, told)
            check(admin.has_another(before), "the old daemon runs on")
            check(len(admin.entries("DAEMON_READY")) == restarts + 1, "it was started several times")
            admin.waits(lambda: "end" in admin.looks("cat /tmp/pings"), "the pings")
            # One whose connection ends with the old daemon may be told that.
            refused = admin.looks("cat /tmp/pings").count("refused")
            check(refused <= 2, f"{refused} of 200 clients had no daemon:\n{admin.journal()[-2500:]}")
            print(f"  {what}: {refused} of 200 clients had no answer meanwhile", flush=True)
        admin.waits(lambda: leases(admin, "demo") == 1, "the reader's lease")
    ready = admin.entries("DAEMON_READY")[-1]["MESSAGE"]
    check(f"rocmforged {later} ready" in ready, ready)
    check(f"rocmforged {version(arguments.packages)} ready" in admin.entries("DAEMON_READY")[-3]["MESSAGE"], "versions")
    check(len(admin.entries("MODEL_RESIDENT")) == loaded, "it was loaded again")
    check(len(admin.entries("MODEL_DROPPED")) == dropped, "it was dropped")
    admin.types("mv /srv/models/elsewhere /srv/models/demo.gguf && rfctl verify demo")


def test_modules(admin, arguments):
    """Where a package with a module for GPUs is installed or upgraded, the daemon is started anew, if it runs."""
    check("rocmforge-restart" in admin.types("cat /var/lib/dpkg/info/rocmforge.triggers"), "no trigger")
    before = admin.shows("MainPID")
    admin.types("dpkg-trigger --by-package=rocmforge-hip rocmforge-restart && dpkg --triggers-only rocmforge")
    check(admin.has_another(before), "the old daemon runs on")
    check(admin.models() == {"demo": "resident"}, str(admin.models()))
    admin.types("systemctl stop rocmforged.service")
    admin.types("dpkg-trigger --by-package=rocmforge-hip rocmforge-restart && dpkg --triggers-only rocmforge")
    check(admin.shows("ActiveState") == "inactive", "it runs, and nobody asked for it")


def use_drop_in(admin, name):
    """As the manual page says. The models stay."""
    before = admin.models()
    lines = commands("SANDBOX")
    check(len(lines) == 4 and "nvidia.conf" in lines[1], "the manual page has another example")
    for line in lines:
        admin.types(line.replace("nvidia.conf", name))
    check(admin.models() == before, f"{admin.models()}\n{admin.journal()[-2000:]}")


def has_device(admin):
    """Whether the service sees a device that is none of the pseudo ones: systemd-nspawn makes /dev/net/tun."""
    check("net" in admin.looks("ls /dev").split(), "this machine has no such device")
    return "net" in admin.looks(f"ls /proc/{admin.shows('MainPID')}/root/dev").split()


def test_drop_ins(admin, arguments):
    """Those for GPUs, as the manual page has them: the service starts, and is exposed as little as the page says. Which
    devices it may open cannot be seen where systemd has no control group for that, as in a container in a container."""
    admin.types("rfctl load /srv/models/demo.gguf --name demo", user=USER)
    for name in "amd.conf", "nvidia.conf":
        use_drop_in(admin, name)
        told = admin.types("systemd-analyze security rocmforged.service --no-pager | tail -1")
        check(re.search(r"With either of them it is ([\d.]+)\.", section("SANDBOX"))[1] in told, told)
        check(has_device(admin), "it has no /dev of the machine")
        admin.types("rfctl verify demo", user=USER)
        admin.types("rm -r /etc/systemd/system/rocmforged.service.d")
    admin.types("systemctl daemon-reload && systemctl restart rocmforged")


def test_host_alone(admin, arguments):
    """With the drop-in for machines without GPUs it does what it did."""
    folder = "/etc/systemd/system/rocmforged.service.d"
    use_drop_in(admin, "host.conf")
    told = admin.types("systemd-analyze security rocmforged.service --no-pager | tail -1")
    check(re.search(r"No GPU:.* it is ([\d.]+)\.", section("SANDBOX"), re.S)[1] in told, told)
    pid = admin.shows("MainPID")
    check(not has_device(admin), "it has all devices")
    check("lo:" in (net := admin.looks(f"cat /proc/{pid}/net/dev")) and net.count(":") == 1, net)
    admin.types("rfctl load /srv/models/demo.gguf --name alone --as f32 && rfctl verify alone", user=USER)
    before = admin.shows("MainPID")
    admin.types(f"kill -KILL {before}")
    admin.waits(lambda: admin.has_another(before), "another daemon")
    check(admin.models().get("alone") == "resident", str(admin.models()))
    with Reader(admin, "reader", "alone"):
        pass
    admin.types(f"rm -r {folder} && systemctl daemon-reload && systemctl restart rocmforged")


def test_purge(admin, arguments):
    """Nothing is left but the user, whom files may belong to."""
    admin.types("rfctl ping", user=USER)
    admin.types("DEBIAN_FRONTEND=noninteractive apt-get purge -qq " + " ".join(PACKAGES))
    check(not admin.looks("pidof rocmforged").strip(), "the daemon runs still")
    admin.types("rm -r /srv/models /srv/reader.py; userdel member; userdel stranger; groupdel models; true")
    units = [line for line in admin.looks("systemctl list-units --all --plain --no-legend").splitlines()
             if "rocmforge" in line and ".slice" not in line]
    check(not units, f"units are loaded still: {units}")
    left = {path for path in admin.files() - admin.before if not re.search(r"^/etc/.*-$|/__pycache__|\.pyc$", path)}
    check(not left, f"there is more than before: {sorted(left)[:20]}")
    lost = admin.before - admin.files()
    check(not lost, f"there is less than before: {sorted(lost)[:20]}")


TESTS = {name.removeprefix("test_"): function for name, function in globals().items() if name.startswith("test_")}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("packages", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--slow-read", type=Path)
    parser.add_argument("tests", nargs="*", default=list(TESTS), metavar="TEST", help=", ".join(TESTS))
    arguments = parser.parse_intermixed_args()
    failed, began = [], time.monotonic()
    try:
        with Booted(arguments.folder, arguments.packages) as booted:
            admin = Admin(booted)
            for name in arguments.tests:
                print(f"{name}: {TESTS[name].__doc__}", flush=True)
                try:
                    TESTS[name](admin, arguments)
                except (Failed, subprocess.SubprocessError, LookupError, ValueError) as error:
                    failed.append(name)
                    print(f"{name} failed: {error}", flush=True)
                    if name == "install":
                        break
    except machine.CannotRun as error:
        print(f"skipped: {error}")
        return 77
    print(f"{len(arguments.tests) - len(failed)} passed, {len(failed)} failed in {time.monotonic() - began:.0f} s"
          + (f": {' '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
