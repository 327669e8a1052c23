#!/usr/bin/env python3
"""Prints the directories of the headers and of the libraries of an nvcc: one line each, separated by semicolons.

usage: cuda_paths.py NVCC
"""
import os
import re
import subprocess
import sys

out = subprocess.run([sys.argv[1], "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null"], capture_output=True, text=True)
for name, flag in (("INCLUDES", "-I"), ("LIBRARIES", "-L")):
    line = re.search(rf"^#\$ {name}=(.*)$", out.stderr, re.M)
    paths = re.findall(rf'"?{flag}([^"\s]+)"?', line[1]) if line else []
    print(";".join(os.path.realpath(p) for p in paths if os.path.isdir(p)))
