"""Train the bundled Qwen3-MoE model on the CPU and export it.

    python train.py --data SCRATCH/data --work SCRATCH/run --out ../../models/tiny-shakespeare-moe

The learning rate follows elapsed time (--minutes), so a run always ends with a
finished decay, on a machine of any speed; --steps N schedules by steps instead.
Every --export-minutes the weights are rounded to bf16 and the held-out scenes
are scored with the rounded weights; if that loss is the best so far the model
folder is replaced, file by file and atomically. --resume continues a run from
the raw state in the work folder.

The model below is written by hand (no transformers import); parameter names
and arithmetic are those of Qwen3MoeForCausalLM, which verify_transformers.py
checks. The experts of a layer are one stacked parameter while training and
are split into the per-expert tensors of the checkpoint format on export.
"""
import argparse
import json
import math
import os
import shutil
import time

# Let OpenMP threads sleep at barriers: on a machine whose cores are shared,
# spinning cut the speed to 40 %. Must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "router_aux_loss_coef": 0.01,
    "output_router_logits": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "max_position_embeddings": 512,
    "max_window_layers": 4,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
}
GENERATION = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": 512,
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": None,
    "clean_up_tokenization_spaces": False,
    "add_prefix_space": False,
    "added_tokens_decoder": {
        "0": {"content": "<|endoftext|>", "lstrip": False, "normalized": False,
              "rstrip": False, "single_word": False, "special": True},
    },
}


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Dropout:
    """Dropout with masks cut at random offsets from one pool: drawing a fresh
    mask each time costs a CPU more than an eighth of the training step."""

    def __init__(self, rate, size=1 << 23):
        self.rate = rate
        if rate:
            self.pool = (torch.rand(size) >= rate).float() / (1 - rate)

    def __call__(self, x):
        if not self.rate:
            return x
        at = torch.randint(self.pool.numel() - x.numel(), (1,)).item()
        return x * self.pool[at:at + x.numel()].view(x.shape)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        h = c["hidden_size"]
        self.q_proj = nn.Linear(h, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(h, self.kv * self.dim, bias=False)
        self.v_proj = nn.Linear(h, self.kv * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, h, bias=False)
        self.q_norm = Norm(self.dim, c["rms_norm_eps"])
        self.k_norm = Norm(self.dim, c["rms_norm_eps"])

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(b, t, self.heads, self.dim))
        k = self.k_norm(self.k_proj(x).view(b, t, self.kv, self.dim))
        v = self.v_proj(x).view(b, t, self.kv, self.dim)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = self.heads // self.kv
        k = k.repeat_interleave(group, dim=2)
        v = v.repeat_interleave(group, dim=2)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Experts(nn.Module):
    """Top-k routing: sort the (token, expert) pairs, one matmul chain per expert."""

    def __init__(self, c):
        super().__init__()
        h, f = c["hidden_size"], c["moe_intermediate_size"]
        self.n, self.k, self.f = c["num_experts"], c["num_experts_per_tok"], f
        self.gate = nn.Linear(h, self.n, bias=False)
        self.gate_up = nn.Parameter(torch.empty(self.n, 2 * f, h))
        self.down = nn.Parameter(torch.empty(self.n, h, f))

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        probs = self.gate(x).float().softmax(-1)
        weight, chosen = probs.topk(self.k, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)

        order = chosen.reshape(-1).argsort(stable=True)
        token = order // self.k
        counts = torch.bincount(chosen.reshape(-1), minlength=self.n)
        outs = []
        for rows, up, down in zip(x.index_select(0, token).split(counts.tolist()), self.gate_up.unbind(0), self.down.unbind(0)):
            g, u = F.linear(rows, up).split(self.f, dim=-1)
            outs.append(F.linear(F.silu(g) * u, down))
        y = torch.cat(outs) * weight.reshape(-1)[order].to(outs[0].dtype).unsqueeze(1)
        y = torch.zeros(x.shape, dtype=y.dtype).index_add(0, token, y)

        # Load balancing (Switch Transformer): 1 x k when the load is even.
        share = counts.float() / x.shape[0]
        balance = self.n * (share * probs.mean(0)).sum()
        return y.view(shape), balance, counts


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Experts(c)


class Model(nn.Module):
    def __init__(self, c, dropout=0.0):
        super().__init__()
        self.c, self.drop = c, Dropout(dropout)
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Norm(c["hidden_size"], c["rms_norm_eps"])
        inv = 1.0 / (c["rope_theta"] ** (torch.arange(0, c["head_dim"], 2).float() / c["head_dim"]))
        angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(), inv)
        self.register_buffer("cos", angle.cos()[:, None, :], persistent=False)
        self.register_buffer("sin", angle.sin()[:, None, :], persistent=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                std = c["initializer_range"]
                if name.endswith(("o_proj.weight", "mlp.down")):
                    std /= math.sqrt(2 * c["num_hidden_layers"])
                nn.init.normal_(p, std=std)

    def forward(self, ids):
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        drop = self.drop if self.training else (lambda x: x)
        x = drop(self.embed_tokens(ids))
        balance, counts = 0.0, []
        for layer in self.layers:
            x = x + drop(layer.self_attn(layer.input_layernorm(x), cos, sin))
            y, b, n = layer.mlp(layer.post_attention_layernorm(x))
            x = x + drop(y)
            balance = balance + b / len(self.layers)
            counts.append(n)
        return F.linear(self.norm(x), self.embed_tokens.weight), balance, counts

    def export(self):
        """The checkpoint's tensors, in bf16 and with its names."""
        out = {}
        f = self.c["moe_intermediate_size"]
        for name, p in self.named_parameters():
            p = p.detach().to(torch.bfloat16)
            base = "model." + name.rsplit(".", 1)[0]
            if name.endswith("mlp.gate_up"):
                for e in range(p.shape[0]):
                    out[f"{base}.experts.{e}.gate_proj.weight"] = p[e, :f].clone()
                    out[f"{base}.experts.{e}.up_proj.weight"] = p[e, f:].clone()
            elif name.endswith("mlp.down"):
                for e in range(p.shape[0]):
                    out[f"{base}.experts.{e}.down_proj.weight"] = p[e].clone()
            else:
                out["model." + name] = p.clone()
        return out

    def load_export(self, tensors):
        """The inverse of export()."""
        with torch.no_grad():
            for name, p in self.named_parameters():
                base = "model." + name.rsplit(".", 1)[0]
                for e in range(self.c["num_experts"]):
                    expert = f"{base}.experts.{e}."
                    if name.endswith("mlp.gate_up"):
                        p[e].copy_(torch.cat((tensors[expert + "gate_proj.weight"], tensors[expert + "up_proj.weight"])))
                    elif name.endswith("mlp.down"):
                        p[e].copy_(tensors[expert + "down_proj.weight"])
                if not name.endswith(("mlp.gate_up", "mlp.down")):
                    p.copy_(tensors["model." + name])


def evaluate(model, ids, length, rows=16):
    """Mean loss over every token but the first, in windows of `length`."""
    model.eval()
    total, count = 0.0, 0
    starts = list(range(0, len(ids) - 1, length))
    with torch.no_grad():
        full = [s for s in starts if s + length < len(ids)]
        batches = [full[i:i + rows] for i in range(0, len(full), rows)]
        batches += [[s] for s in starts[len(full):]]
        for batch in batches:
            x = torch.stack([ids[s:min(s + length, len(ids) - 1)] for s in batch])
            y = torch.stack([ids[s + 1:s + length + 1] for s in batch])
            loss = F.cross_entropy(model(x)[0].flatten(0, 1), y.flatten(), reduction="sum")
            total, count = total + loss.item(), count + y.numel()
    model.train()
    return total / count


def replace(path, temporary, write):
    """Write a file elsewhere, then move it into place in one step."""
    write(temporary)
    os.chmod(temporary, 0o644)
    try:
        os.replace(temporary, path)
    except OSError:  # another file system
        shutil.copyfile(temporary, path + ".part")
        os.replace(path + ".part", path)


def write_json(value):
    def write(path):
        with open(path, "w") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
    return write


def export(tensors, out, work, data):
    os.makedirs(out, exist_ok=True)
    temporary = os.path.join(work, "export.tmp")
    todo = {
        "tokenizer.json": lambda p: shutil.copyfile(os.path.join(data, "tokenizer.json"), p),
        "tokenizer_config.json": write_json(TOKENIZER),
        "generation_config.json": write_json(GENERATION),
        "config.json": write_json(CONFIG),
        "model.safetensors": lambda p: save_file(tensors, p, metadata={"format": "pt"}),
    }
    for name, write in todo.items():
        replace(os.path.join(out, name), temporary, write)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--data", required=True)
    a.add_argument("--work", required=True)
    a.add_argument("--out", required=True)
    a.add_argument("--minutes", type=float, default=62.0)
    a.add_argument("--steps", type=int, default=0)
    a.add_argument("--export-minutes", type=float, default=5.0)
    a.add_argument("--batch", type=int, default=8)
    a.add_argument("--length", type=int, default=256)
    a.add_argument("--lr", type=float, default=2e-3)
    a.add_argument("--warmup", type=float, default=0.02)
    a.add_argument("--weight-decay", type=float, default=0.1)
    a.add_argument("--dropout", type=float, default=0.0)
    a.add_argument("--clip", type=float, default=1.0)
    a.add_argument("--seed", type=int, default=1623)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--bf16", action="store_true", help="bf16 autocast")
    a.add_argument("--probe", type=int, default=0, help="time this many steps, export nothing")
    a.add_argument("--resume", action="store_true")
    a = a.parse_args()

    begin = time.monotonic()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    os.makedirs(a.work, exist_ok=True)
    train = torch.from_numpy(np.load(os.path.join(a.data, "train.npy")).astype(np.int64))
    val = torch.from_numpy(np.load(os.path.join(a.data, "val.npy")).astype(np.int64))
    model = Model(CONFIG, a.dropout)
    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": a.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.99), eps=1e-8, fused=True)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(train)} training tokens", flush=True)

    state_path = os.path.join(a.work, "state.pt")
    step, before, best, order, at = 0, 0.0, float("inf"), torch.empty(0, dtype=torch.long), 0
    if a.resume:
        s = torch.load(state_path)
        model.load_state_dict(s["model"])
        optimizer.load_state_dict(s["optimizer"])
        torch.set_rng_state(s["rng"])
        step, before, best, order, at = s["step"], s["elapsed"], s["best"], s["order"], s["at"]
    elapsed = lambda: before + time.monotonic() - begin

    log = open(os.path.join(a.work, "log.jsonl"), "a")
    next_export = elapsed() + a.export_minutes * 60
    recent, recent_balance, recent_from = [], [], (time.monotonic(), step)
    scored = Model(CONFIG)
    done = False
    while not done:
        # An epoch: windows at a random offset, in random order.
        if at + a.batch > len(order):
            offset = torch.randint(a.length, (1,)).item()
            starts = torch.arange(offset, len(train) - a.length - 1, a.length)
            order, at = starts[torch.randperm(len(starts))], 0
        rows = torch.stack([train[s:s + a.length + 1] for s in order[at:at + a.batch].tolist()])
        at += a.batch

        progress = min(1.0, step / a.steps if a.steps else elapsed() / (a.minutes * 60))
        if progress < a.warmup:
            rate = a.lr * (progress / a.warmup + 1e-3)
        else:
            rate = a.lr * 0.5 * (1 + math.cos(math.pi * (progress - a.warmup) / (1 - a.warmup)))
        for g in optimizer.param_groups:
            g["lr"] = rate

        with torch.autocast("cpu", torch.bfloat16, enabled=a.bf16):
            logits, balance, counts = model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        (loss + CONFIG["router_aux_loss_coef"] * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), a.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        recent.append(loss.item())
        recent_balance.append(balance.item())

        done = progress >= 1.0
        if a.probe:
            if step == a.probe:
                rate = (step - 2) * a.batch * a.length / (time.monotonic() - probe_from)
                print(f"{rate:.0f} tokens/s, loss {recent[-1]:.3f}")
                return
            if step == 2:
                probe_from = time.monotonic()
            continue
        if step % 100 == 0 or done:
            now = time.monotonic()
            tokens = (step - recent_from[1]) * a.batch * a.length
            line = {"step": step, "minutes": round(elapsed() / 60, 2), "lr": round(rate, 6),
                    "loss": round(sum(recent) / len(recent), 4),
                    "balance": round(sum(recent_balance) / len(recent_balance), 4),
                    "tokens_per_s": round(tokens / max(now - recent_from[0], 1e-9)),
                    "epochs": round(step * a.batch * a.length / len(train), 2)}
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            recent, recent_balance, recent_from = [], [], (now, step)
        if done or elapsed() >= next_export:
            next_export = elapsed() + a.export_minutes * 60
            tensors = model.export()
            scored.load_export(tensors)
            loss = evaluate(scored, val, a.length)
            line = {"step": step, "minutes": round(elapsed() / 60, 2), "val_loss_bf16": round(loss, 4),
                    "load": [[round(v, 3) for v in (n.float() / n.sum()).tolist()] for n in counts],
                    "exported": loss < best, "final": done}
            if loss < best:
                best = loss
                export(tensors, a.out, a.work, a.data)
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "rng": torch.get_rng_state(), "step": step, "elapsed": elapsed(),
                        "best": best, "order": order, "at": at}, state_path + ".tmp")
            os.replace(state_path + ".tmp", state_path)


if __name__ == "__main__":
    main()
