#!/usr/bin/env python3
"""Writes a text file as the lines of a C string literal, for #include in place of a string."""
import sys

source, target = sys.argv[1:]
with open(source, encoding="utf-8") as text, open(target, "w", encoding="utf-8") as out:
    for line in text:
        escaped = line.rstrip("\n").replace("\\", "\\\\").replace('"', '\\"')
        out.write(f'"{escaped}\\n"\n')
