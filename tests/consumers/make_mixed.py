"""Makes small random models whose matrices are only partly multiples of 128, as DeepSeek-V3's own kv_a_proj (576x7168).

    python make_mixed.py OUT            # OUT/llama_mixed, OUT/qwen3_moe_mixed, OUT/deepseek_v3_mixed

transformers would load 192x256 in block FP8 silently wrong: exports must keep such matrices in bf16.
"""
import os, sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(1)
COMMON = dict(vocab_size=320, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=128, head_dim=64, tie_word_embeddings=False)
MODELS = {
    # gate and up 320x256, down 256x320, k and v 192x256
    "llama_mixed": ("llama", dict(intermediate_size=320, head_dim=96)),
    # experts of width 192; attention in whole blocks
    "qwen3_moe_mixed": ("qwen3_moe", dict(intermediate_size=512, moe_intermediate_size=192, num_experts=4, num_experts_per_tok=2,
                                          decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True)),
    # kv_a_proj 192x256
    "deepseek_v3_mixed": ("deepseek_v3", dict(
        intermediate_size=512, moe_intermediate_size=128, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2, n_group=4,
        topk_group=2, norm_topk_prob=True, routed_scaling_factor=2.5, first_k_dense_replace=1, q_lora_rank=128, kv_lora_rank=128,
        qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64, num_key_value_heads=4)),
}

generator = torch.Generator().manual_seed(5)
for name, (family, extra) in MODELS.items():
    config = AutoConfig.for_model(family, **{**COMMON, **extra})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    folder = os.path.join(sys.argv[1], name)
    model.save_pretrained(folder)
    ids = (torch.arange(24) * 37 + 11).remainder(config.vocab_size)
    with torch.no_grad():
        logits = model.float()(ids[None], use_cache=False).logits
    save_file({"input_ids": ids, "logits": logits}, os.path.join(folder, "golden.safetensors"))
