"""A contrastive cDPO step with adapters on SmolLM2-135M, beside TRL's DPOTrainer with PEFT.

    python -m benchmarks.cdpo_step [--dtype FLOAT32] [--rounds 2] [--json]

Eight pairs, of lengths as sampled solutions have them and at most 512 tokens each (ids are random:
the time does not depend on them), adapters of rank 16 on all seven maps, AdamW. Ours reads the
reference's log-probabilities and the tokens' weights from the batch, as `reasoning.prefer` does.
TRL's trainer (needs the extra `parity`) trains DPO, the nearest that it has, on the same pairs,
weights, first adapters and dtype: as it comes, and with the reference's log-probabilities computed
beforehand; `--peers` also takes `uncheckpointed`, the latter without gradient checkpointing.

Every program runs in a process of its own, from the same files; they take turns of a few steps,
and the best step of each counts. Tokens are those of the pairs, padding not counted. Peak memory is
all that a process ever held. The bound is the step's FLOPs at the speed of a square matrix product
measured in the same run: two per parameter and token forward and two for the gradient of the
activations; the output matrix, as it must, sees response tokens only.
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
from reasoning_jax.data.packing import Layout
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.flops import product_flops
from reasoning_jax.model.lora import init_lora
from reasoning_jax.weights.gguf_load import GgufFile, load_gguf
from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.packaged import smollm2_gguf
from reasoning_jax.weights.peft import Adapter, export_adapter

LORA = LoraConfig(rank=16, alpha=32.0)
TRAINING = {"beta": 1.0, "learning_rate": 4e-5, "clip_norm": 1.0}
EOS = 2
PROMPT_TOKENS, RESPONSE_TOKENS = (40, 80), (60, 177)
PAIR_TOKENS = 512
OURS, AS_IT_COMES, PRECOMPUTED = "alignax", "as_it_comes", "precomputed"
AIMS = {AS_IT_COMES: 1.3, PRECOMPUTED: 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Dtype of weights and products."""
    num_pairs: int = 8
    """Pairs of a step."""
    row_length: int = 512
    """Tokens of our rows."""
    layout: Layout = Layout.PACKED
    """How our rows hold pairs."""
    rows_at_a_time: int = 1
    """Rows of our microbatches."""
    chunk: int = 128
    """Response tokens of a row whose logits exist at a time."""
    remat: Remat = Remat.NONE
    """What our backward pass keeps."""
    unroll: int = 30
    """Layers per iteration of our loop over layers."""
    peers: tuple[str, ...] = (AS_IT_COMES, PRECOMPUTED)
    """Ways of TRL: as_it_comes, precomputed, uncheckpointed."""
    rounds: int = 2
    """Turns of each after its first step, three steps a turn."""
    json: bool = False
    """Print JSON instead of lines."""


def made_up_pairs(num_pairs: int, vocab_size: int) -> list[dict]:
    """Pairs with random ids that end, and weights 1 - s of the rejected tokens."""
    draw = np.random.default_rng(0)
    pairs = []
    for _ in range(num_pairs):
        size = int(draw.integers(*PROMPT_TOKENS))
        pair: dict = {"prompt": draw.integers(100, vocab_size, size).tolist(), "weights": {}}
        for side in ("chosen", "rejected"):
            size = int(draw.integers(*RESPONSE_TOKENS))
            pair[side] = [*draw.integers(100, vocab_size, size - 1).tolist(), EOS]
            weights = draw.uniform(size=size) if side == "rejected" else np.ones(size)
            pair["weights"][side] = weights.tolist()
        assert 2 * len(pair["prompt"]) + len(pair["chosen"] + pair["rejected"]) <= PAIR_TOKENS
        pairs.append(pair)
    return pairs


def write_case(folder: pathlib.Path, options: Options) -> tuple[DecoderConfig, list[dict]]:
    """Model, first adapters, pairs and settings, for every program."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    file = GgufFile(pathlib.Path(smollm2_gguf()))
    params = load_gguf(file, mesh=mesh, dtype=options.dtype.dtype)
    export_model(folder / "model", file.config, params)
    adapters = init_lora(file.config, LORA, key=jax.random.key(1))
    export_adapter(folder / "adapter", file.config, Adapter(config=LORA, params=adapters))
    pairs = made_up_pairs(options.num_pairs, file.config.vocab_size)
    case = TRAINING | {
        "eos": EOS,
        "dtype": options.dtype.value,
        "rank": LORA.rank,
        "alpha": LORA.alpha,
        "num_steps": 1 + STEPS * options.rounds,
        "row_length": options.row_length,
        "layout": options.layout.value,
        "rows_at_a_time": options.rows_at_a_time,
        "chunk": options.chunk,
        "remat": options.remat.value,
        "unroll": options.unroll,
        "pairs": pairs,
    }
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    return file.config, pairs


def needed_flops(config: DecoderConfig, pairs: list[dict]) -> float:
    """Of a step's products with frozen matrices, forward and backward; attention left out."""
    responses = sum(len(pair["chosen"]) + len(pair["rejected"]) for pair in pairs)
    return 2.0 * product_flops(config, num_tokens(pairs), responses)


def num_tokens(pairs: list[dict]) -> int:
    """Of all sequences, the prompt counted with each of its responses."""
    return sum(
        2 * len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"]) for pair in pairs
    )


def measure(folder: pathlib.Path, options: Options) -> dict[str, dict]:
    """By program the seconds of its best step, its losses where it tells them, and its memory."""
    modules = {OURS: ["benchmarks.cdpo_alignax", str(folder)]}
    if all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft", "trl")):
        modules |= {mode: ["benchmarks.cdpo_trl", str(folder), mode] for mode in options.peers}
    return take_turns(modules, options.rounds, folder)


def main(options: Options) -> None:
    """Runs all and prints them."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        config, pairs = write_case(folder, options)
        flops = matmul_flops(options.dtype.dtype)
        programs = measure(folder, options)
    bound = needed_flops(config, pairs) / flops
    for program in programs.values():
        program["tokens_per_second"] = num_tokens(pairs) / program["seconds"]
        program["share_of_bound"] = bound / program["seconds"]
    ours = programs[OURS]
    results = {
        "benchmark": "cdpo_step",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "dtype": options.dtype.value,
        "num_pairs": len(pairs),
        "num_tokens": num_tokens(pairs),
        "matmul_gflops": flops / 1e9,
        "bound_seconds": bound,
        "programs": programs,
        "over_peers": {
            name: {
                "speed": other["seconds"] / ours["seconds"],
                "memory": ours["peak_bytes"] / other["peak_bytes"],
            }
            for name, other in programs.items()
            if name != OURS
        },
    }
    print(json.dumps(results, indent=2) if options.json else text(results))


def text(results: dict) -> str:
    """The results in lines."""
    lines = [
        f"{results['hardware']}",
        f"{results['dtype']}, {results['num_pairs']} pairs of {results['num_tokens']} tokens: "
        f"matmul {results['matmul_gflops']:.0f} GFLOP/s, bound {results['bound_seconds']:.2f} s "
        "per step",
    ]
    for name, one in results["programs"].items():
        lines.append(
            f"{name if name == OURS else f'TRL, {name}'}: {one['seconds']:.2f} s per step, "
            f"{one['tokens_per_second']:.0f} tokens/s, {one['share_of_bound']:.0%} of the bound, "
            f"peak {one['peak_bytes'] / 1e9:.2f} GB"
        )
    for name, ratio in results["over_peers"].items():
        aim = f" (aim {AIMS[name]}x)" if name in AIMS else ""
        lines.append(
            f"alignax over TRL, {name}: {ratio['speed']:.2f}x the speed{aim}, "
            f"{ratio['memory']:.2f}x the memory (aim 1x or less)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
