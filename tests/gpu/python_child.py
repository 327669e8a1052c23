"""What test_python_torch.py has done in a process of its own: one of these by its name, with arguments. Prints JSON."""
import copy
import gc
import json
import os
import sys
import time

import rocmforge

FORMS = ("native", "f32", "f16", "bf16")


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


def bits(path, device):
    """Every tensor through DLPack and the CUDA array interface is where it is, and what the library copies from there."""
    import torch

    seen = 0
    with rocmforge.connect() as rf:
        for form in FORMS:
            host = rf.load_attach(path, form=form, device="host", name=f"host-{form}")
            with rf.load_attach(path, form=form, device=device, name=f"gpu-{form}") as model:
                for tensor in model.values():
                    expected = torch.frombuffer(bytearray(host[tensor.name].read()), dtype=torch.uint8)
                    for made in (tensor.torch(), torch.from_dlpack(tensor), interface(tensor)):
                        if made is None:
                            continue
                        assert made.is_cuda and made.data_ptr() == tensor.data_ptr and tuple(made.shape) == tensor.shape
                        assert str(made.dtype) == f"torch.{tensor.dtype}"
                        assert torch.equal(made.contiguous().flatten().view(torch.uint8).cpu(), expected), tensor
                    seen += 1
                del made, tensor
                assert model.views == 0
    return {"tensors": seen, "gpu": torch.cuda.get_device_name()}


def interface(tensor):
    import torch

    return torch.as_tensor(tensor, device="cuda") if tensor.dtype != "bfloat16" else None


def wrap(path, device):
    """What it takes to wrap all tensors: memory of the device, and time."""
    import torch

    torch.ones(1, device="cuda")
    with rocmforge.connect() as rf:
        rf.load(path, name="model", device=device)
        began = time.perf_counter()
        model = rf.attach("model")
        attached = time.perf_counter() - began
        free, allocated = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()
        times = []
        for _ in range(5):
            began = time.perf_counter()
            tensors = model.state_dict()
            times.append(time.perf_counter() - began)
        taken = free - torch.cuda.mem_get_info()[0]
        assert torch.cuda.memory_allocated() == allocated
        count, size = len(tensors), sum(t.numel() * t.element_size() for t in tensors.values())
        del tensors
        model.close()
    return {"tensors": count, "bytes": size, "taken": taken, "attach_ms": 1e3 * attached, "first_ms": 1e3 * times[0],
            "best_ms": 1e3 * min(times)}


def lifetime(path, device):
    """The memory stays for as long as a tensor does, whoever wants it back; and goes with the last one."""
    import torch

    with rocmforge.connect() as rf:
        rf.load(path, name="model", form="f32", device=device)
        with rf.attach("model") as model:
            tensor = model[next(name for name in model if model[name].dtype == "float32")]
            expected = torch.frombuffer(bytearray(tensor.read()), dtype=torch.float32).reshape(tensor.shape)
            kept = tensor.torch()
        try:
            rf.unload("model")
            raise AssertionError("a model was unloaded under a live tensor")
        except rocmforge.ModelBusy as busy:
            assert busy.leases[0]["pid"] == os.getpid()
        assert rf.unload("model", force=True) == "draining"
        waste = [torch.zeros(64 << 20, dtype=torch.uint8, device="cuda") for _ in range(4)]
        rf.load(path, name="other", form="f16", device=device)
        assert torch.equal(kept.cpu(), expected)
        # A kernel that is on its way when the last tensor goes reads what it should.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            copied = kept + 0
        view = kept[:1]
        del kept, waste, tensor
        gc.collect()
        assert [info["state"] for info in rf.list() if info["name"] == "model"] == ["draining"]
        del view
        gc.collect()
        assert torch.equal(copied.cpu(), expected)
        deadline = time.monotonic() + 30
        while any(info["name"] == "model" for info in rf.list()):
            assert time.monotonic() < deadline, "the memory of a model that nothing refers to is still there"
            time.sleep(0.05)
        rf.unload("other")
    return {"ok": True}


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
    torch.ones(1, device="cuda")
    free = torch.cuda.mem_get_info()[0]
    began = time.process_time()
    made = resident.from_resident("model")
    seconds = time.process_time() - began
    report = made.report
    taken = free - torch.cuda.mem_get_info()[0]
    own = copy.deepcopy(made.model)
    addresses = {p.data_ptr() for p in made.model.parameters()}
    assert all(p.is_cuda and p.data_ptr() not in addresses for p in own.parameters())
    ids = torch.randint(3, 90, (1, 16), device="cuda")
    with torch.no_grad():
        logits = made.model(input_ids=ids).logits
        assert torch.isfinite(logits).all() and torch.equal(logits, own(input_ids=ids).logits)
    return {"views": report.view_bytes, "made": report.made_bytes, "share": report.share, "taken": taken, "cpu_s": seconds}


def others(device):
    """A model whose names and conversions are those of transformers: on the GPU as in host memory."""
    import tempfile

    import torch

    import hf_models
    import rocmforge.transformers as resident

    original = hf_models.make("starcoder2")
    with tempfile.TemporaryDirectory() as folder:
        path = hf_models.write(f"{folder}/model.gguf", original, "starcoder2")
        for where in ("host", device):
            rocmforge.load(path, name=where.replace(":", "-"), form="f32", device=where)
        made = resident.from_resident(device.replace(":", "-"))
    ours = dict(made.model.named_parameters())
    for name, parameter in original.named_parameters():
        assert ours[name].is_cuda and torch.equal(ours[name].cpu(), parameter), name
    ids = torch.randint(3, 90, (1, 16), device="cuda")
    with torch.no_grad():
        assert torch.isfinite(made.model(input_ids=ids).logits).all()
    return {"views": made.report.view_bytes, "made": made.report.made_bytes}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
