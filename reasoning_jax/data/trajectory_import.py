"""Trajectories of another engine (vLLM, SGLang, ...): a JSONL file with a column mapping.

Dimension key: none.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.trajectories import FINISHES, Trajectory
from reasoning_jax.text.joint import encode_pair
from reasoning_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which columns hold what. An empty name: there is no such column."""

    problem_id: str = "problem_id"
    """Column of the problem's id."""
    prompt: str = "prompt"
    """Column of the prompt's text."""
    response: str = "response"
    """Column of the response's text."""
    sample: str = ""
    """Column of the sample's number; without it, samples are counted in the file's order."""
    token_ids: str = ""
    """Column of prompt and response as token ids; without it they are tokenised here."""
    response_start: str = ""
    """Column of the response's first index among them; needed where token_ids is."""
    finish: str = "finish_reason"
    """Column that says "stop" or "length"; rows without it count as "stop"."""
    task: str = "imported"
    """The task's name, for all rows."""
    model: str = "imported"
    """What is known of the model, for all rows."""

    def __post_init__(self) -> None:
        """Checks that token ids come with their boundary."""
        for name in ("problem_id", "prompt", "response"):
            if not getattr(self, name):
                raise ConfigError(f"import.{name} is empty; name the column")
        if bool(self.token_ids) != bool(self.response_start):
            raise ConfigError(
                "import.token_ids and import.response_start belong together; name both columns "
                "or neither"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """What a file gave."""

    trajectories: list[Trajectory]
    """Good rows, not graded."""
    rejected: Mapping[str, int]
    """Reason to number of bad rows."""
    examples: Mapping[str, str]
    """Reason to its first row, as "line N: what"."""

    def summary(self) -> str:
        """Counts in one line, the first example of each reason below."""
        lines = [f"{len(self.trajectories):,} rows taken, {sum(self.rejected.values()):,} rejected"]
        lines += [
            f"  {count:,} {reason}, first {self.examples[reason]}"
            for reason, count in self.rejected.items()
        ]
        return "\n".join(lines)


def import_trajectories(
    path: str | os.PathLike[str], config: ImportConfig, tokenizer: Tokenizer
) -> Imported:
    """Reads another engine's samples.

    Args:
      path: JSON lines.
      config: columns.
      tokenizer: for the token ids; ids in the file are checked against it.

    Returns:
      Good rows as trajectories, bad rows counted by reason.

    Raises:
      DataError: there is no such file, or not one good row.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    good: list[Trajectory] = []
    seen: set[tuple[str, int]] = set()
    counted: collections.Counter[str] = collections.Counter()
    rejected: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                one = _trajectory(line, config, tokenizer, counted)
                if one.key in seen:
                    raise _BadRowError("of a problem and sample that came before", str(one.key))
            except _BadRowError as error:
                rejected[error.reason] += 1
                examples.setdefault(error.reason, f"line {number}: {error.what[:80]}")
                continue
            seen.add(one.key)
            counted[one.problem_id] += 1
            good.append(one)
    result = Imported(trajectories=good, rejected=dict(rejected), examples=examples)
    if not good:
        raise DataError(f"'{path}' has no row that can be taken: {result.summary()}")
    return result


class _BadRowError(Exception):
    """A row that cannot be taken."""

    def __init__(self, reason: str, what: str):
        super().__init__(reason)
        self.reason = reason
        self.what = what


def _trajectory(
    line: str, config: ImportConfig, tokenizer: Tokenizer, counted: Mapping[str, int]
) -> Trajectory:
    """One row, or _BadRowError."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _BadRowError("that are no JSON", line.strip()) from error
    if not isinstance(row, dict):
        raise _BadRowError("that are no JSON objects", line.strip())
    problem_id = str(_column(row, config.problem_id))
    prompt, response = _column(row, config.prompt), _column(row, config.response)
    for name, text in (("prompt", prompt), ("response", response)):
        if not isinstance(text, str) or not text:
            raise _BadRowError(f"whose {name} is no text", repr(text))
    token_ids, start = _tokens(row, config, tokenizer, prompt, response)
    finish = row.get(config.finish, "stop") or "stop"
    if finish not in FINISHES:
        raise _BadRowError("with an unknown finish", repr(finish))
    sample = _column(row, config.sample) if config.sample else counted.get(problem_id, 0)
    if not isinstance(sample, int):
        raise _BadRowError("whose sample is no number", repr(sample))
    return Trajectory(
        problem_id=problem_id,
        sample=sample,
        task=config.task,
        seed=None,
        prompt=prompt,
        response=response,
        token_ids=tuple(token_ids),
        response_start=start,
        finish=finish,
        answer=None,
        is_correct=None,
        official_correct=None,
        model=config.model,
        tokenizer=tokenizer.fingerprint,
    )


def _tokens(
    row: Mapping[str, Any], config: ImportConfig, tokenizer: Tokenizer, prompt: str, response: str
) -> tuple[list[int], int]:
    """The row's token ids, checked to say what its texts say, or the texts tokenised."""
    if not config.token_ids:
        joint = encode_pair(tokenizer, prompt, response, add_eos=False)
        return joint.token_ids, joint.response_start
    ids, start = _column(row, config.token_ids), _column(row, config.response_start)
    if not isinstance(ids, list) or any(
        not isinstance(one, int) or not 0 <= one < tokenizer.vocab_size for one in ids
    ):
        raise _BadRowError("with ids that the tokenizer does not have", repr(ids)[:60])
    if not isinstance(start, int) or not 0 < start < len(ids):
        raise _BadRowError("whose response_start lies outside the ids", repr(start))
    if tokenizer.decode(ids[start:]) != response:
        raise _BadRowError("whose ids are of another text", repr(tokenizer.decode(ids[start:])))
    return ids, start


def _column(row: Mapping[str, Any], name: str) -> Any:
    """A column that must be there."""
    if name not in row:
        raise _BadRowError(f"without '{name}'", f"columns {', '.join(map(str, row))}")
    return row[name]
