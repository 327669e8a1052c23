"""All of the package is Python, but for a few lines of C: before 3.12, Python does not let a class that is written in it
have the buffer protocol. Where they cannot be compiled, the package is installed without them.
"""
import sys

from setuptools import Extension, setup

exporter = Extension("rocmforge._exporter", ["src/rocmforge/_exporter.c"], optional=True)
setup(ext_modules=[exporter] if sys.version_info < (3, 12) else [])
