"""Two steps of TRL's own GRPOTrainer against a server of patchhost, in a process of its own. Called by test_trl.py.

trl_loop.py MODEL URL FOLDER
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def main(model: str, url: str, folder: str) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from patchhost.trl import Rollout, Server, WeightTransfer, parameters

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(text))) for text in completions]

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    rollout = Rollout(Server(url, bucket_bytes=2 << 20))
    config = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        temperature=0.9,
        reward_weights=[1.0, 0.0],
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=[reward, rollout.patchhost],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["ROMEO: But soft", "JULIET: O"] * 4}),
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "patchhost/refit" in entry]
    out: dict[str, Any] = {"log": [{k: v for k, v in entry.items() if k.startswith("patchhost/")} for entry in steps]}
    info = json.loads(rollout.server._request("GET", "/weight_info", None, {}))
    out["version"] = info["weight_version"]

    # AsyncGRPOTrainer's protocol: its own methods, called in its order.
    transfer = WeightTransfer(rollout.server)
    transfer.init_weight_transfer()
    transfer.pause()
    transfer.send_weights(parameters(policy))
    transfer.resume()
    out["sent"] = transfer.last
    broken = [(name, tensor.clone()) for name, tensor in parameters(policy)]
    broken[3][1].view(-1)[5] = float("nan")
    transfer.pause()
    try:
        transfer.send_weights(iter(broken))
    except Exception as error:
        out["refused"] = [type(error).__name__, error.what]
    out["broken"] = broken[3][0]
    out["paused"] = json.loads(rollout.server._request("GET", "/is_paused", None, {}))["is_paused"]
    out["after"] = json.loads(rollout.server._request("GET", "/weight_info", None, {}))["weight_version"]
    lost = [pair for pair in parameters(policy) if not pair[0].endswith("norm.weight")]
    try:
        transfer.send_weights(iter(lost))
    except Exception as error:
        out["lost"] = str(error)
    transfer.destroy()

    try:
        from trl.experimental.async_grpo.async_grpo_trainer import WeightTransferProtocol
    except ImportError as error:
        out["protocol"] = f"not importable: {error}"
    else:
        names = [name for name in vars(WeightTransferProtocol) if not name.startswith("_")]
        theirs = {name: list(inspect.signature(getattr(WeightTransferProtocol, name)).parameters) for name in names}
        ours = {name: list(inspect.signature(getattr(WeightTransfer, name)).parameters) for name in names}
        out["protocol"] = "equal" if theirs == ours and len(names) == 5 else [theirs, ours]
    return out


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:4])), flush=True)
    os._exit(0)
