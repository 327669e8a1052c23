"""Models in the layout of an engine: what stands as neighbours, in which order, and which part of it. Every byte is held
against NumPy's own concatenation, permutation or slice of the same file, loaded as it is."""
import json
import os
import subprocess

import make_model
import make_safetensors
import pytest
from harness import (
    ROOT,
    build_folder,
    daemon_program,
    fake_gpu_folder,
    hold_program,
    library_environment,
    module_folder,
    wire_error,
)
from make_model import Tensor, load_types, write_model

numpy = pytest.importorskip("numpy")

TYPES = load_types()
HEADS, KV_HEADS, HEAD, WIDTH, DEEP, VOCABULARY, LAYERS = 8, 2, 32, 256, 384, 300, 2
CONFIG = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "architectures": ["LlamaForCausalLM"]}


@pytest.fixture(params=["host", "hip"])
def there(request, start, monkeypatch):
    """A daemon whose models are on the host, or on a GPU of the tests' own."""
    if request.param == "host":
        return start()
    if not fake_gpu_folder():
        pytest.skip("this build has no module for AMD GPUs (hipcc is not installed)")
    for name, value in {"LD_LIBRARY_PATH": fake_gpu_folder(), "ROCMFORGE_MODULE_DIR": module_folder()}.items():
        monkeypatch.setenv(name, str(value))
    return start("--device", "hip")


class Loaded:
    """A loaded model, and its tensors as rows of bytes."""

    def __init__(self, daemon, path, name, **options):
        self.daemon, self.name = daemon, name
        with daemon.client() as client:
            self.reply = client.call("Load", path=str(path), name=name, **options)
            assert client.call("Verify", name=name)["mismatches"] == []
            self.tensors = {tensor["name"]: tensor for tensor in client.call("Show", name=name)["tensors"]}
            attached = client.call("Attach", name=name)
            assert attached["tensors"] == list(self.tensors.values())
            fd = client.fds[attached["fd"]] if attached["device"]["kind"] == "host" else None
            size = attached["model"]["bytes"]
            self.memory = os.pread(fd, size, 0) if fd is not None else None

    def bytes(self, name):
        tensor = self.tensors[name]
        if self.memory is None:
            done = self.daemon.rfctl("dump", self.name, name, text=False, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout
        return self.memory[tensor["offset"] : tensor["offset"] + tensor["size"]]

    def rows(self, name):
        """Along the first dimension."""
        shape = self.tensors[name]["shape"]
        return numpy.frombuffer(self.bytes(name), numpy.uint8).reshape(shape[0], -1)

    def padding(self, name):
        tensor = self.tensors[name]
        end = tensor["offset"] + tensor["size"]
        return self.memory[end : end + tensor.get("padding", 0)]


def llama_tensors(dtype="BF16", biases=False, experts=0):
    """As Hugging Face's files of a Llama, in an order of their own."""
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    tensors = {"lm_head.weight": (dtype, [VOCABULARY, WIDTH]), "model.embed_tokens.weight": (dtype, [VOCABULARY, WIDTH])}
    for layer in range(LAYERS):
        base = f"model.layers.{layer}."
        shapes = {"self_attn.k_proj": [kv, WIDTH], "self_attn.o_proj": [WIDTH, q], "self_attn.q_proj": [q, WIDTH],
                  "self_attn.v_proj": [kv, WIDTH]}  # fmt: skip
        names = [f"block_sparse_moe.experts.{i}." for i in reversed(range(experts))] or ["mlp."]
        for name in names:
            down, gate, up = ("w2", "w1", "w3") if experts else ("down_proj", "gate_proj", "up_proj")
            shapes[name + down], shapes[name + gate], shapes[name + up] = [WIDTH, DEEP], [DEEP, WIDTH], [DEEP, WIDTH]
        if experts:
            shapes["block_sparse_moe.gate"] = [experts, WIDTH]
        for name, shape in shapes.items():
            tensors[f"{base}{name}.weight"] = (dtype, shape)
            if biases and "self_attn" in name:
                tensors[f"{base}{name}.bias"] = (dtype, shape[:1])
        tensors[f"{base}input_layernorm.weight"] = (dtype, [WIDTH])
    tensors["model.norm.weight"] = (dtype, [WIDTH])
    return tensors


def write_llama(folder, config=CONFIG, **options):
    """A folder with two files and config.json."""
    folder.mkdir()
    tensors = list(llama_tensors(**options).items())
    make_safetensors.write_folder(folder, [dict(tensors[:9]), dict(tensors[9:])])
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def layer_names(layer, kind="weight"):
    base = f"model.layers.{layer}."
    return {
        f"{base}self_attn.qkv_proj.{kind}": [f"{base}self_attn.{name}_proj.{kind}" for name in "qkv"],
        f"{base}mlp.gate_up_proj.{kind}": [f"{base}mlp.{name}_proj.{kind}" for name in ("gate", "up")],
    }


def check_group(model, group, members, plain=None):
    """The group is its members one behind the other; with `plain`, as they are in that model."""
    source = plain or model
    whole = numpy.concatenate([source.rows(name) for name in members])
    tensor = model.tensors[group]
    assert tensor["view"] is True and tensor["offset"] == model.tensors[members[0]]["offset"]
    assert tensor["shape"][0] == len(whole) and numpy.array_equal(model.rows(group), whole)
    assert tensor["offset"] % 256 == 0
    for one, next_one in zip(members, members[1:]):
        assert model.tensors[one]["offset"] + model.tensors[one]["size"] == model.tensors[next_one]["offset"]


@pytest.mark.parametrize("form", ["auto", "f32", "f16"])
@pytest.mark.parametrize("biases", [False, True])
def test_vllm(there, folder, form, biases):
    path = write_llama(folder / "m", biases=biases)
    plain = Loaded(there, path, "plain", form=form)
    model = Loaded(there, path, "m", form=form, layout="vllm")
    assert model.reply["model"]["layout"] == "vllm" and "layout" not in plain.reply["model"]
    assert model.reply["model"]["id"] != plain.reply["model"]["id"]
    groups = {name for name, tensor in model.tensors.items() if tensor.get("view")}
    expected = {}
    for layer in range(LAYERS):
        expected.update(layer_names(layer))
        if biases:
            name, members = next(iter(layer_names(layer, "bias").items()))
            expected[name] = members
    assert groups == set(expected)
    for group, members in expected.items():
        check_group(model, group, members, plain)
    for name in plain.tensors:
        assert model.bytes(name) == plain.bytes(name), name
        assert model.tensors[name]["shape"] == plain.tensors[name]["shape"]
    assert model.reply["model"]["tensors"] == len(plain.tensors) == len(model.tensors) - len(groups)


def test_experts(there, folder):
    path = write_llama(folder / "m", experts=11)
    plain, model = Loaded(there, path, "plain"), Loaded(there, path, "m", layout="vllm")
    base = "model.layers.1.block_sparse_moe.experts."
    w13, w2 = f"{base}w13_weight", f"{base}w2_weight"
    assert model.tensors[w13]["shape"] == [11, 2 * DEEP, WIDTH] and model.tensors[w2]["shape"] == [11, WIDTH, DEEP]
    want = [plain.bytes(f"{base}{i}.{name}.weight") for i in range(11) for name in ("w1", "w3")]
    assert model.bytes(w13) == b"".join(want)
    assert model.bytes(w2) == b"".join(plain.bytes(f"{base}{i}.w2.weight") for i in range(11))
    assert not any("gate_up" in name for name in model.tensors)


@pytest.mark.parametrize("left_out", [("w1", "w2", "w3"), ("w3",), ("w2",)])
def test_an_expert_is_missing(there, folder, left_out):
    """Those before it would be stacked as if they were all."""
    base = "model.layers.1.block_sparse_moe.experts."
    gone = [f"{base}3.{name}.weight" for name in left_out]
    tensors = {name: told for name, told in llama_tensors(experts=5).items() if name not in gone}
    make_safetensors.write(folder / "m.safetensors", tensors)
    with there.client() as client, wire_error("InvalidLayout") as error:
        client.call("Load", path=str(folder / "m.safetensors"), layout="vllm")
    assert error["reason"].startswith("expert 3 is missing or not complete"), error
    assert error["tensor"].startswith((f"{base}3.", f"{base}4.")), error
    plain = Loaded(there, folder / "m.safetensors", "plain")
    names = [f"{base}{i}.w2.weight" for i in (0, 1)]
    group = {"name": "some", "members": names}
    asked = Loaded(there, folder / "m.safetensors", "asked", layout="vllm", groups=[group])
    check_group(asked, "some", names, plain)


def test_experts_without_gates(there, folder):
    """Each has w2, and no other that is stacked."""
    tensors = {name: told for name, told in llama_tensors(experts=5).items() if ".w3." not in name}
    make_safetensors.write(folder / "m.safetensors", tensors)
    model = Loaded(there, folder / "m.safetensors", "m", layout="vllm")
    base = "model.layers.0.block_sparse_moe.experts."
    assert model.tensors[f"{base}w2_weight"]["shape"] == [5, WIDTH, DEEP] and f"{base}w13_weight" not in model.tensors


def heads_of(rank, size):
    """Rows of q, and of k and v, as vLLM gives them to a process."""
    q = HEADS // size * HEAD
    kv = (KV_HEADS // size if KV_HEADS >= size else 1) * HEAD
    first = rank if KV_HEADS >= size else rank // (size // KV_HEADS)
    return slice(rank * q, (rank + 1) * q), slice(first * kv, (first + 1) * kv)


def part_of(plain, name, rank, size):
    """What a process has of a tensor: rows of bytes."""
    rows = plain.rows(name)
    q, kv = heads_of(rank, size)
    module, kind = name.split(".")[-2:]
    if module == "q_proj":
        return rows[q]
    if module in ("k_proj", "v_proj"):
        return rows[kv]
    if module in ("gate_proj", "up_proj", "w1", "w3"):
        return numpy.split(rows, size)[rank]
    if module in ("o_proj", "down_proj", "w2") and kind == "weight":
        return numpy.split(rows, size, axis=1)[rank]
    if module in ("embed_tokens", "lm_head"):
        padded = numpy.zeros((-(-len(rows) // 64) * 64, rows.shape[1]), numpy.uint8)
        padded[: len(rows)] = rows
        return numpy.split(padded, size)[rank]
    return rows


@pytest.mark.parametrize("form", ["auto", "f32"])
@pytest.mark.parametrize("size", [2, 4])
def test_vllm_in_parts(there, folder, form, size):
    path = write_llama(folder / "m", biases=True)
    plain = Loaded(there, path, "plain", form=form)
    for rank in {0, size // 2, size - 1}:
        tp = {"rank": rank, "size": size}
        model = Loaded(there, path, f"m{rank}", form=form, layout="vllm", tp=tp)
        assert model.reply["model"]["tp"] == tp
        for name in plain.tensors:
            assert numpy.array_equal(model.rows(name), part_of(plain, name, rank, size)), name
        for layer in range(LAYERS):
            for kind in ("weight", "bias"):
                for group, members in layer_names(layer, kind).items():
                    if "mlp" in group and kind == "bias":
                        continue
                    check_group(model, group, members)


def test_parts_of_experts(there, folder):
    path = write_llama(folder / "m", experts=3)
    plain = Loaded(there, path, "plain")
    model = Loaded(there, path, "m", layout="vllm", tp={"rank": 1, "size": 2})
    base = "model.layers.0.block_sparse_moe.experts."
    assert model.tensors[f"{base}w13_weight"]["shape"] == [3, DEEP, WIDTH]
    assert model.tensors[f"{base}w2_weight"]["shape"] == [3, WIDTH, DEEP // 2]
    for name in plain.tensors:
        assert numpy.array_equal(model.rows(name), part_of(plain, name, 1, 2)), name


def test_fused_in_the_file(there, folder):
    """Phi-3's files have q, k and v as one tensor, and gate and up."""
    rows = (HEADS + 2 * KV_HEADS) * HEAD
    shapes = {"self_attn.qkv_proj": [rows, WIDTH], "mlp.gate_up_proj": [2 * DEEP, WIDTH], "mlp.down_proj": [WIDTH, DEEP]}
    (folder / "config.json").write_text(json.dumps({"text_config": CONFIG}))
    path = folder / "m.safetensors"
    make_safetensors.write(path, {f"model.layers.0.{name}.weight": ("F16", shape) for name, shape in shapes.items()})
    plain = Loaded(there, path, "plain")
    model = Loaded(there, path, "m", layout="vllm", tp={"rank": 2, "size": 4})
    q, kv = heads_of(2, 4)
    whole = plain.rows("model.layers.0.self_attn.qkv_proj.weight")
    parts = numpy.split(whole, [HEADS * HEAD, (HEADS + KV_HEADS) * HEAD])
    want = numpy.concatenate([parts[0][q], parts[1][kv], parts[2][kv]])
    assert numpy.array_equal(model.rows("model.layers.0.self_attn.qkv_proj.weight"), want)
    gate, up = numpy.split(plain.rows("model.layers.0.mlp.gate_up_proj.weight"), 2)
    want = numpy.concatenate([numpy.split(gate, 4)[2], numpy.split(up, 4)[2]])
    assert numpy.array_equal(model.rows("model.layers.0.mlp.gate_up_proj.weight"), want)
    # Nothing is joined, so without parts it is the same model.
    assert Loaded(there, path, "same", layout="vllm").reply["model"]["id"] == plain.reply["model"]["id"]


def write_gguf(path, type_, shapes, architecture="llama", heads=HEADS, kv_heads=KV_HEADS):
    n, data = make_model.metadata(1, WIDTH, DEEP, heads, 10)
    data = data.replace(make_model.string("llama"), make_model.string(architecture), 1)
    key = make_model.string("llama.attention.head_count_kv")
    meta = n + 1, data + key + (4).to_bytes(4, "little") + kv_heads.to_bytes(4, "little")
    write_model(path, [Tensor(name, TYPES[kind or type_], shape) for name, (kind, shape) in shapes.items()], meta, 3)


def gguf_shapes(width=WIDTH):
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    return {
        "token_embd.weight": (None, (width, 40)),
        "blk.0.attn_norm.weight": ("f32", (width,)),
        "blk.0.attn_q.weight": (None, (width, q)),
        "blk.0.attn_k.weight": (None, (width, kv)),
        "blk.0.attn_v.weight": (None, (width, kv)),
        "blk.0.attn_q.bias": ("f32", (q,)),
    }


@pytest.mark.parametrize("type_, form", [("q4_0", "native"), ("q8_0", "auto"), ("bf16", "auto")])
def test_vllm_of_a_gguf_file(there, folder, type_, form):
    """One with the names of Hugging Face. The heads stand in its metadata."""
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    shapes = {"q_proj": (WIDTH, q), "k_proj": (WIDTH, kv), "v_proj": (WIDTH, kv), "o_proj": (q, WIDTH)}
    path = folder / "m.gguf"
    base = "model.layers.0.self_attn."
    write_gguf(path, type_, {f"{base}{name}.weight": (None, shape) for name, shape in shapes.items()})
    plain = Loaded(there, path, "plain", form=form)
    check_group(Loaded(there, path, "m", form=form, layout="vllm"), *list(layer_names(0).items())[0], plain)
    part = Loaded(there, path, "part", form=form, layout="vllm", tp={"rank": 1, "size": 2})
    check_group(part, *list(layer_names(0).items())[0])
    for name in plain.tensors:
        assert numpy.array_equal(part.rows(name), part_of(plain, name, 1, 2)), name


def unpaired(rows, heads):
    """As transformers has the rows of q and k."""
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("form", ["native", "auto", "f32", "bf16"])
@pytest.mark.parametrize("type_", ["q4_0", "q8_0", "f16", "bf16", "f32"])
def test_hf(there, folder, type_, form):
    path = folder / "m.gguf"
    write_gguf(path, type_, gguf_shapes())
    plain, model = Loaded(there, path, "plain", form=form), Loaded(there, path, "m", form=form, layout="hf")
    assert set(model.tensors) == set(plain.tensors)
    for name in plain.tensors:
        rows, heads = plain.rows(name), {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
        assert numpy.array_equal(model.rows(name), unpaired(rows, heads) if heads else rows), name
        assert not heads or not numpy.array_equal(model.rows(name), rows)


def test_hf_of_large_rows(there, folder):
    """Pieces of several slots."""
    path = folder / "m.gguf"
    write_gguf(path, "q8_0", {"blk.0.attn_q.weight": (None, (8192, 4096)), "blk.0.attn_k.weight": (None, (32, 2048))}, heads=32)
    for form in ("native", "f16"):
        plain = Loaded(there, path, f"p{form}", form=form)
        model = Loaded(there, path, f"m{form}", form=form, layout="hf")
        for name, heads in (("blk.0.attn_q.weight", 32), ("blk.0.attn_k.weight", KV_HEADS)):
            assert numpy.array_equal(model.rows(name), unpaired(plain.rows(name), heads))


def test_hf_changes_nothing_elsewhere(daemon, folder, real_model):
    with daemon.client() as client:
        first = client.call("Load", path=str(real_model), name="m")["model"]
        second = client.call("Load", path=str(real_model), layout="hf")["model"]
        planned = client.call("Plan", path=str(real_model), layout="hf")
    assert second["id"] == first["id"] == planned["model"]["id"] and "layout" not in second


@pytest.mark.parametrize("form", ["native", "auto"])
@pytest.mark.parametrize("type_", ["q4_0", "q8_0", "f16", "bf16"])
def test_groups(there, folder, type_, form):
    """A request's own: joined, stacked, reordered, and in parts."""
    path = folder / "m.gguf"
    write_gguf(path, type_, gguf_shapes(width=160))
    members = [f"blk.0.attn_{name}.weight" for name in "qkv"]
    groups = [
        {"name": "qkv", "members": members, "cut": "rows"},
        {"name": "blk.0.attn_q.bias", "members": ["blk.0.attn_q.bias"], "heads": HEADS},
        {"name": "embeddings", "members": ["token_embd.weight"], "stack": 1},
    ]
    plain, model = Loaded(there, path, "plain", form=form), Loaded(there, path, "m", form=form, groups=groups)
    check_group(model, "qkv", members, plain)
    assert model.tensors["embeddings"]["shape"] == [1, 40, 160]
    assert numpy.array_equal(model.rows("blk.0.attn_q.bias"), unpaired(plain.rows("blk.0.attn_q.bias"), HEADS))
    assert "view" not in model.tensors["blk.0.attn_q.bias"]
    if form == "native" and type_ == "q4_0":
        # Rows of 160 elements: ggml may read on to 512. Inside of the group the next member stands there.
        pads = [model.tensors[name].get("padding", 0) for name in [*members, "qkv"]]
        assert pads == [0, 0, (512 - 160) // 32 * 18, (512 - 160) // 32 * 18]
        if model.memory:
            assert model.padding("qkv") == bytes(pads[-1])
    part = Loaded(there, path, "part", form=form, groups=groups, tp={"rank": 1, "size": 2})
    want = numpy.concatenate([numpy.split(plain.rows(name), 2)[1] for name in members])
    assert numpy.array_equal(part.rows("qkv"), want)


def test_columns_end_between_blocks(there, folder):
    path = folder / "m.gguf"
    write_gguf(path, "q8_0", {"a": (None, (192, 50)), "b": (None, (192, 50))})
    group = {"name": "ab", "members": ["a", "b"], "cut": "columns"}
    for form in ("native", "f16"):
        plain = Loaded(there, path, f"p{form}", form=form)
        part = Loaded(there, path, f"m{form}", form=form, groups=[group], tp={"rank": 2, "size": 3})
        check_group(part, "ab", ["a", "b"])
        for name in ("a", "b"):
            assert numpy.array_equal(part.rows(name), numpy.split(plain.rows(name), 3, axis=1)[2])
    with there.client() as client:
        with wire_error("InvalidLayout") as error:
            client.call("Load", path=str(path), groups=[group], tp={"rank": 0, "size": 4})
        assert error["tensor"] == "a" and "blocks of q8_0" in error["reason"] and error["group"] == "ab"


def refused(client, path, method="Load", **options):
    with wire_error("InvalidLayout") as error:
        client.call(method, path=str(path), **options)
    assert client.call("List")["models"] == []
    return error


def test_groups_that_cannot_be(daemon, folder):
    path = folder / "m.gguf"
    write_gguf(path, "f16", {"a": (None, (64, 8)), "b": (None, (64, 4)), "c": (None, (32, 8)), "d": ("f32", (64, 8))})

    def group(*members, name="g", **more):
        return {"name": name, "members": list(members), **more}

    with daemon.client() as client:
        for method in ("Load", "Plan"):
            for groups, tensor, reason in (
                ([group("a", "x")], "x", "the model has no such tensor"),
                ([group("a", "a")], "a", "the tensor is a member twice"),
                ([group("a", "b"), group("b", name="h")], "b", "the tensor is a member twice"),
                ([group("a", "c")], "c", "the members' shapes cannot be joined"),
                ([group("a", "d")], "d", "the members have different types"),
                ([group("a", "b", stack=1)], "b", "what is stacked has different shapes"),
                ([group("a", "b", "c", stack=2)], "a", "the members are no multiple of what is stacked"),
                ([group("a", "b", name="c")], None, "the group has the name of a tensor"),
                ([group("a"), group("b")], None, "two groups have the same name"),
                ([group("a", heads=3)], "a", "8 rows cannot be those of 3 heads in 1 parts"),
            ):
                error = refused(client, path, method, groups=groups)
                assert (error.get("tensor"), error["reason"]) == (tensor, reason)
            error = refused(client, path, method, groups=[group("a", "b")], forms=[{"match": "b", "form": "f32"}])
            assert error["tensor"] == "b" and "another form" in error["reason"]
            error = refused(client, path, method, groups=[group("b", cut="rows")], tp={"rank": 0, "size": 3})
            assert error == {"reason": "4 rows are no multiple of 3", "tensor": "b", "group": "g"}


def test_parts_that_cannot_be(daemon, folder):
    path = write_llama(folder / "m")
    with daemon.client() as client:
        error = refused(client, path, layout="vllm", tp={"rank": 0, "size": 3})
        assert error["tensor"] and "no multiple of 3" in error["reason"]
        error = refused(client, path, layout="vllm", tp={"rank": 0, "size": 16})
        assert "no multiple of 16" in error["reason"]
    bare = write_llama(folder / "bare", config=None)
    with daemon.client() as client:
        error = refused(client, bare, "Plan", layout="vllm", tp={"rank": 0, "size": 2})
        assert "q_proj" in error["tensor"] or "k_proj" in error["tensor"]
        assert "config.json" in error["reason"]
        tp = {"rank": 0, "size": 2, "heads": HEADS, "kvHeads": KV_HEADS}
        assert client.call("Plan", path=str(bare), layout="vllm", tp=tp)["fits"]
    other = folder / "other.safetensors"
    make_safetensors.write(other, {"something.weight": ("F16", [8, 8])})
    with daemon.client() as client:
        assert refused(client, other, layout="vllm", tp={"rank": 0, "size": 2})["tensor"] == "something.weight"


def test_parameters_that_are_wrong(daemon, folder):
    path = folder / "m.gguf"
    write_gguf(path, "f16", {"a": (None, (64, 8))})
    ok = {"name": "g", "members": ["a"]}
    wrong = [
        ("layout", "VLLM"), ("layout", ""), ("groups", [{}]), ("groups", ["a"]), ("groups", [{"name": "g"}]),
        ("groups", [{"name": "g", "members": []}]), ("groups", [{"name": "", "members": ["a"]}]),
        ("groups", [{"name": "g", "members": [1]}]), ("groups", [{**ok, "more": 1}]), ("groups", [{**ok, "stack": 0}]),
        ("groups", [{**ok, "stack": 1.5}]), ("groups", [{**ok, "cut": "diagonal"}]), ("groups", [{**ok, "heads": -1}]),
        ("groups", [{**ok, "name": "g" * 4096}]), ("tp", {"rank": 0, "size": 2}), ("tp", {"size": 2}),
        ("tp", {"rank": 0}), ("tp", {"rank": 2, "size": 2}), ("tp", {"rank": 0, "size": 0}),
        ("tp", {"rank": -1, "size": 2}), ("tp", {"rank": 0, "size": 1 << 20}), ("tp", {"rank": 0, "size": 1, "x": 1}),
    ]  # fmt: skip
    with daemon.client() as client:
        for parameter, value in wrong:
            for method in ("Load", "Plan"):
                with wire_error("org.varlink.service.InvalidParameter") as error:
                    client.call(method, path=str(path), **{parameter: value})
                assert error["parameter"] == parameter, value
        with wire_error("LimitExceeded") as error:
            client.call("Load", path=str(path), groups=[{"name": f"{i}", "members": ["a"]} for i in range(1025)])
        assert error == {"limit": "groups", "value": 1024}
    # What is larger never gets as far: a message has 8192 values.
    with daemon.client() as client, wire_error("InvalidMessage"):
        client.call("Load", path=str(path), groups=[{"name": f"{i}", "members": ["a"] * 10} for i in range(1000)])


def test_layouts_side_by_side(daemon, folder):
    """The same file in several layouts is several models; the same words, and other words for the same, join them."""
    path = write_llama(folder / "m")
    tp = {"rank": 0, "size": 2}
    with daemon.client() as client:
        plain = client.call("Load", path=str(path), name="plain")["model"]
        fused = client.call("Load", path=str(path), name="fused", layout="vllm")["model"]
        part = client.call("Load", path=str(path), name="part", layout="vllm", tp=tp)["model"]
        assert len({plain["id"], fused["id"], part["id"]}) == 3
        assert part["bytes"] <= fused["bytes"]
        groups = [{"name": name, "members": members} for layer in range(LAYERS) for name, members in layer_names(layer).items()]
        for options, model in (
            ({}, plain),
            ({"layout": "vllm"}, fused),
            ({"layout": "vllm", "tp": {"rank": 0, "size": 1}}, fused),
            ({"layout": "vllm", "tp": tp}, part),
            ({"layout": "vllm", "tp": {**tp, "heads": HEADS, "kvHeads": KV_HEADS}}, part),
            ({"layout": "hf"}, plain),
            ({"groups": groups}, fused),
            ({"layout": "vllm", "form": "bf16"}, fused),
        ):
            planned = client.call("Plan", path=str(path), **options)
            assert planned["model"]["id"] == model["id"], options
            assert client.call("Load", path=str(path), **options)["model"]["id"] == model["id"], options
        other = client.call("Plan", path=str(path), layout="vllm", tp={"rank": 1, "size": 2})
        assert "model" not in other and other["tp"] == {"rank": 1, "size": 2} and other["layout"] == "vllm"
        assert len(client.call("List")["models"]) == 3


@pytest.mark.parametrize("options", [{"layout": "vllm"}, {"layout": "vllm", "tp": {"rank": 1, "size": 4}}], ids=str)
def test_a_new_daemon_knows_the_layout(start, folder, options):
    daemon = start(program=[hold_program(), "--", daemon_program()])
    path = write_llama(folder / "m")
    before = Loaded(daemon, path, "m", **options)
    (folder / "m" / "config.json").unlink()
    with daemon.client() as client:
        pid = client.call("Status")["pid"]
    os.kill(pid, 9)
    daemon.wait_ready()
    after = Loaded(daemon, path, "m", **options)
    assert after.reply["model"]["id"] == before.reply["model"]["id"]
    assert after.tensors == before.tensors and after.memory == before.memory
    for key, value in options.items():
        assert after.reply["model"][key] == value


def test_verify_finds_a_changed_byte(daemon, folder):
    """Of a tensor whose columns are cut: one in this part is found, and another one not."""
    path = folder / "m.safetensors"
    make_safetensors.write(path, {"model.layers.0.mlp.down_proj.weight": ("F16", [64, 64])})
    with daemon.client() as client:
        client.call("Load", path=str(path), name="m", layout="vllm", tp={"rank": 1, "size": 2})
        data = bytearray(path.read_bytes())
        begin = len(data) - 64 * 128
        for offset, changed in ((begin + 128 * 3 + 10, False), (begin + 128 * 3 + 64 + 10, True)):
            data[offset] ^= 1
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(data[offset : offset + 1])
            if changed:
                with wire_error("FileChanged"):
                    client.call("Verify", name="m")
            else:
                assert client.call("Verify", name="m")["mismatches"] == []


def test_parts_have_names_of_their_own(daemon, folder):
    """That of the whole model, and which part it is: by path, by a folder, by a link, and by descriptors."""
    path = write_llama(folder / "m")
    file = path / "model-00001-of-00002.safetensors"
    options = ["--layout", "vllm", "--tp"]
    assert daemon.rfctl("load", path).stdout.startswith("loaded m:")
    for rank, given in enumerate((path, file)):
        assert daemon.rfctl("load", given, *options, f"{rank}/4").stdout.startswith(f"loaded m.tp{rank}of4:")
    assert daemon.rfctl("load", path, *options, "2/4", "--name", "x").stdout.startswith("loaded x:")
    with daemon.client() as client:
        for given in (file, path):
            part = client.call("Load", path=str(given), layout="vllm", tp={"rank": 3, "size": 4})["model"]
            assert part["name"] == "m.tp3of4" and part.get("aliases", []) == []
        whole = client.call("Load", path=str(path), layout="vllm", tp={"rank": 0, "size": 1}, name="v")["model"]
        assert whole["name"] == "v"
        # Another form of the part has no name of its own.
        with wire_error("NameInUse") as error:
            client.call("Load", path=str(path), layout="vllm", tp={"rank": 3, "size": 4}, form="f32")
        assert error["name"] == "m.tp3of4"
        assert {one["name"] for one in client.call("List")["models"]} == {"m", "m.tp0of4", "m.tp1of4", "x", "m.tp3of4", "v"}


def test_rfctl(daemon, folder):
    path = write_llama(folder / "m")
    done = daemon.rfctl("load", path, "--layout", "vllm", "--tp", "1/2", "--name", "m")
    assert "loaded m" in done.stdout
    header, row = daemon.rfctl("ps").stdout.splitlines()
    assert row[header.index("FORM") :].startswith("auto layout=vllm tp=1/2 ")
    shown = daemon.rfctl("show", "m").stdout
    assert "as auto layout=vllm tp=1/2," in shown and "model.layers.1.self_attn.qkv_proj.weight" in shown
    assert "there already: m is resident" in daemon.rfctl("plan", path, "--layout", "vllm", "--tp", "1/2").stdout
    # The program has read config.json: the daemon may have no right to.
    with daemon.client() as client:
        assert client.call("List")["models"][0]["tp"] == {"rank": 1, "size": 2, "heads": HEADS, "kvHeads": KV_HEADS}
    plain = Loaded(daemon, path, "plain")
    name = "model.layers.1.mlp.down_proj.weight"
    dumped = daemon.rfctl("dump", "m", name, text=False).stdout
    assert dumped == part_of(plain, name, 1, 2).tobytes()
    one = daemon.rfctl("plan", path, "--layout", "vllm", "--tp", "3/4", "--name", "other")
    assert "layout=vllm tp=3/4" in one.stdout
    for wrong in ("2/2", "1", "1/0", "a/2", "-1/2", "0/2000", "0/2x", ""):
        refused_one = daemon.rfctl("plan", path, "--layout", "vllm", "--tp", wrong, check=False)
        assert refused_one.returncode == 2 and "one of several: 0/2, 1/2" in refused_one.stderr
    assert daemon.rfctl("plan", path, "--layout", "sglang", check=False).returncode == 2
    refused_one = daemon.rfctl("load", path, "--layout", "vllm", "--tp", "0/3", check=False)
    assert refused_one.returncode == 1 and "the layout does not fit the model" in refused_one.stderr
    assert "no multiple of 3" in refused_one.stderr


def test_the_library_takes_groups(daemon, folder):
    """By its header, from C: what is not in a smaller struct of an older program is zero."""
    program = folder / "groups.c"
    program.write_text(
        """
#include <rocmforge.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    static const char *const members[] = {"b", "a"};
    const rf_group group = {.name = "ba", .members = members, .n_members = 2, .cut = "rows"};
    const rf_load_options options = {
        .size = sizeof(options), .name = "m", .groups = &group, .n_groups = 1, .tp_rank = 1, .tp_size = 2};
    rf_client *client;
    rf_model *model;
    rf_tensor tensor, first;
    if (argc != 3 || rf_connect(argv[1], &client) < 0)
        return 2;
    if (rf_load_attach(client, argv[2], &options, &model) < 0 || rf_model_find(model, "ba", &tensor) < 0 ||
        rf_model_find(model, "b", &first) < 0) {
        fprintf(stderr, "%s\\n", rf_error_message(client));
        return 1;
    }
    printf("%d %d %d %d\\n", (int)tensor.shape[0], (int)(tensor.flags & RF_TENSOR_VIEW),
           (int)(first.flags & RF_TENSOR_VIEW), tensor.data == first.data);
    rf_detach(model);
    rf_close(client);
    return 0;
}
"""
    )
    build = build_folder()
    command = ["cc", program, "-I", ROOT / "client", "-o", folder / "groups", build / "client" / "librocmforge.so"]
    subprocess.run([*command, f"-Wl,-rpath,{build / 'client'}"], check=True)
    path = folder / "m.gguf"
    write_gguf(path, "f16", {"a": (None, (64, 8)), "b": (None, (64, 4))})
    done = subprocess.run(
        [folder / "groups", daemon.socket, path], capture_output=True, text=True, env=library_environment()
    )
    assert (done.stdout, done.stderr) == ("6 1 0 1\n", "")
