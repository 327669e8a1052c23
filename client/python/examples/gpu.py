#!/usr/bin/env python3
"""A model in a GPU's memory, read by PyTorch where it is: what that takes, and what a copy of one's own takes.

    gpu.py MODEL.gguf
"""
import json
import sys

from measure import in_processes_of_their_own, timed, told

import rocmforge


def product(torch, tensors):
    """The sum of the products of all matrices with a vector of ones: it reads every byte."""
    total = 0.0
    for tensor in tensors.values():
        if tensor.ndim == 2 and tensor.is_floating_point():
            total += (tensor @ torch.ones(tensor.shape[1], 1, dtype=tensor.dtype, device=tensor.device)).double().sum().item()
    return total


def with_daemon(path):
    import torch

    times = {}
    torch.ones(1, device="cuda")
    with timed(times, "loading it, if it is not there, and attaching"):
        model = rocmforge.load_attach(path, form="f16")
    free = torch.cuda.mem_get_info()[0]
    with timed(times, f"wrapping {len(model)} tensors"):
        tensors = model.state_dict()
    taken = free - torch.cuda.mem_get_info()[0]
    with timed(times, "reading them all"):
        total = product(torch, tensors)
    return times, taken, total


def without_daemon(path):
    import gguf
    import torch

    times = {}
    torch.ones(1, device="cuda")
    free = torch.cuda.mem_get_info()[0]
    tensors = {}
    with timed(times, "reading, decoding and copying the file"):
        for tensor in gguf.GGUFReader(path).tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            values = torch.from_numpy(values.copy())
            tensors[tensor.name] = (values if values.ndim == 1 else values.half()).cuda()
    taken = free - torch.cuda.mem_get_info()[0]
    with timed(times, "reading them all"):
        total = product(torch, tensors)
    return times, taken, total


def main():
    if sys.argv[1:2] in (["--with"], ["--without"]):
        print(json.dumps({"--with": with_daemon, "--without": without_daemon}[sys.argv[1]](sys.argv[2])))
        return
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for way, title in (("--with", "With the daemon"), ("--without", "Without it")):
        times, taken, total = in_processes_of_their_own(1, way, sys.argv[1])[0]
        told(title, times)
        print(f"  memory of the GPU that this process took: {taken / 1e6:.0f} MB; checksum {total:.6g}")


if __name__ == "__main__":
    main()
