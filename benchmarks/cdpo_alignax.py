"""Our contrastive cDPO step with adapters, in turns: a worker of `benchmarks.cdpo_step`.

python -m benchmarks.cdpo_alignax CASE_FOLDER
"""

import dataclasses
import functools
import json
import pathlib
import sys

import jax
import numpy as np

from benchmarks.turns import Worker
from core_jax.arrays import Params
from core_jax.data.pipeline import to_device
from core_jax.mesh import MeshConfig, make_mesh, replicated
from core_jax.nn.linear import ComputeDtype
from core_jax.nn.stack import Remat
from core_jax.optim import OptimConfig, make_optimizer
from core_jax.train_state import init_state
from core_jax.train_step import make_train_step
from launch.large_pages import restart_with_large_pages
from reasoning_jax.align.contrast_model import LOG_PROB
from reasoning_jax.align.methods import Row, row_method
from reasoning_jax.align.objective import preference_objective
from reasoning_jax.align.pair_rows import SIDES, PairRows, PairRowsConfig, TokenPair
from reasoning_jax.align.scoring import RowsConfig, sequence_log_probs
from reasoning_jax.data.packing import Layout
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.lora import init_lora
from reasoning_jax.model.shardings import RULES
from reasoning_jax.weights.hf_load import load_config, load_params
from reasoning_jax.weights.peft import load_adapter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """A prompt and a response."""

    problem_id: str
    sample: int
    token_ids: tuple[int, ...]
    response_start: int


def token_pairs(case: dict, config: DecoderConfig, params: Params) -> list[TokenPair]:
    """The case's pairs with what the loss reads, reference log-probabilities by the model."""
    responses = [
        Response(
            problem_id=str(number),
            sample=side,
            token_ids=(*pair["prompt"], *pair[name]),
            response_start=len(pair["prompt"]),
        )
        for number, pair in enumerate(case["pairs"])
        for side, name in enumerate(SIDES)
    ]
    reference = sequence_log_probs(
        config,
        params,
        responses,
        rows=RowsConfig(batch_size=1, row_length=case["row_length"], chunk=case["chunk"]),
        mesh=make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        model="base",
    )
    found = []
    for pair, chosen, rejected in zip(case["pairs"], responses[::2], responses[1::2], strict=True):
        under = [
            reference[one.problem_id, one.sample].named(LOG_PROB) for one in (chosen, rejected)
        ]
        weights = [np.asarray(pair["weights"][name], np.float32) for name in SIDES]
        found.append(
            TokenPair(
                token_ids=(chosen.token_ids, rejected.token_ids),
                response_starts=(chosen.response_start, rejected.response_start),
                reference=(np.asarray(under[0], np.float32), np.asarray(under[1], np.float32)),
                weights=(weights[0], weights[1]),
            )
        )
    return found


def main(folder: pathlib.Path) -> None:
    """Trains for as many steps as the case says."""
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    dtype = ComputeDtype(case["dtype"])
    config = dataclasses.replace(
        load_config(folder / "model"),
        dtype=dtype,
        remat=Remat(case["remat"]),
        unroll=case["unroll"],
    )
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    params = load_params(folder / "model", config, mesh=mesh, dtype=dtype.dtype)
    rows = PairRows(
        token_pairs(case, config, params),
        PairRowsConfig(row_length=case["row_length"], layout=Layout(case["layout"])),
    )
    # A microbatch has one row: as little memory for activations as there can be.
    num_rows = len(rows)
    batch = next(rows.in_order(num_rows))
    lora = LoraConfig(rank=case["rank"], alpha=case["alpha"])
    optim = OptimConfig(learning_rate=case["learning_rate"], clip_norm=case["clip_norm"])
    optimizer = make_optimizer(optim, case["num_steps"])
    state, shardings = init_state(
        functools.partial(init_lora, config, lora),
        optimizer,
        mesh=mesh,
        rules=RULES,
        key=jax.random.key(0),
    )
    start = load_adapter(folder / "adapter", config, mesh=mesh)
    state = dataclasses.replace(state, params=start.params)
    method = row_method(Row.CDPO)
    assert method is not None, "only the baseline trains nothing"
    step = make_train_step(
        functools.partial(
            preference_objective,
            config=config,
            method=dataclasses.replace(method, beta=case["beta"]),
            chunk=case["chunk"],
            lora=lora,
        ),
        optimizer,
        mesh=mesh,
        state_shardings=shardings,
        num_microbatches=num_rows // min(case["rows_at_a_time"], num_rows),
        frozen=params,
    )
    data, key = to_device(batch, mesh), jax.device_put(jax.random.key(1), replicated(mesh))

    def take_step() -> float:
        nonlocal state
        state, metrics = step(state, data, key)
        jax.block_until_ready(state)
        return float(metrics["loss"].total / metrics["loss"].count)

    Worker().run(take_step, case["num_steps"])


if __name__ == "__main__":
    restart_with_large_pages()  # as `launch.local` does
    main(pathlib.Path(sys.argv[1]))
