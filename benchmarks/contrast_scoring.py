"""Contrastive scores of SmolLM2-135M: one base with two adapters, two merged models, the authors'.

    python -m benchmarks.contrast_scoring [--num-pairs 8] [--dtype FLOAT32] [--rounds 2] [--json]

Both responses of every pair, of lengths as sampled solutions have them (ids are random: the time
does not depend on them), under two adapters of rank 8 on all seven maps. Three ways to the same
scores, which are compared:

- two streams: packed rows, one copy of the base's weights, `reasoning_jax.align.contrast_model`;
- two merged models: the same rows, each model with weights of its own;
- the authors' procedure (their public code, 2025-05): merged models, one response at a time, the
  logits [T, V] of both models taken whole to the host, softmax there. Once as a program of ours,
  compiled for lengths rounded up to 64, and, where the extra `parity` is installed, by
  `transformers` at the exact lengths.

Programs take turns; the best round of each counts. Tokens are those of prompts and responses. The
bound is what the scores need, both models for every token and logits for those of responses
(without attention), at the speed of a square matrix product measured in the same run: what it is
over the authors' procedure, no program here that reads every response with its prompt can surpass.
Rows are of a length that a handful of responses fills; the rows of many are full at any length.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.moe_layer import hardware
from benchmarks.sampling import matmul_flops
from core_jax.arrays import Params
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.nn.linear import ComputeDtype
from reasoning_jax.align.contrast_model import (
    NUM_STREAMS,
    AdapterPair,
    FullPair,
    score_batch,
    score_name,
)
from reasoning_jax.align.scoring import RowsConfig, token_values
from reasoning_jax.data.packing import best_fit
from reasoning_jax.data.token_values import Key, TokenValues
from reasoning_jax.model import decoder_lm, lora
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.flops import product_flops
from reasoning_jax.weights.gguf_load import GgufFile, load_gguf
from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.packaged import smollm2_gguf

LORA = LoraConfig(rank=8, alpha=16.0)
BETA = 1.0
MEMORY_AIM, SPEED_AIM, AUTHORS_AIM = 0.6, 0.8, 3.0
PROMPT_TOKENS, RESPONSE_TOKENS = (40, 120), (60, 300)
_BUCKET = 64

Scores = dict[Key, np.ndarray]
"""By response log s of each of its tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Compute dtype."""
    num_pairs: int = 8
    """Pairs, each of two responses to one prompt."""
    batch_size: int = 3
    """Rows of a batch."""
    row_length: int = 704
    """Tokens of a row."""
    chunk: int = 128
    """Tokens of a row whose logits exist at a time."""
    unroll: int = 30
    """Layers per iteration of the loop over layers."""
    rounds: int = 2
    """How often each runs after its first time."""
    json: bool = False
    """Print JSON instead of lines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """A prompt and a response."""

    problem_id: str
    sample: int
    token_ids: tuple[int, ...]
    response_start: int


def responses(options: Options, vocab_size: int) -> list[Response]:
    """Pairs with random ids; both responses of a pair share the prompt."""
    rng = np.random.default_rng(0)
    found = []
    for pair in range(options.num_pairs):
        prompt = rng.integers(100, vocab_size, rng.integers(*PROMPT_TOKENS))
        for sample in range(2):
            response = rng.integers(100, vocab_size, rng.integers(*RESPONSE_TOKENS))
            ids = (*prompt.tolist(), *response.tolist())
            found.append(
                Response(
                    problem_id=f"p{pair}", sample=sample, token_ids=ids, response_start=len(prompt)
                )
            )
    return found


def adapters(config: DecoderConfig, seed: int) -> Params:
    """Adapters as after some training: B is not zero."""
    params = lora.init_lora(config, LORA, key=jax.random.key(seed))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        leaf + 0.01 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def packed_program(
    config: DecoderConfig,
    pair: AdapterPair | FullPair,
    sequences: list[Response],
    options: Options,
) -> Callable[[], Scores]:
    """Packed rows under two streams or two whole models."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    rows = RowsConfig(
        batch_size=options.batch_size, row_length=options.row_length, chunk=options.chunk
    )
    score = functools.partial(score_batch, config, pair, chunk=options.chunk, betas=(BETA,))

    def scores_of(one: TokenValues) -> np.ndarray:
        return np.asarray(one.named(score_name(BETA)))

    def run() -> Scores:
        found = token_values(sequences, score, config=config, rows=rows, mesh=mesh, model="m")
        return {one.key: scores_of(one) for batch in found for one in batch}

    return run


def authors_scores(
    sequences: list[Response], logits_of: Callable[[int, np.ndarray], np.ndarray]
) -> Scores:
    """One response after the other: whole logits of both models, softmax on the host."""
    found = {}
    for one in sequences:
        ids = np.asarray(one.token_ids, np.int32)
        logits_TV = (1.0 + BETA) * logits_of(0, ids) - BETA * logits_of(1, ids)
        logits_TV -= logits_TV.max(axis=-1, keepdims=True)
        totals_T1 = np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
        picked = np.take_along_axis(logits_TV[:-1], ids[1:, None], axis=-1) - totals_T1[:-1]
        found[one.problem_id, one.sample] = picked[one.response_start - 1 :, 0]
    return found


def authors_program(
    config: DecoderConfig, pair: FullPair, sequences: list[Response]
) -> Callable[[], Scores]:
    """The authors' procedure by our model, compiled once per 64 tokens of length."""

    @jax.jit
    def logits(params: Params, tokens: jax.Array) -> jax.Array:
        output = decoder_lm.apply(config, params, decoder_lm.whole_rows(tokens[None]))
        return decoder_lm.logits(config, params, output.hidden)[0]

    def logits_of(model: int, ids: np.ndarray) -> np.ndarray:
        padded = np.pad(ids, (0, -len(ids) % _BUCKET))
        params = pair.negative if model else pair.positive
        return np.asarray(logits(params, jnp.asarray(padded)))[: len(ids)]

    return lambda: authors_scores(sequences, logits_of)


def peer_program(
    config: DecoderConfig, pair: FullPair, sequences: list[Response], dtype: ComputeDtype
) -> Callable[[], Scores] | None:
    """The authors' procedure by `transformers`, or None without it."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        return None
    import torch
    import transformers

    models = []
    for params in (pair.positive, pair.negative):
        with tempfile.TemporaryDirectory() as folder:
            export_model(folder, config, params)
            models.append(
                transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=getattr(torch, dtype.value)
                )
            )

    def run() -> Scores:
        found = {}
        for one in sequences:
            ids = torch.tensor([one.token_ids])
            with torch.no_grad():
                positive, negative = (model(ids).logits[0].float().cpu() for model in models)
            mixed = torch.log_softmax((1.0 + BETA) * positive - BETA * negative, dim=-1)
            picked = mixed[:-1].gather(-1, ids[0, 1:, None])[one.response_start - 1 :, 0]
            found[one.problem_id, one.sample] = picked.numpy()
        return found

    return run


def places(sequences: list[Response], options: Options) -> int:
    """Places in the batches that hold the sequences, padding included."""
    lengths = [len(one.token_ids) for one in sequences]
    num_rows = len(best_fit(lengths, options.row_length))
    return -(-num_rows // options.batch_size) * options.batch_size * options.row_length


def num_bytes(tree: object) -> int:
    """Bytes of parameters, arrays that stand in two places counted once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
    return sum(leaf.nbytes for leaf in leaves.values())


def largest_difference(found: Scores, expected: Scores) -> float:
    """Between two ways, in nats."""
    return max(float(np.abs(found[key] - expected[key]).max()) for key in expected)


def main(options: Options) -> None:
    """Runs all and prints them."""
    file = GgufFile(pathlib.Path(smollm2_gguf()))
    config = dataclasses.replace(file.config, dtype=options.dtype, unroll=options.unroll)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    base = load_gguf(file, mesh=mesh, dtype=options.dtype.dtype)
    trained = adapters(config, 1), adapters(config, 2)
    streams = AdapterPair(
        base=base, adapters=lora.stack_adapters(*trained, scales=(LORA.scale, LORA.scale))
    )
    # As programs that hold merged models have them: neither shares an array with the base.
    own = [jax.tree.map(jnp.copy, lora.merge(base, one, LORA.scale)) for one in trained]
    whole = FullPair(positive=own[0], negative=own[1])
    sequences = responses(options, config.vocab_size)
    programs = {
        "two streams": packed_program(config, streams, sequences, options),
        "two merged models": packed_program(config, whole, sequences, options),
        "authors' procedure": authors_program(config, whole, sequences),
    }
    peer = peer_program(config, whole, sequences, options.dtype)
    if peer is not None:
        programs["authors' procedure, transformers"] = peer
    scores = {name: program() for name, program in programs.items()}
    seconds = dict.fromkeys(programs, np.inf)
    for _ in range(options.rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    num_tokens = sum(len(one.token_ids) for one in sequences)
    num_responses = sum(len(one.token_ids) - one.response_start for one in sequences)
    needed = NUM_STREAMS * product_flops(config, num_tokens, num_responses)
    flops = matmul_flops(options.dtype.dtype)
    results = {
        "benchmark": "contrast_scoring",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "dtype": options.dtype.value,
        "num_responses": len(sequences),
        "num_tokens": num_tokens,
        "share_of_places": num_tokens / places(sequences, options),
        "matmul_gflops": flops / 1e9,
        "bound_tokens_per_second": num_tokens * flops / needed,
        "tokens_per_second": {name: num_tokens / one for name, one in seconds.items()},
        "parameter_bytes": {
            "two streams": num_bytes(streams),
            "two merged models": num_bytes(whole),
        },
        "memory_ratio": num_bytes(streams) / num_bytes(whole),
        "largest_difference": {
            name: largest_difference(found, scores["two merged models"])
            for name, found in scores.items()
        },
    }
    print(json.dumps(results, indent=2) if options.json else text(results))


def text(results: dict) -> str:
    """The results in lines."""
    speeds = results["tokens_per_second"]
    ours = speeds["two streams"]
    aims = {"two merged models": SPEED_AIM}
    lines = [
        f"{results['hardware']}",
        f"{results['dtype']}, {results['num_responses']} responses of {results['num_tokens']} "
        "tokens with their prompts",
        f"parameters of two streams over those of two merged models: "
        f"{results['memory_ratio']:.3f}x (aim {MEMORY_AIM}x or less)",
        f"rows hold tokens in {results['share_of_places']:.0%} of their places",
        f"matmul {results['matmul_gflops']:.0f} GFLOP/s, bound "
        f"{results['bound_tokens_per_second']:.0f} tokens/s",
        f"two streams: {ours:.0f} tokens/s, {ours / results['bound_tokens_per_second']:.0%} of it",
    ]
    for name, speed in speeds.items():
        if name != "two streams":
            aim = aims.get(name, AUTHORS_AIM)
            lines.append(
                f"{name}: {speed:.0f} tokens/s, two streams {ours / speed:.2f}x (aim {aim}x), the "
                f"bound {results['bound_tokens_per_second'] / speed:.2f}x"
            )
    differences = ", ".join(
        f"{name} {value:.1e}" for name, value in results["largest_difference"].items()
    )
    lines.append(f"largest difference of log s to two merged models, in nats: {differences}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
