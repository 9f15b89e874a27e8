"""Validates `patchhost audit --format sarif` against the official schema of SARIF 2.1.0.

    pip install jsonschema
    python3 tests/consumers/check_sarif.py path/to/patchhost

Exit 0: every log is valid, and a broken one is not (so that the judge can be trusted).
"""

import json
import pathlib
import subprocess
import sys

import jsonschema

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "tests/data/audit/sarif-2.1.0.schema.json").read_text())


def log(patchhost: str, *arguments: str) -> dict:
    ran = subprocess.run([patchhost, "audit", *arguments, "--format", "sarif"], capture_output=True, text=True)
    assert ran.returncode in (0, 1), ran.stderr
    return json.loads(ran.stdout)


def main() -> None:
    patchhost = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "target/release/patchhost")
    judge = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
    evil = sorted(str(path) for path in (ROOT / "guests/evil").glob("*.wasm"))
    before, after = (str(ROOT / f"tests/data/audit/fp8_block_{n}.wasm") for n in ("before", "sabotaged"))
    logs = {
        "bundled": log(patchhost, "fp8_block", "fp8_block_mse", "moe_loader"),
        "evil": log(patchhost, *evil),
        "diff": log(patchhost, after, "--diff", before),
        "not wasm": log(patchhost, str(pathlib.Path(__file__))),
        "probe": log(patchhost, "vocab_mask", "--probe"),
    }
    for name, one in logs.items():
        errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in judge.iter_errors(one)]
        assert not errors, f"{name}: {errors[:5]}"
        print(f"{name}: valid, {len(one['runs'][0]['results'])} results")
    logs["bundled"]["runs"][0]["results"][0]["level"] = "dreadful"
    assert list(judge.iter_errors(logs["bundled"])), "the schema accepts anything"
    print("all good")


if __name__ == "__main__":
    main()
