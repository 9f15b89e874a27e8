"""Check the exported model against transformers, and make or check golden.safetensors.

    python verify_transformers.py [--model DIR] [--write] [--samples 3]

1. Qwen3MoeForCausalLM.from_pretrained loads it with no missing, unexpected or
   mismatched keys.
2. Its logits equal those of the model train.py trained, within 1e-4 (f32
   arithmetic on the bf16 weights, eager attention).
3. The tokenizer loads with AutoTokenizer and PreTrainedTokenizerFast, both give
   the ids of the tokenizers library, and text round-trips.
4. golden.safetensors (input_ids I64 [24], logits F32 [24, 2048], both from
   transformers) is written with --write, else compared within 1e-4.
5. With --samples, prints text sampled at generation_config.json's settings.
"""
import argparse
import json
import os

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3MoeForCausalLM

import train

HERE = os.path.dirname(os.path.abspath(__file__))
PROMPT = "ROMEO.\nBut soft! What light through yonder window breaks?\nIt is the east, and Juliet is the sun!\n"
TEXTS = [
    PROMPT,
    "[Exeunt.]\n\nSCENE II. A heath.\n\n[Enter KING LEAR and Fool.]\n",
    "caf\u00e9 \u4f60\u597d \U0001f3ad\ttabs  and   spaces \r\n\n\n",
    "",
]


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--model", default=os.path.join(HERE, "..", "..", "models", "tiny-shakespeare-moe"))
    a.add_argument("--golden", default=os.path.join(HERE, "golden.safetensors"))
    a.add_argument("--write", action="store_true")
    a.add_argument("--samples", type=int, default=0)
    a.add_argument("--seed", type=int, default=7)
    a = a.parse_args()
    torch.set_num_threads(2)

    model, info = Qwen3MoeForCausalLM.from_pretrained(
        a.model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    model.eval()
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(key):
            raise SystemExit(f"{key}: {info[key]}")
    print(f"loaded, {sum(p.numel() for p in model.parameters())} parameters, no missing or unexpected keys")

    # The tokenizer.
    plain = Tokenizer.from_file(os.path.join(a.model, "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(a.model)
    fast = PreTrainedTokenizerFast.from_pretrained(a.model)
    for text in TEXTS:
        ids = plain.encode(text).ids
        for tok in (auto, fast):
            if tok(text)["input_ids"] != ids:
                raise SystemExit(f"token ids differ for {text!r}")
            if tok.decode(ids) != text:
                raise SystemExit(f"no round trip for {text!r}")
    if auto.eos_token_id != 0 or auto("a<|endoftext|>")["input_ids"][-1] != 0:
        raise SystemExit("<|endoftext|> is not token 0")
    print(f"tokenizer: {type(auto).__name__}, ids and round trips agree")

    # Logits.
    ids = plain.encode(PROMPT).ids[:24]
    if len(ids) != 24:
        raise SystemExit("the prompt is too short")
    ids = torch.tensor(ids)
    with torch.no_grad():
        logits = model(ids[None]).logits[0].float()
    with open(os.path.join(a.model, "config.json")) as f:
        ours = train.Model(json.load(f)).eval()
    ours.load_export(load_file(os.path.join(a.model, "model.safetensors")))
    with torch.no_grad():
        own = ours(ids[None])[0][0]
        long = torch.randint(1, 2048, (2, 300), generator=torch.Generator().manual_seed(1))
        far = (ours(long)[0] - model(long).logits).abs().max().item()
    near = (own - logits).abs().max().item()
    print(f"largest logit difference to train.py: {near:.2e} (prompt), {far:.2e} (2 x 300 random tokens)")
    if max(near, far) > 1e-4:
        raise SystemExit("the logits differ")

    if a.write:
        save_file({"input_ids": ids.clone(), "logits": logits.contiguous()}, a.golden)
        print("wrote golden.safetensors")
    else:
        golden = load_file(a.golden)
        if golden["input_ids"].tolist() != ids.tolist():
            raise SystemExit("golden.safetensors has other input_ids")
        gap = (golden["logits"] - logits).abs().max().item()
        print(f"largest logit difference to golden.safetensors: {gap:.2e}")
        if gap > 1e-4:
            raise SystemExit("golden.safetensors differs")

    for i in range(a.samples):
        torch.manual_seed(a.seed + i)
        prompt = torch.tensor([plain.encode(["ROMEO.\n", "KING HENRY.\n", "[Enter FIRST WITCH.]\n\n"][i % 3]).ids])
        out = model.generate(prompt, max_new_tokens=160)
        print(f"--- sample, seed {a.seed + i}\n{plain.decode(out[0].tolist())}")


if __name__ == "__main__":
    main()
