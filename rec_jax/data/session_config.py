"""How a log becomes sessions, training examples and a split.

Dimension key: none.
"""

import dataclasses
import datetime
import enum

from core_jax.errors import ConfigError


class EventRule(enum.Enum):
    """Which events count."""

    ALL = "all"
    THRESHOLD = "threshold"
    ANY_OF = "any_of"
    WATCH_RATIO = "watch_ratio"


class SessionRule(enum.Enum):
    """What makes events one session."""

    REQUEST_ID = "request_id"
    SAME_TIMESTAMP = "same_timestamp"
    TIME_GAP = "time_gap"
    FIXED_BLOCKS = "fixed_blocks"


class SplitRule(enum.Enum):
    """What is held out for validation and test."""

    LEAVE_LAST_BLOCK_OUT = "leave_last_block_out"
    TEMPORAL = "temporal"


class TrainWindows(enum.Enum):
    """Which blocks of a user's training positives become targets, under fixed blocks."""

    DISJOINT = "disjoint"
    SLIDING = "sliding"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventRuleConfig:
    """Says which events count, for example as positive. An absent value never counts."""

    rule: EventRule = EventRule.ALL
    """all; threshold: `column` is at least `threshold`; any_of: one of `columns` is true or above
    0; watch_ratio: watch time is at least `watch_ratio` of the duration."""
    column: str = ""
    """Feedback column of the rule `threshold`."""
    threshold: float = 0.0
    """Least value of `column`."""
    columns: tuple[str, ...] = ()
    """Feedback columns of the rule `any_of`."""
    watch_ratio: float = 0.0
    """Least share of the item's duration that was watched, for the rule `watch_ratio`."""

    def __post_init__(self):
        if self.rule is EventRule.THRESHOLD and not self.column:
            raise ConfigError(
                "rule 'threshold' needs a feedback column; set column, as in 'rating'"
            )
        if self.rule is EventRule.ANY_OF and not self.columns:
            raise ConfigError("rule 'any_of' needs feedback columns; set columns, as in 'like'")
        if self.rule is EventRule.WATCH_RATIO and not self.watch_ratio > 0:
            raise ConfigError(
                f"rule 'watch_ratio' has watch_ratio {self.watch_ratio}; set it above 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """The high-quality session filter (Deng et al., 2025, arXiv:2502.18965, section 3.1).

    The paper lists the criteria without saying how they combine; here a session must meet every
    one that is switched on.
    """

    min_items: int = 0
    """Least number of distinct items consumed in a session (5 in the paper); 0 switches off."""
    watch_time_quantile: float = 0.0
    """A session's total watch time must reach this quantile of the training sessions' (the paper
    does not say its threshold); 0 switches off."""
    strong_feedback: tuple[str, ...] = ()
    """Feedback columns of which one must be true or above 0 in at least one event of the session
    (like, follow, ...); none switches off."""

    def __post_init__(self):
        if self.min_items < 0:
            raise ConfigError(f"quality.min_items is {self.min_items}; set 0 (off) or more")
        if not 0 <= self.watch_time_quantile < 1:
            raise ConfigError(
                f"quality.watch_time_quantile is {self.watch_time_quantile}; set 0 (off) or a "
                "number below 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """What is held out."""

    rule: SplitRule = SplitRule.LEAVE_LAST_BLOCK_OUT
    """leave_last_block_out: each user's last session is test, the one before is validation;
    temporal: two moments, the same for all users, part the log."""
    valid_days: int = 1
    """Temporal: calendar days (UTC) of validation, directly before the test days."""
    test_days: int = 1
    """Temporal: the last calendar days (UTC) of the log, held out for test."""
    valid_from: str = ""
    """Temporal: ISO date or time (UTC) at which validation starts; replaces `valid_days`."""
    test_from: str = ""
    """Temporal: ISO date or time (UTC) at which test starts; replaces `test_days`."""

    def __post_init__(self):
        if min(self.valid_days, self.test_days) < 1:
            raise ConfigError(
                f"split.valid_days {self.valid_days} and split.test_days {self.test_days} must be "
                "at least 1"
            )
        if bool(self.valid_from) != bool(self.test_from):
            raise ConfigError(
                f"split.valid_from '{self.valid_from}' and split.test_from '{self.test_from}' go "
                "together; set both or none"
            )
        if self.valid_from and parse_time(self.valid_from) >= parse_time(self.test_from):
            raise ConfigError(
                f"split.valid_from '{self.valid_from}' must lie before split.test_from "
                f"'{self.test_from}'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """How a log becomes sessions and examples."""

    rule: SessionRule = SessionRule.FIXED_BLOCKS
    """request_id: equal session_id; same_timestamp: equal user and time; time_gap: no pause longer
    than `gap_minutes`; fixed_blocks: `session_items` consecutive positives of a user."""
    gap_minutes: float = 30.0
    """Time gap: a pause longer than this many minutes ends a session."""
    session_items: int = 5
    """Target items m of a session (5 in the paper); longer training sessions are cut into pieces
    of m that share the history before the session."""
    history_items: int = 20
    """History items n that the model reads: the last n positives strictly before the session."""
    positive: EventRuleConfig = EventRuleConfig()
    """Which events are positive: only these are history and target items."""
    consumed: EventRuleConfig = EventRuleConfig()
    """Which events count as consumed for quality.min_items."""
    quality: QualityConfig = QualityConfig()
    """The high-quality session filter."""
    split: SplitConfig = SplitConfig()
    """What is held out."""
    train_windows: TrainWindows = TrainWindows.DISJOINT
    """Fixed blocks: disjoint training targets, or windows that slide by `train_stride`."""
    train_stride: int = 1
    """Sliding windows: positives from one training target to the next."""
    min_history: int = 1
    """Least number of history items of an example, in every split."""
    min_positives: int = 0
    """Users with fewer positives are left out altogether; 0 keeps all."""

    def __post_init__(self):
        least = {
            "session_items": 1,
            "history_items": 1,
            "train_stride": 1,
            "min_history": 0,
            "min_positives": 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; set {bound} or more")
        if not self.gap_minutes > 0:
            raise ConfigError(f"gap_minutes is {self.gap_minutes}; set it above 0")
        if self.train_windows is TrainWindows.SLIDING and self.rule is not SessionRule.FIXED_BLOCKS:
            raise ConfigError(
                f"train_windows 'sliding' does not go with rule '{self.rule.value}', whose "
                "sessions are given by the log; set train_windows to 'disjoint' or rule to "
                "'fixed_blocks'"
            )


def parse_time(text: str) -> int:
    """Returns milliseconds since 1970-01-01 UTC of an ISO date or time (UTC where it says none).

    Raises:
      ConfigError: if it is not one.

    >>> parse_time("1970-01-02")
    86400000
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"'{text}' is no ISO date or time; write it as in '2022-04-20' or '2022-04-20T12:00:00'"
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return round(moment.timestamp() * 1000)
