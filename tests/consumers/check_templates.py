"""Chat templates: what `patchhost serve` writes against what transformers writes.

    pip install transformers==5.24.0 trl==1.16.0
    patchhost serve --trust-request-chat-template --listen 127.0.0.1:8000
    python check_templates.py http://127.0.0.1:8000 [FOLDER…]

All templates of TRL, and those of the folders (each `*.jinja` in them), with conversations of text, tools, calls, reasoning
and parts. A text must be equal, and what transformers refuses must be refused; but for what transformers cannot write of
OpenAI's forms, or loses (no content beside calls, contents in parts, arguments as an object where a template wants a text),
which is counted by itself. Exits 1 if any differs.
"""

import glob
import importlib.util
import json
import os
import sys
import urllib.error
import urllib.request

from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

SCHEMA = {"type": "object", "properties": {
    "city": {"type": "string", "description": "Which <city> & \"where\""},
    "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
    "days": {"type": "array", "items": {"type": "integer"}}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Says the weather.\nIn a city.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}},
]
CALLS = [{"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris é", "days": [1, 2], "x": 1.5, "y": None, "z": True}}},
         {"id": "call00002", "type": "function", "function": {"name": "now", "arguments": {}}}]
USER, ANSWER = {"role": "user", "content": "Grüße <b> & \"q\" 'x' {{ y }}\n"}, {"role": "assistant", "content": "Well, hello. "}
SYSTEM = {"role": "system", "content": "You are <brief>. "}
RESULTS = [{"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "18 C"},
           {"role": "tool", "tool_call_id": "call00002", "name": "now", "content": "{\"h\": 7}"}]
LAST = {"role": "user", "content": "  Thanks, and now?"}
CONVERSATIONS = {
    "a question": dict(messages=[USER]),
    "with a system prompt": dict(messages=[SYSTEM, USER, ANSWER, LAST]),
    "an answer to learn from": dict(messages=[SYSTEM, USER, ANSWER], add_generation_prompt=False),
    "reasoning": dict(messages=[USER, {"role": "assistant", "content": "So.", "reasoning_content": "Let me think.\nYes."}, LAST]),
    "reasoning in the text": dict(messages=[USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nSo."}, LAST]),
    "the last answer reasons": dict(messages=[USER, {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}], add_generation_prompt=False),
    "tools": dict(messages=[SYSTEM, USER], tools=TOOLS),
    "tools without a system prompt": dict(messages=[USER], tools=TOOLS),
    "calls": dict(messages=[USER, {"role": "assistant", "content": "", "tool_calls": CALLS}, *RESULTS], tools=TOOLS),
    "one call": dict(messages=[USER, {"role": "assistant", "content": "I look.", "tool_calls": CALLS[:1]}, RESULTS[0], ANSWER, LAST], tools=TOOLS),
    "calls without content": dict(messages=[USER, {"role": "assistant", "content": None, "tool_calls": CALLS[:1]}, RESULTS[0]], tools=TOOLS),
    "a call that was reasoned": dict(messages=[USER, {"role": "assistant", "content": "", "reasoning_content": "A tool knows.", "tool_calls": CALLS[:1]}, RESULTS[0]], tools=TOOLS),
    "without thinking": dict(messages=[SYSTEM, USER], more={"enable_thinking": False}),
    "with thinking": dict(messages=[USER], more={"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}),
    "a developer": dict(messages=[{"role": "developer", "content": "Be brief."}, USER]),
    "documents": dict(messages=[USER], documents=[{"title": "T", "text": "Some <text>"}, {"title": "Ü", "text": "more"}]),
    "goes on": dict(messages=[USER, {"role": "assistant", "content": "I think"}], continue_final_message=True),
    "parts": dict(messages=[{"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]}]),
}


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer), None
    except urllib.error.HTTPError as e:
        return None, json.load(e)["error"]["message"]


def served(url, template, case):
    body = {"messages": case["messages"], "chat_template": template, "chat_template_kwargs": {**SPECIALS, **case.get("more", {})}}
    for name in ("tools", "documents", "add_generation_prompt", "continue_final_message"):
        if name in case:
            body[name] = case[name]
    tokens, error = post(url, "/tokenize", body)
    if error:
        return None, error
    return post(url, "/detokenize", {"tokens": tokens["tokens"]})[0]["prompt"], None


SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def expected(template, case):
    messages, continued = case["messages"], case.get("continue_final_message", False)
    # A template that does not know `developer` gets `system`, as OpenAI says that it is to be read.
    if "developer" not in template:
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    try:
        texts, _ = render_jinja_template(
            [_normalize_chat_messages(messages)], tools=case.get("tools"), documents=case.get("documents"), chat_template=template,
            add_generation_prompt=case.get("add_generation_prompt", not continued), continue_final_message=continued,
            **{**SPECIALS, **case.get("more", {})})
        return texts[0], None
    except Exception as e:
        return None, f"{type(e).__name__}: {e}"


def main(url, folders):
    trl = importlib.util.find_spec("trl")
    if trl: folders = [os.path.join(trl.submodule_search_locations[0], "chat_templates"), *folders]
    files = sorted(f for folder in folders for f in glob.glob(os.path.join(folder, "*.jinja")))
    assert files, "no templates: install trl, or name a folder of them"
    counts = {"equal": 0, "refused by both": 0, "written for OpenAI's sake": 0, "different": 0}
    for file in files:
        template = open(file, encoding="utf-8").read()
        for name, case in CONVERSATIONS.items():
            (want, cannot), (got, refused) = expected(template, case), served(url, template, case)
            of_openai = "tool_calls" in str(case["messages"]) and want is None
            of_openai |= name == "parts" and (want is None or "type" in want or "One" not in want)
            if want is not None and got == want: kind = "equal"
            elif want is None and got is None: kind = "refused by both"
            elif got is not None and of_openai: kind = "written for OpenAI's sake"
            else: kind = "different"
            counts[kind] += 1
            if kind == "different":
                print(f"DIFFERENT  {os.path.basename(file)}, {name}\n  transformers: {want!r} {cannot or ''}\n  patchhost:    {got!r} {refused or ''}")
    print(f"{len(files)} templates x {len(CONVERSATIONS)} conversations:", ", ".join(f"{n} {kind}" for kind, n in counts.items()))
    sys.exit(1 if counts["different"] else 0)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2:])
