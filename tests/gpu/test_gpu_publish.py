"""A model that a process makes on a GPU, by descriptor and by handle: publish() of torch's tensors, and what other
processes see. Skipped without torch and a GPU."""
import os
import subprocess
import sys

import pytest
from harness import ROOT, build_folder, wait_until

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("torch has no GPU here", allow_module_level=True)

SOURCE = str(ROOT / "client" / "python" / "src")
sys.path.insert(0, SOURCE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH")]))
os.environ["ROCMFORGE_LIBRARY"] = str(build_folder() / "client")

import rocmforge  # noqa: E402

READ = """
import sys, torch, rocmforge
with rocmforge.attach(sys.argv[2], socket=sys.argv[1]) as m:
    for name in m:
        t = m.torch(name)
        print(name, tuple(t.shape), t.stride(), t.device.type, float(t.double().sum()))
"""


def told(state):
    return [
        f"{name} {tuple(t.shape)} {t.stride()} cuda {float(t.double().sum())}" for name, t in state.items()
    ]


@pytest.mark.parametrize("export", ["fd", "ipc"])
def test_published_on_the_gpu(start, export):
    daemon = start("--export", export)
    generator = torch.Generator("cuda").manual_seed(1)
    weight = torch.randn(512, 1024, device="cuda", generator=generator, dtype=torch.float32).to(torch.bfloat16)
    state = {"w": weight, "w.t": weight.t(), "tied": weight, "rows": weight[10:20], "f": torch.ones(7, device="cuda")}
    with rocmforge.connect(daemon.socket) as rf:
        with rf.publish("m", state, key="k", metadata={"a": 1}) as model:
            assert model.device != "host" and model.published == ("k", {"a": 1})
            for name, tensor in state.items():
                assert torch.equal(model.torch(name), tensor)
            assert model["tied"].is_view and model.torch("tied").data_ptr() == model.torch("w").data_ptr()
        read = [sys.executable, "-c", READ, str(daemon.socket), "m"]
        done = subprocess.run(read, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == told(state)
        with rf.publish("n", {"w": torch.zeros(3)}, key="k", device=rf.list()[0]["device"]) as again:
            assert again.id == model.id  # the key decides
        with rf.create("c", {"a": ("float32", (4, 4))}, device=model.device) as creation:
            creation.torch("a").fill_(2)
            assert float(creation.publish().torch("a").sum()) == 32
        with rf.publish("host", {"w": weight}, device="host") as copy:
            assert torch.equal(copy.torch("w"), weight.cpu())
        with rf.publish("up", {"w": weight.cpu()}, device=model.device) as copy:
            assert torch.equal(copy.torch("w"), weight)


def test_a_publisher_that_dies(start):
    daemon = start()
    code = (
        "import sys, os, rocmforge\n"
        "rf = rocmforge.connect(sys.argv[1])\n"
        "c = rf.create('m', {'a': ('uint8', (1 << 28,))}, device=sys.argv[2])\n"
        "c.torch('a').fill_(1)\n"
        "import torch; torch.cuda.synchronize(); os._exit(9)\n"
    )
    with rocmforge.connect(daemon.socket) as rf:
        (device,) = [d["id"] for d in rf.devices() if d["kind"] != "host"][:1]
        subprocess.run([sys.executable, "-c", code, str(daemon.socket), device])
        wait_until(lambda: rf.list() == [])
        wait_until(lambda: sum(d["used"] for d in rf.devices()) == 0)
