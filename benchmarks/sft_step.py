"""A LoRA training step of SmolLM2-135M, beside its FLOPs and beside `transformers` with `peft`.

    python -m benchmarks.sft_step [--dtype FLOAT32] [--batch-size 8] [--row-length 256] [--json]

Full rows of random tokens, all of which count; adapters of rank 8 on all seven maps, AdamW. The
bound is the step's FLOPs at the speed of a square matrix product measured in the same run: two per
parameter and token forward and two for the gradient of the activations (the frozen weights have
none). The peer does the same step on the same weights, rows and adapters (needs the extra
`parity`). Programs take turns; the best of each counts.
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
import numpy as np
import tyro

from benchmarks.moe_layer import hardware
from benchmarks.sampling import matmul_flops
from core_jax.data.pipeline import to_device
from core_jax.mesh import MeshConfig, make_mesh, replicated
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig, make_optimizer
from core_jax.train_state import init_state
from core_jax.train_step import make_train_step
from reasoning_jax.data.packing import PackedBatch
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.lora import init_lora
from reasoning_jax.model.shardings import RULES
from reasoning_jax.objectives import sft_objective
from reasoning_jax.weights.gguf_load import GgufFile, load_gguf
from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.packaged import smollm2_gguf

LORA = LoraConfig(rank=8, alpha=16.0)
RATE = 3e-4


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
    rounds: int = 4
    """Steps of each after the first."""
    json: bool = False
    """Print JSON instead of lines."""


def our_program(
    config: DecoderConfig, params: dict, tokens: np.ndarray, options: Options
) -> Callable[[], float]:
    """One step; gives the loss before it."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    rows, length = tokens.shape
    batch = PackedBatch(
        tokens=tokens,
        segment_ids=np.ones_like(tokens),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape),
        targets=np.concatenate([tokens[:, 1:], np.zeros((rows, 1), np.int32)], axis=1),
        loss_mask=np.broadcast_to(np.arange(length) < length - 1, tokens.shape),
    )
    optimizer = make_optimizer(OptimConfig(learning_rate=RATE), 1000)
    state, shardings = init_state(
        functools.partial(init_lora, config, LORA),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(0),
    )
    objective = functools.partial(sft_objective, config=config, chunk=options.chunk, lora=LORA)
    step = make_train_step(
        objective, optimizer, mesh=mesh, state_shardings=shardings, frozen=params
    )
    data = to_device(batch, mesh)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    holder = [state]

    def run() -> float:
        holder[0], metrics = step(holder[0], data, key)
        return float(metrics["loss"].total / metrics["loss"].count)

    return run


def peer_program(
    config: DecoderConfig, params: dict, tokens: np.ndarray, options: Options
) -> Callable[[], float] | None:
    """The same step by `transformers` and `peft`, or None without them."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft")):
        return None
    import peft
    import torch
    import transformers

    dtype = getattr(torch, options.dtype.value)
    with tempfile.TemporaryDirectory() as folder:
        export_model(folder, config, params)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = peft.LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules=names, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, settings)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    ids = torch.tensor(tokens, dtype=torch.long)

    def run() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        return float(loss)

    return run


def main(options: Options) -> None:
    """Runs both and prints them."""
    file = GgufFile(pathlib.Path(smollm2_gguf()))
    config = dataclasses.replace(
        file.config, dtype=options.dtype, remat=options.remat, unroll=options.unroll
    )
    params = load_gguf(file, mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    shape = (options.batch_size, options.row_length)
    tokens = np.random.default_rng(0).integers(100, config.vocab_size, shape).astype(np.int32)
    flops = matmul_flops(config.dtype.dtype)
    needed = 4.0 * config.num_params * tokens.size
    programs = {"alignax": our_program(config, params, tokens, options)}
    peer = peer_program(config, params, tokens, options)
    if peer is not None:
        programs["transformers + peft"] = peer
    losses = {name: [program()] for name, program in programs.items()}
    seconds = dict.fromkeys(programs, np.inf)
    for _ in range(options.rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            losses[name].append(program())
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    results = {
        "benchmark": "sft_step",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "dtype": options.dtype.value,
        "matmul_gflops": flops / 1e9,
        "bound_seconds": needed / flops,
        "seconds": seconds,
        "share_of_bound": {name: needed / flops / one for name, one in seconds.items()},
        "losses": losses,
    }
    if peer is not None:
        results["over_peer"] = seconds["transformers + peft"] / seconds["alignax"]
    print(json.dumps(results, indent=2) if options.json else text(results))


def text(results: dict) -> str:
    """The results in lines."""
    lines = [
        f"{results['hardware']}",
        f"{results['dtype']}: matmul {results['matmul_gflops']:.0f} GFLOP/s, bound "
        f"{results['bound_seconds']:.2f} s per step",
    ]
    for name, one in results["seconds"].items():
        losses = ", ".join(f"{loss:.3f}" for loss in results["losses"][name])
        share = results["share_of_bound"][name]
        lines.append(f"{name}: {one:.2f} s per step, {share:.0%} of the bound; losses {losses}")
    if "over_peer" in results:
        lines.append(f"alignax over transformers + peft: {results['over_peer']:.2f}x (aim 1x)")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
