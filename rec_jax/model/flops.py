"""FLOPs that training and generation of OneRec need, to tell how well the hardware is used.

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
    return batch_size * (_history_flops(config) + session_flops(config))


def generation_flops(config: OneRecConfig, num_beams: int) -> float:
    """FLOPs of one user's sessions by cached beam search, counted as in `forward_flops`.

    The history is encoded once, and beams share its keys and values; every beam reads every token
    of its session once.

    Args:
      config: architecture, with `level_sizes` known.
      num_beams: K.

    Returns:
      FLOPs.
    """
    return _history_flops(config) + num_beams * session_flops(config)


def train_flops(config: OneRecConfig, batch_size: int) -> float:
    """FLOPs of a training step: the backward pass needs twice the forward pass.

    Recomputation (`remat`) is not counted: it is no work that the model needs.
    """
    return 3.0 * forward_flops(config, batch_size)


def session_flops(config: OneRecConfig) -> float:
    """FLOPs of the decoder and the output layer for one session, whose history is encoded.

    Args:
      config: architecture, with `level_sizes` known.
    """
    length = config.decoder_tokens
    visible = config.history_items * (config.num_levels + 1) + length
    experts = config.experts_per_token * _matrices(config) * 2.0 * config.d_model * config.d_expert
    router = 2.0 * config.d_model * config.num_experts
    layer = 6 * _project(config) + _attend(config) * visible + experts + router
    outputs = config.session_items * 2.0 * config.d_model * sum(config.level_sizes)
    return length * config.num_decoder_layers * layer + outputs


def _history_flops(config: OneRecConfig) -> float:
    """The encoder, and the keys and values of cross-attention, of one history."""
    length = config.history_items * (config.num_levels + 1)
    layer = 4 * _project(config) + _attend(config) * length
    layer += _matrices(config) * 2.0 * config.d_model * config.d_ff
    shared = config.num_decoder_layers * 2 * _project(config)
    return length * (config.num_encoder_layers * layer + shared)


def _project(config: OneRecConfig) -> float:
    """One token's projection to all heads, or back."""
    return 2.0 * config.d_model * config.num_heads * config.head_dim


def _attend(config: OneRecConfig) -> float:
    """One token's scores and mixture, per visible token."""
    return 4.0 * config.num_heads * config.head_dim


def _matrices(config: OneRecConfig) -> int:
    """Matrices of a feed-forward network."""
    return 3 if config.activation.is_gated else 2
