"""The command line: `python -m patchhost.verify vllm|transformers`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import Error, HostError, UsageError
from .kit import run
from .plan import Plan
from .remote import BACKENDS, Remote
from .results import LEVELS, Results

_FAMILIES = "qwen3_moe, mixtral, …; repeatable (default: qwen3, qwen3-tied and qwen3_moe)"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m patchhost.verify",
        description="Sends right and faulty weight updates to an inference engine, and compares what it holds after "
        "each one with a fresh load.",
        epilog="Exit codes: 0 all is right at this level, 1 something is wrong, 2 wrong usage, 4 the engine or the "
        "program cannot start.",
    )
    engines = made.add_subparsers(dest="engine", required=True, metavar="vllm|transformers")
    for name in BACKENDS:
        one = engines.add_parser(name, help=f"test {name}, in child processes of this one")
        if len(BACKENDS[name]) > 1:
            one.add_argument("--backend", choices=BACKENDS[name], default=BACKENDS[name][0], help="how weights come in")
        if name == "vllm":
            one.add_argument("--compiled", action="store_true", help="let vLLM compile the model (default: eager)")
        one.add_argument("--family", action="append", metavar="F", help=_FAMILIES)
        one.add_argument("--seed", type=int, default=1, help="same seed, same plan (default: 1)")
        one.add_argument("--cases", type=int, default=60, metavar="M", help="cases for each family (default: 60)")
        one.add_argument("--plan", action="append", metavar="DIR", help="a plan made before; repeatable")
        one.add_argument("--level", choices=LEVELS, help="what counts (default: full for patchhost, else reload)")
        one.add_argument("--key", metavar="FILE", help="sign the certificate with this key")
        one.add_argument("--out", metavar="FILE", help="write the certificate here")
        one.add_argument("--format", choices=("table", "json"), default="table")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        if args.plan and args.family:
            raise UsageError("--plan and --family", "both say which plan", "give one of the two")
        if args.key and not args.out:
            raise UsageError("--key", "there is no certificate to sign", "add --out FILE")
        return _run(args)
    except Error as error:
        print(error, file=sys.stderr)
        return 4 if isinstance(error, HostError) else 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    options = {"compiled": True} if getattr(args, "compiled", False) else {}
    with tempfile.TemporaryDirectory(prefix="patchhost-plan-") as scratch:
        plans = [Plan.read(one) for one in args.plan or ()]
        for family in dict.fromkeys(args.family or ([] if plans else ["qwen3", "qwen3-tied", "qwen3_moe"])):
            plans.append(Plan.make(family, Path(scratch, family), seed=args.seed, cases=args.cases))
        if len({plan.seed for plan in plans}) > 1 or len({plan.family for plan in plans}) < len(plans):
            why = "a certificate has one seed, and each family once"
            raise UsageError("these plans", why, "run the kit once for each of them")
        results: Results | None = None
        with Remote(args.engine, getattr(args, "backend", ""), options=options) as engine:
            for plan in plans:
                one = run(engine, plan, progress=lambda line: print(line, file=sys.stderr, flush=True))
                results = one if results is None else results + one
    if results is None:
        raise UsageError("--family", "there is nothing to do", "name a family")
    if args.out:
        results.seal(args.out, level=args.level, key=args.key)
    if args.format == "json":
        print(json.dumps(results.json(args.level), indent=2))
    else:
        print(results.table(args.level))
        if args.out:
            print(f"certificate: {args.out}")
    return 0 if results.passed(args.level) else 1


if __name__ == "__main__":
    sys.exit(main())
