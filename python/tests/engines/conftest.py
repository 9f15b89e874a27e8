"""Tests against real engines and trainers, which need not be installed: each test skips with the reason.

The engines are started in processes of their own (`run_script`), one at a time. Such a process gets a site folder with
what a real installation has and a checkout has not: the entry points of patchhost, a distribution called `vllm` whose
version names the CPU (verl and transformers look for it), and a platform `cpu` for verl, registered as its
documentation says.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
MODEL = REPOSITORY / "models" / "tiny-shakespeare-moe"
PROGRAM = Path(os.environ.get("PATCHHOST", REPOSITORY / "target" / "release" / "patchhost"))


def _installed() -> bool:
    """Whether a wheel is installed; else the package of this checkout is tested."""
    try:
        return bool(importlib.metadata.version("patchhost"))
    except importlib.metadata.PackageNotFoundError:
        return False


INSTALLED = _installed()
PACKAGE = None if INSTALLED else HERE.parents[1]

EXTRA = "ENGINE_TEST_PATH"
"variable: folders of packages that an engine needs for its import, beside those that are installed (torchvision)"

ENTRY_POINTS = """\
[vllm.general_plugins]
patchhost = patchhost.vllm:register

[vllm.logits_processors]
patchhost = patchhost.vllm.logits:LogitsMask

[verl.plugins]
patchhost = patchhost.verl.plugin

[sglang.srt.plugins]
patchhost = patchhost.sglang:plugin
"""

VERL_CPU = '''\
"""A platform `cpu` for verl: weights go through shared memory, and there is nothing to wait for."""

import types

import torch
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import PlatformRegistry, set_platform

_MODULE = types.ModuleType("verl_cpu_device")
_MODULE.synchronize = _MODULE.empty_cache = _MODULE.ipc_collect = lambda *_, **__: None
_MODULE.current_device = lambda: 0
_MODULE.device_count = lambda: 1
_MODULE.is_available = lambda: True


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformCUDA):
    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _MODULE)

    def is_available(self):
        return True

    def is_ipc_supported(self):
        return False

    def current_device(self):
        return 0

    def synchronize(self, device_index=None):
        pass

    def empty_cache(self):
        pass


set_platform(PlatformCPU())
'''


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker("engine")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "engine: needs an inference engine or a trainer, which is not installed with patchhost"
    )


def missing(*modules: str) -> str | None:
    """Why a test cannot run: the first of these top-level modules that is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None


def path_of(*folders: Path | str | None) -> str:
    """`PYTHONPATH` of those that are there."""
    return os.pathsep.join(str(folder) for folder in folders if folder is not None)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site folder for processes with an engine."""
    folder = tmp_path_factory.mktemp("site")
    made: list[tuple[str, str, dict[str, str]]] = [("vllm", "0.32.0+cpu", {})]
    if not INSTALLED:
        made.append(("patchhost", "0.1.0", {"entry_points.txt": ENTRY_POINTS}))
    for name, version, files in made:
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for file, text in files.items():
            (info / file).write_text(text)
        listed = ["METADATA", "RECORD", *files]
        (info / "RECORD").write_text("".join(f"{info.name}/{file},,\n" for file in listed))
    (folder / "verl_cpu.py").write_text(VERL_CPU)
    return folder


@pytest.fixture(scope="session")
def environment(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for a process with an engine: nothing of patchhost or verl but what a test gives it."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PATCHHOST_", "VERL_"))}
    return known | {
        "PYTHONPATH": path_of(site, PACKAGE, HERE, os.environ.get(EXTRA)),
        "PATCHHOST_CACHE": os.environ.get("PATCHHOST_CACHE") or str(tmp_path_factory.getbasetemp() / "cache"),
        "PATCHHOST_PROGRAM": os.environ.get("PATCHHOST_PROGRAM", str(PROGRAM)),
        "VERL_PLATFORM": "cpu",
        "VERL_DISABLE_TRITON_FP8": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def run_script(environment: dict[str, str]) -> Callable[..., Any]:
    """Runs a script of this folder in a process of its own and gives the JSON that it prints, one line."""

    def run(script: str, *arguments: str, timeout: float = 600, status: int = 0, **more: str) -> Any:
        done = subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode != status:
            raise AssertionError(f"{script} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}")
        if status:
            return done.stderr
        # vLLM's own processes may log behind it.
        return json.loads([line for line in done.stdout.splitlines() if line.startswith(("{", "["))][-1])

    return run
