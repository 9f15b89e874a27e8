"""transformers on torch: generation by a plain greedy loop over the model with its own cache."""

import argparse
from pathlib import Path

import common


def load(folder, dtype, experts):
    """Jobs {"prompts", "new"}."""
    torch = common.torch_threads()
    import transformers

    options = {"experts_implementation": experts} if experts else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", **options
    ).eval()

    def work(job):
        cache = transformers.DynamicCache(config=model.config)

        def forward(ids):
            with torch.inference_mode():
                out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                return out.logits[:, -1].argmax(-1).tolist()

        return common.greedy_loop(
            lambda prompts: forward(torch.tensor(prompts)),
            lambda tokens: forward(torch.tensor(tokens).unsqueeze(1)),
            job["prompts"], job["new"],
        )

    return {"experts": str(getattr(model.config, "_experts_implementation", None))}, work


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--experts", help="eager, batched_mm or grouped_mm; the default is transformers' own choice")
    args = parser.parse_args()
    common.serve(lambda: load(args.model, args.dtype, args.experts))
