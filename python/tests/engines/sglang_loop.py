"""SGLang's own `WeightUpdater`, scheduler manager and plug-in loader with patchhost, in a process of its own; the
model is a stand-in, for SGLang's layers need a GPU. Called by test_sglang.py.

    sglang_loop.py MODEL
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from typing import Any


def main(folder: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    try:
        import sglang.srt.managers.scheduler_components.weight_updater as scheduler
        import sglang.srt.model_executor.model_runner_components.weight_updater as updater
    except ImportError as error:
        return {"skip": f"SGLang's weight updater cannot be imported: {error}"}
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import get_context, get_parallel

    import patchhost.sglang as plug

    out: dict[str, Any] = {}
    load_plugins()
    out["hooked"] = hasattr(updater.WeightUpdater.update_weights_from_tensor, "__wrapped__")

    class Qwen3MoeForCausalLM(torch.nn.Module):
        """Takes weights as a model of SGLang does."""

        def __init__(self) -> None:
            super().__init__()
            self.held: dict[str, Any] = {}
            self.loads, self.fails = 0, False

        def load_weights(self, weights: Any) -> None:
            self.loads += 1
            for name, tensor in weights:
                self.held[name] = tensor
                if self.fails:
                    raise ValueError("a layer of SGLang")

    class LlamaForCausalLMEagle(Qwen3MoeForCausalLM):
        """A draft model."""

    def updating(model: Any) -> Any:
        return updater.WeightUpdater(
            tp_rank=0,
            device="cpu",
            gpu_id=0,
            model_config=None,
            custom_weight_loaders=[plug.LOADER],
            get_model=lambda: model,
            update_model_fields=lambda **_: None,
            recapture_cuda_graph=lambda: None,
            get_model_runner=lambda: None,
        )

    class Answer:
        """What the scheduler's begin and end answer."""

        def __init__(self, success: bool, message: str) -> None:
            self.success, self.message = success, message

    weights = list(load_file(os.path.join(folder, "model.safetensors")).items())
    with ExitStack() as stack:
        stack.enter_context(get_context().override_server_args(model_path=folder))
        stack.enter_context(get_parallel().override(tp_rank=0))
        model = Qwen3MoeForCausalLM()
        one = updating(model)

        def send(items: Any, what: Any = one) -> list[Any]:
            return list(what.update_weights_from_tensor(list(items), load_format=plug.LOADER))

        out["parts"] = [send(weights[:50]), send(weights[50:100]), send(weights[100:])]
        out["loaded"] = [model.loads, len(model.held)]
        out["same"] = all(torch.equal(model.held[name], tensor) for name, tensor in weights)

        # Refused: nothing is loaded, SGLang answers, and a new round is welcome.
        poisoned = [(name, tensor.clone()) for name, tensor in weights]
        poisoned[60][1].view(-1)[2] = float("inf")
        out["poisoned"] = [send(poisoned[:100]), send(poisoned[100:])]
        out["twice"] = send([weights[0], weights[0]])
        out["unknown"] = send([("model.nothing.weight", weights[0][1])])
        out["misshapen"] = send([(weights[0][0], weights[0][1][1:])])
        out["names"] = [poisoned[60][0], weights[0][0]]
        out["after_refused"] = model.loads
        send(weights[:70])
        out["again"] = [send(weights[:30]), len(plug.pending(model)), send(weights[30:])]
        out["after_again"] = [model.loads, plug.status()[0]["updates"], plug.status()[0]["refused"]]

        # The session's end says what is missing. The scheduler itself needs a GPU: its methods are looked at only.
        send(weights[:20])
        ended = plug._ended(lambda *_: Answer(True, "Success"), None, None)
        out["ended"] = [ended.success, ended.message, model.loads]
        began = plug._began(lambda *_: Answer(True, "Success"), None, None)
        out["began"] = began.success
        hooked = (
            scheduler.SchedulerWeightUpdaterManager.begin_weight_update,
            scheduler.SchedulerWeightUpdaterManager.end_weight_update,
        )
        out["session_hooked"] = [hasattr(method, "__wrapped__") for method in hooked]

        out["draft"] = send(weights[:5], updating(LlamaForCausalLMEagle()))
        out["other_formats"] = list(one.update_weights_from_tensor(weights[:3], load_format=None))

        # SGLang fails in the middle of proved weights: that must end the scheduler.
        broken = Qwen3MoeForCausalLM()
        broken.fails = True
        for attempt in (1, 2):
            try:
                send(weights, updating(broken))
            except Exception as error:
                out[f"mixture_{attempt}"] = type(error).__name__
    return out


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])), flush=True)
    os._exit(0)
