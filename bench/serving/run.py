"""Serving: guidellm against `patchhost serve` and llama.cpp's `llama-server` on the same checkpoint. See README.md.

    python bench/serving/run.py --out bench/serving/RESULTS.md
    python bench/serving/run.py --quick --model dense --out /tmp/S.md
"""

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "peers")]

import checkpoints  # noqa: E402
import common  # noqa: E402
import convert_gguf  # noqa: E402
import engines  # noqa: E402
import measure  # noqa: E402
import quiet  # noqa: E402
import serving_report as report  # noqa: E402
from server import Server  # noqa: E402


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the report (Markdown); the numbers go beside it as JSON")
    parser.add_argument("--data", type=Path, default=HERE.parent / "peers/data", help="checkpoints, GGUF files and logs")
    parser.add_argument("--patchhost", type=Path, default=HERE.parents[1] / "target/release/patchhost")
    parser.add_argument("--llama-server", type=Path, help="the one that bench/peers/setup.sh has built, if not said")
    parser.add_argument("--model", choices=list(checkpoints.SHAPES), default="qwen3moe_165m")
    parser.add_argument("--concurrency", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--requests", type=int, help="of each concurrency; 96 if not said, and 32 with --quick")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server; the client runs beside them")
    parser.add_argument("--rounds", type=int, help="5 if not said, and 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="a look, not a ground for claims")
    parser.add_argument("--limit", type=float, default=900, help="seconds that a server's start or a run of guidellm may take")
    parser.add_argument("--note", default="", help="a sentence for the head of the report")
    quiet.options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.requests = options.requests or (32 if options.quick else 96)
    return options


def llama_server(options):
    """Where llama-server is."""
    if options.llama_server:
        return options.llama_server
    found = importlib.util.find_spec("llama_cpp")
    path = found and Path(found.origin).parent / "lib/llama-server"
    if not path or not path.exists():
        raise SystemExit("error: llama.cpp's server is not here\n  why: this Python has no llama_cpp/lib/llama-server\n"
                         "  next: run bench/peers/setup.sh and use its venv/bin/python, or say --llama-server FILE")
    return path


def servers(options, folder):
    """The two servers, started. Caches of prompts are off: the same prompts come in every round."""
    gguf = convert_gguf.convert(options.data, folder, "q8_0")
    most = max(options.concurrency)
    threads = str(options.threads)
    # llama.cpp shares its context out among its slots.
    context = (options.prompt + options.answer + 64) // 64 * 64 * most
    commands = {
        "patchhost serve, fp8_block (W8A8)": lambda port: [
            options.patchhost.absolute(), "serve", folder, "--component", "fp8_block", "--listen", f"127.0.0.1:{port}",
            "--threads", threads, "--prefix-cache-mib", "0", "--max-num-seqs", str(max(64, most)),
        ],
        "llama-server, Q8_0": lambda port: [
            llama_server(options), "-m", gguf, "--host", "127.0.0.1", "--port", str(port), "-t", threads, "-tb", threads,
            "-np", str(most), "-c", str(context), "--no-cache-prompt", "--cache-ram", "0", "--no-webui", "--offline",
        ],
    }
    logs = options.data / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return [Server(name, make, folder.name, logs, options.limit, measure.LIVE) for name, make in commands.items()]


def dataset(options, folder):
    """The prompts as guidellm reads them: as text, of exactly so many tokens, each with the length of its answer."""
    path = options.data / f"serving-{folder.name}-{options.requests}x{options.prompt}+{options.answer}.json"
    if not path.exists():
        found = common.prompts(folder, options.requests, options.prompt)
        rows = [{"prompt": text, "output_tokens_count": options.answer} for _, text in found]
        path.write_text(json.dumps(rows))
    return path


def guidellm(options, folder, data, server):
    """One run of guidellm: all concurrencies, one after the other."""
    out = options.data / "logs/guidellm.json"
    out.unlink(missing_ok=True)
    backend = {
        "kind": "openai_http", "target": server.url, "model": folder.name, "request_format": "/v1/completions", "http2": False,
        "extras": {"body": {"temperature": 0}},
    }
    command = [
        sys.executable, "-m", "guidellm", "run", "--backend", json.dumps(backend),
        "--profile", f"kind=concurrent,streams={options.concurrency[0]}",
        "--constraint", f"kind=max_requests,count={options.requests}", "--tokenizer", f"kind=huggingface_auto,model={folder}",
        "--data", f"kind=json_file,path={data}", "--output", f"kind=json,path={out}", "--disable-console",
    ]
    if len(options.concurrency) > 1:
        command += ["--override", "profile.streams", ",".join(map(str, options.concurrency))]
    environment = dict(
        os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1",
        HF_DATASETS_CACHE=str(options.data / "datasets"), GUIDELLM__MAX_WORKER_PROCESSES="1",
    )
    log = options.data / "logs/guidellm.log"
    with log.open("w") as file:
        status = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=options.limit, check=False)
    if status.returncode or not out.exists():
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise SystemExit(f"error: guidellm did not measure {server.name}\n  why: {' '.join(last)[:300]}\n  next: read {log}")
    return {
        str(one["config"]["strategy"]["streams"]): report.figures(one["requests"], options.prompt, options.answer, options.requests)
        for one in json.loads(out.read_text())["benchmarks"]
    }


def main():
    """Starts both servers, asks each in every round, and writes the report."""
    options = arguments()
    # Client and servers together want more than all cores, so the load average says nothing while they run.
    watch = quiet.Watch(lambda: measure.LIVE, quiet.Limits.of(["load_during=64", *(options.limits or ())]))
    options.data = options.data.resolve()
    options.data.mkdir(parents=True, exist_ok=True)
    folder = options.data / options.model
    checkpoints.make(options.model, folder)
    data = dataset(options, folder)
    convert_gguf.convert(options.data, folder, "q8_0")
    before = watch.before(options.wait, options.busy)
    running = servers(options, folder)
    try:
        for server in running:
            server.warm(json.loads(data.read_text())[0]["prompt"], options.answer)
        rounds, seen, dropped = [], [], []
        started = time.monotonic()
        while len(rounds) < options.rounds:
            watch.restart()
            turn = len(rounds)
            order = running[turn % 2:] + running[:turn % 2]
            made = {server.name: guidellm(options, folder, data, server) for server in order}
            now = watch.look(during=True)
            reasons = now.reasons(watch.limits)
            if reasons and not options.busy and len(dropped) < options.again:
                dropped.append(now)
            else:
                seen.append(now)
                rounds.append(made)
            measure.say(f"  round {len(rounds)} of {options.rounds}, {now.seconds:.0f} s: {now.words()}"
                        + (f" NOISY: {'; '.join(reasons)}" if reasons else ""))
        whole = {
            "processor": engines.processor(), "cores": os.cpu_count(), "model": options.model, "threads": options.threads,
            "parameters": checkpoints.parameters(folder), "prompt": options.prompt, "answer": options.answer,
            "requests": options.requests, "rounds": rounds, "quiet": quiet.record(before, seen, options.busy, dropped, watch.limits),
            "versions": versions(options, running), "peak": {server.name: server.peak_memory() for server in running},
            "when": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M UTC}", "note": options.note,
        }
    finally:
        for server in running:
            server.stop()
    text = report.markdown(whole)
    if options.out:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(json.dumps(whole, indent=1) + "\n")
    print(text)
    measure.say(f"{(time.monotonic() - started) / 60:.0f} minutes")


def versions(options, running):
    """What was compared."""
    from importlib.metadata import version

    found = {"guidellm": version("guidellm")}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE, check=False)
    found["patchhost"] = commit.stdout.strip() or "unknown"
    said = subprocess.run([llama_server(options), "--version"], capture_output=True, text=True, check=False)
    word = next((line for line in (said.stdout + said.stderr).splitlines() if line.startswith("version")), "unknown")
    found["llama-server"] = word
    if not options.llama_server:
        found["llama-server"] += f", built by bench/peers/setup.sh from llama-cpp-python {version('llama-cpp-python')}"
    return found


if __name__ == "__main__":
    main()
