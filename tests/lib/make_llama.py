#!/usr/bin/env python3
"""Writes a GGUF file of random blocks that llama.cpp runs: a llama with a tokenizer of bytes and made-up words. What it
says means nothing, but it is always the same for the same file.

    make_llama.py OUT --shape tiny --type q4_0
    make_llama.py OUT --shape 7b --type f16

Shapes: tiny; moe, the same with experts; padded and padded-large, whose rows are no multiple of 512 elements; small,
about 60 MB as q4_0; 7b; narrow-f16 and narrow-q4_0, about 50 MB in this type, with as many layers and tokens as 7b: what
an engine does once for each layer or token takes as long as with 7b.
"""
import argparse
import struct
import sys
from dataclasses import dataclass

from make_model import ARRAY, F32, STRING, U32, Tensor, load_types, string, write_model

I32, BOOL, U64 = 5, 7, 10
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of tokens


@dataclass(frozen=True)
class Shape:
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    vocabulary: int
    experts: int = 0


SHAPES = {
    "tiny": Shape(4, 512, 1024, 8, 600),
    "moe": Shape(3, 512, 512, 8, 600, experts=4),
    "padded": Shape(3, 544, 1088, 8, 600),
    "padded-large": Shape(8, 2304, 6208, 36, 8000),
    "small": Shape(8, 1024, 2816, 16, 8000),
    "7b": Shape(32, 4096, 11008, 32, 32000),
    "narrow-f16": Shape(32, 192, 512, 6, 32000),
    "narrow-q4_0": Shape(32, 384, 1024, 12, 32000),
}


def words(vocabulary):
    """A token's text and kind, for each. Every byte has one, so that any prompt can be said."""
    yield "<unk>", UNKNOWN
    yield "<s>", CONTROL
    yield "</s>", CONTROL
    for byte in range(256):
        yield f"<0x{byte:02X}>", BYTE
    for i in range(259, vocabulary):
        yield f"\u2581w{i}", NORMAL


def metadata(shape, layers=None):
    """How many entries there are, and their bytes. layers: the number that stands in the file, if another."""
    tokens = list(words(shape.vocabulary))
    numbers = {
        "llama.context_length": 4096,
        "llama.embedding_length": shape.embedding,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.rope.dimension_count": shape.embedding // shape.heads,
        "llama.vocab_size": shape.vocabulary,
        "general.quantization_version": 2,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if shape.experts:
        numbers["llama.expert_count"] = shape.experts
        numbers["llama.expert_used_count"] = 2
    entries = [string(key) + struct.pack("<II", U32, value) for key, value in numbers.items()]
    kind, layers = ("<II", shape.layers) if layers is None else ("<IQ", layers)
    entries.append(string("llama.block_count") + struct.pack(kind, U32 if kind == "<II" else U64, layers))
    texts = {"general.architecture": "llama", "general.name": "random blocks", "tokenizer.ggml.model": "llama"}
    entries += [string(key) + struct.pack("<I", STRING) + string(value) for key, value in texts.items()]
    entries.append(string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", F32, 1e-5))
    arrays = {
        "tokens": (STRING, b"".join(string(text) for text, _ in tokens)),
        "scores": (F32, struct.pack(f"<{len(tokens)}f", *(-float(i) for i in range(len(tokens))))),
        "token_type": (I32, struct.pack(f"<{len(tokens)}i", *(kind for _, kind in tokens))),
    }
    for name, (kind, data) in arrays.items():
        entries.append(string(f"tokenizer.ggml.{name}") + struct.pack("<IIQ", ARRAY, kind, len(tokens)) + data)
    return len(entries), b"".join(entries)


def tensors(shape, type_, f32, tied):
    e, f = shape.embedding, shape.feed_forward
    yield Tensor("token_embd.weight", type_, (e, shape.vocabulary))
    for n in range(shape.layers):
        blk = f"blk.{n}."
        yield Tensor(blk + "attn_norm.weight", f32, (e,))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield Tensor(f"{blk}{name}.weight", type_, (e, e))
        yield Tensor(blk + "ffn_norm.weight", f32, (e,))
        if shape.experts:
            yield Tensor(blk + "ffn_gate_inp.weight", f32, (e, shape.experts))
        suffix, many = ("_exps", (shape.experts,)) if shape.experts else ("", ())
        yield Tensor(f"{blk}ffn_gate{suffix}.weight", type_, (e, f, *many))
        yield Tensor(f"{blk}ffn_up{suffix}.weight", type_, (e, f, *many))
        yield Tensor(f"{blk}ffn_down{suffix}.weight", type_, (f, e, *many))
    yield Tensor("output_norm.weight", f32, (e,))
    if not tied:
        yield Tensor("output.weight", type_, (e, shape.vocabulary))


U16 = 2


def split_metadata(shape, number, count, total):
    """Of one of several files: all of it stands in the first."""
    n, data = metadata(shape) if number == 0 else (0, b"")
    entries = [string(f"split.{name}") + struct.pack("<IH", U16, value) for name, value in (("no", number), ("count", count))]
    entries.append(string("split.tensors.count") + struct.pack("<Ii", I32, total))
    return n + len(entries), data + b"".join(entries)


def make_split(folder, shape="tiny", type_="q4_0", count=3, seed=1):
    """Writes `count` files of one model and returns their paths."""
    types = load_types()
    all_tensors = list(tensors(SHAPES[shape], types[type_], types["f32"], False))
    paths, share = [], -(-len(all_tensors) // count)
    for number in range(count):
        paths.append(folder / f"{shape}-{number + 1:05}-of-{count:05}.gguf")
        some = all_tensors[number * share : (number + 1) * share]
        write_model(paths[-1], some, split_metadata(SHAPES[shape], number, count, len(all_tensors)), seed + number)
    return paths


def make_lora(path, shape="tiny", rank=8, seed=1):
    """An adapter for the first layer's attn_q, with as much weight as the model's own."""
    f32 = load_types()["f32"]
    e = SHAPES[shape].embedding
    texts = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    entries = [string(key) + struct.pack("<I", STRING) + string(value) for key, value in texts.items()]
    entries.append(string("adapter.lora.alpha") + struct.pack("<If", F32, 800.0))
    name = "blk.0.attn_q.weight.lora_"
    both = [Tensor(name + "a", f32, (e, rank)), Tensor(name + "b", f32, (rank, e))]
    write_model(path, both, (len(entries), b"".join(entries)), seed)


def make_control_vector(path, shape="tiny", seed=1):
    """A direction for each layer but the first (--control-vector)."""
    f32 = load_types()["f32"]
    entries = [string("general.architecture") + struct.pack("<I", STRING) + string("controlvector")]
    layers = range(1, SHAPES[shape].layers)
    write_model(path, [Tensor(f"direction.{n}", f32, (SHAPES[shape].embedding,)) for n in layers], (1, entries[0]), seed)


def make_mmproj(path, shape="tiny", image=64, patch=16, embedding=64, feed_forward=128, layers=3, seed=1):
    """A projector for pictures (--mmproj), in the layout of LLaVA's: each picture becomes (image / patch)^2 embeddings."""
    f32 = load_types()["f32"]
    texts = {"general.architecture": "clip", "clip.projector_type": "mlp"}
    numbers = {
        "embedding_length": embedding,
        "feed_forward_length": feed_forward,
        "attention.head_count": 4,
        "block_count": layers,
        "projection_dim": SHAPES[shape].embedding,
        "image_size": image,
        "patch_size": patch,
    }
    entries = [string(key) + struct.pack("<I", STRING) + string(value) for key, value in texts.items()]
    entries += [string(f"clip.{key}") + struct.pack("<IB", BOOL, 1) for key in ("has_vision_encoder", "use_gelu")]
    entries += [string(f"clip.vision.{key}") + struct.pack("<II", U32, value) for key, value in numbers.items()]
    entries.append(string("clip.vision.attention.layer_norm_epsilon") + struct.pack("<If", F32, 1e-5))
    for key in ("image_mean", "image_std"):
        entries.append(string(f"clip.vision.{key}") + struct.pack("<IIQ3f", ARRAY, F32, 3, 0.5, 0.5, 0.5))
    shapes = {
        "v.patch_embd.weight": (patch, patch, 3, embedding),
        "v.position_embd.weight": (embedding, (image // patch) ** 2),
        "mm.0.weight": (embedding, SHAPES[shape].embedding),
        "mm.0.bias": (SHAPES[shape].embedding,),
        "mm.2.weight": (SHAPES[shape].embedding, SHAPES[shape].embedding),
        "mm.2.bias": (SHAPES[shape].embedding,),
    }
    for n in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes[f"v.blk.{n}.{name}.weight"] = (embedding, embedding)
        shapes[f"v.blk.{n}.ffn_up.weight"] = (embedding, feed_forward)
        shapes[f"v.blk.{n}.ffn_down.weight"] = (feed_forward, embedding)
        for name in ("ln1", "ln2"):
            shapes |= {f"v.blk.{n}.{name}.{part}": (embedding,) for part in ("weight", "bias")}
    write_model(path, [Tensor(name, f32, one) for name, one in shapes.items()], (len(entries), b"".join(entries)), seed)


def make(path, shape="tiny", type_="q4_0", tied=False, seed=1, layers=None):
    types = load_types()
    all_tensors = list(tensors(SHAPES[shape], types[type_], types["f32"], tied))
    write_model(path, all_tensors, metadata(SHAPES[shape], layers), seed)
    return all_tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--tied", action="store_true", help="no output.weight: the embeddings serve twice")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    made = make(args.out, args.shape, args.type, args.tied, args.seed)
    print(f"{args.out}: {len(made)} tensors, {sum(t.size for t in made) / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
