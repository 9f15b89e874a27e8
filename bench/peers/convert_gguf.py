"""A checkpoint to GGUF with llama.cpp's own converter, as its source package has it.

The converter knows tokenizers by a hash of what they do, and refuses ours, which it has never seen. Its splitting of
text is that of GPT-2, so that is what it is told; nothing here feeds text to llama.cpp anyway.
"""

import argparse
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path


def converter(data: Path) -> Path:
    """The folder of convert_hf_to_gguf.py, from the source package of the llama-cpp-python that is installed: setup.sh has left it
    beside the environment, or it is downloaded."""
    wanted = version("llama-cpp-python")
    name = f"llama_cpp_python-{wanted}"
    folder = Path(sys.prefix).parent / "sdist" / name
    if not folder.exists():
        folder = data / "sdist" / name
    if not folder.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python",
                   "-d", str(folder.parent), f"llama-cpp-python=={wanted}"]
        subprocess.run(command, check=True)
        with tarfile.open(folder.parent / f"{folder.name}.tar.gz") as packed:
            packed.extractall(folder.parent, filter="data")
    return folder / "vendor/llama.cpp"


def convert(data: Path, model: Path, kind: str, python=sys.executable) -> Path:
    """`kind` is q8_0 or bf16; does nothing if the file is there."""
    out = data / "gguf" / f"{model.name}-{kind}.gguf"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        half = out.with_suffix(".part")
        command = [python, __file__, "--inside", converter(data), model, "--outtype", kind, "--outfile", half]
        log = out.with_suffix(".log")
        with log.open("w") as log_file:
            status = subprocess.run(command, stdout=log_file, stderr=subprocess.STDOUT, check=False)
        if status.returncode:
            last = log.read_text().strip().splitlines()[-1:]
            raise RuntimeError(f"convert_hf_to_gguf.py fails: {' '.join(last)}")
        half.rename(out)
    return out


def inside(folder: str, arguments: list) -> None:
    """Runs the converter in this process, with our tokenizer made known."""
    sys.path.insert(0, folder)
    sys.path.insert(0, f"{folder}/gguf-py")
    import convert_hf_to_gguf
    from conversion import base

    for known in vars(base).values():
        if isinstance(known, type) and "get_vocab_base_pre" in vars(known):
            known.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--data", type=Path, required=True)
        parser.add_argument("model", type=Path)
        parser.add_argument("kind", choices=["q8_0", "bf16"])
        args = parser.parse_args()
        print(convert(args.data, args.model, args.kind))
