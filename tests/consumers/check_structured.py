"""Answers by random JSON schemas from `patchhost serve`, judged by the package `jsonschema`.

    patchhost serve --listen 127.0.0.1:8000 --max-logprobs -1
    pip install jsonschema
    python check_structured.py http://127.0.0.1:8000 [SCHEMAS] [SEED]

Each schema is of ordinary size: objects with required and optional members, arrays, enums, constants, bounds, patterns,
references. The model is whatever is served: a model that babbles is the harder test. Prints a line for each failure, and exits
1 if there is one. Every tenth answer is asked for with all log probabilities: those of each token must sum to 1.
"""

import json
import math
import random
import sys
import urllib.request

import jsonschema

WORDS = ["name", "age", "city", "tags", "price", "is_open", "items", "nested", "id", "größe", "a b", "x-y", "kind", "note"]


def schema(dice, depth=0):
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "pattern", "format"]
    if depth < 3:
        kinds += ["object"] * 4 + ["array"] * 3 + ["anyOf", "nullable", "allOf"]
    kind = "object" if depth == 0 and dice.random() < 0.8 else dice.choice(kinds)
    inner = lambda: schema(dice, depth + 1)
    if kind == "string":
        out = {"type": "string"}
        if dice.random() < 0.4:
            out["minLength"] = dice.randint(0, 5)
        if dice.random() < 0.4:
            out["maxLength"] = dice.randint(5, 30)
        return out
    if kind in ("integer", "number"):
        out = {"type": kind}
        low = dice.randint(-1000, 1000)
        if dice.random() < 0.5:
            out[dice.choice(["minimum", "exclusiveMinimum"])] = low
        if dice.random() < 0.5:
            out[dice.choice(["maximum", "exclusiveMaximum"])] = low + dice.randint(2, 2000)
        if kind == "integer" and dice.random() < 0.2:
            out["multipleOf"] = 1
        return out
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "enum":
        return {"enum": dice.sample(["red", "green", 'quo"te', "ünï", 1, 2.5, -3, None, True, ""], dice.randint(1, 4))}
    if kind == "const":
        return {"const": dice.choice(["fixed", 7, False, None, [1, "a"], {"k": "v"}])}
    if kind == "pattern":
        return {"type": "string", "pattern": dice.choice([r"^[A-Z]{2}-\d{3}$", r"^\d{4}$", r"^(foo|bar)+$", r"^[a-z]{1,8}@[a-z]{1,8}\.org$"])}
    if kind == "format":
        return {"type": "string", "format": dice.choice(["date", "date-time", "time", "uuid", "ipv4", "email"])}
    if kind == "object":
        names = dice.sample(WORDS, dice.randint(0, 5))
        out = {"type": "object", "properties": {name: inner() for name in names}}
        out["required"] = dice.sample(names, dice.randint(0, len(names)))
        if dice.random() < 0.6:
            out["additionalProperties"] = False
        elif dice.random() < 0.3:
            out["additionalProperties"] = {"type": "integer"}
        return out
    if kind == "array":
        out = {"type": "array", "items": inner()}
        if dice.random() < 0.5:
            out["minItems"] = dice.randint(0, 3)
        if dice.random() < 0.5:
            out["maxItems"] = dice.randint(3, 6)
        return out
    if kind == "anyOf":
        return {"anyOf": [inner() for _ in range(dice.randint(2, 3))]}
    if kind == "nullable":
        return {"type": [dice.choice(["string", "integer", "boolean"]), "null"]}
    return {"allOf": [{"type": "object", "properties": {"p": {"type": "integer"}}, "required": ["p"]}, {"type": "object", "properties": {"q": inner()}}]}


def ask(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def main(url, count=500, seed=1):
    failures = lengths = 0
    longest = 0
    for i in range(count):
        dice = random.Random(seed * 1_000_003 + i)
        wanted = schema(dice)
        if dice.random() < 0.2:
            wanted = {"type": "object", "properties": {"here": {"$ref": "#/$defs/it"}}, "required": ["here"], "$defs": {"it": wanted}}
        body = {"prompt": dice.choice(["KING HENRY.\n", "{", "To be, or not"]), "temperature": dice.choice([0, 0.7, 1.0, 1.5]), "seed": i, "max_tokens": 400,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}}
        full = i % 10 == 0
        if full:
            body["logprobs"] = -1
            body["return_tokens_as_token_ids"] = True
        status, answer = ask(url, "/v1/completions", body)
        if status != 200:
            print(f"{i}: HTTP {status}: {json.dumps(answer)[:400]} for {json.dumps(wanted)}")
            failures += 1
            continue
        choice = answer["choices"][0]
        text = choice["text"]
        longest = max(longest, answer["usage"]["completion_tokens"])
        lengths += choice["finish_reason"] == "length"
        try:
            jsonschema.Draft202012Validator(wanted, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))
        except Exception as error:
            print(f"{i}: {type(error).__name__}: {str(error).splitlines()[0]}: {text[:300]!r} ({choice['finish_reason']}) for {json.dumps(wanted)}")
            failures += 1
        if full:
            for place, (own, top) in enumerate(zip(choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"])):
                total = math.fsum(math.exp(p) for p in top.values())
                if abs(total - 1) > 1e-4 or own > 1e-6:
                    print(f"{i}: at {place} the probabilities sum to {total}")
                    failures += 1
                    break
    print(f"{count - failures} of {count} right; {lengths} cut by their limit; the longest had {longest} tokens")
    return failures == 0


if __name__ == "__main__":
    numbers = [int(n) for n in sys.argv[2:]]
    sys.exit(not main(sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000", *numbers))
