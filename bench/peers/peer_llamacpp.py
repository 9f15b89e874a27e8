"""llama.cpp through the C API that llama-cpp-python binds: no sampler, no Python objects per token but the argmax."""

import argparse
import ctypes
from pathlib import Path

import common


def load(gguf):
    """Jobs {"prompts", "new"}: all prompts in one batch, one sequence each."""
    import llama_cpp as api
    import numpy

    api.llama_backend_init()
    api.llama_log_set(quiet, None)
    params = api.llama_model_default_params()
    params.n_gpu_layers = 0
    model = api.llama_model_load_from_file(str(gguf).encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp does not load {gguf}")
    context_params = api.llama_context_default_params()
    context_params.n_ctx = 8 * common.CONTEXT
    context_params.n_seq_max = 8
    # A prompt is one call; llama.cpp cuts it into pieces of n_ubatch.
    context_params.n_batch, context_params.n_ubatch = common.CONTEXT, 512
    context_params.n_threads = context_params.n_threads_batch = common.threads()
    context_params.no_perf = True
    context = api.llama_init_from_model(model, context_params)
    if not context:
        raise RuntimeError("llama.cpp makes no context")
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = api.llama_batch_init(common.CONTEXT, 0, 1)

    def decode(rows):
        """Rows of (token, position, sequence, wants logits); the best token of each that wants."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        if status := api.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode gives {status}")
        best = []
        for i, row in enumerate(rows):
            if row[3]:
                logits = numpy.ctypeslib.as_array(api.llama_get_logits_ith(context, i), (vocabulary,))
                best.append(int(logits.argmax()))
        return best

    def work(job):
        api.llama_memory_clear(api.llama_get_memory(context), True)
        past = [len(p) for p in job["prompts"]]

        def first(prompts):
            rows = [(t, i, s, i + 1 == len(p)) for s, p in enumerate(prompts) for i, t in enumerate(p)]
            return decode(rows)

        def step(tokens):
            made = decode([(t, past[s], s, True) for s, t in enumerate(tokens)])
            for s in range(len(past)):
                past[s] += 1
            return made

        return common.greedy_loop(first, step, job["prompts"], job["new"])

    info = api.llama_print_system_info().decode()
    return {"system": info}, work


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def quiet(level, text, _):
    """Errors only."""
    if level >= 4:
        print(text.decode(errors="replace"), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    args = parser.parse_args()
    common.serve(lambda: load(args.gguf))
