"""Model FLOP utilisation of training a decoder, from a written model and no compiler.

A step is, one after the other: matrix products at `MATMUL_SHARE` of the peak; what lies between
them (norms, residual sums, rotations, the gated product), which reads and writes HBM at
`BANDWIDTH_SHARE` of its bandwidth; and the collectives of fully sharded parameters: bfloat16
weights are gathered for the forward and for the backward pass, and gradients reduced and scattered
in bfloat16. The backward pass repeats the forward pass. With overlap, the slowest of the three
counts alone. No constant is fitted to a measurement.

Published utilisation counts attention as if it were not causal (`PUBLISHED` says so); the work that
is done is half of that.

Dimension key: none.
"""

import dataclasses
import math

from core_jax.nn.linear import ComputeDtype
from launch.aot.chips import CHIPS
from launch.aot.roofline import BANDWIDTH_SHARE, MATMUL_SHARE, axis_bandwidth
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.flops import token_flops, train_flops
from reasoning_jax.model.presets import MODELS

_BYTES = ComputeDtype.BFLOAT16.dtype.itemsize
_PASSES = 4
"""Forward, repeated forward, and a backward pass of twice that."""
_GATHERS = 3
"""Times that a device sees all weights: two gathers, and the gradients on their way out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training run, all parameters sharded over all chips.

    Attributes:
      name: what it is.
      model: architecture.
      chip: name of the family.
      shape: chips along the dimensions of the torus.
      rows: rows per chip and step.
      length: tokens of a row.
      published: model FLOP utilisation that was measured; None where none was.
      tokens_per_second: of a chip, as measured.
    """

    name: str
    model: DecoderConfig
    chip: str
    shape: tuple[int, ...]
    rows: int
    length: int
    published: float | None = None
    tokens_per_second: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds per step, and utilisation by the published convention.

    Attributes:
      compute: of the matrix products.
      memory: of what lies between them.
      links: of the collectives.
      serial: utilisation where the three follow each other: what is predicted.
      overlapped: utilisation where they run at once.
    """

    compute: float
    memory: float
    links: float
    serial: float
    overlapped: float


def predict(run: Run) -> Prediction:
    """Predicts the utilisation of a run."""
    chip, model, tokens = CHIPS[run.chip], run.model, run.rows * run.length
    mesh = {"data": 1, "fsdp": math.prod(run.shape), "expert": 1, "tensor": 1}
    _, done = train_flops(model, tokens, run.length, adapters=False, repeats=True)
    compute = done / (MATMUL_SHARE * chip.peak_flops)
    moved = _PASSES * _between_bytes(model) * model.num_layers * tokens
    memory = moved / (BANDWIDTH_SHARE * chip.hbm_bandwidth)
    sent = _GATHERS * _BYTES * model.num_params
    links = sent / (BANDWIDTH_SHARE * axis_bandwidth(chip, ["fsdp"], mesh, run.shape))
    products, attention = token_flops(model, run.length)
    counted = 3 * tokens * (products + 2 * attention) / chip.peak_flops
    return Prediction(
        compute=compute,
        memory=memory,
        links=links,
        serial=counted / (compute + memory + links),
        overlapped=counted / max(compute, memory, links),
    )


def _between_bytes(model: DecoderConfig) -> float:
    """Bytes per token and layer that a forward pass moves between the matrix products.

    Two norms (read and write), two residual sums (read two, write one), rotation of queries and
    keys (read and write), the gated product (read two, write one).
    """
    heads = (model.num_heads + model.num_kv_heads) * model.head_dim
    return _BYTES * (10.0 * model.model_dim + 2.0 * heads + 3.0 * model.hidden_dim)


def llama2_70b() -> DecoderConfig:
    """Llama-2-70B: 69.0 billion parameters."""
    return dataclasses.replace(MODELS["llama3-70b"](), vocab_size=32_000)


PUBLISHED = (
    Run(
        name="Llama-3.1-8B, v6e-256",
        model=MODELS["llama3.1-8b"](),
        chip="v6e",
        shape=(16, 16),
        rows=4,
        length=8192,
        published=0.4546,
        tokens_per_second=7207,
    ),
    Run(
        name="Llama-3.1-70B, v6e-256",
        model=MODELS["llama3-70b"](),
        chip="v6e",
        shape=(16, 16),
        rows=5,
        length=8192,
        published=0.5033,
        tokens_per_second=960,
    ),
    Run(
        name="Llama-2-70B, v5p-512 (256 chips)",
        model=llama2_70b(),
        chip="v5p",
        shape=(4, 8, 8),
        rows=4,
        length=2048,
        published=0.654,
        tokens_per_second=692,
    ),
)
"""Rows of MaxText's documentation (docs/reference/models/tiering.md, commit e591f30).

It gives chips, the length (of v6e), utilisation and tokens per second. Rows per chip are those of
the recipes for v6e (github.com/AI-Hypercomputer/tpu-recipes); rows and length of the v5p run are
assumed. Utilisation over tokens per second gives the FLOPs that are counted per token: 57.9, 481
and 434 billion.
"""


def table() -> str:
    """Predicted against published utilisation, as Markdown."""
    lines = [
        "| run | compute ms | between ms | links ms | predicted | overlapped | published | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in PUBLISHED:
        found = predict(run)
        assert run.published is not None, "the rows above were measured"
        times = " | ".join(f"{1e3 * t:,.0f}" for t in (found.compute, found.memory, found.links))
        lines.append(
            f"| {run.name} | {times} | {found.serial:.1%} | {found.overlapped:.1%} | "
            f"{run.published:.1%} | {100 * (found.serial - run.published):+.1f} points |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
