"""From graded trajectories to a positive set, a negative set and pairs.

Section 3.1 of the cDPO paper (arXiv 2411.19943): the answers to a problem are grouped, the groups
sorted by their counts, and

  positive  one solution of the most frequent right answer
  negative  one solution of each wrong answer, the most frequent first, until the answers taken
            make up half of all wrong ones
  pair      one solution of the most frequent right answer against one of the most frequent wrong

Differences: answers are grouped by equivalence, where the authors' code groups strings, so that
"0.5" and "1/2" are one answer. Draws depend on the seed, the problem and the sample alone. What a
set or a pair draws is independent of what the others draw.

Dimension key: none.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from core_jax.errors import ConfigError, DataError
from reasoning_jax.align.pair_file import Pair
from reasoning_jax.answers.grader import Grader
from reasoning_jax.answers.groups import group_all
from reasoning_jax.data.trajectories import Trajectory

COUNTS: Mapping[str, str] = {
    "problems": "problems",
    "samples": "solutions",
    "cut_off": "solutions left out: cut off at the length limit",
    "no_answer": "solutions left out: without an answer",
    "correct": "right solutions",
    "wrong": "wrong solutions",
    "duplicates": "solutions whose text another of the problem has too",
    "groups": "different answers",
    "correct_groups": "different right answers",
    "wrong_groups": "different wrong answers",
    "mixed_groups": "answers left out: solutions with it are graded differently",
    "in_mixed_groups": "solutions with such an answer",
    "positive": "positive set",
    "positive_short": "problems with fewer positives than wanted",
    "negative": "negative set",
    "negative_short": "problems whose negatives do not reach the share",
    "pairs": "pairs",
    "pairs_short": "problems to contrast with fewer pairs than wanted",
    "rejected_in_negative": "pairs whose rejected solution is in the negative set too",
    "contrasted": "problems to contrast",
    "none_answered": "problems without contrast: no answer at all",
    "none_correct": "problems without contrast: no right answer",
    "none_wrong": "problems without contrast: no wrong answer",
    "none_clear": "problems without contrast: all answers are graded differently",
}
"""What is counted, in the order of the steps; `contrasted` and the `none_*` sum to `problems`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetsConfig:
    """What is taken of a problem's solutions."""

    negative_share: float = 0.5
    """The wrong answers that negatives are taken of make up this share of all wrong ones; the
    paper tried 0.25, 0.5 and 0.75."""
    positives_per_problem: int = 1
    """Solutions of the most frequent right answer, with different texts."""
    pairs_per_problem: int = 1
    """Pairs of a problem; no two have both texts in common."""
    repeated_only: bool = False
    """Whether wrong answers that came once are no negatives, but for the most frequent answer;
    the authors' code does so since May 2025."""
    keep_cut_off: bool = False
    """Whether solutions that ended at the length limit count as others do."""
    seed: int = 0
    """Of the draws, and of the order of the problems."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if not 0 < self.negative_share <= 1:
            raise ConfigError(
                f"negative_share is {self.negative_share}; give a share in (0, 1], such as 0.5"
            )
        for name in ("positives_per_problem", "pairs_per_problem"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSets:
    """What there is to learn from, the problems in an order that the seed has drawn."""

    positive: tuple[Trajectory, ...]
    """Right solutions."""
    negative: tuple[Trajectory, ...]
    """Wrong solutions."""
    pairs: tuple[Pair, ...]
    """One against the other."""
    counts: Mapping[str, int]
    """How many there were at every step; the names are those of `COUNTS`."""
    mixed: tuple[str, ...]
    """Problems with an answer whose solutions are graded differently."""


def make_sets(trajectories: Iterable[Trajectory], grader: Grader, config: SetsConfig) -> AnswerSets:
    """Makes the sets and the pairs; the order of the trajectories does not matter.

    An answer whose solutions are graded differently is left out, since one of the verdicts is wrong
    and nothing says which; such answers are counted.

    Args:
      trajectories: graded solutions, several of each problem.
      grader: says which answers are equivalent.
      config: what to take.

    Returns:
      The sets, which may be empty, and the counts.

    Raises:
      DataError: a trajectory is not graded.
    """
    problems = _problems(trajectories, config.seed)
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    counts["problems"] = len(problems)
    answered = [_answered(samples, counts, config) for samples in problems]
    grouped = group_all([[one.answer for one in kept] for kept in answered], grader)
    positive: list[Trajectory] = []
    negative: list[Trajectory] = []
    pairs: list[Pair] = []
    mixed: list[str] = []
    for kept, indices in zip(answered, grouped, strict=True):
        groups = [[kept[index] for index in group] for group in indices]
        right, wrong = _by_verdict(groups, counts)
        if len(right) + len(wrong) < len(groups):
            mixed.append(kept[0].problem_id)
        counts[_contrast(groups, right, wrong)] += 1
        positive += _positives(right, counts, config)
        taken = _negatives(wrong, counts, config)
        negative += taken
        made = _pairs(right, wrong, counts, config)
        texts = {one.response for one in taken}
        counts["rejected_in_negative"] += sum(pair.rejected.response in texts for pair in made)
        pairs += made
    counts.update(positive=len(positive), negative=len(negative), pairs=len(pairs))
    return AnswerSets(
        positive=tuple(positive),
        negative=tuple(negative),
        pairs=tuple(pairs),
        counts=dict(counts),
        mixed=tuple(mixed),
    )


def counts_table(counts: Mapping[str, int]) -> str:
    """The counts as a table in Markdown, with their number per problem."""
    lines = ["| | number | per problem |", "|---|---:|---:|"]
    for name, title in COUNTS.items():
        share = counts[name] / max(counts["problems"], 1)
        lines.append(f"| {title} | {counts[name]:,} | {share:.2f} |")
    return "\n".join(lines)


def number_needed(share: float, total: int) -> int:
    """The smallest number that is at least a share of a total, exact in decimals.

    >>> number_needed(0.07, 100), math.ceil(0.07 * 100)
    (7, 8)
    """
    return math.ceil(Fraction(repr(share)) * total)


def _problems(trajectories: Iterable[Trajectory], seed: int) -> list[list[Trajectory]]:
    """Each problem's solutions by their number; the problems in drawn order."""
    by_problem: dict[str, list[Trajectory]] = {}
    ungraded = []
    for one in trajectories:
        by_problem.setdefault(one.problem_id, []).append(one)
        if one.is_correct is None:
            ungraded.append(one.key)
    if ungraded:
        raise DataError(
            f"{len(ungraded)} trajectories are not graded, the first is {ungraded[0]}; "
            "reasoning.rollout grades what it samples, and what it imports by --imported"
        )
    names = sorted(by_problem, key=lambda name: _drawn(seed, "problem", name))
    return [sorted(by_problem[name], key=lambda one: one.sample) for name in names]


def _answered(
    samples: Sequence[Trajectory], counts: Counter[str], config: SetsConfig
) -> list[Trajectory]:
    """The solutions that count; the others are counted by the first reason that holds."""
    kept = []
    for one in samples:
        if one.finish == "length" and not config.keep_cut_off:
            counts["cut_off"] += 1
        elif not (one.answer or "").strip():
            counts["no_answer"] += 1
        else:
            counts["correct" if one.is_correct else "wrong"] += 1
            kept.append(one)
    counts["samples"] += len(samples)
    counts["duplicates"] += len(kept) - len({one.response for one in kept})
    return kept


def _by_verdict(
    groups: Sequence[list[Trajectory]], counts: Counter[str]
) -> tuple[list[list[Trajectory]], list[list[Trajectory]]]:
    """Groups of right and of wrong answers, the largest first and of equals the earlier one."""
    sides: dict[bool, list[list[Trajectory]]] = {True: [], False: []}
    for group in sorted(groups, key=len, reverse=True):
        verdicts = {bool(one.is_correct) for one in group}
        if len(verdicts) == 1:
            sides[verdicts.pop()].append(group)
        else:
            counts["mixed_groups"] += 1
            counts["in_mixed_groups"] += len(group)
    counts["groups"] += len(groups)
    counts["correct_groups"] += len(sides[True])
    counts["wrong_groups"] += len(sides[False])
    return sides[True], sides[False]


def _contrast(groups: Sequence[object], right: Sequence[object], wrong: Sequence[object]) -> str:
    """What is counted of a problem: that there is something to contrast, or why not."""
    if right and wrong:
        return "contrasted"
    if right or wrong:
        return "none_wrong" if right else "none_correct"
    return "none_clear" if groups else "none_answered"


def _positives(
    right: Sequence[list[Trajectory]], counts: Counter[str], config: SetsConfig
) -> list[Trajectory]:
    """Solutions of the most frequent right answer."""
    if not right:
        return []
    taken = _shuffled(right[0], "positive", config.seed)[: config.positives_per_problem]
    counts["positive_short"] += len(taken) < config.positives_per_problem
    return taken


def _negatives(
    wrong: Sequence[list[Trajectory]], counts: Counter[str], config: SetsConfig
) -> list[Trajectory]:
    """One solution of each wrong answer, until those taken reach the share."""
    needed = number_needed(config.negative_share, sum(map(len, wrong)))
    taken: list[Trajectory] = []
    covered = 0
    for group in wrong:
        if covered >= needed or (config.repeated_only and taken and len(group) == 1):
            break
        taken.append(_shuffled(group, "negative", config.seed)[0])
        covered += len(group)
    counts["negative_short"] += covered < needed
    return taken


def _pairs(
    right: Sequence[list[Trajectory]],
    wrong: Sequence[list[Trajectory]],
    counts: Counter[str],
    config: SetsConfig,
) -> list[Pair]:
    """The most frequent right answer against the most frequent wrong one.

    The n-th pair has the n-th text of either; where one side runs out, it starts again, and what
    would repeat a pair moves on by one.
    """
    if not (right and wrong):
        return []
    chosen = _shuffled(right[0], "chosen", config.seed)
    rejected = _shuffled(wrong[0], "rejected", config.seed)
    period = math.lcm(len(chosen), len(rejected))
    num_pairs = min(config.pairs_per_problem, len(chosen) * len(rejected))
    counts["pairs_short"] += num_pairs < config.pairs_per_problem
    return [
        Pair(
            problem_id=chosen[0].problem_id,
            index=index,
            chosen=chosen[index % len(chosen)],
            rejected=rejected[(index + index // period) % len(rejected)],
        )
        for index in range(num_pairs)
    ]


def _shuffled(group: Sequence[Trajectory], use: str, seed: int) -> list[Trajectory]:
    """A group's solutions in drawn order, each text once: what comes often tends to come early."""
    by_text: dict[str, Trajectory] = {}
    for one in sorted(group, key=lambda one: _drawn(seed, use, one.problem_id, str(one.sample))):
        by_text.setdefault(one.response, one)
    return list(by_text.values())


def _drawn(seed: int, *names: str) -> bytes:
    """A draw that depends on the seed and the names alone."""
    return hashlib.sha256("\0".join((str(seed), *names)).encode("utf-8", "surrogatepass")).digest()
