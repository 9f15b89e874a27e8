"""Clients of trainers and agents against `patchhost serve`, unmodified: TRL's `VLLMClient`, litellm, lm-eval.

    patchhost serve --listen 127.0.0.1:8000 --max-logprobs -1
    pip install trl==1.16.0 litellm==1.110.2 lm-eval==0.4.13
    python check_rl_clients.py http://127.0.0.1:8000

TRL imports vLLM, which need not be here: where it is missing, empty modules stand for the names that TRL imports.
Exits 1 at the first thing that is not as it is at vLLM.
"""

import importlib.util
import logging
import sys
import types

CHAT = [{"role": "user", "content": "Who goes there?"}]


def stand_for_vllm():
    """The names that TRL imports from vLLM; none of them is used."""
    names = {
        "vllm": ["LLM", "RequestOutput", "SamplingParams"],
        "vllm.utils": [],
        "vllm.utils.network_utils": ["get_ip", "get_open_port"],
        "vllm.sampling_params": ["StructuredOutputsParams"],
        "vllm.distributed": [],
        "vllm.distributed.weight_transfer": [],
        "vllm.distributed.weight_transfer.nccl_common": ["trainer_init"],
        "vllm.distributed.weight_transfer.packed_tensor": ["packed_nccl_broadcast_producer"],
    }
    for name, inside in names.items():
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        for item in inside:
            setattr(module, item, type(item, (), {}))
    importlib.import_module("trl.import_utils").is_vllm_available = lambda *_, **__: True


def check_trl(url):
    if importlib.util.find_spec("vllm") is None:
        stand_for_vllm()
    from trl.generation.vllm_client import VLLMClient

    client = VLLMClient(base_url=url)
    texts = client.generate(["KING:", "ROMEO:"], n=2, max_tokens=5, generation_kwargs={"seed": 3})
    assert [len(ids) for ids in texts["completion_ids"]] == [len(lp) for lp in texts["logprobs"]]
    again = client.generate(texts["prompt_ids"], n=2, max_tokens=5, generation_kwargs={"seed": 3})
    assert again == texts, "ids give what texts give"
    best = client.generate([[5, 6, 7]], max_tokens=2, temperature=0.0, logprobs=3)
    assert len(best["logprobs"][0][0]) == 3 and best["logprob_token_ids"][0][0][0] == best["completion_ids"][0][0]
    chat = client.chat([CHAT] * 3, max_tokens=4, temperature=0.0)
    assert chat["completion_ids"][0] == chat["completion_ids"][2], chat
    teacher = client.get_sequence_logprobs([[5, 6, 7, 8], [9, 10, 11]], [2, 1])
    assert [len(row) for row in teacher["logprobs"][0]] == [100, 100], "a hundred of each, as TRL asks without being told"
    info = client.get_server_info()
    assert info["model_config"]["dtype"].startswith("torch.") and "logprobs_mode" in info["model_config"], info
    assert client.get_world_size() == 1
    client.reset_prefix_cache()
    try:
        client.init_communicator(device="cpu")
        raise AssertionError("a communicator that is not there")
    except RuntimeError as error:
        assert "no weight-transfer engine" in str(error), error
    client.close_communicator()

    from accelerate import PartialState
    from trl.experimental.async_grpo.vllm_client import VLLMClient as Asynchronous

    PartialState()  # its logger wants one
    client = Asynchronous(url)
    client.wait_for_server_ready()
    assert client.get_max_model_len() > 0 and client.get_dtype().startswith("torch.")
    client.pause()
    client.resume()


def check_litellm(url):
    import litellm

    ask = dict(model="openai/any", api_base=f"{url}/v1", api_key="none", num_retries=0)
    ask["model"] = f"openai/{model_of(url)}"
    said = litellm.completion(**ask, messages=CHAT, max_tokens=4)
    assert said.choices[0].message.content is not None
    for more in (dict(messages=[{"role": "user", "content": "Speak! " * 4000}]), dict(messages=CHAT, max_tokens=100_000)):
        try:
            litellm.completion(**ask, **more)
            raise AssertionError("a conversation longer than the context")
        except litellm.ContextWindowExceededError as error:
            assert "maximum context length is" in str(error), error


def model_of(url):
    import json
    import urllib.request

    return json.load(urllib.request.urlopen(f"{url}/v1/models"))["data"][0]["id"]


def check_lm_eval(url):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

    pairs = [("To be, or not", " to be"), ("My", " lord"), ("", "KING HENRY.")]
    for tokenizer in ("remote", None):
        model = LocalCompletionsAPI(
            model=model_of(url), base_url=f"{url}/v1/completions", tokenizer_backend=tokenizer, num_concurrent=1
        )
        if tokenizer == "remote":
            asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            scores = model.loglikelihood(asked, disable_tqdm=True)
            assert len(scores) == 3 and all(score < 0 for score, _ in scores), scores
        until = [Instance("generate_until", {}, ("KING", {"until": ["\n\n"], "max_gen_toks": 4, "do_sample": False}), 0)]
        assert len(model.generate_until(until, disable_tqdm=True)) == 1
    chat = LocalChatCompletion(model=model_of(url), base_url=f"{url}/v1/chat/completions")
    from lm_eval.models.api_models import JsonChatStr
    import json

    asked = [Instance("generate_until", {}, (JsonChatStr(json.dumps(CHAT)), {"until": ["\n\n"], "max_gen_toks": 4}), 0)]
    assert len(chat.generate_until(asked, disable_tqdm=True)) == 1


def main():
    logging.disable(logging.WARNING)
    url = sys.argv[1].rstrip("/")
    for check in (check_trl, check_litellm, check_lm_eval):
        check(url)
        print(f"good  {check.__name__.removeprefix('check_')}", flush=True)


if __name__ == "__main__":
    main()
