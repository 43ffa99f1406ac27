"""Our parameters as a Hugging Face folder that transformers and serving engines load.

Dimension key: none.
"""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import numpy as np
from safetensors.numpy import save_file

from core_jax.arrays import Array, Params
from core_jax.errors import ConfigError, DataError
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.hf_config import to_hf_config
from reasoning_jax.weights.hf_load import read_json
from reasoning_jax.weights.hf_names import Leaf, model_leaves

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What is copied from the folder that a model came from."""

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
DEFAULT_SHARD_BYTES = 5 * 10**9
"""Most bytes of tensors in one file, as the hub expects."""


def export_model(
    folder: str | os.PathLike[str],
    config: DecoderConfig,
    params: Params,
    *,
    source_folder: str | os.PathLike[str] | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes `config.json`, safetensors files and the tokenizer's files.

    Tensors keep the parameters' dtype, so that loading gives the same bits. One file's tensors
    are in memory at a time.

    Args:
      folder: made if absent; must not hold weights.
      config: architecture.
      params: parameters, wholly on this process's devices.
      source_folder: the folder that the model came from; its tokenizer and generation files are
        copied and its token ids taken over. None: neither.
      max_shard_bytes: most bytes of tensors in one file; a larger tensor has a file to itself.

    Raises:
      ConfigError: max_shard_bytes is not positive.
      DataError: the folder holds weights; the parameters are not the architecture's, or are on
        other processes' devices too.
    """
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes is {max_shard_bytes}; it must be positive")
    target = pathlib.Path(folder)
    refuse_weights(target)
    leaves = model_leaves(config)
    arrays = checked_arrays(params, leaves)
    target.mkdir(parents=True, exist_ok=True)
    written = to_hf_config(config)
    dtype = arrays[leaves[0].path].dtype.name
    written |= {"dtype": dtype, "torch_dtype": dtype}
    if source_folder is not None:
        source = pathlib.Path(source_folder)
        fields = read_json(source, "config.json")
        written |= {name: fields[name] for name in _TOKEN_IDS if name in fields}
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    write_json(target / "config.json", written)
    _write_weights(target, leaves, arrays, max_shard_bytes)


def refuse_weights(folder: pathlib.Path) -> None:
    """Raises DataError if the folder holds safetensors files, which new ones would mix with."""
    old = sorted(path.name for path in folder.glob("*.safetensors*"))
    if old:
        raise DataError(
            f"'{folder}' already holds weights ({', '.join(old)}); export to another folder, or "
            "remove them"
        )


def checked_arrays(params: Params, leaves: Sequence[Leaf]) -> dict[str, Array]:
    """The tree's arrays by path, each checked against its leaf.

    Args:
      params: tree of arrays.
      leaves: what it should hold.

    Raises:
      DataError: lists what is missing, unexpected or misshapen; or an array that lies on other
        processes' devices too.
    """
    arrays = dict(_paths(params))
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    rows = [f"missing: '{path}'" for path in shapes if path not in arrays]
    rows += [f"unexpected: '{path}'" for path in arrays if path not in shapes]
    rows += [
        f"misshapen: '{path}' is {arrays[path].shape}, expected {shape}"
        for path, shape in shapes.items()
        if path in arrays and tuple(arrays[path].shape) != shape
    ]
    if rows:
        raise DataError(
            "the parameters are not those of the configured architecture:\n  "
            + "\n  ".join(rows)
            + "\nAdapters are exported by themselves, or merged first."
        )
    for path, array in arrays.items():
        if not getattr(array, "is_fully_addressable", True):
            raise DataError(
                f"'{path}' lies on several processes' devices; restore the checkpoint in one "
                "process and export there"
            )
    return arrays


def file_tensor(leaf: Leaf, array: Array, layer: int) -> np.ndarray:
    """The tensor of one layer of a leaf (0 where there are no layers), fetched from the devices."""
    return leaf.to_file(np.asarray(array[layer] if leaf.num_layers else array))


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes a JSON file as the hub's are: indented by two, in order."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _paths(tree: Params, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """(path, array) of every leaf of nested dicts."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _write_weights(
    folder: pathlib.Path, leaves: Sequence[Leaf], arrays: dict[str, Array], max_shard_bytes: int
) -> None:
    """Writes the tensors into one file, or into several with an index."""
    files: list[list[tuple[Leaf, int]]] = [[]]
    filled = total_size = 0
    for leaf in leaves:
        size = math.prod(leaf.file_shape) * arrays[leaf.path].dtype.itemsize
        for layer in range(leaf.num_layers or 1):
            if files[-1] and filled + size > max_shard_bytes:
                files.append([])
                filled = 0
            files[-1].append((leaf, layer))
            filled += size
            total_size += size
    weight_map: dict[str, str] = {}
    for number, parts in enumerate(files, start=1):
        file_name = "model.safetensors"
        if len(files) > 1:
            file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {
            leaf.names[layer]: file_tensor(leaf, arrays[leaf.path], layer) for leaf, layer in parts
        }
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file_name)
    if len(files) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
