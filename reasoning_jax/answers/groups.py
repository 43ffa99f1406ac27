"""Answers that are equivalent, for voting by majority.

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
    """Groups answers by equivalence.

    Answers with one cheap key are one group at once; groups are then compared by their first
    answers only, and all that is undecided about one answer in one batch.

    Args:
      answers: final answers; None (no answer was found) belongs to no group.
      grader: whose equivalence.

    Returns:
      The positions of each group's answers, groups and positions in the order of appearance.
    """
    by_key: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            by_key.setdefault(canonical_key(answer), []).append(index)
    groups: list[list[int]] = []
    for indices in by_key.values():
        answer = answers[indices[0]]
        firsts = [answers[group[0]] for group in groups]
        pairs = [(str(first), str(answer)) for first in firsts]
        same = [verdict.is_correct for verdict in grader.equivalents(pairs)]
        if True in same:
            groups[same.index(True)].extend(indices)
        else:
            groups.append(list(indices))
    return sorted((sorted(group) for group in groups), key=lambda group: group[0])
