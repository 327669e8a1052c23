"""A small Debian 12 with systemd, as a container of its own: namespaces, and a root in memory. It needs root and
debootstrap, and shares the network with its host, for packages. Nothing of it is left when it ends."""
import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

SUITE = "bookworm"
USER = "user"  # a person who works on the machine, and may use sudo
BOOT_TIMEOUT = 180
LINE_TIMEOUT = 900
# The folder of cgroups that systemd is given as its own.
CGROUPS = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]


class CannotRun(Exception):
    """There can be no such machine here."""


# What would change the kernel that the machine shares with its host.
MASKED = ["systemd-sysctl.service", "systemd-modules-load.service", "sys-kernel-debug.mount",
          "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount", "dev-hugepages.mount"]
KEPT_FROM_IT = "-sys_module,-sys_time,-syslog,-sys_rawio"

# Runs in new namespaces. $1: the base, $2: a folder to mount the root on, $3: where downloaded packages are kept.
START = rf"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=4g tmpfs "$2"
cd "$2"
tar -xpf "$1"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount --bind "$3" var/cache/apt/archives
cat /etc/resolv.conf >etc/resolv.conf
# Its own root: whoever enters these namespaces is in it.
mkdir -p run/host
pivot_root . run/host
umount -l run/host
exec /usr/bin/env -i container=rocmforge PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set={KEPT_FROM_IT} /lib/systemd/systemd --log-target=journal --unit=multi-user.target
"""

# $1: a folder to make the root on. $2: the file to pack it into. $3: the suite. $4: the mirror, if one is known. What a
# person has who may use sudo is in it. Packages are installed without a question, as if it had been answered. In
# memory, because dpkg waits for the disk after every file.
MAKE_BASE = rf"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=2g tmpfs "$1"
debootstrap --variant=minbase --include=systemd,sudo "$3" "$1" ${{4:+"$4"}}
chroot "$1" /bin/sh -eu <<'END'
useradd --create-home --shell /bin/bash {USER}
echo '{USER} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/{USER}
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/90assume-yes
echo 'debconf debconf/frontend select Noninteractive' | debconf-set-selections
systemctl mask {" ".join(MASKED)}
rm -rf /var/cache/apt/archives/*.deb
: >/etc/machine-id
echo small >/etc/hostname
echo '127.0.0.1 localhost small' >/etc/hosts
END
tar -cf "$2" -C "$1" .
"""


def mirror():
    """Where this machine gets this Debian from, if it does; else debootstrap knows one."""
    command = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages"]
    with contextlib.suppress(OSError):
        for line in subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines():
            codename, component, uri = line.split()
            if codename == SUITE and component == "main":
                return [uri]
    return []


def make_base(folder):
    """The root that each machine begins with, packed. It is made once."""
    base = folder / "base.tar"
    if base.exists():
        return base
    log = folder / "debootstrap.log"
    with open(log, "wb") as out:
        # Its mounts go with the namespace.
        made = subprocess.run(
            ["unshare", "--mount", "/bin/bash", "-c", MAKE_BASE, "make",
             folder / "root", f"{base}.part", SUITE, *mirror()],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            check=False,
        )
    if made.returncode != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise CannotRun(f"debootstrap failed: {''.join(last)}")
    os.rename(f"{base}.part", base)
    return base


class Machine:
    """with Machine(folder) as machine: it runs. `folder` keeps what the next one needs too."""

    def __init__(self, folder):
        if os.geteuid() != 0:
            raise CannotRun("needs root")
        for program in ("debootstrap", "unshare", "nsenter", "tar"):
            if not shutil.which(program):
                raise CannotRun(f"{program} is not installed")
        self.folder = Path(folder).resolve()
        self.mount = self.folder / "root"
        self.debs = self.folder / "packages"
        for path in self.mount, self.debs / "partial":
            path.mkdir(parents=True, exist_ok=True)
        self.base = make_base(self.folder)
        self.process = None
        self.cgroup = None

    def __enter__(self):
        unified = next((path for path in CGROUPS if (path / "cgroup.procs").exists()), None)
        if not unified:
            raise CannotRun("there is no cgroup2 here")
        self.cgroup = unified / f"rocmforge-install-{os.getpid()}"
        try:
            self.cgroup.mkdir()
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL",  # it does not outlive us, whatever ends us
                 "unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child",
                 "/bin/bash", "-c", START, "start", self.base, self.mount, self.debs],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: (self.cgroup / "cgroup.procs").write_text(str(os.getpid())),
            )
            self.wait_until_booted()
        except OSError as error:
            self.__exit__()
            raise CannotRun(str(error)) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process:
            self.process.kill()  # with it goes its process 1, and all that is in there
            self.process.wait()
        if self.cgroup and self.cgroup.exists():
            for folder in [*sorted(self.cgroup.rglob("*/"), reverse=True), self.cgroup]:
                for _ in range(50):
                    try:
                        if folder.is_dir():
                            folder.rmdir()
                        break
                    except OSError:  # what was killed is not gone yet
                        time.sleep(0.1)

    def first_process(self):
        """The number of its process 1, out here."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = path.read_text(encoding="ascii").split()
        return children[0] if children else None

    def wait_until_booted(self):
        end = time.monotonic() + BOOT_TIMEOUT
        state = ""
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise CannotRun(f"no container can be made here: {self.process.stderr.read().strip()}")
            first = self.first_process()
            # Before that it is not in a root of its own yet, and whoever entered it would be out here.
            if first and Path(f"/proc/{first}/comm").read_text(encoding="ascii") == "systemd\n":
                state = self.run("systemctl is-system-running", user="root").stdout
            if state.strip() in ("running", "degraded"):
                return
            time.sleep(0.2)
        raise CannotRun(f"systemd does not start in a container here: {state.strip()}")

    def run(self, line, user=USER, folder="/", give=None):
        """Runs a line in a login shell of this user. Returns it, ended; its stdout has stderr too."""
        first = self.first_process()
        # Entered twice: into the namespaces, and from there, as one who logs in.
        command = ["nsenter", "--target", first, "--mount", "--pid", "--uts", "--ipc", "--root", "--wd",
                   "env", "-i", "TERM=dumb", "/sbin/runuser", "--login", user, "--command", f"cd {folder} && {line}"]
        done = subprocess.run(
            command,
            input=give or b"",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=LINE_TIMEOUT,
        )
        done.stdout = done.stdout.decode(errors="replace")
        return done
