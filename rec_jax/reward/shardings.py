"""Where the reward model's parameters live on the mesh.

Ordered (path pattern, spec) rules, first match wins. The model is small: only the tables, whose
rows are the catalogue's, are split, along D; they are gathered where they are used.
"""

from jax.sharding import PartitionSpec as P

RULES = (
    (r"embeddings/(codes|items)$", P(None, ("fsdp", "tensor"))),
    (r"body/", P()),
    (r"towers/", P()),
    (r"wide/kernel$", P()),
)
"""Sharding rules of `rec_jax.reward.model.init_params`."""
