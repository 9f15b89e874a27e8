"""PEP 517 backend: maturin, with the `patchhost` program in the wheel.

Trial compiles, `isolate=True`, `audit` and `lock` run that program as a child process: the interpreter itself cannot be
one. Set PATCHHOST_BUILD_PROGRAM to a finished binary to put that into the wheel instead of building one.
"""

import os
import shutil
import subprocess
from pathlib import Path

import maturin

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SCRIPTS = HERE / "patchhost.data" / "scripts"

get_requires_for_build_wheel = maturin.get_requires_for_build_wheel
get_requires_for_build_editable = maturin.get_requires_for_build_editable

# maturin wants its data folder also where it only writes metadata.
SCRIPTS.mkdir(parents=True, exist_ok=True)
prepare_metadata_for_build_wheel = maturin.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = maturin.prepare_metadata_for_build_editable


def _program() -> None:
    """Puts the program where maturin takes scripts from, without its symbols."""
    given = os.environ.get("PATCHHOST_BUILD_PROGRAM")
    if given:
        program = Path(given)
    else:
        command = ["cargo", "build", "--release", "--locked", "-p", "patchhost", "--bin", "patchhost"]
        subprocess.run(command, cwd=ROOT, check=True)
        target = os.environ.get("CARGO_TARGET_DIR")
        program = (Path(target) if target else ROOT / "target") / "release" / "patchhost"
    made = SCRIPTS / "patchhost"
    shutil.copyfile(program, made)
    if shutil.which("strip"):
        subprocess.run(["strip", str(made)], check=True)
    made.chmod(0o755)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _program()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _program()
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    raise SystemExit("refused: a source distribution\n  why: the package is built of the whole repository\n"
                     "  next: `pip install ./python` in a checkout, or install the wheel")
