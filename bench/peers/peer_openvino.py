"""OpenVINO GenAI on its CPU plugin. It reads GGUF by itself, of a few dense families; no conversion through torch."""

import argparse
from pathlib import Path

import common


def load(gguf):
    """Jobs {"prompts", "new"}."""
    import numpy
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(gguf), "CPU", INFERENCE_NUM_THREADS=common.threads())

    def work(job):
        config = openvino_genai.GenerationConfig(
            max_new_tokens=job["new"], ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        ids = numpy.array(job["prompts"], dtype=numpy.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        result = pipeline.generate(inputs, config)
        tokens = [list(map(int, t)) for t in result.tokens]
        made = [t[len(p):] if t[:len(p)] == p else t for t, p in zip(tokens, job["prompts"])]
        if any(len(t) != job["new"] for t in made):
            raise RuntimeError(f"{[len(t) for t in made]} tokens instead of {job['new']}")
        # Its own clock: until the first token, then the rest.
        first = result.perf_metrics.get_ttft().mean / 1e3
        whole = result.perf_metrics.get_generate_duration().mean / 1e3
        return {"prefill_s": first, "decode_s": whole - first, "tokens": made}

    return {}, work


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    args = parser.parse_args()
    common.serve(lambda: load(args.gguf))
