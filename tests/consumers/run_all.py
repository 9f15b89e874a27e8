"""Exports every model of some folders for each reader and has the readers check it.

    python run_all.py PATCHHOST MODELS…       # MODELS: folders of model folders

Each model: for transformers, for compressed-tensors with whole blocks and with --allow-partial-blocks, each with both
scale formats; then for vllm@0.11, sglang and deepseek, which no reader here runs: their files are checked, and, being of
the same format, loaded with transformers, but for partial blocks, which only patchhost reads. A model without any matrix
in whole 128x128 blocks is exported in blocks of 4x4 too. Prints one line per export and exits with 1 if any failed.
"""
import os, subprocess, sys, tempfile, traceback

import check_compressed_tensors
import check_transformers


def export(binary, model, out, *more):
    done = subprocess.run([binary, "export", model, out, "--component", "fp8_block", *more], capture_output=True, text=True)
    assert done.returncode == 0, f"export {' '.join(more)}: exit {done.returncode}: {done.stderr}{done.stdout}"


def runs():
    for scales in ("f32", "ue8m0"):
        for blocks in ("128x128", "4x4"):
            more = ["--scale-format", scales, "--set", f"block={blocks}"]
            yield f"transformers {scales} {blocks}", ["--for", "transformers", *more], check_transformers.check, dict(scales=scales)
            for partial in ([], ["--allow-partial-blocks"]):
                yield (f"compressed-tensors {scales} {blocks}{' partial' * len(partial)}",
                       ["--for", "compressed-tensors", *more, *partial], check_compressed_tensors.check,
                       dict(scales=scales, partial=bool(partial)))
    for reader in ("vllm@0.11", "sglang", "deepseek"):
        yield f"{reader} f32 128x128", ["--for", reader], check_transformers.check, {}
        partial = ["--for", reader, "--allow-partial-blocks", "--scale-format", "ue8m0"]
        yield f"{reader} ue8m0 128x128 partial", partial, check_transformers.check_partial, dict(scales="ue8m0")


def main(binary, folders):
    bad = 0
    for model in sorted(os.path.join(f, m) for f in folders for m in os.listdir(f)):
        if not os.path.exists(os.path.join(model, "config.json")): continue
        quantizes = True
        for label, args, check, more in runs():
            if "4x4" in label and quantizes: continue
            with tempfile.TemporaryDirectory() as tmp:
                out = os.path.join(tmp, os.path.basename(model))
                try:
                    export(binary, model, out, *args)
                    line, word = check(out, model, binary, **more), "good"
                except Exception as e:
                    line, word = (str(e) or traceback.format_exc()).replace(tmp, "OUT").strip()[:600], "FAIL"
                    bad += 1
                if "transformers f32 128x128" == label: quantizes = not line.startswith("0 FP8")
            print(f"{word}  {os.path.basename(model)}  {label}: {line}", flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
