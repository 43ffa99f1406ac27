"""Pictures of an alignment: rounds, best-of-N, methods side by side.

Dimension key: none.
"""

import os
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from rec_jax.align.summary import PolicySummary
from rec_jax.plots import BLUE, GREEN, GREY, ORANGE, new_figure
from rec_jax.ranking_metrics import Interval

_PANELS = {
    "reward": ("reward model", BLUE, "o"),
    "judge": ("held-out judge", ORANGE, "s"),
    "truth": ("truth, seconds", GREEN, "D"),
}


def plot_rounds(
    path: str | os.PathLike[str],
    rounds: Sequence[PolicySummary],
    *,
    title: str = "The most probable session, round by round",
) -> None:
    """Draws the value of M_0, M_1, ... under every judge, one panel each.

    Args:
      path: where the PNG goes.
      rounds: summaries of M_0 to M_T.
      title: heading of the figure.
    """
    judges = [judge for judge in _PANELS if judge in rounds[0].measures]
    with new_figure(path, height=3.6) as canvas:
        canvas.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        for axes, judge in zip(
            canvas.subplots(1, len(judges), squeeze=False)[0], judges, strict=True
        ):
            name, colour, marker = _PANELS[judge]
            intervals = [summary.measures[judge] for summary in rounds]
            _curve(axes, list(range(len(rounds))), intervals, colour=colour, marker=marker)
            axes.set_title(name, size=11)
            axes.set_xlabel("round")
            axes.set_xticks(range(len(rounds)))


def plot_best_of(
    path: str | os.PathLike[str],
    policies: Sequence[PolicySummary],
    *,
    numbers: Sequence[int],
    title: str = "Best of N by the reward model",
) -> None:
    """Draws what the session chosen among N is worth to every judge.

    Args:
      path: where the PNG goes.
      policies: summaries of at most two policies.
      numbers: N.
      title: heading of the figure.
    """
    judges = [judge for judge in _PANELS if f"best_of/{numbers[0]}/{judge}" in policies[0].measures]
    with new_figure(path, height=3.8) as canvas:
        canvas.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        for axes, judge in zip(
            canvas.subplots(1, len(judges), squeeze=False)[0], judges, strict=True
        ):
            name, colour, marker = _PANELS[judge]
            for policy, style, shade in zip(policies, ("-", "--"), (colour, GREY), strict=False):
                intervals = [policy.measures[f"best_of/{number}/{judge}"] for number in numbers]
                _curve(axes, numbers, intervals, colour=shade, marker=marker, style=style)
                axes.lines[-1].set_label(policy.name)
            axes.set_title(name, size=11)
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(numbers), [str(number) for number in numbers])
            axes.set_xlabel("N")
            axes.legend(fontsize=9)


def plot_methods(
    path: str | os.PathLike[str],
    summaries: Sequence[PolicySummary],
    *,
    baseline: str,
    title: str = "Gain over the pre-trained model",
) -> None:
    """Draws every policy's paired gain under every judge, with intervals.

    Args:
      path: where the PNG goes.
      summaries: policies in order; the baseline and those without gains are left out.
      baseline: name of the policy that gains are measured from, for the heading.
      title: heading of the figure.
    """
    shown = [summary for summary in summaries if "reward" in summary.gains]
    judges = [judge for judge in _PANELS if all(judge in summary.gains for summary in shown)]
    with new_figure(path, height=1.6 + 0.36 * len(shown)) as canvas:
        canvas.suptitle(f"{title} ({baseline})", x=0.01, ha="left", weight="bold", size=13)
        panels = canvas.subplots(1, len(judges), sharey=True, squeeze=False)[0]
        for axes, judge in zip(panels, judges, strict=True):
            name, colour, marker = _PANELS[judge]
            for place, summary in enumerate(shown):
                found = summary.gains[judge]
                axes.plot([found.low, found.high], [place] * 2, color=colour, lw=2.5)
                axes.plot(found.mean, place, color=colour, marker=marker, ms=7)
            axes.axvline(0, color=GREY, lw=1)
            axes.set_title(name, size=11)
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(range(len(shown)), [summary.name for summary in shown])
        panels[0].invert_yaxis()


def plot_sweep(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[float, Mapping[str, Interval]]],
    *,
    title: str,
) -> None:
    """Draws gains against one setting per panel, every judge as a curve.

    Args:
      path: where the PNG goes.
      panels: by the setting's name, by its value, the gain under every judge.
      title: heading of the figure.
    """
    with new_figure(path, height=3.8 * len(panels)) as canvas:
        canvas.suptitle(title, x=0.01, ha="left", weight="bold", size=13)
        rows = canvas.subplots(len(panels), len(_PANELS), squeeze=False)
        for row, (setting, values) in zip(rows, panels.items(), strict=True):
            for axes, (judge, (name, colour, marker)) in zip(row, _PANELS.items(), strict=True):
                found = {x: gains[judge] for x, gains in values.items() if judge in gains}
                _curve(axes, list(found), list(found.values()), colour=colour, marker=marker)
                axes.axhline(0, color=GREY, lw=1)
                axes.set_title(name, size=10)
                axes.set_xlabel(setting)
                axes.set_xscale("log")
                axes.set_xticks(list(values), [f"{value:g}" for value in values], size=9)
                axes.minorticks_off()


def _curve(
    axes: Axes,
    places: Sequence[float] | Sequence[int],
    intervals: Sequence[Interval],
    *,
    colour: str,
    marker: str,
    style: str = "-",
) -> None:
    """Means joined by a line, with their intervals as bars."""
    for place, found in zip(places, intervals, strict=True):
        axes.plot([place] * 2, [found.low, found.high], color=colour, lw=1.5, alpha=0.6)
    means = [found.mean for found in intervals]
    axes.plot(list(places), means, color=colour, marker=marker, ms=6, ls=style)
