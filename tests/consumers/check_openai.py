"""The official `openai` client against `patchhost serve`: everything that both have.

    patchhost serve --component fp8_block --listen 127.0.0.1:8000
    pip install openai
    python check_openai.py http://127.0.0.1:8000

Exits 1 at the first thing that is not as OpenAI's API says.
"""

import asyncio
import sys

import openai

PROMPT = "KING HENRY.\n"
CHAT = [{"role": "system", "content": "You are a king."}, {"role": "user", "content": "Who goes there?"}]


def models(client):
    found = client.models.list().data
    assert found and all(m.object == "model" for m in found), found
    assert client.models.retrieve(found[0].id).id == found[0].id
    try:
        client.models.retrieve("nowhere")
        raise AssertionError("a model that is not there")
    except openai.NotFoundError as e:
        assert e.code == "model_not_found" and e.param == "model", e
    return found[0].id


def completions(client, model):
    args = dict(model=model, prompt=PROMPT, max_tokens=24, temperature=1, seed=5)
    whole = client.completions.create(**args, n=2, logprobs=3)
    assert [c.index for c in whole.choices] == [0, 1]
    assert whole.choices[0].text != whole.choices[1].text
    assert whole.usage.completion_tokens <= 48 and whole.system_fingerprint.startswith("fp_")
    for choice in whole.choices:
        assert "".join(choice.logprobs.tokens).startswith(choice.text), choice
        assert all(p <= 0 for p in choice.logprobs.token_logprobs)
        assert all(3 <= len(top) <= 4 for top in choice.logprobs.top_logprobs)
        assert choice.weight_versions[0]["patch_set"] == whole.patch_set
    texts = ["", ""]
    for chunk in client.completions.create(**args, n=2, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        last = chunk
    assert texts == [c.text for c in whole.choices], texts
    assert last.usage.total_tokens == whole.usage.total_tokens
    several = client.completions.create(model=model, prompt=["To be", "My lord"], max_tokens=4, temperature=0)
    assert len(several.choices) == 2
    stop = whole.choices[0].text.split()[1]
    stopped = client.completions.create(**args, stop=[stop])
    assert stop not in stopped.choices[0].text and stopped.choices[0].finish_reason == "stop"
    extra = client.completions.create(**args, extra_body={"top_k": 1, "return_token_ids": True})
    greedy = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
    assert extra.choices[0].text == greedy.choices[0].text and extra.choices[0].token_ids
    score = client.completions.create(model=model, prompt=PROMPT, max_tokens=0, echo=True, logprobs=0)
    assert score.choices[0].text == PROMPT and score.choices[0].logprobs.token_logprobs[0] is None


def chat(client, model):
    args = dict(model=model, messages=CHAT, max_completion_tokens=24, temperature=0)
    whole = client.chat.completions.create(**args, logprobs=True, top_logprobs=2)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    text = ""
    for chunk in client.chat.completions.create(**args, stream=True):
        text += chunk.choices[0].delta.content or ""
    assert text == choice.message.content, (text, choice.message.content)
    # The helper that puts a stream together again; it takes an answer that was cut for an error.
    word = choice.message.content.split()[2]
    stopped = client.chat.completions.create(**args, stop=word).choices[0]
    assert stopped.finish_reason == "stop"
    with client.chat.completions.stream(**args, stop=word) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == stopped.message.content


def errors(client, model):
    for wrong, param in [({"temperature": -1}, "temperature"), ({"max_tokens": 100_000}, "max_tokens"), ({"n": 0}, "n")]:
        try:
            client.completions.create(model=model, prompt=PROMPT, **wrong)
            raise AssertionError(wrong)
        except openai.BadRequestError as e:
            assert e.param == param and "why:" in e.message, e
    try:
        client.chat.completions.create(model=model, messages=CHAT, functions=[{"name": "f", "parameters": {}}])
        raise AssertionError("functions")
    except openai.BadRequestError as e:
        assert e.param == "functions" and "tools" in e.message, e


async def together(url, model):
    """Many at once, over one client: each gets what it would get alone."""
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none")

    async def one(seed):
        args = dict(model=model, prompt=PROMPT, max_tokens=16, temperature=1, seed=seed)
        return (await client.completions.create(**args)).choices[0].text

    alone = [await one(seed) for seed in range(8)]
    assert await asyncio.gather(*map(one, range(8))) == alone


def main(url):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    model = models(client)
    completions(client, model)
    chat(client, model)
    errors(client, model)
    asyncio.run(together(url, model))
    print(f"openai {openai.__version__}: all good with `{model}`")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000")
