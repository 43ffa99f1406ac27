"""FLOPs that a training step of OneRec needs, to tell how well the hardware is used.

Dimension key: none.
"""

from rec_jax.model.config import OneRecConfig


def forward_flops(config: OneRecConfig, batch_size: int) -> float:
    """Multiply-adds (two FLOPs each) of all matrix products of one forward pass.

    Counted are projections, attention scores and mixtures, feed-forward networks, the experts
    that a token visits, the router and the output layer; not norms, activations and lookups.

    Args:
      config: architecture, with `level_sizes` known.
      batch_size: sessions.

    Returns:
      FLOPs.
    """
    width, heads = config.d_model, config.num_heads * config.head_dim
    matrices = 3 if config.activation.is_gated else 2
    sources = batch_size * config.history_items * (config.num_levels + 1)
    targets = batch_size * config.decoder_tokens
    project = 2.0 * width * heads
    attend = 4.0 * heads
    source_length, target_length = sources / batch_size, targets / batch_size
    encoder = sources * (
        4 * project + attend * source_length + matrices * 2.0 * width * config.d_ff
    )
    experts = config.experts_per_token * matrices * 2.0 * width * config.d_expert
    router = 2.0 * width * config.num_experts
    decoder = (
        targets * (6 * project + attend * (source_length + target_length) + experts + router)
        + sources * 2 * project
    )
    outputs = batch_size * config.session_items * 2.0 * width * sum(config.level_sizes)
    return config.num_encoder_layers * encoder + config.num_decoder_layers * decoder + outputs


def train_flops(config: OneRecConfig, batch_size: int) -> float:
    """FLOPs of a training step: the backward pass needs twice the forward pass.

    Recomputation (`remat`) is not counted: it is no work that the model needs.
    """
    return 3.0 * forward_flops(config, batch_size)
