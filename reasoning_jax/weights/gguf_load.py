"""A GGUF file as config and parameters, dequantised by the `gguf` package as it is read.

GGUF stores the query and key rows of Llama models for rotary positions of neighbouring pairs;
they are put back into the rotate-half order. Qwen2 models are stored in that order already.

Dimension key: H heads, X head dimension.
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.errors import ConfigError, DataError, nearest_name
from core_jax.sharding import Rules
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.shardings import RULES
from reasoning_jax.weights.hf_load import load_model
from reasoning_jax.weights.hf_names import EMBEDDING, HEAD, MAPS
from reasoning_jax.weights.tensor_source import TensorSpec

ARCHITECTURES = {"llama": False, "qwen2": True}
"""`general.architecture` to whether queries, keys and values have biases."""

TYPES = ("F32", "F16", "Q4_0", "Q4_1", "Q8_0")
"""Tensor types that are read."""

_MAPS = {
    "attn_q": MAPS["query"],
    "attn_k": MAPS["key"],
    "attn_v": MAPS["value"],
    "attn_output": MAPS["out"],
    "ffn_gate": MAPS["gate"],
    "ffn_up": MAPS["up"],
    "ffn_down": MAPS["down"],
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_WHOLE = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
}
_LAYER_NAME = re.compile(r"^blk\.(\d+)\.(\w+)\.(weight|bias)$")
_REFUSED = ("expert_count", "attention.sliding_window", "attention.scale", "logit_scale")


class GgufFile:
    """A GGUF file: its config, and its tensors as a `TensorSource` under Hugging Face's names.

    Args:
      path: the file.

    Raises:
      DataError: it cannot be read, or a tensor has a type that is not read here.
      ConfigError: an architecture that is not computed here.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = pathlib.Path(path)
        try:
            reader = GGUFReader(self._path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise DataError(
                f"'{self._path}' is not a whole GGUF file ({error}); copy it again"
            ) from error
        self._tensors = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
        self._specs = {
            name: TensorSpec(
                shape=tuple(int(size) for size in tensor.shape[::-1]),
                dtype=tensor.tensor_type.name,
            )
            for name, tensor in self._tensors.items()
        }
        unread = [
            f"'{tensor.name}' ({tensor.tensor_type.name})"
            for tensor in reader.tensors
            if tensor.tensor_type.name not in TYPES
        ]
        if unread:
            raise DataError(
                f"'{self._path}' has tensors of types that are not read here: "
                f"{', '.join(unread)}; known are {', '.join(TYPES)}"
            )
        self._config = _config(self._path, reader, self._specs)
        self._is_permuted = not self._config.qkv_bias

    @property
    def origin(self) -> str:
        """The file."""
        return str(self._path)

    @property
    def config(self) -> DecoderConfig:
        """The architecture, computing in float32."""
        return self._config

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Shape and type of every tensor by Hugging Face's name."""
        return self._specs

    def read(self, name: str, bounds: tuple[slice, ...]) -> np.ndarray:
        """Reads rows of one tensor, dequantises them whole and cuts the columns out."""
        tensor = self._tensors[name]
        rows = bounds[0]
        if self._is_permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            num_heads = self._config.num_heads if is_query else self._config.num_kv_heads
            rows = half_order(num_heads, self._config.head_dim)[rows]
        stored = np.ascontiguousarray(tensor.data[rows])
        if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return stored[(slice(None), *bounds[1:])]
        return dequantize(stored, tensor.tensor_type)[(slice(None), *bounds[1:])]


def load_gguf(
    file: GgufFile,
    *,
    mesh: Mesh,
    rules: Rules = RULES,
    dtype: jax.typing.DTypeLike = "float32",
) -> Params:
    """Loads a GGUF file's parameters onto a mesh, tensor by tensor.

    Args:
      file: the opened file; its config is the parameters'.
      mesh: device mesh.
      rules: sharding of every parameter.
      dtype: of the parameters, float32 or bfloat16.

    Returns:
      Parameters for `reasoning_jax.model.decoder_lm`.

    Raises:
      DataError: every missing, unexpected and misshapen tensor by name.
      ConfigError: a dtype or a sharding that cannot be.
    """
    return load_model(file, file.config, mesh=mesh, rules=rules, dtype=dtype)


def half_order(num_heads: int, head_dim: int) -> np.ndarray:
    """The stored row of each row in the rotate-half order.

    A stored head has its pairs side by side: row 2 i is of the first half, row 2 i + 1 of the
    second.

    >>> half_order(1, 6).tolist()
    [0, 2, 4, 1, 3, 5]
    """
    stored_HX = np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2)
    return stored_HX.swapaxes(1, 2).reshape(-1)


def _hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor; an unknown one stays, and is then unexpected."""
    matched = _LAYER_NAME.match(name)
    if matched and matched[2] in _MAPS:
        return f"model.layers.{matched[1]}.{_MAPS[matched[2]]}.{matched[3]}"
    return _WHOLE.get(name, name)


def _config(
    path: pathlib.Path, reader: GGUFReader, specs: Mapping[str, TensorSpec]
) -> DecoderConfig:
    """Architecture from the file's metadata."""

    def value(name: str, default: Any = None) -> Any:
        field = reader.fields.get(name)
        return default if field is None else field.contents()

    architecture = value("general.architecture", "")
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"'{path}': general.architecture is '{architecture}'. "
            f"{nearest_name(str(architecture), ARCHITECTURES)}"
        )

    def required(name: str) -> Any:
        found = value(f"{architecture}.{name}")
        if found is None or isinstance(found, list):
            raise ConfigError(
                f"'{path}': {architecture}.{name} is {found}; the architecture needs one number"
            )
        return found

    _refuse(path, architecture, value, specs)
    num_heads = int(required("attention.head_count"))
    model_dim = int(required("embedding_length"))
    head_dim = int(value(f"{architecture}.attention.key_length", model_dim // num_heads))
    rotated = value(f"{architecture}.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise ConfigError(
            f"'{path}': {architecture}.rope.dimension_count is {rotated} for heads of {head_dim}; "
            "only full rotary positions are computed"
        )
    if EMBEDDING not in specs:
        raise DataError(f"'{path}' has no tensor 'token_embd.weight'; is it a language model?")
    return DecoderConfig(
        vocab_size=specs[EMBEDDING].shape[0],
        model_dim=model_dim,
        hidden_dim=int(required("feed_forward_length")),
        num_layers=int(required("block_count")),
        num_heads=num_heads,
        num_kv_heads=int(value(f"{architecture}.attention.head_count_kv", num_heads)),
        head_dim=head_dim,
        norm_eps=_shortest(required("attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(value(f"{architecture}.rope.freq_base", 10_000.0)),
        tied_embeddings=HEAD not in specs,
        qkv_bias=ARCHITECTURES[architecture],
        max_positions=int(required("context_length")),
    )


def _refuse(path: pathlib.Path, architecture: str, value: Any, specs: Mapping[str, Any]) -> None:
    """Raises ConfigError for metadata that asks for what is not computed here."""
    scaling = value(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in specs:
        kind = "a table 'rope_freqs.weight'" if scaling == "none" else f"'{scaling}'"
        raise ConfigError(
            f"'{path}': rotary positions are scaled by {kind}, which is not read from GGUF; load "
            "the model's safetensors folder instead"
        )
    for name in _REFUSED:
        found = value(f"{architecture}.{name}")
        if found not in (None, 0):
            raise ConfigError(
                f"'{path}': {architecture}.{name} is {found}, which is not computed here"
            )


def _shortest(number: float) -> float:
    """The shortest decimal that is this float32 (1e-05 is stored as 9.9999997e-06).

    >>> _shortest(9.999999747378752e-06)
    1e-05
    """
    return float(str(np.float32(number)))
