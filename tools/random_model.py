"""Writes a model of random bf16 weights of a given size, tensor by tensor: for measuring `patchhost export`.

    python tools/random_model.py OUT GIGABYTES [--dense]

Qwen3-MoE (hidden 2048, 64 experts of width 768), or with --dense Llama (hidden 4096, width 14336), with as many layers as
fit. Shards of 2 GB. Needs numpy. The values are N(0, 0.02), cut at random places from one block of 32 million.
"""
import argparse, json, os, struct

import numpy as np

SHARD = 2_000_000_000


def shapes(dense, layers):
    hidden, width, vocab, experts, q, kv = (4096, 14336, 128256, 0, 4096, 1024) if dense else (2048, 768, 151936, 64, 4096, 512)
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "lm_head.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for i in range(layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
        for name, shape in [("q", (q, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)), ("o", (hidden, q))]:
            yield f"{at}self_attn.{name}_proj.weight", shape
        if not dense:
            yield at + "self_attn.q_norm.weight", (128,)
            yield at + "self_attn.k_norm.weight", (128,)
            yield at + "mlp.gate.weight", (experts, hidden)
        for mlp in [f"{at}mlp."] if dense else [f"{at}mlp.experts.{e}." for e in range(experts)]:
            yield mlp + "gate_proj.weight", (width, hidden)
            yield mlp + "up_proj.weight", (width, hidden)
            yield mlp + "down_proj.weight", (hidden, width)


def bytes_of(shape):
    return 2 * int(np.prod(shape))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("gigabytes", type=float)
    parser.add_argument("--dense", action="store_true")
    args = parser.parse_args()
    os.makedirs(args.out)
    layers = 1
    while sum(bytes_of(s) for _, s in shapes(args.dense, layers + 1)) <= args.gigabytes * 1e9:
        layers += 1

    rng = np.random.default_rng(0)
    pool = (rng.standard_normal(1 << 25, dtype=np.float32) * 0.02).view(np.uint32)
    pool = ((pool + 0x8000) >> 16).astype(np.uint16).tobytes()

    def data(length):
        while length > 0:
            start = 2 * int(rng.integers(0, 1 << 24))
            piece = pool[start : start + min(length, len(pool) - start)]
            yield piece
            length -= len(piece)

    shards, filled = [[]], 0
    for name, shape in shapes(args.dense, layers):
        if filled + bytes_of(shape) > SHARD and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += bytes_of(shape)
    weight_map, total = {}, 0
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in tensors:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + bytes_of(shape)]}
            at += bytes_of(shape)
            weight_map[name] = file
        total += at
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(args.out, file), "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for _, shape in tensors:
                for piece in data(bytes_of(shape)):
                    f.write(piece)
    with open(os.path.join(args.out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f)
    config = {"num_hidden_layers": layers, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False, "hidden_act": "silu",
              "head_dim": 128, "torch_dtype": "bfloat16", "max_position_embeddings": 4096}
    if args.dense:
        config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    else:
        config |= {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
                   "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 64, "num_experts_per_tok": 8,
                   "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "num_attention_heads": 32,
                   "num_key_value_heads": 4, "vocab_size": 151936}
    with open(os.path.join(args.out, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    print(f"{total / 1e9:.2f} GB, {layers} layers, {len(weight_map)} tensors, {len(shards)} files")


if __name__ == "__main__":
    main()
