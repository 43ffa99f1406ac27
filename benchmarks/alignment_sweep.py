"""What the settings of an alignment round do, one at a time, in the simulated world.

    python -m benchmarks.alignment_sweep --run-dir runs/alignment_sweep
    python -m benchmarks.alignment_sweep --settings beta preference_ratio --seed 1
    python -m benchmarks.alignment_sweep --method contrastive --settings preference_weight
    python -m benchmarks.alignment_sweep --method contrastive --control shuffled --settings ...

All points of a seed share log, semantic IDs, pre-trained model, judges and, where the setting does
not touch them, candidates. Gains are paired differences to the pre-trained model over the test
users. The paper's Fig. 4 is the setting `preference_ratio`. Resumes where it was cut off.
"""

import argparse
import dataclasses
import json
import os
import pathlib

import jax

from core_jax.config import fingerprint, to_dict
from core_jax.token_weights import WeightConfig, WeightControl
from launch import runtime
from rec_jax.align.contrast_config import ContrastConfig, WeightScale
from rec_jax.align.methods import Method, MethodConfig
from rec_jax.align.plots import plot_sweep
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.align.summary import Measures, PolicySummary, summarise
from rec_jax.align_presets import demo
from rec_jax.alignment import run_base, run_rounds, run_shared
from rec_jax.alignment_cells import seeded
from rec_jax.evaluation_tables import Table, to_markdown, to_text
from rec_jax.stages import align_report
from rec_jax.stages.align_report import BASELINE

VALUES: dict[str, tuple[float, ...]] = {
    "beta": (0.03, 0.1, 0.3, 1.0),
    "preference_weight": (1.0, 10.0, 30.0, 100.0),
    "learning_rate": (1e-4, 3e-4, 1e-3),
    "preference_ratio": (0.01, 0.05, 0.1, 0.25, 1.0),
    "num_steps": (75, 150, 300),
    "num_beams": (8, 32, 128),
    "num_rounds": (1, 2, 3, 5),
}
"""What is tried of every setting, the others at the preset's values."""
CONTRAST_VALUES: dict[str, tuple[float, ...]] = {
    "contrast_beta": (0.0, 0.5, 1.0, 2.0),
    "contrast_share": (0.03, 0.1, 0.25, 0.5),
    "contrast_steps": (50, 150, 450),
    "contrast_rate": (1e-4, 3e-4, 1e-3),
}
"""The same, of contrastive cDPO's positive and negative models alone."""
OWN_CANDIDATES = (
    "preference_ratio",
    "num_steps",
    "num_beams",
    "contrast_share",
    "contrast_steps",
    "contrast_rate",
)
"""Settings that the candidates of round 1, or the models that learn them, depend on."""
JUDGES = ("truth", "reward", "judge")


def main() -> None:
    """Runs the sweep and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", default="runs/alignment_sweep")
    known = VALUES | CONTRAST_VALUES
    parser.add_argument("--settings", nargs="*", default=list(VALUES), choices=list(known))
    parser.add_argument("--values", nargs="*", type=float, help="instead of the listed ones")
    parser.add_argument("--method", default="dpo", choices=[method.value for method in Method])
    controls = [control.value for control in WeightControl]
    parser.add_argument("--control", default="none", choices=controls, help="of contrastive's")
    scales = [scale.value for scale in WeightScale]
    parser.add_argument("--scale", default="none", choices=scales, help="of contrastive's weights")
    parser.add_argument("--seed", type=int, default=100, help="no seed of the table")
    arguments = parser.parse_args()
    runtime.start()
    root = pathlib.Path(arguments.run_dir) / f"seed_{arguments.seed}"
    base = os.fspath(root / "base")
    config = seeded(demo(), arguments.seed, base)
    method = MethodConfig(method=Method(arguments.method))
    weights = WeightConfig(control=WeightControl(arguments.control))
    contrast = dataclasses.replace(
        config.align.contrast, weights=weights, scale=WeightScale(arguments.scale)
    )
    align = dataclasses.replace(config.align, method=method, contrast=contrast, num_rounds=1)
    config = dataclasses.replace(config, align=align)
    shared = Folders(base=base, shared=base, first=base, run=base)
    assert run_base(shared, config) and run_shared(shared, config)
    points: dict[str, dict[float, PolicySummary]] = {}
    for setting in arguments.settings:
        for value in arguments.values or known[setting]:
            found = measure(root, shared, config, setting, value)
            points.setdefault(setting, {})[value] = found
            print(to_text(table(points)), flush=True)
    said = [arguments.method]
    said += [what for what in (arguments.control, arguments.scale) if what != "none"]
    write(points, root, "_".join(said))


def varied(config: AlignRunConfig, setting: str, value: float) -> AlignRunConfig:
    """The configuration with one setting changed."""
    align = config.align
    if setting == "beta":
        align = dataclasses.replace(align, method=dataclasses.replace(align.method, beta=value))
    elif setting == "learning_rate":
        optim = dataclasses.replace(align.optim, learning_rate=value)
        align = dataclasses.replace(align, optim=optim)
    elif setting == "num_steps":
        loop = dataclasses.replace(align.loop, num_steps=int(value))
        align = dataclasses.replace(align, loop=loop)
    elif setting == "num_beams":
        candidates = dataclasses.replace(align.candidates, num_beams=int(value))
        align = dataclasses.replace(align, candidates=candidates)
    elif setting == "num_rounds":
        align = dataclasses.replace(align, num_rounds=int(value))
    elif setting in CONTRAST_VALUES:
        align = dataclasses.replace(align, contrast=_contrasted(align.contrast, setting, value))
    else:
        align = dataclasses.replace(align, **{setting: value})
    return dataclasses.replace(config, align=align)


def _contrasted(config: ContrastConfig, setting: str, value: float) -> ContrastConfig:
    """The positive and negative models' configuration with one setting changed."""
    if setting == "contrast_rate":
        optim = dataclasses.replace(config.optim, learning_rate=value)
        return dataclasses.replace(config, optim=optim)
    if setting == "contrast_steps":
        loop = dataclasses.replace(config.loop, num_steps=int(value))
        return dataclasses.replace(config, loop=loop)
    return dataclasses.replace(config, **{setting.removeprefix("contrast_"): value})


def measure(
    root: pathlib.Path, shared: Folders, config: AlignRunConfig, setting: str, value: float
) -> PolicySummary:
    """One point: trains, evaluates, and compares with the pre-trained model."""
    config = varied(config, setting, value)
    # Points with equal settings share a folder; more rounds go on where fewer ended.
    same = to_dict(config.align)
    del same["num_rounds"]
    run = os.fspath(root / f"point_{fingerprint(same)}")
    first = run if setting in OWN_CANDIDATES else shared.first
    folders = dataclasses.replace(shared, run=run, first=first)
    assert run_rounds(folders, config)
    last = config.align.num_rounds
    found = align_report.policies_of_round(folders, config, [0, last])
    policies: dict[str, list[Measures]] = {
        BASELINE: [found[BASELINE]],
        "aligned": [found[f"{BASELINE} after round {last}"]],
    }
    return summarise(
        policies,
        baseline=BASELINE,
        num_samples=config.evaluate.bootstrap_samples,
        confidence=config.evaluate.confidence,
    )[1]


def table(points: dict[str, dict[float, PolicySummary]]) -> Table:
    """Gains of every point."""
    rows = []
    for setting, values in points.items():
        for value, found in values.items():
            cells = [
                f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
                for gain in (found.gains[judge] for judge in JUDGES)
            ]
            rest = [f"{found.measures[name].mean:.3f}" for name in ("recall", "legality")]
            rows.append((f"{setting} = {value:g}", *cells, *rest))
    return Table(
        title="Settings of a round, one at a time",
        note="Gain of the most probable session over the pre-trained model, 95 % bootstrap over "
        "users; truth in seconds of session watch time, judges in standard deviations.",
        header=("setting", *JUDGES, "Recall@10", "legal codes"),
        rows=tuple(rows),
    )


def write(points: dict[str, dict[float, PolicySummary]], root: pathlib.Path, method: str) -> None:
    """Writes the table, the numbers and the picture."""
    (root / f"sweep_{method}.md").write_text(to_markdown(table(points)) + "\n")
    values = {
        setting: {f"{value:g}": to_dict(found) for value, found in found_of.items()}
        for setting, found_of in points.items()
    }
    (root / f"sweep_{method}.json").write_text(json.dumps(values))
    gains = {
        setting: {value: found.gains for value, found in found_of.items()}
        for setting, found_of in points.items()
    }
    plot_sweep(root / f"sweep_{method}.png", gains, title="Gain over the pre-trained model")
    print(f"written to {root}; {jax.devices()[0].device_kind}, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
