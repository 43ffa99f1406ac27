"""Where the language model's parameters live on the mesh.

Ordered (path pattern, spec) rules, first match wins; an unmatched parameter is an error. Leaves of
`layers` have a leading layer dimension, which is never split. Heads and hidden units live on the
axis `tensor`, the other large dimension on `fsdp`. The embedding table is split over the width
alone, so that a look-up stays local; the output matrix over the vocabulary.
"""

from jax.sharding import PartitionSpec as P

from core_jax.mesh import BATCH_AXES

RULES = (
    (r"embed/table$", P(None, ("fsdp", "tensor"))),
    (r"head/kernel$", P("fsdp", "tensor")),
    (r"norm/scale$", P()),
    (r"attention/(query|key|value)/kernel$", P(None, "fsdp", "tensor")),
    (r"attention/(query|key|value)/bias$", P(None, "tensor")),
    (r"attention/out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"mlp/(gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"mlp/down/kernel$", P(None, "tensor", "fsdp")),
    # Adapters: the wide side as in the kernel beside them, the rank whole.
    (r"attention/(query|key|value)/lora_a$", P(None, "fsdp")),
    (r"attention/(query|key|value)/lora_b$", P(None, None, "tensor")),
    (r"attention/out/lora_a$", P(None, "tensor")),
    (r"attention/out/lora_b$", P(None, None, "fsdp")),
    (r"mlp/(gate|up)/lora_a$", P(None, "fsdp")),
    (r"mlp/(gate|up)/lora_b$", P(None, None, "tensor")),
    (r"mlp/down/lora_a$", P(None, "tensor")),
    (r"mlp/down/lora_b$", P(None, None, "fsdp")),
    (r"lora_streams$", P()),
)
"""Sharding rules of `reasoning_jax.model.decoder_lm.init_params` and of the adapters' trees."""

DECODING_RULES = (
    (r"(^|/)(embed)$", P(None, ("fsdp", "tensor"))),
    (r"(^|/)(head)$", P("tensor", "fsdp")),
    (r"norm$", P()),
    (r"/query_key_value$", P("tensor", None, None, "fsdp")),
    (r"/query_key_value_bias$", P("tensor")),
    (r"/out$", P("fsdp", "tensor")),
    (r"/gate_up$", P(None, "tensor", "fsdp")),
    (r"/down$", P("fsdp", "tensor")),
)
"""Sharding rules of `reasoning_jax.model.decoding.for_decoding`."""

CACHE_SPEC = P(BATCH_AXES, "tensor")
"""Of cached keys [B, K, X, S] and values [B, K, S, X]: rows over the batch axes, key heads over
`tensor`."""
