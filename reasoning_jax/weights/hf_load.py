"""A Hugging Face folder as config and parameters.

Dimension key: V vocabulary.
"""

import json
import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.errors import DataError
from core_jax.sharding import Rules
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.hf_config import decoder_config
from reasoning_jax.model.shardings import RULES
from reasoning_jax.weights.hf_names import EMBEDDING, HEAD, model_leaves
from reasoning_jax.weights.safetensors_folder import SafetensorsFolder
from reasoning_jax.weights.shard_load import load_leaves
from reasoning_jax.weights.tensor_source import TensorSource

_LOG = logging.getLogger(__name__)

_BUFFERS = r"rotary_emb\.inv_freq$"
"""Tables that old files carry and that follow from the config."""
_ROWS_AT_ONCE = 4096


def read_json(folder: str | os.PathLike[str], name: str) -> dict[str, Any]:
    """Reads a JSON file of a model's folder.

    Args:
      folder: the model's folder.
      name: the file's name.

    Returns:
      Its content.

    Raises:
      DataError: there is no such file, or it is not a JSON object.
    """
    path = pathlib.Path(folder) / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be read ({error}); give a folder that holds '{name}'"
        ) from error
    except ValueError as error:
        raise DataError(f"'{path}' is not JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds a {type(content).__name__}, not a JSON object")
    return content


def load_config(folder: str | os.PathLike[str]) -> DecoderConfig:
    """Reads the architecture of a model's folder.

    Args:
      folder: holds `config.json`.

    Returns:
      The architecture, computing in float32.

    Raises:
      DataError: no such file.
      ConfigError: an architecture that is not computed here.
    """
    return decoder_config(read_json(folder, "config.json"))


def load_params(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    *,
    mesh: Mesh,
    rules: Rules = RULES,
    dtype: jax.typing.DTypeLike = "float32",
) -> Params:
    """Loads a model's parameters onto a mesh, a shard at a time.

    Args:
      folder: holds safetensors files.
      config: architecture, as from `load_config`.
      mesh: device mesh.
      rules: sharding of every parameter.
      dtype: of the parameters, float32 or bfloat16.

    Returns:
      Parameters for `reasoning_jax.model.decoder_lm`.

    Raises:
      DataError: no or damaged files; every missing, unexpected and misshapen tensor by name; an
        output matrix of a model with tied embeddings that differs from the table.
      ConfigError: a dtype or a sharding that cannot be.
    """
    return load_model(SafetensorsFolder(folder), config, mesh=mesh, rules=rules, dtype=dtype)


def load_model(
    source: TensorSource,
    config: DecoderConfig,
    *,
    mesh: Mesh,
    rules: Rules = RULES,
    dtype: jax.typing.DTypeLike = "float32",
) -> Params:
    """`load_params` from any source with Hugging Face's names."""
    passed_over = _BUFFERS
    if config.tied_embeddings and HEAD in source.specs:
        _check_tied(source)
        passed_over = f"{_BUFFERS}|^{HEAD}$"
    return load_leaves(
        source,
        model_leaves(config),
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        passed_over=passed_over,
    )


def _check_tied(source: TensorSource) -> None:
    """Raises DataError unless the output matrix is the embedding table, bit for bit."""
    specs = source.specs
    shape = specs[HEAD].shape
    is_same = EMBEDDING in specs and len(shape) == 2 and specs[EMBEDDING].shape == shape
    for start in range(0, shape[0], _ROWS_AT_ONCE) if is_same else ():
        bounds = (slice(start, min(start + _ROWS_AT_ONCE, shape[0])), slice(0, shape[1]))
        is_same &= np.array_equal(source.read(HEAD, bounds), source.read(EMBEDDING, bounds))
    if not is_same:
        raise DataError(
            f"'{source.origin}': the config says that embeddings are tied, but '{HEAD}' is not "
            f"'{EMBEDDING}'; set tie_word_embeddings to false if the former is meant"
        )
    _LOG.info("%s: '%s' repeats the tied embedding table", source.origin, HEAD)
