"""What a run would cost, before it is run: tokens, FLOPs, hours of a chip.

Dimension key: none.
"""

import dataclasses
import pathlib

from core_jax.profiling import PEAK_FLOPS
from reasoning_jax.align.methods import Row, Start, WeightSource, row_method
from reasoning_jax.align_config import PipelineConfig
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import Layout
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.presets import MODELS
from reasoning_jax.weights.hf_load import load_config
from reasoning_jax.weights.model_source import FRESH, PACKAGED

_SIZES = {
    ("gsm8k", "train"): 7473,
    ("gsm8k", "test"): 1319,
    ("math", "train"): 7500,
    ("math", "test"): 5000,
    ("math500", "test"): 500,
    ("svamp", "test"): 300,
}
"""Problems of the named sets."""

_PROCEDURAL = 1000

CHIPS = {
    name: PEAK_FLOPS[kind]
    for name, kind in {
        "TPU v5e": "TPU v5e",
        "TPU v5p": "TPU v5p",
        "TPU v6e": "TPU v6e",
        "H100": "NVIDIA H100",
    }.items()
}
"""Peak bfloat16 FLOP/s of one chip, dense, as their makers state."""

_TRAINING_SHARE = 0.4
"""Of the peak that training reaches: the range published for this size is 0.35 to 0.55."""
_SAMPLING_SHARE = 0.05
"""Of the peak that sampling reaches, which memory bounds; a guess."""
_TOKENS_OF_A_PAIR = 600
"""Both solutions with their prompts, where nothing has been sampled yet; a guess for GSM8K."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """One part of a run."""

    name: str
    """Which."""
    tokens: float
    """Tokens sampled, read or trained on."""
    flops: float
    """FLOPs, attention left out."""
    share: float
    """Of a chip's peak that it is assumed to reach."""


def plan_costs(config: PipelineConfig, model: DecoderConfig | None) -> list[Cost]:
    """The parts of a run in order.

    Upper bounds: every solution is taken to be as long as the longest allowed, and every problem to
    give a pair.

    Args:
      config: the run.
      model: its architecture; None where it is not known before it is loaded, FLOPs are then 0.
    """
    size = 0 if model is None else model.num_params
    num_problems, seeds = _count(config.problems), len(config.seeds)
    sampled = num_problems * config.sampling.num_samples * config.sampling.max_new_tokens * seeds
    costs = [_sampled("training solutions", float(sampled), size)]
    pair = min(_TOKENS_OF_A_PAIR, config.train.rows.row_length)
    pairs = num_problems * config.sets.pairs_per_problem * seeds
    # A row of its own costs its whole length, padding included.
    packing, rows = config.contrast.packing, config.train.rows
    example = packing.row_length if packing.layout is Layout.ONE_PER_ROW else pair / 2
    trained_pair = rows.row_length if rows.layout is Layout.ONE_PER_ROW else pair
    # One positive and a handful of negatives per problem (26,131 for GSM8K's 7,473 in the paper).
    learnt = 3.5 * num_problems * seeds * example * config.contrast.epochs
    costs.append(_trained("positive and negative model", learnt, size, config.contrast.lora))
    costs.append(_read("scores and reference", 3.0 * pairs * pair, size))
    for row in config.rows:
        method = row_method(row)
        tests = sum(map(_count, config.tests)) * (1 if row is Row.BASELINE else seeds)
        answers = tests * config.test_sampling.num_samples * config.test_sampling.max_new_tokens
        if method is not None:
            trained = pairs * trained_pair * config.train.epochs
            costs.append(_trained(f"train {row.value}", trained, size, config.train.lora))
            extra = (method.start is Start.SFT) + (method.source is WeightSource.TGDPO)
            if extra:
                costs.append(_read(f"reference of {row.value}", float(extra * pairs * pair), size))
        costs.append(_sampled(f"test {row.value}", float(answers), size))
    if config.critical is not None:
        own = config.critical
        length = pair / 4  # of one response
        prefixes = own.num_solutions * length
        rollouts = prefixes * own.num_rollouts * min(own.max_new_tokens, length) / 2
        costs.append(_sampled("critical tokens by rollout", rollouts, size))
    return costs


def plan_text(config: PipelineConfig) -> str:
    """The plan as a table, with hours of one chip of several kinds."""
    model = _architecture(config)
    costs = plan_costs(config, model)
    lines = [f"| part | million tokens | PFLOP | {' | '.join(CHIPS)} |"]
    lines.append("|---" * (3 + len(CHIPS)) + "|")
    lines += [_line(cost.name, [cost]) for cost in costs]
    lines.append(_line("all", costs))
    known = "" if model is not None else " The model's size is not known before it is loaded."
    return (
        "\n".join(lines) + "\n\nHours of one chip, at most: solutions as long as allowed, "
        f"{_TRAINING_SHARE:.0%} of the peak in training and {_SAMPLING_SHARE:.0%} in sampling "
        f"assumed.{known} Divide by the number of chips."
    )


def _line(name: str, costs: list[Cost]) -> str:
    """A row of the plan."""
    tokens, flops = sum(one.tokens for one in costs), sum(one.flops for one in costs)
    hours = [sum(one.flops / (one.share * peak) for one in costs) / 3600 for peak in CHIPS.values()]
    cells = [f"{tokens / 1e6:,.1f}", f"{flops / 1e15:,.1f}", *(f"{hour:,.2f}" for hour in hours)]
    return f"| {name} | {' | '.join(cells)} |"


def _sampled(name: str, tokens: float, size: int) -> Cost:
    """Sampling: two FLOPs per parameter and token."""
    return Cost(name=name, tokens=tokens, flops=2.0 * size * tokens, share=_SAMPLING_SHARE)


def _read(name: str, tokens: float, size: int) -> Cost:
    """A forward pass."""
    return Cost(name=name, tokens=tokens, flops=2.0 * size * tokens, share=_TRAINING_SHARE)


def _trained(name: str, tokens: float, size: int, lora: LoraConfig) -> Cost:
    """Forward, gradient of the activations, and that of the weights where they are trained."""
    products = 2 if lora.rank else 3
    flops = 2.0 * products * size * tokens
    return Cost(name=name, tokens=tokens, flops=flops, share=_TRAINING_SHARE)


def _count(problems: ProblemsConfig) -> int:
    """How many problems a config gives, without loading them."""
    known = _SIZES.get((problems.task, problems.split), problems.limit or _PROCEDURAL)
    return min(known, problems.limit or known)


def _architecture(config: PipelineConfig) -> DecoderConfig | None:
    """The architecture: of the folder, or of the name that the source ends in."""
    if config.base is not None:
        return config.base.model
    source = config.model.source.removeprefix(FRESH)
    folder = pathlib.Path("smollm2-135m" if source == PACKAGED else source)
    if folder.is_dir():
        return load_config(folder)
    return MODELS[folder.name]() if folder.name in MODELS else None
