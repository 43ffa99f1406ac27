"""Stage: the pairs of a contrastive run on a page, token by token.

The run's folder is that of one seed: `sampling` (where solutions were sampled), `contrast` (pairs
and their scores) and, where wrong solutions were rolled out, `critical`.

Dimension key: none.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from core_jax.config import from_dict
from core_jax.errors import ConfigError, DataError
from core_jax.run_folder import read_done, stage_folder
from reasoning_jax.align.contrast_model import score_name
from reasoning_jax.align.pair_file import Pair
from reasoning_jax.data.arithmetic import error_token, steps_task
from reasoning_jax.data.load import ProblemsConfig, load_problems
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.token_values import Key, TokenValues, matching, read_token_values
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.stages import critical, critical_results, rollout, score, sets
from reasoning_jax.text.pieces import text_pieces
from reasoning_jax.text.tokenizer import Tokenizer
from reasoning_jax.view.page import write_view
from reasoning_jax.view.view_data import ViewData, ViewProblem, ViewSolution
from reasoning_jax.weights.model_source import ModelConfig, load_text_side

SAMPLING, CONTRAST, ROLLED_OUT = "sampling", "contrast", "critical"
"""Folders of the run."""
SCORES = (score.NAME, score.SCORES)
"""Stage and file of the contrastive scores."""
CRITICAL = (critical.NAME, critical_results.CRITICAL)
"""Stage and file of what rollouts found."""

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Look at the solutions of a contrastive run token by token."""

    run: Annotated[str, tyro.conf.Positional] = "runs/cdpo_tiny/seed0"
    """Folder of one seed of the run, with sampling/, contrast/ and perhaps critical/."""
    run_dir: str = ""
    """Folder that gets index.html; by default `view` in the run's folder."""
    limit: int = 0
    """Only the first so many problems; 0: all."""
    beta: float = 1.0
    """Which of the run's contrastive scores shades the tokens."""
    top_share: float = 0.1
    """Contrast agrees with rollouts where the critical token is in this share of lowest scores."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if self.limit < 0:
            raise ConfigError(f"limit is {self.limit}; give a number of problems, or 0 for all")
        if not 0 < self.top_share <= 1:
            raise ConfigError(f"top_share is {self.top_share}; expected a share above 0, at most 1")


def run_view(config: ViewConfig) -> pathlib.Path:
    """Writes the page of a run.

    Args:
      config: which run, and what of it.

    Returns:
      Path of the page.

    Raises:
      DataError: the run has no pairs, or files that do not belong together.
    """
    page = pathlib.Path(config.run_dir or pathlib.Path(config.run) / "view") / "index.html"
    write_view(page, collect(config))
    _LOGGER.info("%s: %.1f MB", page, page.stat().st_size / 1e6)
    return page


def collect(config: ViewConfig) -> ViewData:
    """Reads a run's files.

    Args:
      config: which run, and what of it.

    Raises:
      DataError: the run has no pairs, or files that do not belong together.
    """
    root = pathlib.Path(config.run)
    sampled = read_done(root / SAMPLING, rollout.NAME)["config"]
    model = from_dict(ModelConfig, sampled["model"])
    asked = from_dict(ProblemsConfig, sampled["problems"])
    tokenizer, _ = load_text_side(model)
    problems = {problem.problem_id: problem for problem in load_problems(asked)}
    maker = SolutionMaker(
        tokenizer=tokenizer,
        scores=_read(root / CONTRAST, SCORES),
        rollouts=_read(root / ROLLED_OUT, CRITICAL),
        score=score_name(float(config.beta)),
        knows_errors=steps_task(asked.task) is not None,
    )
    shown = []
    grouped = pairs_by_problem(sets.finished_pairs(str(root / CONTRAST)))
    for problem_id, solutions in list(grouped.items())[: config.limit or None]:
        if problem_id not in problems:
            raise DataError(
                f"pairs of '{root / CONTRAST}' solve '{problem_id}', which is no problem of "
                f"'{root / SAMPLING}'; make the pairs of this run's own samples"
            )
        problem = problems[problem_id]
        shown.append(
            ViewProblem(
                problem_id=problem_id,
                question=problem.question,
                gold=problem.answer,
                solutions=tuple(maker.make(problem, one) for one in solutions),
            )
        )
    made = [one for problem in shown for one in problem.solutions]
    without = sum(one.log_scores is None for one in made)
    if without:
        _LOGGER.info("%d of %d solutions have no contrastive score", without, len(made))
    return ViewData(
        title="Right and wrong solutions, token by token",
        problems=tuple(shown),
        top_share=config.top_share,
        facts=_facts(config, model, asked),
    )


def pairs_by_problem(pairs: Sequence[Pair]) -> dict[str, list[Trajectory]]:
    """The different solutions of each problem's pairs, wrong ones first.

    Args:
      pairs: in the order of display.

    Returns:
      Solutions that have a token, by problem.
    """
    grouped: dict[str, dict[Key, Trajectory]] = {}
    for pair in pairs:
        grouped.setdefault(pair.problem_id, {})
    for side in ("rejected", "chosen"):
        for pair in pairs:
            one: Trajectory = getattr(pair, side)
            if one.response_start < len(one.token_ids):
                grouped[pair.problem_id].setdefault(one.key, one)
    return {name: list(solutions.values()) for name, solutions in grouped.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolutionMaker:
    """Makes solutions to show of trajectories and of the run's numbers."""

    tokenizer: Tokenizer
    """Of the trajectories."""
    scores: Mapping[Key, TokenValues] | None
    """Contrastive scores, for both sides of the pairs or one; None: none were computed."""
    rollouts: Mapping[Key, TokenValues] | None
    """Success after each token and critical tokens, for some of them; None: none were sampled."""
    score: str
    """The name of log s_t among the scores."""
    knows_errors: bool = False
    """Whether the task says where a solution's first error is."""

    def make(self, problem: Problem, trajectory: Trajectory) -> ViewSolution:
        """One solution.

        Args:
          problem: what it solves.
          trajectory: the solution; it has a token.

        Raises:
          DataError: another tokenizer's, or numbers of other tokens.
        """
        if trajectory.tokenizer != self.tokenizer.fingerprint:
            raise DataError(
                f"trajectory {trajectory.key} was written by another tokenizer "
                f"('{trajectory.tokenizer}', not '{self.tokenizer.fingerprint}'); restore the "
                "model's tokenizer files that it was sampled with"
            )
        response = trajectory.token_ids[trajectory.response_start :]
        pieces = text_pieces(self.tokenizer.decode, response)
        numbers: dict[str, Any] = {}
        if self.scores is not None and trajectory.key in self.scores:
            found = matching(self.scores, trajectory)
            numbers["log_scores"] = found.named(self.score)
            numbers |= {name: found.named(name) for name in ("positive", "negative")}
        if self.rollouts is not None and trajectory.key in self.rollouts:
            found = matching(self.rollouts, trajectory)
            numbers["success"] = found.named("success")
            numbers["critical"] = critical_results.critical_index(found)
        if self.knows_errors and not trajectory.is_correct:
            numbers["first_error"] = error_token(problem, pieces)
        return ViewSolution(
            sample=trajectory.sample,
            pieces=pieces,
            is_correct=trajectory.is_correct,
            answer=trajectory.answer,
            is_cut_off=trajectory.finish == "length",
            **numbers,
        )


def _read(run_dir: pathlib.Path, where: tuple[str, str]) -> dict[Key, TokenValues] | None:
    """Token values of a finished stage; None, which is told, where it was not run."""
    stage, name = where
    path = stage_folder(run_dir, stage) / name
    if not path.is_file():
        _LOGGER.info("there is no '%s': the page does without", path)
        return None
    read_done(run_dir, stage)  # says that the stage is not done yet, where it is not
    return read_token_values(path)


def _facts(config: ViewConfig, model: ModelConfig, asked: ProblemsConfig) -> dict[str, str]:
    """The run in a few facts."""
    return {
        "Task": f"{asked.task}, {asked.split}",
        "Model": pathlib.Path(model.source).name,
        "Beta": f"{config.beta:g}",
        "Run": config.run,
    }
