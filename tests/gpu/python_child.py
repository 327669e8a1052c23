"""What test_python_torch.py has done in a process of its own: one of these by its name, with arguments. Prints JSON.

A device "host" stands for a GPU where there is none, so that these are tried before they run on one.
"""
import contextlib
import copy
import gc
import json
import os
import sys
import time

import rocmforge

FORMS = ("native", "f32", "f16", "bf16")


def of_torch(device):
    """What torch calls a device of the daemon, apart from its number."""
    return "cpu" if device == "host" else "cuda"


def free_bytes(device):
    """Of the GPU's memory; on the host, where others take memory meanwhile, always the same."""
    import torch

    return 0 if device == "host" else torch.cuda.mem_get_info()[0]


def plain(path, kind, device):
    """Without torch: what each protocol tells, and the bytes, against those of the same file in host memory."""
    with rocmforge.connect() as rf:
        seen = 0
        for form in FORMS:
            on_host = rf.load_attach(path, form=form, device="host", name=f"host-{form}")
            with rf.load_attach(path, form=form, device=device, name=f"gpu-{form}") as model:
                assert model.device == device and list(model) == list(on_host)
                for tensor in model.values():
                    expected = on_host[tensor.name].read()
                    kind_number = {"cuda": 2, "hip": 10}[kind]
                    assert tensor.__dlpack_device__()[0] == kind_number
                    assert tensor.device == ("cuda" if kind == "cuda" else "rocm") + f":{tensor.__dlpack_device__()[1]}"
                    assert tensor.read() == expected, tensor
                    assert not hasattr(tensor, "__array_interface__")
                    if tensor.dtype != "bfloat16":
                        interface = tensor.__cuda_array_interface__
                        assert interface["data"] == (tensor.data_ptr, False) and interface["shape"] == tensor.shape
                        assert tensor.numpy(copy=True).tobytes() == expected, tensor
                    tensor.__dlpack__(max_version=(1, 0))
                    tensor.__dlpack__(dl_device=(1, 0))
                    for wrong in (tensor.numpy, tensor.buffer):
                        try:
                            wrong()
                        except rocmforge.Error as error:
                            assert model.device in str(error) or "ml_dtypes" in str(error)
                        else:
                            raise AssertionError("a view in host memory of what is on a GPU")
                    seen += 1
                del tensor, wrong  # they are views once the interface was asked for
                assert model.views == 0
                here = model[next(iter(model))]
                if os.fork() == 0:
                    try:
                        here.read()
                    except rocmforge.Error as error:
                        os._exit(0 if "in the child" in str(error) else 1)
                    os._exit(2)
                assert os.wait()[1] == 0
            on_host.close()
    return {"tensors": seen}


def interface_keeps(path, device):
    """Without torch: the memory stays for whoever has the CUDA array interface. The protocol passes an address, and the
    one who takes it keeps the object."""
    with rocmforge.connect() as rf:
        model = rf.load_attach(path, form="f32", device=device, name="model")
        taken = model[next(name for name in model if model[name].dtype == "float32")]
        assert model.views == 0
        address = taken.__cuda_array_interface__["data"][0]
        still_there(rf, model, taken)
        assert address
        del taken
        assert model.views == 0 and rf.unload("model") == "unloaded"
    return {"ok": True}


def still_there(rf, model, kept):
    """Nothing gives the model's memory back while `kept` lives, as its only view."""
    assert model.views == 1, kept
    try:
        model.close()
        raise AssertionError("a model was closed under a live array")
    except rocmforge.InUse:
        pass
    model.close(force=True)
    try:
        rf.unload("model")
        raise AssertionError("a model was unloaded under a live array")
    except rocmforge.ModelBusy:
        pass


def as_tensor_keeps(path, device):
    """The same of a tensor that torch made of the interface, once the object that it was made of is gone."""
    import torch

    with rocmforge.connect() as rf:
        model = rf.load_attach(path, form="f32", device=device, name="model")
        source = model[next(name for name in model if model[name].dtype == "float32")]
        expected = torch.frombuffer(bytearray(source.read()), dtype=torch.float32).reshape(source.shape)
        made = torch.as_tensor(source, device="cuda")
        assert made.data_ptr() == source.data_ptr
        del source
        gc.collect()
        still_there(rf, model, made)
        waste = torch.full((model.nbytes // 4,), -1.0, device="cuda")
        assert torch.equal(made.cpu(), expected)
        del made, waste
        gc.collect()
        assert model.views == 0 and rf.unload("model") == "unloaded"
    return {"ok": True}


def protocols(tensor):
    """torch.Tensors of a tensor, by each way that there is to make one."""
    import torch

    yield tensor.torch()
    yield torch.from_dlpack(tensor)
    if tensor.dtype != "bfloat16" and tensor.device != "cpu":
        yield torch.as_tensor(tensor, device="cuda")


def same_bytes(tensor, expected):
    """Whether a torch.Tensor, wherever it is, has these bytes."""
    import torch

    wanted = torch.frombuffer(bytearray(expected), dtype=torch.uint8)
    return torch.equal(tensor.contiguous().flatten().view(torch.uint8).cpu(), wanted)


def right_in_torch(model, expected):
    """Each tensor, by each protocol, is where the model has it, and has the expected bytes: a function of name and form,
    which gives None for a tensor that is not to be compared. Returns how many were."""
    seen = 0
    for tensor in model.values():
        wanted = expected(tensor.name, tensor.form)
        for made in protocols(tensor):
            assert made.device.type == of_torch(model.device) and made.data_ptr() == tensor.data_ptr
            assert tuple(made.shape) == tensor.shape and str(made.dtype) == f"torch.{tensor.dtype}"
            assert wanted is None or same_bytes(made, wanted), tensor
        seen += wanted is not None
    return seen


def of_gguf(path):
    """For right_in_torch(): what the gguf package decodes on the CPU. None: it cannot decode the type."""
    import decoded
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def expected(name, form):
        with contextlib.suppress(NotImplementedError):
            return decoded.expected(tensors[name], form)

    return expected


def bits(path, device):
    """Every tensor of a file, in each form, against the gguf package's decoding."""
    import torch

    expected, found = of_gguf(path), {}
    with rocmforge.connect() as rf:
        for form in FORMS:
            with rf.load_attach(path, form=form, device=device, name=f"as-{form}") as model:
                found[form] = right_in_torch(model, expected)
                assert model.views == 0
                count = len(model)
    return {"tensors": count, "compared": found, "gpu": device != "host" and torch.cuda.get_device_name()}


def vectors(folder, device):
    """Blocks that ggml made, and the values that ggml decodes them to: every type that has some."""
    import decoded

    path = os.path.join(folder, "vectors.gguf")
    values = decoded.write_vectors(path)
    found = {}
    with rocmforge.connect() as rf:
        for form in FORMS:

            def expected(name, has):
                return (decoded.VECTORS / f"{name}.q").read_bytes() if has == "native" else decoded.in_form(values[name], has)

            with rf.load_attach(path, form=form, device=device, name=f"as-{form}") as model:
                found[form] = right_in_torch(model, expected)
    return {"compared": found}


def wrap(path, device):
    """What it takes to wrap all tensors: memory of the device, and time."""
    import torch

    torch.ones(1, device=of_torch(device))
    with rocmforge.connect() as rf:
        rf.load(path, name="model", device=device)
        began = time.perf_counter()
        model = rf.attach("model")
        attached = time.perf_counter() - began
        free, allocated = free_bytes(device), torch.cuda.memory_allocated()
        times = []
        for _ in range(5):
            began = time.perf_counter()
            tensors = model.state_dict()
            times.append(time.perf_counter() - began)
        taken = free - free_bytes(device)
        assert torch.cuda.memory_allocated() == allocated
        count, size = len(tensors), sum(t.numel() * t.element_size() for t in tensors.values())
        del tensors
        model.close()
    return {"tensors": count, "bytes": size, "taken": taken, "attach_ms": 1e3 * attached, "first_ms": 1e3 * times[0],
            "best_ms": 1e3 * min(times)}


def lifetime(path, device):
    """The memory stays for as long as a tensor does, whoever wants it back; and goes with the last one."""
    import torch

    wanted = of_gguf(path)
    with rocmforge.connect() as rf:
        rf.load(path, name="model", form="f32", device=device)
        with rf.attach("model") as model:
            kept = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
            expected = {name: wanted(name, "f32") for name in kept}
        try:
            rf.unload("model")
            raise AssertionError("a model was unloaded under a live tensor")
        except rocmforge.ModelBusy as busy:
            assert busy.leases[0]["pid"] == os.getpid()
        assert rf.unload("model", force=True) == "draining"
        waste = [torch.full((64 << 20,), 0xA5, dtype=torch.uint8, device=of_torch(device)) for _ in range(4)]
        rf.load(path, name="other", form="f16", device=device)
        compared = [same_bytes(tensor, expected[name]) for name, tensor in kept.items() if expected[name] is not None]
        assert len(compared) > 40 and all(compared), compared
        name = next(name for name in kept if expected[name] is not None)
        last = kept[name]
        del kept, waste
        copied = copy_late(last)
        view = last[:1]
        del last
        gc.collect()
        assert [info["state"] for info in rf.list() if info["name"] == "model"] == ["draining"]
        del view
        gc.collect()
        assert same_bytes(copied, expected[name])
        deadline = time.monotonic() + 30
        while any(info["name"] == "model" for info in rf.list()):
            assert time.monotonic() < deadline, "the memory of a model that nothing refers to is still there"
            time.sleep(0.05)
        rf.unload("other")
    return {"compared": len(compared)}


def copy_late(tensor):
    """A copy by a kernel that is still on its way when this returns."""
    import torch

    if tensor.device.type == "cpu":
        return tensor + 0
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        return tensor + 0


def leave(path, device):
    """Ends with tensors that live."""
    import torch

    model = rocmforge.load_attach(path, name="model", device=device)
    torch.kept = model.state_dict()
    sys.kept = [model, model[next(iter(model))].__dlpack__()]
    return {"tensors": len(torch.kept)}


def transformers(path, device):
    """A model of transformers on the GPU's memory gives what the same model in memory of its own gives."""
    import torch

    import rocmforge.transformers as resident

    rocmforge.load(path, name="model", device=device)
    torch.ones(1, device=of_torch(device))
    free = free_bytes(device)
    began = time.process_time()
    made = resident.from_resident("model")
    seconds = time.process_time() - began
    report = made.report
    taken = free - free_bytes(device)
    own = copy.deepcopy(made.model)
    addresses = {p.data_ptr() for p in made.model.parameters()}
    assert all(p.device.type == of_torch(device) and p.data_ptr() not in addresses for p in own.parameters())
    ids = torch.randint(3, 90, (1, 16), device=made.model.device)
    with torch.no_grad():
        logits = made.model(input_ids=ids).logits
        assert torch.isfinite(logits).all() and torch.equal(logits, own(input_ids=ids).logits)
    return {"views": report.view_bytes, "made": report.made_bytes, "share": report.share, "taken": taken, "cpu_s": seconds}


# How far logits that a GPU computes in float32 may be from the CPU's, as a part of the largest of them: sums are made in
# another order.
TOLERANCE = 1e-3


def far(found, expected):
    """The greatest difference of two tensors, as a part of the greatest value."""
    return ((found.cpu() - expected.cpu()).abs().max() / expected.abs().max()).item()


def architectures(device):
    """A model of each architecture that has a table of names, and one whose names are transformers' own: each parameter
    is that of the model which the file was written of, and the logits are its logits on the CPU."""
    import tempfile

    import hf_models
    import torch

    import rocmforge.transformers as resident

    furthest = {}
    for kind, called in hf_models.KINDS.items():
        original = hf_models.make(kind)
        with tempfile.TemporaryDirectory() as folder:
            path = hf_models.write(f"{folder}/model.gguf", original, called)
            rocmforge.load(path, name=kind, form="f32", device=device)
            made = resident.from_resident(kind)
        ours = dict(made.model.named_parameters())
        for name, parameter in original.named_parameters():
            assert ours[name].device.type == of_torch(device) and torch.equal(ours[name].cpu(), parameter), (kind, name)
        ids = torch.randint(3, 90, (1, 16))
        with torch.no_grad():
            outputs = [model(input_ids=ids.to(model.device)) for model in (made.model, original)]
        found, expected = (getattr(out, "logits", getattr(out, "last_hidden_state", None)) for out in outputs)
        furthest[kind] = far(found, expected)
        assert furthest[kind] <= TOLERANCE, (kind, furthest[kind])
    return {"furthest": furthest}


def gemma(path, device):
    """Gemma on the GPU: every tensor as gguf decodes it, every parameter as that of the same model in host memory, and
    its logits and tokens as the CPU computes them in float32."""
    import torch

    import rocmforge.transformers as resident

    torch.backends.cuda.matmul.allow_tf32 = False
    wheres = dict.fromkeys((device, "host"))
    names = [rocmforge.load(path, form="f32", device=where, name=f"on-{where.replace(':', '-')}")["model"]["name"] for where in wheres]
    with rocmforge.attach(names[0]) as model:
        tensors, compared = len(model), right_in_torch(model, of_gguf(path))
    free = free_bytes(device)
    began = time.process_time()
    here = resident.from_resident(names[0])
    seconds, taken = time.process_time() - began, free - free_bytes(device)
    host = resident.from_resident(names[-1])
    other = dict(host.model.named_parameters())
    for name, parameter in here.model.named_parameters():
        assert parameter.device.type == of_torch(device) and torch.equal(parameter.cpu(), other[name]), name
    ids = torch.tensor([here.encode("The capital of France is")])
    texts, logits = [], []
    for made in (here, host):
        own = ids.to(made.model.device)
        with torch.no_grad():
            logits.append(made.model(input_ids=own).logits)
        out = made.model.generate(input_ids=own, attention_mask=torch.ones_like(own), max_new_tokens=24, do_sample=False)
        texts.append(out[0].tolist())
    assert texts[0] == texts[1] and len(texts[0]) > ids.shape[1]
    furthest = far(*logits)
    assert furthest <= TOLERANCE
    report = here.report
    return {"tensors": tensors, "compared": compared, "share": report.share, "made": report.made_bytes, "taken": taken,
            "cpu_s": seconds, "furthest": furthest, "text": here.decode(texts[0])}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
