"""FLOPs of a decoder's passes, attention included.

Dimension key: none.
"""

from reasoning_jax.model.config import DecoderConfig


def token_flops(config: DecoderConfig, length: int) -> tuple[float, float]:
    """FLOPs of a token's forward pass in whole rows of `length` tokens.

    A multiply-add is two FLOPs. A token sees half of its row on average, as causal attention does.

    Returns:
      Of the products with weights, and of those of attention.
    """
    table = 0 if config.tied_embeddings else config.vocab_size * config.model_dim
    products = 2.0 * (config.num_params - table)
    width = config.num_heads * config.head_dim
    return products, config.num_layers * 4.0 * width * length / 2


def product_flops(config: DecoderConfig, num_tokens: int, num_predictions: int) -> float:
    """FLOPs of a forward pass's products with weights, whose logits are made of some tokens alone.

    Args:
      config: architecture.
      num_tokens: of all sequences.
      num_predictions: tokens whose logits are made.
    """
    table = config.vocab_size * config.model_dim
    layers = config.num_params - table * (1 if config.tied_embeddings else 2)
    return 2.0 * (layers * num_tokens + table * num_predictions)


def train_flops(
    config: DecoderConfig, num_tokens: int, length: int, *, adapters: bool, repeats: bool
) -> tuple[float, float]:
    """FLOPs of a training step.

    Args:
      config: architecture.
      num_tokens: of the batch.
      length: of a row.
      adapters: whether the weights are not trained, so that they need no gradient; the adapters'
        own products, under a hundredth, are left out.
      repeats: whether the backward pass repeats the forward pass.

    Returns:
      Those that the result needs, and those that are done.
    """
    products, attention = token_flops(config, length)
    needed = (2 if adapters else 3) * products + 3 * attention
    done = needed + (products + attention if repeats else 0.0)
    return num_tokens * needed, num_tokens * done
