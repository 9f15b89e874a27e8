"""mistral.rs through its Python package. It takes text and says itself how long a request's prompt and the rest took."""

import argparse
from pathlib import Path

import common


def load(folder, dtype, isq):
    """Jobs {"texts", "prompts", "new"}."""
    import mistralrs

    which = mistralrs.Which.Plain(model_id=str(folder), dtype=getattr(mistralrs.ModelDType, dtype))
    runner = mistralrs.Runner(which=which, max_seqs=8, prefix_cache_n=0, in_situ_quant=isq, no_paged_attn=True)

    def one(text, new):
        request = mistralrs.CompletionRequest(
            model="default", prompt=text, max_tokens=new, temperature=0.0, top_k=1, ignore_eos=True
        )
        return runner.send_completion_request(request).usage

    def work(job):
        if len(job["texts"]) > 1:
            # A second request from another thread ends in "Already borrowed".
            raise RuntimeError("its Python package takes one request at a time")
        usages = [one(text, job["new"]) for text in job["texts"]]
        for usage, prompt in zip(usages, job["prompts"]):
            if (usage.prompt_tokens, usage.completion_tokens) != (len(prompt), job["new"]):
                raise RuntimeError(
                    f"{usage.prompt_tokens} + {usage.completion_tokens} tokens instead of {len(prompt)} + {job['new']}"
                )
        return {
            "prefill_s": max(u.total_prompt_time_sec for u in usages),
            "decode_s": max(u.total_completion_time_sec for u in usages),
            "tokens": None,
        }

    return {}, work


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("dtype", choices=["F32", "BF16"])
    parser.add_argument("--isq")
    args = parser.parse_args()
    common.serve(lambda: load(args.model, args.dtype, args.isq))
