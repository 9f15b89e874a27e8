"""vLLM's CPU build: its engine in this process, stepped by hand, so that the first tokens and the rest have a time each."""

import argparse
import os
import time
from pathlib import Path

import common


def load(folder, dtype):
    """Jobs {"prompts", "new"}."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1",
        # Its own binding of threads to cores would put all engines on the same ones.
        VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="WARNING",
    )
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder), dtype=dtype, max_model_len=common.CONTEXT, max_num_seqs=8, enable_prefix_caching=False,
        disable_log_stats=True, seed=0,
    )
    engine = llm.llm_engine
    count = 0

    def work(job):
        nonlocal count
        params = SamplingParams(temperature=0.0, max_tokens=job["new"], ignore_eos=True, detokenize=False)
        names = []
        started = time.perf_counter()
        for prompt in job["prompts"]:
            names.append(str(count))
            engine.add_request(names[-1], {"prompt_token_ids": prompt}, params)
            count += 1
        tokens, prefilled = {}, None
        while engine.has_unfinished_requests():
            for output in engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
            if prefilled is None and len(tokens) == len(names) and all(tokens.values()):
                prefilled = time.perf_counter()
        done = time.perf_counter()
        made = [tokens[key] for key in tokens]
        return {"prefill_s": prefilled - started, "decode_s": done - prefilled, "tokens": made}

    return {}, work


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    common.serve(lambda: load(args.model, args.dtype))
