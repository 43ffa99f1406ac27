"""Where OneRec's parameters live on the mesh.

Ordered (path pattern, spec) rules, first match wins; an unmatched parameter is an error. Leaves of
`layers` have a leading layer dimension, which is never split. Experts live on the axis `expert`,
heads and hidden units on `tensor`, and the remaining large dimension on `fsdp`. Tables of codes are
split along D, over both: the number of codes is the catalogue's and may be odd. Tables and layers
are gathered along `fsdp` where they are used, see `rec_jax.model.modules`.
"""

from jax.sharding import PartitionSpec as P

RULES = (
    (r"embeddings/(tokens|outputs)$", P(None, ("fsdp", "tensor"))),
    (r"embeddings/(roles|history_positions|session_positions)$", P()),
    (r"norm/scale$", P()),
    (r"attention/(query|key|value)/kernel$", P(None, "fsdp", "tensor")),
    (r"attention/out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"feed_forward/(up|gate)/kernel$", P(None, "fsdp", "tensor")),
    (r"feed_forward/down/kernel$", P(None, "tensor", "fsdp")),
    (r"moe/router/(kernel|bias)$", P()),
    (r"moe/experts/(up|gate)$", P(None, "expert", "fsdp", "tensor")),
    (r"moe/experts/down$", P(None, "expert", "tensor", "fsdp")),
)
"""Sharding rules of `rec_jax.model.onerec.init_params`."""
