#!/bin/sh
# The decoders and their test, compiled for aarch64 and run by an emulator: the second instruction set that they are for.
# `ninja test` calls this. Needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user; exits 77 without.
#
#   run.sh SOURCE-ROOT TABLES-HEADER
set -eu
root=$1
tables=$2

missing() {
    echo "skipped: there is no $1 here, from Debian's package $2"
    exit 77
}

command -v aarch64-linux-gnu-gcc >/dev/null || missing aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
command -v qemu-aarch64 >/dev/null || missing qemu-aarch64 qemu-user
echo 'int main(void) { return 0; }' | aarch64-linux-gnu-gcc -static -x c -o /dev/null - 2>/dev/null ||
    missing 'C library for aarch64' libc6-dev-arm64-cross

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/kernels"
cp "$tables" "$work/kernels/tables.h"
set --
for source in "$root"/kernels/*.c; do
    case $source in
    */hip_*) ;; # for GPU modules alone
    *) set -- "$@" "$source" ;;
    esac
done
aarch64-linux-gnu-gcc -std=gnu11 -O3 -Wall -Wextra -Werror -D_GNU_SOURCE -ffp-contract=off -fno-strict-aliasing -static \
    -DVECTORS_DIR="\"$root/tests/vectors\"" -I"$root/tests/aarch64" -I"$root" -I"$work" -o "$work/test_dequant" \
    "$@" "$root/tests/unit/kernels/test_dequant.c" -lm
qemu-aarch64 "$work/test_dequant"
