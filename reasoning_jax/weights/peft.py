"""LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Dimension key: R rank.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from safetensors.numpy import save_file

from core_jax.arrays import Params
from core_jax.errors import ConfigError, DataError
from core_jax.sharding import Rules
from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.shardings import RULES
from reasoning_jax.weights.hf_export import (
    checked_arrays,
    file_tensor,
    refuse_weights,
    write_json,
)
from reasoning_jax.weights.hf_load import read_json
from reasoning_jax.weights.hf_names import MAPS, adapter_leaves
from reasoning_jax.weights.safetensors_folder import SafetensorsFolder
from reasoning_jax.weights.shard_load import load_leaves

_STEM = "adapter_model"

_READ = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
"""Fields that are used."""

_WITHOUT_EFFECT = (
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "inference_mode",
    "peft_version",
    "megatron_core",
    "runtime_config",
    "exclude_modules",
    "qalora_group_size",
    "ensure_weight_tying",
)
"""Fields that say nothing about what a saved adapter computes."""

_PLAIN_INITIALISERS = (True, False, "gaussian", "orthogonal")
"""Those that leave the frozen model's weights alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """A loaded adapter."""

    config: LoraConfig
    """Rank, alpha, targets and dropout."""
    params: Params
    """Adapters for `reasoning_jax.model.lora.attach` and `merge`, with `config.scale`."""


def load_adapter(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    *,
    mesh: Mesh,
    rules: Rules = RULES,
    dtype: jax.typing.DTypeLike = "float32",
) -> Adapter:
    """Loads an adapter of a model.

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      config: the model's architecture.
      mesh: device mesh.
      rules: sharding of every adapter.
      dtype: of the adapters, float32 or bfloat16.

    Returns:
      The adapter.

    Raises:
      ConfigError: an option of PEFT that is not computed here.
      DataError: absent or damaged files; every missing, unexpected and misshapen tensor by name.
    """
    fields = read_json(folder, "adapter_config.json")
    source = SafetensorsFolder(folder, stem=_STEM)
    lora = _lora_config(pathlib.Path(folder) / "adapter_config.json", fields, source.specs)
    params = load_leaves(source, adapter_leaves(config, lora), mesh=mesh, rules=rules, dtype=dtype)
    return Adapter(config=lora, params=params)


def export_adapter(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    adapter: Adapter,
    *,
    base_model: str = "",
) -> None:
    """Writes an adapter that PEFT, and engines that take its adapters, load.

    Args:
      folder: made if absent; must not hold weights.
      config: the model's architecture.
      adapter: parameters and settings.
      base_model: name or folder of the model that it adapts, for PEFT to find it.

    Raises:
      DataError: the folder holds weights, or the tree is not the one that the settings describe.
    """
    target = pathlib.Path(folder)
    refuse_weights(target)
    leaves = adapter_leaves(config, adapter.config)
    arrays = checked_arrays(adapter.params, leaves)
    target.mkdir(parents=True, exist_ok=True)
    lora = adapter.config
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [MAPS[name].split(".")[1] for name in MAPS if name in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    write_json(target / "adapter_config.json", fields)
    tensors = {
        name: file_tensor(leaf, arrays[leaf.path], layer)
        for leaf in leaves
        for layer, name in enumerate(leaf.names)
    }
    save_file(tensors, target / f"{_STEM}.safetensors", metadata={"format": "pt"})


def _lora_config(
    path: pathlib.Path, fields: Mapping[str, Any], names: Mapping[str, Any]
) -> LoraConfig:
    """Settings from PEFT's fields; targets are those that the file has tensors of."""
    if fields.get("peft_type") != "LORA":
        raise ConfigError(
            f"'{path}': peft_type is '{fields.get('peft_type')}'; only LORA is computed"
        )
    for name, value in fields.items():
        if name in _READ or name in _WITHOUT_EFFECT:
            continue
        if name == "init_lora_weights" and value in _PLAIN_INITIALISERS:
            continue
        if name == "bias" and value == "none":
            continue
        if name == "megatron_config" and value is None:
            continue
        if value:
            raise ConfigError(
                f"'{path}': {name} is {value!r}, which is not computed here; only plain LoRA "
                "(alpha / r, one rank, no biases, no further modules) is. Merge the adapter with "
                "PEFT and load the merged model"
            )
    rank, alpha = fields.get("r"), fields.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise ConfigError(
            f"'{path}': r is {rank!r} and lora_alpha {alpha!r}; expected a rank of at least 1 and "
            "a number"
        )
    targets = tuple(
        target
        for target, module in MAPS.items()
        if any(f".{module}.lora_" in name for name in names)
    )
    _check_targets(path, fields.get("target_modules"), targets)
    return LoraConfig(
        rank=rank,
        alpha=float(alpha),
        targets=targets,
        dropout=float(fields.get("lora_dropout") or 0.0),
    )


def _check_targets(path: pathlib.Path, modules: Any, targets: tuple[str, ...]) -> None:
    """Raises DataError unless the listed modules are those that have tensors.

    A list of modules may name them in full; a string is a pattern over modules' full names (or
    "all-linear"), which is PEFT's business once tensors are saved.
    """
    found = {MAPS[target].split(".")[1] for target in targets}
    listed = {name.split(".")[-1] for name in modules} if isinstance(modules, list) else found
    differing = sorted(found ^ listed)
    if differing or not targets:
        raise DataError(
            f"'{path}': target_modules is {modules!r}, but there are tensors of "
            f"{', '.join(sorted(found)) or 'no known module'}; the files do not belong together"
        )
