"""Makes small random models whose matrices are wholly or partly multiples of 128, as DeepSeek-V3's own kv_a_proj (576x7168).

    python make_mixed.py OUT [SEED]     # OUT/llama_mixed, OUT/qwen3_moe_mixed, …; SEED defaults to 5

transformers would load 192x256 in block FP8 silently wrong: exports must keep such matrices in bf16. Parameters are drawn, and
the goldens computed, as in ../oracle/make_more_families.py: no norm is 1 and no bias 0.
"""
import os, sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "oracle"))
import torch
import transformers

from make_more_families import build, save

COMMON = dict(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
MOE = dict(intermediate_size=512, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, norm_topk_prob=True)
MODELS = {
    # gate and up 320x256, down 256x320, k and v 192x256
    "llama_mixed": ("llama", dict(intermediate_size=320, head_dim=96)),
    # biases; k and v 64x256: q with them stays unquantized where the reader fuses the three
    "qwen2_mixed": ("qwen2", dict(intermediate_size=384, num_key_value_heads=1, tie_word_embeddings=True)),
    # experts of width 192; attention in whole blocks
    "qwen3_moe_mixed": ("qwen3_moe", dict(**MOE, moe_intermediate_size=192, mlp_only_layers=[0])),
    # experts in whole blocks, shared expert of width 192
    "qwen2_moe_mixed": ("qwen2_moe", dict(**MOE, moe_intermediate_size=128, shared_expert_intermediate_size=192)),
    "mixtral_whole": ("mixtral", dict(intermediate_size=256, num_local_experts=3, num_experts_per_tok=2)),
    # in_proj_qkvz 640x256, out_proj 256x192
    "qwen3_next_mixed": ("qwen3_next", dict(
        **MOE, mlp_only_layers=[], moe_intermediate_size=128, shared_expert_intermediate_size=128, linear_num_key_heads=2,
        linear_num_value_heads=3 * 2, linear_key_head_dim=64, linear_value_head_dim=32, linear_conv_kernel_dim=4,
        full_attention_interval=2, partial_rotary_factor=0.25)),
    # kv_a_proj 192x256
    "deepseek_v3_mixed": ("deepseek_v3", dict(
        intermediate_size=512, moe_intermediate_size=128, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, n_group=4,
        topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5, first_k_dense_replace=1, q_lora_rank=128, kv_lora_rank=128,
        qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64, num_key_value_heads=4)),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, (family, extra) in MODELS.items():
        model = build(name, {**COMMON, **extra, "family": family}, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
        save(model, os.path.join(sys.argv[1], name))
        print(name)
