"""Where item embeddings come from: text, collaborative factors, both, or the user's own.

Dimension key: none.
"""

import dataclasses
import enum

from core_jax.errors import ConfigError
from rec_jax.semantic_ids.collaborative import CollaborativeConfig
from rec_jax.semantic_ids.text_features import TextConfig


class EmbeddingKind(enum.Enum):
    """What item embeddings are made from."""

    TEXT = "text"
    COLLABORATIVE = "collaborative"
    CONCAT = "concat"
    FILE = "file"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Where item embeddings come from."""

    kind: EmbeddingKind
    """Text features, collaborative factors, both side by side, or a file."""
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    """Text features; they also place items without training events among the others."""
    collaborative: CollaborativeConfig = dataclasses.field(default_factory=CollaborativeConfig)
    """Collaborative factors."""
    text_weight: float = 0.5
    """`concat` only: share of the text in squared distances, between 0 and 1."""
    path: str | None = None
    """`file` only: a .npy, .npz or .parquet file with one embedding per item."""

    def __post_init__(self) -> None:
        """Checks the weight, and that a path is given exactly where it is read."""
        if not 0.0 <= self.text_weight <= 1.0:
            raise ConfigError(
                f"embeddings.text_weight is {self.text_weight}; it must lie in [0, 1]"
            )
        if (self.kind is EmbeddingKind.FILE) != (self.path is not None):
            raise ConfigError(
                f"embeddings.kind is '{self.kind.value}' and embeddings.path is {self.path!r}; "
                "kind 'file' needs a path, and only that kind reads one"
            )
