"""patchhost inside TRL 1.16: generation at a server whose weights are proved whole at every step.

```python
from patchhost.trl import Rollout, WeightTransfer

rollout = Rollout("http://127.0.0.1:8000")
GRPOTrainer(..., rollout_func=rollout, reward_funcs=[mine, rollout.patchhost], reward_weights=[1.0, 0.0])
AsyncGRPOTrainer(..., weight_transfer=WeightTransfer("http://127.0.0.1:8000"))
```

The server is `patchhost serve MODEL`, or vLLM 0.32/0.33 with `--weight-transfer-config '{"backend": "patchhost"}'` (and
VLLM_SERVER_DEV_MODE=1). Every update has a manifest with a SHA-256 of each tensor. What the server refuses is raised
here by name; it keeps serving its old weights, and is not left paused. Nothing of TRL or torch is imported before it
is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from .sender import me
from .errors import Error, HostError, RefitError, Refused, UsageError
from .versions import check

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8"}

_PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"sampling that does not change the model's distribution"


class Server:
    """One inference server, as a trainer needs it: weights in, tokens out.

    url: of the server. token: for a server that asks for one (`--rl-token-file`). timeout: seconds for one request.
    bucket_bytes: most bytes of one request (and one tensor). folder: where an update is written before it is sent, so
        that its manifest can come first; by default /dev/shm where it is, else the folder for temporary files. A vLLM
        server on the same machine reads the parts there, one elsewhere gets them as base64.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 1800.0,
        bucket_bytes: int = 256 << 20,
        folder: str | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise UsageError("the URL of a server", f"it is {url!r:.100}", "give one: http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self._token, self._timeout, self._bucket_bytes = token, timeout, bucket_bytes
        self._folder = folder or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self._kind: str | None = None
        self._model: str | None = None

    @property
    def kind(self) -> str:
        """`patchhost` or `vllm`. Raises `Refused` for a server that could not prove an update."""
        if self._kind is None:
            info = self._json("GET", "/server_info?config_format=json")
            transfer = (info.get("vllm_config") or {}).get("weight_transfer_config") or {}
            if info.get("engine") == "patchhost":
                self._kind = "patchhost"
            elif transfer.get("backend") == "patchhost":
                self._kind = "vllm"
            else:
                why = f"{self.url} is neither `patchhost serve` nor vLLM with the weight transfer backend `patchhost`"
                advice = (
                    'start vLLM with --weight-transfer-config \'{"backend": "patchhost"}\' and VLLM_SERVER_DEV_MODE=1'
                )
                raise Refused("the inference server", why, advice)
        return self._kind

    def push(self, tensors: Iterable[tuple[str, Any]], *, step: int | None, version: str) -> dict[str, float]:
        """One whole update. Gives numbers about it. Raises `RefitError` where the server refuses it."""
        began = time.perf_counter()
        kind = self.kind
        with _Spool(tensors, self._folder, self._bucket_bytes) as spool:
            spooled = time.perf_counter() - began
            send = self._to_patchhost if kind == "patchhost" else self._to_vllm
            answer = send(spool, step, version)
            numbers = {
                "update/bytes": spool.bytes,
                "update/tensors": len(spool.entries),
                "update/spool_seconds": spooled,
            }
        numbers["update/seconds"] = time.perf_counter() - began
        numbers |= {name: answer[name] for name in ("refit", "quantized", "kept") if isinstance(answer.get(name), int)}
        return {name: float(value) for name, value in numbers.items()}

    def pause(self) -> None:
        """Stops generation; requests that run are kept."""
        self._json("POST", "/pause?mode=keep")

    def resume(self) -> None:
        """Lets generation go on."""
        self._json("POST", "/resume")

    def generate(self, prompts: list[list[int]], sampling: dict[str, Any]) -> tuple[list[list[int]], list[list[float]]]:
        """One completion of each prompt: token ids, and the log probability of each under the distribution it was
        sampled from."""
        if self._model is None:
            self._model = str(self._json("GET", "/v1/models")["data"][0]["id"])
        body = {"model": self._model, "prompt": prompts, "logprobs": 0, "return_token_ids": True, "n": 1, **sampling}
        choices = self._json("POST", "/v1/completions", body)["choices"]
        if len(choices) != len(prompts):
            raise HostError(
                self.url, f"it gave {len(choices)} completions of {len(prompts)} prompts", "look at its log"
            )
        choices.sort(key=lambda choice: choice["index"])
        return [c["token_ids"] for c in choices], [c["logprobs"]["token_logprobs"] for c in choices]

    def require_processed(self, prompt: list[int]) -> None:
        """Raises `Refused` where the server's log probabilities are not those of what it samples from: of the only
        token that `top_k=1` leaves, the probability is 1."""
        _, ((logprob,),) = self.generate([prompt], {"max_tokens": 1, "top_k": 1, "temperature": 1.0})
        if abs(logprob) > 1e-6:
            why = "they are those of the raw logits, and this run changes them: importance ratios would be wrong"
            raise Refused("log probabilities", why, "start the server with --logprobs-mode processed_logprobs")

    def _to_patchhost(self, spool: _Spool, step: int | None, version: str) -> dict[str, Any]:
        begun = self._json(
            "POST", "/start_weight_update", {"weight_version": version, "step": step, "manifest": spool.manifest}
        )
        headers = {"Content-Type": "application/octet-stream", "X-Update-Id": str(begun["update_id"])}
        try:
            for path in spool.files:
                with open(path, "rb") as file:
                    self._request("POST", "/update_weights", file.read(), headers)
            end = f"/finish_weight_update?update_id={begun['update_id']}"
            return self._json("POST", end, {"weight_version": version})
        except Error:
            self._quietly("/abort_weight_update")
            raise

    def _to_vllm(self, spool: _Spool, step: int | None, version: str) -> dict[str, Any]:
        about = {"step": step, "version": version, "update_id": uuid.uuid4().hex, "sender": me()}
        same_machine = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        self._json("POST", "/start_weight_update", {})
        try:
            for at, path in enumerate(spool.files):
                part: dict[str, Any] = {**about, "last": at == len(spool.files) - 1}
                if at == 0:
                    part["manifest"] = spool.manifest
                if same_machine:
                    part["path"] = path
                else:
                    with open(path, "rb") as file:
                        part["safetensors"] = base64.b64encode(file.read()).decode("ascii")
                self._json("POST", "/update_weights", {"update_info": part})
        except Error:
            self._quietly("/update_weights", {"update_info": {"abort": True}})
            raise
        return self._json("POST", "/finish_weight_update", {"weight_version": version})

    def _quietly(self, path: str, body: dict[str, Any] | None = None) -> None:
        """For cleaning up after an error, which must not be hidden by another one."""
        try:
            self._json("POST", path, body)
        except Error:
            pass

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps({k: v for k, v in body.items() if v is not None}).encode()
        text = self._request(method, path, data, {"Content-Type": "application/json"})
        try:
            value = json.loads(text or b"{}")
        except ValueError as error:
            raise HostError(f"{self.url}{path}", "its answer is not JSON", "look at the server's log") from error
        return value if isinstance(value, dict) else {"answer": value}

    def _request(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> bytes:
        if self._token is not None:
            headers = {**headers, "Authorization": f"Bearer {self._token}"}
        if method == "POST" and data is None:
            data = b""
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise _refusal(f"{method} {path.partition('?')[0]}", error.code, error.read()) from error
        except OSError as error:
            why = str(getattr(error, "reason", None) or error)
            raise HostError(f"the server at {self.url}", why, "look whether it runs, and at its log") from error


class WeightTransfer:
    """For `AsyncGRPOTrainer(weight_transfer=…)`: the five methods of TRL's `WeightTransferProtocol`.

    server: a `Server` or its URL. `last` has the numbers of the last update.
    """

    def __init__(self, server: Server | str) -> None:
        check("trl")
        self.server = server if isinstance(server, Server) else Server(server)
        self.sent = 0
        self.last: dict[str, float] = {}

    def init_weight_transfer(self) -> None:
        """Looks at the server once, before training. Raises `Refused`, `HostError`."""
        _ = self.server.kind

    def pause(self) -> None:
        """Pauses the server; requests that run are kept."""
        self.server.pause()

    def send_weights(self, iterator: Iterator[tuple[str, Any]]) -> None:
        """One whole update. Where it is refused the server is resumed, with its old weights, before the error is
        raised."""
        try:
            self.last = self.server.push(iterator, step=self.sent + 1, version=f"step-{self.sent + 1}")
        except BaseException:
            self.server._quietly("/resume")
            raise
        self.sent += 1

    def resume(self) -> None:
        """Lets the server go on."""
        self.server.resume()

    def destroy(self) -> None:
        """Nothing is held between updates."""


class Rollout:
    """For `GRPOTrainer(rollout_func=…)`: sends the weights once for each step, then lets the server generate.

    server: a `Server` or its URL. sampling: fields of `/v1/completions` over those of the trainer's configuration.
    Give `rollout.patchhost` as a reward function with weight 0, and the numbers of each update are in TRL's log
    (TRL hands `log_metric` to reward functions only).
    """

    def __init__(self, server: Server | str, **sampling: Any) -> None:
        check("trl")
        self.server = server if isinstance(server, Server) else Server(server)
        self.sampling = sampling
        self.last: dict[str, float] = {}
        self._step: int | None = None
        self._looked = False

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """As TRL asks: one completion of each prompt, with `prompt_ids`, `completion_ids` and `logprobs`."""
        step = int(trainer.state.global_step)
        if step != self._step:
            self._sync(trainer, step)
            self._step = step
        sampling = _sampling(trainer.args) | self.sampling
        ids = [_ids(prompt, trainer.processing_class) for prompt in prompts]
        if not self._looked and any(sampling.get(name, plain) != plain for name, plain in _PLAIN.items()):
            self.server.require_processed(ids[0])
        self._looked = True
        completions, logprobs = self.server.generate(ids, sampling)
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": logprobs}

    def patchhost(self, prompts: list[Any], log_metric: Any = None, **_: Any) -> list[float]:
        """A reward function that gives 0 to everything, and logs the numbers of the last update."""
        if log_metric is not None:
            for name, value in self.last.items():
                log_metric(f"patchhost/{name}", value)
        return [0.0] * len(prompts)

    def _sync(self, trainer: Any, step: int) -> None:
        """Every rank gathers, the main one sends. An error of the main one is raised on all, so that none waits for
        it."""
        accelerator = trainer.accelerator
        stream = parameters(accelerator.unwrap_model(trainer.model))
        failed: list[Any] = [None]
        if accelerator.is_main_process:
            try:
                self.last = self.server.push(stream, step=step, version=f"step-{step}")
            except Error as error:
                failed = [error]
        for _ in stream:
            pass
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            failed = broadcast_object_list(failed, from_process=0)
        if failed[0] is not None:
            raise failed[0]


def parameters(model: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all parameters under the names of the base checkpoint; an adapter of PEFT is merged while they
    are read. Frozen ones come too: an update is whole. Raises `Refused` for parameters that DeepSpeed ZeRO-3 has
    split."""
    adapter = str(model.prefix) if hasattr(model, "merge_adapter") else None
    if adapter is not None:
        model.merge_adapter()
    try:
        for name, parameter in model.named_parameters():
            if hasattr(parameter, "ds_id"):
                why = "DeepSpeed ZeRO-3 has split it, and this function does not gather it"
                raise Refused(f"parameter `{name}`", why, "train with FSDP2 or DDP")
            for wrapper in ("_checkpoint_wrapped_module.", "_orig_mod."):
                name = name.replace(wrapper, "")
            name = name.removeprefix("module.")
            if adapter is not None:
                name = name.removeprefix("base_model.model.").replace(".base_layer", "")
                if adapter in name or "original_module" in name:
                    continue
                name = name.replace("modules_to_save.default.", "")
            tensor = parameter.detach()
            yield name, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    finally:
        if adapter is not None:
            model.unmerge_adapter()


class _Spool:
    """An update as files, with its manifest. The files are removed when the block is left."""

    def __init__(self, tensors: Iterable[tuple[str, Any]], folder: str | None, bucket_bytes: int) -> None:
        self._tensors, self._within, self._bucket_bytes = tensors, folder, bucket_bytes
        self.entries: dict[str, dict[str, Any]] = {}
        self.files: list[str] = []
        self.bytes = 0

    @property
    def manifest(self) -> dict[str, Any]:
        return {"tensors": self.entries}

    def __enter__(self) -> _Spool:
        try:
            self._folder = tempfile.mkdtemp(prefix="patchhost-", dir=self._within)
            self._fill()
        except OSError as error:
            self.__exit__()
            advice = "give `folder=` with room for one copy of the model"
            raise HostError(f"the folder {self._within}", error.strerror or str(error), advice) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(getattr(self, "_folder", ""), ignore_errors=True)

    def _fill(self) -> None:
        import torch

        held: dict[str, Any] = {}
        size = 0
        for name, tensor in self._tensors:
            if name in self.entries:
                raise RefitError(f"tensor `{name}`", "the trainer gave it twice", "give every tensor once")
            copy = tensor.detach().to("cpu", copy=True).contiguous()
            if held and size + copy.nbytes > self._bucket_bytes:
                self._write(held)
                held, size = {}, 0
            held[name] = copy
            size += copy.nbytes
            dtype = _DTYPES.get(str(copy.dtype).removeprefix("torch."))
            if dtype is None:
                raise RefitError(f"tensor `{name}`", f"its dtype is {copy.dtype}", "send bfloat16, float16 or float32")
            digest = hashlib.sha256(memoryview(copy.reshape(-1).view(torch.uint8).numpy())).hexdigest()
            self.entries[name] = {"dtype": dtype, "shape": list(copy.shape), "sha256": digest}
            self.bytes += copy.nbytes
        if held:
            self._write(held)
        if not self.files:
            raise RefitError("the update", "it has no tensor", "send every tensor of the model")

    def _write(self, held: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        path = os.path.join(self._folder, f"part-{len(self.files):05}.safetensors")
        save_file(held, path)
        self.files.append(path)


def _sampling(args: Any) -> dict[str, Any]:
    """Fields of `/v1/completions` from a `GRPOConfig`. What the configuration leaves open is left out."""
    named = {"max_completion_length": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
    named |= {"min_p": "min_p", "repetition_penalty": "repetition_penalty"}
    found = {field: getattr(args, name, None) for name, field in named.items()}
    if not found["top_k"]:
        found["top_k"] = None
    return {field: value for field, value in found.items() if value is not None}


def _ids(prompt: Any, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False))


def _refusal(what: str, status: int, body: bytes) -> Error:
    """The server's refusal as an error, with its own three parts where it gives them."""
    try:
        value = json.loads(body)
        said = value.get("error", value) if isinstance(value, dict) else value
        text = str(said.get("message") or said.get("detail") or said) if isinstance(said, dict) else str(said)
    except ValueError:
        text = body.decode("utf-8", "replace")
    parts = {"refused": what, "why": text, "next": "look at the server's log; its old weights keep serving"}
    found = text[text.find("refused: ") :].split("\n") if "refused: " in text else []
    for line in found:
        key, _, value = line.strip().partition(": ")
        if key in parts and value:
            parts[key] = value
    kind = RefitError if status < 500 or found else HostError
    return kind(parts["refused"][:500], f"{parts['why']} (HTTP {status})"[:2000], parts["next"][:500])
