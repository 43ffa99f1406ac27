"""What the simulated short-video world is made of.

Dimension key: none.
"""

import dataclasses
import math

from core_jax.errors import ConfigError

MAX_ACTIVITY = 2
"""No user makes more than this many times `requests_per_user` requests."""
MILLISECONDS_PER_DAY = 86_400_000
BREAK_MS = 60_000
"""Least time between the end of the longest possible session and the next request."""
MAX_TOPICS = 200
"""More would leave too few made-up words for the topics' vocabularies."""

_LEAST = {
    "seed": 0,
    "num_users": 1,
    "num_items": 1,
    "num_topics": 1,
    "num_creators": 1,
    "latent_dim": 2,
    "num_days": 1,
    "requests_per_user": 1,
    "slate_items": 1,
    "topics_per_user": 1,
    "staleness": 0,
}
_NOT_NEGATIVE = (
    "item_noise",
    "taste_noise",
    "drift",
    "activity_spread",
    "duration_spread",
    "affinity_weight",
    "quality_weight",
    "satiation",
    "duration_weight",
    "watch_noise",
    "leave_weight",
    "patience_spread",
    "like_spread",
    "follow_spread",
    "estimate_noise",
    "taste_sharpness",
    "appeal_sharpness",
)
_SHARES = (
    "appeal_quality_correlation",
    "creator_share",
    "popular_share",
    "taste_share",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatorConfig:
    """A simulated short-video world and the policy that wrote its log (docs/simulator.md)."""

    seed: int = 0
    """Decides everything that is drawn; equal configs give equal worlds and logs."""
    num_users: int = 1000
    """Users."""
    num_items: int = 1200
    """Videos."""
    num_topics: int = 20
    """Topics; a video has one."""
    num_creators: int = 150
    """Creators; a video has one."""
    latent_dim: int = 8
    """Dimensions of tastes and topics."""
    num_days: int = 14
    """Days that the log spans."""
    requests_per_user: int = 30
    """Mean number of requests of a user."""
    slate_items: int = 5
    """Videos delivered per request."""
    activity_spread: float = 0.3
    """Standard deviation of the logarithm of a user's number of requests."""
    item_noise: float = 0.5
    """Length of the noise added to a video's topic vector."""
    topics_per_user: int = 3
    """Most topics that a taste mixes."""
    taste_noise: float = 0.3
    """Length of the noise added to a user's mixture of topics."""
    drift: float = 0.08
    """Length of the step that a taste takes from one request to the next."""
    creator_share: float = 0.3
    """Share of the variance of quality that a creator's videos have in common."""
    appeal_quality_correlation: float = 0.3
    """Correlation of appeal (what gets a video shown) with quality (what gets it watched)."""
    median_seconds: float = 20.0
    """Median duration of a video."""
    duration_spread: float = 0.3
    """Standard deviation of the logarithm of the duration."""
    min_seconds: float = 5.0
    """Shortest duration."""
    max_seconds: float = 180.0
    """Longest duration."""
    watch_bias: float = -0.7
    """Logit of the watch ratio of an average video of median duration."""
    affinity_weight: float = 4.5
    """How much the watch ratio rises with the affinity of taste and video."""
    quality_weight: float = 0.7
    """How much it rises with quality."""
    satiation: float = 0.7
    """How much it falls with every earlier video of the same topic in the session."""
    duration_weight: float = 1.5
    """How much it falls with the logarithm of the duration."""
    watch_noise: float = 1.0
    """Standard deviation of the noise in the logit of the watch ratio."""
    leave_bias: float = 0.1
    """Logit of leaving after a video of which nothing was watched."""
    leave_weight: float = 4.0
    """How much that logit falls when the whole video is watched."""
    patience_spread: float = 0.7
    """Standard deviation over users of what patience takes off that logit."""
    like_bias: float = -3.0
    """Logit of a like on an average video."""
    like_affinity_weight: float = 2.0
    """How much it rises with affinity."""
    like_quality_weight: float = 0.6
    """How much it rises with quality."""
    like_spread: float = 0.7
    """Standard deviation over users of the logit of a like."""
    follow_bias: float = -5.0
    """Logit of following the creator of an average video."""
    follow_affinity_weight: float = 2.0
    """How much it rises with affinity."""
    follow_creator_weight: float = 0.6
    """How much it rises with the creator's part of quality."""
    follow_spread: float = 0.7
    """Standard deviation over users of the logit of a follow."""
    popular_share: float = 0.4
    """Logging policy: share of places drawn by appeal."""
    taste_share: float = 0.35
    """Logging policy: share of places drawn by an estimate of taste; the rest is uniform."""
    appeal_sharpness: float = 1.5
    """Logging policy: factor of appeal in the logits."""
    taste_sharpness: float = 5.0
    """Logging policy: factor of estimated affinity in the logits."""
    staleness: int = 3
    """Logging policy: how many requests old the taste is that it estimates."""
    estimate_noise: float = 0.5
    """Logging policy: length of the noise in its estimate of taste."""

    def __post_init__(self) -> None:
        """Checks ranges, and that videos and time suffice for the requests."""
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(
                    f"simulator: {name} is {getattr(self, name)}; set {least} or more"
                )
        for name in (field.name for field in dataclasses.fields(self)):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(
                    f"simulator: {name} is {getattr(self, name)}; set a finite number"
                )
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise ConfigError(f"simulator: {name} is {getattr(self, name)}; set 0 or more")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"simulator: {name} is {getattr(self, name)}; set a number from 0 to 1"
                )
        if self.popular_share + self.taste_share > 1:
            raise ConfigError(
                f"simulator: popular_share {self.popular_share} and taste_share "
                f"{self.taste_share} add up to more than 1; lower one of them"
            )
        if self.num_topics > MAX_TOPICS:
            raise ConfigError(
                f"simulator: num_topics is {self.num_topics}; set at most {MAX_TOPICS}"
            )
        if not 0 < self.min_seconds <= self.median_seconds <= self.max_seconds:
            raise ConfigError(
                f"simulator: min_seconds {self.min_seconds}, median_seconds "
                f"{self.median_seconds} and max_seconds {self.max_seconds} must be above 0 and "
                "not fall in this order"
            )
        self._check_room()

    @property
    def max_requests(self) -> int:
        """Most requests of a user."""
        return MAX_ACTIVITY * self.requests_per_user

    @property
    def request_gap_ms(self) -> int:
        """Least time between two requests of a user: the longest session and a break."""
        return round(self.slate_items * (self.max_seconds * 1000 + 1)) + BREAK_MS

    def _check_room(self) -> None:
        needed = self.max_requests * self.slate_items
        if self.num_items < needed:
            raise ConfigError(
                f"simulator: num_items is {self.num_items}, but a user may be shown {needed} "
                f"different videos ({self.max_requests} requests of {self.slate_items}); raise "
                "num_items or lower requests_per_user"
            )
        if self.max_requests * self.request_gap_ms > self.num_days * MILLISECONDS_PER_DAY:
            raise ConfigError(
                f"simulator: {self.max_requests} requests of a user at least "
                f"{self.request_gap_ms / 1000:g} s apart do not fit into num_days "
                f"{self.num_days}; raise num_days or lower requests_per_user"
            )
