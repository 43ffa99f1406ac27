"""Trajectories of another engine (vLLM, SGLang, ...): a JSONL file with a column mapping.

One JSON object per line, in UTF-8. Needed are a problem's id (text or integer), the prompt's text
and the response's text; token ids are kept where the file has them and they say these texts, else
the texts are tokenised here (without an end of sequence: the file does not say whether the model
wrote one). A column's name may lead into objects, as in "meta_info.finish_reason.type". A row may
hold several samples of its prompt in a list. `vllm` and `sglang` are the mappings of these
engines' results, written one per line with a "problem_id" beside them.

Every row or sample that cannot be taken is counted by its reason, and the first one is shown.
An empty response is an answer like others and taken: to leave it out would flatter the model.

Dimension key: none.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from core_jax.errors import ConfigError, DataError
from core_jax.storage import local_path
from reasoning_jax.data.imported_ids import CheckedIds, check_ids
from reasoning_jax.data.trajectories import FINISHES, Trajectory
from reasoning_jax.text.joint import encode_pair, encode_prompt
from reasoning_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Which columns hold what. An empty name: there is no such column."""

    problem_id: str = "problem_id"
    """Column of the problem's id."""
    prompt: str = "prompt"
    """Column of the prompt's text."""
    samples: str = ""
    """Column of a list of samples; response, sample, finish, response_ids, token_ids and
    response_start are then columns of its entries."""
    response: str = "response"
    """Column of the response's text."""
    sample: str = ""
    """Column of the sample's number; without it, samples are counted in the file's order."""
    prompt_ids: str = ""
    """Column of the prompt's token ids, where response_ids has its response's."""
    response_ids: str = ""
    """Column of the response's token ids; without prompt_ids the prompt is tokenised here."""
    token_ids: str = ""
    """Column of prompt and response as one list of token ids."""
    response_start: str = ""
    """Column of the response's first index among them; needed where token_ids is."""
    finish: str = "finish_reason"
    """Column that says "stop" or "length"; rows without it count as "stop"."""
    special_prompt: bool = False
    """Whether special tokens written out in the prompt are read as such (chat templates)."""
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
        if self.prompt_ids and not self.response_ids:
            raise ConfigError("import.prompt_ids needs import.response_ids; name both columns")
        if self.token_ids and self.response_ids:
            raise ConfigError(
                "import.token_ids and import.response_ids say the same; name one of the columns"
            )


def vllm() -> ImportConfig:
    """Columns of vLLM's `RequestOutput`, as JSON with a "problem_id"; one row, n samples."""
    return ImportConfig(
        samples="outputs",
        response="text",
        sample="index",
        prompt_ids="prompt_token_ids",
        response_ids="token_ids",
    )


def sglang() -> ImportConfig:
    """Columns of what SGLang's `generate` returns, with a "problem_id" and the "prompt"."""
    return ImportConfig(
        response="text", response_ids="output_ids", finish="meta_info.finish_reason.type"
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
    num_cut: int
    """How many good rows had ids past their response's text, which were left out."""

    def summary(self) -> str:
        """Counts in one line, the first example of each reason below."""
        lines = [f"{len(self.trajectories):,} rows taken, {sum(self.rejected.values()):,} rejected"]
        if self.num_cut:
            lines.append(f"  {self.num_cut:,} taken without ids past the response (stop strings)")
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
    path = local_path(path)
    if not path.is_file():
        raise DataError(f"there is no file '{path}'")
    good: dict[tuple[str, int], Trajectory] = {}
    counted: collections.Counter[str] = collections.Counter()
    rejected: collections.Counter[str] = collections.Counter()
    examples: dict[str, str] = {}
    num_cut = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            for entry in _entries(line, config):
                try:
                    one, is_cut = _trajectory(entry, config, tokenizer, counted)
                    if one.key in good:
                        raise _BadRowError("of a problem and sample that came before", one.key)
                except _BadRowError as error:
                    rejected[error.reason] += 1
                    examples.setdefault(error.reason, f"line {number}: {error.what[:80]}")
                    continue
                counted[one.problem_id] += 1
                num_cut += is_cut
                good[one.key] = one
    result = Imported(
        trajectories=list(good.values()),
        rejected=dict(rejected),
        examples=examples,
        num_cut=num_cut,
    )
    if not good:
        raise DataError(f"'{path}' has no row that can be taken: {result.summary()}")
    return result


class _BadRowError(Exception):
    """A row that cannot be taken: why, and what it has instead."""

    def __init__(self, reason: str, what: object):
        super().__init__(reason)
        self.reason = reason
        self.what = what if isinstance(what, str) else repr(what)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One sample: its row, and where the sample's own columns are."""

    row: Mapping[str, Any]
    own: Mapping[str, Any]


def _entries(line: bytes, config: ImportConfig) -> Iterator[_Entry | _BadRowError]:
    """The samples of a line; what is none is yielded as its error."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        yield _BadRowError("that are no JSON in UTF-8", line.strip()[:80])
        return
    if not isinstance(row, dict):
        yield _BadRowError("that are no JSON objects", row)
        return
    if not config.samples:
        yield _Entry(row, row)
        return
    listed = _find(row, config.samples)
    if not isinstance(listed, list) or not listed:
        yield _BadRowError(f"without a list '{config.samples}'", listed)
        return
    for own in listed:
        is_object = isinstance(own, dict)
        yield _Entry(row, own) if is_object else _BadRowError("that are no JSON objects", own)


def _trajectory(
    entry: _Entry | _BadRowError,
    config: ImportConfig,
    tokenizer: Tokenizer,
    counted: Mapping[str, int],
) -> tuple[Trajectory, bool]:
    """One sample, and whether its ids were cut; or _BadRowError."""
    if isinstance(entry, _BadRowError):
        raise entry
    problem_id = _column(entry.row, config.problem_id)
    if isinstance(problem_id, bool) or not isinstance(problem_id, int | str) or problem_id == "":
        raise _BadRowError("whose problem_id is no text or integer", problem_id)
    problem_id = _text(str(problem_id), "problem_id")
    prompt = _text(_column(entry.row, config.prompt), "prompt")
    response = _text(_column(entry.own, config.response), "response", may_be_empty=True)
    finish = _find(entry.own, config.finish)
    finish = "stop" if finish is None else finish
    if finish not in FINISHES:
        raise _BadRowError("with an unknown finish", finish)
    sample = _column(entry.own, config.sample) if config.sample else counted.get(problem_id, 0)
    if not _is_count(sample):
        raise _BadRowError("whose sample is no number from 0", sample)
    ids = _ids(entry, config, tokenizer, prompt, response)
    trajectory = Trajectory(
        problem_id=problem_id,
        sample=sample,
        task=config.task,
        seed=None,
        prompt=prompt,
        response=response,
        token_ids=tuple(ids.token_ids),
        response_start=ids.response_start,
        finish=finish,
        answer=None,
        is_correct=None,
        official_correct=None,
        model=config.model,
        tokenizer=tokenizer.fingerprint,
    )
    return trajectory, ids.is_cut


def _ids(
    entry: _Entry, config: ImportConfig, tokenizer: Tokenizer, prompt: str, response: str
) -> CheckedIds:
    """The row's token ids, checked to say what its texts say, or the texts tokenised."""
    if config.token_ids:
        given = _listed(entry.own, config.token_ids, tokenizer)
        start = _column(entry.own, config.response_start)
    elif config.response_ids:
        before = (
            _listed(entry.row, config.prompt_ids, tokenizer)
            if config.prompt_ids
            else encode_prompt(tokenizer, prompt, special=config.special_prompt)
        )
        start = len(before)
        given = before + _listed(entry.own, config.response_ids, tokenizer)
    else:
        return _tokenised(config, tokenizer, prompt, response)
    if not _is_count(start) or not 0 < start <= len(given):
        raise _BadRowError("whose response_start lies outside the ids", start)
    checked = check_ids(tokenizer, given, start, prompt, response)
    if checked is None:
        raise _BadRowError("whose ids are of another text", tokenizer.decode(given[start:]))
    return checked


def _tokenised(
    config: ImportConfig, tokenizer: Tokenizer, prompt: str, response: str
) -> CheckedIds:
    """Prompt and response as tokens of one sequence."""
    special = config.special_prompt
    if not response:
        ids = encode_prompt(tokenizer, prompt, special=special)
        return CheckedIds(token_ids=ids, response_start=len(ids), is_cut=False)
    joint = encode_pair(tokenizer, prompt, response, special_prompt=special, add_eos=False)
    if not joint.response_start:
        raise _BadRowError("whose prompt has no token of its own", prompt)
    return CheckedIds(token_ids=joint.token_ids, response_start=joint.response_start, is_cut=False)


def _listed(row: Mapping[str, Any], name: str, tokenizer: Tokenizer) -> list[int]:
    """A column of token ids."""
    ids = _column(row, name)
    if not isinstance(ids, list) or not all(
        _is_count(one) and one < tokenizer.vocab_size for one in ids
    ):
        raise _BadRowError("with ids that the tokenizer does not have", ids)
    return ids


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    """A text that UTF-8 can write: JSON can hold halves of UTF-16 pairs, which are none."""
    if isinstance(value, str) and (value or may_be_empty):
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    raise _BadRowError(f"whose {name} is no text", ascii(value))


def _column(row: Mapping[str, Any], name: str) -> Any:
    """A column that must be there."""
    value = _find(row, name)
    if value is None:
        raise _BadRowError(f"without '{name}'", f"columns {', '.join(map(str, row))}")
    return value


def _find(row: Mapping[str, Any], name: str) -> Any:
    """A column by its name, or by the names on the way into objects; None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
