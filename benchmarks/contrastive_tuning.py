"""Learning rate and beta of rows of the contrastive cDPO table, each over one grid on validation.

    python -m benchmarks.contrastive_tuning --run-dir runs/cdpo_demo

Reads a finished run of `reasoning.pipeline --preset demo`, trains every row at every point of the
grid with the run's first seed, and tests on problems that are not among the test problems: greedy
and one sample at temperature 1. The best mean of both is what `reasoning_jax/align/tuned.py` holds.
"""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import tyro

from core_jax.config import from_dict
from reasoning_jax import contrastive_run as runs
from reasoning_jax.align.methods import TITLES, Row
from reasoning_jax.align_config import PipelineConfig
from reasoning_jax.data.load import load_problems
from reasoning_jax.stages import evaluate, prefer, rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Command line."""

    run_dir: str
    """A finished run of the pipeline."""
    rows: tuple[Row, ...] = (
        Row.SFT,
        Row.DPO,
        Row.RPO,
        Row.CDPO,
        Row.CDPO_SHUFFLED,
        Row.CDPO_CONSTANT,
    )
    """Rows to tune."""
    rates: tuple[float, ...] = (1e-4, 3e-4)
    """Learning rates."""
    betas: tuple[float, ...] = (0.1, 1.0)
    """Inverse temperatures."""
    num_problems: int = 300
    """Validation problems."""
    problem_seed: int = 77
    """Seed that draws them."""


def validated(
    config: PipelineConfig, row: Row, rate: float, beta: float, options: Options
) -> tuple[float, float]:
    """Greedy and sampled accuracy of a row at a point of the grid."""
    training = runs.method_config(config, config.seeds[0], row)
    optim = dataclasses.replace(training.train.optim, learning_rate=rate)
    folder = pathlib.Path(options.run_dir) / "tuning" / f"{row.value}_{rate:g}_{beta:g}"
    training = dataclasses.replace(
        training,
        run_dir=str(folder),
        train=dataclasses.replace(training.train, optim=optim),
        method=dataclasses.replace(training.method, beta=beta),
    )
    prefer.run(training)
    model = prefer.export_policy(training)
    test = config.tests[0]
    asked = dataclasses.replace(test, limit=options.num_problems, seed=options.problem_seed)
    tested = {one.problem_id for one in load_problems(test)}
    found = []
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        own = runs.test_configs(config, str(folder), model)[0]
        own = dataclasses.replace(
            own,
            run_dir=str(folder / name),
            problems=asked,
            sampling=dataclasses.replace(own.sampling, temperature=temperature),
        )
        rollout.run(own)
        evaluate.run(own)
        solved = evaluate.per_problem(own.run_dir)
        found.append(float(np.mean([v for key, v in solved.items() if key not in tested])))
    return found[0], found[1]


def main() -> None:
    """Prints one line per point, and the best of every row."""
    options = tyro.cli(Options, description=__doc__)
    path = pathlib.Path(options.run_dir) / "config.json"
    stored = from_dict(PipelineConfig, json.loads(path.read_text(encoding="utf-8")))
    config = dataclasses.replace(stored, run_dir=options.run_dir)
    for row in options.rows:
        betas = options.betas[:1] if row is Row.SFT else options.betas
        points = {
            point: validated(config, row, *point, options)
            for point in itertools.product(options.rates, betas)
        }
        for (rate, beta), (greedy, sampled) in points.items():
            print(f"{TITLES[row]}: rate {rate:g} beta {beta:g}: {greedy:.3f} {sampled:.3f}")
        best = max(points, key=lambda point: sum(points[point]))
        print(f"{TITLES[row]}: best rate {best[0]:g} beta {best[1]:g}", flush=True)


if __name__ == "__main__":
    main()
