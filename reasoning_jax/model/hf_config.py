"""Hugging Face `config.json` to our architecture, and back.

Read are Llama and Qwen2 configs of transformers 4 (`rope_theta`, `rope_scaling`) and 5
(`rope_parameters`). What we do not compute is refused by name: nothing that changes the numbers is
passed over in silence.

Dimension key: none.
"""

from collections.abc import Mapping
from typing import Any

from core_jax.errors import ConfigError, nearest_name
from reasoning_jax.model.config import DecoderConfig, Llama3Scaling

_MODEL_TYPES = {"llama": False, "qwen2": True}
"""`model_type` to whether queries, keys and values have biases."""
_ARCHITECTURES = {False: "LlamaForCausalLM", True: "Qwen2ForCausalLM"}
_PLAIN_ROPE = ("default", None)


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Reads a model's `config.json`.

    Args:
      config: the parsed file.

    Returns:
      The architecture; computes in float32 until the caller replaces `dtype`.

    Raises:
      ConfigError: a field is absent, or asks for what is not computed here: another model type,
        activation, rotary scaling, a sliding window, biases where Llama has none.
    """
    model_type = _required(config, "model_type")
    if model_type not in _MODEL_TYPES:
        raise ConfigError(
            f"config.json: model_type is '{model_type}'; supported: "
            f"{', '.join(_MODEL_TYPES)}. {nearest_name(str(model_type), _MODEL_TYPES)}"
        )
    qkv_bias = _MODEL_TYPES[model_type]
    _refuse_unknown_mathematics(config, qkv_bias)
    theta, scaling = _rope(config)
    num_heads = int(_required(config, "num_attention_heads"))
    model_dim = int(_required(config, "hidden_size"))
    return DecoderConfig(
        vocab_size=int(_required(config, "vocab_size")),
        model_dim=model_dim,
        hidden_dim=int(_required(config, "intermediate_size")),
        num_layers=int(_required(config, "num_hidden_layers")),
        num_heads=num_heads,
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        head_dim=int(config.get("head_dim") or model_dim // num_heads),
        norm_eps=float(_required(config, "rms_norm_eps")),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        max_positions=int(_required(config, "max_position_embeddings")),
    )


def to_hf_config(config: DecoderConfig) -> dict[str, Any]:
    """Writes `config.json` for transformers 4 and 5 and the engines that read either.

    Args:
      config: the architecture.

    Returns:
      A JSON-able dict; token ids and dtype are for the caller to add.
    """
    rope: dict[str, Any] = {"rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    written: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.qkv_bias]],
        "model_type": "qwen2" if config.qkv_bias else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
    }
    if config.qkv_bias:
        return written | {"use_sliding_window": False}
    return written | {"attention_bias": False, "mlp_bias": False}


def _required(config: Mapping[str, Any], name: str) -> Any:
    """A field that has no default."""
    if config.get(name) is None:
        raise ConfigError(
            f"config.json has no '{name}', which the architecture needs; is it the config of a "
            "Llama or Qwen2 language model?"
        )
    return config[name]


def _refuse_unknown_mathematics(config: Mapping[str, Any], qkv_bias: bool) -> None:
    """Raises ConfigError for a field that asks for what is not computed here."""
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"config.json: hidden_act is '{activation}'; only 'silu' is computed")
    full = config.get("layer_types")
    if config.get("use_sliding_window") or any(kind != "full_attention" for kind in full or ()):
        raise ConfigError(
            "config.json: asks for sliding-window attention (use_sliding_window, layer_types), "
            "which is not computed here"
        )
    if not qkv_bias and config.get("sliding_window"):
        raise ConfigError(
            f"config.json: sliding_window is {config['sliding_window']}; only full attention is "
            "computed"
        )
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise ConfigError(f"config.json: {name} is true; the maps here have no such biases")
    if float(config.get("pretraining_tp") or 1) != 1:
        raise ConfigError(
            f"config.json: pretraining_tp is {config['pretraining_tp']}; only 1 is computed"
        )
    for name in ("quantization_config", "partial_rotary_factor"):
        if config.get(name) not in (None, 1, 1.0):
            raise ConfigError(
                f"config.json: {name} is {config[name]}, which is not computed here; use the "
                "unquantised model with full rotary positions"
            )


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3Scaling | None]:
    """Base and scaling of the rotary positions, from whichever form the file has."""
    old, new = config.get("rope_scaling"), config.get("rope_parameters")
    fields: dict[str, Any] = {**(old or {}), **(new or {})}
    theta = fields.get("rope_theta", config.get("rope_theta"))
    kind = fields.get("rope_type", fields.get("type"))
    if theta is None:
        theta = 10_000.0  # the reference's default, which early Llama files rely on
    if kind in _PLAIN_ROPE:
        _check_known(fields, ("rope_type", "type", "rope_theta"))
        return float(theta), None
    if kind != "llama3":
        raise ConfigError(
            f"config.json: rope_type is '{kind}'; only plain rotary positions and 'llama3' are "
            "computed, another type would give other numbers"
        )
    known = {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_positions",
    }
    _check_known(fields, ("rope_type", "type", "rope_theta", *known))
    absent = [name for name in known if name not in fields]
    if absent:
        raise ConfigError(f"config.json: llama3 rope scaling lacks {', '.join(absent)}")
    values = {ours: fields[theirs] for theirs, ours in known.items()}
    return float(theta), Llama3Scaling(**values)


def _check_known(fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raises ConfigError for a rope field that would be ignored."""
    for name, value in fields.items():
        if name not in known and value not in (None, 1, 1.0):
            raise ConfigError(
                f"config.json: the rope field '{name}' ({value}) is not known here; "
                f"known: {', '.join(known)}"
            )
