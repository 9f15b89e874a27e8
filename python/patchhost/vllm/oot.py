"""The repair for everybody's `reload_weights`, by vLLM's documented way to replace a layer: `CustomOp.register_oot`.

`PATCHHOST_REPAIR_RELOADS=1` turns it on. It is off by default: the weight transfer engine repairs its own updates without
it (`patchhost.vllm.moe`), and two packages that replace the same layer refuse each other.
"""

from __future__ import annotations

from typing import Any

NAME = "UnquantizedFusedMoEMethod"


def register() -> None:
    """Registers the class before a model is built. A second call does nothing; another package's class of this name is
    refused."""
    from vllm.model_executor.custom_op import CustomOp, op_registry_oot
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    from ..errors import Refused

    known = op_registry_oot.get(NAME)
    if known is not None:
        if known.__module__ == __name__:
            return
        why = f"`{NAME}` is replaced by {known.__module__}.{known.__qualname__} already"
        raise Refused("PATCHHOST_REPAIR_RELOADS", why, "unset it, or do without the other package")

    @CustomOp.register_oot(name=NAME)
    class RefitSafeUnquantizedFusedMoEMethod(UnquantizedFusedMoEMethod):
        """Packs experts in a weight update as at the first load."""

        _home: int | None = None
        "where vLLM keeps the packed weight: a weight at another place is newly loaded, and not packed yet"

        def process_weights_after_loading(self, layer: Any) -> None:
            kernel, config = self.moe_kernel, self.moe_quant_config
            refit = kernel is not None and layer.w13_weight.data_ptr() != self._home
            if refit:
                self.moe_kernel = None
            super().process_weights_after_loading(layer)
            if refit:
                self.moe_kernel, self.moe_quant_config = kernel, config
            elif kernel is None:
                self._home = layer.w13_weight.data_ptr()
