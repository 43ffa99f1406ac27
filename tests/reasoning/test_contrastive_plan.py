"""What a run would cost: sums by formula, for every preset, without a model."""

import dataclasses

import pytest

from reasoning_jax import contrastive
from reasoning_jax.align.methods import Row
from reasoning_jax.align.pair_rows import PairRowsConfig
from reasoning_jax.align_presets import tiny
from reasoning_jax.contrastive import run_pipeline, run_table
from reasoning_jax.contrastive_plan import CHIPS, plan_costs, plan_text
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.packing import Layout
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.model.presets import tiny as small_model
from reasoning_jax.pod_presets import PIPELINE_PRESETS
from reasoning_jax.weights import model_source
from reasoning_jax.weights.model_source import ModelConfig

MODEL = small_model()
SIZE = MODEL.num_params


def config(**changes):
    """Of the tiny preset's size, without a base of its own: 13 problems, 5 samples, 3 seeds."""
    base = tiny()
    small = dataclasses.replace(
        base,
        base=None,
        model=ModelConfig(source="fresh:tiny"),
        problems=ProblemsConfig(task="steps", split="train", limit=13),
        tests=tuple(ProblemsConfig(task="steps", split="test", limit=n) for n in (7, 11)),
        sampling=dataclasses.replace(base.sampling, num_samples=5, max_new_tokens=19),
        test_sampling=dataclasses.replace(base.test_sampling, max_new_tokens=17),
        train=dataclasses.replace(base.train, epochs=2.0),
        rows=(Row.BASELINE, Row.SFT, Row.DPO_SFT, Row.DPO, Row.TGDPO),
        seeds=(0, 1, 2),
        critical=None,
    )
    return dataclasses.replace(small, **changes)


def costs(given=None, model=MODEL):
    return {one.name: one for one in plan_costs(given or config(), model)}


def test_sampling_costs_two_flops_per_parameter_and_token():
    """13 problems x 5 samples x 19 tokens x 3 seeds; a test has 7 + 11 problems of 17 tokens."""
    found = costs()
    assert found["training solutions"].tokens == 13 * 5 * 19 * 3
    assert found["training solutions"].flops == 2 * SIZE * 13 * 5 * 19 * 3
    assert found["test dpo"].tokens == (7 + 11) * 17 * 3
    assert found["test baseline"].tokens == (7 + 11) * 17  # it has no seed
    assert "train baseline" not in found


@pytest.mark.parametrize(("rank", "products"), [(0, 3), (5, 2)])
def test_training_costs_a_product_less_with_adapters(rank, products):
    """13 pairs x 96 tokens, the row, x 2 epochs x 3 seeds."""
    base = config()
    found = costs(
        dataclasses.replace(
            base, train=dataclasses.replace(base.train, lora=LoraConfig(rank=rank, alpha=2.0))
        )
    )
    assert found["train dpo"].tokens == 13 * 96 * 2 * 3
    assert found["train dpo"].flops == 2 * products * SIZE * 13 * 96 * 2 * 3


def test_a_row_of_its_own_costs_its_padding_too():
    """A pair in a row of 1,500, packed and by itself."""
    base = config()
    rows = PairRowsConfig(row_length=1500)
    alone = dataclasses.replace(rows, layout=Layout.ONE_PER_ROW)
    packed, single = (
        costs(dataclasses.replace(base, train=dataclasses.replace(base.train, rows=one)))
        for one in (rows, alone)
    )
    assert single["train dpo"].tokens == 13 * 1500 * 2 * 3
    assert packed["train dpo"].tokens < single["train dpo"].tokens
    assert packed["scores and reference"] == single["scores and reference"]


def test_what_rows_rest_on_is_read_once_more():
    """Rows from the fine-tuned model have its log-probabilities, TGDPO those of a first run."""
    found = costs()
    assert found["reference of dpo_sft"].tokens == found["reference of tgdpo"].tokens == 13 * 96 * 3
    assert "reference of dpo" not in found and "reference of sft" not in found
    assert found["scores and reference"].tokens == 3 * 13 * 96 * 3


def test_a_set_has_as_many_problems_as_it_has():
    """A limit above the set's size changes nothing."""

    def sampled(limit):
        problems = ProblemsConfig(task="gsm8k", split="train", limit=limit)
        return costs(config(problems=problems))["training solutions"].tokens / (5 * 19 * 3)

    assert [sampled(limit) for limit in (0, 101, 10_007)] == [7473, 101, 7473]


def test_critical_tokens_cost_where_they_are_looked_for():
    critical = tiny().critical
    assert critical is not None
    name = "critical tokens by rollout"
    assert name not in costs()
    few = costs(config(critical=critical))[name].tokens
    many = costs(config(critical=dataclasses.replace(critical, num_solutions=21)))[name].tokens
    assert many == 7 * few > 0


def test_the_last_line_is_the_sum_and_hours_are_of_one_chip():
    lines = plan_text(config()).split("\n")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert cells[0][3:] == list(CHIPS)
    assert cells[-1][0] == "all"
    total = sum(one.tokens for one in costs().values())
    assert cells[-1][1] == f"{total / 1e6:,.1f}"
    assert len(cells) == 2 + len(costs()) + 1


def test_a_model_that_is_not_known_costs_tokens_alone():
    text = plan_text(config(model=ModelConfig(source="absent/model")))
    assert "The model's size is not known before it is loaded." in text
    assert all(one.flops == 0 for one in plan_costs(config(), None))


@pytest.mark.parametrize("preset", PIPELINE_PRESETS)
@pytest.mark.parametrize("run", [run_pipeline, run_table])
def test_a_plan_is_printed_and_nothing_else_done(preset, run, tmp_path, monkeypatch, capsys):
    """No stage is begun, no model loaded, no folder made."""

    def refuse(*arguments, **named):
        raise AssertionError("a plan does nothing")

    monkeypatch.setattr(model_source, "load_source", refuse)
    for name in ("make_mesh", "runs"):
        monkeypatch.setattr(contrastive, name, refuse)
    folder = tmp_path / "run"
    run(dataclasses.replace(PIPELINE_PRESETS[preset](), run_dir=str(folder), plan=True))
    text = capsys.readouterr().out
    assert "| training solutions |" in text and "| all |" in text and "TPU v5e" in text
    assert not folder.exists()
    assert "not known" not in text, "every preset's architecture is known"
