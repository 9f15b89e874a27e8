"""Lets schemathesis reach the model: names of models that are not there, prompts beyond the vocabulary and answers of any
length would otherwise end nearly every request in the first check. Every third request goes as it was made."""

import itertools

import schemathesis

COUNT = itertools.count()
VOCABULARY = 2048  # of the bundled model
IDS = ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "tokens")


def fit(value):
    if isinstance(value, list):
        return [fit(v) for v in value] or [5]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value) % VOCABULARY
    return value or "KING"


def turn(message):
    if isinstance(message, dict) and not message.get("content"):
        return {**message, "content": "Who goes there?"}
    return message


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict) or next(COUNT) % 3 == 0:
        return body
    body = dict(body)
    body.pop("model", None)
    if isinstance(body.get("prompt"), (str, list)):
        body["prompt"] = fit(body["prompt"])
        body.pop("messages", None)
    if isinstance(body.get("messages"), list):
        body["messages"] = [turn(m) for m in body["messages"]] or body["messages"]
    for name in IDS:
        if isinstance(body.get(name), list):
            body[name] = fit(body[name])
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(name), int):
            body[name] %= 40
    if isinstance(body.get("min_tokens"), int):
        body["min_tokens"] %= 3
    if isinstance(body.get("logit_bias"), dict):
        bias = {str(i): v for i, v in enumerate(body["logit_bias"].values()) if isinstance(v, (int, float))}
        body["logit_bias"] = {k: max(-100.0, min(100.0, v)) for k, v in bias.items()}
    if "stream" in body and not body["stream"]:
        body.pop("stream_options", None)
    if body.get("stop") == "":
        body["stop"] = "\n\n"
    if not body.get("logprobs"):
        body.pop("top_logprobs", None)
    if isinstance(body.get("stop"), list):
        body["stop"] = [s for s in body["stop"] if s] if all(isinstance(s, str) for s in body["stop"]) else body["stop"]
    return body
