"""Writes small models with random weights as Hugging Face has them: a folder with config.json, safetensors files and a
tokenizer. The kinds are llama and mistral; qwen2, which has biases and whose output layer is the embedding; qwen3 and gemma3,
which have more norms; phi3, whose files have q, k and v as one tensor, and gate and up; mixtral, which has experts; and llama
with quantised layers, see make_hf_quantised.py.

    python3 tests/lib/make_hf.py FOLDER [KIND] [F32|BF16]

Needs numpy.
"""
import json
import sys
from math import prod
from pathlib import Path

import make_hf_quantised
import numpy
from make_safetensors import BITS, file_bytes

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 256, 704, 4, 4, 2, 64, 512
EXPERTS, EXPERT_INTERMEDIATE = 4, 128
QUANTISED_INTERMEDIATE = 768  # whole blocks of each kind
TIED = ("qwen2", "gemma3")  # the output layer is the embedding
WORDS = "one two three four five six seven eight nine ten".split()
SHARDS = 2


def intermediate(kind):
    if kind == "mixtral":
        return EXPERT_INTERMEDIATE
    return QUANTISED_INTERMEDIATE if kind in make_hf_quantised.KINDS else INTERMEDIATE


def mlp(kind, at):
    if kind == "phi3":
        return {f"{at}.mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
                f"{at}.mlp.gate_up_proj.weight": (2 * INTERMEDIATE, HIDDEN)}  # fmt: skip
    if kind != "mixtral":
        return {f"{at}.mlp.down_proj.weight": (HIDDEN, intermediate(kind)),
                f"{at}.mlp.gate_proj.weight": (intermediate(kind), HIDDEN),
                f"{at}.mlp.up_proj.weight": (intermediate(kind), HIDDEN)}  # fmt: skip
    moe = f"{at}.block_sparse_moe"
    told = {f"{moe}.gate.weight": (EXPERTS, HIDDEN)}
    for expert in range(EXPERTS):
        told[f"{moe}.experts.{expert}.w1.weight"] = (EXPERT_INTERMEDIATE, HIDDEN)
        told[f"{moe}.experts.{expert}.w2.weight"] = (HIDDEN, EXPERT_INTERMEDIATE)
        told[f"{moe}.experts.{expert}.w3.weight"] = (EXPERT_INTERMEDIATE, HIDDEN)
    return told


def attention(kind, at):
    told, q, kv = {}, HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    for part, rows in [("qkv", q + 2 * kv)] if kind == "phi3" else [("k", kv), ("q", q), ("v", kv)]:
        if kind == "qwen2":
            told[f"{at}.{part}_proj.bias"] = (rows,)
        told[f"{at}.{part}_proj.weight"] = (rows, HIDDEN)
    if kind in ("qwen3", "gemma3"):
        told.update({f"{at}.{part}_norm.weight": (HEAD_DIM,) for part in "qk"})
    return {**told, f"{at}.o_proj.weight": (HIDDEN, q)}


def shapes(kind):
    """Name → shape, in the order of the files."""
    told = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        told[f"{at}.input_layernorm.weight"] = (HIDDEN,)
        told.update(mlp(kind, at))
        told[f"{at}.post_attention_layernorm.weight"] = (HIDDEN,)
        if kind == "gemma3":
            told.update({f"{at}.{where}_feedforward_layernorm.weight": (HIDDEN,) for where in ("pre", "post")})
        told.update(attention(kind, f"{at}.self_attn"))
    told["model.norm.weight"] = (HIDDEN,)
    if kind not in TIED:
        told["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return told


def values(name, shape, rng):
    """Numbers of such a size that layers neither fade nor explode."""
    if name.endswith("norm.weight"):
        return 1 + 0.1 * rng.standard_normal(shape, dtype=numpy.float32)
    return rng.standard_normal(shape, dtype=numpy.float32) / numpy.float32(shape[-1] ** 0.5)


def as_bytes(array, dtype):
    if dtype == "F32":
        return array.tobytes()
    return (array.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()


def tensors(kind, dtype, rng):
    """Name, dtype, shape and bytes of each tensor, in the order of the files."""
    for name, shape in shapes(kind).items():
        array = values(name, shape, rng)
        if kind in make_hf_quantised.KINDS and "_proj." in name:
            yield from make_hf_quantised.tensors(kind, name, array, rng)
        else:
            yield name, dtype, shape, as_bytes(array, dtype)


# Kind → what config.json has for it beside what all have.
OTHERS = {
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen3": ("Qwen3ForCausalLM", {"attention_bias": False, "use_sliding_window": False}),
    "gemma3": ("Gemma3ForCausalLM", {
        "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": HEAD_DIM,
        "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
    }),
    "phi3": ("Phi3ForCausalLM", {"pad_token_id": 2, "original_max_position_embeddings": 256}),
}  # fmt: skip


def config(kind, dtype):
    common = {
        "hidden_size": HIDDEN, "intermediate_size": intermediate(kind), "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCABULARY,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "bos_token_id": 1, "eos_token_id": 2, "dtype": {"F32": "float32", "BF16": "bfloat16"}[dtype],
        "tie_word_embeddings": kind in TIED,
    }  # fmt: skip
    if kind == "qwen2":
        return {**common, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
    if kind == "mixtral":
        return {**common, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None,
                "num_local_experts": EXPERTS, "num_experts_per_tok": 2}  # fmt: skip
    if kind in OTHERS:
        architecture, more = OTHERS[kind]
        return {**common, "architectures": [architecture], "model_type": kind, **more}
    told = {**common, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    if kind in make_hf_quantised.KINDS:
        told["quantization_config"] = make_hf_quantised.config(kind)
    return told


def tokenizer():
    """A token for each word; the rest of the vocabulary are words with a number."""
    words = ["<unk>", "<s>", "</s>", *WORDS]
    words += [f"word{i}" for i in range(len(words), VOCABULARY)]
    special = [
        {"id": i, "content": words[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i in range(3)
    ]  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip


def write_tokenizer(folder):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def make(folder, kind="llama", dtype="F32", seed=0):
    """Makes the folder. Returns the bytes of all tensors together."""
    folder.mkdir(parents=True, exist_ok=True)
    told = list(tensors(kind, dtype, numpy.random.default_rng(seed)))
    where, total = {}, 0
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header, parts, at = {"__metadata__": {"format": "pt"}}, [], 0
        for name, type_, shape, part in told[shard * len(told) // SHARDS : (shard + 1) * len(told) // SHARDS]:
            assert len(part) * 8 == prod(shape) * BITS[type_], name
            header[name] = {"dtype": type_, "shape": list(shape), "data_offsets": [at, at + len(part)]}
            at += len(part)
            parts.append(part)
            where[name] = file
        (folder / file).write_bytes(file_bytes(header, b"".join(parts)))
        total += at
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(kind, dtype)))
    write_tokenizer(folder)
    return total


if __name__ == "__main__":
    print(make(Path(sys.argv[1]), *sys.argv[2:4]), "bytes")
