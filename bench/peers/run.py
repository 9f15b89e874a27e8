"""Measures patchhost and its peers side by side and writes one report. See README.md.

    python bench/peers/run.py --out bench/peers/RESULTS.md
    python bench/peers/run.py --work decode --models dense --peers patchhost llamacpp --threads 2
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import checkpoints  # noqa: E402
import convert_gguf  # noqa: E402
import engines  # noqa: E402
import measure  # noqa: E402
import pairs  # noqa: E402
import quiet  # noqa: E402
import report  # noqa: E402
import summary  # noqa: E402
import works  # noqa: E402

WORKS = {"quantize": works.quantize, "linear": works.linear, "decode": works.decode}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the report (Markdown); the numbers go beside it as JSON")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="checkpoints, GGUF files and logs")
    parser.add_argument("--patchhost", type=Path, default=HERE.parents[1] / "target/release/examples/peers")
    parser.add_argument("--no-build", action="store_true", help="take patchhost's worker as it is")
    parser.add_argument("--vllm-python", type=Path, default=HERE / "venv-vllm/bin/python")
    parser.add_argument("--work", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--models", nargs="*", choices=list(checkpoints.SHAPES), default=list(checkpoints.SHAPES))
    parser.add_argument("--peers", nargs="*", choices=engines.PEERS, default=engines.PEERS)
    parser.add_argument("--engines", nargs="*", metavar="TEXT", help="only engines whose name contains one of these")
    parser.add_argument("--all", action="store_true", help="the engines too that the summary does not have: hours")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, help="5 if not said, and 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds: a look, not a ground for claims")
    parser.add_argument("--at-once", type=int, default=8, help="workers that are loaded at the same time")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a start or an answer may take")
    parser.add_argument("--slow", type=float, default=20, help="what takes longer is measured once")
    parser.add_argument("--keep", action="store_true", help="what --out has of other work and models stays in it")
    parser.add_argument("--prepare", action="store_true", help="make checkpoints, GGUF files and matrices, start vLLM once for each checkpoint, and measure nothing")
    parser.add_argument("--note", default="", help="a sentence for the head of the report")
    quiet.options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    return options


def prepare(options, python):
    """All files that measuring needs. It is done before the machine is asked whether it is quiet."""
    for rows, cols in works.SHAPES if "quantize" in options.work else ():
        works.matrix(options.data, rows, cols)
    for name in options.models if "decode" in options.work else ():
        checkpoints.make(name, options.data / name)
        for kind in ("q8_0", "bf16") if options.all else ("q8_0",):
            try:
                convert_gguf.convert(options.data, options.data / name, kind, python)
            except Exception as error:
                # Its row will say so.
                measure.say(f"  {name}: {error}")


def first_starts(options, places):
    """Starts what compiles at its first start and keeps the result: vLLM, for every checkpoint."""
    for name in options.models if "decode" in options.work else ():
        for engine in works.selected(engines.decode(options.data / name), options):
            if engine.peer == "vllm":
                measure.Row(engine, options, places, max(options.threads)).stop()


def main():
    """Everything that was asked for, then the report."""
    options = arguments()
    # Before anything is built: a wrong word must not cost minutes.
    limits = quiet.Limits.of(options.limits)
    options.data = options.data.resolve()
    options.data.mkdir(parents=True, exist_ok=True)
    if not options.no_build:
        root = HERE.parents[1]
        subprocess.run(["cargo", "build", "--release", "--example", "peers"], cwd=root, check=True)
    # The link of a virtual environment must stay as it is: resolving it would leave the environment.
    python = Path(sys.executable)
    prepare(options, python)
    places = engines.Places(options.data, options.patchhost.absolute(), python, options.vllm_python.absolute())
    if options.prepare:
        first_starts(options, places)
        return
    earlier = options.out.with_suffix(".json") if options.out else None
    made = json.loads(earlier.read_text()) if options.keep and earlier and earlier.exists() else {}
    made |= {
        "processor": engines.processor(), "cores": os.cpu_count(), "pages": engines.pages(), "versions": engines.versions(places),
    }
    watch = quiet.Watch(lambda: measure.LIVE, limits)
    options.before = watch.before(options.wait, options.busy)
    measure.say(f"before the first round: {options.before.words()}")
    started = time.monotonic()

    def save(work, part):
        # After each part: what is measured must not be lost to what comes later.
        made[work] = {**made.get(work, {}), **part}
        text = report.markdown(json.loads(json.dumps(made)))
        if options.out:
            options.out.write_text(text)
            earlier.write_text(json.dumps(made, indent=1) + "\n")

    for work in options.work:
        measure.say(work)
        WORKS[work](options, places, watch, lambda part: save(work, part))
    whole = json.loads(json.dumps(made))
    print(report.markdown(whole) if not options.out else summary.text(whole))
    measure.say(f"{(time.monotonic() - started) / 60:.0f} minutes")
    if found := pairs.records(whole):
        measure.say(quiet.mark(found))


if __name__ == "__main__":
    main()
