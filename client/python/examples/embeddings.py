#!/usr/bin/env python3
"""Sentence embeddings by all-MiniLM-L6-v2, in NumPy alone, on weights that the daemon has.

    embeddings.py MODEL.gguf [SENTENCE...]

Then the same without the daemon: the file is read and decoded by the gguf package, in a process of its own.
"""
import json
import math
import sys
import unicodedata

import numpy as np
from measure import in_processes_of_their_own, memory, timed, told

import rocmforge

SENTENCES = ["A dog is barking.", "The hound howls loudly.", "Stock prices fell on Monday."]


# --- the tokenizer of BERT: words, cut into the longest pieces that there are ---


def words(text):
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    spaced = "".join(f" {c} " if unicodedata.category(c)[0] in "PS" else c for c in text)
    return spaced.split()


def tokenize(text, vocabulary):
    ids = [vocabulary["[CLS]"]]
    for word in words(text):
        begin = 0
        pieces = []
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = word[begin:end] if begin == 0 else f"##{word[begin:end]}"
                if piece in vocabulary:
                    pieces.append(vocabulary[piece])
                    begin = end
                    break
            else:
                pieces = [vocabulary["[UNK]"]]
                break
        ids += pieces
    return [*ids, vocabulary["[SEP]"]]


# --- the model ---


def gelu(x):
    # The error function by Abramowitz and Stegun 7.1.26, right to 1.5e-7: NumPy has none.
    z = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return x * 0.5 * (1 + np.sign(x) * (1 - polynomial * np.exp(-z * z)))


class Encoder:
    """weights: a function from names to arrays."""

    def __init__(self, weights, metadata):
        self.w = weights
        self.layers = metadata["bert.block_count"]
        self.heads = metadata["bert.attention.head_count"]
        self.epsilon = metadata["bert.attention.layer_norm_epsilon"]
        self.vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}

    def linear(self, x, name):
        return x @ self.w(f"{name}.weight").T + self.w(f"{name}.bias")

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return x * self.w(f"{name}.weight") + self.w(f"{name}.bias")

    def attention(self, x, block):
        q, k, v = (self.linear(x, f"{block}.attn_{part}").reshape(len(x), self.heads, -1).swapaxes(0, 1) for part in "qkv")
        scores = q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ v
        return self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), f"{block}.attn_output")

    def __call__(self, text):
        ids = tokenize(text, self.vocabulary)
        x = self.w("token_embd.weight")[ids] + self.w("position_embd.weight")[: len(ids)] + self.w("token_types.weight")[0]
        x = self.norm(x, "token_embd_norm")
        for i in range(self.layers):
            block = f"blk.{i}"
            x = self.norm(x + self.attention(x, block), f"{block}.attn_output_norm")
            x = self.norm(x + self.linear(gelu(self.linear(x, f"{block}.ffn_up")), f"{block}.ffn_down"), f"{block}.layer_output_norm")
        mean = x.mean(0)
        return mean / np.linalg.norm(mean)


# --- both ways ---


def without_daemon(path, sentences):
    """The weights by the gguf package."""
    import gguf

    times = {}
    with timed(times, "reading and decoding the file"):
        reader = gguf.GGUFReader(path)
        weights = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    with timed(times, "embedding"):
        encoder = Encoder(weights.__getitem__, metadata)
        result = np.stack([encoder(text) for text in sentences])
    return times, memory(), result


def with_daemon(path, sentences):
    times = {}
    with timed(times, "loading it, if it is not there, and attaching"):
        model = rocmforge.load_attach(path, form="f32", device="host")  # NumPy computes there
    with timed(times, "metadata"):
        metadata = model.metadata()
    with timed(times, "embedding"):
        encoder = Encoder(model.numpy, metadata)
        result = np.stack([encoder(text) for text in sentences])
    used = memory()
    model.close()
    return times, used, result


def main():
    if sys.argv[1:2] == ["--without"]:
        times, used, result = without_daemon(sys.argv[2], sys.argv[3:])
        print(json.dumps([times, used, result.tolist()]))
        return
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    path, sentences = sys.argv[1], sys.argv[2:] or SENTENCES
    times, used, result = with_daemon(path, sentences)
    told("With the daemon", times, used)
    [(other_times, other_used, other)] = in_processes_of_their_own(1, "--without", path, *sentences)
    told("Without it", other_times, other_used)
    print(f"The same numbers: {bool(np.array_equal(result, np.array(other, result.dtype)))}")
    for sentence, row in zip(sentences, result @ result.T):
        print("  ", " ".join(f"{value:6.3f}" for value in row), "", sentence)


if __name__ == "__main__":
    main()
