"""The one way to problems: by name, by file, or drawn.

Dimension key: none.
"""

import dataclasses

from core_jax.errors import ConfigError, nearest_name
from reasoning_jax.data.arithmetic import make_step_problems, steps_task
from reasoning_jax.data.builders.problem_sets import load_problem_set
from reasoning_jax.data.own_problems import ProblemColumns, read_own_problems
from reasoning_jax.data.problems import OWN, SPLITS, Problem
from reasoning_jax.data.procedural import make_problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemsConfig:
    """Which problems."""

    task: str = "products"
    """gsm8k, math, math500, svamp; steps: sums with written steps; products, sums, equations or
    any other data set of reasoning-gym; own: a file with a column mapping."""
    split: str = "test"
    """train or test; a file of one's own is taken whole."""
    path: str = ""
    """The file of the task own; for the named sets a file or folder to read instead of fetching."""
    limit: int = 0
    """Only the first so many problems; 0: all, or 1,000 of a procedural task."""
    seed: int = 0
    """Of the draw of procedural problems."""
    columns: ProblemColumns = dataclasses.field(default_factory=ProblemColumns)
    """Columns of the task own."""

    def __post_init__(self) -> None:
        """Checks what one object can know."""
        if self.limit < 0:
            raise ConfigError(f"problems.limit is {self.limit}; give a number, or 0 for all")
        if self.split not in ("train", "test"):
            raise ConfigError(
                f"problems.split is '{self.split}'. {nearest_name(self.split, ('train', 'test'))}"
            )
        if self.task == OWN and not self.path:
            raise ConfigError("problems.task is own; name its file by problems.path")


def load_problems(config: ProblemsConfig) -> list[Problem]:
    """Loads or draws problems.

    Raises:
      ConfigError: an unknown task or split.
      DataError: what the sources raise.
    """
    if config.task == OWN:
        problems = read_own_problems(config.path, config.columns)
    elif config.task in SPLITS:
        problems = load_problem_set(config.task, config.split, source=config.path or None)
    else:
        draw = make_problems if steps_task(config.task) is None else make_step_problems
        wanted = config.limit or 1000
        return draw(config.task, config.split, num_problems=wanted, seed=config.seed)
    return problems[: config.limit or None]
