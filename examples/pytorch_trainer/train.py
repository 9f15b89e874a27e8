#!/usr/bin/env python3
"""A PyTorch trainer that uses `patchhost serve` as its rollout engine, over HTTP.

Every step: sample groups of completions with their log probabilities, score them by a rule, one policy-gradient update
(GRPO advantages, token-level truncated importance sampling), and push the new bf16 weights as safetensors. The server
quantizes them through its patches. At `--swap-at` a patch is staged and swapped in over the admin API, inside the run.

The model is a Hugging Face folder that transformers can load; by default the one in this repository.
"""

import argparse
import json
import pathlib
import sys
import time

import requests
import torch
from safetensors.torch import save
from transformers import AutoModelForCausalLM

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ["ROMEO.\n", "JULIET.\n", "HAMLET.\n", "KING.\n", "QUEEN.\n", "BRUTUS.\n", "PORTIA.\n", "LEAR.\n"]


def reward(text):
    """The share of words without the letter e; 0 for fewer than three words (task `lipogram` of `patchhost train`)."""
    words = "".join(c if c.isalpha() or c == "'" else " " for c in text).split()
    return 0.0 if len(words) < 3 else sum("e" not in w.lower() for w in words) / len(words)


class Server:
    """What the trainer asks of `patchhost serve`."""

    def __init__(self, url, token):
        self.url, self.http = url.rstrip("/"), requests.Session()
        self.admin_headers = {"Authorization": f"Bearer {token}"} if token else None

    def call(self, method, path, **kwargs):
        answer = self.http.request(method, self.url + path, timeout=600, **kwargs)
        if answer.status_code >= 400:
            sys.exit(f"{method} {path}: HTTP {answer.status_code}\n{answer.text}")
        return answer.json() if answer.content else {}

    def sample(self, prompt, n, max_tokens, seed):
        body = {
            "prompt": prompt, "n": n, "max_tokens": max_tokens, "temperature": 1.0, "seed": seed,
            "logprobs": 0, "return_token_ids": True,
        }
        return self.call("POST", "/v1/completions", json=body)["choices"]

    def push(self, model, version):
        """pause, start, the weights in chunks of one safetensors file each, finish, resume."""
        self.call("POST", "/pause", params={"mode": "wait"})
        self.call("POST", "/start_weight_update")
        chunk, size = {}, 0
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and model.config.tie_word_embeddings:
                continue
            chunk[name] = tensor.to(torch.bfloat16).contiguous()
            size += chunk[name].nbytes
            if size >= 4 << 20:
                self.send(chunk)
                chunk, size = {}, 0
        if chunk:
            self.send(chunk)
        self.call("POST", "/finish_weight_update", json={"weight_version": version})
        self.call("POST", "/resume")

    def send(self, tensors):
        headers = {"Content-Type": "application/octet-stream"}
        self.call("POST", "/update_weights", data=save(tensors), headers=headers)

    def status(self):
        return self.call("GET", "/status")["live"]

    def swap(self, component, settings, reason):
        """Stages a component and lets it land with the next weight update."""
        if not self.admin_headers:
            sys.exit("--swap-at needs --admin-token-file: the admin API answers to nobody else")
        params = [("name", component.name)] + [("set", s) for s in settings]
        staged = self.call(
            "POST", "/admin/v1/stage", params=params, data=component.read_bytes(),
            headers={**self.admin_headers, "Content-Type": "application/wasm"},
        )
        body = {"to": staged["generation"], "when": "refit", "reason": reason}
        return self.call("POST", "/admin/v1/swap", json=body, headers=self.admin_headers)


def advantages(rewards):
    """GRPO: each reward against the mean and spread of its group."""
    r = torch.tensor(rewards)
    return (r - r.mean()) / (r.std() + 1e-6)


def logprobs(model, prompt_ids, token_ids):
    """Log probabilities of the generated tokens at temperature 1."""
    ids = torch.tensor([prompt_ids + token_ids])
    rows = model(ids).logits[0, len(prompt_ids) - 1 : -1].float()
    return rows.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--server", default="http://127.0.0.1:8000")
    p.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "tiny-shakespeare-moe")
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--group", type=int, default=8, help="completions per prompt")
    p.add_argument("--max-tokens", type=int, default=48)
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--swap-at", type=int, help="stage and swap a patch before this step's weight update")
    p.add_argument("--component", type=pathlib.Path, default=ROOT / "guests" / "fp8_block.wasm")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of --component")
    p.add_argument("--admin-token-file", type=pathlib.Path)
    p.add_argument("--metrics-out", type=pathlib.Path)
    args = p.parse_args()

    torch.manual_seed(args.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    token = args.admin_token_file.read_text().strip() if args.admin_token_file else None
    server = Server(args.server, token)
    out = args.metrics_out.open("w") if args.metrics_out else None

    for step in range(1, args.steps + 1):
        began = time.time()
        if step == args.swap_at:
            swap = server.swap(args.component, args.set, f"step {step} of the example")
            print(f"step {step}: staged {args.component.name}: {swap['state']}")
        server.push(model, f"step-{step}")
        patch_set = server.status()["patch_set"]
        samples = []
        for i, prompt in enumerate(PROMPTS):
            choices = server.sample(prompt, args.group, args.max_tokens, args.seed + 1000 * step + i)
            rewards = [reward(c["text"]) for c in choices]
            for c, a, r in zip(choices, advantages(rewards), rewards):
                sets = {v["patch_set"] for v in c["weight_versions"]}
                if sets - {patch_set}:
                    sys.exit(f"step {step}: an answer of {sets}, the weights are of {patch_set}")
                if c["token_ids"]:
                    samples.append((c["prompt_token_ids"], c["token_ids"], c["logprobs"]["token_logprobs"], a, r))
        total = sum(len(s[1]) for s in samples)
        optimizer.zero_grad()
        kl, loss_sum = 0.0, 0.0
        for prompt_ids, token_ids, rollout, advantage, _ in samples:
            new = logprobs(model, prompt_ids, token_ids)
            rollout = torch.tensor(rollout[: len(token_ids)])
            # Token-level truncated importance sampling: the FP8 engine sampled, the f32 model learns.
            weight = (new.detach() - rollout).exp().clamp(max=2.0)
            loss = -(weight * advantage * new).sum() / total
            loss.backward()
            loss_sum += loss.item()
            kl += (rollout - new.detach()).sum().item() / total
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        row = {
            "step": step, "reward": sum(s[4] for s in samples) / max(len(samples), 1), "loss": loss_sum,
            "rollout_corr/kl": kl, "tokens": total, "patch_set": patch_set, "seconds": round(time.time() - began, 2),
        }
        print(f"step {step:3}  reward {row['reward']:.3f}  kl {kl:+.4f}  {total} tokens  {patch_set[:19]}  {row['seconds']} s")
        if out:
            out.write(json.dumps(row) + "\n")
            out.flush()
    server.push(model, "final")
    # The server answers with the trained model.
    text = server.sample(PROMPTS[0], 1, args.max_tokens, args.seed)[0]["text"]
    print(f"{PROMPTS[0]}{text}")


if __name__ == "__main__":
    main()
