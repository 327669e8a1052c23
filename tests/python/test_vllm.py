"""What the loader for vLLM decides, without vLLM: keys, options, which parameters can be views. tests/engines has vLLM."""
import dataclasses
import json
import os
from math import prod
from types import SimpleNamespace

import pytest
from rocmforge.vllm import _header, _keys, _options, _pieces, _report
from rocmforge.vllm._pieces import Copy, Fill, Resident

F16, F32 = SimpleNamespace(itemsize=2), SimpleNamespace(itemsize=4)


class Parameter:
    def __init__(self, shape, dtype=F16, strides=None):
        self.shape = shape
        self.dtype = dtype
        self._strides = strides or _pieces.contiguous_strides(shape)

    def stride(self):
        return self._strides

    def numel(self):
        return prod(self.shape)


def rows(source, whole, begin=0, n=None, at=0):
    """The copy of rows of a matrix to a parameter of as many columns, from row `at` on."""
    n = whole[0] - begin if n is None else n
    strides = _pieces.contiguous_strides(whole)
    return Copy(at * whole[1], (n, whole[1]), strides, source, begin * whole[1], strides, whole)


def resident(offset, shape, begin=None, dtype=F16):
    return Resident(offset, shape, begin or (0,) * len(shape), dtype)


# --- which parameters are views ---

Q, K, V = (8, 16), (4, 16), (4, 16)
QKV = [rows("q", Q), rows("k", K, at=8), rows("v", V, at=12)]


def test_neighbours_are_one_view():
    places = {"q": resident(256, Q), "k": resident(512, K), "v": resident(640, V)}
    assert _pieces.place(Parameter((16, 16)), QKV, places) == (256, "")


def test_the_order_in_which_they_were_loaded_is_of_no_matter():
    places = {"q": resident(256, Q), "k": resident(512, K), "v": resident(640, V)}
    assert _pieces.place(Parameter((16, 16)), QKV[::-1], places) == (256, "")


@pytest.mark.parametrize(
    "places, why",
    [
        ({"q": resident(256, Q), "k": resident(768, K), "v": resident(896, V)}, "no neighbours"),
        ({"q": resident(256, Q), "v": resident(512, V), "k": resident(640, K)}, "no neighbours"),
        ({"q": resident(256, Q), "k": resident(512, K)}, "v is not resident"),
        ({"q": resident(256, Q, dtype=F32), "k": resident(512, K), "v": resident(640, V)}, "q is resident as"),
        ({"q": resident(250, Q), "k": resident(506, K), "v": resident(634, V)}, "multiple of 16"),
    ],
)
def test_others_are_not(places, why):
    offset, text = _pieces.place(Parameter((16, 16)), QKV, places)
    assert offset is None and why in text


def test_a_parameter_with_a_part_that_is_not_loaded_is_no_view():
    places = {"q": resident(256, Q), "k": resident(512, K), "v": resident(640, V)}
    for operations in (QKV[:2], QKV[1:], QKV + [rows("q", Q)], []):
        assert _pieces.place(Parameter((16, 16)), operations, places)[0] is None


def test_rows_that_are_added_or_converted_make_no_view():
    places = {"q": resident(256, Q)}
    padded = [rows("q", Q), Fill(128, (2, 16), (16, 1), 0)]
    assert _pieces.place(Parameter((10, 16)), padded, places)[0] is None
    assert _pieces.place(Parameter(Q, F32), [rows("q", Q)], places)[0] is None


def test_rows_of_a_whole_tensor_are_a_view():
    """The second of two ranks, whose part has the same columns."""
    assert _pieces.place(Parameter((4, 16)), [rows("q", Q, 4)], {"q": resident(256, Q)}) == (256 + 4 * 32, "")


def columns(source, whole, begin, n):
    return Copy(0, (whole[0], n), (n, 1), source, begin, _pieces.contiguous_strides(whole), whole)


def test_columns_of_a_whole_tensor_are_in_several_pieces():
    assert _pieces.place(Parameter((8, 8)), [columns("o", (8, 16), 8, 8)], {"o": resident(256, (8, 16))})[0] is None


def test_a_part_that_is_resident_is_a_view_for_its_rank_only():
    """The second half of the columns, as they are resident for rank 1 of 2."""
    place = {"o": resident(256, (8, 8), (0, 8))}
    assert _pieces.place(Parameter((8, 8)), [columns("o", (8, 16), 8, 8)], place) == (256, "")
    assert _pieces.place(Parameter((8, 8)), [columns("o", (8, 16), 0, 8)], place)[0] is None
    assert _pieces.place(Parameter((8, 8)), [columns("o", (8, 16), 4, 8)], place)[0] is None


def test_zeros_behind_a_vocabulary_are_part_of_the_view():
    """A vocabulary of 10 rows, resident with zeros up to 12; and for the second of two ranks."""
    padded = [rows("e", (10, 16)), Fill(160, (2, 16), (16, 1), 0)]
    assert _pieces.place(Parameter((12, 16)), padded, {"e": resident(256, (12, 16))}) == (256, "")
    assert _pieces.place(Parameter((12, 16)), padded, {"e": resident(256, (11, 16))})[0] is None
    ones = [padded[0], Fill(160, (2, 16), (16, 1), 1)]
    assert _pieces.place(Parameter((12, 16)), ones, {"e": resident(256, (12, 16))})[0] is None
    second = [rows("e", (10, 16), 6, 4), Fill(64, (2, 16), (16, 1), 0)]
    assert _pieces.place(Parameter((6, 16)), second, {"e": resident(256, (6, 16), (6, 0))}) == (256, "")
    assert _pieces.place(Parameter((6, 16)), second, {"e": resident(256, (6, 16), (4, 0))})[0] is None
    assert _pieces.place(Parameter((2, 16)), [Fill(0, (2, 16), (16, 1), 0)], {"e": resident(256, (12, 16))})[0] is None


@pytest.mark.parametrize(
    "whole, part, rank, size, begin",
    [
        ((128, 64), (128, 64), 1, 2, (0, 0)),
        ((128, 64), (64, 64), 1, 2, (64, 0)),
        ((128, 64), (128, 32), 1, 2, (0, 32)),
        ((128, 64), (64, 64), 1, 4, (0, 0)),  # two heads and four processes
        ((128, 64), (64, 64), 2, 4, (64, 0)),
        ((500, 64), (512, 64), 0, 1, (0, 0)),
        ((500, 64), (256, 64), 1, 2, (256, 0)),
        ((65, 64), (32, 64), 3, 4, (96, 0)),  # of which all rows are zeros
        ((128, 64), (64, 32), 0, 2, None),
        ((128, 64), (48, 64), 0, 2, None),
        ((128,), (64, 2), 0, 2, None),
        ((), (), 1, 2, ()),
    ],
)
def test_where_a_part_begins(whole, part, rank, size, begin):
    assert _pieces.part_of(whole, part, rank, size) == begin


def test_an_expert_of_several():
    """Experts of shape 4 x 16 in a parameter of all, in the order in which they are resident."""
    one = _pieces.contiguous_strides((4, 16))
    experts = [Copy(64 * i, (4, 16), one, f"e{i}", 0, one, (4, 16)) for i in range(3)]
    places = {f"e{i}": resident(128 * (i + 2), (4, 16)) for i in range(3)}
    assert _pieces.place(Parameter((3, 4, 16)), experts, places) == (256, "")
    # One expert of a tensor that has them all.
    stacked = Copy(0, (4, 16), one, "all", 128, one, (3, 4, 16))
    assert _pieces.place(Parameter((4, 16)), [stacked], {"all": resident(0, (3, 4, 16))}) == (256, "")


def test_a_transposed_tensor_is_no_view():
    turned = Copy(0, (16, 8), (8, 1), "q", 0, (1, 16), Q)
    assert _pieces.place(Parameter((16, 8)), [turned], {"q": resident(0, Q)})[0] is None


# --- what torch does is written down ---


def test_what_a_loader_does_is_written_down():
    torch = pytest.importorskip("torch")
    from rocmforge.vllm import _record

    def bare(*shape, dtype=torch.float16):
        return torch.empty(shape, dtype=dtype, device="meta")

    sources = {"q": bare(8, 16), "k": bare(4, 16), "all": bare(3, 4, 16), "f": bare(8, dtype=torch.float32)}
    parameters = {"qk": bare(12, 16), "norm": bare(8), "e": bare(4, 16), "sum": bare(8, 16), "pad": bare(10, 16)}
    with _record.Recorder(parameters, sources) as recorder:
        parameters["qk"].narrow(0, 0, 8).copy_(sources["q"])
        parameters["qk"].narrow(0, 8, 4).copy_(sources["k"])
        parameters["norm"].copy_(sources["f"])
        parameters["e"].copy_(sources["all"][2])
        parameters["sum"].copy_(sources["q"] + 1)
        parameters["pad"][:8].copy_(sources["q"])
        parameters["pad"][8:].fill_(0)
    recorder.finish()
    places = {"q": Resident(0, (8, 16), (0, 0), torch.float16), "k": Resident(256, (4, 16), (0, 0), torch.float16),
              "all": Resident(512, (3, 4, 16), (0, 0, 0), torch.float16),
              "f": Resident(1024, (8,), (0,), torch.float32)}  # fmt: skip
    found = {name: _pieces.place(parameters[name], recorder.operations[name], places)[0] for name in parameters}
    assert found == {"qk": 0, "norm": None, "e": 512 + 256, "sum": None, "pad": None}
    assert list(recorder.computed) == ["sum"]

    real = {"q": torch.randn(8, 16).half(), "k": torch.randn(4, 16).half(), "f": torch.randn(8)}
    own = torch.empty(10, 16, dtype=torch.float16)
    dtypes = {name: source.dtype for name, source in sources.items()}
    _pieces.replay(own, recorder.operations["pad"], places, real, dtypes)
    assert torch.equal(own, torch.cat([real["q"], torch.zeros(2, 16, dtype=torch.float16)]))
    norm = torch.empty(8, dtype=torch.float16)
    _pieces.replay(norm, recorder.operations["norm"], places, real, dtypes)
    assert torch.equal(norm, real["f"].half())
    with pytest.raises(_pieces.Unknown):
        _pieces.replay(own, [rows("nothing", Q)], places, real, dtypes)
    # The daemon has made f16 of what is f32 in the files and in the parameter.
    places["q"], dtypes["q"] = places["q"]._replace(dtype=torch.float32), torch.float32
    with pytest.raises(_pieces.Unknown, match="q is resident as torch.float16"):
        _pieces.replay(torch.empty(8, 16), [rows("q", Q)], places, real, dtypes)


def test_a_loader_that_writes_to_the_files_tensors_is_found():
    torch = pytest.importorskip("torch")
    from rocmforge.vllm import _record

    source = torch.empty(4, device="meta")
    with pytest.raises(_pieces.Unknown), _record.Recorder({}, {"a": source}):
        source.add_(1)


def test_a_parameter_with_other_memory_is_found():
    torch = pytest.importorskip("torch")
    from rocmforge.vllm import _record

    parameter = torch.nn.Parameter(torch.empty(4, device="meta"))
    with _record.Recorder({"p": parameter}, {}) as recorder:
        parameter.data = torch.empty(4, device="meta")
    with pytest.raises(_pieces.Unknown):
        recorder.finish()


# --- resident memory ---


def test_a_view_and_what_keeps_it_from_being_written(daemon, folder):
    torch = pytest.importorskip("torch")
    import make_safetensors
    import rocmforge
    from rocmforge.vllm import _memory

    told = make_safetensors.write(folder / "m.safetensors", {"a": ("F16", (4, 8)), "b": ("F32", (8,))})
    with rocmforge.connect(daemon.socket) as client, client.load_attach(folder / "m.safetensors") as model:
        sources = {"a": torch.empty(4, 8, device="meta"), "b": torch.empty(8, device="meta"), "c": torch.empty(1)}
        places = _memory.places(model, sources)
        assert list(places) == ["a", "b"]
        assert places["a"].shape == (4, 8) and places["b"].dtype == torch.float32
        half = _memory.view(model, "half", places["a"].offset + 2 * 8 * 2, torch.float16, (2, 8))
        assert half.numpy().tobytes() == told["a"][32:] and half.data_ptr() == model["a"].data_ptr + 32
        with pytest.raises(ValueError):
            _memory.view(model, "too long", places["b"].offset, torch.float32, (1 << 30,))
        with _memory.ReadOnly([model]) as guard:
            assert guard.has(half) and not guard.has(torch.zeros(4))
            for write in (lambda: half.zero_(), lambda: half[0].copy_(half[1]), lambda: torch.add(half, 1, out=half)):
                with pytest.raises(_memory.WouldWrite):
                    write()
            torch.zeros(4).add_(1)


def test_parts_of_a_model(daemon, folder):
    """What two ranks get of tensors; and that a rank does not take the other one's."""
    torch = pytest.importorskip("torch")
    import make_safetensors
    import rocmforge
    from rocmforge.vllm import _build, _memory

    up, down, embed = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"
    shapes = {up: (8, 16), down: (16, 8), embed: (100, 16)}
    file = folder / "m.safetensors"
    told = make_safetensors.write(file, {name: ("F16", shape) for name, shape in shapes.items()})
    sources = {name: torch.empty(shape, dtype=torch.float16, device="meta") for name, shape in shapes.items()}
    whole = {name: torch.frombuffer(bytearray(told[name]), dtype=torch.float16).reshape(shapes[name]) for name in shapes}
    with rocmforge.connect(daemon.socket) as client:
        for rank in (0, 1):
            tp = {"rank": rank, "size": 2, "heads": 2, "kvHeads": 2}
            with client.load_attach(file, name=f"m{rank}", layout="vllm", tp=tp) as model:
                places = _memory.places(model, sources, rank, 2)
                assert {name: place.begin for name, place in places.items()} == {
                    up: (4 * rank, 0), down: (0, 4 * rank), embed: (64 * rank, 0)
                }  # fmt: skip
                assert places[embed].shape == (64, 16)
                for name, place in places.items():
                    index = tuple(slice(at, at + n) for at, n in zip(place.begin, place.shape))
                    real = whole[name][index]
                    assert torch.equal(model[name].torch()[: real.shape[0]], real), name
                _memory.check_parts(model, places, sources, [file])
                with pytest.raises(_build.NotPossible):
                    _memory.check_parts(model, _memory.places(model, sources, 1 - rank, 2), sources, [file])


# --- what processing leaves outside of parameters ---


@pytest.fixture
def remembered(monkeypatch):
    """The module, which takes the classes of this file for vLLM's."""
    pytest.importorskip("torch")
    from rocmforge.vllm import _remembered

    monkeypatch.setattr(_remembered, "_PARTS", (f"{__name__}.",))
    monkeypatch.setattr(_remembered, "linear", lambda method: isinstance(method, Method))
    return _remembered


class Kernel:
    """Computes one of two ways, which processing chooses."""

    def __init__(self):
        self.way, self.scale, self.list = None, 1.0, []

    def plain(self, layer, rows):
        return rows @ layer.weight.t() * self.scale

    def turned(self, layer, rows):
        return rows @ layer.weight * self.scale


class Method:
    def __init__(self):
        self.kernel = Kernel()

    def process_weights_after_loading(self, layer):
        layer.weight.data = layer.weight.t().contiguous()
        layer.hint, layer.zeros = "turned", None
        self.kernel.way, self.kernel.scale = self.kernel.turned, 2.0

    def apply(self, layer, rows, bias):
        return self.kernel.way(layer, rows)


def a_model(seed):
    import torch

    layer = torch.nn.Module()
    generator = torch.Generator().manual_seed(seed)
    for name in ("weight", "zeros"):
        layer.register_parameter(name, torch.nn.Parameter(torch.randn(8, 4, generator=generator), requires_grad=False))
    layer.quant_method, layer.input_size_per_partition = Method(), 4
    model = torch.nn.Module()
    model.layer = layer
    return model


def processed(remembered, spoil=None):
    model = a_model(0)
    watch = remembered.Watch(model)
    model.layer.quant_method.process_weights_after_loading(model.layer)
    if spoil:
        spoil(model.layer)
    return model, watch


def test_what_processing_leaves_is_set_in_another_model(remembered):
    import torch

    model, watch = processed(remembered)
    changes = json.loads(json.dumps(watch.changes()))
    told = changes["layer"]
    assert told["state"][""] == {"hint": ["value", "turned"]} and told["none"] == ["zeros"]
    assert told["state"]["quant_method.kernel"] == {"way": ["method", "turned"], "scale": ["value", 2.0]}
    probes = remembered.probe(model, changes, torch.float32, torch.device("cpu"))
    other = a_model(1)
    other.layer._parameters["weight"] = model.layer.weight
    remembered.adopt(other, changes)
    method = other.layer.quant_method
    assert other.layer.hint == "turned" and other.layer.zeros is None and method.supports_pre_processed_weights
    assert method.kernel.way.__self__ is method.kernel and method.kernel.way.__name__ == "turned"
    method.process_weights_after_loading(other.layer)  # is left out
    remembered.check(other, probes, torch.float32, torch.device("cpu"))
    method.kernel.scale = 1.0  # as if that had been forgotten
    with pytest.raises(remembered.NotPossible, match="layer computes something else"):
        remembered.check(other, probes, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda layer: setattr(layer, "handle", object()),
        lambda layer: setattr(layer.quant_method.kernel, "way", lambda layer, rows: rows),
        lambda layer: setattr(layer.quant_method, "kernel", Kernel()),
        lambda layer: layer.quant_method.kernel.list.append(1),
        lambda layer: setattr(layer.quant_method.kernel, "way", Kernel().plain),
    ],
)
def test_what_is_no_plain_value_is_not_published(remembered, spoil):
    with pytest.raises(remembered.NotPossible, match="processing has made"):
        processed(remembered, spoil)[1].changes()


def test_what_was_published_of_another_model(remembered):
    changes = processed(remembered)[1].changes()
    with pytest.raises(remembered.NotPossible, match="its layers are others"):
        remembered.adopt(a_model(1), {**changes, "another": changes["layer"]})
    changes["layer"]["state"]["quant_method.other"] = {}
    with pytest.raises(remembered.NotPossible, match="does not have the parts"):
        remembered.adopt(a_model(1), changes)


@pytest.mark.parametrize("file_type", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_the_daemon_converts_as_torch_does(daemon, folder, file_type, wanted):
    """All bits of numbers: subnormal ones, those between two others, and those that are too large; for two ranks."""
    torch = pytest.importorskip("torch")
    import make_safetensors
    import rocmforge
    from rocmforge.vllm import _header, _memory, _sources

    dtype, wanted = getattr(torch, _header.DTYPES[file_type]), getattr(torch, wanted)
    name, shape = "model.layers.0.mlp.up_proj.weight", (512, 256)
    generator = torch.Generator().manual_seed(7)
    bits = torch.randint(-(1 << 31), 1 << 31, shape, generator=generator, dtype=torch.int64)
    floats = bits.to(torch.int32).view(torch.float32).nan_to_num()
    whole = torch.cat([floats[:256], floats[256:] % 8 - 4]).to(dtype)
    header = {name: {"dtype": file_type, "shape": shape, "data_offsets": [0, whole.nbytes]}}
    file = folder / "m.safetensors"
    file.write_bytes(make_safetensors.file_bytes(header, whole.view(torch.uint8).numpy().tobytes()))
    sources = _sources.of([file])
    form = _sources.form(sources, wanted)
    assert (form is None) == (dtype == wanted)
    with rocmforge.connect(daemon.socket) as client:
        for rank in (0, 1):
            with client.load_attach(file, name=f"m{rank}", layout="vllm", tp=(rank, 2), form=form or "auto") as model:
                places = _memory.places(model, sources, rank, 2)
                assert places[name].dtype == wanted
                half = whole[256 * rank : 256 * (rank + 1)].to(wanted)
                assert torch.equal(model[name].torch().view(torch.uint8), half.view(torch.uint8))
                _memory.check_parts(model, places, sources, [file])
                with pytest.raises(_memory.NotPossible):
                    _memory.check_parts(model, _memory.places(model, sources, 1 - rank, 2), sources, [file])


def test_a_form_is_asked_for_if_all_matrices_want_it():
    torch = pytest.importorskip("torch")
    from rocmforge.vllm import _sources

    def of(**dtypes):
        return {name: torch.empty((4,) if name == "norm" else (4, 4), dtype=getattr(torch, dtype), device="meta")
                for name, dtype in dtypes.items()}  # fmt: skip

    half = torch.bfloat16
    assert _sources.form(of(a="float32", b="float32", norm="float32"), half) == "bf16"
    assert _sources.form(of(a="float16", i="int32"), torch.float32) == "f32"
    assert _sources.form(of(a="bfloat16", norm="float32"), half) is None
    assert _sources.form(of(a="float32", b="bfloat16"), half) is None
    assert _sources.form(of(a="float8_e4m3fn"), half) is None
    assert _sources.form(of(norm="float32"), half) is None


# --- what another model has published ---


def of_parts(*parts, length=8, dtype="float32", bias=True):
    import torch

    model = torch.nn.Module()
    for part in parts:
        layer = torch.nn.Linear(64, 32, bias=bias, dtype=getattr(torch, dtype))
        layer.register_buffer("positions", torch.arange(length), persistent=False)
        setattr(model, part, layer)
    return model


@pytest.fixture
def published(daemon):
    """A model of two parts, of which processing has removed a parameter; and what was published of it."""
    pytest.importorskip("torch")
    import rocmforge
    from rocmforge.vllm import _processed

    model = of_parts("text", "vision")
    made = _processed.made(model)
    model.text.bias = None
    tensors, told = _processed.export(model)
    with rocmforge.connect(daemon.socket) as client:
        with client.publish("m", tensors, metadata={"vllm": {**told, "made": made}}, key="k", device="host") as resident:
            yield model, resident, resident.metadata()["vllm"]


def adopts(published, make):
    import torch
    from rocmforge.vllm import _build, _processed

    _, resident, told = published
    bare = _build.Bare(make)
    try:
        return bare, _processed.adopt(bare, resident, told, torch.device("cpu"))
    except _build.NotPossible:
        assert all(parameter.is_meta for parameter in bare.model.parameters())  # nothing was changed
        raise


def test_a_model_that_was_made_alike_gets_what_was_published(published):
    import torch
    from rocmforge.vllm import _processed

    bare, report = adopts(published, lambda: of_parts("text", "vision"))
    _processed.drop_the_rest(bare.model)
    assert set(dict(bare.model.named_parameters())) == {"text.weight", "vision.weight", "vision.bias"}
    assert torch.equal(bare.model.vision.weight, published[0].vision.weight) and report.shared_bytes == 2 * 64 * 32 * 4


@pytest.mark.parametrize(
    "parts, made, why",
    [
        (("text", "vision", "audio"), {}, r"audio\.bias is not there, and here parameter float32 \[32\] \(3 tensors differ"),
        (("text",), {}, r"vision\.bias is parameter float32 \[32\], and here not there"),
        (("text", "vision"), {"length": 16}, r"text\.positions is buffer int64 \[8\], and here buffer int64 \[16\]"),
        (("text", "vision"), {"dtype": "float16"}, r"text\.bias is parameter float32 \[32\], and here parameter float16"),
        (("text", "vision"), {"bias": False}, r"text\.bias is parameter float32 \[32\], and here not there"),
    ],
)
def test_a_model_that_was_made_otherwise_does_not(published, parts, made, why):
    from rocmforge.vllm._build import NotPossible

    with pytest.raises(NotPossible, match=why):
        adopts(published, lambda: of_parts(*parts, **made))


# --- headers ---


def test_a_header(folder):
    import make_safetensors

    make_safetensors.write(folder / "m.safetensors", {"a": ("F16", (4, 8)), "b": ("F8_E4M3", ())}, {"format": "pt"})
    assert _header.read(folder / "m.safetensors") == {"a": ("F16", (4, 8)), "b": ("F8_E4M3", ())}
    file = folder / "m.safetensors"
    assert _header.places([file], ["b"]) == {"b": (file, file.stat().st_size - 1)}


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b"\x08\0\0\0\0\0\0\0" + b'{"a":1} '])
def test_no_header(folder, data):
    (folder / "m.safetensors").write_bytes(data)
    with pytest.raises(ValueError):
        _header.read(folder / "m.safetensors")


# --- keys ---


def test_a_key_differs_with_each_part():
    parts = {"version": "0.32", "dtype": "torch.float16", "ranks": [0, 2], "config": {"layers": 2}}
    others = [{"version": "0.33"}, {"dtype": "torch.bfloat16"}, {"ranks": [1, 2]}, {"config": {"layers": 3}}]
    keys = {_keys.key({**parts, **other}) for other in others} | {_keys.key(parts)}
    assert len(keys) == 5 and all(len(key) == 64 for key in keys)
    assert _keys.key(parts) == _keys.key(dict(reversed(list(parts.items()))))


def test_a_part_that_is_no_text_is_refused_or_made_text():
    with pytest.raises(TypeError):
        _keys.key({"a": object()})
    plain = _keys.plain({"a": {2, 1}, "b": (1, None), "c": 1.5, 4: True})
    assert plain == {"a": ["1", "2"], "b": [1, None], "c": "float 1.5", "4": True}
    json.dumps(plain)


def test_a_key_has_each_setting_of_a_setting():
    @dataclasses.dataclass
    class Images:
        limit: int = 1
        only: bool = dataclasses.field(default=False, repr=False)

    plain = [_keys.plain({"images": images}) for images in (Images(), Images(0), Images(only=True))]
    assert plain[0] == {"images": {"Images": {"limit": 1, "only": False}}}
    assert len({_keys.key(one) for one in plain}) == 3


def test_files_are_told_apart(folder):
    file, copy = folder / "a", folder / "b"
    file.write_bytes(b"1234")
    copy.write_bytes(b"1234")
    before = _keys.files_identity([file])
    assert before == _keys.files_identity([file]) != _keys.files_identity([copy])
    os.utime(file, ns=(1, 1))
    assert _keys.files_identity([file]) != before


def test_names_of_models_that_are_loaded(folder):
    file = folder / "a"
    file.write_bytes(b"1")
    whole = _keys.names("/models/Qwen3-8B", [file], {"layout": "vllm", "tp": (0, 1)})
    assert whole[:2] == [None, "Qwen3-8B.vllm"] and len(whole) == 3
    part = _keys.names("/models/Qwen3-8B", [file], {"layout": "vllm", "tp": (1, 2)})
    assert part[0] is None and len(part) == 2
    file.write_bytes(b"22")
    assert _keys.names("/models/Qwen3-8B", [file], {"layout": "vllm", "tp": (1, 2)})[1] not in (part[1], whole[2])


@pytest.mark.parametrize(
    "model, begin",
    [("/models/Qwen3-8B/", "Qwen3-8B."), ("org/name", "name."), ("-x", "x."), ("a b", "a_b."), ("/", "model."),
     ("n" * 200, "nnn")],
)  # fmt: skip
def test_names_of_published_weights(model, begin):
    name = _keys.name(model, "0123456789abcdef" * 4)
    assert name.startswith(begin) and name.endswith(".vllm-0123456789abcdef") and len(name) <= 127


# --- options ---


def test_options():
    assert _options.read(None) == _options.read({}) == _options.Options()
    assert _options.read({"ways": ["copy"], "load": False}).ways == ("copy",)
    assert not _options.read({"ways": []}).may("view")


@pytest.mark.parametrize(
    "extra", [{"other": 1}, {"load": "no"}, {"ways": "view"}, {"ways": ["fast"]}, {"deadline": 0}, {"deadline": True}]
)
def test_wrong_options(extra):
    with pytest.raises(ValueError):
        _options.read(extra)


@pytest.mark.parametrize("value, strict", [(None, False), ("", False), ("0", False), ("1", True)])
def test_strict(monkeypatch, value, strict):
    monkeypatch.delenv("ROCMFORGE_STRICT", raising=False)
    if value is not None:
        monkeypatch.setenv("ROCMFORGE_STRICT", value)
    assert _options.strict() is strict


def test_a_report_says_what_is_shared():
    report = _report.Report("view", "m", 8_000_000, 512, {"norm": "why"})
    assert str(report) == "8.0 MB shared, 512 B copied, of m (1 parameters have memory of their own)"
