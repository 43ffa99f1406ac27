"""Which tensor of a Hugging Face model is which leaf of our parameters, and how they turn.

The files hold a linear map as [outputs, inputs], heads flattened; ours are [*inputs, *outputs]
with heads apart and all layers stacked. The rotary order of Hugging Face files is ours already.
Llama and Qwen2 share the names; biases, and whether there is an output matrix, are the config's.

Dimension key: L layers, D model, H query heads, K key heads, X head dimension, F hidden,
V vocabulary, R rank of an adapter.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from reasoning_jax.model.config import DecoderConfig, LoraConfig
from reasoning_jax.model.lora import GROUPS, kernel_dims

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
"""The output matrix and the embedding table; tied models have the former only by mistake."""

MAPS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Our name of a layer's linear map to theirs."""

_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
    """A leaf of our tree and the tensors (one per layer, or one) that it is made of."""

    path: str
    """Place in our tree, joined by '/'."""
    name: str
    """Name in the files, with '{layer}' for the layer's number where there are layers."""
    out_dims: tuple[int, ...]
    """Dimensions of the outputs, or of a vector."""
    in_dims: tuple[int, ...] = ()
    """Dimensions of the inputs; none for a vector."""
    num_layers: int = 0
    """Size of the stacked dimension in front; 0: not stacked."""
    is_table: bool = False
    """Whether ours is [*outputs, *inputs] as in the files (the embedding table)."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of one layer's part of our leaf."""
        if self.is_table:
            return self.out_dims + self.in_dims
        return self.in_dims + self.out_dims

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of our leaf."""
        return (self.num_layers, *self.dims) if self.num_layers else self.dims

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of one tensor in the files."""
        outputs = (math.prod(self.out_dims),)
        return (*outputs, math.prod(self.in_dims)) if self.in_dims else outputs

    @property
    def names(self) -> list[str]:
        """Every tensor's name, in the order of the layers."""
        return [self.name.format(layer=layer) for layer in range(self.num_layers or 1)]

    def file_bounds(self, bounds: Sequence[slice]) -> tuple[slice, ...]:
        """Which part of one tensor holds a part of one layer.

        Args:
          bounds: one slice with start and stop for each of `dims`.

        Returns:
          One slice per dimension of the tensor. Of dimensions that the files flatten, all but the
          first are read whole.
        """
        outputs, inputs = self._parted(bounds)
        parts = [_flat(outputs, self.out_dims)]
        return (*parts, _flat(inputs, self.in_dims)) if self.in_dims else (*parts,)

    def from_file(self, part: np.ndarray, bounds: Sequence[slice]) -> np.ndarray:
        """Turns the part that `file_bounds` names into ours, as a view where it can be one.

        >>> leaf = Leaf(path="up/kernel", name="up", out_dims=(2,), in_dims=(3,))
        >>> bounds = (slice(0, 3), slice(1, 2))
        >>> leaf.from_file(np.asarray([[3, 4, 5]]), bounds).tolist()
        [[3], [4], [5]]
        """
        outputs, inputs = self._parted(bounds)
        num_out = len(self.out_dims)
        apart = part.reshape(
            (outputs[0].stop - outputs[0].start, *self.out_dims[1:])
            + ((inputs[0].stop - inputs[0].start, *self.in_dims[1:]) if self.in_dims else ())
        )
        cut = apart[
            (slice(None), *outputs[1:]) + ((slice(None), *inputs[1:]) if self.in_dims else ())
        ]
        if self.is_table or not self.in_dims:
            return cut
        return cut.transpose(*range(num_out, cut.ndim), *range(num_out))

    def to_file(self, layer: np.ndarray) -> np.ndarray:
        """Turns one layer's part of our leaf into the tensor of the files.

        >>> leaf = Leaf(path="up/kernel", name="up", out_dims=(2,), in_dims=(3,))
        >>> leaf.to_file(np.asarray([[0, 3], [1, 4], [2, 5]])).tolist()
        [[0, 1, 2], [3, 4, 5]]
        """
        if self.is_table or not self.in_dims:
            return np.ascontiguousarray(layer.reshape(self.file_shape))
        return np.ascontiguousarray(layer.reshape(self.file_shape[::-1]).T)

    def _parted(self, bounds: Sequence[slice]) -> tuple[Sequence[slice], Sequence[slice]]:
        """Bounds of the outputs and of the inputs."""
        if self.is_table:
            return bounds[: len(self.out_dims)], bounds[len(self.out_dims) :]
        return bounds[len(self.in_dims) :], bounds[: len(self.in_dims)]


def model_leaves(config: DecoderConfig) -> list[Leaf]:
    """Every leaf of a model's parameters, in the order of Hugging Face files.

    Args:
      config: architecture.
    """
    vocabulary, model = (config.vocab_size,), (config.model_dim,)
    leaves = [
        Leaf(path="embed/table", name=EMBEDDING, out_dims=vocabulary, in_dims=model, is_table=True)
    ]
    for ours, theirs in _NORMS.items():
        leaves.append(
            Leaf(
                path=f"layers/{ours}/scale",
                name=f"model.layers.{{layer}}.{theirs}.weight",
                out_dims=model,
                num_layers=config.num_layers,
            )
        )
    for target, theirs in MAPS.items():
        in_dims, out_dims = kernel_dims(config, target)
        place = f"layers/{GROUPS[target]}/{target}"
        name = f"model.layers.{{layer}}.{theirs}"
        leaves.append(
            Leaf(
                path=f"{place}/kernel",
                name=f"{name}.weight",
                out_dims=out_dims,
                in_dims=in_dims,
                num_layers=config.num_layers,
            )
        )
        if config.qkv_bias and target in ("query", "key", "value"):
            leaves.append(
                Leaf(
                    path=f"{place}/bias",
                    name=f"{name}.bias",
                    out_dims=out_dims,
                    num_layers=config.num_layers,
                )
            )
    leaves.append(Leaf(path="final_norm/scale", name="model.norm.weight", out_dims=model))
    if not config.tied_embeddings:
        leaves.append(Leaf(path="head/kernel", name=HEAD, out_dims=vocabulary, in_dims=model))
    return leaves


def adapter_leaves(config: DecoderConfig, lora: LoraConfig) -> list[Leaf]:
    """Every leaf of a tree of adapters, by PEFT's names.

    Args:
      config: the model's architecture.
      lora: rank and targets.
    """
    leaves = []
    for target, theirs in MAPS.items():
        if target not in lora.targets:
            continue
        in_dims, out_dims = kernel_dims(config, target)
        rank = (lora.rank,)
        for letter, (inputs, outputs) in {"a": (in_dims, rank), "b": (rank, out_dims)}.items():
            leaves.append(
                Leaf(
                    path=f"layers/{GROUPS[target]}/{target}/lora_{letter}",
                    name=f"base_model.model.model.layers.{{layer}}.{theirs}"
                    f".lora_{letter.upper()}.weight",
                    out_dims=outputs,
                    in_dims=inputs,
                    num_layers=config.num_layers,
                )
            )
    return leaves


def _flat(bounds: Sequence[slice], dims: tuple[int, ...]) -> slice:
    """Bounds in the flattened dimensions; only those of the first dimension narrow them."""
    rest = math.prod(dims[1:])
    return slice(bounds[0].start * rest, bounds[0].stop * rest)
