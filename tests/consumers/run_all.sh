#!/bin/sh
# run_all.sh PATCHHOST MODELS: exports every model of a folder and has its readers check it.
set -eu
patchhost=$1
models=$2
here=$(cd "$(dirname "$0")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for model in "$models"/*/; do
    name=$(basename "$model")
    for scales in f32 ue8m0; do
        tf=$out/tf-$name-$scales
        ct=$out/ct-$name-$scales
        "$patchhost" export "$model" "$tf" --component fp8_block --for transformers --scale-format $scales >"$out/log" 2>&1 \
            || { echo "none  $name: $(head -n 1 "$out/log")"; break; }
        "${PYTHON:-python}" "$here/check_transformers.py" "$tf" --source "$model" --patchhost "$patchhost" 2>"$out/log" \
            || { cat "$out/log"; exit 1; }
        "$patchhost" export "$model" "$ct" --component fp8_block --for compressed-tensors --scale-format $scales >"$out/log" 2>&1
        "${PYTHON:-python}" "$here/check_compressed_tensors.py" "$ct" 2>"$out/log" || { cat "$out/log"; exit 1; }
    done
done
