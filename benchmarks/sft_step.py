"""A LoRA training step of SmolLM2-135M, beside its FLOPs and beside `transformers` with `peft`.

    python -m benchmarks.sft_step [--dtype FLOAT32] [--batch-size 8] [--row-length 256] [--json]

Full rows of random tokens, all of which count; adapters of rank 8 on all seven maps, AdamW. The
bound is the step's FLOPs at the speed of a square matrix product measured in the same run: two per
parameter and token forward and two for the gradient of the activations (the frozen weights have
none). The peer does the same step on the same weights, rows and adapters (needs the extra
`parity`). Each runs in a process of its own; they take turns of a few steps, and the best step of
each counts. Peak memory is all that a process ever held.
"""

import dataclasses
import importlib.util
import json
import pathlib
import tempfile
import time

import jax
import numpy as np
import tyro

from benchmarks.moe_layer import hardware
from benchmarks.sampling import matmul_flops
from benchmarks.turns import STEPS, take_turns
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.lora import init_lora
from reasoning_jax.weights.gguf_load import GgufFile, load_gguf
from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.packaged import smollm2_gguf
from reasoning_jax.weights.peft import Adapter, export_adapter

LORA = LoraConfig(rank=8, alpha=16.0)
RATE = 3e-4
OURS, PEER = "alignax", "transformers + peft"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Compute dtype."""
    batch_size: int = 8
    """Rows of a step."""
    row_length: int = 256
    """Tokens of a row."""
    chunk: int = 128
    """Tokens of a row whose logits exist at a time."""
    remat: Remat = Remat.NONE
    """What our backward pass keeps."""
    unroll: int = 30
    """Layers per iteration of our loop over layers."""
    rounds: int = 2
    """Turns of each after its first step, three steps a turn."""
    json: bool = False
    """Print JSON instead of lines."""


def write_case(folder: pathlib.Path, options: Options) -> DecoderConfig:
    """Model, first adapters, rows and settings, for both programs."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    file = GgufFile(pathlib.Path(smollm2_gguf()))
    config = file.config
    export_model(folder / "model", config, load_gguf(file, mesh=mesh))
    adapters = init_lora(config, LORA, key=jax.random.key(0))
    export_adapter(folder / "adapter", config, Adapter(config=LORA, params=adapters))
    shape = (options.batch_size, options.row_length)
    tokens = np.random.default_rng(0).integers(100, config.vocab_size, shape).astype(np.int32)
    np.save(folder / "tokens.npy", tokens)
    case = {
        "dtype": options.dtype.value,
        "rank": LORA.rank,
        "alpha": LORA.alpha,
        "learning_rate": RATE,
        "num_steps": 1 + STEPS * options.rounds,
        "chunk": options.chunk,
        "remat": options.remat.value,
        "unroll": options.unroll,
    }
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    return config


def measure(folder: pathlib.Path, rounds: int) -> dict[str, dict]:
    """By program the seconds of its best step, its losses and its memory."""
    modules = {OURS: ["benchmarks.sft_alignax", str(folder)]}
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft")):
        modules[PEER] = ["benchmarks.sft_peft", str(folder)]
    return take_turns(modules, rounds, folder)


def main(options: Options) -> None:
    """Runs both and prints them."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config = write_case(folder, options)
        flops = matmul_flops(options.dtype.dtype)
        programs = measure(folder, options.rounds)
    bound = 4.0 * config.num_params * options.batch_size * options.row_length / flops
    for program in programs.values():
        program["share_of_bound"] = bound / program["seconds"]
    results = {
        "benchmark": "sft_step",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "dtype": options.dtype.value,
        "matmul_gflops": flops / 1e9,
        "bound_seconds": bound,
        "programs": programs,
    }
    if PEER in programs:
        results["over_peer"] = {
            "speed": programs[PEER]["seconds"] / programs[OURS]["seconds"],
            "memory": programs[OURS]["peak_bytes"] / programs[PEER]["peak_bytes"],
        }
    print(json.dumps(results, indent=2) if options.json else text(results))


def text(results: dict) -> str:
    """The results in lines."""
    lines = [
        f"{results['hardware']}",
        f"{results['dtype']}: matmul {results['matmul_gflops']:.0f} GFLOP/s, bound "
        f"{results['bound_seconds']:.2f} s per step",
    ]
    for name, one in results["programs"].items():
        losses = ", ".join(f"{loss:.4f}" for loss in one["losses"])
        lines.append(
            f"{name}: {one['seconds']:.2f} s per step, {one['share_of_bound']:.0%} of the bound, "
            f"peak {one['peak_bytes'] / 1e9:.2f} GB; losses {losses}"
        )
    if "over_peer" in results:
        ratio = results["over_peer"]
        lines.append(
            f"alignax over {PEER}: {ratio['speed']:.2f}x the speed (aim 1x), "
            f"{ratio['memory']:.2f}x the memory"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
