"""Adapters in PEFT's format: names, shapes, both ways, and every refusal."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.weights.peft import Adapter, export_adapter, load_adapter
from tests.reasoning.weight_cases import assert_same_bits, made_up_adapter, small_config

LORA = LoraConfig(rank=7, alpha=21.0, targets=("query", "value", "out", "down"), dropout=0.25)
PLAIN = {
    "peft_type": "LORA",
    "r": 7,
    "lora_alpha": 21,
    "lora_dropout": 0.25,
    "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
}


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def exported(folder, **changes):
    """A folder of ours with some fields of its config replaced."""
    export_adapter(folder, small_config(), made_up_adapter(small_config(), LORA))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_an_adapter_comes_back_bit_for_bit(tmp_path):
    config = small_config()
    adapter = made_up_adapter(config, LORA)
    export_adapter(tmp_path, config, adapter, base_model="someone/model")
    loaded = load_adapter(tmp_path, config, mesh=one_device())
    assert loaded.config == LORA
    assert_same_bits(loaded.params, adapter.params)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["base_model_name_or_path"] == "someone/model"
    assert PLAIN.items() <= fields.items()


def test_the_update_of_the_files_is_that_of_the_tree(tmp_path):
    """PEFT adds (alpha / r) B A, [out, in], to a weight; ours are [*in, *out] with heads apart."""
    config = small_config()
    adapter = made_up_adapter(config, LORA)
    export_adapter(tmp_path, config, adapter)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    groups = adapter.params["layers"]
    cases = {
        "self_attn.q_proj": (groups["attention"]["query"], (140, 13), "dr,rhx->hxd"),
        "self_attn.v_proj": (groups["attention"]["value"], (70, 13), "dr,rkx->kxd"),
        "self_attn.o_proj": (groups["attention"]["out"], (13, 140), "hxr,rd->dhx"),
        "mlp.down_proj": (groups["mlp"]["down"], (13, 23), "fr,rd->df"),
    }
    assert len(tensors) == 2 * 3 * len(cases)
    for module, (ours, shape, product) in cases.items():
        for layer in range(3):
            place = f"base_model.model.model.layers.{layer}.{module}"
            up, down = tensors[f"{place}.lora_B.weight"], tensors[f"{place}.lora_A.weight"]
            assert down.shape == (7, shape[1]) and up.shape == (shape[0], 7)
            expected = np.einsum(product, ours["lora_a"][layer], ours["lora_b"][layer])
            np.testing.assert_allclose(up @ down, expected.reshape(shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["model.layers.q_proj", "v_proj", "o_proj", "down_proj"]},
        {"rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "use_rslora": False},
        {"task_type": None, "revision": "main", "init_lora_weights": "gaussian"},
    ],
)
def test_fields_without_effect_are_read_over(tmp_path, fields):
    loaded = load_adapter(exported(tmp_path, **fields), small_config(), mesh=one_device())
    assert loaded.config == LORA


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"fan_in_fan_out": True},
        {"rank_pattern": {"q_proj": 3}},
        {"alpha_pattern": {"q_proj": 3}},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [1]},
        {"init_lora_weights": "pissa"},
        {"an_option_of_tomorrow": {"a": 1}},
    ],
)
def test_an_option_that_is_not_computed_is_an_error(tmp_path, fields):
    (name,) = fields
    with pytest.raises(ConfigError, match=rf"{name} is .*, which is not computed here; only plain"):
        load_adapter(exported(tmp_path, **fields), small_config(), mesh=one_device())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"r": 0}, "r is 0 and lora_alpha 21.0; expected a rank of at least 1"),
        ({"lora_alpha": None}, "lora_alpha None"),
    ],
)
def test_settings_that_cannot_be_are_errors(tmp_path, fields, message):
    with pytest.raises(ConfigError, match=message):
        load_adapter(exported(tmp_path, **fields), small_config(), mesh=one_device())


def test_listed_modules_without_tensors_are_an_error(tmp_path):
    folder = exported(tmp_path, target_modules=["q_proj", "v_proj", "o_proj"])
    with pytest.raises(DataError, match="tensors of down_proj, o_proj, q_proj, v_proj; the files"):
        load_adapter(folder, small_config(), mesh=one_device())


def test_tensors_that_do_not_fit_the_model_are_named(tmp_path):
    folder = exported(tmp_path, r=5)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    place = "base_model.model.model"
    del tensors[f"{place}.layers.1.mlp.down_proj.lora_B.weight"]
    tensors[f"{place}.lm_head.lora_A.weight"] = np.ones((7, 13), np.float32)
    save_file(tensors, path)
    with pytest.raises(DataError) as caught:
        load_adapter(folder, small_config(), mesh=one_device())
    for row in (
        f"missing: '{place}.layers.1.mlp.down_proj.lora_B.weight'",
        f"unexpected: '{place}.lm_head.lora_A.weight'",
        f"misshapen: '{place}.layers.0.mlp.down_proj.lora_A.weight' is (7, 23), expected (5, 23)",
    ):
        assert row in str(caught.value)


def test_a_pickled_adapter_is_never_loaded(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"only as pickles \(adapter_model.bin\)"):
        load_adapter(tmp_path, small_config(), mesh=one_device())


def test_a_tree_that_the_settings_do_not_describe_is_not_written(tmp_path):
    adapter = made_up_adapter(small_config(), LORA)
    other = Adapter(config=LoraConfig(rank=5, alpha=1.0), params=adapter.params)
    with pytest.raises(DataError, match="missing: 'layers/attention/key/lora_a'"):
        export_adapter(tmp_path, small_config(), other)
    exported(tmp_path)
    with pytest.raises(DataError, match="already holds weights"):
        export_adapter(tmp_path, small_config(), adapter)
