"""Answers that are equivalent, for voting by majority and for contrasting.

Dimension key: none.
"""

from collections.abc import Sequence

from reasoning_jax.answers.grader import Grader
from reasoning_jax.answers.normalise import compact, normalise
from reasoning_jax.answers.rational import parse_rational
from reasoning_jax.answers.units import Quantity, split_unit

_MAX_LENGTH = 1000


def canonical_key(answer: str) -> str:
    r"""A key that only equivalent answers share: the exact number, or the normalised string.

    >>> canonical_key("0.50") == canonical_key(r"\frac12")
    True
    """
    if len(answer) > _MAX_LENGTH:
        return answer
    text = normalise(answer)
    quantity: Quantity = split_unit(text)
    value = parse_rational(quantity.number)
    return compact(text) if value is None else f"{value} {quantity.unit}"


def group_answers(answers: Sequence[str | None], grader: Grader) -> list[list[int]]:
    """Groups one problem's answers by equivalence; see `group_all`.

    Args:
      answers: final answers; None (no answer was found) belongs to no group.
      grader: whose equivalence.

    Returns:
      The positions of each group's answers, groups and positions in the order of appearance.
    """
    return group_all([answers], grader)[0]


def group_all(problems: Sequence[Sequence[str | None]], grader: Grader) -> list[list[list[int]]]:
    """Groups the answers of many problems, each problem's by itself, by equivalence.

    Answers with one cheap key are one group at once; groups are then compared by their first
    answers only. All that is undecided about the n-th answer of every problem is one batch, so that
    the grader's processes work side by side.

    Args:
      problems: the final answers to each; None (no answer was found) belongs to no group.
      grader: whose equivalence.

    Returns:
      For each problem the positions of each group's answers, groups and positions in the order of
      appearance.
    """
    waiting = [_by_key(answers) for answers in problems]
    found: list[list[list[int]]] = [[] for _ in problems]
    for turn in range(max(map(len, waiting), default=0)):
        asked = [number for number, keyed in enumerate(waiting) if turn < len(keyed)]
        pairs = [
            (str(problems[number][group[0]]), str(problems[number][waiting[number][turn][0]]))
            for number in asked
            for group in found[number]
        ]
        same = iter([verdict.is_correct for verdict in grader.equivalents(pairs)])
        for number in asked:
            indices, groups = waiting[number][turn], found[number]
            equal = [group for group in groups if next(same)]
            if equal:
                equal[0].extend(indices)
            else:
                groups.append(list(indices))
    return [
        sorted((sorted(group) for group in groups), key=lambda group: group[0]) for groups in found
    ]


def _by_key(answers: Sequence[str | None]) -> list[list[int]]:
    """The positions of the answers with one cheap key, in the order of appearance."""
    keys = {answer: canonical_key(answer) for answer in set(answers) if answer is not None}
    by_key: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            by_key.setdefault(keys[answer], []).append(index)
    return list(by_key.values())
