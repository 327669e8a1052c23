"""A client of tests/gpu/test_gpu_share.py, in a process of its own: share_child.py BUILD SOCKET MODEL WHAT.

    hold     attaches, prints the digests of its tensors as JSON, and prints them again for each line that it reads
    open     attaches and detaches, so that the GPU's runtime has started, and prints when it had the memory, in seconds since
             1970; the same again, by a new connection, for each line that it reads
    write    attaches, writes to its first tensor with a kernel (or a copy), and prints what came of it as JSON
    attach   attaches and detaches a thousand times, and prints as JSON how many descriptors it had before and after
"""
import ctypes
import hashlib
import json
import os
import re
import sys
import time
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from librocmforge import Client  # noqa: E402

TENSORS = 6
ATTACHES = 1000

# Writes `value` to `at`.
PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry write(.param .u64 at, .param .u32 value)
{
    .reg .u64 %rd<3>;
    .reg .u32 %r<2>;
    ld.param.u64 %rd1, [at];
    ld.param.u32 %r1, [value];
    cvta.to.global.u64 %rd2, %rd1;
    st.global.u32 [%rd2], %r1;
    ret;
}
"""


def say(what):
    print(json.dumps(what), flush=True)


def digests(model):
    tensors = list(model)
    chosen = tensors[:: max(1, len(tensors) // TENSORS)]
    return {tensor.name: hashlib.sha256(model.read(tensor)).hexdigest() for tensor in chosen}


class Cuda:
    """A kernel that writes, through CUDA's driver, in the context that the library uses too."""

    def __init__(self):
        self.driver = ctypes.CDLL("libcuda.so.1")
        context, module, self.kernel = c_void_p(), c_void_p(), c_void_p()
        self.need("cuInit", c_uint(0))
        self.need("cuDevicePrimaryCtxRetain", byref(context), c_int(0))
        self.need("cuCtxSetCurrent", context)
        self.need("cuModuleLoadData", byref(module), c_char_p(PTX))
        self.need("cuModuleGetFunction", byref(self.kernel), module, c_char_p(b"write"))

    def call(self, name, *arguments):
        return getattr(self.driver, name)(*arguments)

    def need(self, name, *arguments):
        result = self.call(name, *arguments)
        if result != 0:
            raise SystemExit(f"{name} returned {result}")

    def own_memory(self):
        at = c_uint64()
        self.need("cuMemAlloc_v2", byref(at), c_size_t(4096))
        return at.value

    def write(self, at, value):
        """0, or the error."""
        pointer, number = c_uint64(at), c_uint32(value)
        parameters = (c_void_p * 2)(ctypes.addressof(pointer), ctypes.addressof(number))
        one = c_uint(1)
        launched = self.call("cuLaunchKernel", self.kernel, one, one, one, one, one, one, c_uint(0), None, parameters, None)
        return launched or self.call("cuCtxSynchronize")

    def read(self, at):
        value = c_uint32()
        self.need("cuMemcpyDtoH_v2", byref(value), c_uint64(at), c_size_t(4))
        return value.value


class Hip:
    """The same with a copy, through the runtime that the library has loaded."""

    def __init__(self):
        with open("/proc/self/maps", encoding="ascii") as maps:
            path = next(iter(re.findall(r"\S*/libamdhip64\.so\S*", maps.read())))
        self.runtime = ctypes.CDLL(path)
        self.need("hipSetDevice", 0)

    def need(self, name, *arguments):
        result = getattr(self.runtime, name)(*arguments)
        if result != 0:
            raise SystemExit(f"{name} returned {result}")

    def own_memory(self):
        at = c_void_p()
        self.need("hipMalloc", byref(at), c_size_t(4096))
        return at.value

    def write(self, at, value):
        number = c_uint32(value)
        copied = self.runtime.hipMemcpy(c_void_p(at), byref(number), c_size_t(4), 1)
        return copied or self.runtime.hipDeviceSynchronize()

    def read(self, at):
        value = c_uint32()
        self.need("hipMemcpy", byref(value), c_void_p(at), c_size_t(4), 2)
        return value.value


def hold(model):
    say(digests(model))
    while sys.stdin.readline():
        say(digests(model))


def open_again(build, socket, name):
    while True:
        with Client(build, socket) as client, client.attach(name):
            say(time.time())
        if not sys.stdin.readline():
            return


def write(model):
    tensor = next(tensor for tensor in model if tensor.bytes >= 4)
    runtime = Cuda() if model.device.startswith("cuda") else Hip()
    own = runtime.own_memory()
    control = runtime.write(own, 0xDEADBEEF), runtime.read(own) == 0xDEADBEEF
    say({"control": control, "error": runtime.write(tensor.data, 0xDEADBEEF)})
    os._exit(0)  # after the fault the runtime is of no use, not even to detach


def attach(client, name):
    with client.attach(name):
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(ATTACHES):
        with client.attach(name):
            pass
    say([before, len(os.listdir("/proc/self/fd"))])


def main():
    build, socket, name, what = sys.argv[1:]
    if what == "open":
        open_again(build, socket, name)
        return
    with Client(build, socket) as client:
        if what == "attach":
            attach(client, name)
            return
        with client.attach(name) as model:
            {"hold": hold, "write": write}[what](model)


main()
