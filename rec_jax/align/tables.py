"""Tables of an alignment: policies before every judge, head by head, and the judges themselves.

Dimension key: none.
"""

from collections.abc import Mapping, Sequence

from rec_jax.align.summary import PolicySummary
from rec_jax.data.simulator.facts import normalised_value
from rec_jax.evaluation_tables import ABSENT, Table, interval_text
from rec_jax.ranking_metrics import Interval

TRUTH_NOTE = (
    "True watch time is the expected session watch time in the simulated world, seconds; the scale "
    "puts popularity at 0 and the oracle, which knows every user's taste, at 1. "
)


def policy_table(
    summaries: Sequence[PolicySummary],
    *,
    baseline: str,
    list_length: int,
    confidence: float,
    steps: Mapping[str, int] | None = None,
) -> Table:
    """The main table: what the most probable session is worth to the truth and to both judges.

    Args:
      summaries: the policies, in order.
      baseline: name of the policy that gains are measured from.
      list_length: k of Recall@k and NDCG@k.
      confidence: probability mass of the intervals.
      steps: training steps after the pre-training by policy, a column of its own; or None.
    """
    has_truth = any("truth" in summary.measures for summary in summaries)
    by_name = {summary.name: summary for summary in summaries}
    header = ["policy"]
    if has_truth:
        header += ["true watch time, s", f"gain over {baseline}", "0 popularity, 1 oracle"]
    header += ["reward model", "held-out judge"]
    header += [f"Recall@{list_length}", f"NDCG@{list_length}", "diversity", "legal codes"]
    header += [] if steps is None else ["steps"]
    rows = []
    for summary in summaries:
        cells = [summary.name]
        if has_truth:
            cells += [
                interval_text(summary.measures.get("truth")),
                _signed(summary.gains.get("truth")),
                _scaled(summary, by_name),
            ]
        cells += [_mean(summary, name) for name in ("reward", "judge")]
        cells += [_mean(summary, name) for name in ("recall", "ndcg", "diversity", "legality")]
        if steps is not None:
            cells.append(str(steps.get(summary.name, ABSENT)))
        rows.append(tuple(cells))
    note = (
        f"The most probable session of each user; intervals are {confidence:.0%} bootstrap over "
        "users, gains are paired. "
    )
    note += TRUTH_NOTE if has_truth else "The world of this log is not known: there is no truth. "
    note += (
        "Judges give standard deviations above the average delivered session; the reward model "
        "chose the pairs, the held-out judge did not. Legal codes: share without the constraint."
    )
    if steps is not None:
        note += (
            " Steps: of training after the pre-training, those of positive and negative models "
            "included."
        )
    return Table(title="Policies", note=note, header=tuple(header), rows=tuple(rows))


def head_table(
    summaries: Sequence[PolicySummary], *, judge: str, heads: Sequence[str], title: str
) -> Table:
    """Every head under one judge, mean and max over a user's sessions: the paper's Table 1."""
    header = ["policy", *(f"{head} {what}" for head in heads for what in ("mean", "max"))]
    rows = [
        (
            summary.name,
            *(
                interval_text(summary.measures.get(f"{judge}:{head}/{what}"))
                for head in heads
                for what in ("mean", "max")
            ),
        )
        for summary in summaries
    ]
    return Table(
        title=title,
        note="Probability of each head, mean and max over the sessions that a policy gives a user "
        "(references give one).",
        header=tuple(header),
        rows=tuple(rows),
    )


def best_of_table(
    summaries: Sequence[PolicySummary], *, numbers: Sequence[int], judges: Sequence[str]
) -> Table:
    """Best-of-N: the session that the reward model prefers among the N most probable ones."""
    rows = [
        (
            f"{summary.name}, N = {number}",
            *(interval_text(summary.measures.get(f"best_of/{number}/{judge}")) for judge in judges),
        )
        for summary in summaries
        for number in numbers
        if f"best_of/{number}/{judges[0]}" in summary.measures
    ]
    return Table(
        title="Best of N",
        note="The reward model chooses among the N most probable sessions. Where the held-out "
        "judge or the truth stops rising, the choice exploits the reward model's errors.",
        header=("policy", *(_JUDGES[judge] for judge in judges)),
        rows=tuple(rows),
    )


def concordance_table(rows: dict[str, dict[str, Interval]]) -> Table:
    """How often each judge orders two sessions of a user as the truth does.

    Args:
      rows: by what the sessions are, the concordance of each judge.
    """
    judges = ("reward", "judge")
    return Table(
        title="The judges before the truth",
        note="Share of the pairs of a user's sessions that a judge orders as the simulated world "
        "does (its AUC within a user): 0.5 is a coin, 1 the truth.",
        header=("sessions", *(_JUDGES[judge] for judge in judges)),
        rows=tuple(
            (name, *(interval_text(found.get(judge)) for judge in judges))
            for name, found in rows.items()
        ),
    )


_JUDGES = {
    "reward": "reward model",
    "judge": "held-out judge",
    "truth": "true watch time, s",
}


def _mean(summary: PolicySummary, name: str) -> str:
    found = summary.measures.get(name)
    return ABSENT if found is None else f"{found.mean:.3f}"


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return ABSENT
    return f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _scaled(summary: PolicySummary, by_name: dict[str, PolicySummary]) -> str:
    """Where the true value lies between popularity and oracle."""
    if not {"popularity", "oracle"} <= by_name.keys() or "truth" not in summary.measures:
        return ABSENT
    low, high = (by_name[name].measures["truth"].mean for name in ("popularity", "oracle"))
    if high <= low:
        return ABSENT
    value = normalised_value(summary.measures["truth"].mean, popularity=low, oracle=high)
    return f"{value:.3f}"
