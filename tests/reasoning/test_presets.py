"""Presets of the reasoning jobs: golden configs, and what they fit together."""

import json

import pytest

from core_jax.config import from_dict, to_dict
from reasoning_jax.presets import EVALUATE_PRESETS, SFT_PRESETS
from tests.golden_files import check_golden

EVERY = {f"evaluate_{name}": preset for name, preset in EVALUATE_PRESETS.items()}
EVERY |= {f"sft_{name}": preset for name, preset in SFT_PRESETS.items()}


@pytest.mark.parametrize("name", EVERY)
def test_the_config_of_a_preset_is_the_golden_one(name):
    text = json.dumps(to_dict(EVERY[name]()), indent=1) + "\n"
    check_golden(f"config_reasoning_{name}.json", text)


@pytest.mark.parametrize("name", EVERY)
def test_a_config_survives_its_file(name):
    config = EVERY[name]()
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
