"""Tokens per second of the sampling engine, beside a bound and beside `transformers.generate`.

    python -m benchmarks.sampling [--dtype float32] [--model PATH.gguf] [--rounds 3] [--json]

SmolLM2-135M-Instruct, 32 prompts of 40 tokens, 96 new tokens each, greedy, no end of sequence. The
bound is what this machine could do at best: reading the prompts at the speed of a square matrix
product, then per new token of all rows the larger of the FLOPs at that speed and the bytes of
weights and of cached keys and values at the speed of reading memory; all three measured in the
same run. `transformers` gets the same weights in the same dtype and the same prompts as one batch,
with its static defaults (needs the extra `parity`; left out without it). `llama.cpp` reads the GGUF
file itself, quantised as it is, with a slot of its server for every prompt; it is left out where
the package `xllamacpp` is not installed. Engines take turns, `llama.cpp` comes last; the best round
of each counts.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.moe_layer import hardware
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.nn.linear import ComputeDtype
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.decoding import for_decoding
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
from reasoning_jax.sampling.engine import SampleRequest, sample
from reasoning_jax.weights.gguf_load import GgufFile, load_gguf
from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.packaged import smollm2_gguf

BOUND_AIM, PEER_AIM = 0.6, 1.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Compute dtype of both engines."""
    model: pathlib.Path | None = None
    """A GGUF file; by default the packaged SmolLM2-135M-Instruct."""
    num_prompts: int = 32
    """Prompts, all in one batch."""
    prompt_tokens: int = 40
    """Tokens of a prompt."""
    new_tokens: int = 96
    """Tokens of a response."""
    rounds: int = 3
    """How often each engine runs after its first time."""
    json: bool = False
    """Print JSON instead of a table."""


def best_seconds(program: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of `rounds` runs."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        program()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def matmul_flops(dtype: jnp.dtype) -> float:
    """FLOP/s of a square product with operands of `dtype`, accumulated in float32."""
    square = jnp.ones((2048, 2048), dtype)
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    product(square, square).block_until_ready()
    return 2 * 2048**3 / best_seconds(lambda: product(square, square).block_until_ready(), 7)


def read_bandwidth() -> float:
    """Bytes per second of summing a large array, all cores."""
    array = jnp.ones((150_000_000,), jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    return array.nbytes / best_seconds(lambda: total(array).block_until_ready(), 7)


def bound_seconds(config: DecoderConfig, options: Options, flops: float, bandwidth: float) -> dict:
    """The least seconds that this machine needs, and what they are made of."""
    head = config.vocab_size * config.model_dim
    layers = config.num_params - head * (1 if config.tied_embeddings else 2)
    rows = options.num_prompts
    prefill = 2 * (layers * options.prompt_tokens + head) * rows / flops
    itemsize = config.dtype.dtype.itemsize
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize
    steps = []
    for step in range(1, options.new_tokens):
        read = (layers + head) * itemsize + rows * (options.prompt_tokens + step) * per_token
        steps.append((2 * (layers + head) * rows / flops, read / bandwidth))
    compute, memory = np.sum(steps, axis=0)
    return {
        "seconds": prefill + sum(max(pair) for pair in steps),
        "prefill_seconds": prefill,
        "decode_flops_seconds": compute,
        "decode_bytes_seconds": memory,
    }


def our_program(config: DecoderConfig, params: dict, prompts: np.ndarray, options: Options):
    """The engine on all prompts; gives the tokens [prompts, new tokens]."""
    weights = jax.jit(functools.partial(for_decoding, config))(params)
    requests = [
        SampleRequest(problem_id=f"{index:04}", sample=0, prompt=tuple(prompt.tolist()))
        for index, prompt in enumerate(prompts)
    ]
    sampling = SamplingConfig(max_new_tokens=options.new_tokens)
    engine = EngineConfig(num_rows=options.num_prompts)

    def run() -> np.ndarray:
        found = sample(
            config, weights, requests, sampling=sampling, engine=engine, decode=str, eos_ids=()
        )
        by_problem = {one.request.problem_id: one.token_ids for one in found}
        return np.asarray([by_problem[request.problem_id] for request in requests])

    return run


def peer_program(config: DecoderConfig, params: dict, prompts: np.ndarray, options: Options):
    """`transformers.generate` with the same weights, or None without it."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return None
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        export_model(folder, config, params)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, options.dtype.value)
        )
    model.eval()
    tokens = torch.tensor(prompts)
    lengths = {"min_new_tokens": options.new_tokens, "max_new_tokens": options.new_tokens}

    def run() -> np.ndarray:
        with torch.inference_mode():
            rows = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, **lengths
            )
        return rows[:, prompts.shape[1] :].numpy()

    return run


def llama_cpp_seconds(path: pathlib.Path, prompts: np.ndarray, options: Options) -> float | None:
    """Seconds of the server of `llama.cpp` with a slot for every prompt, or None without it."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_parallel = len(prompts)
    settings.n_ctx = len(prompts) * (options.prompt_tokens + options.new_tokens + 8)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = os.cpu_count()
    server = xllamacpp.Server(settings)
    request = {"n_predict": options.new_tokens, "temperature": 0.0, "ignore_eos": True}

    def answer(prompt: np.ndarray) -> None:
        answered = server.handle_completions(
            request | {"prompt": prompt.tolist(), "cache_prompt": False}
        )
        if answered["usage"]["completion_tokens"] != options.new_tokens:
            raise RuntimeError(f"llama.cpp did not answer with {options.new_tokens} tokens")

    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as threads:
        return best_seconds(lambda: list(threads.map(answer, prompts)), options.rounds)


def main(options: Options) -> None:
    """Runs the engines and prints them."""
    path = options.model or smollm2_gguf()
    file = GgufFile(path)
    config = dataclasses.replace(file.config, dtype=options.dtype)
    params = load_gguf(file, mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    shape = (options.num_prompts, options.prompt_tokens)
    prompts = np.random.default_rng(0).integers(100, config.vocab_size, shape)
    flops, bandwidth = matmul_flops(config.dtype.dtype), read_bandwidth()
    bound = bound_seconds(config, options, flops, bandwidth)
    total = options.num_prompts * options.new_tokens
    programs = {"alignax": our_program(config, params, prompts, options)}
    peer = peer_program(config, params, prompts, options)
    if peer is not None:
        programs["transformers"] = peer
    tokens = {name: program() for name, program in programs.items()}
    seconds = dict.fromkeys(programs, np.inf)
    for _ in range(options.rounds):
        for name, program in programs.items():
            seconds[name] = min(seconds[name], best_seconds(program, 1))
    results = {
        "benchmark": "sampling",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "dtype": options.dtype.value,
        "matmul_gflops": flops / 1e9,
        "read_gb_per_second": bandwidth / 1e9,
        "bound": bound | {"tokens_per_second": total / bound["seconds"]},
        "tokens_per_second": {name: total / one for name, one in seconds.items()},
        "share_of_bound": {name: bound["seconds"] / one for name, one in seconds.items()},
    }
    if peer is not None:
        results["over_transformers"] = seconds["transformers"] / seconds["alignax"]
        results["equal_tokens"] = float(np.mean(tokens["alignax"] == tokens["transformers"]))
    llama = llama_cpp_seconds(path, prompts, options)
    if llama is not None:
        results["tokens_per_second"]["llama.cpp, quantised"] = total / llama
    print(json.dumps(results, indent=2) if options.json else text(results))


def text(results: dict) -> str:
    """The results in lines."""
    bound = results["bound"]
    lines = [
        f"{results['hardware']}",
        f"{results['dtype']}: matmul {results['matmul_gflops']:.0f} GFLOP/s, memory "
        f"{results['read_gb_per_second']:.0f} GB/s",
        f"bound {bound['tokens_per_second']:.0f} tokens/s (prefill {bound['prefill_seconds']:.2f} "
        f"s, decoding {bound['decode_flops_seconds']:.2f} s of FLOPs, "
        f"{bound['decode_bytes_seconds']:.2f} s of bytes)",
    ]
    for name, rate in results["tokens_per_second"].items():
        share = results["share_of_bound"].get(name)
        beside = "" if share is None else f", {share:.0%} of the bound (aim {BOUND_AIM:.0%})"
        lines.append(f"{name}: {rate:.0f} tokens/s{beside}")
    if "over_transformers" in results:
        lines.append(
            f"alignax over transformers: {results['over_transformers']:.2f}x (aim {PEER_AIM}x), "
            f"{results['equal_tokens']:.1%} of the tokens equal"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
