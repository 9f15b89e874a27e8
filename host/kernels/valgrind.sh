#!/bin/sh
# Runs the kernels' tests under valgrind's memcheck, which knows AVX2 but not AVX-512: for a machine without it. Reduced to
# few random cases; takes some minutes, steps.rs the longest. drd and helgrind are of no use here: they do not understand
# synchronization by atomics, and report the standard library's as races too. Miri checks that (CONTRIBUTING.md).
set -eu
cd "$(dirname "$0")"
export PATCHHOST_TEST_CASES="${PATCHHOST_TEST_CASES:-12}"
binaries=$(cargo test --release --lib --tests --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\))$/\1/p')
[ -n "$binaries" ] || { echo "valgrind.sh: cargo built no tests; run 'cargo test --release --no-run' to see why" >&2; exit 1; }
for binary in $binaries; do
    case "$binary" in
        *patchhost_kernels-* | *attention-* | *linear-* | *steps-* | *stats-*)
            valgrind --quiet --error-exitcode=9 --fair-sched=yes "$binary" --test-threads=1 ;;
    esac
done
