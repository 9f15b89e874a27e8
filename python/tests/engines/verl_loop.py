"""A short loop as verl runs it, in a process of its own: a real vLLM engine with patchhost's worker extension, and
verl's own sender through shared memory. Prints what happened as JSON. Called by test_verl_engine.py.

    verl_loop.py MODEL full|fp8|lora|two|fresh FOLDER
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from typing import Any

import verl_cpu  # noqa: F401  before anything asks verl for its platform
from verl_static import changes, snapshot

PROMPTS = ["ROMEO: But soft", "JULIET: O", "First Citizen: We", "KING: Now"]


class Engine:
    """An engine, and verl's calls of it."""

    def __init__(self, model: str, settings: dict[str, Any], **more: Any) -> None:
        from vllm import LLM

        self.workers = int(more.get("tensor_parallel_size", 1))
        self.llm = LLM(
            model=model,
            enforce_eager=True,
            max_model_len=256,
            dtype="bfloat16",
            seed=0,
            enable_prefix_caching=False,
            worker_extension_cls="patchhost.verl.WorkerExtension",
            additional_config={"patchhost": settings},
            **more,
        )

    def tokens(self, lora: bool = False) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        # As verl's server asks: its name, its number, and a path that does not exist.
        request = LoRARequest(lora_name="123", lora_int_id=123, lora_path="simon_lora_path") if lora else None
        params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
        return [
            list(one.outputs[0].token_ids)
            for one in self.llm.generate(PROMPTS, params, lora_request=request, use_tqdm=False)
        ]

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.llm.collective_rpc(method, args=args, kwargs=kwargs)[0]

    def sync(self, *streams: list[tuple[str, Any]], bucket_mb: int = 1, **kwargs: Any) -> str | None:
        """As ServerAdapter.update_weights: a sender for each worker, and the workers, at once. `streams`: one for all,
        or one for each. Gives the error that the trainer would see."""
        from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender

        failed: list[BaseException] = []

        def send(rank: int) -> None:
            handle = f"ipc:///tmp/rl-colocate-zmq-{os.environ['VERL_RAY_JOB_ID']}-replica-0-rank-{rank}.sock"
            sender = BucketedWeightSender(handle, bucket_size_mb=bucket_mb, use_shm=True)
            try:
                asyncio.run(sender.async_send_weights(iter(streams[rank % len(streams)])))
            except BaseException as error:
                failed.append(error)

        senders = [threading.Thread(target=send, args=(rank,), daemon=True) for rank in range(self.workers)]
        for sender in senders:
            sender.start()
        said = None
        try:
            self.ask("update_weights_from_ipc", use_shm=True, **kwargs)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        for sender in senders:
            sender.join(60)
        assert not any(sender.is_alive() for sender in senders), "verl's sender waits for an answer"
        assert not failed, failed
        return said


def perturbed(weights: dict[str, Any], seed: int) -> dict[str, Any]:
    import torch

    torch.manual_seed(seed)
    return {name: (w.float() * (1 + 0.05 * torch.randn_like(w.float()))).to(w.dtype) for name, w in weights.items()}


def full(model: str, folder: str) -> dict[str, Any]:
    from safetensors.torch import load_file, save_file

    trained = load_file(os.path.join(model, "model.safetensors"))
    if "lm_head.weight" in trained and json.load(open(os.path.join(model, "config.json")))["tie_word_embeddings"]:
        trained.pop("lm_head.weight")
    ledger = os.path.join(folder, "ledger")
    vocabulary = int(json.load(open(os.path.join(model, "config.json")))["vocab_size"])
    settings = {
        "patches": [{"component": "vocab_mask", "settings": {"banned": "7,9"}}],
        "ledger": ledger,
        "digest": True,
    }
    engine = Engine(model, settings)
    out: dict[str, Any] = {"mro": engine.llm.collective_rpc(_mro)[0]}
    out["replaced"] = engine.llm.collective_rpc(_replaced)[0]
    tokenizer = len(engine.llm.get_tokenizer())
    out["patched_model"] = engine.ask(
        "monkey_patch_model", vocab_size=min(tokenizer, vocabulary), banned_token_ids=[7, 9]
    )
    try:
        engine.ask("monkey_patch_model", vocab_size=min(tokenizer, vocabulary), banned_token_ids=[7, 11])
    except Exception as error:
        out["not_masked"] = str(error)
    before = snapshot()
    out["first"] = engine.tokens()
    out["same"] = engine.sync(list(trained.items()))
    out["after_same"] = engine.tokens()

    # Everything that is refused leaves tokens and digests as they were.
    held = engine.ask("patchhost_digests")
    lost = list(perturbed(trained, 1).items())
    gone = next(name for name, _ in lost if "layers.1" in name)
    out["refused"] = {"lost": engine.sync([pair for pair in lost if pair[0] != gone])}
    poisoned = perturbed(trained, 1)
    poisoned[gone].view(-1)[3] = float("nan")
    out["refused"]["nan"] = engine.sync(list(poisoned.items()))
    out["refused"]["unknown"] = engine.sync([("model.layers.0.nothing.weight", trained[gone]), *lost])
    out["gone"] = gone
    out["held"] = engine.ask("patchhost_digests") == held
    out["after_refused"] = engine.tokens()

    # Three steps of other weights; the last is compared with a fresh engine on a saved checkpoint.
    for step in (1, 2, 3):
        trained = perturbed(trained, step)
        out["step"] = engine.sync(list(trained.items()))
    out["trained"] = engine.tokens()
    out["digests"] = engine.ask("patchhost_digests")
    status = engine.ask("patchhost_status")
    out["status"] = {word: status[word] for word in ("updates", "refused", "broken", "moe")}
    out["last_error"] = status["last_error"]
    out["changed"] = changes(before, snapshot())
    out["ledger"] = sorted(os.listdir(ledger))

    from patchhost.verl import metrics, receipts

    out["metrics"] = metrics(receipts(ledger))
    _save(model, os.path.join(folder, "saved"), {name: w.contiguous() for name, w in trained.items()}, save_file)
    return out


def two(model: str, folder: str) -> dict[str, Any]:
    """Two workers of one engine, each with a sender of its own."""
    from safetensors.torch import load_file

    del folder
    trained = load_file(os.path.join(model, "model.safetensors"))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(2))
    engine = Engine(model, {}, tensor_parallel_size=2, distributed_executor_backend="mp")
    engine.ask("monkey_patch_model", vocab_size=len(engine.llm.get_tokenizer()))
    out: dict[str, Any] = {"first": engine.tokens()}
    out["same"] = engine.sync(list(trained.items()))
    out["after_same"] = engine.tokens()
    other, poisoned = perturbed(trained, 1), perturbed(trained, 1)
    name = list(trained)[5]
    poisoned[name].view(-1)[7] = float("nan")
    out["name"] = name
    # The stream of the first worker alone, then that of the last one alone: both workers keep what they had.
    for which in (0, 1):
        streams = [list(other.items()), list(other.items())]
        streams[which] = list(poisoned.items())
        out[f"refused_{which}"] = engine.sync(*streams)
        out[f"after_refused_{which}"] = engine.tokens()
    out["other"] = engine.sync(list(other.items()))
    out["after_other"] = engine.tokens()
    out["back"] = engine.sync(list(trained.items()))
    out["after_back"] = engine.tokens()
    out["updates"] = [one["updates"] for one in engine.llm.collective_rpc("patchhost_status")]
    return out


def fresh(model: str, folder: str) -> dict[str, Any]:
    """The same weights, loaded from the start: what an update has to be equal to. FOLDER: `banned` or `all`."""
    mask = [{"component": "vocab_mask", "settings": {"banned": "7,9"}}]
    engine = Engine(model, {"patches": mask if folder == "banned" else []})
    return {"tokens": engine.tokens(), "digests": engine.ask("patchhost_digests")}


def fp8(model: str, folder: str) -> dict[str, Any]:
    """One sync through `fp8_block`; and a checkpoint that verl's own function quantized and that was widened again."""
    import torch
    from safetensors.torch import load_file, save_file
    from verl.utils.kernel.fp8_kernel import scaled_fp8_blockwise

    from patchhost import PatchSet

    trained = perturbed(load_file(os.path.join(model, "model.safetensors")), 5)
    spec = {"component": "fp8_block", "settings": {"profile": "verl-torch", "round": "bf16"}}
    engine = Engine(model, {"patches": [spec]})
    out: dict[str, Any] = {"sync": engine.sync(list(trained.items()))}
    out["tokens"], out["digests"] = engine.tokens(), engine.ask("patchhost_digests")
    out["quantized"] = engine.ask("patchhost_status")["last"]["report"]["quantized"]
    widened = {}
    for name, weight in trained.items():
        if name.endswith("_proj.weight"):
            codes, scale = scaled_fp8_blockwise(weight, weight_block_size=[128, 128])
            weight = PatchSet.dequantize(codes.contiguous(), scale.squeeze(-1).contiguous(), dtype=torch.bfloat16)
        widened[name] = weight.contiguous()
    _save(model, os.path.join(folder, "saved"), widened, save_file)
    return out


def _save(model: str, saved: str, weights: dict[str, Any], save_file: Any) -> None:
    os.makedirs(saved)
    save_file(weights, os.path.join(saved, "model.safetensors"))
    for name in os.listdir(model):
        if name != "model.safetensors":
            os.symlink(os.path.abspath(os.path.join(model, name)), os.path.join(saved, name))


def lora(model: str, folder: str) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    del folder
    os.environ["PATCHHOST_SENDER_TIMEOUT"] = "3"
    weights = load_file(os.path.join(model, "model.safetensors"))
    engine = Engine(model, {}, enable_lora=True, max_loras=1, max_lora_rank=8)
    config = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "peft_type": "LORA", "bias": "none"}
    engine.ask("monkey_patch_model", vocab_size=len(engine.llm.get_tokenizer()))
    out: dict[str, Any] = {"first": engine.tokens()}
    # The base, under the names that PEFT gives to what it wraps.
    named = {
        name.replace("_proj.weight", "_proj.base_layer.weight") if ".q_proj." in name or ".v_proj." in name else name: w
        for name, w in weights.items()
    }
    out["base"] = engine.sync(list(named.items()), peft_config=config, base_sync_done=False)
    out["after_base"] = engine.tokens()

    def adapter(seed: int, size: float) -> list[tuple[str, Any]]:
        torch.manual_seed(seed)
        pairs = []
        for name, w in weights.items():
            if name.endswith(("q_proj.weight", "v_proj.weight")):
                at = f"base_model.model.{name.removesuffix('.weight')}"
                pairs.append((f"{at}.lora_A.weight", (torch.randn(8, w.shape[1]) * size).bfloat16()))
                pairs.append((f"{at}.lora_B.weight", (torch.randn(w.shape[0], 8) * size).bfloat16()))
        return pairs

    out["zero"] = engine.sync(adapter(1, 0.0), peft_config=config, base_sync_done=True)
    out["after_zero"] = engine.tokens(lora=True)
    out["large"] = engine.sync(adapter(2, 0.3), peft_config=config, base_sync_done=True)
    out["after_large"] = engine.tokens(lora=True)
    broken = adapter(3, 0.3)
    broken[1][1].view(-1)[0] = float("inf")
    out["broken"] = engine.sync(broken, peft_config=config, base_sync_done=True)
    out["half"] = engine.sync(adapter(3, 0.3)[1:], peft_config=config, base_sync_done=True)
    out["after_broken"] = engine.tokens(lora=True)
    out["again"] = engine.sync(adapter(2, 0.3), peft_config=config, base_sync_done=True)
    out["after_again"] = engine.tokens(lora=True)
    out["base_tokens"] = engine.tokens()
    # A sender that dies before its first bucket: the worker does not wait for ever.
    try:
        engine.ask("update_weights_from_ipc", use_shm=True)
    except Exception as error:
        out["silent"] = str(error)
    out["after_silent"] = engine.tokens()
    out["folders"] = [name for name in os.listdir("/dev/shm") if name.startswith("patchhost-lora-")]
    return out


def _mro(worker: Any) -> list[str]:
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in type(getattr(worker, "worker", worker)).__mro__]


def _replaced(worker: Any) -> list[str]:
    from patchhost.verl.guard import replaced

    return replaced()


if __name__ == "__main__":
    os.environ.setdefault("VERL_RAY_JOB_ID", f"test{os.getpid()}")
    given, what, place = sys.argv[1:4]
    answer = {"full": full, "fp8": fp8, "lora": lora, "two": two, "fresh": fresh}[what](given, place)
    print(json.dumps(answer), flush=True)
    os._exit(0)
