"""Writes safetensors files, right ones and others."""
import json
import os
import random
import struct
from math import prod

BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8,
        "F8_E8M0": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
        "F64": 64, "I64": 64, "U64": 64, "C64": 64}  # fmt: skip


def file_bytes(header, data=b""):
    """A file with this header, which is JSON or will be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def contents(dtype, shape, rng):
    """Bytes that a tensor of this type can have; numbers are finite and small."""
    n = prod(shape)
    if dtype == "F32":
        return struct.pack(f"<{n}f", *(rng.uniform(-8, 8) for _ in range(n)))
    if dtype == "F64":
        return struct.pack(f"<{n}d", *(rng.uniform(-8, 8) for _ in range(n)))
    if dtype == "F16":
        return struct.pack(f"<{n}e", *(rng.uniform(-8, 8) for _ in range(n)))
    if dtype == "BF16":
        return b"".join(struct.pack("<f", rng.uniform(-8, 8))[2:] for _ in range(n))
    return rng.randbytes(n * BITS[dtype] // 8)


def write(path, tensors, metadata=None, seed=0):
    """tensors: name → (dtype, shape). Returns name → bytes."""
    rng = random.Random(seed)
    header, parts, at, told = {}, [], 0, {}
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape) in tensors.items():
        part = contents(dtype, shape, rng)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(part)]}
        at += len(part)
        parts.append(part)
        told[name] = part
    path.write_bytes(file_bytes(header, b"".join(parts)))
    return told


def write_large(path, shapes):
    """A file of F16 tensors, of any size: one piece of finite random numbers again and again. shapes: name → shape.
    Under that name there is a whole file or none, however this ends. Returns the bytes of all tensors."""
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + 2 * prod(shape)]}
        at += 2 * prod(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pattern = random.Random(1).randbytes(4 << 20).translate(bytes(byte & 0xBB for byte in range(256)))
    part, left = f"{path}.part", at
    with open(part, "wb") as file:
        file.write(file_bytes(text))
        while left > 0:
            left -= file.write(memoryview(pattern)[:left])
    os.replace(part, path)
    return at


def llama_shapes(layers, embedding, feed_forward, vocabulary):
    """The tensors of a Llama model as Hugging Face names and sorts them."""
    shapes = {"lm_head.weight": (vocabulary, embedding), "model.embed_tokens.weight": (vocabulary, embedding),
              "model.norm.weight": (embedding,)}
    for n in range(layers):
        layer = f"model.layers.{n}."
        shapes |= {layer + f"{norm}_layernorm.weight": (embedding,) for norm in ("input", "post_attention")}
        shapes |= {layer + f"self_attn.{name}_proj.weight": (embedding, embedding) for name in "qkvo"}
        shapes |= {layer + f"mlp.{name}_proj.weight": (feed_forward, embedding) for name in ("gate", "up")}
        shapes[layer + "mlp.down_proj.weight"] = (embedding, feed_forward)
    return dict(sorted(shapes.items()))


def write_folder(folder, shards, index=True):
    """A folder as Hugging Face's: an index, and a file for each of `shards`. Returns name → bytes of all."""
    told, names = {}, {}
    for i, tensors in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        told.update(write(folder / file, tensors, {"format": "pt"}, seed=i))
        names.update(dict.fromkeys(tensors, file))
    if index:
        of = {"metadata": {"total_size": sum(map(len, told.values()))}, "weight_map": names}
        (folder / "model.safetensors.index.json").write_text(json.dumps(of))
    return told
