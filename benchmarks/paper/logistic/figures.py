"""The curves of the experiment: test accuracy and test log likelihood against wall time and against data passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.paper.logistic.course import Run
from benchmarks.paper.logistic.judge import Score

# Colours that can be told apart; the paper's own methods in warm ones.
COLOURS = (
    "#d62728",
    "#ff7f0e",
    "#8c564b",
    "#1f77b4",
    "#17becf",
    "#2ca02c",
    "#9467bd",
    "#111111",
    "#7f7f7f",
    "#e377c2",
)
DASHES = ("-", "-", "-", "--", "--", "--", "-.", "-", ":", "-.")


def curve(
    runs: Sequence[Run], labels: np.ndarray, axis: str, value: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sd over seeds of a score at each mark, at the mean cost of it.

    Args:
        runs: One for each seed.
        labels: (m,).
        axis: "wall", "cpu" or "passes".
        value: "accuracy" or "log_likelihood".

    Returns:
        Costs, means and sds, (k,) each; marks without a known cost are left out.
    """
    marks = min(len(run.wall) for run in runs)
    cost = np.mean([getattr(run, axis)[:marks] for run in runs], 0)
    scores = np.array(
        [[getattr(Score.of(p, labels), value) for p in run.probability[:marks]] for run in runs]
    )
    known = np.isfinite(cost)
    return cost[known], scores.mean(0)[known], scores.std(0)[known]


def draw(path: Path, groups: Mapping[str, Sequence[Run]], labels: np.ndarray, reference: Score) -> None:
    """Four panels: accuracy and log likelihood, against seconds and against data passes.

    Args:
        path: The PNG.
        groups: Label of a method -> its runs, in the order of the legend.
        labels: Test labels (m,).
        reference: Of NUTS; the grey band is one standard error over test rows around it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(2, 2, figsize=(11, 7.6), sharex="col", sharey="row", layout="constrained")
    rows = (
        ("accuracy", "test accuracy", reference.accuracy, reference.accuracy_error),
        ("log_likelihood", "test log likelihood (nats a row)", reference.log_likelihood, reference.log_likelihood_error),
    )  # fmt: skip
    columns = (
        ("wall", "wall seconds, compilation included"),
        ("passes", "data passes (gradients x rows / N)"),
    )
    for line, (value, name, middle, error) in zip(axes, rows, strict=True):
        for ax, (axis, _) in zip(line, columns, strict=True):
            ax.axhspan(middle - error, middle + error, color="0.85", zorder=0, label="NUTS ± 1 s.e.")
            for k, (label, runs) in enumerate(groups.items()):
                x, mean, sd = curve(runs, labels, axis, value)
                if not len(x):
                    continue
                style = {"color": COLOURS[k % len(COLOURS)], "ls": DASHES[k % len(DASHES)], "lw": 1.6}
                ax.plot(x, mean, label=label, **style, marker="o" if len(x) < 4 else None, ms=5)
                ax.fill_between(x, mean - sd, mean + sd, color=style["color"], alpha=0.15, lw=0)
            ax.set_xscale("log")
            ax.grid(alpha=0.3)
        line[0].set_ylabel(name)
        span = {"accuracy": (middle - 0.05, middle + 0.01), "log_likelihood": (middle - 0.08, middle + 0.01)}
        line[0].set_ylim(*span[value])
    for ax, (_, name) in zip(axes[1], columns, strict=True):
        ax.set_xlabel(name)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    fig.savefig(path, dpi=130)
    plt.close(fig)
