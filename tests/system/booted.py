"""A small Debian 12 that systemd-nspawn boots, with a root in memory. Nothing of it is left when it ends."""
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "install"))
import machine

# In a mount namespace of its own. $1: the base, $2: a folder to mount the root on, $3: what the machine sees as
# /packages, $4: where downloaded packages are kept.
START = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=4g tmpfs "$2"
tar -xpf "$1" -C "$2"
exec systemd-nspawn --quiet --register=no --keep-unit --boot --machine=rocmforge-system --console=pipe \
    --resolv-conf=copy-host --link-journal=no --bind-ro="$3:/packages" --bind="$4:/var/cache/apt/archives" \
    --directory="$2"
"""


class Booted(machine.Machine):
    """with Booted(folder, packages) as booted: it runs. `folder` keeps what the next one needs too."""

    def __init__(self, folder, packages):
        super().__init__(folder)
        if not shutil.which("systemd-nspawn"):
            raise machine.CannotRun("systemd-nspawn is not installed: it is in Debian's package systemd-container")
        self.packages = Path(packages).resolve()

    def __enter__(self):
        try:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "/bin/bash", "-c", START, "start",
                 self.base, self.mount, self.packages, self.debs],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            self.wait_until_booted()
        except OSError as error:
            self.__exit__()
            raise machine.CannotRun(str(error)) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # A systemd that was executed anew in there does not always end with systemd-nspawn.
        first = self.first_process() if self.process and self.process.poll() is None else None
        super().__exit__()
        if first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(first), signal.SIGKILL)
