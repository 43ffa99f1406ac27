"""The configuration of an alignment run, and the folders that it works in.

Dimension key: none.
"""

import dataclasses
from typing import Annotated

import tyro

from core_jax.errors import ConfigError
from rec_jax.align.config import AlignConfig
from rec_jax.config import PipelineConfig
from rec_jax.reward.config import RewardConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyEvaluateConfig:
    """How generated sessions are judged."""

    num_users: int = 500
    """Test sessions (of different users) that are generated for, drawn at random; all if fewer."""
    num_beams: int = 32
    """Sessions generated per user: what mean and max are taken over."""
    item_beams: int = 32
    """Beams of the first-item list that Recall and NDCG are read from."""
    list_length: int = 10
    """k of Recall@k and NDCG@k."""
    best_of: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """N of best-of-N: the session that the reward model prefers among the N most probable ones."""
    legality_users: int = 64
    """Users whose sessions are also generated without the catalogue constraint; 0: none."""
    batch_size: int = 64
    """Users per compiled call."""
    bootstrap_samples: int = 2000
    """Resamples of the users per interval."""
    confidence: float = 0.95
    """Probability mass of an interval."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if min(self.num_users, self.list_length, self.batch_size, self.bootstrap_samples) < 1:
            raise ConfigError(
                f"evaluate.num_users {self.num_users}, list_length {self.list_length}, batch_size "
                f"{self.batch_size} and bootstrap_samples {self.bootstrap_samples} must be at "
                "least 1"
            )
        if not self.best_of or min(self.best_of) < 1 or max(self.best_of) > self.num_beams:
            raise ConfigError(
                f"evaluate.best_of is {self.best_of}; every N must lie in 1..{self.num_beams} "
                "(evaluate.num_beams)"
            )
        if self.item_beams < self.list_length:
            raise ConfigError(
                f"evaluate.item_beams is {self.item_beams}, fewer than the list_length of "
                f"{self.list_length}"
            )
        if self.legality_users < 0 or not 0 < self.confidence < 1:
            raise ConfigError(
                f"evaluate.legality_users is {self.legality_users} (0 or more) and confidence "
                f"{self.confidence} (between 0 and 1)"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignRunConfig:
    """A run from a log (or from a trained OneRec) to an aligned OneRec and its report."""

    run_dir: str
    """Folder of the run."""
    from_run: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Folder of a trained OneRec run to start from; its own settings then replace `pipeline`.
    Empty: trains one in this folder."""
    pipeline: PipelineConfig
    """Log, semantic IDs and pre-training (its run_dir is not used)."""
    reward: RewardConfig
    """The reward model that chooses the pairs."""
    judge: RewardConfig
    """The held-out judge: other seed, other users, other architecture."""
    align: AlignConfig
    """Rounds."""
    evaluate: PolicyEvaluateConfig = PolicyEvaluateConfig()
    """How sessions are judged."""
    seed: int = 0
    """Seed of contexts, groups, data order and bootstrap resamples."""

    def __post_init__(self) -> None:
        """Checks that the two judges differ in seed, users and architecture."""
        same = [
            name
            for name, ours, theirs in (
                ("seed", self.reward.seed, self.judge.seed),
                ("user_fold", self.reward.user_fold, self.judge.user_fold),
                (
                    "model.architecture",
                    self.reward.model.architecture,
                    self.judge.model.architecture,
                ),
            )
            if ours == theirs
        ]
        if same:
            raise ConfigError(
                f"reward and judge have the same {', '.join(same)}; a judge that shares what the "
                "reward model learnt cannot show reward hacking: set them apart"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folders:
    """Run folders that the stages of an alignment lie in. They may be one."""

    base: str
    """Has the stages prepare, tokenize and pretrain."""
    shared: str
    """Has the judges and the evaluation of the pre-trained model."""
    first: str
    """Has the candidates of round 1, which methods may share: the pre-trained model makes them."""
    run: str
    """Has the rounds."""


def folders_of(config: AlignRunConfig) -> Folders:
    """The folders of a single alignment run."""
    return Folders(
        base=config.from_run or config.run_dir,
        shared=config.run_dir,
        first=config.run_dir,
        run=config.run_dir,
    )
