#!/usr/bin/env python3
"""Writes a GGUF file of random but valid blocks. Needs nothing but Python.

    make_model.py OUT --tensors 20 --bytes 64M --types q4_0,f16
    make_model.py OUT --shape-preset 7b --layers 32 --types q4_0

Every scale is finite and of a believable size, so that every type decodes to finite numbers that fit float16. Blocks
repeat: each type has about a mebibyte of random ones, and a tensor is made of pieces that begin at random places in it.
The same arguments give the same bytes.
"""
import argparse
import itertools
import os
import random
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

ALIGNMENT = 32
PATTERN_BYTES = 1 << 20
U32, F32, STRING, ARRAY = 4, 6, 8, 9

TYPES_DEF = Path(__file__).resolve().parents[2] / "kernels" / "types.def"

# Where each type keeps the bytes that must not be just any byte, and what they may be: the high byte of an f16 (here
# 2^-9 to 2^-5, either sign), of a bf16 or f32, an exponent byte.
HALF = bytes(sign | high for sign in (0x00, 0x80) for high in range(0x18, 0x28))
VALID_BYTES = {
    "f32": {3: b"\x3c\x3d\xbc\xbd"},
    "f16": {1: HALF},
    "bf16": {1: b"\x3c\x3d\xbc\xbd"},
    "f64": {7: b"\x3f\xbf", 6: b"\xa0\xb0\xc0"},
    "q4_0": {1: HALF},
    "q4_1": {1: HALF, 3: HALF},
    "q5_0": {1: HALF},
    "q5_1": {1: HALF, 3: HALF},
    "q8_0": {1: HALF},
    "q2_K": {81: HALF, 83: HALF},
    "q3_K": {109: HALF},
    "q4_K": {1: HALF, 3: HALF},
    "q5_K": {1: HALF, 3: HALF},
    "q6_K": {209: HALF},
    "iq2_xxs": {1: HALF},
    "iq2_xs": {1: HALF},
    "iq3_xxs": {1: HALF},
    "iq1_s": {1: HALF},
    "iq4_nl": {1: HALF},
    "iq3_s": {1: HALF},
    "iq2_s": {1: HALF},
    "iq4_xs": {1: HALF},
    # The scale's top four bits are the top nibble of the last of four words.
    "iq1_m": {55: bytes(sign | low for sign in (0x10, 0x90) for low in range(16))},
    "tq1_0": {53: HALF},
    "tq2_0": {65: HALF},
    "mxfp4": {0: bytes(range(116, 124))},
    "nvfp4": {i: bytes(range(0x40)) for i in range(4)},
    "q1_0": {1: HALF},
    "q2_0": {1: HALF},
}


@dataclass(frozen=True)
class TensorType:
    id: int
    name: str
    elements: int
    bytes: int


@dataclass(frozen=True)
class Tensor:
    name: str
    type: TensorType
    shape: tuple  # fastest dimension first, as in the file

    @property
    def size(self):
        rows = 1
        for n in self.shape[1:]:
            rows *= n
        return rows * row_bytes(self.type, self.shape[0])


def row_bytes(type_, columns):
    return columns // type_.elements * type_.bytes


def load_types():
    """The types that may stand in a file, from the table that the daemon is built of."""
    line = re.compile(r'TYPE_(PLAIN|QUANTISED)_DEF\(\s*(\d+),\s*\w+,\s*"(\w+)",\s*(\d+)(?:,\s*(\d+))?\)')
    types = {}
    for kind, id_, name, first, second in line.findall(TYPES_DEF.read_text(encoding="utf-8")):
        elements, size = (1, int(first)) if kind == "PLAIN" else (int(first), int(second))
        types[name] = TensorType(int(id_), name, elements, size)
    return types


def parse_size(text):
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text} is not a size: 500M, 1.5G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def pattern(type_, rng):
    """About a mebibyte of whole random blocks, twice over, so that a piece may begin at any block of the first half."""
    blocks = PATTERN_BYTES // type_.bytes
    data = bytearray(rng.randbytes(blocks * type_.bytes))
    for offset, choices in VALID_BYTES.get(type_.name, {}).items():
        table = bytes(choices[i % len(choices)] for i in range(256))
        data[offset :: type_.bytes] = data[offset :: type_.bytes].translate(table)
    return memoryview(bytes(data + data))


def write_blocks(out, size, type_, blocks, rng):
    half = len(blocks) // 2
    while size > 0:
        start = rng.randrange(half // type_.bytes) * type_.bytes
        piece = min(size, half)
        out.write(blocks[start : start + piece])
        size -= piece


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def metadata(layers, embedding, feed_forward, heads, vocabulary):
    """What a llama model says of itself, with a vocabulary of so many."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"token{i}" for i in range(3, vocabulary)]
    entries = [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "random blocks"),
        ("general.quantization_version", U32, 2),
        ("llama.block_count", U32, layers),
        ("llama.context_length", U32, 4096),
        ("llama.embedding_length", U32, embedding),
        ("llama.feed_forward_length", U32, feed_forward),
        ("llama.attention.head_count", U32, heads),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, tokens),
    ]
    data = b""
    for key, type_, value in entries:
        data += string(key) + struct.pack("<I", type_)
        if type_ == STRING:
            data += string(value)
        elif type_ == ARRAY:
            data += struct.pack("<IQ", STRING, len(value)) + b"".join(map(string, value))
        else:
            data += struct.pack("<I" if type_ == U32 else "<f", value)
    return len(entries), data


def llama_shapes(layers, embedding, feed_forward, vocabulary):
    """Names and shapes in the order of the usual converters; True: a vector that is never quantised."""
    yield "token_embd.weight", (embedding, vocabulary), False
    for n in range(layers):
        yield f"blk.{n}.attn_norm.weight", (embedding,), True
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{n}.{name}.weight", (embedding, embedding), False
        yield f"blk.{n}.ffn_norm.weight", (embedding,), True
        yield f"blk.{n}.ffn_gate.weight", (embedding, feed_forward), False
        yield f"blk.{n}.ffn_up.weight", (embedding, feed_forward), False
        yield f"blk.{n}.ffn_down.weight", (feed_forward, embedding), False
    yield "output_norm.weight", (embedding,), True
    yield "output.weight", (embedding, vocabulary), False


def preset_tensors(shapes, types, f32):
    cycle = itertools.cycle(types)
    return [Tensor(name, f32 if vector else next(cycle), shape) for name, shape, vector in shapes]


def sized_tensors(count, size, types):
    """`count` matrices of about size / count bytes each, named as in a llama model, their types in turn."""
    names = (name for name, _, vector in llama_shapes(count, 1, 1, 1) if not vector)
    share = max(size // count, 1)
    tensors = []
    for name, type_ in zip(itertools.islice(names, count), itertools.cycle(types)):
        columns = 256
        while columns < 8192 and row_bytes(type_, columns * 2) * 64 <= share:
            columns *= 2
        tensors.append(Tensor(name, type_, (columns, max(share // row_bytes(type_, columns), 1))))
    return tensors


def write_header(out, tensors, n_kv, kv):
    """Everything before the tensor data, whose position it returns."""
    infos, offset = bytearray(), 0
    for tensor in tensors:
        infos += string(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        infos += struct.pack("<IQ", tensor.type.id, offset)
        offset += tensor.size + -tensor.size % ALIGNMENT
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), n_kv) + kv + infos
    return out.write(header + bytes(-len(header) % ALIGNMENT))


def write_model(path, tensors, meta, seed):
    """Under that name there is a whole file or none, however this ends."""
    rng = random.Random(seed)
    patterns = {type_: pattern(type_, rng) for type_ in dict.fromkeys(t.type for t in tensors)}
    part = f"{path}.part"
    with open(part, "wb") as out:
        write_header(out, tensors, *meta)
        for tensor in tensors:
            write_blocks(out, tensor.size, tensor.type, patterns[tensor.type], rng)
            out.write(bytes(-tensor.size % ALIGNMENT))
    os.replace(part, path)


def main():
    types = load_types()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--tensors", type=int, default=20, metavar="N")
    parser.add_argument("--bytes", type=parse_size, default="64M", metavar="SIZE")
    parser.add_argument("--types", default="q4_0,q8_0,f16,f32", help="in turn; 'all' for every type there is")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shape-preset", choices=["7b"], help="shapes of a llama model; --tensors and --bytes are unused")
    parser.add_argument("--layers", type=int, default=32, metavar="N", help="of a preset")
    args = parser.parse_args()

    names = list(types) if args.types == "all" else args.types.split(",")
    unknown = [name for name in names if name not in types]
    if unknown:
        parser.error(f"no such type: {', '.join(unknown)}; there are {', '.join(types)}")
    chosen = [types[name] for name in names]
    if args.shape_preset == "7b":
        tensors = preset_tensors(llama_shapes(args.layers, 4096, 11008, 32000), chosen, types["f32"])
        meta = metadata(args.layers, 4096, 11008, 32, 32000)
    else:
        tensors = sized_tensors(args.tensors, args.bytes, chosen)
        meta = metadata(args.tensors, 256, 256, 4, 100)
    write_model(args.out, tensors, meta, args.seed)
    print(f"{args.out}: {len(tensors)} tensors, {sum(t.size for t in tensors) / 1e6:.0f} MB of {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
