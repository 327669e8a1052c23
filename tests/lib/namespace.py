"""rfctl in a mount namespace of its own."""
import subprocess

import pytest
from harness import TIMEOUT, build_folder


def in_namespace(daemon, uid, mounts, *arguments, groups=()):
    """rfctl with these arguments, as this user, where these shell commands made mounts."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    rfctl = str(build_folder() / "client" / "rfctl" / "rfctl")
    of_groups = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    user = ["setpriv", "--reuid", str(uid), "--regid", str(uid), *of_groups]
    command = [*user, rfctl, "--socket", str(daemon.socket), *map(str, arguments)]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-e", "-c", mounts + '\nexec "$@"', "sh", *command],
        capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
