"""What the manual pages say of defaults and limits is what the headers define."""
import re

import pytest
from harness import ROOT

pytestmark = pytest.mark.sources

DAEMON = " ".join((ROOT / "docs" / "rocmforged.8.scd").read_text(encoding="utf-8").split())
WIRE = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")


def number(header, name):
    text = (ROOT / "daemon" / header).read_text(encoding="utf-8")
    return int(re.search(rf"^#define {name} +(\d+)u?$", text, re.MULTILINE)[1])


def quota(name):
    return number("base/quota.h", f"QUOTA_{name}")


def device_kinds():
    text = (ROOT / "daemon" / "device" / "devices.c").read_text(encoding="utf-8")
    words = re.search(r"device_kinds\[\] = \{(.*?), NULL\}", text)[1].split(", ")
    return ["host" if word == "DEVICE_HOST" else word.strip('"') for word in words]


def sentences():
    """Those of rocmforged(8) that have numbers in them, with the numbers of the headers."""
    yield (
        f"Default: {number('options.h', 'HOST_PERCENT_DEFAULT')} % of the host's memory, "
        f"{number('options.h', 'GPU_PERCENT_DEFAULT')} % of a GPU's."
    )
    yield f"one for each processor, at most {number('options.h', 'WORKERS_DEFAULT_MAX')}."
    yield f"Default: {number('device/device.h', 'DEVICE_STAGING_DEFAULT_MIB')} MiB,"
    yield f"at least {number('modules.c', 'STAGING_LEAST_MIB')} MiB."
    seconds, most = (number("memory/spared.h", f"SPARED_SECONDS_{name}") for name in ("DEFAULT", "MAX"))
    yield f"kept for the next load, from 0 to {most}. Default: {seconds}."
    yield f"the others for kernels that decode. Default: {number('device/device.h', 'DEVICE_STREAMS_DEFAULT')}."
    yield (
        f"Default: {quota('CONNECTIONS_DEFAULT')} connections, {quota('LOADS_DEFAULT')} loads, "
        f"{quota('LEASES_DEFAULT')} leases,"
    )
    yield f"no more than stay free for the others, of {quota('ALL_CONNECTIONS')} and of {quota('ALL_MODELS')}."
    yield f"Default: {quota('MEMORY_DEFAULT_MIB')} MiB. Of all users together it is at most {quota('ALL_MEMORY_MIB')} MiB."
    yield f"for clients to come back, see *RESTART*. Default: {number('keep/keep.h', 'KEEP_GRACE_DEFAULT')}."
    yield f"returns or the daemon ends. Default: {number('options.h', 'DEVICE_TIMEOUT_DEFAULT')}."
    yield f"at most {quota('VERIFIES_DEFAULT')} verifications and {quota('PLANS_DEFAULT')} plans at a time."


@pytest.mark.parametrize("sentence", list(sentences()))
def test_defaults_of_the_daemon(sentence):
    assert sentence in DAEMON


def test_limits_of_the_wire():
    assert quota("VERIFIES_DEFAULT") == quota("PLANS_DEFAULT")
    for row in (
        f"| calls of `Verify`, and of `Plan`, that one user has running | {quota('VERIFIES_DEFAULT')} each |",
        f"requests whose turn has not come | {quota('DESCRIPTORS_DEFAULT')} |",
        f"calls under way, replies that wait | {quota('MEMORY_DEFAULT_MIB')} MiB |",
        f"| connections of one user | {quota('CONNECTIONS_DEFAULT')} |",
    ):
        assert row in WIRE


def test_grace_in_words():
    """The library's header and wire.md say it as words."""
    assert number("keep/keep.h", "KEEP_GRACE_DEFAULT") == 30
    header = (ROOT / "client" / "rocmforge.h").read_text(encoding="utf-8")
    assert "for half a minute (`--grace`" in " ".join(header.replace("\n *", " ").split())
    assert "For half a minute after its start (`--grace`)" in " ".join(WIRE.split())


def test_default_of_the_figures():
    page = " ".join((ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split())
    assert f"default of {number('device/device.h', 'DEVICE_STAGING_DEFAULT_MIB')} MiB is three slots" in page


@pytest.mark.parametrize("kind", device_kinds())
def test_kinds_of_devices(kind):
    """Each stands in the manual pages."""
    assert f"*{kind}*:" in DAEMON
    of_rfctl = (ROOT / "docs" / "rfctl.1.scd").read_text(encoding="utf-8")
    assert f"*{kind}*," in re.search(r"^\*--device\* _DEVICE_\n.*", of_rfctl, re.MULTILINE)[0]
