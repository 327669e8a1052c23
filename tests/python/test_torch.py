"""torch.Tensors of a model in host memory."""
import pytest
import rocmforge

torch = pytest.importorskip("torch")


def test_every_tensor_is_right_to_the_bit(rf, every_type):
    for form in ("native", "f32", "f16", "bf16"):
        with rf.load_attach(every_type, form=form, name=form) as model:
            for name, tensor in model.state_dict().items():
                assert tensor.dtype == getattr(torch, model[name].dtype) and tuple(tensor.shape) == model[name].shape
                assert tensor.data_ptr() == model[name].data_ptr and tensor.device.type == "cpu"
                assert tensor.flatten().view(torch.uint8).numpy().tobytes() == model[name].read()
            del tensor


def test_a_tensor_keeps_the_memory(rf, small):
    with rf.load_attach(small, name="m", form="bf16") as model:
        tensor = model.get_tensor(next(iter(model)))
        parameter = torch.nn.Parameter(tensor, requires_grad=False)
        row = parameter[0]
    del tensor, parameter
    with pytest.raises(rocmforge.ModelBusy):
        rf.unload("m")
    assert row.float().sum().isfinite()
    del row
    assert rf.unload("m") == "unloaded"


def test_a_copy_is_ones_own(rf, small):
    with rf.load_attach(small, form="f32") as model:
        own = model.torch("blk.0.attn_v.weight", copy=True)
        assert model.views == 0
        own.zero_()
        assert model.torch("blk.0.attn_v.weight").any()


def test_from_dlpack_and_as_tensor(rf, small):
    with rf.load_attach(small, form="f32") as model:
        tensor = model["blk.0.attn_v.weight"]
        assert torch.from_dlpack(tensor).data_ptr() == tensor.data_ptr
        assert torch.equal(torch.from_dlpack(tensor), tensor.torch())


def test_freed_by_a_thread_of_torch(rf, small):
    """The engine of torch runs without the interpreter's lock, and lets go of tensors there."""
    with rf.load_attach(small, form="f32") as model:
        weight = model.torch("blk.0.attn_v.weight")
        x = torch.ones(weight.shape[1], requires_grad=True)
        y = (weight @ x).sum()
        del weight
        y.backward()
        assert torch.isfinite(x.grad).all()
        del y, x
        assert model.views == 0


def test_a_state_dict_goes_into_a_module_without_a_copy(rf, small):
    with rf.load_attach(small, form="f32") as model:
        weight = model.torch("blk.0.attn_v.weight")
        with torch.device("meta"):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        linear.load_state_dict({"weight": weight}, assign=True)
        assert linear.weight.data_ptr() == model["blk.0.attn_v.weight"].data_ptr


ERROR = """
import signal, sys, rocmforge, torch
model = rocmforge.load_attach(sys.argv[1], name="m", form="f32")
name = "blk.0.attn_v.weight"
def pair(a, b): return a, b
for _ in range(50):
    try:
        EXPRESSION
    except EXCEPTION as error:
        assert type(error) is EXCEPTION and error.__context__ is None, repr(error)
    else:
        raise SystemExit("no exception")
    assert model.views == 0, model.views
model.close()
"""
ERRORS = {
    "pair(model.get_tensor(name), model.get_tensor('no_such'))": "KeyError",
    "{key: model.get_tensor(key) for key in (name, 'no_such')}": "KeyError",
    "model.torch(name).reshape(7, 7)": "RuntimeError",
    "model.torch(name)[10**9]": "IndexError",
    "model.torch(name) + torch.zeros(5)": "RuntimeError",
    "model.torch(name).no_such": "AttributeError",
    "pair(model.torch(name), signal.raise_signal(signal.SIGINT))": "KeyboardInterrupt",
}


@pytest.mark.parametrize("expression", ERRORS)
def test_an_exception_that_frees_a_tensor_is_not_lost(run_python, small, expression):
    """The expression's values are freed while its exception is pending."""
    run_python(ERROR.replace("EXPRESSION", expression).replace("EXCEPTION", ERRORS[expression]), small)
