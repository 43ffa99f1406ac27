"""The quality report of semantic IDs as tables, for the page of a run.

Dimension key: none.
"""

from collections.abc import Mapping
from typing import Any

from rec_jax.evaluation_tables import Table

ASSIGNMENTS = {"catalogue": "catalogue", "nearest": "nearest centroid"}
"""Names of the two assignments for people."""


def quality_tables(quality: Mapping[str, Any]) -> tuple[Table, Table]:
    """Tables of what `QualityReport.to_dict` returns, as read back from a run's folder.

    Args:
      quality: the report as nested dicts.

    Returns:
      Whole-ID measures with both assignments side by side, and measures per level with one
      assignment below the other.
    """
    parts = {title: quality[name] for name, title in ASSIGNMENTS.items()}
    whole = {
        "reconstruction loss": lambda part: f"{part['reconstruction_loss']:.4f}",
        "unexplained variance": lambda part: f"{part['unexplained_variance']:.3f}",
        "distinct IDs": lambda part: f"{part['num_ids']:,}",
        "items with an ID of their own": lambda part: f"{part['own_id_share']:.1%}",
        "items that share an ID": lambda part: f"{part['colliding_items']:,}",
        "most items on one ID": lambda part: f"{part['largest_collision']:,}",
    }
    per_level = {
        "codes used": lambda level: f"{level['utilisation']:.1%} of {level['size']:,}",
        "entropy (bits)": lambda level: f"{level['entropy_bits']:.3f}",
        "smallest bucket": lambda level: f"{level['smallest_bucket']:,}",
        "largest bucket": lambda level: f"{level['largest_bucket']:,}",
    }
    rows = [(name, *(cell(part) for part in parts.values())) for name, cell in whole.items()]
    if quality.get("predicted_share") is not None:  # absent in runs of before it was kept
        share = f"{quality['predicted_share']:.1%}"
        rows.append(("items whose collaborative factors are from text", share, share))
    num_levels = len(quality["catalogue"]["levels"])
    return (
        Table(
            title="Semantic IDs as a whole",
            note=f"{quality['num_items']:,} items, before collisions are resolved. Catalogue: "
            "the codes its items have. Nearest centroid: what new items get. Both agree on "
            f"{quality['agreement']:.1%} of the items.",
            header=("quantity", *parts),
            rows=tuple(rows),
        ),
        Table(
            title="Semantic IDs per level",
            note="A bucket is the set of items that carry a code of the level.",
            header=("level, codes", *per_level),
            rows=tuple(
                (
                    f"{level + 1}, {title}",
                    *(cell(part["levels"][level]) for cell in per_level.values()),
                )
                for level in range(num_levels)
                for title, part in parts.items()
            ),
        ),
    )
