"""The functions of vLLM that patchhost calls or is called by, with their signatures, read from a source tree by `ast`.

`python vllm_hooks.py FOLDER_WITH_VLLM [...]` prints them as JSON, version by version; `vllm_hooks.json` is its output for the
versions that patchhost takes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from pathlib import Path

HOOKS: dict[str, tuple[str, ...]] = {
    "distributed/weight_transfer/base.py": (
        "WeightTransferEngine.__init__",
        "WeightTransferEngine.parse_init_info",
        "WeightTransferEngine.parse_update_info",
        "WeightTransferEngine.init_transfer_engine",
        "WeightTransferEngine.start_weight_update",
        "WeightTransferEngine.update_weights",
        "WeightTransferEngine.receive_weights",
        "WeightTransferEngine.finish_weight_update",
        "WeightTransferEngine.shutdown",
        "WeightTransferEngine.set_weight_update_target",
        "WeightTransferEngine.reset_weight_update_target",
        "TrainerWeightTransferEngine.__init__",
        "TrainerWeightTransferEngine.trainer_init",
        "TrainerWeightTransferEngine.send_weights",
        "VLLMWeightSyncClient.init_weight_transfer_engine",
        "VLLMWeightSyncClient.start_weight_update",
        "VLLMWeightSyncClient.update_weights",
        "VLLMWeightSyncClient.finish_weight_update",
    ),
    "distributed/weight_transfer/factory.py": (
        "WeightTransferEngineFactory.register_engine",
        "WeightTransferEngineFactory.create_engine",
        "WeightTransferTrainerFactory.register_engine",
    ),
    "model_executor/model_loader/utils.py": ("initialize_model",),
    "model_executor/model_loader/reload/layerwise.py": (
        "initialize_layerwise_reload",
        "finalize_layerwise_reload",
        "finalize_layerwise_processing",
    ),
    "model_executor/layers/fused_moe/unquantized_fused_moe_method.py": (
        "UnquantizedFusedMoEMethod.create_weights",
        "UnquantizedFusedMoEMethod.process_weights_after_loading",
        "UnquantizedFusedMoEMethod._setup_kernel",
    ),
    "model_executor/custom_op.py": ("CustomOp.register_oot",),
    "v1/worker/gpu_worker.py": (
        "Worker.start_weight_update",
        "Worker.update_weights",
        "Worker.finish_weight_update",
        "Worker.add_lora",
    ),
    "v1/sample/logits_processor/interface.py": (
        "LogitsProcessor.__init__",
        "LogitsProcessor.apply",
        "LogitsProcessor.is_argmax_invariant",
        "LogitsProcessor.update_state",
    ),
    "distributed/parallel_state.py": ("get_world_group",),
    "lora/request.py": ("LoRARequest",),
}
"""File below `vllm/` → functions and classes."""

BODIES = ("UnquantizedFusedMoEMethod._setup_kernel", "Worker.start_weight_update", "Worker.update_weights", "Worker.finish_weight_update")
"""Where what the function does counts too: its code is digested, without comments and docstrings."""


def read(root: Path) -> dict[str, str]:
    """Hook → signature (and digest of its code), or `missing`."""
    found = {}
    for file, names in HOOKS.items():
        path = root / "vllm" / file
        tree = ast.parse(path.read_text()) if path.is_file() else None
        for name in names:
            node = None if tree is None else _find(tree, name.split("."))
            found[f"{file}:{name}"] = "missing" if node is None else _says(node, name in BODIES)
    return found


def _find(node: ast.AST, path: list[str]) -> ast.AST | None:
    for child in getattr(node, "body", []):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and child.name == path[0]:
            return child if len(path) == 1 else _find(child, path[1:])
    return None


def _says(node: ast.AST, body: bool) -> str:
    if isinstance(node, ast.ClassDef):
        return "class " + ", ".join(ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign))
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    # Types may be written in another way; names, order and defaults may not.
    for one in ast.walk(node.args):
        if isinstance(one, ast.arg):
            one.annotation = None
    text = f"({ast.unparse(node.args)})"
    if body:
        lines = node.body[1:] if ast.get_docstring(node) else node.body
        code = "\n".join(ast.unparse(line) for line in lines)
        text += f" code {hashlib.sha256(code.encode()).hexdigest()[:16]}"
    return text


def version(root: Path) -> str:
    """From the folder's dist-info, or its name."""
    for info in root.glob("vllm*.dist-info"):
        return info.name.removesuffix(".dist-info").rpartition("-")[2].split("+")[0]
    match = re.search(r"(\d+\.\d+\.\d+)", root.name)
    return match[1] if match else "unknown"


if __name__ == "__main__":
    print(json.dumps({version(Path(root)): read(Path(root)) for root in sys.argv[1:]}, indent=1))
