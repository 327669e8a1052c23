#!/usr/bin/env python3
"""Writes an assembler file that embeds a binary one as `rocmforge_kernels`.

usage: embed.py BINARY OUTPUT.S

The build does not know what .incbin reads. The digest in the output changes when the binary changes, so that the build
assembles it again.
"""
import hashlib
import pathlib
import sys

binary, output = map(pathlib.Path, sys.argv[1:])
digest = hashlib.sha256(binary.read_bytes()).hexdigest()
path = str(binary.resolve()).replace("\\", "\\\\").replace('"', '\\"')
output.write_text(
    f"""/* {digest} */
    .section .rodata
    .balign 4096
    .globl rocmforge_kernels
    .hidden rocmforge_kernels
    .type rocmforge_kernels, %object
rocmforge_kernels:
    .incbin "{path}"
    .size rocmforge_kernels, . - rocmforge_kernels
    .byte 0
    .section .note.GNU-stack, "", %progbits
"""
)
