"""Layouts from Python: groups are tensors of the model, and parts find the numbers of heads beside the files."""
import asyncio
import json

import make_safetensors
import pytest
import rocmforge
import rocmforge.aio

HEADS, KV_HEADS, HEAD, WIDTH = 8, 2, 16, 64
CONFIG = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}


@pytest.fixture
def llama(folder):
    """A folder as Hugging Face's, and the bytes of its tensors."""
    place = folder / "llama"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"text_config": CONFIG}))
    base = "model.layers.0."
    shapes = {"self_attn.k_proj": [KV_HEADS * HEAD, WIDTH], "self_attn.q_proj": [HEADS * HEAD, WIDTH],
              "self_attn.v_proj": [KV_HEADS * HEAD, WIDTH], "mlp.up_proj": [96, WIDTH], "mlp.gate_proj": [96, WIDTH],
              "mlp.down_proj": [WIDTH, 96]}  # fmt: skip
    tensors = {f"{base}{name}.weight": ("F16", shape) for name, shape in shapes.items()}
    return place, make_safetensors.write_folder(place, [tensors])


QKV = "model.layers.0.self_attn.qkv_proj.weight"
MEMBERS = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]


def test_groups_are_tensors(rf, llama):
    path, told = llama
    reply = rf.load(path, name="m", layout="vllm")
    assert reply["model"].get("layout") == "vllm"
    with rf.attach("m") as model:
        assert QKV in model and model[QKV].is_view and not model[MEMBERS[0]].is_view
        assert model.info(QKV)["view"] is True and "view" not in model.info(MEMBERS[0])
        assert model[QKV].read() == b"".join(told[name] for name in MEMBERS)
        assert model[QKV].shape == ((HEADS + 2 * KV_HEADS) * HEAD, WIDTH)
        assert model[QKV].offset == model[MEMBERS[0]].offset
        assert model[MEMBERS[1]].read() == told[MEMBERS[1]]
        assert len(model) == len(told) + 2 == len(list(model))
    assert rf.plan(path, layout="vllm")["model"]["name"] == "m"


def test_parts(rf, llama):
    """By (rank, size), or by a dictionary; the daemon is told the heads."""
    path, told = llama
    for name, tp in (("a", (1, 2)), ("b", {"rank": 1, "size": 2})):
        model = rf.load(path, name=name, layout="vllm", tp=tp)["model"]
        assert model["tp"] == {"rank": 1, "size": 2, "heads": HEADS, "kvHeads": KV_HEADS}
    assert rf.load(path, name="whole", layout="vllm", tp=(0, 1))["model"].get("tp") is None
    assert rf.load(path, layout="vllm", tp=(0, 2))["model"]["name"] == "llama.tp0of2"
    with rf.load_attach(path, layout="vllm", tp=(1, 2)) as model:
        row = WIDTH * 2
        q, kv = HEADS * HEAD // 2 * row, KV_HEADS * HEAD // 2 * row
        want = told[MEMBERS[0]][q:] + told[MEMBERS[1]][kv:] + told[MEMBERS[2]][kv:]
        assert model[QKV].read() == want
        assert model["model.layers.0.mlp.down_proj.weight"].shape == (WIDTH, 48)


def test_what_does_not_fit(rf, llama):
    path, _ = llama
    with pytest.raises(rocmforge.InvalidLayout) as error:
        rf.load(path, layout="vllm", tp=(0, 3))
    assert error.value.tensor and "no multiple of 3" in str(error.value)
    group = {"name": "g", "members": [MEMBERS[0], "nothing"]}
    with pytest.raises(rocmforge.InvalidLayout, match="no such tensor: 'nothing': group 'g'"):
        rf.plan(path, groups=[group])
    with pytest.raises(rocmforge.InvalidParameter):
        rf.load(path, layout="sglang")


def test_asyncio(daemon, llama):
    path, told = llama

    async def main():
        async with rocmforge.aio.connect(daemon.socket) as rf:
            groups = [{"name": "kv", "members": MEMBERS[1:], "stack": 1}]
            await rf.load(path, name="m", groups=groups)
            with await rf.attach("m") as model:
                assert model["kv"].shape == (2, KV_HEADS * HEAD, WIDTH)
                assert model["kv"].read() == told[MEMBERS[1]] + told[MEMBERS[2]]

    asyncio.run(main())
