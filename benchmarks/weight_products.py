"""What a model's products with its weights take by themselves, in XLA and in PyTorch.

    python -m benchmarks.weight_products [--dtype FLOAT32] [--rounds 5] [--json]

SmolLM2-135M's shapes, random values, nothing but the products: no attention, norms,
softmax, cache or optimizer. Two uses:

- decoding: 32 tokens, output dimensions first (`reasoning_jax/model/decoding.py`);
- training with adapters: 2,048 tokens, each weight forward and for the gradient of its input, the
  logits 1,024 tokens at a time.

No program made of the same products can be faster than they are, so this says how much of the
bound of `benchmarks.sampling` and `benchmarks.sft_step` is left to the library that multiplies. The
bound is the FLOPs at the speed of a square product in the same run, for decoding also the bytes of
the weights at that of reading memory. PyTorch is left out where it is not installed.
"""

import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import tyro

from benchmarks.moe_layer import hardware
from benchmarks.sampling import best_seconds, matmul_flops, read_bandwidth
from core_jax.arrays import Array, PyTree
from core_jax.nn.linear import ComputeDtype
from reasoning_jax.model.presets import smollm2_135m

DECODED, TRAINED, LOGITS_AT_A_TIME = 32, 2048, 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Of weights and tokens; sums are in float32."""
    rounds: int = 5
    """How often each runs after its first time."""
    json: bool = False
    """Print JSON instead of a table."""


def random_weights(dtype: jnp.dtype) -> tuple[list[PyTree], Array]:
    """Per layer query with key and value, out, gate and up, down, outputs first; the table."""
    config = smollm2_135m()
    model, ff = config.model_dim, config.hidden_dim
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = ((query + 2 * key, model), (model, query), (2 * ff, model), (model, ff))

    def draw(index: int, shape: tuple[int, int]) -> Array:
        return (jax.random.normal(jax.random.key(index), shape) * shape[1] ** -0.5).astype(dtype)

    layers = [
        [draw(4 * layer + index, shape) for index, shape in enumerate(shapes)]
        for layer in range(config.num_layers)
    ]
    return layers, draw(10**6, (config.vocab_size, model))


def times(left: Array, right: Array) -> Array:
    """Summed in float32, in the operands' dtype: the product of all our models."""
    product = jnp.matmul(left, right, preferred_element_type=jnp.float32)
    return product.astype(left.dtype)


def decoding(
    layers: list[PyTree],
    head: PyTree,
    hidden: PyTree,
    times: Callable[[PyTree, PyTree], PyTree] = times,
) -> PyTree:
    """Every product of a step: the rows of the batch are columns. JAX and PyTorch alike."""
    kept = []
    for query_key_value, out, gate_up, down in layers:
        parts = times(query_key_value, hidden)
        kept.append(parts[out.shape[1] :])
        hidden = times(out, parts[: out.shape[1]])
        gate, up = times(gate_up, hidden).reshape(2, down.shape[1], hidden.shape[1])
        hidden = times(down, gate + up)
    return times(head, hidden), kept


def _layer(weights: PyTree, tokens: PyTree) -> PyTree:
    """A layer's products forward, tokens first; keys and values are added where queries are.

    Queries apart from keys and values, as in training.
    """
    query_key_value, out, gate_up, down = weights
    query, key_value = query_key_value[: out.shape[1]], query_key_value[out.shape[1] :]
    queries, keys_values = times(tokens, query.T), times(tokens, key_value.T)
    width = keys_values.shape[1]
    mixed = jnp.concatenate([queries[:, :width] + keys_values, queries[:, width:]], axis=1)
    both = times(times(mixed, out.T), gate_up.T)
    return times(both[:, : down.shape[1]] + both[:, down.shape[1] :], down.T)


def training(layers: list[PyTree], head: Array, tokens: Array) -> tuple[Array, Array]:
    """Every product of a step with frozen weights, forward and backward, in JAX."""

    def forward(tokens: Array) -> Array:
        for weights in layers:
            tokens = _layer(weights, tokens)
        return tokens

    hidden, pull = jax.vjp(forward, tokens)
    chunks = hidden.reshape(-1, LOGITS_AT_A_TIME, hidden.shape[1])
    gradient = jax.lax.map(lambda chunk: times(times(chunk, head.T), head), chunks)
    return hidden, pull(gradient.reshape(hidden.shape))[0]


def torch_programs(layers: list[PyTree], head: Array) -> dict[str, Callable[[], object]]:
    """The same products in PyTorch, by use."""
    import numpy as np
    import torch

    def tensor(array: Array) -> torch.Tensor:
        wide = torch.from_numpy(np.array(array, np.float32))
        return wide.to(getattr(torch, array.dtype.name))

    weights = [[tensor(one) for one in layer] for layer in layers]
    table = tensor(head)
    config = smollm2_135m()
    width = config.num_kv_heads * config.head_dim
    columns = torch.ones(head.shape[1], DECODED, dtype=table.dtype)
    rows = torch.ones(TRAINED, head.shape[1], dtype=table.dtype)

    def train() -> torch.Tensor:
        tokens = rows
        for query_key_value, out, gate_up, down in weights:
            query, key_value = query_key_value.split([out.shape[1], 2 * width])
            queries, keys_values = tokens @ query.T, tokens @ key_value.T
            queries[:, : keys_values.shape[1]] += keys_values
            both = (queries @ out.T) @ gate_up.T
            tokens = (both[:, : down.shape[1]] + both[:, down.shape[1] :]) @ down.T
        tokens = torch.cat([(one @ table.T) @ table for one in tokens.split(LOGITS_AT_A_TIME)])
        for query_key_value, out, gate_up, down in reversed(weights):
            query, key_value = query_key_value.split([out.shape[1], 2 * width])
            both = (tokens @ down).repeat(1, 2)
            queries = (both @ gate_up) @ out
            tokens = queries @ query + queries[:, : key_value.shape[0]] @ key_value
        return tokens

    return {
        "decoding": torch.inference_mode()(lambda: decoding(weights, table, columns, torch.matmul)),
        "training": torch.inference_mode()(train),
    }


def main(options: Options) -> None:
    """Times both uses and prints them beside their bounds."""
    dtype = options.dtype.dtype
    layers, head = random_weights(dtype)
    width = head.shape[1]
    decode, train = jax.jit(decoding), jax.jit(training)
    columns, rows = jnp.ones((width, DECODED), dtype), jnp.ones((TRAINED, width), dtype)
    ours = {
        "decoding": lambda: jax.block_until_ready(decode(layers, head, columns)),
        "training": lambda: jax.block_until_ready(train(layers, head, rows)),
    }
    programs = {"XLA": ours}
    if importlib.util.find_spec("torch"):
        programs["PyTorch"] = torch_programs(layers, head)
    num_weights = sum(one.size for one in jax.tree.leaves((layers, head)))
    flops, bandwidth = matmul_flops(dtype), read_bandwidth()
    bounds = {
        "decoding": max(
            2 * num_weights * DECODED / flops, dtype.itemsize * num_weights / bandwidth
        ),
        "training": 4 * num_weights * TRAINED / flops,
    }
    results = {
        "benchmark": "weight_products",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "dtype": options.dtype.value,
        "matmul_gflops": flops / 1e9,
        "bandwidth_gb": bandwidth / 1e9,
        "bound_seconds": bounds,
        "seconds": {
            name: {use: _timed(program, options.rounds) for use, program in uses.items()}
            for name, uses in programs.items()
        },
    }
    print(json.dumps(results, indent=2) if options.json else text(results))


def _timed(program: Callable[[], object], rounds: int) -> float:
    """Seconds of the best run after a first one."""
    program()
    return best_seconds(program, rounds)


def text(results: dict) -> str:
    """The results in lines."""
    bounds = results["bound_seconds"]
    speeds = (
        f"matmul {results['matmul_gflops']:.0f} GFLOP/s, memory {results['bandwidth_gb']:.0f} GB/s"
    )
    lines = [f"{results['hardware']}", f"{results['dtype']}: {speeds}"]
    for use, bound in bounds.items():
        lines.append(f"{use}: bound {1e3 * bound:.1f} ms")
        for name, seconds in results["seconds"].items():
            share = bound / seconds[use]
            lines.append(f"  {name}: {1e3 * seconds[use]:.1f} ms, {share:.0%} of the bound")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
