#!/usr/bin/env bash
# Loads a file to a GPU with different amounts of staging memory and prints the median of seven loads of each.
#
#   gpu_staging.sh BUILD FILE [WORKERS]
set -euo pipefail
build=$(realpath "$1") file=$2 workers=${3:-10}
folder=$(mktemp -d)
trap 'kill "$daemon" 2>/dev/null; rm -rf "$folder"' EXIT
export ROCMFORGE_SOCKET=$folder/io.rocmforge ROCMFORGE_MODULE_DIR=$build/daemon/gpu
rfctl=$build/client/rfctl/rfctl
for staging in 96M 128M 160M 256M 512M; do
    "$build/daemon/rocmforged" --socket "$ROCMFORGE_SOCKET" --workers "$workers" --staging $staging --log-level warning &
    daemon=$!
    until "$rfctl" ping >/dev/null 2>&1; do sleep 0.1; done
    for _ in {1..7}; do
        "$rfctl" --json load "$file" --as native --name bench 2>/dev/null | tail -1 | grep -o '"total":[0-9]*,"parse"' |
            grep -o '[0-9]*'
        "$rfctl" unload bench >/dev/null
    done | sort -n | sed -n 4p | awk -v s=$staging '{printf "%s: %.1f ms\n", s, $1 / 1000}'
    kill "$daemon"
    wait "$daemon"
done
