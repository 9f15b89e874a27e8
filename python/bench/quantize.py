"""Block FP8 of bf16 weights on CPUs: patchhost beside verl's recipe and a memcpy, as ratios (see `README.md`).

    python bench/quantize.py [--verl FOLDER] [--threads 1 4] [--repeats 15] [--json FILE]

Each number of threads gets a process of its own, because the threads of patchhost's kernels are decided once in a process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = [(4096, 4096), (14336, 4096), (8, 1536, 2048)]
SMALL = (128, 128)
NAME = "model.layers.0.mlp.down_proj.weight"
STACK = "model.layers.0.mlp.experts.down_proj"
EAGER, COMPILED = "verl, eager", "verl, torch.compile"
OURS, FRESH, TABLE, COPY = "patchhost", "patchhost, new outputs", "ScaleTable, eager", "memcpy"
CALL, KNOWN, WHOLE = "_native.quantize", "PatchSet.quantize(scheme=…)", "PatchSet.quantize"
Work = Callable[[], Any]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


# The process of one number of threads.


def verl_recipe(folder: str | None) -> tuple[Callable[..., Any] | None, str]:
    """verl's function without its package, which needs Ray: this one file needs torch only. And its version, or why not."""
    if folder:
        root = Path(folder)
        root = root / "verl" if (root / "verl").is_dir() else root
    else:
        found = importlib.util.find_spec("verl")
        if found is None or not found.submodule_search_locations:
            return None, "verl is not installed (pip install --no-deps verl==0.9.1, or --verl FOLDER)"
        root = Path(next(iter(found.submodule_search_locations)))
    try:
        spec = importlib.util.spec_from_file_location("fp8_kernel", root / "utils" / "kernel" / "fp8_kernel.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        version = (root / "version" / "version").read_text().strip()
        return module._scaled_fp8_blockwise_pytorch, version
    except Exception as error:
        return None, f"verl cannot be read: {type(error).__name__}: {error}"


def interleaved(works: dict[str, Work], repeats: int, inner: int) -> dict[str, list[float]]:
    """Seconds of each repetition. All run in every repetition, and who comes first rotates."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for repetition in range(repeats):
        at = repetition % len(names)
        for name in names[at:] + names[:at]:
            work = works[name]
            began = time.perf_counter()
            for _ in range(inner):
                work()
            seconds[name].append((time.perf_counter() - began) / inner)
    return seconds


def measure(threads: int, repeats: int, verl: str | None) -> dict[str, Any]:
    import torch

    from patchhost import PatchSet, PatchSpec
    from patchhost import threads as kernel_threads

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    patches = PatchSet.load(PatchSpec("fp8_block", settings={"profile": "verl-torch"}), threads=threads)
    recipe, about = verl_recipe(verl)
    began = {"threads": threads, "kernel_threads": kernel_threads(), "torch_threads": torch.get_num_threads()}
    notes: list[str] = [] if recipe else [about]
    parts: list[dict[str, Any]] = []
    with torch.inference_mode():
        for shape in SHAPES:
            parts.append(_one_shape(torch, patches, recipe, shape, repeats, notes))
        wrapper = [_wrapper(torch, patches, *of, repeats) for of in ((SHAPES[0], 1), (SMALL, 200))]
    return {**began, "verl": about if recipe else None, "shapes": parts, "wrapper": wrapper, "notes": notes}


def _one_shape(
    torch: Any, patches: Any, recipe: Any, shape: tuple[int, ...], repeats: int, notes: list[str]
) -> dict[str, Any]:
    weight = (torch.randn(shape) * 0.02).to(torch.bfloat16)
    name = NAME if len(shape) == 2 else STACK
    codes = torch.empty(shape, dtype=torch.float8_e4m3fn)
    scales = torch.empty((*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128)))
    table = patches.scale_table(name, weight)
    matrices = list(weight) if len(shape) == 3 else [weight]

    works: dict[str, Work] = {
        OURS: lambda: patches.quantize(name, weight, out=codes, scale_out=scales),
        FRESH: lambda: patches.quantize(name, weight),
        TABLE: lambda: table.apply(weight, out=codes, scale_out=scales),
    }
    if recipe is not None:
        compiled = torch.compile(recipe, dynamic=False)
        works[EAGER] = lambda: [recipe(matrix, [128, 128]) for matrix in matrices]
        works[COMPILED] = lambda: [compiled(matrix, [128, 128]) for matrix in matrices]
    # 2 bytes are read and 1 is written for each value; a copy of n bytes reads n and writes n.
    source = torch.ones((weight.numel() * 3 + scales.numel() * 4) // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    works[COPY] = lambda: target.copy_(source)

    first: dict[str, Any] = {}
    for key in list(works):
        try:
            # Compilation and page faults are paid here.
            works[key]()
            result = works[key]()
        except Exception as error:
            notes.append(f"{key}, {list(shape)}: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            del works[key]
            continue
        if key != COPY:
            first[key] = _octets(torch, key, result)
    reference = first.get(EAGER, first[OURS])
    differing = {key: int((value != reference).sum()) for key, value in first.items()}
    return {
        "shape": list(shape),
        "bytes_compared": reference.numel(),
        "bytes_that_differ": differing,
        "seconds": interleaved(works, repeats, 1),
    }


def _octets(torch: Any, key: str, result: Any) -> Any:
    """Codes and scales of a result, as bytes."""
    if key in (OURS, FRESH):
        pairs = [(result.codes, result.scale)]
    else:
        pairs = [result] if key == TABLE else result
    parts = [pair[i].contiguous().flatten().view(torch.uint8) for i in (0, 1) for pair in pairs]
    return torch.cat(parts).clone()


def _wrapper(torch: Any, patches: Any, shape: tuple[int, ...], inner: int, repeats: int) -> dict[str, Any]:
    """What Python adds to the extension's own call."""
    from patchhost import _tensors

    weight = (torch.randn(shape) * 0.02).to(torch.bfloat16)
    codes, scales = torch.empty(shape, dtype=torch.float8_e4m3fn), torch.empty([-(-n // 128) for n in shape])
    scheme, native = patches.decide([(NAME, weight)])[NAME].scheme, patches.native
    raw, to = _tensors.read(NAME, weight), (codes.data_ptr(), scales.data_ptr())
    works: dict[str, Work] = {
        CALL: lambda: native.quantize(NAME, raw, scheme, *to, "nothing"),
        KNOWN: lambda: patches.quantize(NAME, weight, out=codes, scale_out=scales, scheme=scheme),
        WHOLE: lambda: patches.quantize(NAME, weight, out=codes, scale_out=scales),
    }
    for work in works.values():
        work()
    return {"shape": list(shape), "inner": inner, "seconds": interleaved(works, 2 * repeats, inner)}


# The report.


def child(threads: int, args: argparse.Namespace) -> dict[str, Any]:
    # Idle OpenMP threads sleep at once, so that torch's do not spin on the cores of the next one to be measured.
    limits = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "VERL_DISABLE_TRITON_FP8": "1"}
    command = [sys.executable, os.path.abspath(__file__), "--child", str(threads), "--repeats", str(args.repeats)]
    command += ["--verl", args.verl] if args.verl else []
    done = subprocess.run(command, env={**os.environ, **limits}, stdout=subprocess.PIPE, text=True, check=True)
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("patchhost", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            module = __import__(name)
            found[name] = str(module.__version__)
    return found


def ratio(seconds: dict[str, list[float]], of: str, to: str) -> str:
    """How many times as long `of` takes as `to`: the median and quartiles of the repetitions' ratios."""
    if of not in seconds or to not in seconds:
        return "–"
    low, middle, high = quartiles([a / b for a, b in zip(seconds[of], seconds[to], strict=True)])
    digits = 2 if middle < 10 else 1
    return f"{middle:.{digits}f} [{low:.{digits}f}–{high:.{digits}f}]"


def table(run: dict[str, Any]) -> list[str]:
    count = run["threads"]
    lines = [f"### {count} thread{'s' if count > 1 else ''}", ""]
    lines += [
        "| shape | what | ms, median [quartiles] | times as fast as verl, eager | times as fast as verl, compiled |"
    ]
    lines[-1] += " times as long as a memcpy | bytes that differ from verl, eager |"
    lines += ["|---|---|---|---|---|---|---|"]
    for part in run["shapes"]:
        seconds, shape = part["seconds"], "×".join(map(str, part["shape"]))
        for key, values in seconds.items():
            low, middle, high = (value * 1e3 for value in quartiles(values))
            differ = "–"
            if EAGER in seconds and key in part["bytes_that_differ"]:
                differ = f"{part['bytes_that_differ'][key]:,} of {part['bytes_compared']:,}"
            lines.append(
                f"| {shape} | {key} | {middle:.2f} [{low:.2f}–{high:.2f}] | {ratio(seconds, EAGER, key)} "
                f"| {ratio(seconds, COMPILED, key)} | {ratio(seconds, key, COPY)} | {differ} |"
            )
    lines += [
        "",
        "| what Python adds | ms, median [quartiles] | times as long as `_native.quantize` | µs more, median |",
    ]
    lines += ["|---|---|---|---|"]
    for part in run["wrapper"]:
        seconds, shape = part["seconds"], "×".join(map(str, part["shape"]))
        for key, values in seconds.items():
            low, middle, high = (value * 1e3 for value in quartiles(values))
            more = statistics.median(a - b for a, b in zip(values, seconds[CALL], strict=True)) * 1e6
            lines.append(
                f"| {shape}, `{key}` | {middle:.4f} [{low:.4f}–{high:.4f}] | {ratio(seconds, key, CALL)} | {more:.1f} |"
            )
    lines += ["", *(f"- {note}" for note in run["notes"])]
    return lines


def head(report: dict[str, Any]) -> list[str]:
    before, most = report["load_before"][0], max(run["threads"] for run in report["runs"])
    state = "quiet" if before < 0.5 else "**not quiet: other work ran on it, and these figures are not worth quoting**"
    words = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [
        f"{report['cpu']}, {report['cores']} cores; {words}; verl {report['runs'][0]['verl'] or 'missing'}; "
        f"{report['repeats']} repetitions, interleaved",
        "",
        f"The machine was {state} (load average before: {report['load_before']}, after: {report['load_after']}; "
        f"the runs themselves use up to {most}).",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads (1, and all cores)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--verl", help="a folder with the package verl (else it is looked for on the path)")
    parser.add_argument("--json", type=Path, help="write every repetition to this file")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.repeats, args.verl)))
        return
    report: dict[str, Any] = {"cpu": cpu_model(), "cores": cores(), "versions": versions(), "repeats": args.repeats}
    report["load_before"] = load()
    report["runs"] = [child(threads, args) for threads in args.threads or sorted({1, cores()})]
    report["load_after"] = load()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(head(report)))
    for run in report["runs"]:
        print("\n".join(table(run)))


if __name__ == "__main__":
    main()
