"""Presets: parameter counts as their docstrings say, and configs that survive JSON."""

import dataclasses
import functools
import json

import jax
import pytest

from core_jax.config import fingerprint, from_dict, to_dict
from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.sharding import match_rules
from rec_jax.align.contrast_config import WeightScale
from rec_jax.align.run_config import AlignRunConfig
from rec_jax.align_presets import ALIGN_PRESETS, TABLE_PRESETS
from rec_jax.alignment_cells import AlignmentTableConfig, contrast_rows
from rec_jax.config import PipelineConfig
from rec_jax.model import onerec
from rec_jax.model.embeddings import num_parameters
from rec_jax.model.shardings import RULES
from rec_jax.presets import PRESETS, demo

# Level sizes that the catalogue decides; MovieLens-100k's disambiguation level has 28 codes here.
EXTRA_LEVEL = {"demo": (28,), "demo_tiny": (28,), "demo_gpu": (28,)}
COUNTS = {
    "demo": (443_200, 246_592),
    "demo_gpu": (30_534_400, 7_465_728),
    "onerec_0p1b": (96_879_072, 36_323_808),
    "onerec_1b": (939_918_432, 201_720_928),
}
"""Parameters in total, and those that one token uses: the others' experts left out."""


def _abstract(name: str):
    config = PRESETS[name]()
    sizes = config.semantic_ids.level_sizes + EXTRA_LEVEL.get(name, ())
    model = dataclasses.replace(config.model, level_sizes=sizes)
    init = functools.partial(onerec.init_params, model)
    return model, jax.eval_shape(lambda: init(key=jax.random.key(0)))


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_those_of_the_docstring(name):
    model, params = _abstract(name)
    experts = num_parameters(params["decoder"]["layers"]["moe"]["experts"])
    total = num_parameters(params)
    active = total - experts + experts * model.experts_per_token // model.num_experts
    assert (total, active) == COUNTS[name]
    words = PRESETS[name].__doc__.replace("\n    ", " ")
    assert f"{total / 1e6:.1f} million parameters, {active / 1e6:.1f} million active" in words


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    config = PRESETS[name]()
    again = from_dict(PipelineConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert fingerprint(again) == fingerprint(config)


@pytest.mark.parametrize("name", ["onerec_0p1b", "onerec_1b"])
def test_paper_presets_keep_the_papers_numbers(name):
    """Deng et al., 2025, Sections 3.1, 3.2 and 5.1.1."""
    config = PRESETS[name]()
    assert config.semantic_ids.level_sizes == (8192, 8192, 8192)
    assert (config.model.history_items, config.model.session_items) == (256, 5)
    assert (config.model.num_experts, config.model.experts_per_token) == (24, 2)
    assert config.optim.learning_rate == 2e-4
    assert config.generate.session_beams == 128


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(),
        MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
        MeshConfig(data=1, fsdp=1, expert=8, tensor=1),
        MeshConfig(data=2, fsdp=4),
    ],
)
@pytest.mark.parametrize("name", ["onerec_0p1b", "onerec_1b"])
def test_every_parameter_of_the_large_presets_has_a_place_on_the_mesh(name, mesh):
    _, params = _abstract(name)
    shardings = match_rules(RULES, params, make_mesh(mesh))
    experts = shardings["decoder"]["layers"]["moe"]["experts"]["up"]
    assert experts.spec[1] == "expert"


def test_parts_that_contradict_each_other_are_errors():
    config = demo()
    with pytest.raises(ConfigError, match=r"model.session_items is 3, but sessions.session_items"):
        dataclasses.replace(config, model=dataclasses.replace(config.model, session_items=3))
    with pytest.raises(ConfigError, match=r"model.history_items is 21, but sessions.history_items"):
        dataclasses.replace(config, model=dataclasses.replace(config.model, history_items=21))


@pytest.mark.parametrize("name", ALIGN_PRESETS)
def test_an_alignment_preset_survives_json(name):
    config = ALIGN_PRESETS[name]()
    assert from_dict(AlignRunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", TABLE_PRESETS)
def test_a_table_preset_survives_json(name):
    config = TABLE_PRESETS[name]()
    assert from_dict(AlignmentTableConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_the_table_has_the_papers_methods_and_its_successors():
    """Table 1 of the paper, ECPO and GBPO of the two reports after it, and contrastive cDPO.

    IPA is DPO in rounds, and DPO the control of uniform weights.
    """
    config = TABLE_PRESETS["demo"]()
    values = {method.value for method in config.methods}
    assert values == {
        *("dpo", "ipo", "conservative", "rdpo", "cpo", "simpo", "sdpo"),
        *("ecpo", "gbpo", "contrastive"),
    }
    controls = {control.value for control in config.weight_controls}
    assert controls == {"shuffled", "constant"}
    rows = ["", ", shuffled weights", ", constant weight"]
    both = dataclasses.replace(config, weight_scales=tuple(WeightScale))
    for table, names in (
        (config, rows),
        (both, [*rows, ", mean 1", ", mean 1, shuffled weights"]),
    ):
        found = [row.name.removeprefix("contrastive cDPO") for row in contrast_rows(table)]
        assert found == names
    assert config.template.align.num_rounds > 1 and len(config.seeds) >= 3
    assert config.template.evaluate.num_users == 500
    assert config.template.evaluate.num_beams == 32
