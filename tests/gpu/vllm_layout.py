#!/usr/bin/env python3
"""A model of 7B shape in vLLM's layout, built with torch alone from views of a resident model, without a copy.

    tests/gpu/vllm_layout.py BUILD [--device cuda|hip|host] [--layers N] [--hidden N] [--models FOLDER]

BUILD: a build folder. Writes a folder of safetensors files with random contents, loads it with layout="vllm", and builds a
torch model with fused parameters (qkv_proj, gate_up_proj) as vLLM has them, by the code that the loader for vLLM uses.
Prints the time, the bytes that are shared and those that torch has allocated, and compares every parameter with the files.
Exit status 77: there is no torch that sees the device.
"""
import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "client/python/src"), str(ROOT / "tests/lib")]

try:
    import torch
    from torch import nn
except ImportError as error:
    print(f"no torch for {sys.executable}: {error}")
    sys.exit(77)

VOCABULARY = 32000
SHARDS = 3
BLOCK = 64 << 20  # bytes of random contents, of which each tensor gets a part that begins somewhere else
# More than this must not be allocated beside the views.
ALLOCATED_MAX = 1 << 20


# --- files ---


def shapes(layers, hidden, intermediate):
    told = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for i in range(layers):
        at = f"model.layers.{i}"
        for part in "qkvo":
            told[f"{at}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        told[f"{at}.mlp.gate_proj.weight"] = told[f"{at}.mlp.up_proj.weight"] = (intermediate, hidden)
        told[f"{at}.mlp.down_proj.weight"] = (hidden, intermediate)
        told[f"{at}.input_layernorm.weight"] = told[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    told["model.norm.weight"] = (hidden,)
    told["lm_head.weight"] = (VOCABULARY, hidden)
    return told


def write_folder(folder, told):
    """The files as transformers writes them, in f16. Returns name → file, offset and shape."""
    folder.mkdir(parents=True)
    numbers = (torch.rand(BLOCK // 2) - 0.5).half()
    block = memoryview(ctypes.string_at(numbers.data_ptr(), BLOCK) * 2)
    names, places, where, begin = list(told), {}, {}, 0
    for shard in range(SHARDS):
        file = folder / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        part = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        for name in part:
            n = 2 * int(torch.Size(told[name]).numel())
            header[name] = {"dtype": "F16", "shape": list(told[name]), "data_offsets": [at, at + n]}
            at += n
        text = json.dumps(header).encode()
        with open(file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in part:
                places[name] = (file, out.tell(), told[name])
                left = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
                while left:
                    n = min(left, BLOCK)
                    out.write(block[begin : begin + n])
                    left -= n
                    begin = (begin + 4099 * 16) % BLOCK
        where.update(dict.fromkeys(part, file.name))
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    heads = {"model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 32}
    (folder / "config.json").write_text(json.dumps(heads))
    return places


# --- a model as vLLM has it ---


class Weight(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape, dtype=torch.float16), requires_grad=False)


class Layer(nn.Module):
    def __init__(self, hidden, intermediate):
        super().__init__()
        self.self_attn, self.mlp = nn.Module(), nn.Module()
        self.self_attn.qkv_proj = Weight(3 * hidden, hidden)
        self.self_attn.o_proj = Weight(hidden, hidden)
        self.mlp.gate_up_proj = Weight(2 * intermediate, hidden)
        self.mlp.down_proj = Weight(hidden, intermediate)
        self.input_layernorm, self.post_attention_layernorm = Weight(hidden), Weight(hidden)


class Llama(nn.Module):
    FUSED = {"q_proj": ("qkv_proj", 0, 3), "k_proj": ("qkv_proj", 1, 3), "v_proj": ("qkv_proj", 2, 3),
             "gate_proj": ("gate_up_proj", 0, 2), "up_proj": ("gate_up_proj", 1, 2)}  # fmt: skip

    def __init__(self, layers, hidden, intermediate):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = Weight(VOCABULARY, hidden)
        self.model.layers = nn.ModuleList(Layer(hidden, intermediate) for _ in range(layers))
        self.model.norm = Weight(hidden)
        self.lm_head = Weight(VOCABULARY, hidden)

    def target(self, name):
        """The parameter that a tensor of the files goes to, and its rows there."""
        part = name.split(".")[-2]
        fused, index, of = self.FUSED.get(part, (part, 0, 1))
        parameter = self.get_parameter(name.replace(part, fused))
        rows = parameter.shape[0] // of
        return parameter, slice(index * rows, (index + 1) * rows)

    def load_weights(self, weights):
        for name, tensor in weights:
            parameter, rows = self.target(name)
            parameter.data[rows].copy_(tensor)


# --- the test ---


def compare(model, places, device):
    """Each tensor of the files with the rows of the parameter, on the device, by their bits."""
    for name, (file, offset, shape) in places.items():
        with open(file, "rb") as opened:
            opened.seek(offset)
            data = torch.frombuffer(bytearray(opened.read(2 * int(torch.Size(shape).numel()))), dtype=torch.int16)
        parameter, rows = model.target(name)
        same = torch.equal(parameter.data[rows].view(torch.int16), data.reshape(shape).to(device))
        assert same, f"{name} differs from the file"
    return len(places)


def computes(model, device):
    """A product with the view is, bit for bit, that with a copy of it."""
    weight = model.model.layers[0].self_attn.qkv_proj.weight
    x = torch.ones(4, weight.shape[1], dtype=torch.float16, device=device)
    return bool(torch.equal(x @ weight.T, x @ weight.clone().T))


def allocated(device):
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def build(client, folder, sizes, device, kind):
    from rocmforge.vllm import _build, _fill, _memory, _record, _sources

    began = time.perf_counter()
    client.load(folder, name="layout", layout="vllm", device=kind, form="native")
    loaded = time.perf_counter()
    # Torch's own start is not to be measured: on the device, and what it imports for tensors without memory.
    torch.empty(1, device=device)
    with _record.Recorder({}, {}):
        torch.empty(1, device="meta").copy_(torch.empty(1, device="meta"))
    before = allocated(device)
    start = time.perf_counter()
    bare = _build.Bare(lambda: Llama(*sizes))
    sources = _sources.of(sorted(map(str, folder.glob("*.safetensors"))))
    recorder = _record.Recorder(bare.parameters(), sources)
    with recorder:
        bare.model.load_weights(sources.items())
    recorder.finish()
    attaching = time.perf_counter()
    with client.attach("layout") as resident:
        report = _fill.fill(bare, recorder, resident, _memory.places(resident, sources), device)
    done = time.perf_counter()
    grown = allocated(device) - before
    return bare.model, report, {
        "load": loaded - began, "build": attaching - start, "attach_and_views": done - attaching,
        "shared": report.shared_bytes, "copied": report.copied_bytes, "allocated": grown,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path)
    parser.add_argument("--device", default="cuda", choices=["cuda", "hip", "host"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--models", type=Path, help="where the files are written; default: a temporary folder")
    options = parser.parse_args()
    if options.device != "host" and not torch.cuda.is_available():
        print("this torch sees no GPU")
        sys.exit(77)
    os.environ["ROCMFORGE_BUILD"] = str(options.build)
    os.environ.setdefault("ROCMFORGE_LIBRARY", str(options.build.resolve() / "client"))
    import rocmforge
    from harness import Daemon, module_folder

    os.environ["ROCMFORGE_MODULE_DIR"] = str(module_folder())
    device = torch.device("cpu" if options.device == "host" else "cuda:0")
    sizes = options.layers, options.hidden, options.intermediate
    with tempfile.TemporaryDirectory(dir=options.models) as work:
        folder = Path(work) / "seven"
        places = write_folder(folder, shapes(*sizes))
        with tempfile.TemporaryDirectory(prefix="rf") as short:
            daemon = Daemon(Path(short), "--device", options.device, "--budget", "95%").wait_ready()
            try:
                with rocmforge.connect(daemon.socket) as client:
                    model, report, figures = build(client, folder, sizes, device, options.device)
                figures["compared"] = compare(model, places, device)
                assert computes(model, device)
                print(f"vllm_layout: {report}; {json.dumps(figures)}")
                assert report.copied_bytes == 0 and not report.copied, report.copied
                assert figures["allocated"] < ALLOCATED_MAX, f"torch has allocated {figures['allocated']} bytes"
                del model
            finally:
                status = daemon.stop()
                log = daemon.log
                daemon.close()
            assert status == 0, log


main()
