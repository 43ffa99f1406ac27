r"""Critical tokens of a wrong solution, from how often its prefixes still lead to a right answer.

A wrong solution :math:`y_1 \dots y_T` is cut after every token, n completions are sampled from each
prefix, and :math:`c_t` of those from :math:`y_{\le t}` are right. Three rules read a critical token
off the curve :math:`c_t / n`:

- `ZERO`, the definition of the cDPO paper (Lin et al., 2024, arXiv:2411.19943, section 2): the
  first t with :math:`c_t = 0` after which success stays under 5 %.
- `LARGEST_DROP` and `FIRST_DROP`, which need no fixed limit: of the tokens with which success drops
  significantly by a one-sided test of two proportions, the one with the largest drop, or the first.
  That a test of consecutive prefixes finds such tokens is the idea of the cliff tokens of
  arXiv:2606.25524; the formula stands at `drop_p_values`.

The end of the sequence is no candidate, as the paper's solutions are text without it: nothing can
follow it, so that it would pass for critical wherever nothing before it is.

What the token does is measured by replacing it: from :math:`y_{<t}` the model is made to go on with
another token, drawn from its own distribution with :math:`p(y_t) := 0`, and Pass@k of these
completions is compared with that of the prefix that keeps the token. The paper's Figure 2
(Llama-3-8B, 100 wrong solutions each, n = 64) has, in percent, and 0.0 everywhere with the token:

  ======  ====  ====  ====  ====  ====  ====  ====
  k          1     2     4     8    16    32    64
  ======  ====  ====  ====  ====  ====  ====  ====
  GSM8K   29.9  40.5  52.3  64.7  76.3  85.3  91.0
  MATH    30.5  42.0  54.1  66.2  77.8  88.0  95.0
  ======  ====  ====  ====  ====  ====  ====  ====

Rolling out is the reference and no method to train with: the paper counts 581,425 tokens per wrong
GSM8K solution and 7,613,942 per wrong MATH solution.

Dimension key: T response tokens, S solutions, K values of k from 1 to n.
"""

import dataclasses
import enum
from statistics import NormalDist

import numpy as np

from core_jax.arrays import Float, Int
from core_jax.errors import ConfigError, DataError
from reasoning_jax.accuracy import pass_at_k


class CriticalRule(enum.Enum):
    """How a critical token is read off the success of all prefixes."""

    ZERO = "zero"
    """The first prefix without any success after which success stays low (the paper)."""
    LARGEST_DROP = "largest_drop"
    """The largest significant drop from one prefix to the next."""
    FIRST_DROP = "first_drop"
    """The first significant drop."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticalConfig:
    """Which solutions are rolled out, how, and what is made of it."""

    temperature: float
    """Of the completions; the paper takes that at which the solutions themselves were sampled."""
    max_new_tokens: int
    """Longest completion of a prefix, in tokens (paper: 1024)."""
    num_solutions: int = 100
    """Wrong solutions that are rolled out, the first ones."""
    num_rollouts: int = 64
    """Completions of each prefix, n."""
    top_p: float = 0.95
    """Completions take only the most probable tokens that together reach this probability."""
    rule: CriticalRule = CriticalRule.ZERO
    """How the critical token is found."""
    later_share: float = 0.05
    """rule=zero: success after the critical token stays under this share."""
    alpha: float = 0.01
    """rule=largest_drop, first_drop: level of each single test; by chance alone a solution of T
    tokens has up to alpha * T such drops."""
    replacement: bool = True
    """Whether the critical token is then replaced by others, n draws with one completion each."""
    seed: int = 0
    """Of completions and replacements."""

    def __post_init__(self) -> None:
        """Checks every field on its own."""
        if not self.temperature > 0:
            raise ConfigError(
                f"critical.temperature is {self.temperature}; it must be above 0, since all "
                "completions of a prefix are equal otherwise"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"critical.top_p is {self.top_p}; it must be in (0, 1]")
        for name in ("max_new_tokens", "num_solutions", "num_rollouts"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"critical.{name} is {getattr(self, name)}; it must be at least 1"
                )
        _check_share("critical.later_share", self.later_share, 1.0)
        _check_share("critical.alpha", self.alpha, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticalToken:
    """What a rule found in one solution."""

    index: int | None
    """The critical token, counted from the response's first; None where there is none."""
    is_fallback: bool = False
    """rule=zero: whether success came back above the limit after it, as it did after every token
    without success."""


def critical_token(
    successes: Int[np.ndarray, " T"],
    prompt_successes: int,
    num_rollouts: int,
    config: CriticalConfig,
) -> CriticalToken:
    """The critical token by the configured rule.

    Args:
      successes: right completions of the prefix that ends with each token.
      prompt_successes: right completions of the prompt alone; only the drops read it.
      num_rollouts: completions of each prefix.
      config: the rule with its limits.

    Raises:
      DataError: no token, or successes that are no counts of the rollouts.
    """
    if config.rule is CriticalRule.ZERO:
        return zero_position(successes, num_rollouts, later_share=config.later_share)
    index = drop_position(
        np.concatenate([[prompt_successes], successes]),
        num_rollouts,
        alpha=config.alpha,
        first=config.rule is CriticalRule.FIRST_DROP,
    )
    return CriticalToken(index=index)


def zero_position(
    successes: Int[np.ndarray, " T"], num_rollouts: int, *, later_share: float = 0.05
) -> CriticalToken:
    r"""The paper's rule: the first token without success after which success stays low.

    .. math:: \min \{ t : c_t = 0,\; c_u / n < \epsilon \text{ for all } u > t \}

    Read as a walk: the first zero is a candidate, a later success of :math:`\epsilon` or more
    cancels it, and the search goes on behind that. Where every candidate is cancelled, the last one
    is taken. Both cases in one: let z be the last zero and v the last prefix before z whose success
    is not under :math:`\epsilon`; the token is the first zero after v.

    Args:
      successes: right completions of the prefix that ends with each token.
      num_rollouts: completions of each prefix, n.
      later_share: :math:`\epsilon`; with n = 64 and 5 %, 4 right completions cancel and 3 do not.

    Returns:
      The token; its index is None where no prefix is without success.

    Raises:
      DataError: no token, or successes that are no counts of the rollouts.
      ConfigError: later_share is out of range.

    >>> zero_position(np.array([40, 0, 0, 3, 0]), 64)
    CriticalToken(index=1, is_fallback=False)
    >>> zero_position(np.array([40, 0, 4, 0, 0]), 64)
    CriticalToken(index=3, is_fallback=False)
    >>> zero_position(np.array([40, 0, 0, 4, 3]), 64)
    CriticalToken(index=1, is_fallback=True)
    """
    _check_counts(successes, num_rollouts)
    _check_share("later_share", later_share, 1.0)
    zeros = np.flatnonzero(successes == 0)
    if not zeros.size:
        return CriticalToken(index=None)
    high = np.flatnonzero(successes / num_rollouts >= later_share)
    start = high[high < zeros[-1]].max(initial=-1)
    index = int(zeros[zeros > start][0])
    return CriticalToken(index=index, is_fallback=bool((high > index).any()))


def drop_p_values(
    before: Int[np.ndarray, " T"], after: Int[np.ndarray, " T"], num_rollouts: int
) -> Float[np.ndarray, " T"]:
    r"""One-sided test of two proportions: is success after a token less than before it?

    .. math:: z = \frac{\hat p_0 - \hat p_1}{\sqrt{\bar p (1 - \bar p) \cdot 2 / n}}, \quad
       \hat p_i = c_i / n, \quad \bar p = \frac{c_0 + c_1}{2 n}, \quad P = 1 - \Phi(z)

    Under equal proportions P is about uniform, except near 0 and 1, where counts are few and the
    test rejects too seldom. P is 1/2 for equal counts.

    Args:
      before: right completions of the prefix without the token, :math:`c_0`.
      after: of the prefix with it, :math:`c_1`.
      num_rollouts: completions of each, n.

    Returns:
      One P per token.

    >>> p_values = drop_p_values(np.array([32, 32]), np.array([32, 16]), 64)
    >>> bool(p_values[0] == 0.5), bool(p_values[1] < 0.002)  # z = 1/4 / sqrt(15/64 * 2/64) = 2.92
    (True, True)
    """
    pooled_T = (before + after) / (2 * num_rollouts)
    variance_T = pooled_T * (1 - pooled_T) * 2 / num_rollouts
    difference_T = (before - after) / num_rollouts
    z_T = difference_T / np.sqrt(np.where(variance_T > 0, variance_T, 1.0))
    return np.array([NormalDist().cdf(-z) for z in z_T])


def drop_position(
    successes: Int[np.ndarray, " T"], num_rollouts: int, *, alpha: float, first: bool
) -> int | None:
    """The token with which success drops significantly.

    Args:
      successes: right completions of every prefix, that of no token first; one more than tokens.
      num_rollouts: completions of each prefix.
      alpha: level of each test.
      first: the first such token; otherwise the one with the largest drop, the first of equals.

    Returns:
      The token, counted from the response's first; None where no drop is significant.

    Raises:
      DataError: no token, or successes that are no counts of the rollouts.
      ConfigError: alpha is out of range.

    >>> curve = np.array([40, 20, 24, 0])
    >>> drop_position(curve, 64, alpha=0.01, first=True)
    0
    >>> drop_position(curve, 64, alpha=0.01, first=False)
    2
    """
    _check_counts(successes[1:], num_rollouts)
    _check_counts(successes[:1], num_rollouts)
    _check_share("alpha", alpha, 0.5)
    before, after = successes[:-1], successes[1:]
    is_drop_T = drop_p_values(before, after, num_rollouts) <= alpha
    if not is_drop_T.any():
        return None
    drops_T = np.where(is_drop_T, before - after, 0)
    return int(np.argmax(is_drop_T if first else drops_T))


def replacement_curves(
    kept: Int[np.ndarray, " S"], replaced: Int[np.ndarray, " S"], num_rollouts: int
) -> tuple[Float[np.ndarray, "S K"], Float[np.ndarray, "S K"]]:
    """Pass@k for k = 1 to n of every solution, with its critical token and with others instead.

    Args:
      kept: right completions of the prefix that ends with the critical token.
      replaced: right completions where another token stands in its place.
      num_rollouts: completions of each, n.

    Returns:
      The unbiased estimates with the token, and without it.

    >>> kept, replaced = replacement_curves(np.array([0]), np.array([3]), 7)
    >>> bool(kept.any()), bool(np.isclose(replaced[0, 0], 3 / 7)), replaced[0, 4:].tolist()
    (False, True, [1.0, 1.0, 1.0])
    """
    num_samples = np.full(len(kept), num_rollouts)
    kept_SK, replaced_SK = (
        np.stack([pass_at_k(counts, num_samples, k) for k in range(1, num_rollouts + 1)], axis=1)
        for counts in (kept, replaced)
    )
    return kept_SK, replaced_SK


def _check_counts(successes: Int[np.ndarray, " T"], num_rollouts: int) -> None:
    """Raises unless they are counts of right completions."""
    if num_rollouts < 1:
        raise ConfigError(f"num_rollouts is {num_rollouts}; it must be at least 1")
    if not len(successes):
        raise DataError("a solution without tokens has no critical token; leave it out")
    bad = np.flatnonzero((successes < 0) | (successes > num_rollouts))
    if bad.size:
        raise DataError(
            f"prefix {bad[0]} has {successes[bad[0]]} right completions of {num_rollouts}; "
            "expected 0 to all of them"
        )


def _check_share(name: str, value: float, most: float) -> None:
    """Raises unless the value lies strictly between 0 and `most`."""
    if not 0 < value < most:
        raise ConfigError(f"{name} is {value}; it must lie between 0 and {most:g}")
