"""What a grader says of an answer.

Dimension key: none.
"""

import dataclasses
import enum


class GraderKind(enum.Enum):
    """How lenient a grader is."""

    STRICT = "strict"
    """Exact equality; percent, units and order count."""
    OFFICIAL = "official"
    """The cDPO paper's rules: 1e-4 relative, and a factor of 100 either way is forgiven."""


class OfficialTask(enum.Enum):
    """Whose extraction the official grader uses; the paper has one for each task."""

    MATH = "math"
    GSM8K = "gsm8k"


class ListOrder(enum.Enum):
    """Whether the order counts in a bare list such as '2, 3' (never in a set, always in a pair)."""

    ORDERED = "ordered"
    ANY = "any"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """One answer, judged."""

    answer: str | None
    """The final answer that was found in the response; None where there was none."""
    is_correct: bool
    """Whether it is equivalent to the gold answer."""
    method: str
    """What decided: string, rational, text, structure, unit, math_verify, numeric; or why nothing
    did: none (no answer found), refused (hostile), timeout, crash, memory, unparsed."""
    extraction: str = ""
    """How the answer was found: boxed, final_answer, hashes, answer_is, last_number; empty where
    the answer was given."""
