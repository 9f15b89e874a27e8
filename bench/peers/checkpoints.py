"""The checkpoints that every engine is given: random weights, fixed seeds, bf16, with a tokenizer.

A model of random weights is as fast as a trained one of the same shape if it takes as varied a path. Two things see to
that: weights of standard deviation 1/sqrt(fan-in) make each layer matter, so that greedy decoding does not fall into a
loop that would keep a few experts in the cache; and no end token is declared, so that every engine generates exactly
as many tokens as asked.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

VOCABULARY = 8192
POSITIONS = 4096

# Shapes are multiples of 128 (vLLM) and of 32 (ggml's Q8_0 blocks).
SHAPES = {
    "qwen3moe_165m": (
        "Qwen3MoeConfig",
        dict(
            hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
            num_experts=32, num_experts_per_tok=4, moe_intermediate_size=384, intermediate_size=1536,
            norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
            # mistral.rs insists on this field.
            max_window_layers=8, use_sliding_window=False,
        ),
    ),
    "moe_1024": (
        "MixtralConfig",
        dict(
            hidden_size=1024, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=4, head_dim=64,
            num_local_experts=16, num_experts_per_tok=2, intermediate_size=1024, sliding_window=None,
        ),
    ),
    "dense": (
        "LlamaConfig",
        dict(
            hidden_size=1024, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=4, head_dim=64,
            intermediate_size=2816,
        ),
    ),
}


def tokenizer_json(path: Path) -> None:
    """A byte-level BPE of VOCABULARY tokens, trained on words of random syllables."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(1)
    syllables = [c + v + e for c in "bcdfghjklmnprstvwz" for v in "aeiou" for e in ("", "n", "r", "s", "th", "x")]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 4))) for _ in range(30_000)]
    lines = [" ".join(rng.choice(words) for _ in range(12)) + "." for _ in range(20_000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    tokenizer.save(str(path))


def make(name: str, folder: Path) -> None:
    """Writes one checkpoint; does nothing if it is there."""
    if (folder / "done").exists():
        return
    import torch
    import transformers

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config_class, shape = SHAPES[name]
    config = getattr(transformers, config_class)(
        vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=None, rms_norm_eps=1e-6, dtype="bfloat16", **shape,
    )
    torch.manual_seed(list(SHAPES).index(name) + 1)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "norm" in key:
                value.fill_(1.0)
            else:
                fan_in = 1 if "embed" in key else value.shape[-1]
                value.copy_(torch.randn(value.shape) / fan_in**0.5)
    model.save_pretrained(folder)
    tokenizer_json(folder / "tokenizer.json")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "model_max_length": POSITIONS,
        "add_bos_token": False, "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2))
    (folder / "generation_config.json").unlink(missing_ok=True)
    # Readers that are older than transformers 5 want these at the top.
    path = folder / "config.json"
    written = json.loads(path.read_text())
    written["rope_theta"] = written.get("rope_parameters", {}).get("rope_theta", 10000.0)
    written["torch_dtype"] = "bfloat16"
    if "num_local_experts" in written and name.startswith("qwen"):
        written["num_experts"] = written["num_local_experts"]
    path.write_text(json.dumps(written, indent=2))
    count = sum(p.numel() for p in model.parameters())
    (folder / "done").write_text(f"{count}\n")
    print(f"{name}: {count / 1e6:.1f}M parameters in {folder}")


def parameters(folder: Path) -> int:
    """How many parameters a checkpoint has that `make` wrote."""
    return int((folder / "done").read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=SHAPES, nargs="*")
    args = parser.parse_args()
    for name in args.only or SHAPES:
        make(name, args.data / name)
