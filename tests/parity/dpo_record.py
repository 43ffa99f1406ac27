"""The small model and the pairs on which DPO is compared with TRL, and what ours makes of them.

Dimension key: none.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from core_jax.losses import token_log_probs
from reasoning_jax.align.methods import MethodConfig
from reasoning_jax.align.objective import preference_objective
from reasoning_jax.align.pair_rows import PairRows, PairRowsConfig, TokenPair
from reasoning_jax.data.packing import Layout
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.weights.hf_load import load_params
from reasoning_jax.weights.peft import Adapter, export_adapter, load_adapter
from tests.parity.hf_record import mesh
from tests.reasoning.weight_cases import hf_tensors, made_up_adapter, small_config, write_folder

GOLDEN = "dpo_trl.json"
BETA = 0.3
LORA = LoraConfig(rank=2, alpha=3.0)
EOS = 2
CONFIG = small_config(num_layers=2, model_dim=14, hidden_dim=11, num_heads=2, num_kv_heads=1)
SIZES = ((3, 7, 5), (5, 2, 11), (1, 13, 1))
"""Tokens of each pair's prompt, chosen and rejected response, all of which end."""


def token_ids():
    """The pairs by arithmetic, no id being padding or the end; both responses begin otherwise."""
    pairs = []
    for number, sizes in enumerate(SIZES):
        sides = [
            [3 + (7 * place * (side + 1) + 5 * number + side) % 23 for place in range(size)]
            for side, size in enumerate(sizes)
        ]
        sides = [sides[0], *([*side[:-1], EOS] for side in sides[1:])]
        pairs.append(dict(zip(("prompt", "chosen", "rejected"), sides, strict=True)))
    return pairs


def write_model(folder):
    """The model's folder, and the adapter's below it."""
    write_folder(folder, CONFIG, hf_tensors(CONFIG))
    export_adapter(folder / "adapter", CONFIG, made_up_adapter(CONFIG, LORA))
    return folder


def reference_log_probs(params, ids, start):
    """Of a response's tokens under the base, one sequence at a time."""
    tokens = jnp.asarray([ids])
    hidden = decoder_lm.apply(CONFIG, params, decoder_lm.whole_rows(tokens)).hidden
    logits = decoder_lm.logits(CONFIG, params, hidden)
    return np.asarray(token_log_probs(logits[0, start - 1 : -1], tokens[0, start:]))


def token_pairs(params, weights=lambda size: np.ones(size, np.float32)):
    """The pairs with their reference."""
    found = []
    for pair in token_ids():
        start = len(pair["prompt"])
        ids = [pair["prompt"] + pair[side] for side in ("chosen", "rejected")]
        reference = [reference_log_probs(params, one, start) for one in ids]
        found.append(
            TokenPair(
                token_ids=tuple(ids),
                response_starts=(start, start),
                reference=tuple(reference),
                weights=tuple(weights(len(one)) for one in reference),
            )
        )
    return found


def our_values(folder, layout, row_length=43):
    """{"loss", "gradients"} as the trained objective gives them, gradients under PEFT's names."""
    params = load_params(folder, CONFIG, mesh=mesh())
    adapter = load_adapter(folder / "adapter", CONFIG, mesh=mesh())
    rows = PairRows(token_pairs(params), PairRowsConfig(row_length=row_length, layout=layout))
    batch = jax.tree.map(jnp.asarray, next(rows.in_order(len(rows))))
    objective = functools.partial(
        preference_objective,
        config=CONFIG,
        method=MethodConfig(beta=BETA),
        chunk=5,
        lora=LORA,
        frozen=params,
    )

    @jax.jit
    @jax.value_and_grad
    def mean_loss(adapters):
        loss, _ = objective(adapters, batch)
        return loss.total / loss.count

    loss, gradients = mean_loss(adapter.params)
    exported = folder / f"gradients_{layout.value}"
    export_adapter(exported, CONFIG, Adapter(config=LORA, params=gradients))
    tensors = load_file(exported / "adapter_model.safetensors")
    return {"loss": float(loss), "gradients": tensors}


def record_text(release, values):
    """A golden file's text: one line per tensor, numbers to 9 digits."""

    def rounded(value):
        return [rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.9g}")

    lines = [
        f'  "{name}": {json.dumps(rounded(value))}'
        for name, value in sorted(values["gradients"].items())
    ]
    head = f'{{\n "trl": "{release}",\n "loss": {rounded(values["loss"])},\n "gradients": {{\n'
    return head + ",\n".join(lines) + "\n }\n}\n"


LAYOUTS = tuple(Layout)
