"""What the peers' workers share: the protocol with the driver, prompts, and what a process says about itself."""

import json
import os
import random
import statistics
import sys
import time
from pathlib import Path

# What all copies of a weight matrix take together, so that each comes from memory, as a model's do: several times the
# last-level cache. patchhost's worker is given the same number.
BYTES_SMALL_M = 256 << 20
BYTES_LARGE_M = 64 << 20
# Positions of a sequence: the longest prompt, and what it generates.
CONTEXT = 2304


def serve(load):
    """Runs a worker: `load()` gives (about, work); then one job a line in, one answer a line out.

    Libraries print to standard output whenever they like; the protocol gets a descriptor of its own.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        started = time.perf_counter()
        about, work = load()
        about.setdefault("load_s", time.perf_counter() - started)
    except Exception as error:
        say({"error": reason(error)})
        raise
    say({"ready": True, "about": about})
    for line in sys.stdin:
        try:
            say(work(json.loads(line)))
        except Exception as error:
            import traceback

            traceback.print_exc()
            say({"error": reason(error)})
    answers.close()
    # Engines with threads of their own do not always end by themselves.
    os._exit(0)


def reason(error: BaseException) -> str:
    """An exception as one line of a table."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def timed(repeats, run):
    """Seconds of each run, after one that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}


def threads() -> int:
    """How many threads the driver asked for."""
    return int(os.environ["PEERS_THREADS"])


def torch_threads():
    """torch with exactly as many threads as asked."""
    import torch

    torch.set_num_threads(threads())
    torch.set_num_interop_threads(1)
    return torch


def greedy_loop(first, step, prompts, new):
    """The loop of engines that are driven token by token: `first(prompts)` and `step(tokens)` give one next token per
    sequence. The clock is that of every engine: the prompts until their first token, then the rest."""
    started = time.perf_counter()
    tokens = first(prompts)
    prefilled = time.perf_counter()
    made = [[t] for t in tokens]
    for _ in range(new - 1):
        tokens = step(tokens)
        for sequence, token in zip(made, tokens):
            sequence.append(token)
    done = time.perf_counter()
    return {"prefill_s": prefilled - started, "decode_s": done - prefilled, "tokens": made}


def prompts(folder: Path, count: int, length: int):
    """`count` prompts of exactly `length` tokens that are the same as ids and as text: some engines take only text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(length)
    special = {tokenizer.token_to_id(t) for t in ("<|begin|>", "<|end|>")}
    words = [
        text for i in range(tokenizer.get_vocab_size())
        if i not in special and (text := tokenizer.decode([i])).startswith(" ") and text.strip().isalpha()
    ]
    found = []
    while len(found) < count:
        ids = tokenizer.encode("".join(rng.choice(words) for _ in range(length))).ids[:length]
        if len(ids) == length and tokenizer.encode(tokenizer.decode(ids)).ids == ids:
            found.append((ids, tokenizer.decode(ids)))
    return found


def median(values):
    """The median, or none of nothing."""
    return statistics.median(values) if values else None
