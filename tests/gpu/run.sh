#!/usr/bin/env bash
# Everything that needs a GPU: builds, tests, measures. On a machine without one it says so and exits with 77.
#
#   tests/gpu/run.sh [OUT]
#
# OUT: a folder for the tables and JSON; default build/gpu-results.
# ROCMFORGE_GPU_STEPS: which of "tests share daemon layout kernels put loads100 attach reading peers bench save host" to
# run; default all.
# ROCMFORGE_BENCH_OPTIONS: of tests/bench/bench_gpu.py; "--only defaults", say.
# ROCMFORGE_LOADS_OPTIONS: of tests/bench/bench_loads.py; "--seconds 100", say.
# ROCMFORGE_WHEELS: a folder with the wheels of tests/bench/peers.py.
# ROCMFORGE_GPU_BUILD: a build folder that is ready, made elsewhere perhaps: nothing is built.
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." || exit

out=${1:-build/gpu-results}
build=${ROCMFORGE_GPU_BUILD:-build/gpu}
steps=" ${ROCMFORGE_GPU_STEPS:-tests share daemon layout kernels put loads100 attach reading peers bench save host} "
python=${PYTHON:-python3}
PATH=$PATH:/usr/local/cuda/bin:/opt/rocm/bin
failures=()
export PYTHONDONTWRITEBYTECODE=1 # no __pycache__ beside the scripts
export PYTHONUNBUFFERED=1 # what ends before its time has said what it had to say

step() { printf '\n\033[1m%s\033[0m  (%d s)\n' "$*" "$SECONDS"; }
wanted() { [[ $steps == *" $1 "* ]]; }

# What there is decides what is built.
options=(-Dtests=enabled -Dman=disabled)
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    kind=cuda
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | tr -d . | sed 's/^/sm_/' | paste -sd,)
    options+=(-Dcuda=enabled -Dhip=disabled "-Dcuda-archs=$capability")
elif [[ -e /dev/kfd ]]; then
    kind=hip
    options+=(-Dhip=enabled -Dcuda=disabled)
else
    echo "no GPU: neither nvidia-smi nor /dev/kfd" >&2
    exit 77
fi

mkdir -p "$out"
if [[ -z ${ROCMFORGE_GPU_BUILD:-} ]]; then
    step "Building for $kind"
    [[ -f $build/build.ninja ]] || meson setup "$build" "${options[@]}" || exit 1
    ninja -C "$build" || exit 1
fi

# Runs a command, for so many seconds at most: whatever hangs is not to take the time of what comes after it. What it
# prints stands in $out/NAME.txt too.
limited() { # NAME SECONDS COMMAND...
    timeout --kill-after=10 "${@:2}" 2>&1 | tee "$out/$1.txt" | grep --line-buffered -v '^\[ RUN'
    local status=${PIPESTATUS[0]}
    ((status == 0)) && return
    if ((status == 124 || status == 137)); then
        echo "$1 took more than $2 s, and was ended"
        failures+=("$1 (more than $2 s)")
    else
        failures+=("$1")
    fi
}

# A test program: 77 is a device that is not there, which there is. EXPORT: how memory is exported, fd or ipc; the
# default is what the device can.
run_test() { # PROGRAM [EXPORT]
    local name=$1${2:+_$2}
    step "$name"
    ROCMFORGE_TEST_MODULE=$build/daemon/device/hip/device-$kind.so ROCMFORGE_TEST_IMPORT=$build/daemon/device/hip/import-$kind.so \
        ROCMFORGE_TEST_EXPORT=${2:-} limited "$name" 300 "$build/tests/gpu/$1"
}

# Tests of Python, for so many seconds at most.
run_pytest() { # NAME SECONDS ARGUMENT...
    if ! "$python" -c 'import pytest' 2>/dev/null; then
        echo "no pytest for $python: not run"
        failures+=("$1")
        return
    fi
    ROCMFORGE_BUILD=$build ROCMFORGE_GPU=$kind limited "$1" "$2" "$python" -m pytest -p no:cacheprovider \
        --junitxml="$out/$1.xml" "${@:3}"
}

if wanted tests; then
    run_test test_device_hip
    run_test test_device_read
    run_test test_import_hip
    run_test test_import_hip ipc
    run_test test_import_processes
    run_test test_import_processes ipc
fi
if wanted share; then
    step "Memory that is shared by descriptors"
    run_pytest share 300 tests/gpu/test_gpu_share.py -v -rPs
fi
if wanted daemon; then
    step "The daemon and its clients"
    run_pytest daemon 600 tests/gpu --ignore tests/gpu/test_gpu_share.py -q -rsP
fi
if wanted layout; then
    step "A torch model of 7B shape from views, in vLLM's layout"
    if "$python" -c 'import torch' 2>/dev/null; then
        mkdir -p "${ROCMFORGE_BENCH_MODELS:-/tmp/rocmforge-bench}"
        limited vllm_layout 300 "$python" tests/gpu/vllm_layout.py "$build" --device "$kind" \
            --models "${ROCMFORGE_BENCH_MODELS:-/tmp/rocmforge-bench}"
    else
        echo "no torch for $python: skipped"
    fi
fi
if wanted kernels; then
    step "Speed of the kernels"
    ROCMFORGE_BENCH_JSON=$out/bench_kernels.json limited bench_kernels 180 "$build/tests/gpu/bench_kernels_$kind"
fi
if wanted put; then
    step "Slots, streams and workers, without the daemon"
    models=${ROCMFORGE_BENCH_MODELS:-/tmp/rocmforge-bench}
    model=$models/7b-q4_0.gguf
    mkdir -p "$models"
    if [[ -f $model ]] || "$python" tests/lib/make_model.py "$model" --shape-preset 7b --layers 32 --types q4_0 \
        >/dev/null; then
        "$python" tests/lib/page_cache.py "$model"
        ROCMFORGE_TEST_MODULE=$build/daemon/device/hip/device-$kind.so \
            limited bench_put 300 "$build/tests/gpu/bench_put" "$model"
    else
        failures+=("the model for bench_put")
    fi
fi
models=${ROCMFORGE_BENCH_MODELS:-/tmp/rocmforge-bench}
if wanted loads100; then
    step "A hundred loads of each file"
    read -ra loads_options <<<"${ROCMFORGE_LOADS_OPTIONS:---seconds 130}"
    limited bench_loads 240 "$python" tests/bench/bench_loads.py "$build" --kind "$kind" --out "$out" --models "$models" \
        "${loads_options[@]}"
fi
if wanted attach; then
    step "Attaches in fresh processes"
    limited bench_attach_fresh 90 "$python" tests/bench/bench_attach_fresh.py "$build" --kind "$kind" --out "$out" \
        --models "$models"
fi
if wanted reading; then
    step "Ways to read a file"
    if ls "$models"/*.gguf >/dev/null 2>&1 || { mkdir -p "$models" && "$python" tests/lib/make_model.py \
        "$models/7b-q4_0.gguf" --shape-preset 7b --layers 32 --types q4_0 >/dev/null; }; then
        reading=$(find "$models" -name '*.gguf' -printf '%s %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
        limited bench_reading 90 "$build/tests/gpu/bench_reading_$kind" "$reading"
    else
        failures+=("the model for bench_reading")
    fi
fi
if wanted peers; then
    step "Other ways to load"
    limited peers 150 "$python" tests/bench/peers.py "$build" --kind "$kind" --out "$out" --models "$models" \
        ${ROCMFORGE_WHEELS:+--wheels "$ROCMFORGE_WHEELS"}
fi
if wanted bench; then
    step "Loads"
    read -ra bench_options <<<"${ROCMFORGE_BENCH_OPTIONS:-}"
    limited bench_gpu 900 "$python" tests/bench/bench_gpu.py "$build" --kind "$kind" --out "$out" \
        "${bench_options[@]}" --models "${ROCMFORGE_BENCH_MODELS:-/tmp/rocmforge-bench}"
fi
if wanted save; then
    step "Saving in host memory"
    limited bench_save 120 "$python" tests/bench/bench_save.py "$build" --kind "$kind" --size 4G
fi
if wanted host; then
    step "Host memory: how loads scale with cores"
    limited bench_cores 60 "$python" tests/bench/bench_cores.py "$build"
fi

step "Done; results in $out"
((${#failures[@]} == 0)) || { echo "failed: ${failures[*]}" >&2; exit 1; }
