"""What rolling out wrong solutions shows: critical tokens, the effect of replacing them, the cost.

Files:

  critical.jsonl   token values (`reasoning_jax.data.token_values`) of every solution: "success",
                   the share of right completions after each token, and "critical", 1 at the
                   critical token and 0 elsewhere
  solutions.jsonl  the facts of every solution: counts, critical token, replacement, cost
  critical.json    all numbers; critical.md the tables
  pass_at_k.png    Pass@k from the prefix with the critical token, and with another in its place

Dimension key: S solutions, K values of k from 1 to n.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: no screen is needed
import matplotlib.pyplot as plt
import numpy as np

from reasoning_jax.accuracy import Interval, bootstrap_interval
from reasoning_jax.align.critical import replacement_curves
from reasoning_jax.config import ScoreConfig
from reasoning_jax.data.token_values import TokenValues, TokenValuesWriter
from reasoning_jax.data.trajectories import Trajectory

CRITICAL = "critical.jsonl"
SOLUTIONS = "solutions.jsonl"

_COSTS = {
    "sampled_tokens": "tokens sampled from the prefixes",
    "read_tokens": "tokens read to begin there",
    "replacement_tokens": "tokens sampled and read to replace the critical token",
}


def write_results(
    folder: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    solutions: Sequence[Trajectory],
    identity: str,
    num_rollouts: int,
    score: ScoreConfig,
) -> Mapping[str, Any]:
    """Writes all files.

    Args:
      folder: the stage's.
      rows: the facts of every solution.
      solutions: the solutions, in the same order.
      identity: fingerprint of the model and of how it was rolled out.
      num_rollouts: completions of each prefix, n.
      score: which k the table shows, and the bootstrap.

    Returns:
      The numbers for the stage's facts.
    """
    (folder / CRITICAL).unlink(missing_ok=True)  # of results that were cut off
    with TokenValuesWriter(folder / CRITICAL, model=identity) as writer:
        writer.write(
            [
                _values(row, one, identity, num_rollouts)
                for row, one in zip(rows, solutions, strict=True)
            ]
        )
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / SOLUTIONS).write_text("".join(lines), encoding="utf-8")
    results = summarise(rows, num_rollouts, score)
    (folder / "critical.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (folder / "critical.md").write_text(table(results, score.ks) + "\n", encoding="utf-8")
    if results["num_replaced"]:
        _plot(results, folder / "pass_at_k.png")
    return {name: value for name, value in results.items() if name not in ("kept", "replaced")}


def _values(
    row: Mapping[str, Any], solution: Trajectory, identity: str, num_rollouts: int
) -> TokenValues:
    """Success after each token, and where the critical one is."""
    return TokenValues(
        problem_id=solution.problem_id,
        sample=solution.sample,
        model=identity,
        token_ids=solution.token_ids,
        response_start=solution.response_start,
        values={
            "success": tuple(count / num_rollouts for count in row["successes"]),
            "critical": tuple(
                float(token == row["critical"]) for token in range(row["num_tokens"])
            ),
        },
    )


def critical_index(values: TokenValues) -> int | None:
    """The critical token of a row of critical.jsonl; None where the solution has none.

    Args:
      values: with "critical".
    """
    marks = values.named("critical")
    return marks.index(1.0) if 1.0 in marks else None


def summarise(
    rows: Sequence[Mapping[str, Any]], num_rollouts: int, score: ScoreConfig
) -> dict[str, Any]:
    """All numbers of the rolled-out solutions.

    Args:
      rows: the facts of every solution.
      num_rollouts: completions of each prefix, n.
      score: the bootstrap.
    """
    interval = functools.partial(
        bootstrap_interval,
        seed=score.seed,
        num_samples=score.bootstrap_samples,
        confidence=score.confidence,
        method=score.interval,
    )
    found = [row for row in rows if row["critical"] is not None]
    places = [(row["critical"] + 1) / row["num_tokens"] for row in found]
    results: dict[str, Any] = {
        "num_solutions": len(rows),
        "num_tokens": sum(row["num_tokens"] for row in rows),
        "num_rollouts": num_rollouts,
        "num_found": len(found),
        "num_fallback": sum(row["is_fallback"] for row in found),
        "mean_place": float(np.mean(places)) if places else None,
        "confidence": score.confidence,
        "per_solution": {name: float(np.mean([row[name] for row in rows])) for name in _COSTS},
    }
    pairs = [row for row in found if row["replaced_successes"] is not None]
    results["num_replaced"] = len(pairs)
    if pairs:
        kept_S, replaced_S = (
            np.array([row[name] for row in pairs])
            for name in ("kept_successes", "replaced_successes")
        )
        curves = replacement_curves(kept_S, replaced_S, num_rollouts)
        for name, curve_SK in zip(("kept", "replaced"), curves, strict=True):
            results[name] = [_plain(interval(values_S)) for values_S in curve_SK.T]
    return results


def _plain(interval: Interval) -> dict[str, float]:
    """JSON-able numbers of an interval."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def table(results: Mapping[str, Any], ks: Sequence[int]) -> str:
    """The results as tables in Markdown.

    Args:
      results: of `summarise`.
      ks: the k of Pass@k that are shown, as far as there are so many completions.
    """
    lines = [
        f"{results['num_solutions']:,} wrong solutions of {results['num_tokens']:,} tokens, "
        f"{results['num_rollouts']} completions of every prefix.",
        "",
        "| measure | value |",
        "|---|---|",
        f"| solutions with a critical token | {results['num_found']:,} |",
        f"| of those where success came back after it | {results['num_fallback']:,} |",
    ]
    if results["mean_place"] is not None:
        lines.append(f"| mean place of the token in the solution | {results['mean_place']:.0%} |")
    lines += [
        f"| {title}, per solution | {results['per_solution'][name]:,.0f} |"
        for name, title in _COSTS.items()
    ]
    if results["num_replaced"]:
        confidence = f"{results['confidence']:.0%} interval"
        lines += [
            "",
            f"Pass@k of {results['num_replaced']:,} solutions from the prefix that ends with the "
            "critical token, and with another token in its place:",
            "",
            f"| k | with the token | {confidence} | without | {confidence} |",
            "|---|---|---|---|---|",
        ]
        for k in ks:
            if k <= results["num_rollouts"]:
                cells = [_cells(results[name][k - 1]) for name in ("kept", "replaced")]
                lines.append(f"| {k} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(one: Mapping[str, float]) -> str:
    """Mean and interval as two cells."""
    return f"{one['mean']:.3f} | {one['low']:.3f} to {one['high']:.3f}"


def _plot(results: Mapping[str, Any], path: pathlib.Path) -> None:
    """Pass@k over k, with the critical token and without, and its intervals as bands."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    ks = range(1, results["num_rollouts"] + 1)
    for name, title in (("replaced", "another token instead"), ("kept", "critical token kept")):
        means, lows, highs = (
            [one[end] for one in results[name]] for end in ("mean", "low", "high")
        )
        (line,) = axes.plot(ks, means, "o-", markersize=3, label=title)
        axes.fill_between(ks, lows, highs, alpha=0.2, color=line.get_color(), linewidth=0)
    shown = [2**power for power in range(results["num_rollouts"].bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [str(k) for k in shown])
    axes.minorticks_off()
    axes.set_xlabel("completions, k")
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel(f"pass@k of {results['num_replaced']:,} wrong solutions")
    axes.set_title(f"Replacing the critical token, {results['confidence']:.0%} intervals")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
