"""Clients that people have, unmodified, against `patchhost serve`: openai with tools and formats, litellm, langchain.

    patchhost serve --listen 127.0.0.1:8000 --enable-auto-tool-choice --tool-call-parser hermes
    pip install openai litellm langchain langchain-openai pydantic
    python check_clients.py http://127.0.0.1:8000

The bundled model writes Shakespeare, so what it would say by itself is no call; what must be a call, or JSON, is one.
Exits 1 at the first thing that is not as these clients expect.
"""

import json
import sys
from enum import Enum

import openai
from pydantic import BaseModel

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}}, "required": ["city", "unit"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"], "additionalProperties": False}}}]
ASK = [{"role": "user", "content": "Weather in Paris?"}]
TURNS = ASK + [
    {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\", \"unit\": \"C\"}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "18"}]


class Role(str, Enum):
    king = "king"
    fool = "fool"


class Person(BaseModel):
    name: str
    age: int
    role: Role


def right_call(name, arguments):
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if name == "add":
        assert set(arguments) == {"a", "b"} and all(isinstance(v, int) for v in arguments.values()), arguments
    else:
        assert name == "get_weather" and set(arguments) == {"city", "unit"} and arguments["unit"] in "CF", (name, arguments)


def with_openai(url):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    args = dict(model=model, max_tokens=120, seed=3)
    for choice in ["auto", "none", None]:
        more = {} if choice is None else {"tool_choice": choice}
        answer = client.chat.completions.create(**args, messages=ASK, tools=TOOLS, **more)
        assert answer.choices[0].message.content is not None or answer.choices[0].message.tool_calls
    assert client.chat.completions.create(**args, messages=TURNS, tools=TOOLS).choices[0].finish_reason in ("stop", "length", "tool_calls")
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in [named, "required"]:
        answer = client.chat.completions.create(**args, messages=ASK, tools=TOOLS, tool_choice=choice)
        calls = answer.choices[0].message.tool_calls
        assert calls and all(call.type == "function" and call.id for call in calls), answer
        for call in calls:
            right_call(call.function.name, call.function.arguments)
        parts = {}
        for chunk in client.chat.completions.create(**args, messages=ASK, tools=TOOLS, tool_choice=choice, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
                part = parts.setdefault(delta.index, {"id": None, "name": None, "arguments": ""})
                part["id"] = part["id"] or delta.id
                part["name"] = part["name"] or delta.function.name
                part["arguments"] += delta.function.arguments or ""
        assert [(p["name"], json.loads(p["arguments"])) for p in parts.values()] == [(c.function.name, json.loads(c.function.arguments)) for c in calls], (parts, calls)
        with client.chat.completions.stream(**args, messages=ASK, tools=[openai.pydantic_function_tool(Person)], tool_choice="required") as stream:
            final = stream.get_final_completion()
        assert isinstance(final.choices[0].message.tool_calls[0].function.parsed_arguments, Person), final
    parsed = client.chat.completions.parse(**args, messages=ASK, response_format=Person).choices[0].message.parsed
    assert isinstance(parsed, Person), parsed
    assert isinstance(json.loads(client.chat.completions.create(**args, messages=ASK, response_format={"type": "json_object"}).choices[0].message.content), dict)
    try:
        client.chat.completions.create(**args, messages=[{"role": "user", "content": "word " * 3000}])
        raise AssertionError("a prompt beyond the context")
    except openai.BadRequestError as e:
        assert e.code == "context_length_exceeded", e
    return model


def with_litellm(url, model):
    import litellm

    args = dict(model="openai/" + model, api_base=url + "/v1", api_key="none", max_tokens=120, seed=3)
    answer = litellm.completion(**args, messages=ASK, tools=TOOLS, tool_choice="required")
    for call in answer.choices[0].message.tool_calls:
        right_call(call.function.name, call.function.arguments)
    parsed = litellm.completion(**args, messages=ASK, response_format=Person)
    Person.model_validate_json(parsed.choices[0].message.content)
    try:
        litellm.completion(**args, messages=[{"role": "user", "content": "word " * 3000}])
        raise AssertionError("a prompt beyond the context")
    except litellm.ContextWindowExceededError:
        pass


def with_langchain(url, model):
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, base_url=url + "/v1", api_key="none", max_tokens=120, seed=3)
    bound = chat.bind_tools(TOOLS, tool_choice="required").invoke("Weather in Paris?")
    for call in bound.tool_calls:
        right_call(call["name"], call["args"])
    assert bound.tool_calls, bound
    chat.bind_tools(TOOLS).invoke("Weather in Paris?")
    for method in ["json_schema", "function_calling", "json_mode"]:
        if method == "json_mode":
            assert isinstance(chat.with_structured_output(None, method=method).invoke("Answer in JSON"), dict)
        else:
            assert isinstance(chat.with_structured_output(Person, method=method).invoke("Who goes there?"), Person), method


def main(url):
    model = with_openai(url)
    print("openai: good")
    with_litellm(url, model)
    print("litellm: good")
    with_langchain(url, model)
    print("langchain: good")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000")
