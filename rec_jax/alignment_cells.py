"""The cells of the table of preference methods: one run of one method on one seed.

Iterative alignment (IPA) is DPO over T rounds, so its first round is the row DPO. Contrastive cDPO
and the controls of its weights run for T rounds too: the control of uniform weights is DPO itself.

Every cell is a run folder of its own and resumes by itself: `RUN/seed_S/METHOD`, beside
`RUN/seed_S/base` with what all methods of a seed share.

Dimension key: none.
"""

import dataclasses
import os
import pathlib

from core_jax.errors import ConfigError
from core_jax.token_weights import WeightControl
from rec_jax.align.contrast_config import WeightScale
from rec_jax.align.methods import Method, MethodConfig, uses_token_weights
from rec_jax.align.run_config import AlignRunConfig, Folders
from rec_jax.align.tuned import CONTROL_TITLES, TITLES
from rec_jax.data.simulator.config import SimulatorConfig
from rec_jax.stages.align_report import BASELINE

IPA, LONG = "IPA", "DPO, steps of IPA"
"""Names of iterative alignment, and of one round that trains as long as all its rounds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentTableConfig:
    """Which methods are compared, on how many seeds."""

    run_dir: str
    """Folder of the table."""
    template: AlignRunConfig
    """What every cell shares; its method and weight are replaced by each method's own, its seeds by
    each seed, and `align.num_rounds` is T of IPA."""
    methods: tuple[Method, ...]
    """Methods of one round; DPO, which is the first round of IPA, is always there, and contrastive
    cDPO has T rounds too."""
    weight_controls: tuple[WeightControl, ...] = ()
    """Controls of contrastive cDPO, each a row: the same scores, other weights. DPO, which is
    always there, is that of uniform weights."""
    weight_scales: tuple[WeightScale, ...] = (WeightScale.NONE,)
    """Scales of contrastive cDPO and its controls, each a row. A constant weight of mean 1, which
    is DPO, has none."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the simulated world (where there is one), of every training and of the users."""

    def __post_init__(self) -> None:
        """Checks the seeds, the controls, and that the template's folders are its own."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(f"seeds is {self.seeds}; give different numbers, 0 or more")
        if self.weight_controls and Method.CONTRASTIVE not in self.methods:
            raise ConfigError(
                "weight_controls names controls of contrastive cDPO, which is not among the "
                "methods; add contrastive to methods, or leave weight_controls empty"
            )
        if WeightControl.NONE in self.weight_controls:
            raise ConfigError(
                "weight_controls has none, which is contrastive cDPO itself; leave it out"
            )
        if not self.weight_scales:
            raise ConfigError("weight_scales is empty; give none, mean_one or both")
        if self.template.from_run:
            raise ConfigError(
                "--template.from names a run, but every seed of a table trains a OneRec of its "
                "own; leave it empty"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastRow:
    """Contrastive cDPO, or a control of it: how its weights are made."""

    control: WeightControl = WeightControl.NONE
    """What is put in the place of the weights."""
    scale: WeightScale = WeightScale.NONE
    """What they are scaled to."""

    @property
    def name(self) -> str:
        """As in tables."""
        words = [TITLES[Method.CONTRASTIVE]]
        words += ["mean 1"] if self.scale is WeightScale.MEAN_ONE else []
        words += [] if self.control is WeightControl.NONE else [CONTROL_TITLES[self.control]]
        return ", ".join(words)

    @property
    def folder(self) -> str:
        """Of its runs, below that of the seed."""
        said = [self.scale.value, self.control.value]
        return "_".join([Method.CONTRASTIVE.value, *(one for one in said if one != "none")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one seed."""

    name: str
    folders: Folders
    config: AlignRunConfig

    @property
    def steps_per_round(self) -> int:
        """Training steps of a round, those of the positive and the negative model included."""
        align = self.config.align
        extra = 2 * align.contrast.loop.num_steps if uses_token_weights(align.method.method) else 0
        return align.loop.num_steps + extra


def seeded(template: AlignRunConfig, seed: int, folder: str) -> AlignRunConfig:
    """The template with all its seeds replaced; the two judges' seeds differ."""
    pipeline = template.pipeline
    log = pipeline.log
    if isinstance(log, SimulatorConfig):
        log = dataclasses.replace(log, seed=seed)
    return dataclasses.replace(
        template,
        run_dir=folder,
        pipeline=dataclasses.replace(pipeline, run_dir=folder, log=log, seed=seed),
        reward=dataclasses.replace(template.reward, seed=2 * seed),
        judge=dataclasses.replace(template.judge, seed=2 * seed + 1),
        seed=seed,
    )


def table_cells(config: AlignmentTableConfig, seed: int) -> list[Cell]:
    """IPA first: its first round makes the candidates that all share."""
    root = pathlib.Path(config.run_dir) / f"seed_{seed}"
    template = seeded(config.template, seed, os.fspath(root / "base"))
    num_rounds = template.align.num_rounds

    def cell(
        name: str,
        folder: str,
        method: Method,
        rounds: int,
        steps: int,
        row: ContrastRow = ContrastRow(),
    ) -> Cell:
        loop = dataclasses.replace(template.align.loop, num_steps=steps)
        contrast = template.align.contrast
        weights = dataclasses.replace(contrast.weights, control=row.control)
        align = dataclasses.replace(
            template.align,
            method=MethodConfig(method=method),
            preference_weight=None,
            num_rounds=rounds,
            contrast=dataclasses.replace(contrast, weights=weights, scale=row.scale),
            loop=loop,
        )
        base, run = os.fspath(root / "base"), os.fspath(root / folder)
        first = base if steps == template.align.loop.num_steps else run
        return Cell(
            name=name,
            folders=Folders(base=base, shared=base, first=first, run=run),
            config=dataclasses.replace(template, align=align),
        )

    steps = template.align.loop.num_steps
    cells = [cell(IPA, "ipa", Method.DPO, num_rounds, steps)]
    cells += [
        cell(TITLES[method], method.value, method, 1, steps)
        for method in config.methods
        if method not in (Method.DPO, Method.CONTRASTIVE)
    ]
    cells += [
        cell(row.name, row.folder, Method.CONTRASTIVE, num_rounds, steps, row)
        for row in contrast_rows(config)
    ]
    # The control of IPA: as many steps and contexts, all of them with the candidates of M_0.
    return [*cells, cell(LONG, "dpo_long", Method.DPO, 1, num_rounds * steps)]


def contrast_rows(config: AlignmentTableConfig) -> list[ContrastRow]:
    """Contrastive cDPO of every scale, each followed by its controls; none where it has no row."""
    if Method.CONTRASTIVE not in config.methods:
        return []
    return [
        ContrastRow(control=control, scale=scale)
        for scale in config.weight_scales
        for control in (WeightControl.NONE, *config.weight_controls)
        if (control, scale) != (WeightControl.CONSTANT, WeightScale.MEAN_ONE)
    ]


def iterated_name(name: str) -> str:
    """Name of the policy after all rounds of a method that is not DPO."""
    return f"+{IPA}, {name}"


def training_steps(config: AlignmentTableConfig) -> dict[str, int]:
    """Training steps after the pre-training, by policy."""
    ipa, *cells = table_cells(config, config.seeds[0])
    last = ipa.config.align.num_rounds
    most = max(config.template.evaluate.best_of)
    steps = {"+DPO": ipa.steps_per_round}
    for name in (f"+{IPA}", f"+{IPA}, best of {most}"):
        steps[name] = last * ipa.steps_per_round
    for cell in cells:
        steps[f"+{cell.name}"] = cell.steps_per_round
        steps[iterated_name(cell.name)] = cell.config.align.num_rounds * cell.steps_per_round
    return steps | {BASELINE: 0, f"{BASELINE}, best of {most}": 0}
