"""The high-quality session filter (Deng et al., 2025, arXiv:2502.18965, section 3.1).

Dimension key: S sessions.
"""

import numpy as np

from rec_jax.data.session_config import QualityConfig
from rec_jax.data.session_rules import Sessions, select


def keep_complete(
    sessions: Sessions, config: QualityConfig, counts: dict[str, int], prefix: str = ""
) -> Sessions:
    """Keeps sessions with enough consumed items and with strong feedback, where switched on.

    Args:
      sessions: the sessions.
      config: the filter.
      counts: gets how many sessions pass each criterion that is switched on.
      prefix: put before the names of the counts.

    Returns:
      The sessions that meet both criteria.
    """
    if config.min_items:
        sessions = select(sessions, sessions.num_consumed >= config.min_items)
        _count(counts, f"{prefix}sessions_with_min_items", sessions)
    if config.strong_feedback:
        sessions = select(sessions, sessions.is_strong)
        _count(counts, f"{prefix}sessions_with_strong_feedback", sessions)
    return sessions


def keep_watched(
    splits: dict[str, Sessions], config: QualityConfig, counts: dict[str, int]
) -> dict[str, Sessions]:
    """Keeps sessions whose watch time reaches a quantile of the training sessions'.

    The threshold is the training sessions' alone, so that it knows nothing of what is held out.

    Args:
      splits: the sessions of "train", "valid" and "test".
      config: the filter.
      counts: gets how many sessions of each split pass, and the threshold in milliseconds.

    Returns:
      The splits with the sessions that pass; all of them where the criterion is switched off.
    """
    if not config.watch_time_quantile or not len(splits["train"].user):
        return splits
    threshold = float(np.quantile(splits["train"].watch_ms, config.watch_time_quantile))
    counts["watch_time_threshold_ms"] = round(threshold)
    kept = {name: select(part, part.watch_ms >= threshold) for name, part in splits.items()}
    for name, part in kept.items():
        _count(counts, f"{name}_sessions_with_watch_time", part)
    return kept


def _count(counts: dict[str, int], name: str, sessions: Sessions) -> None:
    counts[name] = counts.get(name, 0) + len(sessions.user)
