"""Tools with unmodified clients: openai, LangChain, LiteLLM. The model is the bundled one with another vocabulary: whatever it is
asked, it calls two tools.

    pip install openai==3.57.0 langchain-openai==1.7.4 litellm==1.110.2
    python check_agents.py PATH/TO/patchhost MODEL        # MODEL: models/tiny-shakespeare-moe

Exits 1 at the first thing that is not as the clients expect it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request

PIECES = ["I look", ".\n<tool_c", "all>\n{\"na", "me\": \"get_weather\", \"arg", "uments\": {\"ci", "ty\": \"Par", "is\", \"days\"", ": 2}}\n</tool", "_call>\n<t",
          "ool_call>{\"name\"", ": \"now\", ", "\"arguments\":", " {}}", "</tool_call> "]
ARGUMENTS = {"city": "Paris", "days": 2}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Says the weather", "strict": True, "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
ASKED = [{"role": "user", "content": "How is the weather in Paris?"}]


class Server:
    def __init__(self, binary, model, *more):
        self.process = subprocess.Popen([binary, "serve", model, "--listen", "127.0.0.1:0", "--format", "json", *more], stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{json.loads(self.process.stdout.readline())['port']}"

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=60))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def parrot(binary, model, folder):
    """A model that says PIECES, one for each token, and what a request must hold for that."""
    shutil.copytree(model, folder)
    open(os.path.join(folder, "chat_template.jinja"), "w").write("{% set all = messages | tojson ~ (tools | tojson) %}K")
    path = os.path.join(folder, "tokenizer.json")
    tokenizer = json.load(open(path))
    tokenizer["model"]["merges"] = []
    json.dump(tokenizer, open(path, "w"))
    args = {"max_tokens": len(PIECES) + 1, "temperature": 0, "repetition_penalty": 100, "ignore_eos": True, "logit_bias": {"0": -100}}
    with Server(binary, folder) as server:
        ids = server.post("/v1/chat/completions", {"messages": ASKED, "return_token_ids": True, **args})["choices"][0]["token_ids"]
    assert len(set(ids)) == len(PIECES) + 1, ids
    vocabulary, names = tokenizer["model"]["vocab"], {v: k for k, v in tokenizer["model"]["vocab"].items()}
    for token, piece in zip(ids, PIECES):
        del vocabulary[names[token]]
        vocabulary[piece.replace(" ", "Ġ").replace("\n", "Ċ")] = token
    json.dump(tokenizer, open(path, "w"))
    return {**args, "stop_token_ids": [ids[-1]]}


def calls_of(calls):
    return [(c.function.name, json.loads(c.function.arguments)) for c in calls]


def openai(url, model, args):
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    ask = dict(model=model, messages=ASKED, tools=TOOLS, max_tokens=args["max_tokens"], temperature=0,
               extra_body={k: v for k, v in args.items() if k not in ("max_tokens", "temperature")})
    whole = client.chat.completions.create(**ask).choices[0]
    wanted = [("get_weather", ARGUMENTS), ("now", {})]
    assert whole.finish_reason == "tool_calls" and whole.message.content == "I look.", whole
    assert calls_of(whole.message.tool_calls) == wanted, whole
    one = client.chat.completions.create(**ask, parallel_tool_calls=False).choices[0]
    assert calls_of(one.message.tool_calls) == wanted[:1], one
    for reader in (streamed, helped):
        message, reason = reader(client, ask)
        assert reason == "tool_calls" and message == ("I look.", wanted), (reader, message, reason)
    # The second turn: the answer of the tool goes back.
    messages = [*ASKED, whole.message, *({"role": "tool", "tool_call_id": c.id, "content": "18 C"} for c in whole.message.tool_calls)]
    assert client.chat.completions.create(**{**ask, "messages": messages}).choices[0].message.tool_calls
    none = client.chat.completions.create(**ask, tool_choice="none").choices[0]
    assert none.finish_reason == "stop" and not none.message.tool_calls and "<tool_call>" in none.message.content, none
    for refused in (dict(tools=TOOLS, functions=[{"name": "f"}]), dict(tools=[{"type": "custom", "custom": {"name": "f"}}])):
        try:
            client.chat.completions.create(**{**ask, **refused})
            raise AssertionError(refused)
        except openai.BadRequestError as e:
            assert e.param, e


def streamed(client, ask):
    content, calls, reason = "", {}, None
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reason = choice.finish_reason or reason
            for delta in choice.delta.tool_calls or []:
                call = calls.setdefault(delta.index, {"id": delta.id, "name": delta.function.name, "arguments": ""})
                assert call["id"] and call["name"], delta
                call["arguments"] += delta.function.arguments or ""
    return (content, [(c["name"], json.loads(c["arguments"])) for _, c in sorted(calls.items())]), reason


def helped(client, ask):
    with client.chat.completions.stream(**ask) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    return (choice.message.content, calls_of(choice.message.tool_calls)), choice.finish_reason


def langchain(url, model, args):
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def get_weather(city: str, days: int) -> str:
        """Says the weather."""
        return "18 C"

    @tool
    def now() -> str:
        """The time."""
        return "7"

    extra = {k: v for k, v in args.items() if k not in ("max_tokens", "temperature")}
    chat = ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, max_tokens=args["max_tokens"], extra_body=extra)
    bound = chat.bind_tools([get_weather, now])
    answer = bound.invoke("How is the weather in Paris?")
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("get_weather", ARGUMENTS), ("now", {})], answer
    whole = None
    for chunk in bound.stream("How is the weather in Paris?"):
        whole = chunk if whole is None else whole + chunk
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("get_weather", ARGUMENTS), ("now", {})], whole
    results = [t.invoke(c) for t, c in zip([get_weather, now], answer.tool_calls)]
    assert bound.invoke([("user", "How is the weather in Paris?"), answer, *results]).tool_calls


def litellm(url, model, args):
    import litellm

    ask = dict(model=f"hosted_vllm/{model}", api_base=f"{url}/v1", api_key="none", messages=ASKED, tools=TOOLS, **args)
    whole = litellm.completion(**ask).choices[0]
    assert whole.finish_reason == "tool_calls" and calls_of(whole.message.tool_calls) == [("get_weather", ARGUMENTS), ("now", {})], whole
    rebuilt = litellm.stream_chunk_builder(list(litellm.completion(**ask, stream=True))).choices[0]
    assert calls_of(rebuilt.message.tool_calls) == [("get_weather", ARGUMENTS), ("now", {})], rebuilt


def main(binary, model):
    with tempfile.TemporaryDirectory() as tmp:
        folder = os.path.join(tmp, "parrot")
        args = parrot(binary, model, folder)
        with Server(binary, folder, "--tool-call-parser", "hermes", "--enable-auto-tool-choice") as server:
            for client in (openai, langchain, litellm):
                client(server.url, "parrot", args)
                print("good ", client.__name__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
